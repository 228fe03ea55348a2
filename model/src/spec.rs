//! What a user asks for: job and step specifications. Container fields are members of their own.

use crate::bind::gpu::GpuBind;
use crate::bind::plan::Sockets;
use crate::bind::{CpuBind, MemBind};
use crate::bytes::ByteStr;
use crate::devices::DeviceRequest;
use crate::distribution::Distribution;
use crate::fabric::FabricChoice;
use crate::het::HetPlace;
use crate::ids::{Gid, JobId, NodeName, StepId, SubmissionId, Uid};
use crate::launch::Layout;
use crate::limits::Limits;
use crate::login::SealedLogin;
use crate::mpi::MpiType;
use crate::multiprog::RankProgram;
use crate::options::Stream;
use crate::pattern::{self, Spread};
use crate::pin::FilePin;
use crate::receive::Receive;
use crate::sluid::Sluid;
use crate::time::{Span, Time};
use crate::tres::GresKey;
use crate::x11::X11Spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who runs a job, as resolved through NSS on the controller and carried with the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: Uid,
    /// Primary group id.
    pub gid: Gid,
    /// Supplementary groups.
    pub groups: Vec<Gid>,
    /// Login name.
    pub user: String,
    /// Name of the primary group.
    pub group: String,
    /// Home directory.
    pub home: ByteStr,
    /// Login shell.
    pub shell: ByteStr,
}

/// Which command made a job, and so who drives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// `sbatch`: a script runs on the first node.
    Batch,
    /// `srun` outside an allocation: the job lives as long as its one step.
    Run,
    /// `salloc`: the job lives as long as the client that holds it.
    Alloc,
}

/// How much of the cluster a job needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceRequest {
    /// Fewest nodes.
    pub min_nodes: u32,
    /// Most nodes; equal to `min_nodes` for `-N 2`.
    pub max_nodes: Option<u32>,
    /// Tasks in all (`-n`); absent when not given.
    pub tasks: Option<u32>,
    /// Tasks on each node (`--ntasks-per-node`).
    pub tasks_per_node: Option<u32>,
    /// CPUs for each task (`-c`); absent when not given (then 1).
    pub cpus_per_task: Option<u32>,
    /// Memory.
    pub memory: MemoryRequest,
    /// Generic resources on each node.
    pub gres: BTreeMap<GresKey, u64>,
    /// Devices of the whole job, of tasks and sockets, and what comes with each.
    #[serde(skip_serializing_if = "DeviceRequest::is_empty")]
    pub devices: DeviceRequest,
    /// Whole nodes.
    pub exclusive: bool,
    /// Must contain all of these nodes.
    pub node_list: Vec<NodeName>,
    /// Must contain none of these nodes.
    pub exclude: Vec<NodeName>,
    /// How tasks are laid out over the nodes.
    pub distribution: Distribution,
    /// Tasks take no CPUs of their own: on each node there are those of one task.
    pub overcommit: bool,
    /// How those of its steps are, over the sockets of a node; absent where nobody asked.
    pub sockets: Option<Sockets>,
    /// `--fabric`: what every node must have; absent where nobody said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric: Option<FabricChoice>,
    /// How those of its steps are bound to GPUs that do not say it themselves, which learn it from their environment; for who looks at
    /// the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_bind: Option<GpuBind>,
    /// `--ntasks-per-gpu` as it was given, for who looks at the job: what follows from it is in the numbers of tasks and devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ntasks_per_gpu: Option<u32>,
}

impl Default for ResourceRequest {
    fn default() -> Self {
        ResourceRequest {
            min_nodes: 1,
            max_nodes: None,
            tasks: None,
            tasks_per_node: None,
            cpus_per_task: None,
            memory: MemoryRequest::Default,
            gres: BTreeMap::new(),
            devices: DeviceRequest::default(),
            exclusive: false,
            node_list: Vec::new(),
            exclude: Vec::new(),
            distribution: Distribution::Block,
            overcommit: false,
            sockets: None,
            fabric: None,
            gpu_bind: None,
            ntasks_per_gpu: None,
        }
    }
}

