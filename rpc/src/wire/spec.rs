//! Specifications, launches, states, amounts and limits on the wire.

use super::{Field, Malformed, enums, required, required_member, structs};
use crate::pb;
use berth_model::bind::gpu::GpuBind;
use berth_model::bind::plan::Sockets;
use berth_model::bind::{CpuBind, MemBind};
use berth_model::devices::{DeviceRequest, Nearness};
use berth_model::distribution::Distribution;
use berth_model::fabric::{FabricChoice, FabricDevice, FabricKind};
use berth_model::hardware::{Core, GresDevice, Hardware, Vendor};
use berth_model::het::{HetFacts, HetGroup, HetPlace};
use berth_model::launch::{
    ArrayPlace, GpuUsage, ImagePull, JobFacts, NodeShare, Program, StepExit, StepLaunch, StepPhase, Usage,
};
use berth_model::limits::{LimitValue, Limits, Resource};
use berth_model::login::SealedLogin;
use berth_model::mpi::MpiType;
use berth_model::multiprog::RankProgram;
use berth_model::pin::FilePin;
use berth_model::receive::Receive;
use berth_model::spec::{
    ArraySpec, BatchScript, ContainerSpec, EnterSpec, Identity, ImageRef, IoSpec, JobKind, JobSelector,
    JobSpec, LayerKind, LayerSpec, MemoryRequest, MountSpec, NameFlag, NameScope, NamedSpec, OpenMode,
    ResolvedImage, ResourceRequest, SrunProlog, StepSpec, TermSize, TimeLimit, Unshared, WarnSignal,
};
use berth_model::state::{ExitStatus, JobState, NextState, NodeCondition, Reason, Reboot};
use berth_model::tres::GresKey;
use berth_model::x11::{X11Nodes, X11Spec};
use berth_model::{ByteStr, StepId, StepKey, Tres};
use std::collections::BTreeMap;

enums! {
    NextState { Before, Resume, Down }
    JobState {
        Pending, Running, Suspended, Completed, Cancelled, Failed, Timeout, NodeFail, Preempted, BootFail,
        Deadline, OutOfMemory, Completing, Configuring,
    }
    Resource {
        As, Core, Cpu, Data, Fsize, Locks, Memlock, Msgqueue, Nice, Nofile, Nproc, Rss, Rtprio, Rttime,
        Sigpending, Stack,
    }
    JobKind { Batch, Run, Alloc }
    OpenMode { Truncate, Append }
    LayerKind { Tmpfs, Disk }
    NameScope { Job, User }
    NameFlag { Auto, Create, Exec, NoExec }
    Unshared { Net, Ipc, Uts }
    X11Nodes { All, First, Last, Batch }
    Vendor { Generic, Nvidia, Amd, Intel }
    MpiType { None, Pmi1, Pmi2, Pmix }
    FabricKind { Infiniband, Roce, Iwarp, Efa }
    FabricChoice { Auto, Ib, Efa, None }
    Sockets { Cyclic, Block, Fcyclic }
    Nearness { Preferred, Enforced, Ignored }
    SrunProlog { Site, Own }
}

