//! Faults of the core and of the store, one at a time.

use super::*;
use crate::agents::{Filling, tell};
use crate::identity;
use crate::logins::Logins;
use crate::machines::Machines;
use berth_model::Term;
use berth_model::config::Config;
use berth_model::hardware::{Core, Hardware};
use berth_model::link::Highest;
use berth_model::request::Payload;
use berth_model::spec::{JobKind, JobSelector, JobSpec, TimeLimit};
use berth_model::state::JobState;
use berth_sched_core::{AuditRow, Mark, MetaRow, ROW_VERSION};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

fn start(dir: &TempDir) -> Started {
    let store = SqliteStore::open(dir.path()).unwrap();
    let config = CoreConfig::new(&Config::default()).unwrap();
    Driver::start(config, store, 0, |_| Ok(()), dir.path().to_path_buf()).unwrap()
}

fn hello(version: &str, asked: Time) -> FromAgent {
    FromAgent::Hello {
        node: NodeName::from("n1"),
        boot_id: "b".into(),
        boot_time: Time(1),
        agent_start: Time(2),
        version: version.into(),
        hardware: Hardware {
            cores: vec![Core { socket: 0, numa: 0, cpus: vec![0] }],
            memory: 1 << 12,
            ..Hardware::default()
        },
        term: Term(0),
        steps: vec![],
        jobs: vec![],
        asked,
        unknown: vec![],
        features: vec![],
        highest: Highest::default(),
        host: None,
    }
}

fn connect(connection: u64, version: &str) -> ([Input; 2], mpsc::Receiver<Outgoing>) {
    let node = NodeName::from("n1");
    let (queue, told) = mpsc::channel(16);
    let opened = Input::AgentOpened { node: node.clone(), connection, queue };
    // Each is sent later than the one before.
    let message = hello(version, Time(i64::try_from(connection).unwrap()));
    ([opened, Input::Agent { node, connection, message, unheard: Unheard::default() }], told)
}

fn submit(number: u64, name: &str) -> (Input, oneshot::Receiver<Answer>) {
    let spec = JobSpec {
        name: name.into(),
        time_limit: Some(TimeLimit::Minutes(5)),
        hold: true,
        ..berth_samples::job(JobKind::Batch, name)
    };
    let script = berth_model::spec::BatchScript { text: "#!/bin/sh\n".into(), args: vec![] };
    let payload = Payload { script: Some(script), env: vec![], login: None };
    let body = Request::Submit { spec: Box::new(spec), payload, first_step: None, test_only: false };
    let (reply, answer) = oneshot::channel();
    (Input::Client { request: RequestId(number), actor: identity::controller(), body, reply }, answer)
}

fn names(shared: &Shared) -> Vec<String> {
    shared.snapshot().jobs().map(|job| job.spec.name).collect()
}

#[test]
fn a_fault_costs_one_request_and_nothing_that_was_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let Started { mut driver, shared, .. } = start(&dir);
    let (agent, mut told) = connect(1, "1");
    driver.turn(agent.into()).unwrap();
    assert!(matches!(told.try_recv().unwrap().message, ToAgent::Welcome { .. }));
    assert!(matches!(told.try_recv().unwrap().message, ToAgent::Configure(_)));

    driver.fault = |event| matches!(event, Event::Client { body: Request::Submit { spec, .. }, .. } if spec.name == "bad");
    let (before, mut first) = submit(1, "before");
    let (bad, mut second) = submit(2, "bad");
    let (after, mut third) = submit(3, "after");
    driver.turn(vec![before, bad, after]).unwrap();
    assert!(matches!(first.try_recv().unwrap(), Ok(Response::Submitted { .. })));
    let refused = second.try_recv().unwrap().unwrap_err();
    assert_eq!(refused.code, RefusalCode::Internal, "{}", refused.message);
    assert!(matches!(third.try_recv().unwrap(), Ok(Response::Submitted { .. })));
    assert_eq!(names(&shared), ["before", "after"]);
    assert!(told.try_recv().is_err(), "the agent is cut off, so that it compares notes");
    assert!(told.is_closed() || driver.agents.is_empty());
    assert_eq!(shared.alarms().len(), 1);
}

#[test]
fn a_message_that_fails_twice_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let Started { mut driver, shared, .. } = start(&dir);
    driver.fault = |event| matches!(event, Event::Agent { message: FromAgent::Hello { version, .. }, .. } if version == "bad");
    for connection in 1..=2 {
        let (agent, _told) = connect(connection, "bad");
        driver.turn(agent.into()).unwrap();
    }
    assert!(shared.alarms().iter().any(|text| text.contains("is set aside")), "{:?}", shared.alarms());
    // The third time, the core does not see it: nobody is cut off for it.
    driver.fault = |event| matches!(event, Event::Agent { .. });
    let (agent, _told) = connect(3, "bad");
    driver.turn(agent.into()).unwrap();
    assert_eq!(driver.agents.len(), 1);
    // Others are let in.
    driver.fault = |_| false;
    let (agent, mut told) = connect(4, "good");
    driver.turn(agent.into()).unwrap();
    assert!(matches!(told.try_recv().unwrap().message, ToAgent::Welcome { .. }));
}