impl ResourceRequest {
    /// Whether it asks for GPUs in any way.
    pub fn asks_for_gpus(&self) -> bool {
        let d = &self.devices;
        let any = |wanted: &BTreeMap<GresKey, u64>| crate::devices::gpus(wanted) > 0;
        [&self.gres, &d.total, &d.per_task, &d.per_socket].into_iter().any(any) || d.tasks_per_gpu.is_some()
    }
}

/// Memory asked for, in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryRequest {
    /// Not given: the partition's default, else the node's share for the cores.
    #[default]
    Default,
    /// `--mem`: on each node; 0 asks for all of it.
    PerNode(u64),
    /// `--mem-per-cpu`.
    PerCpu(u64),
    /// `--mem-per-gpu`.
    PerGpu(u64),
}

/// What happens to an output file that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenMode {
    /// Emptied (the default; a requeued run appends).
    #[default]
    Truncate,
    /// Written at its end.
    Append,
}

/// Where a task's standard streams go: file-name patterns as typed, expanded on the node.
/// `None` means the command's default (sbatch: `slurm-%j.out`; srun: the terminal).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoSpec {
    /// `--input`.
    pub stdin: Option<ByteStr>,
    /// `--output`.
    pub stdout: Option<ByteStr>,
    /// `--error`; `None` joins it to `stdout`.
    pub stderr: Option<ByteStr>,
    /// `--open-mode`; absent when not given.
    pub open_mode: Option<OpenMode>,
    /// `srun` writes the files that tasks on several nodes share ([`IoSpec::is_the_clients`]). Clients of earlier versions do not.
    pub client_writes: bool,
    /// `--label`: so it does those that tasks of one node share, for it knows how lines are labelled.
    pub labelled: bool,
}

impl IoSpec {
    /// Whether `srun` itself writes the file of an output pattern: one that tasks on several nodes share, or whose lines carry labels. If each node opened it, the last one
    /// would cut off what the others had written, and what they write at once would go astray on network filesystems.
    pub fn is_the_clients(&self, pattern: &ByteStr, layout: &Layout) -> bool {
        let several = self.client_writes && (self.labelled || layout.nodes.len() > 1);
        let shared = || match Stream::of(Some(pattern), layout.task_count()) {
            Stream::File(name) => name.0 != b"/dev/null" && pattern::spread(&name.0) == Spread::Step,
            Stream::All | Stream::None | Stream::Task(_) => false,
        };
        several && shared()
    }
}

/// Where an image comes from, as typed and as pinned at submit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The text the user typed, for records and messages.
    pub typed: String,
    /// What it was resolved to at submit; absent when the client could not resolve (a client inside a
    /// container): then the node resolves it as the user before the step starts.
    pub resolved: Option<ResolvedImage>,
}

impl ImageRef {
    /// `sha256:...` of the manifest that it is pinned to.
    pub fn digest(&self) -> Option<&str> {
        match &self.resolved {
            Some(ResolvedImage::Manifest { digest, .. }) => Some(digest),
            _ => None,
        }
    }
}

/// A resolved image. Its meaning never changes between submit and any later run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ResolvedImage {
    /// An image of a registry or of an OCI layout, pinned by the digest of its manifest for one platform.
    Manifest {
        /// Canonical source: `docker://registry/repository`, `oci:/path` or `oci-archive:/path`.
        source: String,
        /// `sha256:...` of the platform's manifest.
        digest: String,
        /// Whether the registry is to be spoken to without TLS.
        #[serde(default)]
        insecure: bool,
        /// Digests of the indexes on the way from the name to the manifest, outermost first: one of them may be what is
        /// signed.
        #[serde(default)]
        indexes: Vec<String>,
        /// The file that it is from, as it was then: nodes that find it so need not all read it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pin: Option<FilePin>,
    },
    /// An unpacked root directory on the node, used in place.
    RootDir {
        /// Absolute path.
        path: ByteStr,
    },
    /// The node's own filesystem (`host:`), which is also what a step without an image gets.
    Host,
    /// None was named: the container of `--container-name` must be there.
    Kept,
}

