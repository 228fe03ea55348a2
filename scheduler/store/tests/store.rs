//! The store against files that it did not write, against a second controller, against kill -9 at any
//! time, against power that goes, and against a full disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure is a failed test

#[path = "store/beside.rs"]
mod beside;
#[path = "store/files.rs"]
mod files;
#[path = "store/hardship.rs"]
mod hardship;
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
use berth_model::{Attempt, ByteStr, Gid, JobId, NodeName, Sluid, StepId, StepKey, SubmissionId, Time, Uid};
use berth_sched_core::{
    Allocation, AuditRow, BootClock, CoreConfig, JobResult, JobRow, Mark, MemberRow, MetaRow, NodeRow,
    PayloadKey, Phase, ROW_VERSION, Run, SpecRow, StepNode, StepResult, StepRow, Tasks, TokenRow, Write,
    commit,
};
use berth_store::{DATABASE, DirectoryLock, SqliteStore, has_unfinished_jobs};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

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
        host_name: None,
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
fn a_second_controller_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _store = SqliteStore::open(dir.path()).unwrap();
    let error = SqliteStore::open(dir.path()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("process id {}", std::process::id())), "{text}");
    assert!(text.contains("berth down"), "{text}");
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

/// Runs this test binary again, for one of the tests marked as ignored.
fn again(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("STORE_DIR", dir);
    command
}
