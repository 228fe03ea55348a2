//! `--explain`: what a submission would come to. The controller is asked as for `--test-only`; the program plans with
//! the node's own code and prints. Nothing is submitted.

use crate::error::{Failure, Kind, Outcome};
use crate::{Invocation, out, submit};
use berth_model::config::Config;
use berth_model::distribution::Distribution;
use berth_model::env::LOOPBACK;
use berth_model::ids::{Attempt, StepId, StepKey};
use berth_model::launch::{ArrayPlace, JobFacts, Layout, NodeShare, Program, StepLaunch};
use berth_model::mpi::MpiType;
use berth_model::options::{Command, Explain};
use berth_model::record::JobInfo;
use berth_model::request::{Payload, Response};
use berth_model::spec::{ArraySpec, ContainerSpec, JobKind, JobSpec, MemoryRequest, StepSpec, TimeLimit};
use berth_model::time::{Span, Time};
use berth_model::{ByteStr, JobId, NodeName};
use berth_rpc::Client;
use std::path::PathBuf;
use std::sync::Arc;

/// A step as its node would be told of it, and what the program needs to know of the cluster to plan it.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The step on its first node.
    pub launch: StepLaunch,
    /// The cluster's state directory.
    pub state: PathBuf,
    /// Root runs the cluster and acts for users.
    pub system: bool,
    /// Memory, CPUs and devices are enforced by control groups.
    pub enforced: bool,
    /// The configuration in force.
    pub config: Config,
    /// When it would start; absent for a step of a job that runs.
    pub start: Option<Time>,
    /// What the reader has to know besides.
    pub notes: Vec<String>,
}

/// One submission to be explained.
pub struct Asked<'a> {
    /// The command.
    pub command: Command,
    /// How it was called.
    pub call: &'a Invocation<'a>,
    /// How to print.
    pub format: Explain,
    /// The job; for a step of a running job, absent.
    pub job: Option<&'a JobSpec>,
    /// The step, where there is one.
    pub step: Option<&'a StepSpec>,
    /// Script and environment of a batch job.
    pub payload: &'a Payload,
}

