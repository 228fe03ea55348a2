//! How steps and jobs end: from exits to states, and from states to messages and freed resources.

use super::Cluster;
use super::timers::Timer;
use crate::rows::{Allocation, JobResult, Phase, Run, StepResult, StepRow};
use crate::store::{PayloadKey, Write};
use crate::tasks::Tasks;
use berth_model::ids::{Attempt, JobId, NodeName, StepId, Uid};
use berth_model::launch::{StepExit, Usage};
use berth_model::link::{EndCause, ToAgent};
use berth_model::request::{Actor, Refusal, RefusalCode, Response};
use berth_model::spec::JobKind;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::time::{Span, Time};
use std::sync::Arc;

/// Slurm's exit status of a job or step in which the memory limit killed something.
const OUT_OF_MEMORY: ExitStatus = ExitStatus { code: 0, signal: 125 };

/// How a job is to end.
#[derive(Clone)]
pub(super) struct Verdict {
    pub(super) state: JobState,
    pub(super) reason: Reason,
    pub(super) exit: ExitStatus,
    pub(super) cancelled_by: Option<Uid>,
    pub(super) cause: EndCause,
    pub(super) requeue: bool,
    /// From SIGTERM to SIGKILL; `None` means the site's.
    pub(super) kill_wait: Option<Span>,
}

impl Verdict {
    pub(super) fn new(state: JobState, cause: EndCause) -> Verdict {
        Verdict {
            state,
            reason: Reason::None,
            exit: ExitStatus::OK,
            cancelled_by: None,
            cause,
            requeue: false,
            kill_wait: None,
        }
    }

    pub(super) fn cancelled(by: Option<Uid>) -> Verdict {
        Verdict { cancelled_by: by, ..Verdict::new(JobState::Cancelled, EndCause::Cancelled) }
    }
}

/// The highest status: of two, the one that a shell would show as the larger code.
fn worst(a: ExitStatus, b: ExitStatus) -> ExitStatus {
    if b.shell_code() > a.shell_code() { b } else { a }
}

/// An exit that nobody reported: of a step that was lost or never ran.
pub(super) fn unreported(cause: EndCause, now: Time) -> StepExit {
    let signal = if matches!(cause, EndCause::NodeFailed | EndCause::OutOfTouch) { 9 } else { 15 };
    StepExit {
        status: ExitStatus { code: 0, signal },
        tasks: Vec::new(),
        oom: false,
        launch_error: None,
        ended_by: Some(cause),
        image: None,
        usage: Usage::default(),
        ended: now,
    }
}

/// A step's state and status from its exits on all of its nodes.
fn judge(step: &StepRow, limit: Option<Time>, now: Time) -> StepResult {
    let exits = || step.nodes.iter().filter_map(|n| n.exit.as_ref());
    let mut exit = exits().map(|e| e.status).fold(ExitStatus::OK, worst);
    let message = step.nodes.iter().find_map(|part| {
        let why = part.exit.as_ref()?.launch_error.as_ref()?;
        // Where it could have been another node, which one it was is half of the answer.
        Some(if step.nodes.len() > 1 { format!("{}: {why}", part.node) } else { why.clone() })
    });
    // One that was ended had its reason, whatever it could not do any more.
    let failed = exits().any(|e| e.launch_error.is_some() && e.ended_by.is_none());
    let by = |cause| exits().any(|e| e.ended_by == Some(cause));
    // An agent that was restarted while it ended a step may have lost why: the time tells.
    let late = limit.is_some_and(|l| now >= l) && matches!(exit.signal, 9 | 15);
    let state = if exits().any(|e| e.oom) {
        exit = OUT_OF_MEMORY;
        JobState::OutOfMemory
    } else if by(EndCause::NodeFailed) || by(EndCause::OutOfTouch) {
        JobState::NodeFail
    } else if by(EndCause::TimeLimit) || late {
        JobState::Timeout
    } else if failed {
        JobState::Failed
    } else if by(EndCause::Cancelled) || by(EndCause::JobEnded) || by(EndCause::Requeued) {
        JobState::Cancelled
    } else if exit.success() {
        JobState::Completed
    } else {
        JobState::Failed
    };
    StepResult { state, exit, message, ended: now }
}

