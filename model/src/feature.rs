//! What an agent has to know for what is asked of a node. An agent of an earlier version reads past words that it does not know, and would run a
//! job as if they were not there: so each says in its Hello what it knows, and none gets what needs more.
//!
//! Whoever adds a field to [`StepLaunch`](crate::launch::StepLaunch) that an earlier agent must not read past adds a feature here. Names never change.

use crate::devices::MPS;
use crate::gres::Wanted;
use crate::mpi::MpiType;
use crate::spec::{ContainerSpec, JobSpec, ResourceRequest, SrunProlog, StepSpec};

/// What agents call that they pass words of the controller on to steps ([`crate::link::ToAgent::Say`]): no job asks for it.
pub const SAY: &str = "say";
/// What agents call that they are told when their node is put back into service ([`crate::link::ToAgent::Resumed`]).
pub const RESUMED: &str = "resumed";

/// What agents call that they say which steps have not ended ([`crate::link::ToAgent::LookForEnds`]): no job asks for it.
pub const LOOK_FOR_ENDS: &str = "look-for-ends";

/// What agents call it that they can be asked, as gateways, what a name means, and to fetch an image without a job: no job asks for it.
pub const GATEWAY: &str = "gateway";

/// What agents call that they take Starts of wide steps from other nodes, and carry them ([`crate::carry`]): no job asks for it.
pub const CARRY: &str = "carry";

/// What agents call that they say which signals they have passed on ([`crate::link::FromAgent::Signalled`]): no job asks for it.
pub const SIGNALLED: &str = "signalled";

/// Something that agents did not always know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// `--cpu-bind`.
    CpuBind,
    /// `--mem-bind`.
    MemBind,
    /// `-m` with a layout over sockets.
    Sockets,
    /// `--overcommit`.
    Overcommit,
    /// `--multi-prog`.
    MultiProg,
    /// `sbcast`.
    Receive,
    /// `--fabric`.
    Fabric,
    /// Jobs of several components.
    Het,
    /// `--gpu-bind`, and what follows from `--gpus-per-task`.
    GpuBind,
    /// `--mpi=pmix`.
    Pmix,
    /// `--gres=mps`.
    Mps,
    /// Images that are named inside containers: what the first node finds is what all have.
    Pinned,
    /// `srun --prolog`: tasks wait for the word of their client.
    SrunProlog,
    /// `--lost-after`: runs with deadlines that their agents renew.
    LostAfter,
    /// `--x11` with a display that the step's client carries.
    X11,
}

impl Feature {
    /// All of them.
    pub const ALL: [Feature; 15] = [
        Feature::CpuBind,
        Feature::MemBind,
        Feature::Sockets,
        Feature::Overcommit,
        Feature::MultiProg,
        Feature::Receive,
        Feature::Fabric,
        Feature::Het,
        Feature::GpuBind,
        Feature::Pmix,
        Feature::Mps,
        Feature::Pinned,
        Feature::SrunProlog,
        Feature::LostAfter,
        Feature::X11,
    ];

    /// What agents call it.
    pub fn name(self) -> &'static str {
        match self {
            Feature::CpuBind => "cpu-bind",
            Feature::MemBind => "mem-bind",
            Feature::Sockets => "socket-layouts",
            Feature::Overcommit => "overcommit",
            Feature::MultiProg => "multi-prog",
            Feature::Receive => "receive",
            Feature::Fabric => "fabric",
            Feature::Het => "components",
            Feature::GpuBind => "gpu-bind",
            Feature::Pmix => "pmix",
            Feature::Mps => "mps",
            Feature::Pinned => "pinned-names",
            Feature::SrunProlog => "srun-prolog",
            Feature::LostAfter => "lost-after",
            Feature::X11 => "x11-carried",
        }
    }

    /// What users call it.
    pub fn option(self) -> &'static str {
        match self {
            Feature::CpuBind => "--cpu-bind",
            Feature::MemBind => "--mem-bind",
            Feature::Sockets => "--distribution over sockets",
            Feature::Overcommit => "--overcommit",
            Feature::MultiProg => "--multi-prog",
            Feature::Receive => "sbcast",
            Feature::Fabric => "--fabric",
            Feature::Het => "jobs of several components",
            Feature::GpuBind => "--gpu-bind",
            Feature::Pmix => "--mpi=pmix",
            Feature::Mps => "--gres=mps",
            Feature::Pinned => "images named inside containers",
            Feature::SrunProlog => "srun --prolog",
            Feature::LostAfter => "--lost-after",
            Feature::X11 => "--x11",
        }
    }

    /// What this version knows, as it says it.
    pub fn known() -> Vec<String> {
        Feature::ALL
            .iter()
            .map(|feature| feature.name())
            .chain([SAY, LOOK_FOR_ENDS, RESUMED, GATEWAY, CARRY, SIGNALLED])
            .map(str::to_string)
            .collect()
    }
}

fn names_mps(wanted: &Wanted) -> bool {
    wanted.keys().any(|key| key.name == MPS)
}

fn of_resources(asked: &ResourceRequest) -> impl Iterator<Item = Feature> {
    let sockets = asked.sockets.is_some().then_some(Feature::Sockets);
    let fabric = asked.fabric.is_some().then_some(Feature::Fabric);
    let mps = names_mps(&asked.gres) || names_mps(&asked.devices.per_task);
    let mps = mps.then_some(Feature::Mps);
    sockets.into_iter().chain(asked.overcommit.then_some(Feature::Overcommit)).chain(fabric).chain(mps)
}

fn of_container(container: &Option<ContainerSpec>) -> Option<Feature> {
    container.as_ref().filter(|container| container.image.resolved.is_none()).map(|_| Feature::Pinned)
}

/// What nodes must know for a job, with the step that it begins with.
pub fn needed_by_job(job: &JobSpec, first: Option<&StepSpec>) -> Vec<Feature> {
    let mut needs: Vec<Feature> = of_resources(&job.resources).collect();
    needs.extend(job.het.map(|_| Feature::Het));
    needs.extend(job.lost_after.map(|_| Feature::LostAfter));
    needs.extend(of_container(&job.container));
    needs.extend(first.into_iter().flat_map(needed_by_step));
    needs.sort_unstable();
    needs.dedup();
    needs
}

/// What nodes must know for a step.
pub fn needed_by_step(step: &StepSpec) -> Vec<Feature> {
    let needs = [
        (step.cpu_bind.is_some(), Feature::CpuBind),
        (step.mem_bind.is_some(), Feature::MemBind),
        (step.sockets.is_some(), Feature::Sockets),
        (step.overcommit, Feature::Overcommit),
        (!step.programs.is_empty(), Feature::MultiProg),
        (step.receive.is_some(), Feature::Receive),
        (step.fabric.is_some(), Feature::Fabric),
        (step.gpu_bind.is_some(), Feature::GpuBind),
        (step.mpi == Some(MpiType::Pmix), Feature::Pmix),
        (step.prolog == Some(SrunProlog::Own), Feature::SrunProlog),
        (step.x11.as_ref().is_some_and(|x11| x11.carried), Feature::X11),
        (step.gres.as_ref().is_some_and(names_mps) || names_mps(&step.devices.per_task), Feature::Mps),
    ];
    let needs = needs.into_iter().filter_map(|(asked, feature)| asked.then_some(feature));
    needs.chain(of_container(&step.container)).collect()
}