structs! {
    StepKey { job, attempt, step }
    Tres { cpu, mem, node, gres }
    Core { socket, numa, cpus }
    GresDevice {
        name, kind, index, files, uuid, memory, bus, numa, cpus, links, vendor, cdi, fault, shares, mps,
        place,
    }
    Hardware { arch, os, cores, memory, memory_reserved, tmp_disk, gres, enforces, fabrics, imex_channels }
    FabricDevice { name, kind, numa, files }
    ExitStatus { code, signal }
    NodeCondition { down, drain, fail, not_responding, reason, reason_user, reason_time, reboot }
    Reboot { asap, next, issued, reason, user, since }
    Limits { soft, required }
    Identity { uid, gid, groups, user, group, home, shell }
    ResourceRequest {
        min_nodes, max_nodes, tasks, tasks_per_node, cpus_per_task, memory, gres, exclusive, node_list, exclude,
        distribution, sockets, overcommit, fabric, devices, gpu_bind, ntasks_per_gpu,
    }
    IoSpec { stdin, stdout, stderr, open_mode, client_writes, labelled }
    ImageRef { typed, resolved }
    MountSpec { source, target, flags }
    LayerSpec { kind, size }
    NamedSpec { name, flag, scope }
    ContainerSpec {
        image, mounts, workdir, mount_home, remap_root, writable, env, entrypoint, layer, named, unshare, save,
        subids,
    }
    WarnSignal { signal, before, batch_only }
    ArraySpec { ranges, max_running }
    JobSpec {
        submission, kind, name, partition, account, resources, time_limit, begin, hold, nice, requeue, array,
        immediate, comment, work_dir, io, container, limits, umask, warn_signal, user_env, command, submit_line,
        submit_host, submit_sid, submit_dir, het, lost_after, clientless,
    }
    HetPlace { leader, offset, size }
    HetGroup { job, partition, layout, tasks, tasks_per_node, cpus_per_task, mem_per_node, mem_per_cpu }
    HetFacts { leader, offset, groups }
    BatchScript { text, args }
    TermSize { rows, cols }
    StepSpec {
        submission, name, tasks, nodes, tasks_per_node, cpus_per_task, memory, gres, overlap, exact, immediate,
        argv, env, work_dir, work_dir_explicit, io, container, limits, umask, pty, kill_on_bad_exit,
        wait_after_first_exit, time_limit, attached, enter,
        x11, login, task_prolog, task_epilog, node_list, exclude, relative, distribution,
        pytorch, mpi, cpu_bind, mem_bind, programs, receive, sockets, overcommit, fabric, devices, gpu_bind,
        prolog, max_nodes, client_address,
    }
    SealedLogin { registry, sealed }
    RankProgram { ranks, argv }
    Receive { path, size, mode, times, force }
    EnterSpec { step, node }
    X11Spec { display, nodes, host, carried }
    NodeShare { cpus, memory, gres }
    ArrayPlace { array, task, count, min, max, step }
    JobFacts {
        kind, name, partition, account, cluster, array, restarts, start, end, layout, submit_dir, submit_host,
        tasks, tasks_per_node, cpus_per_task, mem_per_node, mem_per_cpu, mem_per_gpu, share, subids, het,
        imex_channel, sluid,
    }
    StepLaunch {
        key, node, node_index, identity, job, name, program, env, user_env, work_dir, work_dir_explicit, io,
        container, limits, umask, pty, layout, cpus_per_task, share, kill_on_bad_exit, wait_after_first_exit,
        attached, kill_wait, enter, x11, task_prolog, task_epilog, distribution, pytorch, mpi,
        cpu_bind, mem_bind, programs, receive, sockets, overcommit, fabric, gpu_bind,
        told_within, master, client_address,
    }
    Usage { user_us, system_us, max_rss, rss_of_all, gpu }
    GpuUsage { busy_us, watched_us, peak, max_memory, memory_of_all }
    ImagePull { took, bytes, hit, digest, found }
    StepExit { status, tasks, oom, launch_error, usage, ended, ended_by, image }
}

required_member! {
    StepId => pb::StepId,
    Reason => pb::Reason,
    MemoryRequest => pb::MemoryRequest,
    TimeLimit => pb::TimeLimit,
    ResolvedImage => pb::ResolvedImage,
    JobSelector => pb::JobSelector,
    Program => pb::Program,
    StepPhase => pb::StepPhase,
}

impl Field<pb::StepId> for StepId {
    fn put(&self) -> pb::StepId {
        let (kind, number) = match self {
            StepId::Batch => (pb::StepKind::Batch, 0),
            StepId::Interactive => (pb::StepKind::Interactive, 0),
            StepId::Number(n) => (pb::StepKind::Number, *n),
        };
        pb::StepId { kind: kind as i32, number }
    }
    fn get(wire: pb::StepId) -> Result<Self, Malformed> {
        match pb::StepKind::try_from(wire.kind) {
            Ok(pb::StepKind::Batch) => Ok(StepId::Batch),
            Ok(pb::StepKind::Interactive) => Ok(StepId::Interactive),
            Ok(pb::StepKind::Number) => Ok(StepId::Number(wire.number)),
            _ => Err(Malformed::new("not a known kind of step")),
        }
    }
}

