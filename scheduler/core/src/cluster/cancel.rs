//! `scancel`, hold, release and requeue.

use super::Cluster;
use super::ending::Verdict;
use super::select::text;
use crate::rows::{Hold, Phase};
use berth_model::ids::{JobId, NodeName, StepId, Uid};
use berth_model::link::{EndCause, SignalTarget};
use berth_model::request::{Actor, CancelRequest, Refusal, RefusalCode, Response};
use berth_model::spec::{JobKind, JobSelector};
use berth_model::state::JobState;
use berth_model::time::Span;
use std::collections::BTreeSet;

const SIGKILL: i32 = 9;

/// Collects what a command on many jobs did.
#[derive(Default)]
struct Acts {
    jobs: Vec<JobId>,
    refused: Vec<(String, Refusal)>,
    /// Other people's jobs on which somebody with a role acted, for the audit log.
    foreign: Vec<String>,
    /// Nodes that are not connected, and pass a signal on when they are back.
    later: BTreeSet<NodeName>,
}

impl Acts {
    fn note(&mut self, what: impl FnOnce() -> String, job: Option<JobId>, result: Result<(), Refusal>) {
        match result {
            Ok(()) => self.jobs.extend(job),
            Err(refusal) => self.refused.push((what(), refusal)),
        }
    }

    /// Takes note of somebody else's job on which somebody with a role acted.
    fn owned_by(&mut self, owner: Option<String>, what: impl FnOnce() -> String) {
        self.foreign.extend(owner.map(|owner| format!("{} of {owner}", what())));
    }

    fn answer(self) -> Result<Response, Refusal> {
        let later = self.later.into_iter().collect();
        Ok(Response::Acted { jobs: self.jobs, refused: self.refused, later })
    }
}

fn wrong_state(text: String) -> Refusal {
    Refusal::new(RefusalCode::WrongState, text)
}

impl Cluster {
    pub(super) fn cancel(&mut self, actor: &Actor, request: &CancelRequest) -> Result<Response, Refusal> {
        let mut acts = Acts::default();
        let verb = match request.signal {
            None => "cancelled".to_string(),
            Some(signal) => format!("sent signal {signal} to"),
        };
        if request.jobs.is_empty() {
            let others = request.user.is_some_and(|user| user != actor.identity.uid);
            if others && !actor.is_operator() && actor.accounts.is_empty() {
                return Err(Refusal::new(
                    RefusalCode::Denied,
                    "Access/permission denied: only a coordinator of their account, an operator or an administrator cancels \
                     other people's jobs",
                ));
            }
            // Coordinators are users with jobs of their own: these alone are meant where they say neither whose nor of which account.
            let reach = actor.is_operator() || others || request.account.is_some();
            let meant = |id: &JobId| {
                let own = || self.foreign(actor, *id).is_none();
                self.matches(*id, request)
                    && self.job(*id).is_some_and(super::ending::is_active)
                    && (reach || own())
            };
            let ids: Vec<JobId> = self.jobs.keys().copied().filter(meant).collect();
            for id in ids {
                let component = self.het(id).filter(|het| !het.leads());
                if component.is_some_and(|het| acts.jobs.contains(&het.leader)) {
                    continue; // ended with the first one
                }
                if let Err(refusal) = self.managed(actor, id) {
                    // Whoever names a user is told what was left; a filter alone chooses among what one may act on.
                    if others && component.is_none() {
                        acts.refused.push((id.to_string(), refusal));
                    }
                    continue;
                }
                let owner = self.foreign(actor, id);
                let result = self.cancel_job(actor, id, request, &mut acts.later);
                acts.owned_by(owner.filter(|_| result.is_ok()), || id.to_string());
                acts.note(|| id.to_string(), Some(id), result);
            }
            self.note_jobs(actor, &verb, std::mem::take(&mut acts.foreign));
            return acts.answer();
        }
        for (selector, step) in &request.jobs {
            let what = || match step {
                Some(step) => format!("{}.{step}", text(selector)),
                None => text(selector),
            };
            let ids = match self.select(actor, selector) {
                Ok(ids) => ids,
                Err(refusal) => {
                    acts.refused.push((what(), refusal));
                    continue;
                }
            };
            let many = ids.len() > 1;
            for id in ids.into_iter().filter(|id| self.matches(*id, request)).collect::<Vec<_>>() {
                if many && !self.job(id).is_some_and(super::ending::is_active) {
                    continue; // tasks of an array that ended before
                }
                let owner = self.foreign(actor, id);
                let result = match step {
                    Some(step) => self.cancel_step(actor, (id, *step), request.signal, &mut acts.later),
                    None => self.cancel_job(actor, id, request, &mut acts.later),
                };
                acts.owned_by(owner.filter(|_| result.is_ok()), what);
                acts.note(what, Some(id), result);
            }
        }
        self.note_jobs(actor, &verb, std::mem::take(&mut acts.foreign));
        acts.answer()
    }