/// One `--container-mounts` entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// A path on the node, or `tmpfs`, or `umount`.
    pub source: ByteStr,
    /// Absolute path in the container.
    pub target: ByteStr,
    /// Flags as typed, such as `ro` or `rbind`; validated at submit.
    #[serde(default)]
    pub flags: Vec<String>,
}

/// What holds what a container writes to its root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerKind {
    /// Memory, charged to the job.
    #[default]
    Tmpfs,
    /// The node's disk.
    Disk,
}

/// `--container-writable-layer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerSpec {
    /// Where.
    pub kind: LayerKind,
    /// Its limit in MiB.
    pub size: Option<u64>,
}

/// For whom a container of `--container-name` is kept (`--container-scope`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameScope {
    /// For the steps of one job; it goes with the job.
    #[default]
    Job,
    /// For later jobs of the same user on the node, too.
    User,
}

/// What `--container-name` does about a container that is there, or is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameFlag {
    /// Joins one that runs, starts one that is there, makes one that is not.
    #[default]
    Auto,
    /// Makes one; one that is there is an error.
    Create,
    /// Joins one that runs; everything else is an error.
    Exec,
    /// As auto, but one that runs is an error.
    NoExec,
}

/// `--container-name` and `--container-scope`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedSpec {
    /// Letters, digits, `_`, `-` and `.`; the first is a letter or digit.
    pub name: String,
    /// What is there already.
    #[serde(default)]
    pub flag: NameFlag,
    /// For whom it is kept.
    #[serde(default)]
    pub scope: NameScope,
}

impl NamedSpec {
    /// What a step has of its job's: the script's step made or started the container, and steps beside it join it.
    #[must_use]
    pub fn of_a_step(&self) -> NamedSpec {
        let flag = match self.flag {
            NameFlag::Create | NameFlag::NoExec => NameFlag::Auto,
            flag @ (NameFlag::Auto | NameFlag::Exec) => flag,
        };
        NamedSpec { flag, ..self.clone() }
    }
}

/// A namespace of `--container-unshare`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unshared {
    /// Network: the loopback device alone.
    Net,
    /// System V IPC, POSIX message queues and `/dev/shm`.
    Ipc,
    /// Host name.
    Uts,
}

/// The container options of a job or step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// `--container-image`.
    pub image: ImageRef,
    /// `--container-mounts`.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
    /// `--container-workdir`; absent means the image's.
    #[serde(default)]
    pub workdir: Option<ByteStr>,
    /// `--container-mount-home` / `--no-container-mount-home`; absent means the site's default (no).
    #[serde(default)]
    pub mount_home: Option<bool>,
    /// `--container-remap-root` / `--no-…`; absent means the site's default (no).
    #[serde(default)]
    pub remap_root: Option<bool>,
    /// `--container-subids` / `--no-…`: with [`ContainerSpec::remap_root`]; absent means no.
    #[serde(default)]
    pub subids: Option<bool>,
    /// `--container-writable` (true) / `--container-readonly` (false); absent means writable and ephemeral.
    #[serde(default)]
    pub writable: Option<bool>,
    /// `--container-env`: names whose value outside wins over the image's.
    #[serde(default)]
    pub env: Vec<String>,
    /// `--container-entrypoint` / `--no-…`; absent means the site's default (no).
    #[serde(default)]
    pub entrypoint: Option<bool>,
    /// `--container-writable-layer`; absent means memory without a limit of its own.
    #[serde(default)]
    pub layer: Option<LayerSpec>,
    /// `--container-name`.
    #[serde(default)]
    pub named: Option<NamedSpec>,
    /// `--container-unshare`, in order and without repetition.
    #[serde(default)]
    pub unshare: Vec<Unshared>,
    /// `--container-save`: absolute path on the node.
    #[serde(default)]
    pub save: Option<ByteStr>,
}

impl ContainerSpec {
    /// A container of an image, of which nothing else was asked for.
    pub fn of(image: ImageRef) -> ContainerSpec {
        ContainerSpec {
            image,
            mounts: Vec::new(),
            workdir: None,
            mount_home: None,
            remap_root: None,
            subids: None,
            writable: None,
            env: Vec::new(),
            entrypoint: None,
            layer: None,
            named: None,
            unshare: Vec::new(),
            save: None,
        }
    }

