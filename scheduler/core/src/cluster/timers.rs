//! What becomes due: begins, limits, patience, silence, repeats and forgetting.

use super::Cluster;
use super::ending::Verdict;
use crate::event::RequestId;
use crate::job::Progress;
use crate::rows::{Phase, Run};
use berth_model::ids::{JobId, NodeName, StepId, StepKey};
use berth_model::link::{EndCause, ToAgent};
use berth_model::state::{JobState, Reason};
use berth_model::time::{Span, Time};

/// How long an answer of an agent may take before the message is sent again.
pub(super) const REPEAT: Span = Span::from_secs(10);

/// Something that is looked at when its time comes; by then it may not matter any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// `--begin`.
    Begin(JobId),
    /// `--immediate` of a job.
    Immediate(JobId),
    /// `--immediate` of a step.
    StepImmediate(JobId, RequestId),
    /// An end on its way that a step waits for whose client has no more patience.
    StepBusy(JobId, RequestId),
    /// A step that keeps its place although its client was answered.
    StepKept(JobId, RequestId),
    /// Answers of agents to a question which steps of a job have not ended.
    Look(JobId, u64),
    /// The time limit. Agents keep it too, for times without a controller.
    Limit(JobId),
    /// An ended job leaves memory.
    Purge(JobId),
    /// A node was silent.
    Silence(NodeName),
    /// A silent node may be powered off.
    Fence(NodeName),
    /// Runs on a silent node have ended by themselves.
    Lost(NodeName),
    /// Messages of a job that were not answered are sent again.
    Repeat(JobId),
    /// What is carried from node to node should be confirmed.
    Carried(StepKey),
    /// A node still has runs that do not belong there.
    Settle(NodeName),
    /// What waiting jobs will run on may have changed.
    Ahead,
    /// A token expires.
    Token,
    /// Keys that nodes told are nobody's by now.
    Strange,
    /// What users asked nodes to have does not count any more.
    Asked,
    /// A node that was rebooted should be back.
    Reboot(NodeName),
    /// What a node had that was given up while it was connected should be gone.
    GivenUp(NodeName),
    /// After a restore, machines that the backup does not have should have come.
    Held,
}

impl Cluster {
    pub(super) fn fire_timers(&mut self) {
        while let Some((at, _)) = self.timers.first() {
            if *at > self.clock {
                break;
            }
            let Some((_, timer)) = self.timers.pop_first() else { break };
            match timer {
                Timer::Begin(job) => self.enqueue(job),
                Timer::Immediate(job) => self.patience_over(job),
                Timer::StepImmediate(job, request) => self.has_waited(job, request),
                Timer::StepBusy(job, request) => self.give_up_waiting(job, request, true),
                Timer::StepKept(job, request) => self.no_longer_kept(job, request),
                Timer::Look(job, ask) => self.no_answer_to(job, ask),
                Timer::Limit(job) => self.limit_passed(job),
                Timer::Purge(job) => self.purge(job),
                Timer::Silence(node) => self.check_silence(&node),
                Timer::Fence(node) => self.watch_fence(&node),
                Timer::Lost(node) => self.check_lost(&node),
                Timer::Repeat(job) => self.repeat(job),
                Timer::Carried(step) => self.is_not_confirmed(step),
                Timer::Settle(node) => self.settle(&node),
                Timer::Ahead => self.looking.due = true,
                Timer::Token => self.drop_expired_tokens(),
                Timer::Strange => self.end_strange(),
                Timer::Asked => self.asked.expire(self.clock),
                Timer::Reboot(node) => self.check_reboot(&node),
                Timer::GivenUp(node) => self.check_given_up(&node),
                Timer::Held => self.end_hold(),
            }
        }
    }

    fn patience_over(&mut self, id: JobId) {
        if self.job(id).is_some_and(|j| j.is_pending() && j.row.attempt.0 == 0) {
            self.end_pending(id, Verdict::cancelled(None));
        }
    }

    /// Has the job ended at its limit.
    pub(super) fn arm_limit(&mut self, id: JobId) {
        if let Some(limit) = self.job(id).and_then(|j| j.run()).and_then(|run| self.reached(run)) {
            self.timers.insert((limit, Timer::Limit(id)));
        }
    }