/// What travels as its text.
macro_rules! texts {
    ($($t:ty: $why:literal),+ $(,)?) => { $(
        impl Field<String> for $t {
            fn put(&self) -> String {
                self.to_string()
            }
            fn get(wire: String) -> Result<Self, Malformed> {
                wire.parse().map_err(|_| Malformed::new($why))
            }
        }
    )+ };
}
texts!(CpuBind: "not a way to bind tasks to CPUs", MemBind: "not a way to bind the memory of tasks", GpuBind: "not a way to bind tasks to GPUs");

type GresMap = BTreeMap<GresKey, u64>;

impl Field<Vec<pb::GresCount>> for GresMap {
    fn put(&self) -> Vec<pb::GresCount> {
        self.iter()
            .map(|(key, count)| pb::GresCount {
                name: key.name.clone(),
                kind: key.kind.clone(),
                count: *count,
            })
            .collect()
    }
    fn get(wire: Vec<pb::GresCount>) -> Result<Self, Malformed> {
        let mut map = BTreeMap::new();
        for pb::GresCount { name, kind, count } in wire {
            if map.insert(GresKey { name, kind }, count).is_some() {
                return Err(Malformed::new("a resource is named twice"));
            }
        }
        Ok(map)
    }
}

impl Field<pb::GresCounts> for GresMap {
    fn put(&self) -> pb::GresCounts {
        pb::GresCounts { counts: self.put() }
    }
    fn get(wire: pb::GresCounts) -> Result<Self, Malformed> {
        Field::get(wire.counts)
    }
}

impl Field<Vec<pb::SoftLimit>> for BTreeMap<Resource, LimitValue> {
    fn put(&self) -> Vec<pb::SoftLimit> {
        self.iter()
            .map(|(resource, value)| pb::SoftLimit {
                resource: resource.put(),
                at: match value {
                    LimitValue::At(n) => Some(*n),
                    LimitValue::Unlimited => None,
                },
            })
            .collect()
    }
    fn get(wire: Vec<pb::SoftLimit>) -> Result<Self, Malformed> {
        wire.into_iter()
            .map(|limit| {
                Ok((Resource::get(limit.resource)?, limit.at.map_or(LimitValue::Unlimited, LimitValue::At)))
            })
            .collect()
    }
}

impl Field<pb::MemoryRequest> for MemoryRequest {
    fn put(&self) -> pb::MemoryRequest {
        use pb::memory_request::Amount;
        pb::MemoryRequest {
            amount: match self {
                MemoryRequest::Default => None,
                MemoryRequest::PerNode(n) => Some(Amount::PerNode(*n)),
                MemoryRequest::PerCpu(n) => Some(Amount::PerCpu(*n)),
                MemoryRequest::PerGpu(n) => Some(Amount::PerGpu(*n)),
            },
        }
    }
    fn get(wire: pb::MemoryRequest) -> Result<Self, Malformed> {
        use pb::memory_request::Amount;
        Ok(match wire.amount {
            None => MemoryRequest::Default,
            Some(Amount::PerNode(n)) => MemoryRequest::PerNode(n),
            Some(Amount::PerCpu(n)) => MemoryRequest::PerCpu(n),
            Some(Amount::PerGpu(n)) => MemoryRequest::PerGpu(n),
        })
    }
}

impl Field<pb::TimeLimit> for TimeLimit {
    fn put(&self) -> pb::TimeLimit {
        pb::TimeLimit {
            minutes: match self {
                TimeLimit::Minutes(n) => Some(*n),
                TimeLimit::Unlimited => None,
            },
        }
    }
    fn get(wire: pb::TimeLimit) -> Result<Self, Malformed> {
        Ok(wire.minutes.map_or(TimeLimit::Unlimited, TimeLimit::Minutes))
    }
}

impl Field<pb::Distribution> for Distribution {
    fn put(&self) -> pb::Distribution {
        use pb::distribution::Kind;
        let (kind, size, nodes) = match self {
            Distribution::Block => (Kind::Block, 0, Vec::new()),
            Distribution::Cyclic => (Kind::Cyclic, 0, Vec::new()),
            Distribution::Plane(size) => (Kind::Plane, *size, Vec::new()),
            Distribution::Arbitrary(list) => (Kind::Arbitrary, 0, list.put()),
        };
        pb::Distribution { kind: kind as i32, size, nodes }
    }