    /// What a step has of its job's container. Only the script's own step saves what it leaves.
    #[must_use]
    pub fn of_a_step(&self) -> ContainerSpec {
        ContainerSpec { named: self.named.as_ref().map(NamedSpec::of_a_step), save: None, ..self.clone() }
    }
}

/// A signal to send some time before the time limit (`--signal`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarnSignal {
    /// Signal number.
    pub signal: i32,
    /// How long before the limit.
    pub before: Span,
    /// Only to the batch shell (`B:`).
    pub batch_only: bool,
}

/// The index set of an array (`--array`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArraySpec {
    /// Ascending, disjoint `(first, last, step)` ranges; `last` is a member.
    pub ranges: Vec<(u32, u32, u32)>,
    /// Most tasks running at once (`%N`).
    pub max_running: Option<u32>,
}

/// A job as submitted. Script and environment travel beside it, because they stay in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Made by the client; a second submission with it answers with the first one's job.
    pub submission: SubmissionId,
    /// Which command made it.
    pub kind: JobKind,
    /// `--job-name`.
    pub name: String,
    /// `--partition`; absent means the default partition.
    #[serde(default)]
    pub partition: Option<String>,
    /// `--account`, recorded and printed.
    #[serde(default)]
    pub account: Option<String>,
    /// What it needs.
    pub resources: ResourceRequest,
    /// `--time`; absent means the partition's default. `Some(None)` is not representable: unlimited is
    /// `TimeLimit::Unlimited`.
    #[serde(default)]
    pub time_limit: Option<TimeLimit>,
    /// `--begin`.
    #[serde(default)]
    pub begin: Option<Time>,
    /// `--hold`.
    #[serde(default)]
    pub hold: bool,
    /// `--nice`.
    #[serde(default)]
    pub nice: i32,
    /// `--requeue` / `--no-requeue`; absent means the site's default (requeue allowed).
    #[serde(default)]
    pub requeue: Option<bool>,
    /// `--array`.
    #[serde(default)]
    pub array: Option<ArraySpec>,
    /// `--immediate`: give up when not started within this span.
    #[serde(default)]
    pub immediate: Option<Span>,
    /// `--comment`.
    #[serde(default)]
    pub comment: Option<String>,
    /// `--chdir`, else the submit directory. Absolute.
    pub work_dir: ByteStr,
    /// Where the command was typed (`SLURM_SUBMIT_DIR`), whatever `--chdir` says. Absolute.
    #[serde(default)]
    pub submit_dir: ByteStr,
    /// Streams of the batch script.
    #[serde(default)]
    pub io: IoSpec,
    /// Container of the batch script (sbatch) and default of the job's steps.
    #[serde(default)]
    pub container: Option<ContainerSpec>,
    /// The submitter's limits.
    #[serde(default)]
    pub limits: Limits,
    /// The submitter's umask.
    pub umask: u32,
    /// `--signal`.
    #[serde(default)]
    pub warn_signal: Option<WarnSignal>,
    /// `--get-user-env`: the script starts from the user's login environment.
    #[serde(default)]
    pub user_env: bool,
    /// The command for records: script path, or `wrap`, or srun's program.
    pub command: ByteStr,
    /// The whole command line as typed, for records.
    #[serde(default)]
    pub submit_line: ByteStr,
    /// Host and session id of the submitter (`AllocNode:Sid`).
    #[serde(default)]
    pub submit_host: String,
    /// Session id of the submitter.
    #[serde(default)]
    pub submit_sid: u32,
    /// Its place in a job of several components; the controller says so, whatever was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub het: Option<HetPlace>,
    /// `--lost-after`: without a word between a node and the controller it ends there by itself after so long; absent: as the site says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_after: Option<Span>,
    /// `salloc --no-shell`: an allocation that goes on without its client, until somebody or its time limit ends it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clientless: bool,
}

