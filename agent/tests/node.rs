//! A whole node: controller, agent, supervisor and processes, all real. The agent is lost and comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

use berth_agent::AgentOptions;
use berth_controller::ControllerOptions;
use berth_model::ids::{JobId, StepKey};
use berth_model::launch::StepExit;
use berth_model::request::{Payload, Response};
use berth_model::spec::{BatchScript, JobKind, JobSpec, StepSpec};
use berth_model::state::{ExitStatus, JobState};
use berth_rpc::{Client, Endpoint};
use berth_stream::{Attach, Frame, asynchronous};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// The program of this build. It is made as the integration tests' is, which costs nothing where that is done; a build of
/// its own package alone would compile half of the dependencies again, for the features that they then have.
fn step_program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let mut build = Command::new(env!("CARGO"));
            build.args(["xtask", "build", "--debug"]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            // What cargo says to this test of its package is not for the build of another.
            let own = ["CARGO_PKG_", "CARGO_MANIFEST_"];
            let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
            names.filter(|name| own.iter().any(|start| name.starts_with(start))).for_each(|name| {
                build.env_remove(name);
            });
            let built = build.output().unwrap();
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
            let deps = std::env::current_exe().unwrap();
            deps.ancestors().nth(2).unwrap().join("static/berth-step")
        })
        .clone()
}

