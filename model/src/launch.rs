//! What a step's supervisor is told, and what it reports: the content of `launch.json` and `state.json` in
//! a step's spool directory. Readable by every later agent: fields are only ever added, with defaults.

use crate::bind::gpu::GpuBind;
use crate::bind::plan::Sockets;
use crate::bind::{CpuBind, CpuHow, MemBind};
use crate::bytes::ByteStr;
use crate::distribution::Distribution;
use crate::fabric::FabricChoice;
use crate::hardware::GresDevice;
use crate::het::HetFacts;
use crate::ids::{JobId, NodeName, StepId, StepKey};
use crate::limits::Limits;
use crate::mpi::{MpiType, offered};
use crate::multiprog::RankProgram;
use crate::receive::Receive;
use crate::sluid::Sluid;
use crate::spec::{ContainerSpec, Identity, IoSpec, JobKind, ResolvedImage, TermSize};
use crate::state::ExitStatus;
use crate::time::{Span, Time};
pub use crate::usage::{GpuUsage, Usage};
use crate::x11::X11Spec;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a step has on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeShare {
    /// CPU numbers on the node, ascending.
    pub cpus: Vec<u32>,
    /// Memory in MiB.
    pub memory: u64,
    /// Devices.
    pub gres: Vec<GresDevice>,
}

/// Where the tasks of a step, or of a job, are: in node order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Layout {
    /// Nodes in order.
    pub nodes: Vec<NodeName>,
    /// Global task numbers on each node.
    pub tasks: Vec<Vec<u32>>,
    /// CPUs on each node.
    pub cpus: Vec<u32>,
}

impl Layout {
    /// How many tasks there are on all nodes.
    pub fn task_count(&self) -> u32 {
        u32::try_from(self.tasks.iter().map(Vec::len).sum::<usize>()).unwrap_or(u32::MAX)
    }
}

/// An array task's place in its array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayPlace {
    /// The array's id (`%A`).
    pub array: JobId,
    /// This task's index (`%a`).
    pub task: u32,
    /// Tasks in the array.
    pub count: u32,
    /// Smallest index.
    pub min: u32,
    /// Largest index.
    pub max: u32,
    /// Step between indices, 1 when uneven.
    pub step: u32,
}

/// Facts of the job that every step of it is told (environment, file names, records).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFacts {
    /// Which command made it.
    pub kind: JobKind,
    /// Job name.
    pub name: String,
    /// Partition.
    pub partition: String,
    /// Account.
    #[serde(default)]
    pub account: Option<String>,
    /// Cluster name.
    pub cluster: String,
    /// Place in an array.
    #[serde(default)]
    pub array: Option<ArrayPlace>,
    /// How often it was requeued.
    #[serde(default)]
    pub restarts: u32,
    /// Start, in cluster time.
    pub start: Time,
    /// When its time limit is reached.
    #[serde(default)]
    pub end: Option<Time>,
    /// The whole allocation.
    pub layout: Arc<Layout>,
    /// Directory, host and user of the submission.
    pub submit_dir: ByteStr,
    /// Host of the submission.
    pub submit_host: String,
    /// Tasks given with `-n`.
    #[serde(default)]
    pub tasks: Option<u32>,
    /// Given with `--ntasks-per-node`.
    #[serde(default)]
    pub tasks_per_node: Option<u32>,
    /// Given with `-c`.
    #[serde(default)]
    pub cpus_per_task: Option<u32>,
    /// Given or defaulted memory of the job on this node, in MiB.
    #[serde(default)]
    pub mem_per_node: Option<u64>,
    /// Given with `--mem-per-cpu`, in MiB.
    #[serde(default)]
    pub mem_per_cpu: Option<u64>,
    /// Given with `--mem-per-gpu`, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_per_gpu: Option<u64>,
    /// What the job has on this node (the step's share is within it).
    pub share: NodeShare,
    /// The job was submitted with `--container-subids`: its steps may have containers with the user's subordinate ids.
    #[serde(default)]
    pub subids: bool,
    /// The components of the heterogeneous job that this is one of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub het: Option<HetFacts>,
    /// The channel by which it, and no other job, may share its GPUs' memory between nodes (IMEX).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imex_channel: Option<u32>,
    /// Its name among the jobs of all clusters; absent of one that an earlier version took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sluid: Option<Sluid>,
}