impl JobSpec {
    /// The specification without what no list shows: directories, streams, containers, limits, and the command as
    /// typed.
    #[must_use]
    pub fn brief(&self) -> JobSpec {
        JobSpec {
            submission: SubmissionId(String::new()),
            kind: self.kind,
            name: self.name.clone(),
            partition: None,
            account: self.account.clone(),
            resources: self.resources.clone(),
            time_limit: self.time_limit,
            begin: self.begin,
            hold: self.hold,
            nice: self.nice,
            requeue: self.requeue,
            array: self.array.clone(),
            immediate: None,
            comment: None,
            work_dir: ByteStr::default(),
            submit_dir: ByteStr::default(),
            io: IoSpec::default(),
            container: None,
            limits: Limits::default(),
            umask: self.umask,
            warn_signal: None,
            user_env: self.user_env,
            command: ByteStr::default(),
            submit_line: ByteStr::default(),
            submit_host: String::new(),
            submit_sid: self.submit_sid,
            het: self.het,
            lost_after: None,
            clientless: self.clientless,
        }
    }
}

/// A time limit in whole minutes, as it is stored and printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeLimit {
    /// Minutes, at least 1.
    Minutes(u32),
    /// None at all.
    Unlimited,
}

/// What a batch job runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchScript {
    /// The script's bytes, as copied at submit.
    pub text: ByteStr,
    /// Its arguments.
    pub args: Vec<ByteStr>,
}

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// A step as asked for by `srun`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSpec {
    /// Made by the client, as for a job.
    pub submission: SubmissionId,
    /// `--job-name` of the step: the program's name by default.
    pub name: String,
    /// `-n`; absent means the allocation's tasks.
    pub tasks: Option<u32>,
    /// `-N`; absent means all nodes that the tasks need.
    pub nodes: Option<u32>,
    /// The most of `-N1-4`: as many as the tasks need have them, from `nodes` on. Absent: as many as `nodes` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_nodes: Option<u32>,
    /// `--ntasks-per-node`.
    #[serde(default)]
    pub tasks_per_node: Option<u32>,
    /// `-w`: nodes of the job that the step must have.
    #[serde(default)]
    pub node_list: Vec<NodeName>,
    /// `-x`: nodes of the job that it must not have.
    #[serde(default)]
    pub exclude: Vec<NodeName>,
    /// `-r`: the first of the job's nodes that it may have, from 0.
    #[serde(default)]
    pub relative: Option<u32>,
    /// `-m`; absent means the job's.
    #[serde(default)]
    pub distribution: Option<Distribution>,
    /// `-c`.
    pub cpus_per_task: Option<u32>,
    /// Memory of the step on each node; default: the job's.
    #[serde(default)]
    pub memory: MemoryRequest,
    /// Generic resources of the step on each node; `None` means all of the job's.
    #[serde(default)]
    pub gres: Option<BTreeMap<GresKey, u64>>,
    /// Devices of the whole step, of its tasks and sockets.
    #[serde(default, skip_serializing_if = "DeviceRequest::is_empty")]
    pub devices: DeviceRequest,
    /// `--gpu-bind`, or what follows from `--gpus-per-task`; absent: each task is told of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_bind: Option<GpuBind>,
    /// `--overlap`: shares CPUs with the job's other steps.
    #[serde(default)]
    pub overlap: bool,
    /// `--exact` or `--exclusive`: only the CPUs asked for, waiting until they are free.
    #[serde(default)]
    pub exact: bool,
    /// `--immediate`: fail instead of waiting for the allocation's resources.
    #[serde(default)]
    pub immediate: Option<Span>,
    /// Program and arguments.
    pub argv: Vec<ByteStr>,
    /// `NAME=value` strings.
    pub env: Vec<ByteStr>,
    /// Absolute working directory.
    pub work_dir: ByteStr,
    /// Whether the user named the working directory (`--chdir`).
    #[serde(default)]
    pub work_dir_explicit: bool,
    /// Streams; `None` members go to the client.
    #[serde(default)]
    pub io: IoSpec,
    /// Container; absent means the job's own (`ImageRef::Host` asks for none).
    #[serde(default)]
    pub container: Option<ContainerSpec>,
    /// Limits of the calling process.
    #[serde(default)]
    pub limits: Limits,
    /// umask of the calling process.
    pub umask: u32,
    /// `--pty`: a terminal for task 0.
    #[serde(default)]
    pub pty: Option<TermSize>,
    /// `--kill-on-bad-exit`.
    #[serde(default)]
    pub kill_on_bad_exit: bool,
    /// `--wait`: end the step this long after its first task ended; absent means never.
    #[serde(default)]
    pub wait_after_first_exit: Option<Span>,
    /// `--time` of the step.
    #[serde(default)]
    pub time_limit: Option<TimeLimit>,
    /// Whether a client will attach and drives the step: it ends when that client is gone.
    pub attached: bool,
    /// `berth exec`: the step runs where another step of the job does.
    #[serde(default)]
    pub enter: Option<EnterSpec>,
    /// `--x11`; the cookie is in the environment, under [`crate::x11::COOKIE`].
    #[serde(default)]
    pub x11: Option<X11Spec>,
    /// `--mpi`; absent: what its tasks ask for.
    #[serde(default)]
    pub mpi: Option<MpiType>,
    /// For the step's own image, where its registry wanted one.
    #[serde(default)]
    pub login: Option<SealedLogin>,
    /// `--pytorch`: tasks are told what torch.distributed asks for.
    #[serde(default)]
    pub pytorch: bool,
    /// `--task-prolog`: runs before each task, where the task runs; empty means none.
    #[serde(default)]
    pub task_prolog: ByteStr,
    /// `--task-epilog`: after each.
    #[serde(default)]
    pub task_epilog: ByteStr,
    /// `--cpu-bind`; absent means that each task may use all CPUs of the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_bind: Option<CpuBind>,
    /// `--mem-bind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_bind: Option<MemBind>,
    /// `--multi-prog`: what each task runs instead; empty where all run the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<RankProgram>,
    /// More tasks than there are CPUs for.
    #[serde(default)]
    pub overcommit: bool,
    /// How tasks are laid out over the sockets of a node; absent: as the job says, if it does.
    #[serde(default)]
    pub sockets: Option<Sockets>,
    /// A file that the tasks receive instead of running a program; absent in what earlier versions wrote.
    #[serde(default)]
    pub receive: Option<Receive>,
    /// `--fabric`; absent: as the job says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<FabricChoice>,
    /// By which address its client's machine is reached: the controller's word, whatever a client says. Empty: as the controller's machine is;
    /// absent where nobody knows, and where it has no client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<String>,
    /// Its tasks wait for a program that its client runs before them; absent: they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prolog: Option<SrunProlog>,
}