impl Asked<'_> {
    /// Explains a submission of its own.
    pub async fn outside(&self, client: &Client) -> Outcome {
        let Some(job) = self.job else {
            return Err(Failure::new(Kind::Internal, "--explain was asked for without a job"));
        };
        let response = submit::submit(self.command, client, job, self.payload, self.step, true).await;
        let response = response.map_err(|e| submit::refused("it would be refused", e))?;
        let Response::WouldStart { job: id, at, nodes, partition, shares, .. } = response else {
            return Err(Failure::new(Kind::Internal, "unexpected answer from the controller"));
        };
        let config = client.config().await?;
        let limit = match job.time_limit {
            Some(limit) => Some(limit),
            None => client.partitions().await?.iter().find(|p| p.config.name == partition).and_then(|p| {
                let own = Some(&p.config.default_time).filter(|t| !t.is_empty());
                own.unwrap_or(&p.config.max_time).parse().ok()
            }),
        };
        let r = &job.resources;
        let asked = self.step.map_or((r.tasks, r.tasks_per_node), |s| (s.tasks, s.tasks_per_node));
        let distribution = self.step.and_then(|s| s.distribution.as_ref()).unwrap_or(&r.distribution);
        let layout = Arc::new(Layout {
            tasks: spread(asked, distribution, &nodes),
            cpus: shares.iter().map(|s| u32::try_from(s.cpus.len()).unwrap_or(u32::MAX)).collect(),
            nodes,
        });
        let share = shares.into_iter().next().unwrap_or_default();
        let facts = JobFacts {
            het: None,
            imex_channel: None,
            sluid: None,
            kind: job.kind,
            name: job.name.clone(),
            partition,
            account: job.account.clone(),
            cluster: config.cluster.clone(),
            array: job.array.as_ref().and_then(|a| first_of(id, a)),
            restarts: 0,
            start: at,
            end: match limit {
                Some(TimeLimit::Minutes(m)) => Some(at + Span::from_mins(i64::from(m))),
                _ => None,
            },
            layout: layout.clone(),
            submit_dir: job.submit_dir.clone(),
            submit_host: job.submit_host.clone(),
            tasks: r.tasks,
            tasks_per_node: r.tasks_per_node,
            cpus_per_task: r.cpus_per_task,
            mem_per_node: Some(share.memory),
            mem_per_cpu: per_cpu(r.memory),
            mem_per_gpu: per_gpu(r.memory),
            share: share.clone(),
            subids: has_subids(job.container.as_ref()),
        };
        let mut notes =
            vec!["job id, node, CPUs and devices are those that it would get at this moment".to_string()];
        if job.kind == JobKind::Alloc {
            notes.push(
                "salloc's own command runs here, on this machine; this is what srun in it makes by default"
                    .into(),
            );
        }
        let launch = match (self.step, job.kind) {
            (Some(step), _) => self.step_launch(id, StepId::Number(0), step, facts, share, layout)?,
            (None, JobKind::Batch) => self.batch_launch(id, job, facts, share, layout)?,
            (None, _) => self.shell_launch(id, job, facts, share, layout)?,
        };
        self.print(client, launch, config, Some(at), notes).await
    }

    /// Explains a step of a running job.
    pub async fn inside(&self, client: &Client, info: &JobInfo) -> Outcome {
        let Some(step) = self.step else {
            return Err(Failure::new(Kind::Internal, "--explain was asked for without a step"));
        };
        let config = client.config().await?;
        let share = info.shares.first().cloned().unwrap_or_default();
        let next = info
            .steps
            .iter()
            .filter_map(|s| if let StepId::Number(n) = s.id { Some(n + 1) } else { None })
            .max();
        let nodes = usize::try_from(step.nodes.unwrap_or(1).max(1)).unwrap_or(1);
        let nodes = nodes.min(info.layout.nodes.len().max(1));
        let taken: Vec<NodeName> = info.layout.nodes.iter().take(nodes).cloned().collect();
        let asked = (step.tasks.or(info.spec.resources.tasks), step.tasks_per_node);
        let distribution = step.distribution.as_ref().unwrap_or(&info.spec.resources.distribution);
        let layout = Arc::new(Layout {
            tasks: spread(asked, distribution, &taken),
            nodes: taken,
            cpus: info.layout.cpus.iter().take(nodes).copied().collect(),
        });
        let r = &info.spec.resources;
        let facts = JobFacts {
            het: None,
            imex_channel: None,
            sluid: info.sluid,
            kind: info.spec.kind,
            name: info.spec.name.clone(),
            partition: info.partition.clone(),
            account: info.spec.account.clone(),
            cluster: config.cluster.clone(),
            array: info.array.zip(info.task).zip(info.spec.array.as_ref()).and_then(
                |((array, task), spec)| first_of(array, spec).map(|place| ArrayPlace { task, ..place }),
            ),
            restarts: info.attempt.0,
            start: info.started.unwrap_or_else(crate::now),
            end: match (info.time_limit, info.started) {
                (TimeLimit::Minutes(m), Some(start)) => Some(start + Span::from_mins(i64::from(m))),
                _ => None,
            },
            layout: Arc::new(info.layout.clone()),
            submit_dir: info.spec.submit_dir.clone(),
            submit_host: info.spec.submit_host.clone(),
            tasks: r.tasks,
            tasks_per_node: r.tasks_per_node,
            cpus_per_task: r.cpus_per_task,
            mem_per_node: Some(share.memory),
            mem_per_cpu: per_cpu(r.memory),
            mem_per_gpu: per_gpu(r.memory),
            share: share.clone(),
            subids: has_subids(info.spec.container.as_ref()),
        };
        let mut step = step.clone();
        if step.container.is_none() {
            step.container = info.spec.container.as_ref().map(ContainerSpec::of_a_step);
        }
        let id = StepId::Number(next.unwrap_or(0));
        let launch = self.step_launch(info.id, id, &step, facts, share, layout)?;
        let notes = vec![
            "CPUs, memory and devices are the job's; the step gets what it asks for of them".to_string(),
        ];
        self.print(client, launch, config, None, notes).await
    }

    fn step_launch(
        &self,
        job: JobId,
        id: StepId,
        step: &StepSpec,
        facts: JobFacts,
        share: NodeShare,
        layout: Arc<Layout>,
    ) -> Result<StepLaunch, Failure> {
        let launch = self.launch(job, id, facts, share, layout)?;
        let job_container = self.job.and_then(|j| j.container.clone());
        Ok(StepLaunch {
            name: step.name.clone(),
            program: Program::Argv(step.argv.clone()),
            env: step.env.clone(),
            work_dir: step.work_dir.clone(),
            work_dir_explicit: step.work_dir_explicit,
            io: step.io.clone(),
            container: contained(step.container.clone().or(job_container)),
            limits: step.limits.clone(),
            umask: step.umask,
            pty: step.pty,
            cpus_per_task: step.cpus_per_task.unwrap_or(1),
            distribution: step.distribution.as_ref().map(Distribution::rule).unwrap_or_default(),
            attached: true,
            x11: step.x11.clone(),
            pytorch: step.pytorch,
            mpi: step.mpi,
            task_prolog: step.task_prolog.clone(),
            task_epilog: step.task_epilog.clone(),
            cpu_bind: step.cpu_bind.clone(),
            mem_bind: step.mem_bind.clone(),
            gpu_bind: step.gpu_bind.clone(),
            programs: step.programs.clone(),
            overcommit: step.overcommit,
            fabric: step.fabric,
            sockets: step.sockets,
            receive: None,
            ..launch
        })
    }

    fn batch_launch(
        &self,
        id: JobId,
        job: &JobSpec,
        facts: JobFacts,
        share: NodeShare,
        layout: Arc<Layout>,
    ) -> Result<StepLaunch, Failure> {
        let launch = self.launch(id, StepId::Batch, facts, share, layout)?;
        let script = self.payload.script.clone();
        let (text, args) = script.map(|s| (s.text, s.args)).unwrap_or_default();
        Ok(StepLaunch {
            program: Program::Script { text, args },
            env: self.payload.env.clone(),
            user_env: job.user_env,
            container: contained(job.container.clone()),
            ..of_job(launch, job)
        })
    }

    fn shell_launch(
        &self,
        id: JobId,
        job: &JobSpec,
        facts: JobFacts,
        share: NodeShare,
        layout: Arc<Layout>,
    ) -> Result<StepLaunch, Failure> {
        let launch = self.launch(id, StepId::Number(0), facts, share, layout)?;
        Ok(StepLaunch {
            program: Program::Argv(vec![job.command.clone()]),
            env: self.payload.env.clone(),
            container: contained(job.container.clone()),
            attached: true,
            ..of_job(launch, job)
        })
    }

    /// What all steps have in common.
    fn launch(
        &self,
        job: JobId,
        step: StepId,
        facts: JobFacts,
        share: NodeShare,
        layout: Arc<Layout>,
    ) -> Result<StepLaunch, Failure> {
        Ok(StepLaunch {
            key: StepKey { job, attempt: Attempt(facts.restarts), step },
            node: layout.nodes.first().cloned().unwrap_or_else(|| "".into()),
            node_index: 0,
            identity: crate::users::own_identity()?,
            name: facts.name.clone(),
            job: facts,
            program: Program::Argv(Vec::new()),
            env: Vec::new(),
            user_env: false,
            work_dir: ByteStr::default(),
            work_dir_explicit: false,
            io: berth_model::spec::IoSpec::default(),
            container: None,
            limits: berth_model::limits::Limits::default(),
            umask: 0o22,
            pty: None,
            layout,
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
            client_address: Some(LOOPBACK.to_string()),
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
        })
    }

    async fn print(
        &self,
        client: &Client,
        launch: StepLaunch,
        config: Config,
        start: Option<Time>,
        mut notes: Vec<String>,
    ) -> Outcome {
        if launch.mpi_is_open() || launch.mpi_served() == MpiType::Pmix {
            notes.push(
                "where the node has libpmix, that adds its variables (PMIX_...) to the environment".into(),
            );
        }
        let nodes = client.nodes().await?;
        if launch.attached && nodes.len() > 1 {
            notes.push(
                "SLURM_SRUN_COMM_HOST and SLURM_LAUNCH_NODE_IPADDR have the address by which the node knows this machine".into(),
            );
        }
        let enforced = nodes.iter().find(|n| n.name == launch.node).is_some_and(|n| n.hardware.enforces);
        let missing = || {
            Failure::user(
                "--explain plans with the berth program, which a container does not have; ask where you submit from",
            )
        };
        let program = self.call.resolver.ok_or_else(missing)?;
        let state = self.call.site()?.state.ok_or_else(missing)?.0;
        let system = {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(&state).is_ok_and(|m| m.uid() == 0)
        };
        let explained = Explained { launch, state, system, enforced, config, start, notes };
        out::print(&program.explain(&explained, self.format)?)?;
        Ok(0)
    }
}