    /// When the limit of a run is reached, whatever of the time since it began was taken on trust.
    pub(super) fn reached(&self, run: &Run) -> Option<Time> {
        Some(run.limit? + self.leapt_since(run.started))
    }

    fn limit_passed(&mut self, id: JobId) {
        let Some(job) = self.job(id) else { return };
        let Phase::Running(run) = &job.row.phase else { return };
        let reached = self.reached(run);
        if let Some(later) = reached.filter(|reached| self.clock < *reached) {
            // It was armed before it was known what was taken on trust.
            self.timers.insert((later, Timer::Limit(id)));
        } else if reached.is_some() {
            let verdict =
                Verdict { reason: Reason::TimeLimit, ..Verdict::new(JobState::Timeout, EndCause::TimeLimit) };
            self.end_job(id, verdict);
        }
    }

    pub(super) fn watch_silence(&mut self, node: &NodeName) {
        let Some(n) = self.nodes.get(node) else { return };
        self.timers.insert((n.last_heard + self.config.node_timeout, Timer::Silence(node.clone())));
    }

    fn check_silence(&mut self, node: &NodeName) {
        let (now, timeout) = (self.clock, self.config.node_timeout);
        let Some(n) = self.nodes.get(node) else { return };
        if n.row.condition.not_responding {
            return;
        }
        if n.last_heard + timeout > now {
            return self.watch_silence(node);
        }
        // Silence alone says nothing of its jobs: they are left as they are, but for those that have ended by themselves.
        if let Some(n) = self.node_mut(node) {
            n.row.condition.not_responding = true;
        }
        self.check_lost(node);
        self.watch_fence(node);
    }

    /// Has a node end the runs that it has and should not have, until it says that they are gone.
    pub(super) fn settle(&mut self, node: &NodeName) {
        let Some(n) = self.nodes.get(node).filter(|n| n.link.is_some() && !n.settling.is_empty()) else {
            return;
        };
        let (term, kill_wait, cause) = (self.term, self.config.kill_wait, EndCause::NodeFailed);
        for (job, attempt) in n.settling.clone() {
            self.send(node, ToAgent::EndJob { term, job, attempt, kill_wait, cause });
        }
        self.timers.insert((self.clock + REPEAT, Timer::Settle(node.clone())));
    }

    /// Looks again in a while whether everything that was sent for the job was answered.
    pub(super) fn arm_resend(&mut self, id: JobId) {
        self.timers.insert((self.clock + REPEAT, Timer::Repeat(id)));
    }

    fn repeat(&mut self, id: JobId) {
        let Some(job) = self.job(id) else { return };
        let (attempt, now, term) = (job.row.attempt, self.clock, self.term);
        match &job.row.phase {
            Phase::Ending { result, left, .. } => {
                let (left, cause) = (left.clone(), result.cause);
                let kill_wait = self.config.kill_wait;
                for node in left {
                    self.send(&node, ToAgent::EndJob { term, job: id, attempt, kill_wait, cause });
                }
                self.arm_resend(id);
            }
            Phase::Running(_) => {
                let mut again = false;
                let mut starts: Vec<(StepId, usize)> = Vec::new();
                let mut ends = Vec::new();
                for (step, row) in job.steps.iter().filter(|(_, s)| s.result.is_none()) {
                    let progress = job.progress.get(step);
                    for (at, part) in row.nodes.unended() {
                        if let Some(cause) = row.ending {
                            ends.push((part.node.clone(), row.key, cause));
                            again = true;
                        }
                        if let Some(Progress::Sent(when)) = progress.and_then(|p| p.get(at)) {
                            again = true;
                            if *when + REPEAT <= now {
                                starts.push((*step, at));
                            }
                        }
                    }
                }
                let kill_wait = self.config.kill_wait;
                for (step, at) in starts {
                    self.send_start(id, step, at);
                }
                for (node, key, cause) in ends {
                    self.send(&node, ToAgent::Terminate { term, key, kill_wait, cause });
                }
                if again {
                    self.arm_resend(id);
                }
            }
            Phase::Pending | Phase::Ended { .. } => {}
        }
    }
}
