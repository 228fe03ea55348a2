//! What a disk can be left with that loses its power in a commit or in a copy of the log: every 512-byte sector of the last
//! transaction damaged in turn, in each of the ways in which it can be. A transaction is whole or absent.

use super::{counters, payload, pending, spec};
use berth_model::JobId;
use berth_sched_core::{PayloadKey, commit};
use berth_store::{DATABASE, SqliteStore};
use std::path::Path;

/// A disk writes as much at once or not at all.
pub(super) const SECTOR: usize = 512;

/// The bytes of the database and of its log.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) database: Vec<u8>,
    pub(super) log: Vec<u8>,
}

impl Files {
    pub(super) fn of(dir: &Path) -> Files {
        let read = |end: &str| std::fs::read(dir.join(format!("{DATABASE}{end}"))).unwrap();
        Files { database: read(""), log: read("-wal") }
    }

    /// As after a crash: the index of the log is in memory and gone.
    pub(super) fn open_in(&self, dir: &Path) -> SqliteStore {
        for (end, content) in [("", &self.database), ("-wal", &self.log)] {
            std::fs::write(dir.join(format!("{DATABASE}{end}")), content).unwrap();
        }
        match std::fs::remove_file(dir.join(format!("{DATABASE}-shm"))) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{e}"),
            _ => SqliteStore::open(dir).unwrap(),
        }
    }
}

/// Where files of a crash are opened: in memory, where there is one, since thousands are. What is durable is the test's to say.
pub(super) fn bed() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// One transaction that touches many pages, of several tables.
pub(super) fn one(store: &mut SqliteStore, job: u32) {
    commit(store, &[spec(job), pending(job), payload(job, 9000), counters(job + 1)]).unwrap();
}

/// How many transactions of [`one`] the store has; each must be whole, and the first ones of all.
pub(super) fn whole(store: &mut SqliteStore, what: &str) -> u32 {
    let stored = store.load().unwrap_or_else(|e| panic!("{what}: {e}"));
    let next = stored.meta.map_or(1, |meta| meta.next_job);
    let jobs: Vec<u32> = stored.jobs.iter().map(|row| row.job.0).collect();
    assert_eq!(jobs, (1..next).collect::<Vec<_>>(), "{what}: the counter is at {next}");
    assert_eq!(stored.specs.iter().map(|row| row.job.0).collect::<Vec<_>>(), jobs, "{what}");
    let reader = store.reader();
    // The earlier ones are no less whole than the one before the last.
    for job in next.saturating_sub(2).max(1)..=next {
        let payload = reader.payload(PayloadKey::Job(JobId(job))).unwrap();
        assert_eq!(
            payload.is_some(),
            job < next,
            "{what}: the script of job {job}, the counter is at {next}"
        );
    }
    next - 1
}

const COMMITTED: u32 = 4;

/// Bytes that are nothing: not all the same, so that no checksum takes them by chance.
fn garbage(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]
}

/// Damages every sector of the log's last transaction, which lies between `from` and `end`; `stale` is what the sectors held
/// before, in an older round of the log. Each time all transactions but the last are there, and the last one is when nothing
/// of it is missing.
fn tear_the_log(files: &Files, from: usize, end: usize, stale: Option<&[u8]>) {
    let dir = bed();
    let mut torn = 0;
    // The last cut is behind the end: nothing is missing.
    let mut cuts: Vec<usize> = (from..end).filter(|at| *at == from || at % SECTOR == 0).collect();
    cuts.push(end);
    for cut in cuts {
        let sector = cut..(cut / SECTOR * SECTOR + SECTOR).min(end);
        let rest = cut..files.log.len();
        let mut variants = Vec::new();
        let mut variant = |what, range: std::ops::Range<usize>, byte: &dyn Fn(usize) -> u8| {
            let mut log = files.log.clone();
            range.for_each(|at| log[at] = byte(at));
            variants.push((what, log));
        };
        if let Some(stale) = stale {
            let before = |at: usize| stale.get(at).copied().unwrap_or(0);
            variant("garbage behind it", rest.clone(), &garbage);
            variant("the old content behind it", rest, &before);
            variant("a sector of old content", sector, &before);
        } else {
            variant("nothing behind it", rest, &|_| 0);
            variant("a sector without content", sector.clone(), &|_| 0);
            variant("a sector of garbage", sector, &garbage);
            variants.push(("cut off", files.log[..cut].to_vec()));
        }
        for (how, log) in variants {
            let what = format!("{how}, at {cut} of {from} to {end}");
            let complete = log.get(..end) == Some(&files.log[..end]);
            let mut store = Files { log, ..files.clone() }.open_in(dir.path());
            let there = whole(&mut store, &what);
            assert_eq!(there, if complete { COMMITTED + 1 } else { COMMITTED }, "{what}");
            torn += u32::from(!complete);
            // What is left of a torn transaction does not come back behind the next one.
            if (cut / SECTOR).is_multiple_of(8) {
                one(&mut store, there + 1);
                let files = Files::of(dir.path());
                drop(store);
                let mut store = files.open_in(dir.path());
                assert_eq!(whole(&mut store, &what), there + 1, "{what}: one more, and again");
            }
        }
    }
    assert!(torn > 100, "only {torn} torn logs");
}