/// The job's end that follows from the end of the step that it lives by.
fn follow(step: &StepRow, result: &StepResult) -> Verdict {
    let reason = match (result.state, &result.message) {
        (JobState::Failed, Some(text)) => Reason::LaunchFailed(text.clone()),
        (JobState::Failed, None) if result.exit.signal != 0 => {
            Reason::RaisedSignal(result.exit.signal.into())
        }
        (JobState::Failed, None) => Reason::NonZeroExitCode,
        (JobState::OutOfMemory, _) => Reason::OutOfMemory,
        (JobState::Timeout, _) => Reason::TimeLimit,
        (JobState::NodeFail, _) => Reason::NodeDown,
        _ => Reason::None,
    };
    let exit = match result.state {
        JobState::Timeout | JobState::Cancelled => ExitStatus::OK,
        _ => result.exit,
    };
    Verdict {
        reason,
        exit,
        cancelled_by: step.cancelled_by,
        ..Verdict::new(result.state, EndCause::JobEnded)
    }
}

impl Cluster {
    /// A step ended on one of its nodes.
    pub(super) fn step_exited(&mut self, job: JobId, id: StepId, at: usize, mut exit: StepExit) {
        let failed = exit.launch_error.is_some();
        if let Some(found) = exit.image.as_mut().and_then(|pull| pull.found.take()) {
            self.keep_image(job, id, *found);
        }
        let row = self.job(job).and_then(|j| j.steps.get(&id));
        let place = row.and_then(|row| Some((row.key, &row.nodes.get(at)?.node)));
        exit.usage = place.map_or(exit.usage, |(key, node)| self.last_use(key, node, exit.usage));
        let Some(step) = self.part_mut(job, id, at) else { return };
        // When many cannot start, the others are told once.
        let failed = failed && step.ending.is_none();
        if !step.nodes.end(at, exit) {
            return;
        }
        if step.nodes.open() > 0 {
            if failed {
                // What could not start on one node is of no use on the others.
                self.end_step(job, id, EndCause::JobEnded, None, None);
            }
            return self.retry_waiting(job);
        }
        if failed && step.het.is_some() {
            self.end_step(job, id, EndCause::JobEnded, None, None);
        }
        self.finish_step(job, id);
    }

    fn finish_step(&mut self, job: JobId, id: StepId) {
        let now = self.clock;
        let limit = self.job(job).and_then(|j| j.run()).and_then(|run| self.reached(run));
        let Some(step) = self.step_mut(job, id) else { return };
        let result = judge(step, limit, now);
        step.result = Some(result.clone());
        let mut verdict = follow(step, &result);
        // It ended itself, and its node says so: nothing of it is left there.
        let ended_itself =
            step.nodes.iter().any(|n| n.exit.as_ref().and_then(|e| e.ended_by) == Some(EndCause::OutOfTouch));
        if step.login {
            self.wipe(PayloadKey::StepLogin(job, id));
        }
        verdict.requeue |= ended_itself && result.state == JobState::NodeFail && self.runs_again(job);
        let Some(record) = self.job_live(job) else { return };
        record.progress.remove(&id);
        let drives = match record.spec.spec.kind {
            JobKind::Batch => id == StepId::Batch,
            JobKind::Run => id == StepId::Number(0),
            JobKind::Alloc => false,
        };
        match record.row.phase {
            Phase::Running(_) if drives => self.end_job(job, verdict),
            Phase::Running(_) => self.retry_waiting(job),
            Phase::Ending { .. } => self.refresh_derived(job),
            Phase::Pending | Phase::Ended { .. } => {}
        }
    }

    /// Ends a running job, with all of its components: its nodes are told, and it is over when all have answered.
    pub(super) fn end_job(&mut self, id: JobId, verdict: Verdict) {
        let again = verdict.requeue;
        for member in self.whole(id) {
            self.end_run(member, verdict.clone());
        }
        if again {
            self.bring_back(id);
        }
    }

