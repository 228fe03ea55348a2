//! A job in memory, and how its rows are told to people.

use crate::cluster::leapt_since;
use crate::parts::Parts;
use crate::rows::{Hold, JobRow, Leap, Phase, ROW_VERSION, Run, SpecRow, StepNode, StepRow, step_work_dir};
use crate::spec::Spec;
use crate::tasks::Tasks;
use berth_model::devices::{self, add, gpus, sum};
use berth_model::distribution::Distribution;
use berth_model::ids::{NodeName, StepId, StepKey};
use berth_model::launch::{Layout, NodeShare, Usage};
use berth_model::record::{JobInfo, PullInfo, StepInfo};
use berth_model::spec::Identity;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::time::{Span, Time};
use berth_model::tres::{GresKey, Tres};
use imbl::{OrdMap, Vector};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How far a step is on one node, as last heard. Not durable: agents tell it again when they connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Its Start was sent at this time (or is to be sent), and nothing was heard of it yet.
    Sent(Time),
    /// The image is being made present.
    Preparing(Option<u8>),
    /// The supervisor is at work.
    Starting,
    /// Tasks run.
    Running,
}

/// A job as the core holds it. Snapshots share it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) spec: Arc<Spec>,
    pub(crate) row: JobRow,
    /// Steps of the current attempt.
    pub(crate) steps: OrdMap<StepId, Arc<StepRow>>,
    /// How far the steps that have not ended are, by place in their `nodes`.
    pub(crate) progress: OrdMap<StepId, Vector<Progress>>,
    /// Why it was not started when it was last tried; `None` means that its turn has not come.
    pub(crate) wait: Option<Reason>,
    /// Since when its user was warned that its GPUs are idle, and with which words.
    pub(crate) idle: Option<(Time, Arc<str>)>,
}

impl Job {
    /// One of which nothing has run yet.
    pub(crate) fn new(spec: Arc<Spec>, row: JobRow) -> Job {
        Job { spec, row, steps: OrdMap::new(), progress: OrdMap::new(), wait: None, idle: None }
    }

    pub(crate) fn run(&self) -> Option<&Run> {
        match &self.row.phase {
            Phase::Pending => None,
            Phase::Running(run) | Phase::Ending { run, .. } => Some(run),
            Phase::Ended { run, .. } => run.as_ref(),
        }
    }

    /// By how much later its limit is reached than its start and its limit say.
    pub(crate) fn leapt(&self, leaps: &[Leap]) -> Span {
        match &self.row.phase {
            Phase::Running(run) if run.limit.is_some() => leapt_since(leaps, run.started),
            _ => Span(0),
        }
    }

    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.row.phase, Phase::Pending)
    }

    pub(crate) fn info(&self) -> JobInfo {
        let steps: Vec<&StepRow> = self.steps.values().map(|s| &**s).collect();
        self.as_it_is(assemble(View::Queue, self.spec.row(), &self.row, &steps))
    }

    /// What a list shows of the job.
    pub(crate) fn brief(&self) -> JobInfo {
        let info = assemble(View::Queue, self.spec.brief(), &self.row, &[]);
        let (groups, home, shell) = Default::default();
        let identity = Identity { groups, home, shell, ..info.identity };
        self.as_it_is(JobInfo { shares: Vec::new(), identity, sluid: None, ..info })
    }

    /// Why a waiting job does not run.
    pub(crate) fn waits_for(&self) -> Reason {
        match self.row.hold {
            Some(Hold::User) => Reason::JobHeldUser,
            Some(Hold::Admin) => Reason::JobHeldAdmin,
            None => self.wait.clone().unwrap_or(Reason::Priority),
        }
    }

    /// Adds what is known beside the rows.
    fn as_it_is(&self, mut info: JobInfo) -> JobInfo {
        if self.is_pending() {
            info.reason = self.waits_for();
        }
        if matches!(self.row.phase, Phase::Running(_)) {
            info.notices.extend(self.idle.iter().map(|(_, said)| said.to_string()));
            let first = self.progress.iter().next().and_then(|(_, p)| p.front());
            // A step on the node's own filesystem has nothing to prepare that a user would wait for.
            let own = self.steps.values().next().and_then(|s| s.spec.as_ref()?.container.as_ref());
            let image = own.or(self.spec.spec.container.as_ref()).is_some();
            if let (Some(Progress::Preparing(percent)), 1, true) = (first, self.steps.len(), image) {
                info.state = JobState::Configuring;
                info.reason = Reason::ImagePull(*percent);
            }
        }
        info
    }
}