    fn matches(&self, id: JobId, request: &CancelRequest) -> bool {
        let Some(job) = self.job(id) else { return false };
        let spec = &job.spec;
        let state = match job.row.phase {
            Phase::Ending { .. } => JobState::Completing,
            _ => job.row.base_state(),
        };
        let on = |nodes: &[berth_model::NodeName]| job.run().is_some_and(|r| nodes.iter().any(|n| r.on(n)));
        request.user.is_none_or(|u| u == spec.identity.uid)
            && request.name.as_ref().is_none_or(|n| n == spec.name())
            && request.partition.as_ref().is_none_or(|p| **p == *spec.partition)
            && request.account.as_deref().is_none_or(|account| {
                spec.spec.account.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(account))
            })
            && (request.states.is_empty() || request.states.contains(&state))
            && (request.nodes.is_empty() || on(&request.nodes))
    }

    fn cancel_job(
        &mut self,
        actor: &Actor,
        id: JobId,
        request: &CancelRequest,
        later: &mut BTreeSet<NodeName>,
    ) -> Result<(), Refusal> {
        let Some(job) = self.job(id) else { return Ok(()) };
        let alone = self.het(id).is_some_and(|het| !het.leads());
        if alone && matches!(job.row.phase, Phase::Pending | Phase::Ending { requeue: true, .. }) {
            return Err(super::het::not_alone(id));
        }
        // SIGKILL without a choice of processes is meant for the job as a whole.
        let kill = request.signal == Some(SIGKILL) && !request.batch;
        match (&job.row.phase, request.signal) {
            (Phase::Ending { requeue: true, .. }, None) => {
                self.end_pending(id, Verdict::cancelled(Some(actor.identity.uid)));
                Ok(())
            }
            (Phase::Ending { .. } | Phase::Ended { .. }, _) => {
                Err(wrong_state(format!("Job/step already completing or completed: job {id}")))
            }
            (Phase::Pending, None) => {
                self.end_pending(id, Verdict::cancelled(Some(actor.identity.uid)));
                Ok(())
            }
            (Phase::Pending, Some(SIGKILL)) => {
                self.end_pending(id, Verdict::cancelled(Some(actor.identity.uid)));
                Ok(())
            }
            (Phase::Pending, Some(_)) => Err(wrong_state(format!(
                "Job {id} is pending: there is nothing to signal; cancel it without --signal"
            ))),
            (Phase::Running(_), None) => {
                let verdict = Verdict::cancelled(Some(actor.identity.uid));
                if alone {
                    self.end_run(id, verdict)
                } else {
                    self.end_job(id, verdict)
                }
                Ok(())
            }
            (Phase::Running(_), Some(_)) if kill => {
                let verdict = Verdict {
                    kill_wait: Some(Span::default()),
                    ..Verdict::cancelled(Some(actor.identity.uid))
                };
                if alone {
                    self.end_run(id, verdict)
                } else {
                    self.end_job(id, verdict)
                }
                Ok(())
            }
            (Phase::Running(_), Some(signal)) => {
                let target = match (request.full, request.batch) {
                    (true, _) => SignalTarget::All,
                    (false, true) => SignalTarget::BatchShell,
                    (false, false) => SignalTarget::Steps,
                };
                for job in self.led_by(id) {
                    let Some(record) = self.job(job) else { continue };
                    let Phase::Running(run) = &record.row.phase else { continue };
                    let (nodes, attempt) = (run.allocation.nodes.clone(), record.row.attempt);
                    self.signal((job, attempt), nodes, target, signal, later);
                }
                Ok(())
            }
        }
    }

    /// A job that was on its way back to the queue is cancelled instead.
    pub(super) fn cancel_requeue(&mut self, id: JobId, by: Option<Uid>) {
        let Some(job) = self.job_mut(id) else { return };
        if let Phase::Ending { result, requeue, .. } = &mut job.row.phase {
            *requeue = false;
            result.state = JobState::Cancelled;
            result.cancelled_by = by;
        }
    }

    fn cancel_step(
        &mut self,
        actor: &Actor,
        (id, step): (JobId, StepId),
        signal: Option<i32>,
        later: &mut BTreeSet<NodeName>,
    ) -> Result<(), Refusal> {
        let Some(job) = self.job(id) else { return Ok(()) };
        let Some(row) = job.steps.get(&step) else {
            return Err(Refusal::new(
                RefusalCode::NotFound,
                format!("Invalid job id specified: there is no step {id}.{step}"),
            ));
        };
        if row.result.is_some() {
            return Err(wrong_state(format!("Job/step already completing or completed: step {id}.{step}")));
        }
        let by = Some(actor.identity.uid);
        match signal {
            None => self.end_step(id, step, EndCause::Cancelled, by, None),
            Some(SIGKILL) => self.end_step(id, step, EndCause::Cancelled, by, Some(Span::default())),
            Some(signal) => {
                let attempt = job.row.attempt;
                let nodes: Vec<_> = row.nodes.unended().map(|(_, part)| part.node.clone()).collect();
                self.signal((id, attempt), nodes, SignalTarget::Step(step), signal, later);
            }
        }
        Ok(())
    }

    /// Acts on every record that the selectors name.
    fn each(
        &mut self,
        actor: &Actor,
        verb: &str,
        selectors: &[JobSelector],
        mut act: impl FnMut(&mut Cluster, JobId) -> Result<(), Refusal>,
    ) -> Result<Response, Refusal> {
        let mut acts = Acts::default();
        for selector in selectors {
            match self.select(actor, selector) {
                Ok(ids) => {
                    let mut found = Acts::default();
                    for id in ids {
                        let owner = self.foreign(actor, id);
                        let result = act(self, id);
                        acts.owned_by(owner.filter(|_| result.is_ok()), || text(selector));
                        found.note(|| text(selector), Some(id), result);
                    }
                    // Of an array only the tasks in the right state are meant, as long as there are any.
                    if !found.jobs.is_empty() {
                        found.refused.retain(|(_, r)| r.code != RefusalCode::WrongState);
                    }
                    acts.jobs.extend(found.jobs);
                    acts.refused.extend(found.refused.into_iter().next());
                }
                Err(refusal) => acts.refused.push((text(selector), refusal)),
            }
        }
        self.note_jobs(actor, verb, std::mem::take(&mut acts.foreign));
        acts.answer()
    }

    pub(super) fn hold(&mut self, actor: &Actor, selectors: &[JobSelector]) -> Result<Response, Refusal> {
        self.each(actor, "held", selectors, |cluster, id| {
            let Some(job) = cluster.job(id) else { return Ok(()) };
            if !job.is_pending() {
                return Err(wrong_state(format!(
                    "Job {id} is no longer pending; only waiting jobs can be held"
                )));
            }
            // As Slurm has it: what a coordinator holds, its owner releases.
            let own = job.spec.identity.uid == actor.identity.uid;
            let by = if own || !actor.is_operator() { Hold::User } else { Hold::Admin };
            for member in cluster.led_by(id) {
                cluster.dequeue(member);
                if let Some(job) = cluster.job_mut(member).filter(|job| job.is_pending()) {
                    // Nobody makes an operator's hold their own, to release it then.
                    if job.row.hold != Some(Hold::Admin) || actor.is_operator() {
                        job.row.hold = Some(by);
                    }
                    job.wait = None;
                }
            }
            // Of several components the others are told why they wait.
            cluster.enqueue(id);
            Ok(())
        })
    }

    pub(super) fn release(&mut self, actor: &Actor, selectors: &[JobSelector]) -> Result<Response, Refusal> {
        self.each(actor, "released", selectors, |cluster, id| {
            let Some(job) = cluster.job(id) else { return Ok(()) };
            if !job.is_pending() {
                return Err(wrong_state(format!("Job {id} is no longer pending; there is nothing to release")));
            }
            let members = cluster.led_by(id);
            let held = |m: &JobId| cluster.job(*m).and_then(|job| job.row.hold);
            if members.iter().any(|m| held(m) == Some(Hold::Admin)) && !actor.is_operator() {
                return Err(Refusal::new(
                    RefusalCode::Denied,
                    format!(
                        "Access/permission denied: job {id} was held by an operator or an administrator: only one of them \
                         releases it"
                    ),
                ));
            }
            for member in members {
                if cluster.job(member).is_none_or(|job| job.row.hold.is_none()) {
                    continue;
                }
                let now = cluster.clock;
                if let Some(job) = cluster.job_mut(member) {
                    job.row.hold = None;
                    job.row.eligible = job.row.eligible.max(now);
                }
                cluster.enqueue(member);
            }
            Ok(())
        })
    }

    pub(super) fn requeue(&mut self, actor: &Actor, selectors: &[JobSelector]) -> Result<Response, Refusal> {
        self.each(actor, "requeued", selectors, |cluster, id| {
            let Some(job) = cluster.job(id) else { return Ok(()) };
            if job.spec.spec.kind != JobKind::Batch {
                return Err(Refusal::new(
                    RefusalCode::Invalid,
                    format!("Requested operation is presently disabled: job {id} is interactive; only batch jobs can be requeued"),
                ));
            }
            if !job.spec.spec.requeue.unwrap_or(cluster.config.requeue) {
                return Err(Refusal::new(
                    RefusalCode::Denied,
                    format!("Requested operation is presently disabled: job {id} was submitted with --no-requeue"),
                ));
            }
            if cluster.het(id).is_some_and(|het| !het.leads()) {
                return Err(super::het::not_alone(id));
            }
            match &job.row.phase {
                Phase::Pending => Err(wrong_state(format!("Job {id} is pending; it needs no requeue"))),
                Phase::Ending { .. } => {
                    if let Some(job) = cluster.job_mut(id)
                        && let Phase::Ending { requeue, .. } = &mut job.row.phase
                    {
                        *requeue = true;
                    }
                    cluster.bring_back(id);
                    cluster.keep_images_of(id);
                    Ok(())
                }
                Phase::Running(_) => {
                    let verdict = Verdict { requeue: true, ..Verdict::new(JobState::Cancelled, EndCause::Requeued) };
                    cluster.end_job(id, verdict);
                    Ok(())
                }
                Phase::Ended { run: None, .. } => {
                    Err(wrong_state(format!("Job {id} was cancelled before it ran; submit it again")))
                }
                Phase::Ended { .. } => {
                    cluster.active += 1;
                    cluster.next_attempt(id);
                    cluster.bring_back(id);
                    cluster.keep_images_of(id);
                    Ok(())
                }
            }
        })
    }
}
