//! Records for the tests of the formats.

use super::View;
use berth_model::config::PartitionConfig;
use berth_model::hardware::{Core, Hardware};
use berth_model::launch::Layout;
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo, StepInfo};
use berth_model::spec::{
    ArraySpec, Identity, IoSpec, JobKind, JobSpec, MemoryRequest, ResourceRequest, TimeLimit,
};
use berth_model::stamp::TimeFormat;
use berth_model::state::{ExitStatus, JobState, NodeCondition, Reason};
use berth_model::{Attempt, Gid, JobId, Sluid, Span, StepId, SubmissionId, Time, Tres, Uid};

/// 2026-11-20T22:44:06Z.
pub const START: i64 = 1_795_214_646;

pub fn view(after: i64) -> View {
    View {
        now: Time::from_secs(START + after),
        zone: jiff::tz::TimeZone::UTC,
        format: TimeFormat::Iso,
        cluster: "golden".into(),
    }
}

/// A batch job of alice in `debug`, running on n1 since START.
pub fn job(id: u32, name: &str) -> JobInfo {
    let amounts = Tres { cpu: 1, mem: 500, node: 1, ..Tres::default() };
    JobInfo {
        id: JobId(id),
        array: None,
        task: None,
        waiting: None,
        spec: JobSpec {
            submission: SubmissionId(id.to_string()),
            kind: JobKind::Batch,
            name: name.into(),
            partition: None,
            account: Some("physics".into()),
            resources: ResourceRequest { memory: MemoryRequest::PerCpu(500), ..ResourceRequest::default() },
            time_limit: None,
            begin: None,
            hold: false,
            nice: 0,
            requeue: None,
            array: None,
            immediate: None,
            comment: None,
            work_dir: "/home/alice/work".into(),
            submit_dir: "/home/alice/work".into(),
            io: IoSpec::default(),
            container: None,
            limits: Default::default(),
            umask: 0o22,
            warn_signal: None,
            lost_after: None,
            clientless: false,
            user_env: false,
            command: "/home/alice/work/run2.sh".into(),
            submit_line: "sbatch run2.sh".into(),
            submit_host: "node0".into(),
            submit_sid: 5863,
            het: None,
        },
        identity: Identity {
            uid: Uid(1001),
            gid: Gid(1001),
            groups: Vec::new(),
            user: "alice".into(),
            group: "alice".into(),
            home: "/home/alice".into(),
            shell: "/bin/bash".into(),
        },
        partition: "debug".into(),
        time_limit: TimeLimit::Minutes(30),
        state: JobState::Running,
        reason: Reason::None,
        attempt: Attempt(0),
        priority: 742,
        requested: amounts.clone(),
        allocated: amounts,
        layout: layout(&["n1"], 1),
        shares: Vec::new(),
        exit: ExitStatus::OK,
        derived_exit: ExitStatus::OK,
        cancelled_by: None,
        submitted: Time::from_secs(START),
        eligible: Time::from_secs(START),
        started: Some(Time::from_secs(START)),
        ended: None,
        steps: Vec::new(),
        leapt: Span(0),
        notices: Vec::new(),
        sluid: Some(Sluid(14_593_501_092_478_253_056)),
    }
}

/// The job, waiting for that reason.
pub fn pending(mut job: JobInfo, reason: Reason) -> JobInfo {
    job.state = JobState::Pending;
    job.reason = reason;
    job.started = None;
    job.layout = Layout::default();
    job.allocated = Tres::default();
    job
}

/// The job, ended after that many seconds.
pub fn ended(mut job: JobInfo, state: JobState, after: i64, exit: ExitStatus) -> JobInfo {
    job.state = state;
    job.exit = exit;
    job.ended = Some(Time::from_secs(START + after));
    job
}

/// Tasks 2 to 9 of an array of 10, two at a time, as they wait.
pub fn array(id: u32) -> JobInfo {
    let mut job = pending(job(id, "arrjob"), Reason::JobArrayTaskLimit);
    job.array = Some(JobId(id));
    job.spec.array = Some(ArraySpec { ranges: vec![(0, 9, 1)], max_running: Some(2) });
    job.waiting = Some(ArraySpec { ranges: vec![(2, 9, 1)], max_running: None });
    job
}

pub fn layout(nodes: &[&str], tasks: u32) -> Layout {
    Layout {
        nodes: nodes.iter().map(|n| (*n).into()).collect(),
        tasks: vec![(0..tasks).collect()],
        cpus: vec![tasks; nodes.len()],
    }
}

pub fn step(id: StepId, name: &str, exit: ExitStatus) -> StepInfo {
    StepInfo {
        id,
        name: name.into(),
        attempt: Attempt(0),
        state: if exit.success() { JobState::Completed } else { JobState::Failed },
        image: None,
        digest: None,
        pull: None,
        allocated: Tres { cpu: 2, mem: 1000, node: 1, ..Tres::default() },
        layout: layout(&["n1"], 2),
        exit,
        message: None,
        started: Time::from_secs(START),
        ended: Some(Time::from_secs(START)),
        usage: Default::default(),
        time_limit: None,
        work_dir: Default::default(),
        cancelled_by: None,
        het: None,
    }
}

/// A node of 4 CPUs and 4000 MiB, of which `cpu` are allocated.
pub fn node(name: &str, cpu: u64, condition: NodeCondition) -> NodeInfo {
    let cores = (0..4).map(|n| Core { socket: 0, numa: 0, cpus: vec![n] }).collect();
    NodeInfo {
        name: name.into(),
        hardware: Hardware {
            arch: "x86_64".into(),
            os: "Linux".into(),
            cores,
            memory: 4000,
            ..Hardware::default()
        },
        condition,
        partitions: vec!["debug".into()],
        total: Tres { cpu: 4, mem: 4000, node: 1, ..Tres::default() },
        allocated: Tres { cpu, mem: cpu * 500, ..Tres::default() },
        completing: false,
        version: "0.1.0".into(),
        boot_time: None,
        agent_start: None,
        last_busy: None,
        load: 84,
        free_memory: 21202,
        drift: vec![],
        unknown_settings: vec![],
        hardware_drift: vec![],
        used: vec![],
        host_name: None,
    }
}

pub fn partition(name: &str, default: bool, max_time: &str, nodes: &[&str]) -> PartitionInfo {
    PartitionInfo {
        config: PartitionConfig {
            name: name.into(),
            default,
            max_time: max_time.into(),
            ..PartitionConfig::default()
        },
        nodes: nodes.iter().map(|n| (*n).into()).collect(),
        total: Tres {
            cpu: 4 * nodes.len() as u64,
            mem: 4000 * nodes.len() as u64,
            node: nodes.len() as u64,
            ..Tres::default()
        },
    }
}

pub fn drained(reason: &str) -> NodeCondition {
    NodeCondition {
        drain: true,
        reason: Some(reason.into()),
        reason_user: Some("root".into()),
        reason_time: Some(Time::from_secs(START + 4)),
        ..NodeCondition::default()
    }
}