#[test]
fn a_failed_commit_is_told_to_everyone_and_undone() {
    let dir = tempfile::tempdir().unwrap();
    let Started { mut driver, shared, .. } = start(&dir);
    let (agent, _told) = connect(1, "1");
    driver.turn(agent.into()).unwrap();
    let (good, mut answer) = submit(1, "good");
    driver.turn(vec![good]).unwrap();
    assert!(answer.try_recv().unwrap().is_ok());

    let raw = rusqlite::Connection::open(dir.path().join(berth_store::DATABASE)).unwrap();
    raw.execute_batch(
        "CREATE TRIGGER refuse BEFORE INSERT ON payloads WHEN NEW.job >= 2
         BEGIN SELECT RAISE(ABORT, 'broken on purpose'); END",
    )
    .unwrap();
    let (lost, mut first) = submit(2, "lost");
    let (too, mut second) = submit(3, "too");
    driver.turn(vec![lost, too]).unwrap();
    for answer in [&mut first, &mut second] {
        let refused = answer.try_recv().unwrap().unwrap_err();
        assert_eq!(refused.code, RefusalCode::Unavailable);
        assert!(refused.message.contains("nothing was changed"), "{}", refused.message);
    }
    assert_eq!(names(&shared), ["good"]);

    raw.execute_batch("DROP TRIGGER refuse").unwrap();
    drop(raw);
    let (agent, _told) = connect(2, "1");
    driver.turn(agent.into()).unwrap();
    let (again, mut answer) = submit(4, "lost");
    driver.turn(vec![again]).unwrap();
    let Ok(Response::Submitted { job, .. }) = answer.try_recv().unwrap() else { panic!() };
    assert_eq!(job, JobId(2), "no id was used up");
    assert!(shared.alarms().is_empty(), "{:?}", shared.alarms());
}

