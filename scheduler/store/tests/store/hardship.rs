//! Processes that are killed at any moment, and disks that fill up: what was acknowledged stays, and ends of jobs can still be written.

use super::{again, counters, ended, payload, pending, spec, step};
use berth_model::{JobId, Span, Time};
use berth_sched_core::{CommitError, PayloadKey, Write, commit};
use berth_store::{Room, SqliteStore};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
#[ignore = "the process that kill_9_at_any_time_loses_nothing kills"]
fn child_commits_and_tells() {
    let Some(dir) = std::env::var_os("STORE_DIR") else { return };
    let mut store = SqliteStore::open(Path::new(&dir)).unwrap();
    let next = store.load().unwrap().meta.map_or(1, |meta| meta.next_job);
    let mut out = std::io::stdout();
    for job in next.. {
        let writes = [spec(job), pending(job), payload(job, 4000), counters(job + 1)];
        commit(&mut store, &writes).unwrap();
        // Told only once durable.
        writeln!(out, "done {job}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn kill_9_at_any_time_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..20_u64 {
        let mut child =
            again("hardship::child_commits_and_tells", dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let begun = Instant::now();
        let last_for = Duration::from_micros(2_000 + round * 7_919 % 60_000);
        let mut first: Option<Instant> = None;
        while let Some(Ok(line)) = lines.next() {
            if let Some(job) = line.strip_prefix("done ") {
                acknowledged = job.parse::<u32>().unwrap();
                first.get_or_insert_with(Instant::now);
            }
            if first.is_some_and(|first| first.elapsed() > last_for) {
                child.kill().unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
        child.wait().unwrap();
        let mut store = SqliteStore::open(dir.path()).unwrap();
        let stored = store.load().unwrap();
        let count = u32::try_from(stored.jobs.len()).unwrap();
        assert!(count >= acknowledged, "{acknowledged} were acknowledged, {count} are there");
        assert_eq!(stored.meta.unwrap().next_job, count + 1, "a commit is whole");
        assert_eq!(stored.specs.len(), stored.jobs.len());
        assert!(store.reader().payload(PayloadKey::Job(JobId(count))).unwrap().is_some());
    }
    assert!(acknowledged >= 20);
}

#[test]
#[ignore = "runs within the small file system of a_full_disk_keeps_exits_durable"]
fn child_on_a_small_disk() {
    let Some(dir) = std::env::var_os("STORE_DIR") else { return };
    let dir = Path::new(&dir).join("db");
    // Somebody else takes a part of the disk, and later all that is left.
    let hog = dir.parent().unwrap().join("hog");
    let file = std::fs::File::create(&hog).unwrap();
    let taken = 4096_u64;
    (0..taken).for_each(|i| file.write_all_at(&[1; 4096], i * 4096).unwrap());
    let mut store = SqliteStore::open(&dir).unwrap();
    assert_eq!(store.room(), Room::Enough);
    let mut job = 0;
    // As a controller does: submissions until the store says that it is full.
    while store.room() == Room::Enough && !store.is_full() {
        job += 1;
        commit(&mut store, &[spec(job), pending(job), payload(job, 60_000)]).unwrap();
        assert!(job < 10_000);
    }
    let Room::Full(why) = store.room() else { panic!("not full") };
    assert!(why.contains("is full") && why.contains("no restart is needed"), "{why}");
    let filled = (taken..).take_while(|i| file.write_all_at(&[1; 4096], i * 4096).is_ok()).count();
    println!("filled {filled} pages");
    // Exits stay durable.
    for i in 1..=job.min(200) {
        commit(&mut store, &[ended(i, 70), step(i)]).unwrap();
    }
    // A payload that is larger than all that is left is refused, whole.
    let before = store.load().unwrap();
    let huge: Vec<Write> = (0..40).map(|i| payload(90_000 + i, 1 << 20)).collect();
    let refused = commit(&mut store, &[&[pending(90_000)], huge.as_slice()].concat());
    assert!(matches!(refused, Err(CommitError::Failed(_))), "{refused:?}");
    store.reopen().unwrap();
    assert_eq!(store.load().unwrap().jobs, before.jobs);
    // And after a restart on the full disk everything is there.
    drop(store);
    let mut store = SqliteStore::open(&dir).unwrap();
    assert_eq!(store.load().unwrap().jobs, before.jobs);
    // Closing the database gave the log's space back: take that, too.
    let filled =
        (taken + filled as u64..).take_while(|i| file.write_all_at(&[1; 4096], i * 4096).is_ok()).count();
    println!("filled {filled} pages more");
    assert!(matches!(store.room(), Room::Full(_)));
    // Space returns: normal again without a restart.
    drop(file);
    std::fs::remove_file(&hog).unwrap();
    for i in 1..=job {
        commit(&mut store, &[Write::DeletePayload(PayloadKey::Job(JobId(i)))]).unwrap();
    }
    store.reopen().unwrap();
    while store.purge(Time(0), 1).unwrap() > 0 {}
    assert_eq!(store.room(), Room::Enough);
    commit(&mut store, &[spec(80_000), pending(80_000)]).unwrap();
    let end = Time(0) + Span(1);
    assert!(store.purge(end, 10).unwrap() == 0);
    println!("small disk survived");
}

#[test]
fn a_full_disk_keeps_exits_durable() {
    let dir = tempfile::tempdir().unwrap();
    let child = again("hardship::child_on_a_small_disk", dir.path());
    let program = std::env::current_exe().unwrap();
    // In namespaces of its own, so that the machine's mounts stay as they are; works without root, too.
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t tmpfs -o size=48m,mode=0700 small \"$STORE_DIR\" && exec \"$0\" \"$@\"")
        .arg(program)
        .args(child.get_args())
        .env("STORE_DIR", dir.path())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("small disk survived"), "{text}");
}