    /// Ends one component alone, or a job that has no others.
    pub(super) fn end_run(&mut self, id: JobId, verdict: Verdict) {
        let now = self.clock;
        let Some(job) = self.job(id) else { return };
        let Phase::Running(run) = &job.row.phase else { return };
        let run = run.clone();
        let attempt = job.row.attempt;
        let nodes = run.allocation.nodes.clone();
        self.owing.remove(&(id, attempt));
        let result = JobResult {
            state: verdict.state,
            reason: verdict.reason,
            exit: verdict.exit,
            derived: self.derived(id),
            cancelled_by: verdict.cancelled_by,
            cause: verdict.cause,
            ended: now,
        };
        if let Some(job) = self.job_mut(id) {
            job.row.phase = Phase::Ending {
                run,
                result,
                left: nodes.iter().cloned().collect(),
                requeue: verdict.requeue,
            };
        }
        self.refuse_waiting(id);
        self.is_busy(id);
        let kill_wait = verdict.kill_wait.unwrap_or(self.config.kill_wait);
        for node in nodes {
            self.send(
                &node,
                ToAgent::EndJob { term: self.term, job: id, attempt, kill_wait, cause: verdict.cause },
            );
        }
        self.arm_resend(id);
    }

    /// Nothing of a run is left on a node: its share is free.
    pub(super) fn job_gone(&mut self, node: &NodeName, job: JobId, attempt: Attempt) {
        self.settled(node, job, attempt);
        self.end_on_node(node, job, attempt);
    }

    /// What its job has on a node is over.
    pub(super) fn end_on_node(&mut self, node: &NodeName, job: JobId, attempt: Attempt) {
        let Some(record) = self.job(job).filter(|j| j.row.attempt == attempt) else { return };
        let Phase::Ending { left, result, .. } = &record.row.phase else { return };
        if !left.contains(node) {
            return;
        }
        // Every exit was recorded before; what has none never ran there.
        let cause = result.cause;
        self.lose_parts(node, job, cause);
        self.leave_node(node, job, attempt);
    }

    /// Takes a node out of a job that is ending.
    pub(super) fn leave_node(&mut self, node: &NodeName, job: JobId, attempt: Attempt) {
        let now = self.clock;
        if let Some(n) = self.nodes.get_mut(node).map(Arc::make_mut)
            && n.release((job, attempt))
        {
            n.last_busy = Some(now);
            n.refit_if_free(&self.config);
        }
        self.room_on(node);
        let Some(record) = self.job_live(job) else { return };
        let Phase::Ending { left, .. } = &mut record.row.phase else { return };
        if left.remove(node).is_none() {
            return;
        }
        if left.is_empty() {
            return self.conclude(job);
        }
        self.out.left.insert((job, node.clone()));
    }

    /// Step parts on a node that never reported an exit get one: they are lost, or never ran.
    fn lose_parts(&mut self, node: &NodeName, job: JobId, cause: EndCause) {
        let Some(record) = self.job(job) else { return };
        let open: Vec<(StepId, usize)> = record
            .steps
            .iter()
            .filter(|(_, s)| s.result.is_none())
            .filter_map(|(id, s)| {
                let at = s.nodes.find(node).filter(|at| s.nodes[*at].exit.is_none())?;
                Some((*id, at))
            })
            .collect();
        for (id, at) in open {
            let exit = self.unseen(job, id).unwrap_or_else(|| unreported(cause, self.clock));
            self.step_exited(job, id, at, exit);
        }
    }

    /// All nodes of an ending job have answered.
    fn conclude(&mut self, id: JobId) {
        self.array_task_ended(id);
        let now = self.clock;
        let Some(job) = self.job_mut(id) else { return };
        let Phase::Ending { run, result, requeue, .. } = &job.row.phase else { return };
        if *requeue {
            job.row.phase = Phase::Pending;
            self.next_attempt(id);
            return;
        }
        job.row.phase = Phase::Ended { run: Some(run.clone()), result: result.clone() };
        self.wipe_login(id);
        self.active -= 1;
        let age = self.config.min_job_age;
        self.timers.insert((now + age, Timer::Purge(id)));
    }

