//! What comes of the administrator's programs on nodes: of a prolog or an epilog that failed.

use super::Cluster;
use super::ending::Verdict;
use crate::node::CLUSTER;
use crate::rows::{Hold, Phase};
use berth_model::ids::{Attempt, JobId, NodeName};
use berth_model::link::EndCause;
use berth_model::spec::JobKind;
use berth_model::state::{ExitStatus, JobState, Reason};

impl Cluster {
    /// Nothing new starts on the node, and everybody can see why. A reason that is there already stays.
    pub(super) fn drain(&mut self, name: &NodeName, why: &str) {
        let now = self.clock;
        let Some(node) = self.node_mut(name) else { return };
        let c = &mut node.row.condition;
        let told = c.reason.is_some() && (c.down || c.drain || c.fail);
        c.drain = true;
        if !told {
            c.reason = Some(why.to_string());
            c.reason_user = Some(CLUSTER.to_string());
            c.reason_time = Some(now);
        }
        self.out.nodes.insert(name.clone());
    }

    /// The prolog of a run failed on a node. A batch job goes back to the queue: at its first run it waits for another node, later
    /// it is held, so that a job whose fault it is does not drain one node after another.
    pub(super) fn prolog_failed(&mut self, node: &NodeName, id: JobId, attempt: Attempt, why: &str) {
        // It is told until the run is ended: of one that does not belong here everything is known.
        let holds = self.nodes.get(node).is_some_and(|n| n.held.contains_key(&(id, attempt)));
        let Some(job) = self.job(id).filter(|j| holds && j.row.attempt == attempt) else { return };
        if !matches!(job.row.phase, Phase::Running(_)) {
            return;
        }
        let batch = job.spec.spec.kind == JobKind::Batch;
        let requeue = batch && job.spec.spec.requeue.unwrap_or(self.config.requeue);
        let text = format!("node {node} could not begin the job and was drained: {why}");
        self.drain(node, why);
        let verdict = Verdict {
            reason: Reason::LaunchFailed(text),
            exit: ExitStatus { code: 1, signal: 0 },
            requeue,
            ..Verdict::new(JobState::Failed, if requeue { EndCause::Requeued } else { EndCause::JobEnded })
        };
        self.end_job(id, verdict);
        if requeue
            && attempt.0 > 0
            && let Some(job) = self.job_mut(id)
        {
            job.row.hold = Some(Hold::User);
        }
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