    fn get(wire: pb::Distribution) -> Result<Self, Malformed> {
        use pb::distribution::Kind;
        Ok(match Kind::try_from(wire.kind) {
            Ok(Kind::Block) => Distribution::Block,
            Ok(Kind::Cyclic) => Distribution::Cyclic,
            Ok(Kind::Plane) => Distribution::Plane(wire.size),
            Ok(Kind::Arbitrary) => Distribution::Arbitrary(Field::get(wire.nodes)?),
            _ => return Err(Malformed::new("not a known distribution of tasks")),
        })
    }
}

impl Field<Option<pb::Distribution>> for Distribution {
    fn put(&self) -> Option<pb::Distribution> {
        Some(self.put())
    }

    fn get(wire: Option<pb::Distribution>) -> Result<Self, Malformed> {
        wire.map_or(Ok(Distribution::Block), Field::get)
    }
}

impl Field<Option<pb::DeviceRequest>> for DeviceRequest {
    fn put(&self) -> Option<pb::DeviceRequest> {
        let DeviceRequest { total, per_task, per_socket, cpus_per_gpu, tasks_per_gpu, nearness } = self;
        (!self.is_empty()).then(|| pb::DeviceRequest {
            total: total.put(),
            per_task: per_task.put(),
            per_socket: per_socket.put(),
            cpus_per_gpu: *cpus_per_gpu,
            tasks_per_gpu: *tasks_per_gpu,
            nearness: nearness.put(),
        })
    }

    /// Those of earlier versions say nothing of it.
    fn get(wire: Option<pb::DeviceRequest>) -> Result<Self, Malformed> {
        let Some(wire) = wire else { return Ok(DeviceRequest::default()) };
        Ok(DeviceRequest {
            total: Field::get(wire.total)?,
            per_task: Field::get(wire.per_task)?,
            per_socket: Field::get(wire.per_socket)?,
            cpus_per_gpu: wire.cpus_per_gpu,
            tasks_per_gpu: wire.tasks_per_gpu,
            nearness: Field::get(wire.nearness)?,
        })
    }
}

impl Field<pb::ResolvedImage> for Box<ResolvedImage> {
    fn put(&self) -> pb::ResolvedImage {
        (**self).put()
    }

    fn get(wire: pb::ResolvedImage) -> Result<Self, Malformed> {
        ResolvedImage::get(wire).map(Box::new)
    }
}

impl Field<pb::ResolvedImage> for ResolvedImage {
    fn put(&self) -> pb::ResolvedImage {
        use pb::resolved_image::Kind;
        pb::ResolvedImage {
            kind: Some(match self {
                ResolvedImage::Manifest { source, digest, insecure, indexes, pin } => {
                    Kind::Manifest(pb::ManifestImage {
                        source: source.clone(),
                        digest: digest.clone(),
                        insecure: *insecure,
                        indexes: indexes.clone(),
                        pin: pin.put(),
                    })
                }
                ResolvedImage::RootDir { path } => Kind::RootDir(path.put()),
                ResolvedImage::Host => Kind::Host(pb::HostRoot {}),
                ResolvedImage::Kept => Kind::Kept(pb::KeptRoot {}),
            }),
        }
    }
    fn get(wire: pb::ResolvedImage) -> Result<Self, Malformed> {
        use pb::resolved_image::Kind;
        match wire.kind {
            Some(Kind::Manifest(pb::ManifestImage { source, digest, insecure, indexes, pin })) => {
                let pin = Field::get(pin)?;
                Ok(ResolvedImage::Manifest { source, digest, insecure, indexes, pin })
            }
            Some(Kind::RootDir(path)) => Ok(ResolvedImage::RootDir { path: ByteStr(path) }),
            Some(Kind::Host(pb::HostRoot {})) => Ok(ResolvedImage::Host),
            Some(Kind::Kept(pb::KeptRoot {})) => Ok(ResolvedImage::Kept),
            None => Err(Malformed::new("not a known kind of image")),
        }
    }
}