fn of_job(launch: StepLaunch, job: &JobSpec) -> StepLaunch {
    StepLaunch {
        work_dir: job.work_dir.clone(),
        io: job.io.clone(),
        limits: job.limits.clone(),
        umask: job.umask,
        cpus_per_task: job.resources.cpus_per_task.unwrap_or(1),
        ..launch
    }
}

/// The node's own filesystem is no container.
fn contained(container: Option<ContainerSpec>) -> Option<ContainerSpec> {
    container.filter(|c| c.image.resolved != Some(berth_model::spec::ResolvedImage::Host))
}

fn per_cpu(memory: MemoryRequest) -> Option<u64> {
    if let MemoryRequest::PerCpu(mib) = memory { Some(mib) } else { None }
}

fn per_gpu(memory: MemoryRequest) -> Option<u64> {
    if let MemoryRequest::PerGpu(mib) = memory { Some(mib) } else { None }
}

/// Tasks, and tasks on each node, spread over so many nodes in blocks.
fn spread(
    (tasks, per_node): (Option<u32>, Option<u32>),
    distribution: &Distribution,
    nodes: &[NodeName],
) -> Vec<Vec<u32>> {
    let count = u32::try_from(nodes.len().max(1)).unwrap_or(1);
    let total = tasks.unwrap_or_else(|| per_node.unwrap_or(1).saturating_mul(count));
    let even = || {
        let (each, rest) = (total / count, total % count);
        let mut left = total;
        let mut take = |node| {
            let here = per_node.unwrap_or(each + u32::from(node < rest)).min(left);
            left -= here;
            here
        };
        (0..count).map(&mut take).collect()
    };
    let counts = match distribution {
        Distribution::Block | Distribution::Cyclic => None,
        other => other.spread(total, nodes, &vec![u32::MAX; nodes.len()]),
    };
    distribution.number(nodes, &counts.unwrap_or_else(even))
}