/// What the tasks run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A batch script and its arguments: given to the container as a sealed file, never written into it.
    Script {
        /// The script.
        text: ByteStr,
        /// Its arguments.
        args: Vec<ByteStr>,
    },
    /// A program and its arguments.
    Argv(Vec<ByteStr>),
    /// The user's login shell in the allocation (`salloc`'s interactive step).
    LoginShell,
}

/// One step on one node, complete: the supervisor asks nobody for anything more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLaunch {
    /// Which run of which step.
    pub key: StepKey,
    /// This node.
    pub node: NodeName,
    /// This node's index within the step.
    pub node_index: u32,
    /// Whose it is.
    pub identity: Identity,
    /// The job.
    pub job: JobFacts,
    /// The step's name.
    pub name: String,
    /// What runs.
    pub program: Program,
    /// The submitter's environment: `NAME=value`, without what the step itself sets.
    pub env: Vec<ByteStr>,
    /// `--get-user-env`.
    #[serde(default)]
    pub user_env: bool,
    /// Absolute working directory.
    pub work_dir: ByteStr,
    /// Whether the user named it.
    #[serde(default)]
    pub work_dir_explicit: bool,
    /// File names of the streams; a member that is `None` goes to the attached client.
    pub io: IoSpec,
    /// The container; absent means the node's own filesystem.
    #[serde(default)]
    pub container: Option<ContainerSpec>,
    /// The submitter's limits.
    #[serde(default)]
    pub limits: Limits,
    /// The submitter's umask.
    pub umask: u32,
    /// A terminal for task 0.
    #[serde(default)]
    pub pty: Option<TermSize>,
    /// Layout of the step over its nodes.
    pub layout: Arc<Layout>,
    /// The rule by which it was made.
    #[serde(default)]
    pub distribution: Distribution,
    /// CPUs for each task (`-c`, else 1).
    pub cpus_per_task: u32,
    /// What this step may use on this node.
    pub share: NodeShare,
    /// End the step at the first task that fails.
    #[serde(default)]
    pub kill_on_bad_exit: bool,
    /// End the step this long after the first task ended.
    #[serde(default)]
    pub wait_after_first_exit: Option<Span>,
    /// Whether a client drives the step; it ends when that client is gone.
    pub attached: bool,
    /// From SIGTERM to SIGKILL.
    pub kill_wait: Span,
    /// The step of the same job on this node whose container is entered (`berth exec`).
    #[serde(default)]
    pub enter: Option<StepId>,
    /// The display that is reached from this node (`--x11`).
    #[serde(default)]
    pub x11: Option<X11Spec>,
    /// Tasks are told what torch.distributed asks for.
    #[serde(default)]
    pub pytorch: bool,
    /// By which address the step's first node is reached, where its tasks are to know; empty: as the controller's machine is. Absent where
    /// nobody asked or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// By which address the machine of its client (`srun`) is reached; empty: as the controller's machine is. Absent where there is no client,
    /// or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<String>,
    /// The user's program before each task (`--task-prolog`); empty means none.
    #[serde(default)]
    pub task_prolog: ByteStr,
    /// The user's program after each task (`--task-epilog`).
    #[serde(default)]
    pub task_epilog: ByteStr,
    /// How its tasks find one another, where that was said (`--mpi`).
    #[serde(default)]
    pub mpi: Option<MpiType>,
    /// `--cpu-bind`; absent means that each task may use all CPUs of the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_bind: Option<CpuBind>,
    /// `--mem-bind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_bind: Option<MemBind>,
    /// Which of the step's GPUs each task is told of; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_bind: Option<GpuBind>,
    /// `--multi-prog`: what each task runs instead; empty where all run the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<RankProgram>,
    /// There may be more tasks than CPUs for them.
    #[serde(default)]
    pub overcommit: bool,
    /// How tasks are laid out over the node's sockets; absent where nobody asked.
    #[serde(default)]
    pub sockets: Option<Sockets>,
    /// A file that the tasks receive instead of running a program; absent in what earlier versions wrote.
    #[serde(default)]
    pub receive: Option<Receive>,
    /// Which fabrics it needs, or does without; absent: it takes what there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<FabricChoice>,
    /// Its tasks begin when its client says so, which it does within this time; absent: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_within: Option<Span>,
}