impl Field<pb::FilePin> for FilePin {
    fn put(&self) -> pb::FilePin {
        let FilePin { inode, size, modified } = *self;
        pb::FilePin { inode, size, modified }
    }

    fn get(wire: pb::FilePin) -> Result<Self, Malformed> {
        let pb::FilePin { inode, size, modified } = wire;
        Ok(FilePin { inode, size, modified })
    }
}

impl Field<pb::ReceiveTimes> for (i64, i64) {
    fn put(&self) -> pb::ReceiveTimes {
        pb::ReceiveTimes { accessed: self.0, modified: self.1 }
    }
    fn get(wire: pb::ReceiveTimes) -> Result<Self, Malformed> {
        Ok((wire.accessed, wire.modified))
    }
}

impl Field<pb::RankRange> for (u32, u32) {
    fn put(&self) -> pb::RankRange {
        pb::RankRange { first: self.0, last: self.1 }
    }
    fn get(wire: pb::RankRange) -> Result<Self, Malformed> {
        Ok((wire.first, wire.last))
    }
}

impl Field<pb::ArrayRange> for (u32, u32, u32) {
    fn put(&self) -> pb::ArrayRange {
        pb::ArrayRange { first: self.0, last: self.1, step: self.2 }
    }
    fn get(wire: pb::ArrayRange) -> Result<Self, Malformed> {
        Ok((wire.first, wire.last, wire.step))
    }
}

impl Field<pb::JobSelector> for JobSelector {
    fn put(&self) -> pb::JobSelector {
        use pb::job_selector::Kind;
        pb::JobSelector {
            kind: Some(match self {
                JobSelector::Job(job) => Kind::Job(job.0),
                JobSelector::Task(array, task) => {
                    Kind::Task(pb::TaskSelector { array: array.0, task: *task })
                }
                JobSelector::Sluid(sluid) => Kind::Sluid(sluid.0),
                JobSelector::Component(leader, offset) => {
                    Kind::Component(pb::ComponentSelector { leader: leader.0, offset: *offset })
                }
                JobSelector::Tasks(array, tasks) => {
                    Kind::Tasks(pb::TasksSelector { array: array.0, tasks: tasks.put() })
                }
            }),
        }
    }
    fn get(wire: pb::JobSelector) -> Result<Self, Malformed> {
        use pb::job_selector::Kind;
        match wire.kind {
            Some(Kind::Job(job)) => Ok(JobSelector::Job(Field::get(job)?)),
            Some(Kind::Sluid(sluid)) => Ok(JobSelector::Sluid(Field::get(sluid)?)),
            Some(Kind::Component(c)) => Ok(JobSelector::Component(Field::get(c.leader)?, c.offset)),
            Some(Kind::Task(t)) => Ok(JobSelector::Task(Field::get(t.array)?, t.task)),
            Some(Kind::Tasks(t)) => Ok(JobSelector::Tasks(Field::get(t.array)?, required(t.tasks)?)),
            None => Err(Malformed::new("names no job")),
        }
    }
}

impl Field<pb::TaskList> for Vec<u32> {
    fn put(&self) -> pb::TaskList {
        pb::TaskList { tasks: self.clone() }
    }
    fn get(wire: pb::TaskList) -> Result<Self, Malformed> {
        Ok(wire.tasks)
    }
}

impl Field<pb::Program> for Program {
    fn put(&self) -> pb::Program {
        use pb::program::Kind;
        pb::Program {
            kind: Some(match self {
                Program::Script { text, args } => {
                    Kind::Script(pb::BatchScript { text: text.put(), args: args.put() })
                }
                Program::Argv(argv) => Kind::Argv(pb::ArgvProgram { argv: argv.put() }),
                Program::LoginShell => Kind::LoginShell(pb::LoginShell {}),
            }),
        }
    }
    fn get(wire: pb::Program) -> Result<Self, Malformed> {
        use pb::program::Kind;
        match wire.kind {
            Some(Kind::Script(script)) => {
                let BatchScript { text, args } = Field::get(script)?;
                Ok(Program::Script { text, args })
            }
            Some(Kind::Argv(program)) => Ok(Program::Argv(Field::get(program.argv)?)),
            Some(Kind::LoginShell(pb::LoginShell {})) => Ok(Program::LoginShell),
            None => Err(Malformed::new("not a known kind of program")),
        }
    }
}