struct Cluster {
    dir: tempfile::TempDir,
    controller: JoinHandle<()>,
    agent: Option<Agent>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Cluster {
    async fn new() -> Cluster {
        let dir = tempfile::Builder::new().prefix("berth-node-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let options = ControllerOptions {
            state_dir: dir.path().into(),
            config_path: None,
            system: false,
            read: |dir, file| berth_controller::load_config(dir, file).map_err(|e| e.to_string()),
            in_force: |_| (),
            ready: || (),
            power_off: |_| Err("there is no program".to_string()),
        };
        let stop = tokio::sync::watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let controller = tokio::spawn(async move {
            let done = async move {
                let _ = stopped.wait_for(|s| *s).await;
            };
            berth_controller::run(options, Box::pin(done)).await.unwrap();
        });
        let mut cluster = Cluster { dir, controller, agent: None, stop };
        cluster.start_agent();
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(client) = Client::connect(&cluster.endpoint()).await
                && client.nodes().await.is_ok_and(|n| n.iter().any(|n| !n.condition.not_responding))
            {
                return cluster;
            }
            assert!(Instant::now() < end, "no node came up in 30 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.path().join("run/controller.sock"))
    }

    fn start_agent(&mut self) {
        let options = AgentOptions {
            identity: |_, _, _| None,
            uplink: None,
            state_dir: self.path().into(),
            node: Some("n1".into()),
            system: false,
            config: Default::default(),
            unknown: vec![],
            read_again: berth_agent::ReadAgain { file: None, read: |_, _| Ok(Default::default()) },
            program: "/bin/false".into(),
            step_program: step_program(),
            service: false,
            ready: || (),
        };
        let mut stopped = self.stop.subscribe();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let task = runtime.spawn(async move {
            let done = async move {
                let _ = stopped.wait_for(|s| *s).await;
            };
            berth_agent::run(options, Box::pin(done)).await.unwrap();
        });
        self.agent = Some(Agent { task, runtime: Some(runtime) });
    }

    /// As a crash does it: nothing is said to anyone, and no thread of it goes on.
    async fn lose_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.task.abort();
        let _ = (&mut agent.task).await;
        agent.end().await;
    }

    async fn client(&self) -> Client {
        Client::connect(&self.endpoint()).await.unwrap()
    }

    async fn ended(&self, job: JobId) -> berth_model::record::JobInfo {
        let mut watch = self.client().await.watch_job(job).await.unwrap();
        let end = Duration::from_secs(60);
        tokio::time::timeout(end, async {
            loop {
                let info = watch.next_state().await.unwrap().unwrap();
                if info.state.is_terminal() {
                    return info;
                }
            }
        })
        .await
        .expect("the job does not end")
    }

    fn names(&self, below: &str) -> Vec<String> {
        std::fs::read_dir(self.path().join(below))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Waits until nothing of any job is left on the node.
    async fn assert_clean(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let left = [self.names("jobs"), self.names("spool"), self.names("scratch")].concat();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left on the node: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        if let Some(mut agent) = self.agent {
            (&mut agent.task).await.unwrap();
            agent.end().await;
        }
        self.controller.await.unwrap();
        let left = directories(&berth_agent::tree_name(self.dir.path()));
        assert!(left.is_empty(), "left of the node: {left:?}");
    }
}

/// An agent with threads of its own, as in a process of its own.
struct Agent {
    task: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Agent {
    /// Waits for what its threads are doing.
    async fn end(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(20))).await.unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A test that failed waits for nothing.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn spec(kind: JobKind, dir: &Path, id: &str) -> JobSpec {
    JobSpec { work_dir: dir.into(), submit_dir: dir.into(), ..berth_samples::job(kind, id) }
}

fn step(dir: &Path, argv: &[&str], id: &str) -> StepSpec {
    StepSpec {
        argv: argv.iter().map(|a| (*a).into()).collect(),
        env: vec!["PATH=/usr/bin:/bin".into()],
        work_dir: dir.into(),
        ..berth_samples::step(id)
    }
}

async fn submit(
    cluster: &Cluster,
    spec: &JobSpec,
    payload: &Payload,
    step: Option<&StepSpec>,
) -> (JobId, Option<StepKey>) {
    match cluster.client().await.submit(spec, payload, step, false).await.unwrap() {
        Response::Submitted { job, step, .. } => (job, step),
        other => panic!("{other:?}"),
    }
}

async fn attach(cluster: &Cluster, key: StepKey) -> UnixStream {
    let mut stream = UnixStream::connect(cluster.path().join("run/agent.sock")).await.unwrap();
    asynchronous::write_frame(&mut stream, &Frame::Attach(Attach::from(key))).await.unwrap();
    assert_eq!(asynchronous::read_frame(&mut stream).await.unwrap(), Some(Frame::Accepted));
    stream
}

/// Output and exit, as the client sees them.
async fn follow(stream: &mut UnixStream) -> (String, StepExit) {
    let mut text = Vec::new();
    loop {
        match asynchronous::read_frame(stream).await.unwrap() {
            Some(Frame::Stdout { data, .. }) => text.extend(data),
            Some(Frame::StepExit(exit)) => return (String::from_utf8(text).unwrap(), *exit),
            Some(_) => {}
            None => panic!("the stream ended without an exit"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_runs_its_output_and_exit_arrive_and_nothing_is_left() {
    let cluster = Cluster::new().await;
    let spec = spec(JobKind::Run, cluster.path(), "a");
    let step = step(cluster.path(), &["sh", "-c", "echo $SLURM_JOB_ID; exit 5"], "a-step");
    let (job, key) = submit(&cluster, &spec, &Payload::default(), Some(&step)).await;
    let mut stream = attach(&cluster, key.unwrap()).await;
    let (text, exit) = follow(&mut stream).await;
    assert_eq!((text, exit.status), (format!("{job}\n"), ExitStatus { code: 5, signal: 0 }));
    // A supervisor stays for as long as somebody reads of it, and its control group with it.
    drop(stream);
    let info = cluster.ended(job).await;
    assert_eq!((info.state, info.exit), (JobState::Failed, ExitStatus { code: 5, signal: 0 }));
    cluster.assert_clean().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_and_its_stream_survive_the_agent() {
    let mut cluster = Cluster::new().await;
    let spec = spec(JobKind::Run, cluster.path(), "b");
    let step = step(cluster.path(), &["sh", "-c", "echo one; sleep 2; echo two; exit 9"], "b-step");
    let (job, key) = submit(&cluster, &spec, &Payload::default(), Some(&step)).await;
    let mut stream = attach(&cluster, key.unwrap()).await;
    while !matches!(asynchronous::read_frame(&mut stream).await.unwrap(), Some(Frame::Stdout { .. })) {}
    cluster.lose_agent().await;
    let (text, exit) = follow(&mut stream).await;
    assert_eq!((text.as_str(), exit.status.code), ("two\n", 9));
    drop(stream);
    cluster.start_agent();
    let info = cluster.ended(job).await;
    assert_eq!(info.exit, ExitStatus { code: 9, signal: 0 });
    cluster.assert_clean().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_script_that_outlives_the_agent_is_adopted_and_its_exit_recorded() {
    let mut cluster = Cluster::new().await;
    let spec = spec(JobKind::Batch, cluster.path(), "c");
    let script =
        BatchScript { text: "#!/bin/sh\necho begin\nsleep 2\necho end\nexit 7\n".into(), args: Vec::new() };
    let payload = Payload { script: Some(script), env: vec!["PATH=/usr/bin:/bin".into()], login: None };
    let (job, _) = submit(&cluster, &spec, &payload, None).await;
    let out = cluster.path().join(format!("slurm-{job}.out"));
    let end = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&out).unwrap_or_default().contains("begin") {
        assert!(Instant::now() < end, "the script does not start");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.lose_agent().await;
    cluster.start_agent();
    let info = cluster.ended(job).await;
    assert_eq!(info.exit, ExitStatus { code: 7, signal: 0 });
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "begin\nend\n");
    cluster.assert_clean().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_is_not_here_is_refused_by_name_and_garbage_closes_the_connection() {
    let cluster = Cluster::new().await;
    let mut stream = UnixStream::connect(cluster.path().join("run/agent.sock")).await.unwrap();
    asynchronous::write_frame(&mut stream, &Frame::Started).await.unwrap();
    assert!(matches!(asynchronous::read_frame(&mut stream).await.unwrap(), Some(Frame::Refused(_))));
    let mut stream = UnixStream::connect(cluster.path().join("run/agent.sock")).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(!matches!(asynchronous::read_frame(&mut stream).await, Ok(Some(_))));
    cluster.stop().await;
}

/// A job's groups, as the agent wrote them down: v1 and v2.
fn groups(record: &Path) -> Vec<PathBuf> {
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let v1 = record["cgroup"]["v1"]["dirs"].as_object().into_iter().flat_map(|dirs| dirs.values());
    v1.chain([&record["cgroup"]["v2"]["dir"]]).filter_map(|dir| dir.as_str()).map(PathBuf::from).collect()
}

/// Every directory of this name below the mounts of control groups.
fn directories(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = left.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name() == name {
                found.push(entry.path());
            } else if depth < 5 && entry.file_type().is_ok_and(|t| t.is_dir()) {
                left.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_run_in_groups_that_stood_by_and_no_group_outlives_the_agent() {
    let mut cluster = Cluster::new().await;
    // More than stand by at once, and one after the loss of an agent.
    for n in 0..7 {
        let spec = spec(JobKind::Batch, cluster.path(), &format!("g{n}"));
        let text = "#!/bin/sh\necho begin\nuntil [ -e go ]; do sleep 0.01; done\n".into();
        let script = Some(BatchScript { text, args: Vec::new() });
        let payload = Payload { script, env: vec!["PATH=/usr/bin:/bin".into()], login: None };
        let _ = std::fs::remove_file(cluster.path().join("go"));
        let (job, _) = submit(&cluster, &spec, &payload, None).await;
        let out = cluster.path().join(format!("slurm-{job}.out"));
        let end = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&out).unwrap_or_default().contains("begin") {
            assert!(Instant::now() < end, "the script does not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let groups = groups(&cluster.path().join(format!("jobs/{job}/job.json")));
        assert!(!groups.is_empty() || !rustix::process::geteuid().is_root(), "root has no control group");
        for group in &groups {
            let step = std::fs::read_to_string(group.join("step_batch/cgroup.procs")).unwrap();
            assert!(step.lines().count() >= 2, "init and script are not in {}: {step:?}", group.display());
        }
        std::fs::write(cluster.path().join("go"), "").unwrap();
        assert_eq!(cluster.ended(job).await.exit, ExitStatus::OK);
        if n == 5 {
            cluster.lose_agent().await;
            cluster.start_agent();
        }
    }
    cluster.assert_clean().await;
    cluster.stop().await;
}