/// What the log and the database are once everything but the last transaction is durable; where the last one begins and ends.
fn with_a_last_transaction(store: &mut SqliteStore, dir: &Path, first: u32) -> (Files, usize, usize) {
    let frames = |store: &mut SqliteStore, job| {
        one(store, job);
        frames_end(&Files::of(dir).log)
    };
    let mut from = 0;
    for job in first..=COMMITTED {
        from = frames(store, job);
    }
    let end = frames(store, COMMITTED + 1);
    assert!(from > 0 && end > from + 5 * 4096, "{from} to {end}");
    (Files::of(dir), from, end)
}

/// Where the frames of the log's present round end: those behind have another salt.
/// <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>
fn frames_end(log: &[u8]) -> usize {
    const HEADER: usize = 32;
    const FRAME: usize = 24 + 4096;
    let salt = &log[16..24];
    let present = |at: &usize| log.get(at + 8..at + 16) == Some(salt);
    let mut frames = (0..).map(|n| HEADER + n * FRAME);
    frames.find(|at| !present(at)).unwrap_or(HEADER)
}

#[test]
fn a_torn_transaction_at_the_end_of_a_new_log_is_absent() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    let (files, from, end) = with_a_last_transaction(&mut store, dir.path(), 1);
    assert_eq!(files.log.len(), end, "a log of its first round ends with its last frame");
    tear_the_log(&files, from, end, None);
}

/// A log that began anew is written over its earlier round, whose frames then lie behind, and in, a torn transaction.
#[test]
fn a_torn_transaction_over_an_older_round_of_the_log_is_absent() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    for job in 1..COMMITTED {
        one(&mut store, job);
    }
    // Larger than what comes: the rounds overlap in all of it.
    commit(&mut store, &[payload(900, 60_000)]).unwrap();
    let beside = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    let hindered: i64 = beside.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0)).unwrap();
    assert_eq!(hindered, 0);
    let stale = Files::of(dir.path()).log;
    let (files, from, end) = with_a_last_transaction(&mut store, dir.path(), COMMITTED);
    assert!(
        files.log.len() > end + 4096 && stale.len() == files.log.len(),
        "no older frames behind the last"
    );
    tear_the_log(&files, from, end, Some(&stale));
}

/// While the log is copied into the database, the log still has everything: whatever sector of the database is torn.
#[test]
fn a_database_that_is_torn_while_the_log_is_copied_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    (1..=COMMITTED).for_each(|job| one(&mut store, job));
    let before = Files::of(dir.path());
    let beside = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    let copied: (i64, i64) =
        beside.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((row.get(1)?, row.get(2)?))).unwrap();
    assert!(copied.0 > 10 && copied.0 == copied.1, "{copied:?}");
    let after = Files::of(dir.path());
    assert!(before.log == after.log, "a copy changes nothing in the log");
    let old = |at: usize| before.database.get(at).copied().unwrap_or(0);
    let sectors = (0..after.database.len()).step_by(SECTOR);
    let changed: Vec<usize> =
        sectors.filter(|at| (*at..at + SECTOR).any(|byte| old(byte) != after.database[byte])).collect();
    assert!(changed.len() > 50, "{}", changed.len());
    let bed = bed();
    for cut in changed {
        let mut until = after.database.clone();
        (cut..until.len()).for_each(|at| until[at] = old(at));
        let mut from = after.database.clone();
        (0..cut).for_each(|at| from[at] = old(at));
        let mut torn = after.database.clone();
        // The header of the database tells what it is before the log is read; a disk tears no sector of its own.
        let byte = |at: usize| if cut == 0 { old(at) } else { garbage(at) };
        (cut..cut + SECTOR).for_each(|at| torn[at] = byte(at));
        let mut short = after.database[..cut.max(before.database.len())].to_vec();
        short[..before.database.len()].copy_from_slice(&before.database);
        for (how, database) in [("until", until), ("from", from), ("garbage", torn), ("length", short)] {
            let what = format!("{how} {cut} of {}", after.database.len());
            let mut store = Files { database, ..after.clone() }.open_in(bed.path());
            assert_eq!(whole(&mut store, &what), COMMITTED, "{what}");
        }
    }
}