/// What `srun` runs before the tasks of its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SrunProlog {
    /// The site's (`srun_prolog` in `[programs]`), where there is one.
    Site,
    /// A program that the user named (`--prolog`), or the site's, of which the controller has found that there is one.
    Own,
}

/// Where a step enters another one: it has that step's container, environment, resources and working directory, and sets
/// over them what it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnterSpec {
    /// Which step is entered.
    pub step: StepId,
    /// On which of its nodes; absent where it has one.
    #[serde(default)]
    pub node: Option<NodeName>,
}

/// Names one array task or job on the command line, resolved by the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobSelector {
    /// `12`: a job, or a whole array.
    Job(JobId),
    /// `12_3`.
    Task(JobId, u32),
    /// `12_[1-5,7]`.
    Tasks(JobId, ArraySpec),
    /// `12+1`: one component of a heterogeneous job, by its leader and from 0.
    Component(JobId, u32),
    /// `sCN1M7XK76CZ00`: one record, be it a job, a task, a component, or the waiting tasks of an array.
    Sluid(Sluid),
}

impl JobSelector {
    /// The id under which the record, or all records of an array or of a job of several components, are asked for; `None` of a SLUID,
    /// which is looked up as it is.
    pub fn named(&self) -> Option<JobId> {
        match self {
            JobSelector::Job(id)
            | JobSelector::Task(id, _)
            | JobSelector::Tasks(id, _)
            | JobSelector::Component(id, _) => Some(*id),
            JobSelector::Sluid(_) => None,
        }
    }
}
