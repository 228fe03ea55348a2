//! The store against files that it did not write, against a second controller, against kill -9 at any
//! time, against power that goes, and against a full disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure is a failed test

#[path = "store/beside.rs"]
mod beside;
#[path = "store/logins.rs"]
mod logins;
#[path = "store/power.rs"]
mod power;
#[path = "store/torn.rs"]
mod torn;

use berth_model::config::Config;
use berth_model::distribution::Distribution;
use berth_model::launch::{NodeShare, StepExit, Usage};
use berth_model::link::EndCause;
use berth_model::member::{AuditInfo, KeyId, MemberRole, MemberState};
use berth_model::query::AccountingQuery;
use berth_model::request::Payload;
use berth_model::rights::Role;
use berth_model::spec::{BatchScript, Identity, IoSpec, JobKind, JobSpec, ResourceRequest, TimeLimit};
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::{
    Attempt, ByteStr, Gid, JobId, NodeName, Sluid, Span, StepId, StepKey, SubmissionId, Time, Uid,
};
use berth_sched_core::{
    Allocation, AuditRow, BootClock, CommitError, CoreConfig, JobResult, JobRow, Mark, MemberRow, MetaRow,
    NodeRow, PayloadKey, Phase, ROW_VERSION, Run, SpecRow, StepNode, StepResult, StepRow, Tasks, TokenRow,
    Write, commit,
};
use berth_store::{DATABASE, DirectoryLock, Room, SqliteStore, StoreError, has_unfinished_jobs};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn spec(job: u32) -> Write {
    Write::PutSpec(Arc::new(SpecRow {
        version: ROW_VERSION,
        job: JobId(job),
        spec: JobSpec {
            submission: SubmissionId(format!("s{job}")),
            kind: JobKind::Batch,
            name: format!("job{}", job % 3),
            partition: None,
            account: job.is_multiple_of(2).then(|| "physics".to_string()),
            resources: ResourceRequest::default(),
            time_limit: None,
            begin: None,
            hold: false,
            nice: 0,
            requeue: None,
            array: None,
            immediate: None,
            comment: None,
            work_dir: ByteStr(b"/home/\xff".to_vec()),
            submit_dir: ByteStr(b"/home/\xff".to_vec()),
            io: IoSpec::default(),
            container: None,
            limits: Default::default(),
            umask: 0o22,
            warn_signal: None,
            lost_after: None,
            clientless: false,
            user_env: false,
            command: "true".into(),
            submit_line: "sbatch true".into(),
            submit_host: "n1".into(),
            submit_sid: 1,
            het: None,
        },
        identity: Arc::new(Identity {
            uid: Uid(1000 + job % 2),
            gid: Gid(1000),
            groups: vec![],
            user: "u".into(),
            group: "g".into(),
            home: "/home/u".into(),
            shell: "/bin/sh".into(),
        }),
        partition: "main".into(),
        time_limit: TimeLimit::Minutes(5),
        submitted: Time(i64::from(job)),
        first_step: None,
        login: false,
    }))
}

fn row(job: u32, phase: Phase) -> JobRow {
    JobRow {
        version: ROW_VERSION,
        job: JobId(job),
        spec_of: JobId(job),
        tasks: Tasks::None,
        attempt: Attempt(0),
        priority: job,
        hold: None,
        eligible: Time(0),
        refusals: 0,
        sluid: None,
        phase,
    }
}

fn pending(job: u32) -> Write {
    Write::PutJob(Box::new(row(job, Phase::Pending)))
}

fn run() -> Run {
    let share = NodeShare { cpus: vec![0, 1], memory: 100, gres: vec![] };
    let allocation = Allocation { nodes: vec![NodeName::from("n1")], shares: vec![share], tasks: vec![1] };
    Run { allocation: Arc::new(allocation), started: Time(50), limit: None, lease: None, imex_channel: None }
}

fn ended(job: u32, at: i64) -> Write {
    let result = JobResult {
        state: JobState::Failed,
        reason: Reason::NonZeroExitCode,
        exit: ExitStatus { code: 3, signal: 0 },
        derived: ExitStatus::OK,
        cancelled_by: None,
        cause: EndCause::JobEnded,
        ended: Time(at),
    };
    Write::PutJob(Box::new(row(job, Phase::Ended { run: Some(run()), result })))
}

