//! The environment of batch scripts and tasks: what Slurm's users expect to find there, from a step's launch.

pub mod gpus;

use crate::bytes::ByteStr;
use crate::devices::parse_per_task;
use crate::distribution::Distribution;
use crate::ids::{JobId, NodeName, StepId, StepKey};
use crate::launch::{Layout, StepLaunch};
use crate::{hostlist, runs};

/// Whether a step's processes see its own devices only. Then the libraries of GPUs count them from 0, and the
/// variables must too; otherwise they name the node's indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Only the step's own are visible or allowed.
    Confined,
    /// Only those of the task.
    OfTask,
    /// All of the node's are.
    Open,
}

/// One task of a step on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskPlace {
    /// Its number among the step's tasks on this node, from 0.
    pub local: u32,
    /// Its process id, where it is known before the program starts.
    pub pid: Option<u32>,
    /// What it sees of devices.
    pub devices: Devices,
}

/// Everything that the step sets for one task, over the environment in `launch.env`.
pub fn step_environment(launch: &StepLaunch, task: TaskPlace) -> Vec<(String, ByteStr)> {
    let mut all = step_variables(launch, task.devices);
    all.extend(task_variables(launch, task));
    all
}

/// What is the same for all tasks of a step on one node.
pub fn step_variables(launch: &StepLaunch, devices: Devices) -> Vec<(String, ByteStr)> {
    let mut env = Env(Vec::new());
    job(&mut env, launch);
    match launch.key.step {
        StepId::Batch => batch(&mut env, launch),
        _ => step(&mut env, launch),
    }
    env.0.extend(gpus::of_step(launch, devices));
    // /tmp is the job's own; a TMPDIR that the submitter chose stays.
    if !has(launch, "TMPDIR") {
        env.set("TMPDIR", "/tmp");
    }
    env.0
}

/// What differs from task to task.
pub fn task_variables(launch: &StepLaunch, task: TaskPlace) -> Vec<(String, ByteStr)> {
    let here = launch.layout.tasks.get(launch.node_index as usize).map(Vec::as_slice).unwrap_or_default();
    let batch = launch.key.step == StepId::Batch;
    let global = if batch { 0 } else { here.get(task.local as usize).copied().unwrap_or(task.local) };
    let gtids = if batch { "0".to_string() } else { join(here) };
    let mut env = Env(Vec::new());
    env.set("SLURM_PROCID", global.to_string());
    env.set("SLURM_LOCALID", task.local.to_string());
    env.set("SLURM_NODEID", launch.node_index.to_string());
    env.set("SLURM_GTIDS", gtids);
    if let Some(pid) = task.pid {
        env.set("SLURM_TASK_PID", pid.to_string());
    }
    if launch.pytorch && !batch {
        pytorch(&mut env, launch, global, task.local, here.len());
    }
    env.0
}

/// What torch.distributed takes from the environment (`init_method="env://"`).
fn pytorch(env: &mut Env, launch: &StepLaunch, global: u32, local: u32, here: usize) {
    let step = match launch.key.step {
        StepId::Number(n) => n,
        _ => 0,
    };
    let job = launch.job.het.as_ref().map_or(launch.key.job, |het| het.leader);
    let all: usize = launch.layout.tasks.iter().map(Vec::len).sum();
    env.set("MASTER_ADDR", master(launch));
    env.set("MASTER_PORT", master_port(job, step).to_string());
    env.set("RANK", global.to_string());
    env.set("LOCAL_RANK", local.to_string());
    env.set("GROUP_RANK", launch.node_index.to_string());
    env.set("WORLD_SIZE", all.to_string());
    env.set("LOCAL_WORLD_SIZE", here.to_string());
}

/// At which port they do: below those that systems give out themselves. All nodes come to the same one by themselves, and nobody reserves it. Steps
/// of jobs whose ids are less than 100 apart have the same only where their numbers are 95 apart or more: multiples of the golden section of a circle stay
/// away from one another.
fn master_port(job: JobId, step: u32) -> u64 {
    const PORTS: u64 = 15_000;
    const SECTION: u64 = 9_271;
    PORTS + (u64::from(job.0) * SECTION + u64::from(step)) % PORTS
}

/// Where tasks find the first one. Names of nodes are not known to every name service, and least of all to those of containers: so it is an
/// address where one is known, on the first node, too. A step of one node needs none of the network's, nor does the first node where nobody
/// knows one.
fn master(launch: &StepLaunch) -> &str {
    let nodes = &launch.layout.nodes;
    match launch.master.as_deref() {
        _ if nodes.len() < 2 => LOOPBACK,
        Some(address) if !address.is_empty() => address,
        _ if launch.node_index == 0 => LOOPBACK,
        _ => nodes.first().map_or(LOOPBACK, |n| n.0.as_str()),
    }
}

/// What scripts find as their job's QOS: there are none here, and this is the one that Slurm has without any having been made.
pub const QOS: &str = "normal";

/// By which every machine reaches itself, whatever its name service says.
pub const LOOPBACK: &str = "127.0.0.1";

