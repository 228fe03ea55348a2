//! From a job, a step and a node to the Start that its agent gets.

use crate::cluster::leapt_since;
use crate::job::Job;
use crate::rows::{Allocation, Leap, Run, StepNode, StepRow};
use crate::store::PayloadKey;
use crate::tasks::Tasks;
use berth_model::carry::StartPart;
use berth_model::het::HetFacts;
use berth_model::ids::{NodeName, StepId, StepKey, Term};
use berth_model::launch::{ArrayPlace, JobFacts, Layout, NodeShare, Program, StepLaunch};
use berth_model::link::Start;
use berth_model::spec::{
    ContainerSpec, JobKind, MemoryRequest, OpenMode, ResolvedImage, StepSpec, TimeLimit,
};
use berth_model::time::{Span, Time};
use std::sync::Arc;

/// What every Start of this cluster has in common.
pub(crate) struct Common<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) term: Term,
    pub(crate) kill_wait: Span,
    pub(crate) now: Time,
    /// Steps of time on the word of the wall clock alone: what is left of a limit is counted without them.
    pub(crate) leaps: &'a [Leap],
    /// See [`crate::CoreConfig::told_within`].
    pub(crate) told_within: Span,
    /// When the agent last asked, by its own clock.
    pub(crate) asked: Option<Time>,
    /// The components of the job, where it is one of several.
    pub(crate) het: Option<HetFacts>,
    /// See [`StepLaunch::master`].
    pub(crate) master: Option<String>,
}

impl Common<'_> {
    /// What is left until then of what began at a time.
    fn left(&self, began: Time, end: Time) -> Span {
        (end + leapt_since(self.leaps, began)).since(self.now)
    }
}

/// Where the tasks of a step and of its job are: the same in the Starts of all its nodes, and as long as they are many.
#[derive(Clone, Debug)]
pub(crate) struct Layouts {
    step: Arc<Layout>,
    job: Arc<Layout>,
}

impl Layouts {
    pub(crate) fn of(run: &Run, step: &StepRow) -> Layouts {
        Layouts { step: Arc::new(step.layout(Some(run))), job: Arc::new(run.layout()) }
    }
}

/// What of a step's Start is the `at`-th node's alone. `asked`: when its agent last asked for renewals, by its own clock.
pub(crate) fn part(run: &Run, step: &StepRow, at: usize, asked: Option<Time>) -> Option<StartPart> {
    let here = step.nodes.get(at)?;
    let job_share = run.share(&here.node)?.clone();
    Some(StartPart {
        node: here.node.clone(),
        node_index: u32::try_from(at).ok()?.checked_add(step.het.as_ref().map_or(0, |het| het.first_node))?,
        share: here.share.clone().unwrap_or_else(|| job_share.clone()),
        job_share,
        // Of a node that never asked nobody knows what its clock shows: nothing starts there.
        lease: run.lease.map(|span| asked.unwrap_or_default() + span),
    })
}

/// The Start of a step on the `at`-th of its nodes, without script and environment, and where those are.
pub(crate) fn start(
    common: &Common<'_>,
    job: &Job,
    run: &Run,
    (step, layouts): (&StepRow, Layouts),
    at: usize,
) -> Option<(Start, PayloadKey)> {
    let StartPart { node, node_index, share, job_share, lease } = part(run, step, at, common.asked)?;
    let spec = &job.spec.spec;
    let own = step.spec.as_deref();
    let mut io = own.map_or_else(|| spec.io.clone(), |s| s.io.clone());
    if step.key.step == StepId::Batch && job.row.attempt.0 > 0 && io.open_mode.is_none() {
        io.open_mode = Some(OpenMode::Append);
    }
    let container = match own {
        Some(StepSpec { container: Some(own), .. }) => Some(own.clone()),
        Some(_) => spec.container.as_ref().map(ContainerSpec::of_a_step),
        None => spec.container.clone(),
    };
    let launch = StepLaunch {
        key: step.key,
        node_index,
        identity: (*job.spec.identity).clone(),
        job: facts(common, job, run, (job_share, layouts.job)),
        name: step.name.clone(),
        program: own.map_or_else(
            || Program::Script { text: Vec::new().into(), args: Vec::new() },
            |s| Program::Argv(s.argv.clone()),
        ),
        env: Vec::new(),
        user_env: own.is_none() && spec.user_env,
        work_dir: own.map_or_else(|| spec.work_dir.clone(), |s| s.work_dir.clone()),
        work_dir_explicit: own.is_some_and(|s| s.work_dir_explicit),
        io,
        container: container.filter(|c| !is_host(c)),
        limits: own.map_or_else(|| spec.limits.clone(), |s| s.limits.clone()),
        umask: own.map_or(spec.umask, |s| s.umask),
        pty: own.and_then(|s| s.pty),
        // Of a step in several components each part knows the whole: ranks, nodes and PMI are one.
        layout: step.het.as_ref().map_or(layouts.step, |het| Arc::new(het.layout.clone())),
        distribution: step.distribution.rule(),
        cpus_per_task: own.map_or(spec.resources.cpus_per_task, |s| s.cpus_per_task).unwrap_or(1),
        share,
        kill_on_bad_exit: own.is_some_and(|s| s.kill_on_bad_exit),
        wait_after_first_exit: own.and_then(|s| s.wait_after_first_exit),
        attached: own.is_some_and(|s| s.attached),
        kill_wait: common.kill_wait,
        enter: own.and_then(|s| s.enter.as_ref()).map(|e| e.step),
        mpi: own.and_then(|s| s.mpi),
        x11: own.and_then(|s| s.x11.clone()).filter(|x11| {
            let nodes = &run.allocation.nodes;
            let place = nodes.iter().position(|other| *other == node);
            place.is_some_and(|at| x11.nodes.takes(at, nodes.len()))
        }),
        node,
        pytorch: own.is_some_and(|s| s.pytorch),
        master: common.master.clone(),
        client_address: own.and_then(|s| s.client_address.clone()),
        task_prolog: own.map(|s| s.task_prolog.clone()).unwrap_or_default(),
        task_epilog: own.map(|s| s.task_epilog.clone()).unwrap_or_default(),
        cpu_bind: own.and_then(|s| s.cpu_bind.clone()),
        mem_bind: own.and_then(|s| s.mem_bind.clone()),
        gpu_bind: own.and_then(|s| s.gpu_bind.clone()),
        programs: own.map(|s| s.programs.clone()).unwrap_or_default(),
        overcommit: own.map_or(spec.resources.overcommit, |s| s.overcommit),
        fabric: own.and_then(|s| s.fabric).or(spec.resources.fabric),
        sockets: own.and_then(|s| s.sockets).or(spec.resources.sockets),
        receive: own.and_then(|s| s.receive.clone()),
        told_within: own.and_then(|s| s.prolog).map(|_| common.told_within),
    };
    let payload = match step.key.step {
        StepId::Batch => PayloadKey::Job(job.row.spec_of),
        id => PayloadKey::Step(job.row.job, id),
    };
    let step_end = match step.time_limit {
        Some(TimeLimit::Minutes(m)) => Some(step.started + Span::from_mins(i64::from(m))),
        _ => None,
    };
    let start = Start {
        term: common.term,
        launch,
        job_time_left: run.limit.map(|end| common.left(run.started, end)),
        step_time_left: step_end.map(|end| common.left(step.started, end)),
        warn: spec.warn_signal,
        lease,
        login: None,
    };
    Some((start, payload))
}

