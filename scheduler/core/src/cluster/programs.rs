//! What comes of runs that a node could not begin or end as it should: of a prolog or an epilog that failed, and of GPUs that do not work.

use super::Cluster;
use super::ending::{Verdict, unreported};
use super::said::{REASON, plain};
use crate::job::Progress;
use crate::node::CLUSTER;
use crate::rows::{Hold, Phase};
use berth_model::devices::GPU;
use berth_model::ids::{Attempt, JobId, NodeName, StepKey};
use berth_model::launch::StepExit;
use berth_model::link::{EndCause, GpuFault};
use berth_model::spec::JobKind;
use berth_model::state::{ExitStatus, JobState, Reason};

/// How many runs of a batch job GPUs that do not work may stop before it is held: one more than Slurm requeues one by itself
/// (MaxBatchRequeue). A fenced GPU is not given again; but one may be well at each look and not when a job comes.
const MOST_REFUSALS: u32 = 6;

impl Cluster {
    /// Nothing new starts on the node, and everybody can see why. A reason that is there already stays.
    pub(super) fn drain(&mut self, name: &NodeName, why: &str) {
        let now = self.clock;
        let Some(node) = self.node_mut(name) else { return };
        let c = &mut node.row.condition;
        let told = c.reason.is_some() && (c.down || c.drain || c.fail);
        c.drain = true;
        if !told {
            // Programs of the site end on administrators' terminals with it.
            c.reason = Some(plain(why, REASON));
            c.reason_user = Some(CLUSTER.to_string());
            c.reason_time = Some(now);
        }
        self.out.nodes.insert(name.clone());
    }

    /// Nothing of a run could begin on a node: its prolog failed, for which the node is drained, or GPUs of its own do not work any more,
    /// which are fenced. A batch job goes back to the queue. After a prolog it waits for another node at its first run and is held later, so
    /// that a job whose fault it is does not drain one node after another; a GPU is not its fault, and it does not get the same one again.
    /// A node that names none of the run's own says nothing that keeps the next job from the same end, and is drained.
    pub(super) fn could_not_begin(
        &mut self,
        node: &NodeName,
        id: JobId,
        attempt: Attempt,
        why: &str,
        faults: Vec<GpuFault>,
    ) {
        // It is told until the run is ended: of one that does not belong here everything is known.
        let holds = self.nodes.get(node).is_some_and(|n| n.held.contains_key(&(id, attempt)));
        let Some(job) = self.job(id).filter(|j| holds && j.row.attempt == attempt) else { return };
        let runs = matches!(job.row.phase, Phase::Running(_));
        let batch = job.spec.spec.kind == JobKind::Batch;
        let requeue = batch && job.spec.spec.requeue.unwrap_or(self.config.requeue);
        let refusals = job.row.refusals.saturating_add(1);
        // Another of its nodes may have had it ended: what is said of this one's GPUs stands.
        let fenced = self.fence_own(node, (id, attempt), faults);
        if !runs {
            return;
        }
        let what = if fenced { "" } else { " and was drained" };
        let held = requeue && if fenced { refusals >= MOST_REFUSALS } else { attempt.0 >= 1 };
        let again = match (batch && fenced, requeue) {
            (true, true) if held => format!("; held after {refusals} runs: scontrol release"),
            (true, false) => "; submit it again".to_string(),
            _ => String::new(),
        };
        if fenced {
            if let Some(job) = self.job_mut(id) {
                // Who releases it has it tried as often again.
                job.row.refusals = if held { 0 } else { refusals };
            }
        } else {
            self.drain(node, why);
        }
        let text = format!("node {node} could not begin the job{what}: {why}{again}");
        let verdict = Verdict {
            reason: Reason::LaunchFailed(text),
            exit: ExitStatus { code: 1, signal: 0 },
            requeue,
            ..Verdict::new(JobState::Failed, if requeue { EndCause::Requeued } else { EndCause::JobEnded })
        };
        self.end_job(id, verdict);
        if held && let Some(job) = self.job_mut(id) {
            job.row.hold = Some(Hold::User);
        }
    }

    /// What a step needs to start cannot be read from the store: on that node it could not be started.
    pub(super) fn cannot_start(&mut self, node: &NodeName, key: StepKey, why: &str) {
        let Some(at) = self.step(key).and_then(|step| step.nodes.find(node)) else { return };
        let progress = self.job(key.job).and_then(|job| job.progress.get(&key.step)?.get(at).copied());
        if !matches!(progress, Some(Progress::Sent(_))) {
            return; // Its agent had it before.
        }
        let why =
            format!("what it needs cannot be read from the controller's database: {why}; submit it again");
        let exit = StepExit {
            status: ExitStatus { code: 1, signal: 0 },
            launch_error: Some(plain(&why, REASON)),
            ended_by: None,
            ..unreported(EndCause::JobEnded, self.clock)
        };
        self.step_exited(key.job, key.step, at, exit);
    }

    /// Fences GPUs that are said not to work. Whether the node has them all and one of them is the run's own: it is well when it is given,
    /// so that no later run ends of it, while of others a node could say it of one run after another. What is not known cannot be kept
    /// from the next run.
    fn fence_own(&mut self, node: &NodeName, run: (JobId, Attempt), faults: Vec<GpuFault>) -> bool {
        let said: Vec<u32> = faults.iter().map(|fault| fault.index).collect();
        self.fence(node, faults);
        let Some(n) = self.nodes.get(node) else { return false };
        let is_fenced = |index: u32| {
            n.hardware.gres.iter().any(|d| d.name == GPU && d.index == index && d.fault.is_some())
        };
        let is_own = |index: u32| {
            n.held.get(&run).is_some_and(|share| share.gres.iter().any(|d| d.name == GPU && d.index == index))
        };
        said.iter().any(|index| is_own(*index)) && said.iter().all(|index| is_fenced(*index))
    }

    /// The epilog of a run failed on a node: the run is over, the node takes nothing new.
    pub(super) fn epilog_failed(&mut self, node: &NodeName, id: JobId, attempt: Attempt, why: &str) {
        // The answer may come twice.
        let run = (id, attempt);
        if self.nodes.get(node).is_some_and(|n| n.held.contains_key(&run) || n.settling.contains(&run)) {
            self.drain(node, why);
        }
    }
}