/// For whom a record is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// `squeue` and `scontrol`: a job whose nodes are being cleaned is COMPLETING.
    Queue,
    /// `sacct`: such a job has ended as it ended.
    Accounting,
}

impl JobRow {
    /// Whether nodes may be noted beside an earlier row of this job as those that it left: of its run on several nodes, or of one before.
    /// A row replaces them. Most jobs never have any, and cost a store no look for them.
    pub fn may_have_departures(&self) -> bool {
        let run = match &self.phase {
            Phase::Pending => None,
            Phase::Running(run) | Phase::Ending { run, .. } => Some(run),
            Phase::Ended { run, .. } => run.as_ref(),
        };
        self.attempt.0 > 0 || run.is_some_and(|run| run.allocation.nodes.len() > 1)
    }

    /// The base state: what the job will be remembered as, without COMPLETING.
    pub fn base_state(&self) -> JobState {
        match &self.phase {
            Phase::Pending => JobState::Pending,
            Phase::Running(_) => JobState::Running,
            Phase::Ending { requeue: true, .. } => JobState::Pending,
            Phase::Ending { result, .. } | Phase::Ended { result, .. } => result.state,
        }
    }

    /// Whether this is an array's record from which every task was taken: it is kept for what its tasks
    /// share, and shown to nobody.
    pub fn is_empty_array(&self) -> bool {
        matches!(&self.tasks, Tasks::Range(set) if set.is_empty())
    }

    /// When the run started.
    pub fn started(&self) -> Option<Time> {
        match &self.phase {
            Phase::Pending => None,
            Phase::Running(run) | Phase::Ending { run, .. } => Some(run.started),
            Phase::Ended { run, .. } => run.as_ref().map(|r| r.started),
        }
    }

    /// When it ended.
    pub fn ended(&self) -> Option<Time> {
        match &self.phase {
            Phase::Pending | Phase::Running(_) => None,
            Phase::Ending { result, .. } | Phase::Ended { result, .. } => Some(result.ended),
        }
    }
}

impl SpecRow {
    /// What the job needs in all, before it is known where it runs.
    pub fn requested(&self) -> Tres {
        use berth_model::spec::MemoryRequest;
        let r = &self.spec.resources;
        let nodes = u64::from(r.min_nodes.max(1));
        let tasks = match (r.tasks, r.tasks_per_node) {
            (Some(n), _) => u64::from(n),
            (None, Some(per_node)) => nodes.saturating_mul(per_node.into()),
            (None, None) => nodes,
        };
        let each: BTreeMap<GresKey, u64> =
            r.gres.iter().map(|(k, n)| (k.clone(), n.saturating_mul(nodes))).collect();
        let of_tasks = r.devices.for_tasks(u32::try_from(tasks).unwrap_or(u32::MAX));
        // Of how many sockets there will be cores is not known: one on each node at least.
        let of_sockets: BTreeMap<GresKey, u64> =
            r.devices.per_socket.iter().map(|(k, n)| (k.clone(), n.saturating_mul(nodes))).collect();
        let wanted = sum(&sum(&each, &of_tasks), &sum(&r.devices.total, &of_sockets));
        let by_gpus = gpus(&wanted).saturating_mul(r.devices.cpus_per_gpu.unwrap_or(0).into());
        let cpu = tasks.saturating_mul(r.cpus_per_task.unwrap_or(1).into()).max(by_gpus);
        let mem = match r.memory {
            MemoryRequest::Default => 0,
            MemoryRequest::PerNode(mib) => nodes.saturating_mul(mib),
            MemoryRequest::PerCpu(mib) => cpu.saturating_mul(mib),
            MemoryRequest::PerGpu(mib) => gpus(&wanted).saturating_mul(mib),
        };
        let mut gres = wanted.clone();
        // As in what is allocated, the amount without a type is the sum.
        for (key, n) in wanted.iter().filter(|(key, _)| key.kind.is_some()) {
            add(&mut gres, GresKey { name: key.name.clone(), kind: None }, *n);
        }
        Tres { cpu, mem, node: nodes, gres }
    }
}

