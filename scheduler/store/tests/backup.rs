//! Copies of a database that is written meanwhile, of one that is damaged, and what makes them fit to go on.
#![allow(clippy::unwrap_used, clippy::panic)] // a failure is a failed test

use berth_model::{Sluid, Term, Time};
use berth_sched_core::{MetaRow, ROW_VERSION, Write, commit};
use berth_store::backup::{Facts, check, copy, make_fit};
use berth_store::{DATABASE, SqliteStore};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

fn counters(next_job: u32) -> Write {
    Write::PutMeta(MetaRow {
        version: ROW_VERSION,
        next_job,
        clock: Time(9),
        next_audit: 0,
        restored: None,
        leaps: vec![],
        sluid: None,
    })
}

#[test]
fn a_copy_is_of_one_moment_while_commits_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&dir.path().join("db")).unwrap();
    commit(&mut store, &[counters(1)]).unwrap();
    let (done, from) = (AtomicBool::new(false), dir.path().join("db"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            for round in 0..20 {
                let to = dir.path().join(format!("copy{round}"));
                let facts = copy(&from, &to).unwrap();
                assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
                assert!(facts.next_job >= last && facts.term == 1, "{facts:?}");
                last = facts.next_job;
                for end in ["-wal", "-shm", "-journal"] {
                    assert!(!dir.path().join(format!("copy{round}{end}")).exists());
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut next = 1;
        while !done.load(Ordering::Relaxed) {
            next += 1;
            commit(&mut store, &[counters(next)]).unwrap();
        }
        assert!(next > 20, "the copies kept commits waiting");
    });
}

#[test]
fn a_damaged_database_is_not_copied_for_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    drop(SqliteStore::open(&db).unwrap());
    let file = std::fs::OpenOptions::new().write(true).open(db.join(DATABASE)).unwrap();
    file.write_all_at(&[0xa5; 2048], 4096).unwrap();
    let text = copy(&db, &dir.path().join("copy")).unwrap_err().to_string();
    assert!(text.contains("damaged"), "{text}");
    // Nor is another program's.
    let other = dir.path().join("other");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
    assert!(check(&other).unwrap_err().to_string().contains("another program's"));
}

#[test]
fn what_is_made_fit_goes_on_above_all_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&dir.path().join("db")).unwrap();
    let Write::PutMeta(mut meta) = counters(70) else { panic!("no counters") };
    let given = Sluid(14_593_501_092_478_253_056);
    meta.sluid = Some(given);
    commit(&mut store, &[Write::PutMeta(meta)]).unwrap();
    drop(store);
    let new = dir.path().join("new");
    std::fs::create_dir(&new).unwrap();
    copy(&dir.path().join("db"), &new.join(DATABASE)).unwrap();
    make_fit(&new, Facts { term: 500, next_job: 400, schema: 0 }, 7).unwrap();
    let mut store = SqliteStore::open(&new).unwrap();
    assert!(store.term() > Term(1507) && store.term() < Term(1600), "{}", store.term());
    let meta = store.load().unwrap().meta.unwrap();
    // The controller draws another realm for those that follow.
    assert_eq!((meta.sluid, given.without_realm().realm()), (Some(given.without_realm()), None));
    assert_eq!((meta.next_job, meta.restored.unwrap().before.0), (10_400, 10_400));
    let above = Term(store.term().0 + 40);
    store.raise_term(above).unwrap();
    assert!(store.term() > above);
    drop(store);
    assert!(SqliteStore::open(&new).unwrap().term() > Term(above.0 + 1));
}

#[test]
fn two_restores_of_one_backup_have_two_terms() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&dir.path().join("db")).unwrap();
    commit(&mut store, &[counters(70)]).unwrap();
    drop(store);
    let term = |name: &str, random: u64| {
        let new = dir.path().join(name);
        std::fs::create_dir(&new).unwrap();
        copy(&dir.path().join("db"), &new.join(DATABASE)).unwrap();
        make_fit(&new, Facts::default(), random).unwrap();
        SqliteStore::open(&new).unwrap().term()
    };
    let (one, other) = (term("one", 3), term("other", 400_000));
    assert!(one < other, "{one} {other}");
    // A session is made of a term and a count, in 64 bits together.
    assert!(term("most", u64::MAX) < Term(1 << 22));
}