fn has_subids(container: Option<&ContainerSpec>) -> bool {
    container.is_some_and(|c| c.subids == Some(true))
}

/// The first task of an array.
fn first_of(array: JobId, spec: &ArraySpec) -> Option<ArrayPlace> {
    let (first, _, step) = *spec.ranges.first()?;
    let count = spec.ranges.iter().map(|(from, to, step)| (to - from) / (*step).max(1) + 1).sum();
    let max = spec.ranges.iter().map(|(_, to, _)| *to).max()?;
    let step = if spec.ranges.len() == 1 { step } else { 1 };
    Some(ArrayPlace { array, task: first, count, min: first, max, step })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_spread_in_blocks() {
        let nodes = ["n1", "n2"].map(NodeName::from);
        assert_eq!(spread((Some(3), None), &Distribution::Cyclic, &nodes), [vec![0, 2], vec![1]]);
        assert_eq!(spread((None, None), &Distribution::Block, &nodes[..1]), [[0]]);
        assert_eq!(spread((Some(3), None), &Distribution::Block, &nodes), [vec![0, 1], vec![2]]);
        assert_eq!(spread((None, Some(2)), &Distribution::Block, &nodes), [vec![0, 1], vec![2, 3]]);
        assert_eq!(spread((Some(3), Some(2)), &Distribution::Block, &nodes), [vec![0, 1], vec![2]]);
        assert_eq!(spread((Some(0), None), &Distribution::Block, &[]), [Vec::<u32>::new()]);
    }
}
