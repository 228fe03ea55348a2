//! A controller as a process of its own: kill -9, identity, a full disk, a second controller, garbage, and
//! the rate of durable submissions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure is a failed test

mod common;

use berth_model::hardware::{Core, Hardware};
use berth_model::launch::{Program, StepExit, StepPhase};
use berth_model::link::{FromAgent, Highest, ToAgent};
use berth_model::query::{AccountingQuery, JobQuery};
use berth_model::record::JobInfo;
use berth_model::request::{Payload, RefusalCode, Response};
use berth_model::spec::{
    BatchScript, ContainerSpec, JobKind, JobSelector, JobSpec, NameFlag, NameScope, NamedSpec, ResolvedImage,
    StepSpec, TimeLimit,
};
use berth_model::state::{ExitStatus, JobState};
use berth_model::{ByteStr, JobId, NodeName, Session, Term, Time, Uid};
use berth_rpc::{AgentLink, AgentSender, Client, Endpoint, RpcError, Uplink};
use common::{Controller, again};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

// ---- processes ------------------------------------------------------------------------------------------

/// The end of a step whose program gave this exit code.
fn exited(code: u8) -> StepExit {
    StepExit {
        status: ExitStatus { code, signal: 0 },
        tasks: vec![],
        oom: false,
        launch_error: None,
        usage: Default::default(),
        ended: Time(5),
        ended_by: None,
        image: None,
    }
}

controller_process!();

async fn connect(dir: &Path) -> Client {
    let endpoint = Endpoint::Unix(dir.join("run/controller.sock"));
    Client::connect_patiently(&endpoint, Duration::from_secs(30)).await.unwrap()
}

/// A state directory that every user can reach.
fn state() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

// ---- an agent -------------------------------------------------------------------------------------------

type Told = Arc<Mutex<Vec<ToAgent>>>;

/// Registers a node and remembers what it is told.
async fn agent(dir: &Path, cores: u32) -> (AgentSender, Told) {
    let node = NodeName::from("n1");
    let (sender, mut receiver) =
        AgentLink::connect(&Uplink::Local(dir.join("private/node.sock")), &node).await.unwrap();
    let hardware = Hardware {
        arch: "x86_64".into(),
        os: "Linux".into(),
        cores: (0..cores).map(|i| Core { socket: 0, numa: 0, cpus: vec![i] }).collect(),
        memory: 64 << 10,
        enforces: true,
        ..Hardware::default()
    };
    let hello = FromAgent::Hello {
        node,
        boot_id: "b".into(),
        boot_time: Time(1),
        agent_start: Time(2),
        version: "1".into(),
        hardware,
        term: Term(0),
        steps: vec![],
        jobs: vec![],
        asked: Time(1),
        unknown: vec![],
        features: vec![],
        highest: Highest::default(),
        host: None,
    };
    sender.send(&hello).await.unwrap();
    let told: Told = Arc::default();
    let log = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok(Some(message)) = receiver.receive().await {
            log.lock().unwrap().push(message);
        }
    });
    wait_for(|| session(&told).is_some()).await;
    (sender, told)
}

fn session(told: &Told) -> Option<Session> {
    told.lock().unwrap().iter().find_map(|m| match m {
        ToAgent::Welcome { session, .. } => Some(*session),
        _ => None,
    })
}

async fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain");
}

// ---- jobs -----------------------------------------------------------------------------------------------

fn job(submission: &str) -> JobSpec {
    JobSpec {
        time_limit: Some(TimeLimit::Minutes(5)),
        command: "script".into(),
        submit_line: "sbatch script".into(),
        ..berth_samples::job(JobKind::Batch, submission)
    }
}

fn payload(size: usize) -> Payload {
    let mut text = b"#!/bin/sh\n".to_vec();
    text.resize(size / 2, b'x');
    let env =
        (0..size / 2 / 64).map(|i| ByteStr::from(format!("VARIABLE_{i:03}={}", "v".repeat(50)))).collect();
    Payload { script: Some(BatchScript { text: ByteStr(text), args: vec![] }), env, login: None }
}

