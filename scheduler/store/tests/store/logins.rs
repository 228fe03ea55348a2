//! Logins that jobs came with: kept sealed, and gone from the files with their jobs.

use super::payload;
use berth_model::login::SealedLogin;
use berth_model::request::Payload;
use berth_model::{ByteStr, JobId};
use berth_sched_core::{PayloadKey, Write, commit};
use berth_store::SqliteStore;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Whether the bytes are anywhere in the directory's files.
fn holds(dir: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        content.windows(bytes.len()).any(|w| w == bytes)
    })
}

#[test]
fn of_a_login_that_was_deleted_no_byte_is_left_in_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let mut store = SqliteStore::open(&db).unwrap();
    let sealed = b"this-is-what-a-client-sealed".repeat(40);
    let login = |n: u32| SealedLogin {
        registry: "r.io".into(),
        sealed: ByteStr([sealed.as_slice(), &n.to_le_bytes()].concat()),
    };
    let put = |n: u32| Write::PutPayload {
        key: PayloadKey::Login(JobId(n)),
        payload: Arc::new(Payload { login: Some(login(n)), ..Payload::default() }),
    };
    // Before and after a copy of the log into the database, in pages that are shared with others.
    for n in 1..40 {
        commit(&mut store, &[put(n), payload(n, 2000)]).unwrap();
    }
    drop(store);
    let mut store = SqliteStore::open(&db).unwrap();
    commit(&mut store, &[put(40)]).unwrap();
    assert!(holds(&db, &sealed));
    let reader = store.reader();
    let found = reader.payload(PayloadKey::Login(JobId(7))).unwrap();
    assert_eq!(found.unwrap().login, Some(login(7)));
    for n in 1..=40 {
        commit(&mut store, &[Write::DeletePayload(PayloadKey::Login(JobId(n)))]).unwrap();
    }
    // The log is cut by a thread of its own.
    let deadline = Instant::now() + Duration::from_secs(60);
    while holds(&db, &sealed) {
        assert!(Instant::now() < deadline, "the login is still in the files");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(reader.payload(PayloadKey::Login(JobId(7))).unwrap().is_none());
}