/// What a node is told of a job that may start there: as much of its first step's Start as its image needs, and where its
/// environment is. `None` where no image is to be fetched.
pub(crate) fn ahead(common: &Common<'_>, job: &Job, node: &NodeName) -> Option<(Start, PayloadKey)> {
    let first = job.spec.first_step.clone();
    let step = match job.spec.spec.kind {
        JobKind::Batch => StepId::Batch,
        JobKind::Run => StepId::Number(0),
        // What its steps will run in is not known.
        JobKind::Alloc => return None,
    };
    let nodes = vec![node.clone()];
    let allocation = Allocation { nodes, shares: vec![NodeShare::default()], tasks: vec![1] };
    let run = Run {
        allocation: Arc::new(allocation),
        started: common.now,
        limit: None,
        lease: None,
        imex_channel: None,
    };
    let key = StepKey { job: job.row.job, attempt: job.row.attempt, step };
    let part = StepNode { node: node.clone(), tasks: 1, share: None, pull: None, exit: None };
    let row = StepRow { spec: first, nodes: vec![part].into(), ..StepRow::bare(key, common.now) };
    let layouts = Layouts::of(&run, &row);
    let (mut start, payload) = start(common, job, &run, (&row, layouts), 0)?;
    start.launch.program = Program::Argv(Vec::new());
    start.launch.container.as_ref()?.image.digest()?;
    // The environment of a task is its array's, and that of a component the first one's.
    let payload = match (step, job.spec.spec.het) {
        (StepId::Batch, Some(het)) => PayloadKey::Job(het.leader),
        (StepId::Batch, None) => payload,
        (step, _) => PayloadKey::Step(job.row.spec_of, step),
    };
    Some((start, payload))
}

fn is_host(container: &ContainerSpec) -> bool {
    matches!(container.image.resolved, Some(ResolvedImage::Host))
}

fn facts(common: &Common<'_>, job: &Job, run: &Run, (share, layout): (NodeShare, Arc<Layout>)) -> JobFacts {
    let spec = &job.spec.spec;
    let r = &spec.resources;
    let array = match (&job.row.tasks, &spec.array) {
        (Tasks::One(task), Some(array)) => {
            let set = crate::tasks::TaskSet::new(array);
            Some(ArrayPlace {
                array: job.row.spec_of,
                task: *task,
                count: u32::try_from(set.len()).unwrap_or(u32::MAX),
                min: set.first().unwrap_or(*task),
                max: set.last().unwrap_or(*task),
                step: set.step(),
            })
        }
        _ => None,
    };
    JobFacts {
        kind: spec.kind,
        name: job.spec.name().to_string(),
        partition: job.spec.partition.to_string(),
        account: spec.account.clone(),
        cluster: common.cluster.to_string(),
        array,
        restarts: job.row.attempt.0,
        start: run.started,
        end: run.limit.map(|end| end + leapt_since(common.leaps, run.started)),
        layout,
        submit_dir: spec.submit_dir.clone(),
        submit_host: spec.submit_host.clone(),
        tasks: r.tasks,
        tasks_per_node: r.tasks_per_node,
        cpus_per_task: r.cpus_per_task,
        mem_per_node: Some(share.memory),
        mem_per_cpu: match r.memory {
            MemoryRequest::PerCpu(mib) => Some(mib),
            _ => None,
        },
        mem_per_gpu: match r.memory {
            MemoryRequest::PerGpu(mib) => Some(mib),
            _ => None,
        },
        share,
        subids: spec.container.as_ref().is_some_and(|c| c.subids == Some(true)),
        het: common.het.clone(),
        imex_channel: run.imex_channel,
        sluid: job.row.sluid,
    }
}