fn step(job: u32) -> Write {
    Write::PutStep(Arc::new(StepRow {
        het: None,
        version: ROW_VERSION,
        key: StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Batch },
        name: "batch".into(),
        spec: None,
        nodes: vec![StepNode {
            node: NodeName::from("n1"),
            tasks: 1,
            share: None,
            pull: None,
            exit: Some(StepExit {
                status: ExitStatus { code: 3, signal: 0 },
                tasks: vec![],
                oom: false,
                launch_error: None,
                usage: Usage { user_us: 7, system_us: 8, max_rss: 9, ..Usage::default() },
                ended: Time(60),
                ended_by: None,
                image: None,
            }),
        }]
        .into(),
        consumes: false,
        started: Time(50),
        time_limit: None,
        ending: None,
        cancelled_by: None,
        result: Some(StepResult {
            state: JobState::Failed,
            exit: ExitStatus { code: 3, signal: 0 },
            message: None,
            ended: Time(60),
        }),
        distribution: Distribution::Block,
        login: false,
    }))
}

fn payload(job: u32, size: usize) -> Write {
    let script = BatchScript { text: ByteStr(vec![b'x'; size]), args: vec![] };
    let env = vec![ByteStr(b"A=\xfe\n".to_vec())];
    Write::PutPayload {
        key: PayloadKey::Job(JobId(job)),
        payload: Arc::new(Payload { script: Some(script), env, login: None }),
    }
}

fn counters(next_job: u32) -> Write {
    Write::PutMeta(MetaRow {
        version: ROW_VERSION,
        next_job,
        clock: Time(99),
        next_audit: 7,
        restored: None,
        leaps: vec![],
        sluid: None,
    })
}

fn all_jobs(store: &SqliteStore, query: &AccountingQuery) -> Vec<u32> {
    let mut ids = Vec::new();
    store
        .reader()
        .accounting(query, 2, |page| {
            assert!(page.len() <= 2);
            ids.extend(page.iter().map(|job| job.id.0));
            Ok(())
        })
        .unwrap();
    ids
}

#[test]
fn rows_survive_and_retired_jobs_stay_for_accounting_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(store.load().unwrap().jobs.len(), 0);
    let first_term = store.term();
    let mark = Mark { time: Time(12_345), clock: Some(BootClock { boot: "a-b c".into(), shows: Time(77) }) };
    store.set_clock(mark.clone());
    let writes =
        [spec(1), pending(1), payload(1, 10), spec(2), pending(2), step(2), ended(2, 70), counters(3)];
    commit(&mut store, &writes).unwrap();
    commit(&mut store, &[spec(3), ended(3, 80), step(3), Write::Retire(JobId(3))]).unwrap();
    commit(&mut store, &[spec(4), pending(4), Write::DeleteJob(JobId(4))]).unwrap();
    drop(store);

    let mut store = SqliteStore::open(dir.path()).unwrap();
    assert!(store.term() > first_term);
    assert_eq!(*store.mark(), mark);
    // It never goes back.
    store.set_clock(Mark { time: Time(12_344), clock: None });
    assert_eq!(*store.mark(), mark);
    let stored = store.load().unwrap();
    let ids = |rows: &[JobRow]| rows.iter().map(|r| r.job.0).collect::<Vec<_>>();
    assert_eq!(ids(&stored.jobs), [1, 2]);
    assert_eq!(stored.specs.len(), 2);
    assert_eq!(Write::PutSpec(Arc::new(stored.specs[0].clone())), spec(1));
    assert_eq!(
        stored.steps.iter().map(|s| Write::PutStep(Arc::new(s.clone()))).collect::<Vec<_>>(),
        [step(2)]
    );
    assert_eq!(stored.meta.map(Write::PutMeta), Some(counters(3)));

    let reader = store.reader();
    let read = reader.payload(PayloadKey::Job(JobId(1))).unwrap().unwrap();
    let Write::PutPayload { payload: written, .. } = payload(1, 10) else { unreachable!() };
    assert_eq!(read, *written);
    assert_eq!(reader.payload(PayloadKey::Step(JobId(1), StepId::Batch)).unwrap(), None);
    commit(&mut store, &[Write::DeletePayload(PayloadKey::Job(JobId(1)))]).unwrap();
    assert_eq!(reader.payload(PayloadKey::Job(JobId(1))).unwrap(), None);

    // Accounting sees live and retired ones alike.
    assert_eq!(all_jobs(&store, &AccountingQuery::default()), [1, 2, 3]);
    let only = |q: AccountingQuery| all_jobs(&store, &q);
    assert_eq!(only(AccountingQuery { ids: vec![JobId(3), JobId(9)], ..Default::default() }), [3]);
    assert_eq!(only(AccountingQuery { from: Some(Time(75)), ..Default::default() }), [1, 3]);
    assert_eq!(only(AccountingQuery { users: vec![Uid(1001)], ..Default::default() }), [1, 3]);
    assert_eq!(only(AccountingQuery { states: vec![JobState::Failed], ..Default::default() }), [2, 3]);
    assert_eq!(only(AccountingQuery { accounts: vec!["physics".into()], ..Default::default() }), [2]);
    let mut usage = Vec::new();
    let three = AccountingQuery { ids: vec![JobId(3)], ..Default::default() };
    reader
        .accounting(&three, 10, |page| {
            usage.extend(page.iter().flat_map(|job| job.steps.iter().map(|s| s.usage.max_rss)));
            Ok(())
        })
        .unwrap();
    assert_eq!(usage, [9]);

    // Purging forgets what is retired and old, and nothing else.
    assert_eq!(store.purge(Time(1_000), 10).unwrap(), 1);
    assert_eq!(all_jobs(&store, &AccountingQuery::default()), [1, 2]);
    assert_eq!(store.purge(Time(1_000), 10).unwrap(), 0);
}