/// Variables that are about one job and mean nothing in another: `sbatch` and `salloc` inside a job leave them
/// out of what they submit.
pub fn is_job_variable(name: &[u8]) -> bool {
    const HET_GROUP: &[u8] = b"_HET_GROUP_";
    const PREFIXES: &[&str] = &[
        "SLURM_JOB_",
        "SLURM_STEP_",
        "SLURM_ARRAY_",
        "SLURM_GPUS",
        "SLURM_HET_",
        "SLURM_PTY_",
        "SLURM_SUBMIT_",
        "SLURM_TOPOLOGY_",
        "SLURM_CPU_BIND",
        "SLURM_GPU_BIND",
        "SLURM_MEM_BIND",
    ];
    const NAMES: &[&str] = &[
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
        "CUDA_MPS_PIPE_DIRECTORY",
        "CUDA_VISIBLE_DEVICES",
        "ENVIRONMENT",
        "GPU_DEVICE_ORDINAL",
        "NVIDIA_IMEX_CHANNELS",
        "NVIDIA_VISIBLE_DEVICES",
        "NV_GPU",
        "ROCR_VISIBLE_DEVICES",
        "SLURMD_NODENAME",
        "SLURM_CLUSTER_NAME",
        "SLURM_CPUS_ON_NODE",
        "SLURM_CPUS_PER_GPU",
        "SLURM_CPUS_PER_TASK",
        "SLURM_DISTRIBUTION",
        "SLURM_DIST_PLANESIZE",
        "SLURM_EXPORT_ENV",
        "SLURM_GET_USER_ENV",
        "SLURM_GTIDS",
        "SLURM_JOBID",
        "SLURM_LABELIO",
        "SLURM_LOCALID",
        "SLURM_MEM_PER_CPU",
        "SLURM_MEM_PER_GPU",
        "SLURM_MEM_PER_NODE",
        "SLURM_NNODES",
        "SLURM_NODEID",
        "SLURM_NODELIST",
        "SLURM_NPROCS",
        "SLURM_NTASKS",
        "SLURM_NTASKS_PER_GPU",
        "SLURM_NTASKS_PER_NODE",
        "SLURM_OOM_KILL_STEP",
        "SLURM_OPEN_MODE",
        "SLURM_OVERCOMMIT",
        "SLURM_PRIO_PROCESS",
        "SLURM_PROCID",
        "SLURM_PROPAGATE",
        "SLURM_RESTART_COUNT",
        "SLURM_SHARDS_ON_NODE",
        "SLURM_STEPID",
        "SLURM_TASKS_PER_NODE",
        "SLURM_TASK_PID",
        "SLURM_TRES_PER_TASK",
        "SLURM_UMASK",
        "ZE_AFFINITY_MASK",
    ];
    // What a job of several components says of each: SLURM_NTASKS_HET_GROUP_0.
    let bare = name.windows(HET_GROUP.len()).position(|w| w == HET_GROUP).map_or(name, |at| &name[..at]);
    let name = if name.starts_with(b"SLURM_") { bare } else { name };
    let listed = |names: &[&str]| names.iter().any(|n| n.as_bytes() == name);
    PREFIXES.iter().any(|p| name.starts_with(p.as_bytes())) || listed(NAMES) || is_of_client(name)
}

/// Where a step's client is: the address of its machine, under both of Slurm's names.
const OF_CLIENT: [&str; 2] = ["SLURM_SRUN_COMM_HOST", "SLURM_LAUNCH_NODE_IPADDR"];

/// Variables that a step sets by what it is itself and that mean nothing in one which is started from inside it, or from the script:
/// a plane's size where there are no planes, a terminal's where there is none, and where another `srun` was.
pub fn is_of_one_step(name: &[u8]) -> bool {
    name == b"SLURM_DIST_PLANESIZE" || name.starts_with(b"SLURM_PTY_") || is_of_client(name)
}

fn is_of_client(name: &[u8]) -> bool {
    OF_CLIENT.iter().any(|own| own.as_bytes() == name)
}

struct Env(Vec<(String, ByteStr)>);

impl Env {
    fn set(&mut self, name: &str, value: impl Into<ByteStr>) {
        self.0.push((name.to_string(), value.into()));
    }

    fn maybe(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.set(name, value.to_string());
        }
    }
}