impl StepLaunch {
    /// By what its tasks are served to find one another. A batch script and a shell are no MPI programs, a file that is received is none,
    /// and what is entered has its own.
    pub fn mpi_served(&self) -> MpiType {
        if !self.may_be_mpi() {
            return MpiType::None;
        }
        offered(self.mpi, self.layout.tasks.iter().map(Vec::len).sum())
    }

    /// Whether its tasks may come to PMIx without having said so. A single one, too: Open MPI sees by the step's variables that it runs
    /// under `srun`, and does not start without.
    pub fn mpi_is_open(&self) -> bool {
        self.mpi.is_none() && self.may_be_mpi()
    }

    fn may_be_mpi(&self) -> bool {
        let program = matches!(self.program, Program::Argv(_)) && matches!(self.key.step, StepId::Number(_));
        program && self.enter.is_none() && self.receive.is_none() && self.attached
    }

    /// Whether its tasks are bound to some of the node's cores or NUMA nodes.
    pub fn binds(&self) -> bool {
        self.cpu_binding().is_some() || self.mem_bind.is_some()
    }

    /// How its tasks are bound to CPUs. A layout over sockets means something only to tasks that are: without another word, to cores.
    pub fn cpu_binding(&self) -> Option<CpuBind> {
        let own =
            matches!(self.key.step, StepId::Number(_)) && self.enter.is_none() && self.receive.is_none();
        let cores = CpuBind { verbose: false, how: CpuHow::Cores };
        self.cpu_bind.clone().or_else(|| self.sockets.filter(|_| own).map(|_| cores))
    }
}

/// What making a step's image present took on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePull {
    /// From the Start to the image being there, or to the failure.
    pub took: Span,
    /// Bytes that this step fetched; none where another step fetched them.
    pub bytes: u64,
    /// All of it was there when the step came.
    pub hit: bool,
    /// `sha256:...` of the manifest; absent where no image could be found.
    #[serde(default)]
    pub digest: Option<String>,
    /// The image, where it came by a name alone and the node found what that means: for the job's specification, and not
    /// kept here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Box<ResolvedImage>>,
}

/// How a step ended on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepExit {
    /// The step's exit status there: the highest of its tasks, a launch failure included.
    pub status: ExitStatus,
    /// Each task's, by global number.
    #[serde(default)]
    pub tasks: Vec<(u32, ExitStatus)>,
    /// The memory limit killed a process.
    #[serde(default)]
    pub oom: bool,
    /// The node could not start it: what, why, and what to do.
    #[serde(default)]
    pub launch_error: Option<String>,
    /// Why it was ended from outside, where it was; filled in by the agent's core.
    #[serde(default)]
    pub ended_by: Option<crate::link::EndCause>,
    /// What its image took; filled in by the agent's core.
    #[serde(default)]
    pub image: Option<ImagePull>,
    /// What it used.
    #[serde(default)]
    pub usage: Usage,
    /// When it ended, by the node's wall clock; for records.
    pub ended: Time,
}

/// How far a step is on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepPhase {
    /// The image is being made present: percent, where known.
    Preparing(Option<u8>),
    /// The supervisor is at work, no task runs yet.
    Starting,
    /// Tasks run.
    Running,
    /// All tasks ended and nothing is left of them.
    Exited(StepExit),
}
