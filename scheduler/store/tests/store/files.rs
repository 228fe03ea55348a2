//! The files of a database: whose they are, of which version, and what is found and named of those that are damaged, cut off or foreign.

use super::{counters, entry, log, payload, pending, spec};
use berth_model::request::Payload;
use berth_model::spec::BatchScript;
use berth_model::{ByteStr, JobId, Time};
use berth_sched_core::{BootClock, Mark, PayloadKey, Write, commit};
use berth_store::{DATABASE, Room, SqliteStore, StoreError};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

#[test]
fn files_are_for_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    std::fs::create_dir(&db).unwrap();
    std::fs::set_permissions(&db, PermissionsExt::from_mode(0o755)).unwrap();
    let mut store = SqliteStore::open(&db).unwrap();
    commit(&mut store, &[spec(1)]).unwrap();
    assert_eq!(store.room(), Room::Enough);
    assert_eq!(std::fs::metadata(&db).unwrap().permissions().mode() & 0o777, 0o700);
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(&db).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        seen.push(entry.file_name().into_string().unwrap());
    }
    seen.sort();
    assert_eq!(seen, ["ballast", "cluster.db", "cluster.db-shm", "cluster.db-wal", "lock"]);
}

#[test]
fn a_database_without_members_gets_their_tables() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    commit(&mut store, &[spec(1), pending(1), counters(2)]).unwrap();
    drop(store);
    let raw = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    raw.execute_batch(
        "DROP TABLE members; DROP TABLE tokens; DROP TABLE audit; DROP TABLE parts; DROP TABLE departures;
         DROP INDEX jobs_sluid; ALTER TABLE jobs DROP COLUMN sluid; PRAGMA user_version = 1",
    )
    .unwrap();
    // What an earlier version wrote has no number for the log.
    let counters = br#"{"version":1,"next_job":2,"clock":99}"#.to_vec();
    raw.execute("UPDATE meta SET value = ?1 WHERE key = 'counters'", [counters]).unwrap();
    drop(raw);
    let mut store = SqliteStore::open(dir.path()).unwrap();
    let stored = store.load().unwrap();
    assert_eq!((stored.jobs.len(), stored.members.len(), stored.meta.unwrap().next_audit), (1, 0, 0));
    commit(&mut store, &[Write::AddAudit(Box::new(entry(1)))]).unwrap();
    assert_eq!(log(&store, None), [1]);
}

#[test]
fn a_newer_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    commit(&mut store, &[spec(1), pending(1)]).unwrap();
    drop(store);
    let path = dir.path().join(DATABASE);
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute("UPDATE jobs SET version = 99", []).unwrap();
    drop(raw);
    let mut store = SqliteStore::open(dir.path()).unwrap();
    let text = store.load().unwrap_err().to_string();
    assert!(text.contains("newer version of berth (row version 99"), "{text}");
    drop(store);
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.pragma_update(None, "user_version", 77).unwrap();
    drop(raw);
    let text = SqliteStore::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("schema 77, this version knows up to 4"), "{text}");
}

#[test]
fn scripts_of_earlier_versions_are_read_and_those_of_later_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    commit(&mut store, &[payload(1, 3), payload(2, 3), payload(3, 3)]).unwrap();
    let path = dir.path().join(DATABASE);
    let raw = rusqlite::Connection::open(&path).unwrap();
    let old = r##"{"script":{"text":"#!/bin/sh\n","args":["a b",{"hex":"ff0a"}]},"env":["A=1"]}"##;
    raw.execute("UPDATE payloads SET version = 1, row = ?1 WHERE job = 1", [old.as_bytes()]).unwrap();
    raw.execute("UPDATE payloads SET version = 1, row = x'7b' WHERE job = 2", []).unwrap();
    raw.execute("UPDATE payloads SET version = 9 WHERE job = 3", []).unwrap();
    drop(raw);
    let read = |job| store.reader().payload(PayloadKey::Job(JobId(job)));
    let args = vec![ByteStr::from("a b"), ByteStr(vec![0xff, b'\n'])];
    let script = Some(BatchScript { text: "#!/bin/sh\n".into(), args });
    assert_eq!(read(1).unwrap(), Some(Payload { script, env: vec!["A=1".into()], login: None }));
    let damaged = read(2).unwrap_err();
    assert!(matches!(damaged, StoreError::Damaged { .. }), "{damaged}");
    let newer = read(3).unwrap_err().to_string();
    assert!(newer.contains("row version 9, this version knows up to 3"), "{newer}");
}

#[test]
fn foreign_and_damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(DATABASE);
    std::fs::write(&path, "this is no database, it is a text of some length\n".repeat(100)).unwrap();
    let error = SqliteStore::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("cluster.db is damaged"), "{error}");

    std::fs::remove_file(&path).unwrap();
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute("CREATE TABLE recipes (name)", []).unwrap();
    drop(raw);
    let error = SqliteStore::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("another program's database"), "{error}");
}