/// What the shares amount to in all.
pub(crate) fn total<'a>(shares: impl IntoIterator<Item = &'a NodeShare>) -> Tres {
    let mut sum = Tres::default();
    for share in shares {
        sum.node += 1;
        sum.cpu += share.cpus.len() as u64;
        sum.mem = sum.mem.saturating_add(share.memory);
        for device in &share.gres {
            let part = if devices::is_share(&device.name) { u64::from(devices::shares(device)) } else { 1 };
            let key = GresKey { name: device.name.clone(), kind: None };
            *sum.gres.entry(key).or_default() += part;
            if device.kind.is_some() {
                let key = GresKey { name: device.name.clone(), kind: device.kind.clone() };
                *sum.gres.entry(key).or_default() += part;
            }
        }
    }
    sum
}

fn cpu_count(share: &NodeShare) -> u32 {
    u32::try_from(share.cpus.len()).unwrap_or(u32::MAX)
}

impl Run {
    /// Nodes, tasks and CPUs of the whole allocation.
    pub(crate) fn layout(&self) -> Layout {
        Layout {
            nodes: self.allocation.nodes.clone(),
            // Only how many there are on each means something: what runs is numbered by its step.
            tasks: Distribution::Block.number(&self.allocation.nodes, &self.allocation.tasks),
            cpus: self.allocation.shares.iter().map(cpu_count).collect(),
        }
    }

    /// What the run has on a node.
    pub(crate) fn share(&self, node: &berth_model::NodeName) -> Option<&NodeShare> {
        let nodes = &self.allocation.nodes;
        // They are in order, but for those of records of an earlier version.
        let at = nodes.binary_search(node).ok().or_else(|| nodes.iter().position(|n| n == node))?;
        self.allocation.shares.get(at)
    }
}

impl StepRow {
    /// A step of which nothing is known but which it is and since when.
    pub(crate) fn bare(key: StepKey, started: Time) -> StepRow {
        StepRow {
            version: ROW_VERSION,
            key,
            name: String::new(),
            spec: None,
            nodes: Parts::default(),
            consumes: false,
            started,
            time_limit: None,
            ending: None,
            cancelled_by: None,
            result: None,
            distribution: Distribution::Block,
            login: false,
            het: None,
        }
    }

    /// What the step may use on one of its nodes.
    pub(crate) fn share<'a>(&'a self, node: &'a StepNode, run: &'a Run) -> Option<&'a NodeShare> {
        node.share.as_ref().or_else(|| run.share(&node.node))
    }

    /// Nodes, tasks and CPUs of the step.
    pub(crate) fn layout(&self, run: Option<&Run>) -> Layout {
        let nodes: Vec<NodeName> = self.nodes.iter().map(|n| n.node.clone()).collect();
        let counts: Vec<u32> = self.nodes.iter().map(|n| n.tasks).collect();
        let share = |n: &StepNode| {
            n.share.as_ref().map(cpu_count).or_else(|| run.and_then(|r| r.share(&n.node)).map(cpu_count))
        };
        Layout {
            tasks: self.distribution.number(&nodes, &counts),
            nodes,
            cpus: self.nodes.iter().map(|n| share(n).unwrap_or(0)).collect(),
        }
    }
}

/// A job as the commands print it, from its rows: those of the current attempt's steps, in order.
pub fn job_info(view: View, spec: &SpecRow, row: &JobRow, steps: &[&StepRow]) -> JobInfo {
    assemble(view, spec.clone(), row, steps)
}