#[test]
fn whether_jobs_wait_is_seen_while_no_controller_runs() {
    let dir = tempfile::tempdir().unwrap();
    let waits = |writes: &[Write]| {
        let mut store = SqliteStore::open(dir.path()).unwrap();
        commit(&mut store, writes).unwrap();
        drop(store);
        has_unfinished_jobs(dir.path()).unwrap()
    };
    assert!(!has_unfinished_jobs(dir.path()).unwrap(), "where there is no cluster");
    assert!(!dir.path().join(DATABASE).exists());
    assert!(waits(&[spec(1), pending(1)]));
    assert!(!waits(&[ended(1, 70)]));
    // What a controller has open, or another look at it, is not opened: nobody knows then.
    let held = DirectoryLock::take(dir.path()).unwrap();
    assert!(has_unfinished_jobs(dir.path()).unwrap());
    drop(held);
    assert!(!has_unfinished_jobs(dir.path()).unwrap());
    let Write::PutJob(mut job) = ended(1, 70) else { unreachable!() };
    let Phase::Ended { result, .. } = job.phase.clone() else { unreachable!() };
    job.phase = Phase::Ending {
        run: run(),
        result,
        left: std::iter::once(NodeName::from("n1")).collect(),
        requeue: true,
    };
    assert!(waits(&[Write::PutJob(job)]), "it goes back to the queue");
}

fn entry(number: u64) -> AuditRow {
    AuditRow {
        version: ROW_VERSION,
        number,
        at: Time(i64::try_from(number).unwrap() * 10),
        uid: Uid(0),
        user: "root".into(),
        role: Some(Role::Administrator),
        inside: None,
        via: (number == 2).then(|| "front".into()),
        what: format!("did {number}"),
    }
}

/// Numbers of the log's last entries, in pages of two.
fn log(store: &SqliteStore, most: Option<u32>) -> Vec<u64> {
    let mut all: Vec<AuditInfo> = Vec::new();
    let reader = store.reader();
    let read = reader.audit(most, 2, |page| {
        assert!(page.len() <= 2);
        all.extend(page);
        Ok(())
    });
    read.unwrap();
    all.iter().map(|e| e.number).collect()
}