#[test]
fn a_database_that_was_lost_is_not_taken_for_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, wal) = (dir.path().join(DATABASE), dir.path().join(format!("{DATABASE}-wal")));
    let mut store = SqliteStore::open(dir.path()).unwrap();
    commit(&mut store, &[spec(1), pending(1)]).unwrap();
    // As a crash leaves it: nothing but an emptied file, beside a log with a job in it.
    let crashed = tempfile::tempdir().unwrap();
    let (empty, log) = (crashed.path().join(DATABASE), crashed.path().join(wal.file_name().unwrap()));
    std::fs::write(&empty, "").unwrap();
    std::fs::copy(&wal, &log).unwrap();
    let refused = |dir: &Path, why: &str| {
        let text = SqliteStore::open(dir).unwrap_err().to_string();
        for part in [why, dir.join(DATABASE).to_str().unwrap(), "backup", "move the directory"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    };
    refused(crashed.path(), "is empty");
    std::fs::remove_file(&empty).unwrap();
    refused(crashed.path(), "-wal is still there");
    assert!(std::fs::metadata(&log).unwrap().len() > 0, "the log is kept");
    // As an orderly end leaves it, with the ballast.
    assert_eq!(store.room(), Room::Enough);
    drop(store);
    assert!(!wal.exists());
    std::fs::write(&path, "").unwrap();
    refused(dir.path(), "is empty");
    std::fs::remove_file(&path).unwrap();
    refused(dir.path(), "ballast is still there");
}

#[test]
fn a_first_start_that_was_cut_short_is_made_up_for() {
    let whole = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(whole.path()).unwrap());
    let content = std::fs::read(whole.path().join(DATABASE)).unwrap();
    for length in [0, 1, 100, 4096, content.len() - 1, content.len()] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lock"), "1").unwrap();
        for end in ["", "-wal", "-shm", "-journal"] {
            std::fs::write(dir.path().join(format!("{DATABASE}.new{end}")), &content[..length]).unwrap();
        }
        let mut store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(store.term(), berth_model::Term(1));
        commit(&mut store, &[spec(1), pending(1)]).unwrap();
        let left = |name: &str| name.starts_with(&format!("{DATABASE}.new"));
        let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
        assert!(!names.into_iter().any(|name| left(name.to_str().unwrap())));
    }
}

#[test]
fn a_torn_page_is_found_and_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    for job in 1..500 {
        commit(&mut store, &[spec(job), pending(job)]).unwrap();
    }
    store.reopen().unwrap(); // everything from the log into the database
    drop(store);
    let path = dir.path().join(DATABASE);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    for page in 3..pages {
        file.write_all_at(&[0x5a; 2048], page * 4096 + 1024).unwrap();
        file.write_all_at(&[0xa5; 64], page * 4096).unwrap();
    }
    let outcome = SqliteStore::open(dir.path()).and_then(|mut store| store.load());
    let error = outcome.expect_err("damage must not be taken for data");
    assert!(error.to_string().contains("is damaged"), "{error}");
    assert!(error.to_string().contains(".recover"), "{error}");
}

#[test]
fn a_log_that_is_cut_off_keeps_whole_commits() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    for job in 1..=20 {
        commit(&mut store, &[spec(job), pending(job)]).unwrap();
    }
    // A copy of the files as a crash would leave them, with the end of the log missing.
    let copy = tempfile::tempdir().unwrap();
    let wal = format!("{DATABASE}-wal");
    for name in [DATABASE, wal.as_str()] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let log = std::fs::OpenOptions::new().write(true).open(copy.path().join(&wal)).unwrap();
    let length = log.metadata().unwrap().len();
    log.set_len(length - 5000).unwrap();
    let mut store = SqliteStore::open(copy.path()).unwrap();
    let stored = store.load().unwrap();
    assert!(stored.jobs.len() >= 15 && stored.jobs.len() < 20, "{}", stored.jobs.len());
    assert_eq!(stored.jobs.len(), stored.specs.len(), "no half of a commit");
}

#[test]
fn the_log_does_not_grow_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    let wal = dir.path().join(format!("{DATABASE}-wal"));
    let mut most = 0;
    for round in 0..250 {
        let writes: Vec<Write> = (0..100).map(|i| payload(round * 100 + i, 8192)).collect();
        commit(&mut store, &writes).unwrap();
        most = most.max(std::fs::metadata(&wal).unwrap().len());
    }
    // 200 MB were written without a pause.
    assert!(most < 160 << 20, "the log grew to {} MiB", most >> 20);
}

#[test]
fn a_database_that_does_not_say_in_which_boot_it_was_written_opens() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    store.set_clock(Mark { time: Time(9), clock: Some(BootClock { boot: "a".into(), shows: Time(1) }) });
    commit(&mut store, &[counters(2)]).unwrap();
    drop(store);
    // As one of an earlier version.
    let raw = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    assert_eq!(raw.execute("DELETE FROM meta WHERE key = 'boot'", []).unwrap(), 1);
    drop(raw);
    let mut store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(*store.mark(), Mark { time: Time(9), clock: None });
    // What is committed without another time leaves it as it is.
    commit(&mut store, &[counters(3)]).unwrap();
    drop(store);
    assert_eq!(SqliteStore::open(dir.path()).unwrap().mark().time, Time(9));
}