async fn submit(client: &Client, spec: &JobSpec) -> Result<JobId, RpcError> {
    match client.submit(spec, &payload(200), None, false).await? {
        Response::Submitted { job, .. } => Ok(job),
        other => panic!("{other:?}"),
    }
}

// ---- tests ----------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_job_is_lost_or_made_twice() {
    let dir = state();
    let mut acknowledged: Vec<(String, JobId)> = Vec::new();
    for round in 0..4 {
        let controller = Controller::start(dir.path());
        let client = connect(dir.path()).await;
        let (_sender, _told) = agent(dir.path(), 2).await;
        let mut clients = Vec::new();
        let done: Arc<Mutex<Vec<(String, JobId)>>> = Arc::default();
        for worker in 0..8 {
            let (client, done) = (client.clone(), Arc::clone(&done));
            clients.push(tokio::spawn(async move {
                for i in 0.. {
                    let name = format!("{round}-{worker}-{i}");
                    match submit(&client, &job(&name)).await {
                        Ok(id) => done.lock().unwrap().push((name, id)),
                        Err(e) if e.is_transient() => return name,
                        Err(e) => panic!("{e}"),
                    }
                }
                unreachable!()
            }));
        }
        wait_for(|| done.lock().unwrap().len() >= 150 + round * 37).await;
        drop(controller);
        let mut unknown = Vec::new();
        for task in clients {
            unknown.push(task.await.unwrap());
        }
        acknowledged.append(&mut done.lock().unwrap());

        let controller = Controller::start(dir.path());
        let client = connect(dir.path()).await;
        let (_sender, _told) = agent(dir.path(), 2).await;
        // What was in flight is repeated with its own id: there is one job of it, recorded before or now.
        for name in &unknown {
            acknowledged.push((name.clone(), submit(&client, &job(name)).await.unwrap()));
        }
        let there = client.jobs(&JobQuery { include_finished: true, ..JobQuery::default() }).await.unwrap();
        for (name, id) in &acknowledged {
            let found: Vec<&JobInfo> = there.iter().filter(|j| j.spec.submission.0 == *name).collect();
            assert_eq!(found.len(), 1, "{name}");
            assert_eq!(found[0].id, *id, "{name}");
        }
        assert_eq!(there.len(), acknowledged.len());
        let recorded = client.accounting(&AccountingQuery::default()).await.unwrap();
        assert_eq!(recorded.len(), there.len());
        drop(controller);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_from_submission_to_its_record() {
    let dir = state();
    let controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    let (sender, told) = agent(dir.path(), 2).await;
    let id = submit(&client, &job("one")).await.unwrap();
    // A read includes every acknowledged write.
    assert_eq!(client.jobs(&JobQuery { ids: vec![id], ..Default::default() }).await.unwrap().len(), 1);
    let mut watch = client.watch_job(id).await.unwrap();
    let first = watch.next_state().await.unwrap().unwrap();
    assert_eq!(first.id, id);
    let start = || {
        told.lock().unwrap().iter().find_map(|m| match m {
            ToAgent::Start(start) => Some(start.clone()),
            _ => None,
        })
    };
    wait_for(|| start().is_some()).await;
    let start = start().unwrap();
    let Program::Script { text, .. } = &start.launch.program else { panic!("{:?}", start.launch.program) };
    assert!(text.0.starts_with(b"#!/bin/sh\n"), "the script comes from the store");
    assert!(!start.launch.env.is_empty());
    assert_eq!(start.launch.identity.uid.0, nix::unistd::getuid().as_raw());
    let session = session(&told).unwrap();
    let key = start.launch.key;
    let report = |phase| FromAgent::Step { session, key, phase };
    sender.send(&report(StepPhase::Running)).await.unwrap();
    let exit = exited(7);
    sender.send(&report(StepPhase::Exited(exit))).await.unwrap();
    wait_for(|| told.lock().unwrap().contains(&ToAgent::ExitRecorded { key })).await;
    wait_for(|| told.lock().unwrap().iter().any(|m| matches!(m, ToAgent::EndJob { .. }))).await;
    let attempt = key.attempt;
    sender
        .send(&FromAgent::JobGone { session, job: id, attempt, steps: vec![], epilog: None, faults: vec![] })
        .await
        .unwrap();
    let mut states = vec![first.state];
    while let Some(info) = watch.next_state().await.unwrap() {
        states.push(info.state);
    }
    assert_eq!(states.last(), Some(&JobState::Failed), "{states:?}");
    let record = client.accounting(&AccountingQuery { ids: vec![id], ..Default::default() }).await.unwrap();
    assert_eq!(record[0].exit, ExitStatus { code: 7, signal: 0 });
    assert_eq!(record[0].steps.len(), 1);
    let status = client.status().await.unwrap();
    assert_eq!(status.agents.len(), 1);
    assert!(status.agents[0].connected && status.accepting && status.alarms.is_empty(), "{status:?}");
    drop(controller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_has_seen_its_user_finds_on_record() {
    let dir = state();
    let _controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    let (sender, told) = agent(dir.path(), 2).await;
    let id = submit(&client, &job("seen")).await.unwrap();
    let start = || {
        told.lock().unwrap().iter().find_map(|m| match m {
            ToAgent::Start(start) => Some(start.launch.key),
            _ => None,
        })
    };
    wait_for(|| start().is_some()).await;
    let key = start().unwrap();
    client.end_seen(id).await.unwrap();
    let exit = exited(7);
    let (session, steps) = (session(&told).unwrap(), vec![(key, StepPhase::Exited(exit))]);
    let gone =
        FromAgent::JobGone { session, job: id, attempt: key.attempt, steps, epilog: None, faults: vec![] };
    let query = AccountingQuery { ids: vec![id], ..Default::default() };
    // Asked before the agent has told the end.
    let (record, sent) = tokio::join!(client.accounting(&query), async { sender.send(&gone).await });
    sent.unwrap();
    assert_eq!(record.unwrap()[0].state, JobState::Failed);
    // One that never comes is not waited for for ever.
    let runs = submit(&client, &job("runs")).await.unwrap();
    client.end_seen(runs).await.unwrap();
    let query = JobQuery { ids: vec![runs], ..Default::default() };
    assert_eq!(client.jobs(&query).await.unwrap()[0].state, JobState::Running);
    let unknown = client.end_seen(JobId(999)).await;
    assert!(matches!(unknown, Err(RpcError::Refused(r)) if r.code == RefusalCode::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_survives_a_kill_of_the_controller() {
    let dir = state();
    let controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    let _agent = agent(dir.path(), 2).await;
    let held = JobSpec { hold: true, ..job("held") };
    let id = submit(&client, &held).await.unwrap();
    let mut watch = client.watch_job(id).await.unwrap();
    assert_eq!(watch.next_state().await.unwrap().unwrap().state, JobState::Pending);
    let seen = tokio::spawn(async move {
        let mut last = None;
        while let Some(info) = watch.next_state().await.unwrap() {
            last = Some(info.state);
        }
        last
    });
    drop(controller);
    let _controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    let acted = client.cancel_one(id, None).await.unwrap();
    assert_eq!(acted, Response::Acted { jobs: vec![id], refused: vec![], later: vec![] });
    let last = tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap().unwrap();
    assert_eq!(last, Some(JobState::Cancelled));
}

#[tokio::test]
#[ignore = "runs as another user, for who_asks_is_what_the_kernel_says"]
async fn child_client_of_another_user() {
    let Some(dir) = std::env::var_os("CONTROLLER_DIR") else { return };
    let dir = PathBuf::from(dir);
    let client = connect(&dir).await;
    let id = submit(&client, &JobSpec { hold: true, ..in_a_kept_container("from nobody") }).await.unwrap();
    let other = JobId(1);
    for record in told_of(&client, other).await {
        assert!(!record.contains("secret") && !record.contains("/saved"), "{record}");
    }
    for record in told_of(&client, id).await {
        assert!(record.contains("secret") && record.contains("/saved"), "{record}");
    }
    let refused = client.cancel_one(other, None).await.unwrap();
    let Response::Acted { jobs, refused, .. } = refused else { panic!() };
    assert!(jobs.is_empty());
    assert_eq!(refused[0].1.code, RefusalCode::Denied);
    let held = client.hold(&[JobSelector::Job(other)]).await.unwrap();
    assert!(matches!(held, Response::Acted { jobs, .. } if jobs.is_empty()));
    let denied = client.shutdown().await.unwrap_err();
    assert!(matches!(denied, RpcError::Refused(r) if r.code == RefusalCode::Denied));
    let lease = client.lease(other).await.unwrap_err();
    assert!(matches!(lease, RpcError::Refused(r) if r.code == RefusalCode::Denied));
    let seen = client.end_seen(other).await.unwrap_err();
    assert!(matches!(seen, RpcError::Refused(r) if r.code == RefusalCode::Denied));
    // The private socket, where an agent says for whom it speaks, is out of reach.
    let private = UnixStream::connect(dir.join("private/node.sock")).unwrap_err();
    assert_eq!(private.kind(), std::io::ErrorKind::PermissionDenied);
    for secret in ["db/cluster.db", "db/cluster.db-wal", "private/node.sock"] {
        let opened = std::fs::File::open(dir.join(secret)).unwrap_err();
        assert_eq!(opened.kind(), std::io::ErrorKind::PermissionDenied, "{secret}");
    }
    println!("nobody has job {id}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_is_what_the_kernel_says() {
    if nix::unistd::getuid().as_raw() != 0 {
        eprintln!("skipped: only root can run a client as another user");
        return;
    }
    let dir = state();
    let _controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    let _agent = agent(dir.path(), 2).await;
    let ours = JobSpec { hold: true, ..in_a_kept_container("from root") };
    assert_eq!(submit(&client, &ours).await.unwrap(), JobId(1));
    let child = again("child_client_of_another_user", dir.path());
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(child.get_program())
        .args(child.get_args())
        .env("CONTROLLER_DIR", dir.path())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("nobody has job 2"), "{text}");
    let two = client.jobs(&JobQuery { ids: vec![JobId(2)], ..Default::default() }).await.unwrap();
    assert_eq!(two[0].identity.uid, Uid(65534));
    assert_eq!(two[0].identity.user, "nobody");
    // An administrator sees all of it.
    for record in told_of(&client, JobId(2)).await {
        assert!(record.contains("secret") && record.contains("/saved"), "{record}");
    }
}

/// A job that says under which name its container is kept, wherever a job can say it.
fn in_a_kept_container(submission: &str) -> JobSpec {
    let named = NamedSpec { name: "secret".into(), flag: NameFlag::Auto, scope: NameScope::User };
    let typed = "--container-name=secret";
    let container = ContainerSpec {
        named: Some(named),
        save: Some("/saved".into()),
        ..berth_samples::container(typed, Some(ResolvedImage::Kept))
    };
    let submit_line = ByteStr::from(format!("sbatch {typed} script"));
    JobSpec { container: Some(container), submit_line, ..job(submission) }
}

/// Every record of a job that a client can ask for.
async fn told_of(client: &Client, id: JobId) -> Vec<String> {
    let named = client.jobs(&JobQuery { ids: vec![id], ..Default::default() }).await.unwrap();
    let listed = client.jobs(&JobQuery { include_finished: true, ..Default::default() }).await.unwrap();
    let on_record =
        client.accounting(&AccountingQuery { ids: vec![id], ..Default::default() }).await.unwrap();
    let watched = client.watch_job(id).await.unwrap().next_state().await.unwrap();
    let all = [named, listed, on_record, watched.into_iter().collect()];
    let of_job = |jobs: Vec<JobInfo>| jobs.into_iter().find(|job| job.id == id).unwrap();
    all.into_iter().map(|jobs| format!("{:?}", of_job(jobs))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_large_records_arrive() {
    let dir = state();
    let _controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    // 20 MiB in all, more than one message holds.
    let submit_line = ByteStr::from("l".repeat(100_000));
    for i in 0..200 {
        let name = format!("{i:01024}");
        let large = JobSpec { hold: true, account: Some(name.clone()), name, ..job(&i.to_string()) };
        submit(&client, &JobSpec { submit_line: submit_line.clone(), ..large }).await.unwrap();
    }
    let ids: Vec<JobId> = (1..=200).map(JobId).collect();
    for query in [JobQuery::default(), JobQuery { ids: ids.clone(), ..JobQuery::default() }] {
        let found = client.jobs(&query).await.unwrap();
        assert!(found.iter().all(|job| job.spec.submit_line == submit_line));
        assert_eq!(found.iter().map(|job| job.id).collect::<Vec<_>>(), ids);
    }
    assert_eq!(client.accounting(&AccountingQuery::default()).await.unwrap().len(), 200);
    let long = submit(&client, &JobSpec { name: "n".repeat(1025), ..job("long") }).await;
    assert!(matches!(long, Err(RpcError::Refused(r)) if r.message.contains("--job-name")));
}

#[test]
fn a_second_controller_is_refused_and_a_stale_socket_replaced() {
    let dir = state();
    let first = Controller::start(dir.path());
    let socket = dir.path().join("run/controller.sock");
    let begun = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    let second = again("child_controller", dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(3), "{text}");
    assert!(text.contains(&format!("process id {}", first.0.id())), "{text}");
    assert!(UnixStream::connect(&socket).is_ok(), "the first one is not disturbed");
    drop(first);
    assert!(UnixStream::connect(&socket).is_err());
    let _third = Controller::start(dir.path());
    while UnixStream::connect(&socket).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(40));
        std::thread::sleep(Duration::from_millis(10));
    }
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("run/controller.sock"), 0o666);
    assert_eq!(mode("private"), 0o700);
    assert_eq!(mode("db"), 0o700);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stops_on_request_and_on_sigterm_and_tidies_up() {
    let dir = state();
    for by_signal in [false, true] {
        let mut controller = Controller::start(dir.path());
        let client = connect(dir.path()).await;
        let _agent = agent(dir.path(), 1).await;
        let pid_file = dir.path().join("run/controller.json");
        wait_for(|| pid_file.exists()).await;
        let text = std::fs::read_to_string(&pid_file).unwrap();
        assert!(text.contains(&format!("\"pid\":{}", controller.0.id())), "{text}");
        let begun = Instant::now();
        if by_signal {
            let log = client.audit(None).await.unwrap();
            assert_eq!(log.len(), 1, "{log:?}");
            assert_eq!((log[0].number, log[0].what.as_str()), (1, "stopped the controller"));
            let pid = nix::unistd::Pid::from_raw(i32::try_from(controller.0.id()).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        } else {
            client.shutdown().await.unwrap();
        }
        let status = controller.0.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(!pid_file.exists());
        assert!(!dir.path().join("run/controller.sock").exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_leaves_the_controller_unmoved() {
    let dir = state();
    let _controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    let _agent = agent(dir.path(), 1).await;
    for socket in ["run/controller.sock", "private/node.sock"] {
        for bytes in [b"\0\0\0\0".as_slice(), b"GET / HTTP/1.0\r\n\r\n", b"{\"node\":7}\n", &[0xff; 5000]] {
            let mut stream = UnixStream::connect(dir.path().join(socket)).unwrap();
            let _ = stream.write_all(bytes); // it may have been closed already
            let _ = stream.shutdown(std::net::Shutdown::Write);
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    // An agent that says nonsense: steps that nobody started, a session that nobody gave.
    let (sender, _) =
        AgentLink::connect(&Uplink::Local(dir.path().join("private/node.sock")), &NodeName::from("n2"))
            .await
            .unwrap();
    sender
        .send(&FromAgent::Heartbeat {
            session: Session(999),
            load: 0,
            free_memory: 0,
            drift: vec![],
            troubles: vec![],
            asked: Time(0),
            used: vec![],
            gpus: vec![],
        })
        .await
        .unwrap();
    assert!(submit(&client, &job("after")).await.is_ok());
    assert!(client.status().await.unwrap().alarms.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allocation_without_its_client_ends_after_half_a_minute() {
    let dir = state();
    let controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    let _agent = agent(dir.path(), 4).await;
    let driven = |name: &str| JobSpec { kind: JobKind::Alloc, ..job(name) };
    let alone = submit(&client, &driven("alone")).await.unwrap();
    let kept = submit(&client, &driven("kept")).await.unwrap();
    let lease = client.lease(kept).await.unwrap();
    // The lease is taken again from the next controller.
    drop(controller);
    let _controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    let begun = Instant::now();
    let state = async |id| {
        let query = JobQuery { ids: vec![id], ..Default::default() };
        client.jobs(&query).await.unwrap().first().map(|j| j.state)
    };
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(state(alone).await, Some(JobState::Running));
    while state(alone).await == Some(JobState::Running) {
        assert!(begun.elapsed() < Duration::from_secs(45));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(25), "{:?}", begun.elapsed());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(state(kept).await, Some(JobState::Running));
    drop(lease);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs within the small file system of a_full_disk_refuses_new_jobs_only"]
async fn child_on_a_small_disk() {
    let Some(dir) = std::env::var_os("CONTROLLER_DIR") else { return };
    let dir = PathBuf::from(dir);
    let hog = dir.join("hog");
    std::fs::write(&hog, vec![1_u8; 20 << 20]).unwrap();
    let state = dir.join("state");
    let controller = Controller::start(&state);
    let client = connect(&state).await;
    let _agent = agent(&state, 2).await;
    let large = Payload { script: payload(120_000).script, env: vec![], login: None };
    let mut ids = Vec::new();
    let refusal = loop {
        match client
            .submit(&JobSpec { hold: true, ..job(&format!("s{}", ids.len())) }, &large, None, false)
            .await
        {
            Ok(Response::Submitted { job, .. }) => ids.push(job),
            Ok(other) => panic!("{other:?}"),
            Err(RpcError::Refused(refusal)) => break refusal,
            Err(e) => panic!("{e}"),
        }
        assert!(ids.len() < 5000);
    };
    assert_eq!(refusal.code, RefusalCode::Unavailable, "{}", refusal.message);
    assert!(refusal.message.contains("full"), "{}", refusal.message);
    let status = client.status().await.unwrap();
    assert!(!status.accepting && !status.alarms.is_empty(), "{status:?}");
    // Cancelling is still possible, and durable.
    let cancelled: Vec<JobId> = ids.iter().copied().take(50).collect();
    for id in &cancelled {
        let acted = client.cancel_one(*id, None).await.unwrap();
        assert_eq!(acted, Response::Acted { jobs: vec![*id], refused: vec![], later: vec![] });
    }
    drop(controller);
    let _controller = Controller::start(&state);
    let client = connect(&state).await;
    let _agent = agent(&state, 2).await;
    let query = JobQuery { include_finished: true, ..JobQuery::default() };
    let after = client.jobs(&query).await.unwrap();
    assert_eq!(after.len(), ids.len());
    let gone = after.iter().filter(|j| j.state == JobState::Cancelled).count();
    assert_eq!(gone, cancelled.len());
    // Space returns: normal again without a restart.
    std::fs::remove_file(&hog).unwrap();
    let begun = Instant::now();
    while let Err(e) = submit(&client, &job("again")).await {
        assert!(e.is_transient() && begun.elapsed() < Duration::from_secs(20), "{e}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(client.status().await.unwrap().accepting);
    println!("small disk survived");
}

#[test]
fn a_full_disk_refuses_new_jobs_only() {
    let dir = tempfile::tempdir().unwrap();
    let child = again("child_on_a_small_disk", dir.path());
    // In namespaces of its own, so that the machine's mounts stay as they are; works without root, too.
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t tmpfs -o size=64m,mode=0755 small \"$CONTROLLER_DIR\" && exec \"$0\" \"$@\"")
        .arg(child.get_program())
        .args(child.get_args())
        .env("CONTROLLER_DIR", dir.path())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("small disk survived"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_waits_is_forgotten_with_its_client() {
    let dir = state();
    let _controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    let (_sender, told) = agent(dir.path(), 1).await;
    let id = submit(&client, &JobSpec { kind: JobKind::Alloc, ..job("alloc") }).await.unwrap();
    let step = |name: &str| StepSpec { tasks: Some(1), ..berth_samples::step(name) };
    let first = client.create_step(id, &step("first")).await.unwrap();
    assert!(matches!(first, Response::StepCreated { .. }), "{first:?}");
    let second = step("second");
    let waiting = client.create_step(id, &second);
    assert!(tokio::time::timeout(Duration::from_millis(500), waiting).await.is_err(), "no CPU is free");
    // Its client is gone. When the CPU is free again, the next one gets it at once.
    let starts = || told.lock().unwrap().iter().filter(|m| matches!(m, ToAgent::Start(_))).count();
    assert_eq!(starts(), 1);
    let third = tokio::spawn({
        let client = client.clone();
        let spec = step("third");
        async move { client.create_step(id, &spec).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let Response::StepCreated { key, .. } = first else { unreachable!() };
    let exit = exited(0);
    let report = FromAgent::Step { session: session(&told).unwrap(), key, phase: StepPhase::Exited(exit) };
    _sender.send(&report).await.unwrap();
    let third = tokio::time::timeout(Duration::from_secs(10), third).await.unwrap().unwrap().unwrap();
    assert!(matches!(third, Response::StepCreated { .. }), "{third:?}");
}

/// The median time of a small write with fdatasync where the state lies, in milliseconds.
fn fsync_ms(dir: &Path) -> f64 {
    let mut file = std::fs::File::create(dir.join("fsync-probe")).unwrap();
    let mut times: Vec<f64> = (0..40)
        .map(|_| {
            let begun = Instant::now();
            file.write_all(&[7; 4096]).unwrap();
            file.sync_data().unwrap();
            begun.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Prints the figures of docs/promises.md; the bounds asserted are those of an unoptimised build on a busy
/// machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rate_of_durable_submissions_and_time_of_a_restart() {
    let jobs: u64 = std::env::var("BERTH_BENCH_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(4_000);
    let dir = state();
    let controller = Controller::start(dir.path());
    let _agent = agent_when_ready(dir.path()).await;
    let fsync = fsync_ms(dir.path());
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for worker in 0..8 {
        let client = connect(dir.path()).await;
        for lane in 0..32 {
            let client = client.clone();
            let body = payload(8192);
            tasks.push(tokio::spawn(async move {
                for i in 0..jobs / (8 * 32) {
                    let spec = job(&format!("{worker}-{lane}-{i}"));
                    client.submit(&spec, &body, None, false).await.unwrap();
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let took = begun.elapsed();
    let count = jobs / 256 * 256;
    let rate = count as f64 / took.as_secs_f64();
    println!("{count} durable submissions of 8 KiB: {rate:.0}/s at an fsync of {fsync:.2} ms");
    drop(controller);

    let begun = Instant::now();
    let controller = Controller::start(dir.path());
    let client = connect(dir.path()).await;
    client.persist(None, |c| async move { c.ping().await }).await.unwrap();
    let restart = begun.elapsed();
    let begun = Instant::now();
    let there = client.jobs(&JobQuery::default()).await.unwrap().len();
    println!(
        "restart after kill -9 with {there} jobs: {} ms until it answers; all of them listed in {} ms",
        restart.as_millis(),
        begun.elapsed().as_millis()
    );
    assert_eq!(there as u64, count);
    assert!(rate > 200.0, "{rate}");
    assert!(restart < Duration::from_secs(10), "{restart:?}");
    drop(controller);
}

async fn agent_when_ready(dir: &Path) -> (AgentSender, Told) {
    connect(dir).await;
    agent(dir, 4).await
}