#[test]
fn a_start_that_cannot_be_read_costs_its_job_and_not_its_nodes_link() {
    let dir = tempfile::tempdir().unwrap();
    let Started { mut driver, inputs, shared, .. } = start(&dir);
    let (agent, mut told) = connect(1, "1");
    driver.turn(agent.into()).unwrap();
    let (held, mut answer) = submit(1, "held");
    driver.turn(vec![held]).unwrap();
    let Ok(Response::Submitted { job, .. }) = answer.try_recv().unwrap() else { panic!() };
    let (reply, _answer) = oneshot::channel();
    let body = Request::Release(vec![JobSelector::Job(job)]);
    driver
        .turn(vec![Input::Client { request: RequestId(2), actor: identity::controller(), body, reply }])
        .unwrap();
    let (start, payload) = loop {
        let Outgoing { message, payload, .. } = told.try_recv().expect("it is not started");
        if let ToAgent::Start(start) = message {
            break (start, payload);
        }
    };
    assert_eq!(payload, Some(PayloadKey::Job(job)));

    let raw = rusqlite::Connection::open(dir.path().join(berth_store::DATABASE)).unwrap();
    raw.execute_batch("UPDATE payloads SET row = x'01ffffffff'").unwrap();
    drop(raw);
    let filling = Filling {
        reader: driver.store.reader(),
        logins: Arc::new(Logins::open(&dir.path().join("login.key")).unwrap()),
        machines: Arc::new(Machines::new(dir.path().to_path_buf(), &Config::default())),
        shared: Arc::clone(&shared),
        inputs,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // That Start, and what comes behind it: how much of it was sent.
    let sends = || {
        runtime.block_on(async {
            let (queue, outgoing) = mpsc::channel(4);
            let (wire, mut heard) = mpsc::channel(4);
            let own = Outgoing { message: ToAgent::Start(start.clone()), payload, login: None, to: vec![] };
            let next =
                Outgoing { message: ToAgent::Refused("".into()), payload: None, login: None, to: vec![] };
            queue.try_send(own).unwrap();
            queue.try_send(next).unwrap();
            drop(queue);
            tell(outgoing, wire, filling.clone()).await;
            let mut sent = 0;
            while heard.recv().await.is_some() {
                sent += 1;
            }
            sent
        })
    };
    assert_eq!(sends(), 0, "it may pass: the agent comes back and is told again");
    assert!(shared.alarms().is_empty() && driver.inputs.try_recv().is_err());
    assert_eq!(sends(), 1, "the link does not live on");
    assert!(shared.alarms()[0].contains(&start.launch.key.to_string()), "{:?}", shared.alarms());
    let said = driver.inputs.try_recv().unwrap();
    driver.turn(vec![said]).unwrap();
    let info = shared.snapshot().job(job).unwrap();
    assert_eq!(info.state, JobState::Completing);
    let why = info.steps[0].message.clone().unwrap();
    assert!(why.contains("cannot be read from the controller's database"), "{why}");
    assert_eq!(driver.agents.len(), 1);
}

#[test]
fn time_goes_on_from_the_mark() {
    let dir = tempfile::tempdir().unwrap();
    let Started { mut driver, .. } = start(&dir);
    let (agent, _told) = connect(1, "1");
    driver.turn(agent.into()).unwrap();
    let now = driver.now();
    drop(driver);
    let store = SqliteStore::open(dir.path()).unwrap();
    let mark = store.mark().time;
    assert!(mark <= now && now.since(mark) < Span::from_secs(5), "{mark:?} {now:?}");
}

#[test]
fn each_core_is_told_once_that_the_port_listens() {
    static TOLD: AtomicU32 = AtomicU32::new(0);
    let dir = tempfile::tempdir().unwrap();
    let Started { mut driver, .. } = start(&dir);
    driver.fault = |event| {
        TOLD.fetch_add(u32::from(matches!(event, Event::Listening)), Ordering::Relaxed);
        matches!(event, Event::Client { body: Request::Submit { spec, .. }, .. } if spec.name == "bad")
    };
    let told = || TOLD.load(Ordering::Relaxed);
    driver.turn(Vec::new()).unwrap();
    assert_eq!(told(), 0);
    driver.turn(vec![Input::Listening]).unwrap();
    driver.turn(Vec::new()).unwrap();
    assert_eq!(told(), 1);
    // A fault costs the core, and the new one knows of no port.
    let (bad, _answer) = submit(1, "bad");
    driver.turn(vec![bad]).unwrap();
    driver.turn(Vec::new()).unwrap();
    driver.turn(Vec::new()).unwrap();
    assert_eq!(told(), 2);
}

#[test]
fn nothing_is_older_by_what_a_start_takes_on_trust() {
    for trusts in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (clock, _) = ClusterClock::start(&Mark::default(), true).unwrap();
        let now = clock.mark();
        let before = Time(now.time.0 - Span::from_mins(2 * 24 * 60).0);
        let mut store = SqliteStore::open(dir.path()).unwrap();
        // What was written in another boot, or just now in this one.
        store.set_clock(if trusts { Mark { time: before, clock: None } } else { now });
        let entry = AuditRow {
            version: ROW_VERSION,
            number: 1,
            at: before,
            uid: berth_model::Uid(0),
            user: "root".into(),
            role: None,
            inside: None,
            via: None,
            what: "did something".into(),
        };
        let counters = MetaRow {
            version: ROW_VERSION,
            next_job: 1,
            clock: before,
            next_audit: 2,
            restored: None,
            leaps: vec![],
            sluid: None,
        };
        commit(&mut store, &[Write::AddAudit(Box::new(entry)), Write::PutMeta(counters)]).unwrap();
        let config = CoreConfig::new(&Config::default()).unwrap();
        let started = Driver::start(config, store, 1, |_| Ok(()), dir.path().to_path_buf()).unwrap();
        let Started { mut driver, shared, .. } = started;
        assert_eq!(shared.alarms().iter().any(|text| text.contains("last time on record")), trusts);
        driver.purged = Instant::now().checked_sub(PURGE).unwrap();
        driver.purge();
        let raw = rusqlite::Connection::open(dir.path().join(berth_store::DATABASE)).unwrap();
        let left: u32 =
            raw.query_row("SELECT count(*) FROM audit WHERE number = 1", [], |row| row.get(0)).unwrap();
        assert_eq!(left, u32::from(trusts), "entries of two days ago, of which one is kept");
    }
}

#[test]
fn what_time_it_is_is_written_down_where_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let Started { mut driver, .. } = start(&dir);
    driver.note_time().unwrap();
    assert_eq!(driver.store.load().unwrap().meta, None, "not before it is time");
    driver.noted = Instant::now().checked_sub(NOTE).unwrap();
    driver.note_time().unwrap();
    let mark = driver.clock.mark();
    assert!(driver.store.load().unwrap().meta.is_some());
    drop(driver);
    let kept = SqliteStore::open(dir.path()).unwrap().mark().clone();
    assert!(kept.time <= mark.time && kept.clock.is_some(), "{kept:?} {mark:?}");
}