impl Field<pb::TaskExit> for (u32, ExitStatus) {
    fn put(&self) -> pb::TaskExit {
        pb::TaskExit { task: self.0, status: self.1.put() }
    }
    fn get(wire: pb::TaskExit) -> Result<Self, Malformed> {
        Ok((wire.task, Field::get(wire.status)?))
    }
}

impl Field<pb::StepPhase> for StepPhase {
    fn put(&self) -> pb::StepPhase {
        use pb::step_phase::Kind;
        pb::StepPhase {
            kind: Some(match self {
                StepPhase::Preparing(percent) => Kind::Preparing(pb::Preparing { percent: percent.put() }),
                StepPhase::Starting => Kind::Starting(pb::Starting {}),
                StepPhase::Running => Kind::Running(pb::Running {}),
                StepPhase::Exited(exit) => Kind::Exited(exit.put()),
            }),
        }
    }
    fn get(wire: pb::StepPhase) -> Result<Self, Malformed> {
        use pb::step_phase::Kind;
        match wire.kind {
            Some(Kind::Preparing(p)) => Ok(StepPhase::Preparing(Field::get(p.percent)?)),
            Some(Kind::Starting(pb::Starting {})) => Ok(StepPhase::Starting),
            Some(Kind::Running(pb::Running {})) => Ok(StepPhase::Running),
            Some(Kind::Exited(exit)) => Ok(StepPhase::Exited(Field::get(exit)?)),
            None => Err(Malformed::new("not a known phase of a step")),
        }
    }
}

/// Reasons without data: the same name on both sides.
macro_rules! reasons {
    ($($plain:ident),+ $(,)?) => {
        impl Field<pb::Reason> for Reason {
            fn put(&self) -> pb::Reason {
                use pb::ReasonKind as Kind;
                let plain = |kind: Kind| pb::Reason { kind: kind as i32, ..Default::default() };
                match self {
                    $(Reason::$plain => plain(Kind::$plain),)+
                    Reason::ReqNodeNotAvail(text) => {
                        pb::Reason { text: text.clone(), ..plain(Kind::ReqNodeNotAvail) }
                    }
                    Reason::LaunchFailed(text) => {
                        pb::Reason { text: text.clone(), ..plain(Kind::LaunchFailed) }
                    }
                    Reason::ImagePull(percent) => {
                        pb::Reason { number: percent.map(i32::from), ..plain(Kind::ImagePull) }
                    }
                    Reason::RaisedSignal(n) => pb::Reason { number: Some(*n), ..plain(Kind::RaisedSignal) },
                }
            }
            fn get(wire: pb::Reason) -> Result<Self, Malformed> {
                use pb::ReasonKind as Kind;
                let Ok(kind) = Kind::try_from(wire.kind) else {
                    return Err(Malformed::new("not a known reason"));
                };
                Ok(match kind {
                    $(Kind::$plain => Reason::$plain,)+
                    Kind::ReqNodeNotAvail => Reason::ReqNodeNotAvail(wire.text),
                    Kind::LaunchFailed => Reason::LaunchFailed(wire.text),
                    Kind::ImagePull => Reason::ImagePull(
                        wire.number
                            .map(u8::try_from)
                            .transpose()
                            .map_err(|_| Malformed::new("a percentage is 0 to 100"))?,
                    ),
                    Kind::RaisedSignal => Reason::RaisedSignal(
                        wire.number.ok_or(Malformed::new("a signal's number is missing"))?,
                    ),
                })
            }
        }
    };
}
reasons!(
    None,
    Priority,
    Resources,
    BeginTime,
    JobHeldUser,
    JobHeldAdmin,
    JobArrayTaskLimit,
    PartitionDown,
    PartitionInactive,
    PartitionNodeLimit,
    PartitionTimeLimit,
    NonZeroExitCode,
    TimeLimit,
    OutOfMemory,
    NodeDown,
    DependencyNeverSatisfied,
    Dependency,
    Restored,
    GpusIdle,
);