fn assemble(view: View, spec: SpecRow, row: &JobRow, steps: &[&StepRow]) -> JobInfo {
    let run = match &row.phase {
        Phase::Pending => None,
        Phase::Running(run) | Phase::Ending { run, .. } => Some(run),
        Phase::Ended { run, .. } => run.as_ref(),
    };
    let result = match &row.phase {
        Phase::Pending | Phase::Running(_) => None,
        Phase::Ending { result, .. } | Phase::Ended { result, .. } => Some(result),
    };
    let (array, task, waiting) = match &row.tasks {
        Tasks::None => (None, None, None),
        Tasks::One(i) => (Some(row.spec_of), Some(*i), None),
        Tasks::Range(set) => {
            let max = spec.spec.array.as_ref().and_then(|a| a.max_running);
            (Some(row.spec_of), None, Some(set.to_spec(max)))
        }
    };
    let state = match (&row.phase, view) {
        (Phase::Ending { .. }, View::Queue) => JobState::Completing,
        _ => row.base_state(),
    };
    let reason = match (&row.phase, row.hold) {
        (Phase::Pending, Some(Hold::User)) => Reason::JobHeldUser,
        (Phase::Pending, Some(Hold::Admin)) => Reason::JobHeldAdmin,
        _ => result.map(|r| r.reason.clone()).unwrap_or_default(),
    };
    JobInfo {
        id: row.job,
        array,
        task,
        waiting,
        requested: spec.requested(),
        steps: steps.iter().map(|s| step_info(&spec, run, s)).collect(),
        spec: spec.spec,
        identity: (*spec.identity).clone(),
        partition: spec.partition.to_string(),
        time_limit: spec.time_limit,
        state,
        reason,
        attempt: row.attempt,
        priority: if row.hold.is_some() { 0 } else { row.priority },
        allocated: run.map(|r| total(&r.allocation.shares)).unwrap_or_default(),
        layout: run.map(Run::layout).unwrap_or_default(),
        shares: run.map(|r| r.allocation.shares.clone()).unwrap_or_default(),
        exit: result.map(|r| r.exit).unwrap_or_default(),
        derived_exit: result.map(|r| r.derived).unwrap_or_default(),
        cancelled_by: result.and_then(|r| r.cancelled_by),
        submitted: spec.submitted,
        eligible: row.eligible,
        started: run.map(|r| r.started),
        ended: result.map(|r| r.ended),
        leapt: Span(0),
        notices: Vec::new(),
        sluid: row.sluid,
    }
}

fn step_info(spec: &SpecRow, run: Option<&Run>, step: &StepRow) -> StepInfo {
    let mut usage = Usage::default();
    for exit in step.nodes.iter().filter_map(|n| n.exit.as_ref()) {
        usage.merge(&exit.usage);
    }
    let shares = step.nodes.iter().filter_map(|n| run.map_or(n.share.as_ref(), |run| step.share(n, run)));
    let own = step.spec.as_ref().and_then(|s| s.container.as_ref());
    let container = own.or(spec.spec.container.as_ref());
    StepInfo {
        id: step.key.step,
        name: step.name.clone(),
        attempt: step.key.attempt,
        state: step.result.as_ref().map_or(JobState::Running, |r| r.state),
        image: container.map(|c| c.image.typed.clone()),
        digest: step
            .nodes
            .iter()
            .find_map(|n| n.pull.as_ref()?.digest.as_deref())
            .or_else(|| container?.image.digest())
            .map(str::to_string),
        pull: pull_info(run, step),
        allocated: total(shares),
        layout: step.layout(run),
        exit: step.result.as_ref().map_or(ExitStatus::OK, |r| r.exit),
        message: step.result.as_ref().and_then(|r| r.message.clone()),
        started: step.started,
        ended: step.result.as_ref().map(|r| r.ended),
        usage,
        time_limit: step.time_limit,
        work_dir: step_work_dir(step, &spec.spec),
        cancelled_by: step.cancelled_by,
        het: step.het.as_deref().filter(|_| step.result.is_none()).cloned(),
    }
}

/// What a step's image took, once all of its nodes have said it.
fn pull_info(run: Option<&Run>, step: &StepRow) -> Option<PullInfo> {
    let gpus = |share: &NodeShare| share.gres.iter().filter(|d| d.name == "gpu").count();
    let all = || run.map(|run| run.allocation.shares.iter().map(gpus).sum::<usize>());
    let one = |part: &StepNode| {
        let pull = part.pull.as_ref()?;
        let waiting = match step.key.step {
            // Before the script runs nothing of the job does, on all of its nodes.
            StepId::Batch => all(),
            _ => run.map_or(part.share.as_ref(), |run| step.share(part, run)).map(gpus),
        };
        let waiting = i64::try_from(waiting.unwrap_or(0)).unwrap_or(i64::MAX);
        let gpu_wait = Span(pull.took.0.saturating_mul(waiting));
        Some(PullInfo { took: pull.took, bytes: pull.bytes, hit: pull.hit, gpu_wait })
    };
    let parts: Option<Vec<PullInfo>> = step.nodes.iter().map(one).collect();
    parts?.into_iter().reduce(PullInfo::and)
}