    /// A job goes back to the queue as its next attempt.
    pub(super) fn next_attempt(&mut self, id: JobId) {
        let now = self.clock;
        let Some(next) = self.attempt_of(id).map(|at| self.restored.attempt(id, Attempt(at.0 + 1))) else {
            return;
        };
        let Some(job) = self.job_mut(id) else { return };
        job.row.attempt = next;
        job.row.phase = Phase::Pending;
        job.row.eligible = now;
        let steps = std::mem::take(&mut job.steps);
        job.progress = imbl::OrdMap::new();
        self.write_last(steps.values());
        // The environments of this run's steps are of no more use; the next run's steps have the same keys.
        for step in steps.keys().filter(|s| **s != StepId::Batch) {
            let key = PayloadKey::Step(id, *step);
            self.out.first.push(Write::DeletePayload(key));
        }
        self.enqueue(id);
    }

    /// Steps that nobody looks at any more: how they ended may have been learnt in this very event.
    fn write_last<'a>(&mut self, steps: impl IntoIterator<Item = &'a Arc<StepRow>>) {
        for step in steps {
            if self.out.steps.remove(&step.key) {
                self.out.first.push(Write::PutStep(step.clone()));
            }
        }
    }

    /// A job that does not run ends, with all of its components.
    pub(super) fn end_pending(&mut self, id: JobId, verdict: Verdict) {
        for member in self.whole(id) {
            match self.job(member).map(|job| &job.row.phase) {
                Some(Phase::Pending) => self.end_waiting(member, verdict.clone()),
                Some(Phase::Ending { requeue: true, .. }) => {
                    self.cancel_requeue(member, verdict.cancelled_by)
                }
                _ => {}
            }
        }
    }

    fn end_waiting(&mut self, id: JobId, verdict: Verdict) {
        let now = self.clock;
        self.dequeue(id);
        let Some(job) = self.job_mut(id) else { return };
        job.row.phase = Phase::Ended {
            run: None,
            result: JobResult {
                state: verdict.state,
                reason: verdict.reason,
                exit: verdict.exit,
                derived: ExitStatus::OK,
                cancelled_by: verdict.cancelled_by,
                cause: verdict.cause,
                ended: now,
            },
        };
        job.row.hold = None;
        job.wait = None;
        self.wipe_login(id);
        self.active -= 1;
        let age = self.config.min_job_age;
        self.timers.insert((now + age, Timer::Purge(id)));
    }

    /// Takes the login of a job that is over out of the store; that of an array with its last task.
    fn wipe_login(&mut self, id: JobId) {
        let Some(of) = self.job(id).filter(|j| j.spec.login).map(|j| j.row.spec_of) else { return };
        let over = |job: &JobId| {
            self.job(*job)
                .is_none_or(|j| matches!(j.row.phase, Phase::Ended { .. }) || j.row.is_empty_array())
        };
        if self.arrays.get(&of).is_none_or(|array| array.members.iter().all(over)) {
            self.wipe(PayloadKey::Login(of));
        }
    }

    fn wipe(&mut self, login: PayloadKey) {
        self.out.last.push(Write::DeletePayload(login));
    }

    /// The job's first step cannot begin in its own allocation.
    pub(super) fn fail_launch(&mut self, id: JobId, why: String) {
        let verdict = Verdict {
            reason: Reason::LaunchFailed(why),
            exit: ExitStatus { code: 1, signal: 0 },
            ..Verdict::new(JobState::Failed, EndCause::JobEnded)
        };
        self.end_job(id, verdict);
    }

    /// The highest exit status of a job's steps except the batch script.
    fn derived(&self, id: JobId) -> ExitStatus {
        let steps = self.job(id).into_iter().flat_map(|j| j.steps.values());
        steps
            .filter(|s| s.key.step != StepId::Batch)
            .filter_map(|s| s.result.as_ref().map(|r| r.exit))
            .fold(ExitStatus::OK, worst)
    }

    fn refresh_derived(&mut self, id: JobId) {
        let now_derived = self.derived(id);
        let stale = |job: &Arc<crate::job::Job>| matches!(&job.row.phase, Phase::Ending { result, .. } if result.derived != now_derived);
        if !self.job(id).is_some_and(stale) {
            return;
        }
        let Some(job) = self.job_mut(id) else { return };
        if let Phase::Ending { result, .. } = &mut job.row.phase {
            result.derived = now_derived;
        }
    }

    /// Has a step ended by its agents, in all components that it has.
    pub(super) fn end_step(
        &mut self,
        job: JobId,
        id: StepId,
        cause: EndCause,
        by: Option<Uid>,
        kill_wait: Option<Span>,
    ) {
        let parts = self.job(job).and_then(|j| j.steps.get(&id)).and_then(|step| step.het.clone());
        let Some(het) = parts else { return self.end_part(job, id, cause, by, kill_wait) };
        for key in &het.parts {
            if self.step(*key).is_some() {
                self.end_part(key.job, key.step, cause, by, kill_wait);
            }
        }
    }

    /// Ends a step in one component.
    fn end_part(
        &mut self,
        job: JobId,
        id: StepId,
        cause: EndCause,
        by: Option<Uid>,
        kill_wait: Option<Span>,
    ) {
        let Some(step) = self.step_mut(job, id).filter(|s| s.result.is_none()) else { return };
        step.ending.get_or_insert(cause);
        if step.cancelled_by.is_none() {
            step.cancelled_by = by;
        }
        let key = step.key;
        let nodes: Vec<NodeName> = step.nodes.unended().map(|(_, part)| part.node.clone()).collect();
        let kill_wait = kill_wait.unwrap_or(self.config.kill_wait);
        // What is not there yet cannot be ended, and what is carried may come behind this.
        self.send_what_is_unconfirmed(key);
        for node in nodes {
            self.send(&node, ToAgent::Terminate { term: self.term, key, kill_wait, cause });
        }
        self.arm_resend(job);
    }

    /// The client that drives an allocation is done (`Some`), or went away without a word (`None`).
    pub(super) fn end_allocation(
        &mut self,
        actor: &Actor,
        id: JobId,
        status: Option<ExitStatus>,
    ) -> Result<Response, Refusal> {
        let job = self.driven(actor, id)?;
        if job.spec.spec.kind == JobKind::Batch {
            return Err(Refusal::new(
                RefusalCode::WrongState,
                format!("Job {id} is a batch job: it ends with its script, or by scancel"),
            ));
        }
        let verdict = match status {
            None => Verdict::cancelled(None),
            Some(exit) if exit.success() => Verdict::new(JobState::Completed, EndCause::JobEnded),
            Some(exit) => Verdict {
                exit,
                reason: Reason::NonZeroExitCode,
                ..Verdict::new(JobState::Failed, EndCause::JobEnded)
            },
        };
        let phase = job.row.phase.clone();
        if status.is_some() && matches!(phase, Phase::Pending | Phase::Running(_)) {
            self.note_job(actor, "ended", id);
        }
        match phase {
            Phase::Pending => self.end_pending(id, Verdict::cancelled(None)),
            Phase::Running(_) => self.end_job(id, verdict),
            Phase::Ending { .. } | Phase::Ended { .. } => {}
        }
        Ok(Response::Done)
    }

    /// What a node held is lost, by evidence.
    pub(super) fn fail_on_node(&mut self, node: &NodeName) {
        let runs: Vec<(JobId, Attempt)> =
            self.nodes.get(node).map(|n| n.held.keys().copied().collect()).unwrap_or_default();
        for (id, attempt) in runs {
            self.lose_run(node, id, attempt);
        }
    }

    /// A run is alive on a node no more, by evidence: a batch job goes back to the queue unless it said otherwise, all else has failed.
    pub(super) fn lose_run(&mut self, node: &NodeName, id: JobId, attempt: Attempt) {
        let Some(job) = self.job(id) else { return };
        if let Phase::Running(_) = job.row.phase {
            let verdict = self.lost_verdict(id);
            let requeue = verdict.requeue;
            self.lose_parts(node, id, EndCause::NodeFailed);
            self.end_job(id, verdict);
            self.requeue_lost(id, requeue);
        }
        self.lose_parts(node, id, EndCause::NodeFailed);
        self.leave_node(node, id, attempt);
    }

    /// How a job ends whose run was lost.
    pub(super) fn lost_verdict(&self, id: JobId) -> Verdict {
        Verdict {
            reason: Reason::NodeDown,
            requeue: self.runs_again(id),
            ..Verdict::new(JobState::NodeFail, EndCause::NodeFailed)
        }
    }

    /// Whether a job that was lost goes back to the queue.
    fn runs_again(&self, id: JobId) -> bool {
        self.job(id).is_some_and(|job| {
            job.spec.spec.kind == JobKind::Batch && job.spec.spec.requeue.unwrap_or(self.config.requeue)
        })
    }

    /// The lost part may have been what the job lived by, and have ended it already: the verdict is the same.
    fn requeue_lost(&mut self, id: JobId, again: bool) {
        let lost = |job: &Arc<crate::job::Job>| matches!(&job.row.phase, Phase::Ending { result, .. } if result.state == JobState::NodeFail);
        if !self.job(id).is_some_and(lost) {
            return;
        }
        for member in self.whole(id) {
            if let Some(Phase::Ending { requeue, .. }) = self.job_mut(member).map(|job| &mut job.row.phase) {
                *requeue = again;
            }
        }
        if again {
            self.bring_back(id);
        }
    }

    /// A record of a range from which everything was taken: the array's own stays for its specification.
    pub(super) fn range_is_empty(&mut self, id: JobId) {
        let Some(job) = self.job(id) else { return };
        let array = job.row.spec_of;
        if array == id {
            self.active -= 1;
            return;
        }
        self.jobs.remove(&id);
        self.active -= 1;
        self.out.jobs.remove(&id);
        self.out.last.push(Write::DeleteJob(id));
        if let Some(state) = self.arrays.get_mut(&array) {
            state.members.remove(&id);
        }
    }

    /// Lets go of a job that ended long enough ago, with all of its components.
    pub(super) fn purge(&mut self, id: JobId) {
        let members = self.whole(id);
        if self.het(id).is_some()
            && !members.iter().all(|m| self.job(*m).is_some_and(|job| self.is_old(&job.row.phase)))
        {
            return; // the last one to end has a timer, too
        }
        for member in members {
            self.purge_one(member);
        }
    }

    fn purge_one(&mut self, id: JobId) {
        let Some(job) = self.job(id) else { return };
        // A job that was requeued meanwhile has a later timer of its own.
        if !(self.is_old(&job.row.phase) || job.row.is_empty_array()) {
            return;
        }
        let array = job.row.spec_of;
        if let Some(state) = self.arrays.get_mut(&array) {
            if array == id && state.members.len() > 1 {
                return; // its tasks need its specification
            }
            state.members.remove(&id);
            if state.members.is_empty() {
                self.arrays.remove(&array);
            }
        }
        let Some(job) = self.jobs.remove(&id) else { return };
        self.sluids.leave(&job.row);
        if job.row.job == array {
            let spec = &job.spec;
            let digest = super::submit::digest(spec.submission());
            self.submissions.remove(&(spec.identity.uid, digest, id));
            self.out.last.push(Write::DeletePayload(PayloadKey::Job(id)));
        }
        for step in job.steps.keys().filter(|s| **s != StepId::Batch) {
            self.out.last.push(Write::DeletePayload(PayloadKey::Step(id, *step)));
        }
        // A site that keeps no job in memory lets it go in the event in which it ends.
        self.write_last(job.steps.values());
        if self.out.jobs.remove(&id) {
            self.out.first.push(Write::PutJob(Box::new(job.row.clone())));
        }
        self.out.changed.insert(id);
        self.out.last.push(Write::Retire(id));
        if array != id && self.arrays.get(&array).is_some_and(|s| s.members.len() == 1) {
            self.purge_array_record(array);
        }
    }

    /// The last task is gone: the array's own record may go too, unless tasks wait in it.
    fn purge_array_record(&mut self, array: JobId) {
        let done = self.job(array).is_some_and(|j| j.row.is_empty_array() || self.is_old(&j.row.phase));
        if done {
            self.purge(array);
        }
    }

    fn is_old(&self, phase: &Phase) -> bool {
        matches!(phase, Phase::Ended { result, .. } if result.ended + self.config.min_job_age <= self.clock)
    }
}

impl Run {
    /// Whether the run has a part on the node.
    pub(crate) fn on(&self, node: &NodeName) -> bool {
        let Allocation { nodes, .. } = &*self.allocation;
        nodes.contains(node)
    }
}

/// Counts toward the site's most jobs: everything that waits or runs.
pub(super) fn is_active(job: &Arc<crate::job::Job>) -> bool {
    !matches!(job.row.phase, Phase::Ended { .. })
        && !matches!(&job.row.tasks, Tasks::Range(s) if s.is_empty())
}