/// What the submitted environment says under this name.
fn sent<'a>(launch: &'a StepLaunch, name: &str) -> Option<&'a [u8]> {
    launch.env.iter().find_map(|v| v.0.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// Whether the submitted environment has a variable of this name.
fn has(launch: &StepLaunch, name: &str) -> bool {
    sent(launch, name).is_some()
}

/// What each task has: CPUs as they are known here, and the devices of which the client told (`--tres-per-task`).
fn of_each_task(launch: &StepLaunch, cpus: Option<u32>) -> Option<String> {
    let told = sent(launch, "SLURM_TRES_PER_TASK").and_then(|text| std::str::from_utf8(text).ok());
    let devices = told.and_then(|text| parse_per_task(text).ok()).map(|(_, devices)| devices);
    let devices = devices.iter().flatten().map(|(key, n)| format!("gres/{key}={n}"));
    let all: Vec<String> = cpus.map(|n| format!("cpu={n}")).into_iter().chain(devices).collect();
    (!all.is_empty()).then(|| all.join(","))
}

fn job(env: &mut Env, launch: &StepLaunch) {
    let job = &launch.job;
    // A step of several components has one list of nodes, as if they were one job.
    let own = job.het.is_none() || launch.key.step == StepId::Batch;
    let layout = if own { &job.layout } else { &launch.layout };
    let nodes: Vec<&str> = layout.nodes.iter().map(|n| n.0.as_str()).collect();
    let list = hostlist::compress(&nodes);
    env.set("SLURM_CLUSTER_NAME", job.cluster.as_str());
    // All components are named by the first one.
    let id = job.het.as_ref().map_or(launch.key.job, |het| het.leader);
    env.set("SLURM_JOB_ID", id.to_string());
    env.set("SLURM_JOBID", id.to_string());
    if let Some(het) = &job.het {
        env.0.extend(het.variables());
    }
    // A step's own name and the directory of the submission come with the environment of its client.
    if launch.key.step == StepId::Batch || !has(launch, "SLURM_JOB_NAME") {
        env.set("SLURM_JOB_NAME", job.name.as_str());
    }
    if !has(launch, "SLURM_SUBMIT_DIR") {
        env.set("SLURM_SUBMIT_DIR", job.submit_dir.clone());
    }
    env.set("SLURM_SUBMIT_HOST", job.submit_host.as_str());
    env.maybe("SLURM_JOB_ACCOUNT", job.account.as_ref());
    env.set("SLURM_JOB_PARTITION", job.partition.as_str());
    env.set("SLURM_JOB_QOS", QOS);
    env.set("SLURM_JOB_UID", launch.identity.uid.to_string());
    env.set("SLURM_JOB_GID", launch.identity.gid.to_string());
    env.set("SLURM_JOB_USER", launch.identity.user.as_str());
    env.set("SLURM_JOB_NODELIST", list.as_str());
    env.set("SLURM_NODELIST", list);
    env.set("SLURM_JOB_NUM_NODES", nodes.len().to_string());
    env.set("SLURM_JOB_CPUS_PER_NODE", runs::print(&layout.cpus));
    env.set("SLURM_JOB_START_TIME", job.start.secs().to_string());
    env.maybe("SLURM_JOB_END_TIME", job.end.map(|t| t.secs()));
    match (job.mem_per_cpu, job.mem_per_gpu, job.mem_per_node) {
        (Some(mib), ..) => env.set("SLURM_MEM_PER_CPU", mib.to_string()),
        (None, Some(mib), _) => env.set("SLURM_MEM_PER_GPU", mib.to_string()),
        (None, None, Some(mib)) => env.set("SLURM_MEM_PER_NODE", mib.to_string()),
        (None, None, None) => {}
    }
    env.maybe("SLURM_NTASKS_PER_NODE", job.tasks_per_node);
    if let Some(array) = job.array {
        for (name, value) in [
            ("SLURM_ARRAY_JOB_ID", array.array.0),
            ("SLURM_ARRAY_TASK_ID", array.task),
            ("SLURM_ARRAY_TASK_COUNT", array.count),
            ("SLURM_ARRAY_TASK_MIN", array.min),
            ("SLURM_ARRAY_TASK_MAX", array.max),
            ("SLURM_ARRAY_TASK_STEP", array.step),
        ] {
            env.set(name, value.to_string());
        }
    }
    env.maybe("SLURM_RESTART_COUNT", Some(job.restarts).filter(|n| *n > 0));
    env.maybe("SLURM_JOB_SLUID", job.sluid);
    if launch.overcommit {
        env.set("SLURM_OVERCOMMIT", "1");
    }
    env.set("SLURMD_NODENAME", launch.node.0.as_str());
    env.set("SLURM_TOPOLOGY_ADDR", launch.node.0.as_str());
    env.set("SLURM_TOPOLOGY_ADDR_PATTERN", "node");
    // That of the command which sent it comes with its environment, where it has one.
    if !has(launch, "SLURM_PRIO_PROCESS") {
        env.set("SLURM_PRIO_PROCESS", "0");
    }
    env.set("SLURM_OOM_KILL_STEP", "0");
    env.set("SLURM_CPUS_ON_NODE", launch.share.cpus.len().to_string());
    let per_task = match launch.key.step {
        StepId::Batch => job.cpus_per_task,
        _ => Some(launch.cpus_per_task).filter(|n| *n > 1 || job.cpus_per_task.is_some()),
    };
    env.maybe("SLURM_CPUS_PER_TASK", per_task);
    env.maybe("SLURM_TRES_PER_TASK", of_each_task(launch, per_task));
}

/// The batch script: it stands for the whole job.
fn batch(env: &mut Env, launch: &StepLaunch) {
    let job = &launch.job;
    env.set("ENVIRONMENT", "BATCH");
    env.set("HOSTNAME", launch.node.0.as_str());
    env.set("SLURM_STEP_ID", "-5");
    env.set("SLURM_STEPID", "-5");
    env.set("SLURM_NNODES", job.layout.nodes.len().to_string());
    let tasks: Vec<u32> = job.layout.tasks.iter().map(|tasks| count(tasks)).collect();
    env.set("SLURM_TASKS_PER_NODE", runs::print(&tasks));
    if job.tasks.is_some() || job.tasks_per_node.is_some() {
        let total: u32 = tasks.iter().sum();
        env.set("SLURM_NTASKS", total.to_string());
        env.set("SLURM_NPROCS", total.to_string());
    }
}

/// A step: tasks and nodes are its own.
fn step(env: &mut Env, launch: &StepLaunch) {
    of_step(env, launch.key.step, &launch.layout);
    let sockets = launch.sockets.map_or(String::new(), |sockets| format!(":{sockets}"));
    env.set("SLURM_DISTRIBUTION", format!("{}{sockets}", launch.distribution));
    if let Distribution::Plane(size) = launch.distribution {
        env.set("SLURM_DIST_PLANESIZE", size.to_string());
    }
    // Of its ports there is nothing to tell, since srun listens on none.
    for name in OF_CLIENT {
        env.maybe(name, launch.client_address.as_ref().filter(|address| !address.is_empty()));
    }
    // As it is when the step begins; of a port there is nothing to tell, since srun listens on none.
    if let Some(size) = launch.pty {
        env.maybe("SLURM_PTY_WIN_COL", Some(size.cols).filter(|n| *n > 0));
        env.maybe("SLURM_PTY_WIN_ROW", Some(size.rows).filter(|n| *n > 0));
    }
    env.set("SLURM_JOB_GROUP", launch.identity.group.as_str());
    env.set("SLURM_UMASK", format!("{:04o}", launch.umask));
}

/// What is the step's own wherever it is asked for.
fn of_step(env: &mut Env, step: StepId, layout: &Layout) {
    let id = match step {
        StepId::Number(n) => n.to_string(),
        // Slurm's number of the interactive step.
        _ => "-6".to_string(),
    };
    let tasks: Vec<u32> = layout.tasks.iter().map(|tasks| count(tasks)).collect();
    let total: u32 = tasks.iter().sum();
    let nodes: Vec<&str> = layout.nodes.iter().map(|n| n.0.as_str()).collect();
    env.set("SLURM_STEP_ID", id.as_str());
    env.set("SLURM_STEPID", id);
    env.set("SLURM_STEP_NODELIST", hostlist::compress(&nodes));
    env.set("SLURM_STEP_NUM_NODES", nodes.len().to_string());
    env.set("SLURM_STEP_NUM_TASKS", total.to_string());
    env.set("SLURM_STEP_TASKS_PER_NODE", runs::print(&tasks));
    env.set("SLURM_NNODES", nodes.len().to_string());
    env.set("SLURM_NTASKS", total.to_string());
    env.set("SLURM_NPROCS", total.to_string());
    env.set("SLURM_TASKS_PER_NODE", runs::print(&tasks));
}

/// What programs that `srun` runs around a step are told of it and of its job, which has the nodes `job`, over srun's own environment.
pub fn srun_variables(key: StepKey, job: &[NodeName], layout: &Layout) -> Vec<(String, ByteStr)> {
    let mut env = Env(Vec::new());
    let names: Vec<&str> = job.iter().map(|n| n.0.as_str()).collect();
    let list = hostlist::compress(&names);
    env.set("SLURM_JOB_ID", key.job.to_string());
    env.set("SLURM_JOBID", key.job.to_string());
    env.set("SLURM_JOB_NODELIST", list.as_str());
    env.set("SLURM_NODELIST", list);
    env.set("SLURM_JOB_NUM_NODES", names.len().to_string());
    of_step(&mut env, key.step, layout);
    env.0
}

fn count(list: &[u32]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

fn join(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    mod told;

    use super::*;
    use crate::hardware::GresDevice;
    use crate::het::{HetFacts, HetGroup};
    use crate::ids::{Attempt, Gid, JobId, Uid};
    use crate::launch::{ArrayPlace, JobFacts, NodeShare, Program};
    use crate::limits::Limits;
    use crate::sluid::Sluid;
    use crate::spec::{Identity, IoSpec, JobKind, TermSize};
    use crate::time::{Span, Time};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn device(index: u32) -> GresDevice {
        GresDevice { name: "gpu".into(), kind: Some("test".into()), index, ..GresDevice::default() }
    }

    fn layout(nodes: &[&str], tasks: &[&[u32]], cpus: &[u32]) -> Arc<Layout> {
        Arc::new(Layout {
            nodes: nodes.iter().map(|n| NodeName::from(*n)).collect(),
            tasks: tasks.iter().map(|t| t.to_vec()).collect(),
            cpus: cpus.to_vec(),
        })
    }

    /// The batch script of a job of one task on one node.
    pub(super) fn minimal() -> StepLaunch {
        let one = layout(&["n1"], &[&[0]], &[1]);
        let share = NodeShare { cpus: vec![0], memory: 500, gres: vec![] };
        StepLaunch {
            key: StepKey { job: JobId(355), attempt: Attempt(0), step: StepId::Batch },
            node: NodeName::from("n1"),
            node_index: 0,
            identity: Identity {
                uid: Uid(1001),
                gid: Gid(1001),
                groups: vec![],
                user: "alice".into(),
                group: "alice".into(),
                home: ByteStr::from("/home/alice"),
                shell: ByteStr::from("/bin/bash"),
            },
            job: JobFacts {
                kind: JobKind::Batch,
                name: "envbatch.sh".into(),
                partition: "debug".into(),
                account: Some("physics".into()),
                cluster: "golden".into(),
                array: None,
                restarts: 0,
                start: Time::from_secs(1_795_215_826),
                end: Some(Time::from_secs(1_795_217_626)),
                layout: one.clone(),
                submit_dir: ByteStr::from("/home/alice/work"),
                submit_host: "node0".into(),
                tasks: None,
                tasks_per_node: None,
                cpus_per_task: None,
                mem_per_node: Some(500),
                mem_per_cpu: Some(500),
                mem_per_gpu: None,
                share: share.clone(),
                subids: false,
                het: None,
                imex_channel: None,
                sluid: None,
            },
            name: "batch".into(),
            program: Program::Argv(vec![]),
            env: vec![],
            user_env: false,
            work_dir: ByteStr::from("/home/alice/work"),
            work_dir_explicit: false,
            io: IoSpec::default(),
            container: None,
            limits: Limits::default(),
            umask: 0o22,
            pty: None,
            layout: one,
            distribution: Distribution::Block,
            cpus_per_task: 1,
            share,
            kill_on_bad_exit: false,
            wait_after_first_exit: None,
            attached: false,
            kill_wait: Span::from_secs(30),
            enter: None,
            x11: None,
            pytorch: false,
            master: None,
            client_address: None,
            task_prolog: Default::default(),
            task_epilog: Default::default(),
            told_within: None,
            mpi: None,
            cpu_bind: None,
            mem_bind: None,
            gpu_bind: None,
            programs: Vec::new(),
            overcommit: false,
            fabric: None,
            sockets: None,
            receive: None,
        }
    }

    fn map(launch: &StepLaunch, local: u32) -> BTreeMap<String, String> {
        let place = TaskPlace { local, pid: Some(19_803), devices: Devices::Confined };
        let all = step_environment(launch, place);
        let map: BTreeMap<_, _> = all.iter().map(|(n, v)| (n.clone(), v.display().into_owned())).collect();
        assert_eq!(map.len(), all.len(), "a variable is set twice");
        map
    }

    fn expect(map: &BTreeMap<String, String>, expected: &str) {
        for line in expected.split_whitespace() {
            let (name, value) = line.split_once('=').unwrap();
            assert_eq!(map.get(name).map(String::as_str), Some(value), "{name}");
        }
    }

    #[test]
    fn programs_around_a_step_of_srun_know_job_and_step() {
        let key = StepKey { job: JobId(355), attempt: Attempt(0), step: StepId::Number(2) };
        let nodes = ["n1", "n2", "n3"].map(NodeName::from);
        let all = srun_variables(key, &nodes, &layout(&["n1", "n2"], &[&[0, 1], &[2]], &[2, 1]));
        let map: BTreeMap<_, _> = all.iter().map(|(n, v)| (n.clone(), v.display().into_owned())).collect();
        assert_eq!(map.len(), all.len(), "a variable is set twice");
        expect(
            &map,
            "SLURM_JOB_ID=355 SLURM_JOBID=355 SLURM_JOB_NODELIST=n[1-3] SLURM_NODELIST=n[1-3] SLURM_JOB_NUM_NODES=3 \
             SLURM_STEP_ID=2 SLURM_STEPID=2 SLURM_STEP_NODELIST=n[1-2] SLURM_STEP_NUM_NODES=2 SLURM_STEP_NUM_TASKS=3 \
             SLURM_STEP_TASKS_PER_NODE=2,1 SLURM_NNODES=2 SLURM_NTASKS=3 SLURM_NPROCS=3 SLURM_TASKS_PER_NODE=2,1",
        );
    }

    #[test]
    fn a_step_is_told_where_its_client_is_and_nothing_where_nobody_knows() {
        let mut launch = minimal();
        let mut of = |step, address: Option<&str>| {
            launch.key.step = step;
            launch.client_address = address.map(str::to_string);
            let map = map(&launch, 0);
            ["SLURM_SRUN_COMM_HOST", "SLURM_LAUNCH_NODE_IPADDR"].map(|name| map.get(name).cloned())
        };
        let address = Some("10.0.0.9".to_string());
        assert_eq!(of(StepId::Number(0), Some("10.0.0.9")), [address.clone(), address]);
        for unknown in [None, Some("")] {
            assert_eq!(of(StepId::Number(0), unknown), [None, None]);
        }
        assert_eq!(of(StepId::Batch, Some("10.0.0.9")), [None, None], "no srun made it");
        // One that is started from inside of it has a client of its own, or knows of none.
        assert!(is_of_one_step(b"SLURM_SRUN_COMM_HOST") && is_of_one_step(b"SLURM_LAUNCH_NODE_IPADDR"));
    }

    #[test]
    fn a_minimal_batch_script_has_slurms_variables() {
        let map = map(&minimal(), 0);
        let expected = "ENVIRONMENT=BATCH HOSTNAME=n1 SLURMD_NODENAME=n1 SLURM_CLUSTER_NAME=golden SLURM_CPUS_ON_NODE=1 \
            SLURM_GTIDS=0 SLURM_JOBID=355 SLURM_JOB_ACCOUNT=physics SLURM_JOB_CPUS_PER_NODE=1 \
            SLURM_JOB_END_TIME=1795217626 SLURM_JOB_GID=1001 SLURM_JOB_ID=355 SLURM_JOB_NAME=envbatch.sh \
            SLURM_JOB_NODELIST=n1 SLURM_JOB_NUM_NODES=1 SLURM_JOB_PARTITION=debug SLURM_JOB_QOS=normal SLURM_JOB_START_TIME=1795215826 \
            SLURM_JOB_UID=1001 SLURM_JOB_USER=alice SLURM_LOCALID=0 SLURM_MEM_PER_CPU=500 SLURM_NNODES=1 SLURM_NODEID=0 \
            SLURM_NODELIST=n1 SLURM_OOM_KILL_STEP=0 SLURM_PRIO_PROCESS=0 SLURM_PROCID=0 SLURM_STEPID=-5 SLURM_STEP_ID=-5 \
            SLURM_SUBMIT_DIR=/home/alice/work SLURM_SUBMIT_HOST=node0 SLURM_TASKS_PER_NODE=1 SLURM_TASK_PID=19803 \
            SLURM_TOPOLOGY_ADDR=n1 SLURM_TOPOLOGY_ADDR_PATTERN=node TMPDIR=/tmp";
        expect(&map, expected);
        // Nothing else: no -n, no -c, no array, no devices, no restart.
        assert_eq!(map.len(), expected.split_whitespace().count());
    }

    #[test]
    fn options_of_the_job_show_in_its_script() {
        let mut launch = minimal();
        launch.job.layout = layout(&["n5", "n6"], &[&[0, 1], &[2]], &[4, 2]);
        launch.job.tasks = Some(3);
        launch.job.cpus_per_task = Some(2);
        launch.job.mem_per_cpu = None;
        launch.job.mem_per_node = Some(200);
        launch.job.restarts = 2;
        launch.job.sluid = Some(Sluid(14_593_501_092_478_253_056));
        launch.job.array = Some(ArrayPlace { array: JobId(357), task: 5, count: 4, min: 3, max: 9, step: 2 });
        launch.job.share.gres = vec![device(0)];
        launch.share = NodeShare { cpus: vec![0, 1, 2, 3], memory: 200, gres: vec![device(0)] };
        let map = map(&launch, 0);
        expect(
            &map,
            "SLURM_NTASKS=3 SLURM_NPROCS=3 SLURM_TASKS_PER_NODE=2,1 SLURM_JOB_CPUS_PER_NODE=4,2 SLURM_CPUS_PER_TASK=2 \
             SLURM_TRES_PER_TASK=cpu=2 SLURM_JOB_NODELIST=n[5-6] SLURM_NODELIST=n[5-6] SLURM_JOB_NUM_NODES=2 \
             SLURM_NNODES=2 SLURM_MEM_PER_NODE=200 SLURM_CPUS_ON_NODE=4 SLURM_RESTART_COUNT=2 SLURM_JOB_SLUID=sCN1M7XJ371Y00 \
             SLURM_ARRAY_JOB_ID=357 \
             SLURM_ARRAY_TASK_ID=5 SLURM_ARRAY_TASK_COUNT=4 SLURM_ARRAY_TASK_MIN=3 SLURM_ARRAY_TASK_MAX=9 \
             SLURM_ARRAY_TASK_STEP=2 SLURM_JOB_GPUS=0 SLURM_GPUS_ON_NODE=1 CUDA_VISIBLE_DEVICES=0 GPU_DEVICE_ORDINAL=0 \
             ROCR_VISIBLE_DEVICES=0 ZE_AFFINITY_MASK=0 NVIDIA_VISIBLE_DEVICES=0 NV_GPU=0",
        );
        assert!(!map.contains_key("SLURM_MEM_PER_CPU") && !map.contains_key("SLURM_STEP_GPUS"));
    }

    #[test]
    fn a_component_is_told_of_all_and_named_by_the_first() {
        let group = |job, nodes: &[&str]| HetGroup {
            job: JobId(job),
            partition: "debug".into(),
            layout: (*layout(nodes, &[&[0]], &[1])).clone(),
            tasks: None,
            tasks_per_node: None,
            cpus_per_task: None,
            mem_per_node: None,
            mem_per_cpu: Some(500),
        };
        let mut launch = minimal();
        let groups = vec![group(354, &["n1"]), group(355, &["n2"])];
        launch.job.het = Some(HetFacts { leader: JobId(354), offset: 1, groups });
        launch.key.step = StepId::Number(0);
        launch.layout = layout(&["n1", "n2"], &[&[0], &[1]], &[1, 1]);
        launch.node_index = 1;
        let told = map(&launch, 0);
        expect(
            &told,
            "SLURM_JOB_ID=354 SLURM_JOBID=354 SLURM_HET_SIZE=2 SLURM_JOB_ID_HET_GROUP_1=355 SLURM_NNODES_HET_GROUP_0=1 \
             SLURM_JOB_NODELIST_HET_GROUP_1=n2 SLURM_JOB_NODELIST=n[1-2] SLURM_PROCID=1 SLURM_NODEID=1 SLURM_NTASKS=2",
        );
        // What is submitted from inside has none of it.
        let named = told.keys().filter(|name| name.contains("HET"));
        assert!(named.clone().count() > 10 && named.clone().all(|name| is_job_variable(name.as_bytes())));
    }

    #[test]
    fn tasks_of_a_step_have_the_steps_values() {
        let mut launch = minimal();
        launch.key.step = StepId::Number(0);
        launch.job.layout = layout(&["n1", "n2"], &[&[0, 1], &[2]], &[2, 1]);
        launch.layout = launch.job.layout.clone();
        launch.share.cpus = vec![0, 1];
        expect(
            &map(&launch, 1),
            "SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NODEID=0 SLURM_GTIDS=0,1 SLURM_STEP_ID=0 SLURM_STEPID=0 SLURM_NTASKS=3 \
             SLURM_NPROCS=3 SLURM_STEP_NUM_TASKS=3 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=n[1-2] \
             SLURM_STEP_TASKS_PER_NODE=2,1 SLURM_TASKS_PER_NODE=2,1 SLURM_CPUS_ON_NODE=2 SLURM_UMASK=0022 \
             SLURM_JOB_GROUP=alice SLURM_DISTRIBUTION=block SLURM_NNODES=2 SLURM_JOB_NUM_NODES=2",
        );
        launch.node = NodeName::from("n2");
        launch.node_index = 1;
        launch.share.cpus = vec![0];
        let second = map(&launch, 0);
        expect(
            &second,
            "SLURM_PROCID=2 SLURM_LOCALID=0 SLURM_NODEID=1 SLURM_GTIDS=2 SLURMD_NODENAME=n2 SLURM_CPUS_ON_NODE=1 \
             SLURM_TOPOLOGY_ADDR=n2",
        );
        assert!(!second.contains_key("ENVIRONMENT") && !second.contains_key("HOSTNAME"));
    }

    #[test]
    fn tasks_find_the_first_one_by_an_address_and_by_a_name_only_where_none_is_known() {
        let mut launch = minimal();
        launch.key.step = StepId::Number(1);
        launch.layout = layout(&["n1", "n2"], &[&[0, 1], &[2]], &[2, 1]);
        let of = |launch: &StepLaunch, index: u32, master: Option<&str>| {
            let master = master.map(str::to_string);
            let launch = StepLaunch { pytorch: true, node_index: index, master, ..launch.clone() };
            map(&launch, 0).remove("MASTER_ADDR").unwrap()
        };
        for index in [0, 1] {
            assert_eq!(of(&launch, index, Some("10.0.0.7")), "10.0.0.7");
        }
        // On the controller's machine, and where nobody knows.
        for unknown in [Some(""), None] {
            assert_eq!(of(&launch, 0, unknown), "127.0.0.1");
            assert_eq!(of(&launch, 1, unknown), "n1");
        }
        // What is on one node needs no network; that may be its container's own.
        launch.layout = layout(&["n1"], &[&[0, 1]], &[2]);
        assert_eq!(of(&launch, 0, Some("10.0.0.7")), "127.0.0.1");
        launch.pytorch = true;
        expect(
            &map(&launch, 1),
            "MASTER_ADDR=127.0.0.1 MASTER_PORT=21206 RANK=1 LOCAL_RANK=1 GROUP_RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2",
        );
    }

    #[test]
    fn steps_of_jobs_with_near_ids_have_ports_of_their_own() {
        for first in [1, 12_345, u32::MAX - 100] {
            let mut of = BTreeMap::new();
            for (job, step) in
                (first..first + 100).flat_map(|job| (0..95).map(move |step| (JobId(job), step)))
            {
                let port = master_port(job, step);
                assert!((15_000..30_000).contains(&port));
                let other = of.insert(port, (job, step));
                assert_eq!(other, None, "{job}.{step} has the port {port}, too");
            }
        }
        // All steps of one job, as long as there are ports.
        let ports: std::collections::BTreeSet<u64> =
            (0..15_000).map(|step| master_port(JobId(7), step)).collect();
        assert_eq!(ports.len(), 15_000);
    }

    #[test]
    fn a_steps_gpus_are_counted_from_zero_where_it_sees_only_its_own() {
        let mut launch = minimal();
        launch.key.step = StepId::Number(3);
        launch.job.share.gres = vec![device(2), device(3), device(5)];
        launch.share.gres = vec![device(3), device(5)];
        launch.cpus_per_task = 1;
        launch.job.cpus_per_task = Some(4);
        expect(
            &map(&launch, 0),
            "SLURM_JOB_GPUS=2,3,5 SLURM_STEP_GPUS=3,5 SLURM_GPUS_ON_NODE=2 CUDA_VISIBLE_DEVICES=0,1 \
             SLURM_CPUS_PER_TASK=1",
        );
        let open = step_variables(&launch, Devices::Open);
        assert!(open.contains(&("CUDA_VISIBLE_DEVICES".to_string(), ByteStr::from("3,5"))));
    }

    #[test]
    fn what_the_client_sent_stays_where_it_knows_better() {
        let mut launch = minimal();
        launch.env =
            vec!["TMPDIR=/scratch".into(), "SLURM_SUBMIT_DIR=/from".into(), "SLURM_JOB_NAME=sname".into()];
        assert_eq!(map(&launch, 0)["SLURM_PRIO_PROCESS"], "0");
        launch.env.push("SLURM_PRIO_PROCESS=5".into());
        let script = map(&launch, 0);
        assert!(!script.contains_key("SLURM_PRIO_PROCESS"), "the one that was sent stays");
        assert!(!script.contains_key("TMPDIR") && !script.contains_key("SLURM_SUBMIT_DIR"));
        assert_eq!(script["SLURM_JOB_NAME"], "envbatch.sh");
        launch.key.step = StepId::Number(0);
        assert!(!map(&launch, 0).contains_key("SLURM_JOB_NAME"));
    }

    #[test]
    fn what_a_task_has_is_its_cpus_and_the_devices_that_were_asked_for() {
        let of = |told: Option<&str>, cpus: Option<u32>, step: StepId| {
            let mut launch = minimal();
            launch.key.step = step;
            launch.job.cpus_per_task = cpus;
            launch.cpus_per_task = cpus.unwrap_or(1);
            launch.env = told.map(|told| format!("SLURM_TRES_PER_TASK={told}").into()).into_iter().collect();
            map(&launch, 0).remove("SLURM_TRES_PER_TASK")
        };
        for step in [StepId::Batch, StepId::Number(0)] {
            assert_eq!(of(None, None, step), None);
            assert_eq!(of(None, Some(2), step).as_deref(), Some("cpu=2"));
            assert_eq!(of(Some("gres/gpu=1"), None, step).as_deref(), Some("gres/gpu=1"));
            // The CPUs of which a client told may have been changed since.
            let both = of(Some("cpu=9,gres/gpu:a100=2,gres/nic=1"), Some(4), step);
            assert_eq!(both.as_deref(), Some("cpu=4,gres/gpu:a100=2,gres/nic=1"));
            assert_eq!(of(Some("nonsense"), Some(4), step).as_deref(), Some("cpu=4"));
            assert_eq!(of(Some("nonsense"), None, step), None, "what was sent stays");
        }
    }

    #[test]
    fn a_terminals_size_is_told() {
        let mut launch = minimal();
        launch.key.step = StepId::Number(0);
        assert!(!map(&launch, 0).keys().any(|name| name.starts_with("SLURM_PTY_")));
        launch.pty = Some(TermSize { rows: 24, cols: 80 });
        expect(&map(&launch, 0), "SLURM_PTY_WIN_COL=80 SLURM_PTY_WIN_ROW=24");
        assert!(is_of_one_step(b"SLURM_PTY_WIN_ROW") && is_of_one_step(b"SLURM_DIST_PLANESIZE"));
        assert!(!is_of_one_step(b"SLURM_DISTRIBUTION"));
    }

    #[test]
    fn all_that_a_step_sets_is_known_to_be_a_jobs() {
        let mut launch = minimal();
        launch.pty = Some(TermSize { rows: 24, cols: 80 });
        launch.distribution = Distribution::Plane(2);
        launch.overcommit = true;
        launch.share.gres = vec![device(0)];
        launch.job.share.gres = vec![device(0)];
        launch.job.restarts = 1;
        launch.job.array = Some(ArrayPlace { array: JobId(1), task: 1, count: 1, min: 1, max: 1, step: 1 });
        for step in [StepId::Batch, StepId::Number(0)] {
            launch.key.step = step;
            for name in map(&launch, 0).keys().filter(|name| !["TMPDIR", "HOSTNAME"].contains(&name.as_str()))
            {
                assert!(is_job_variable(name.as_bytes()), "{name}");
            }
        }
        assert!(!is_job_variable(b"SLURM_TIME_FORMAT") && !is_job_variable(b"PATH"));
    }
}