#[test]
fn members_and_tokens_survive_and_the_log_is_read_from_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let member = |name: &str, key: u8| {
        Arc::new(MemberRow {
            version: ROW_VERSION,
            name: name.into(),
            role: MemberRole::Login,
            state: MemberState::Pending,
            key: KeyId::of_digest([key; 32]),
            joined: Time(1),
            token: "aaaaaaaa".into(),
            token_hash: "0".repeat(64),
            from: "10.0.0.1".into(),
            renewed: Time(2),
            administrators: true,
            leaving: true,
        })
    };
    let token = |id: &str, uses_left: u32| {
        Arc::new(TokenRow {
            version: ROW_VERSION,
            id: id.into(),
            hash: "0".repeat(64),
            role: MemberRole::Compute,
            created: Time(1),
            by: "root".into(),
            expires: Time(i64::MAX),
            uses_left,
            approval: true,
            administrators: false,
        })
    };
    let node = NodeRow {
        version: ROW_VERSION,
        name: "n1".into(),
        hardware: Default::default(),
        boot_id: "b".into(),
        boot_time: Time(0),
        agent_start: Time(0),
        agent_version: "1".into(),
        condition: Default::default(),
        causes: Default::default(),
        registered: None,
        resumed: false,
    };
    let mut store = SqliteStore::open(dir.path()).unwrap();
    let mut writes = vec![
        Write::PutNode(Box::new(node.clone())),
        Write::PutNode(Box::new(NodeRow { name: "n2".into(), ..node })),
        Write::PutMember(member("n1", 1)),
        Write::PutMember(member("n2", 2)),
        Write::PutMember(member("n1", 3)),
        Write::PutToken(token("aaaaaaaa", 2)),
        Write::PutToken(token("aaaaaaab", 1)),
        Write::PutToken(token("aaaaaaaa", 1)),
        counters(1),
    ];
    writes.extend((1..=6).map(|n| Write::AddAudit(Box::new(entry(n)))));
    commit(&mut store, &writes).unwrap();
    let gone = [
        Write::DeleteNode("n2".into()),
        Write::DeleteMember("n2".into()),
        Write::DeleteToken("aaaaaaab".into()),
    ];
    commit(&mut store, &gone).unwrap();
    drop(store);

    let mut store = SqliteStore::open(dir.path()).unwrap();
    let stored = store.load().unwrap();
    assert_eq!(stored.members, [(*member("n1", 3)).clone()]);
    assert_eq!(stored.tokens, [(*token("aaaaaaaa", 1)).clone()]);
    assert_eq!(stored.nodes.iter().map(|n| n.name.0.as_str()).collect::<Vec<_>>(), ["n1"]);
    assert_eq!(stored.meta.unwrap().next_audit, 7);

    assert_eq!(log(&store, None), [1, 2, 3, 4, 5, 6]);
    assert_eq!(log(&store, Some(3)), [4, 5, 6]);
    assert_eq!(log(&store, Some(99)), [1, 2, 3, 4, 5, 6]);
    assert_eq!(log(&store, Some(0)), [0; 0]);
    let mut via = Vec::new();
    let read = store.reader().audit(None, 10, |page| {
        via.extend(page.into_iter().map(|entry| entry.via));
        Ok(())
    });
    read.unwrap();
    assert_eq!(via[..3], [None, Some("front".into()), None]);
    // As versions wrote it that did not keep from where something was asked.
    let mut earlier = serde_json::to_value(entry(1)).unwrap();
    assert!(earlier.as_object_mut().unwrap().remove("via").is_some());
    assert_eq!(serde_json::from_value::<AuditRow>(earlier).unwrap(), entry(1));
    // An entry is never written over.
    assert!(commit(&mut store, &[Write::AddAudit(Box::new(entry(6)))]).is_err());
    store.reopen().unwrap();
    // Old entries go as old records do, a few at a time.
    assert_eq!(store.purge(Time(40), 2).unwrap(), 2);
    assert_eq!(log(&store, None), [3, 4, 5, 6]);
    assert_eq!(store.purge(Time(40), 2).unwrap(), 1);
    assert_eq!(log(&store, None), [4, 5, 6]);
    assert_eq!(store.purge(Time(40), 2).unwrap(), 0);
}

#[test]
fn a_restored_core_accepts_what_was_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    commit(&mut store, &[spec(1), pending(1), counters(2)]).unwrap();
    let stored = store.load().unwrap();
    let config = CoreConfig::new(&Config::default()).unwrap();
    assert!(berth_sched_core::Cluster::restore(config, store.term(), stored, Time(100)).is_ok());
}

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
fn a_second_controller_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _store = SqliteStore::open(dir.path()).unwrap();
    let error = SqliteStore::open(dir.path()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("process id {}", std::process::id())), "{text}");
    assert!(text.contains("berth down"), "{text}");
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
fn a_job_is_found_by_its_sluid_also_when_it_is_gone_from_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    // The realm is in the highest bits: to the database some of these numbers are negative.
    let (low, high) = (Sluid(7), Sluid(u64::MAX - 7));
    let named =
        |job, sluid| Write::PutJob(Box::new(JobRow { sluid: Some(sluid), ..row(job, Phase::Pending) }));
    let (one, two) = (named(1, low), named(2, high));
    let writes = [spec(1), spec(2), spec(3), one, two, pending(3), Write::Retire(JobId(2))];
    commit(&mut store, &writes).unwrap();
    let of = |ids: &[u32], sluids: &[Sluid]| AccountingQuery {
        ids: ids.iter().map(|id| JobId(*id)).collect(),
        sluids: sluids.to_vec(),
        ..AccountingQuery::default()
    };
    assert_eq!(all_jobs(&store, &of(&[], &[high])), [2]);
    assert_eq!(all_jobs(&store, &of(&[3], &[low])), [1, 3]);
    assert_eq!(all_jobs(&store, &of(&[], &[Sluid(8)])), [0; 0]);
    assert_eq!(all_jobs(&store, &of(&[], &[])), [1, 2, 3]);
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

/// Runs this test binary again, for one of the tests marked as ignored.
fn again(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("STORE_DIR", dir);
    command
}

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
        let mut child = again("child_commits_and_tells", dir.path()).stdout(Stdio::piped()).spawn().unwrap();
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
    let child = again("child_on_a_small_disk", dir.path());
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
