//! After a restored backup: what was given out since is not given out again, and no job starts before every node has
//! told what it still runs.

use super::Cluster;
use super::timers::Timer;
use crate::event::Effect;
use crate::job::Progress;
use crate::rows::{AuditRow, Awaited, MetaRow, Phase, ROW_VERSION, Restored, StepNode, StepRow};
use crate::store::{Stored, Write};
use berth_model::ids::{Attempt, JobId, NodeName, StepId, StepKey, Term, Uid};
use berth_model::launch::StepExit;
use berth_model::link::EndCause;
use berth_model::sluid::Sluid;
use berth_model::time::{Span, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How far the ids of jobs go on above those of the backup.
const JOBS: u32 = 10_000;
/// The same for attempts of a job.
const ATTEMPTS: u32 = 100;
/// The same for numbers of steps.
const STEPS: u32 = 1_000;
/// By how much a node may raise the term by what it reports: more than controllers can have begun, or restores have gone on by, which is a million each.
const MOST: u64 = 1 << 22;
/// How often a node may do that which does not come then: each time costs the core, and all agents their connections.
const MOST_TIMES: u32 = 8;
/// For how long nothing starts since the port of a controller listens. Agents that have lost their controller try again within seven seconds.
pub(super) const COMING: Span = Span::from_secs(30);

/// What a store that came from a backup needs before a controller takes it: counters above all that can have been given
/// out since, and the names of the nodes to be waited for; tokens to join are taken back, since they may have been used up.
/// `beyond` is an id of a job above others that are known to have been given out.
pub fn go_on_from(stored: &Stored, beyond: u32) -> Vec<Write> {
    let meta = stored.meta.as_ref();
    let next_job = meta.map_or(1, |m| m.next_job).max(beyond).saturating_add(JOBS).min(u32::MAX - 1);
    let before = meta.and_then(|m| m.restored.clone()).unwrap_or_default();
    let attempt = stored.jobs.iter().map(|j| j.attempt.0).max().unwrap_or(0).max(before.attempts);
    let number = |step| if let StepId::Number(n) = step { n } else { 0 };
    let step = stored.steps.iter().map(|s| number(s.key.step)).max().unwrap_or(0).max(before.steps);
    let tokens = stored.tokens.iter().map(|token| Write::DeleteToken(token.id.clone()));
    let clock = meta.map_or_else(Default::default, |m| m.clock);
    let number = meta.map_or(1, |m| m.next_audit.max(1));
    // What was entered into the log since is lost as well: that is said where it is missed.
    let entry = Write::AddAudit(Box::new(AuditRow {
        version: ROW_VERSION,
        number,
        at: clock,
        uid: Uid(0),
        user: "berth".to_string(),
        role: None,
        inside: None,
        via: None,
        what: "a backup was restored: what was done after this time is on no record".to_string(),
    }));
    let counters = Write::PutMeta(MetaRow {
        version: ROW_VERSION,
        next_job,
        clock,
        next_audit: number + 1,
        leaps: meta.map(|m| m.leaps.clone()).unwrap_or_default(),
        // What was given out since the backup was made is in the other realm.
        sluid: meta.and_then(|m| m.sluid).map(Sluid::without_realm),
        restored: Some(Restored {
            before: JobId(next_job),
            attempts: attempt.saturating_add(ATTEMPTS),
            steps: step.saturating_add(STEPS),
            base: JobId(next_job),
            not_before: Some(Time::default()),
            awaited: stored.nodes.iter().map(|n| (n.name.clone(), Awaited::Word)).collect(),
            unheard: BTreeSet::new(),
            superseded: BTreeMap::new(),
        }),
    });
    tokens.chain([entry, counters]).collect()
}

impl Restored {
    /// Whether the run may have begun before the restore.
    fn is_old(&self, job: JobId, attempt: Attempt) -> bool {
        job < self.before && attempt.0 < self.attempts
    }

    /// The attempt of a job that waits: not below those that may have run.
    pub(super) fn attempt(&self, job: JobId, attempt: Attempt) -> Attempt {
        if job < self.before { Attempt(attempt.0.max(self.attempts)) } else { attempt }
    }

    /// The number of a job's next step: not below those that may have been given out.
    pub(super) fn step(&self, job: JobId, attempt: Attempt, next: u32) -> u32 {
        if self.is_old(job, attempt) { next.max(self.steps) } else { next }
    }

    /// Whether the step may have run since the backup was made, and be over.
    fn may_be_over(&self, key: StepKey) -> bool {
        self.is_old(key.job, key.attempt) && !matches!(key.step, StepId::Number(n) if n >= self.steps)
    }
}

/// The exit of a step that ended after the backup.
fn lost(now: berth_model::Time) -> StepExit {
    StepExit {
        launch_error: Some(
            "it ended after the backup from which the cluster was restored: how is on no record".to_string(),
        ),
        ..super::ending::unreported(EndCause::NodeFailed, now)
    }
}

impl Cluster {
    /// Whether no job may start: a node that has not told what it runs may have started any of them.
    pub(super) fn on_hold(&self) -> bool {
        self.may_yet_come() || self.restored.awaited.values().any(|state| *state != Awaited::Gone)
    }

    /// Whether a machine of which the backup says nothing may not have had the time to come.
    pub(super) fn may_yet_come(&self) -> bool {
        self.no_port_yet() || self.restored.not_before.is_some_and(|first| self.clock < first)
    }

    /// Whether it could not come so far: the port, which somebody else may have, did not listen since the restore.
    pub(super) fn no_port_yet(&self) -> bool {
        self.restored.not_before == Some(Time::default())
    }

    /// A controller starts after a restore. Where there are other machines its port is opened, and what is left of the time in which they can come
    /// begins anew with that; elsewhere none is opened of itself, and so it is now.
    pub(super) fn let_them_come(&mut self) {
        let left = self.restored.not_before.filter(|first| self.clock < *first);
        if self.members.is_empty() && self.tokens.is_empty() {
            self.they_can_come();
            // Long after, nothing is held up by it.
            if let Some(first) = left {
                self.timers.insert((first, Timer::Held));
            }
        } else if left.is_some() {
            self.restored.not_before = Some(Time::default());
            self.out.meta = true;
        }
        // A version before told only by what nodes have raised.
        if self.restored.base == JobId::default() && self.restored.before != JobId::default() {
            self.restored.base = self.restored.before;
            self.out.meta = true;
        }
        // What was answered is of no use to anybody when nothing is asked any more.
        if !self.on_hold() && !self.restored.awaited.is_empty() {
            self.restored.awaited.clear();
            self.out.meta = true;
        }
    }

    /// From now on machines can come.
    pub(super) fn they_can_come(&mut self) {
        if self.no_port_yet() {
            let first = self.clock + COMING;
            self.restored.not_before = Some(first);
            self.timers.insert((first, Timer::Held));
            self.out.meta = true;
        }
    }

    /// Whether the node is about to tell, for the first time after a restore, what it runs.
    pub(super) fn first_word(&self, node: &NodeName) -> bool {
        self.restored.awaited.get(node) == Some(&Awaited::Word)
    }

    /// Whether the node has not come since a restore, be it waited for or not: what it followed and had before we do not know. One that has come, and follows a
    /// later term than ours, has another controller by now.
    pub(super) fn has_not_come(&self, node: &NodeName) -> bool {
        let Restored { before, awaited, unheard, .. } = &self.restored;
        let told = matches!(awaited.get(node), Some(Awaited::Rest | Awaited::Beyond(_)));
        let comes = awaited.contains_key(node) || unheard.contains(node) || !self.nodes.contains_key(node);
        *before != JobId::default() && comes && !told
    }

    /// An agent that comes for the first time since the restore follows a later term than ours: we go on under a higher one. Whether that is so.
    pub(super) fn supersede(&mut self, node: &NodeName, term: Term) -> bool {
        let times = self.restored.superseded.get(node).copied().unwrap_or_default();
        let so = self.has_not_come(node) && term.0 - self.term.0 <= MOST && times < MOST_TIMES;
        if so {
            self.restored.superseded.insert(node.clone(), times + 1);
            self.out.meta = true;
            self.out.effects.push(Effect::Supersede(term));
        }
        so
    }

    /// A node has a run of a job that waits: it was started after the backup. The job's next run is another one.
    pub(super) fn pass_over_run(&mut self, (job, attempt): (JobId, Attempt)) {
        let behind = |cluster: &Cluster| {
            cluster.on_hold() && cluster.job(job).is_some_and(|j| j.is_pending() && j.row.attempt <= attempt)
        };
        if behind(self)
            && let Some(job) = self.job_mut(job)
        {
            job.row.attempt = Attempt(attempt.0.saturating_add(1));
        }
    }

    /// A step of which the node says nothing on its first word, though it was begun before the backup: it may have run
    /// and ended since, so it is not started again. Whether it is such a one.
    pub(super) fn ended_since(&mut self, key: StepKey, at: usize, first: bool) -> bool {
        let over = first && self.restored.may_be_over(key);
        // Without its specification it cannot be started at all.
        let made_up = key.step != StepId::Batch && self.step(key).is_some_and(|step| step.spec.is_none());
        if over || made_up {
            self.step_exited(key.job, key.step, at, lost(self.clock));
        }
        over || made_up
    }

    /// The exit of a step that may have ended unseen, before the restore.
    pub(super) fn unseen(&self, job: JobId, step: StepId) -> Option<StepExit> {
        let key = StepKey { job, attempt: self.attempt_of(job)?, step };
        self.restored.may_be_over(key).then(|| lost(self.clock))
    }

    /// Takes over a step that was made after the backup in a run that the backup has. Whether that can be done.
    pub(super) fn take_over_step(&mut self, node: &NodeName, key: StepKey) -> Option<usize> {
        if !self.first_word(node) || !self.restored.is_old(key.job, key.attempt) || key.step == StepId::Batch
        {
            return None;
        }
        let job = self.job(key.job).filter(|j| j.row.attempt == key.attempt)?;
        let known = job.steps.get(&key.step);
        let open = known.is_none_or(|step| step.spec.is_none() && step.result.is_none());
        if !matches!(&job.row.phase, Phase::Running(run) if run.on(node)) || !open {
            return None;
        }
        let now = self.clock;
        let part = StepNode { node: node.clone(), tasks: 1, share: None, pull: None, exit: None };
        if known.is_none() {
            let row = StepRow { name: "taken over".to_string(), ..StepRow::bare(key, now) };
            self.job_live(key.job)?.steps.insert(key.step, Arc::new(row));
        }
        let step = self.step_mut(key.job, key.step)?;
        step.nodes.push(part);
        let at = step.nodes.len() - 1;
        let progress = &mut self.job_live(key.job)?.progress;
        let mut parts = progress.get(&key.step).cloned().unwrap_or_default();
        parts.push_back(Progress::Sent(now));
        progress.insert(key.step, parts);
        Some(at)
    }

    /// The node has told what it runs; `beyond`: a job among it that is far above those of the backup.
    pub(super) fn has_told(&mut self, node: &NodeName, beyond: Option<JobId>) {
        if let Some(state) = self.restored.awaited.get_mut(node)
            && *state == Awaited::Word
        {
            *state = beyond.map_or(Awaited::Rest, Awaited::Beyond);
            self.out.meta = true;
        }
        self.at_rest(node);
    }

    /// Lets the node go once it has told what it runs and none of it is left that does not belong there.
    pub(super) fn at_rest(&mut self, node: &NodeName) {
        let told = self.restored.awaited.get(node) == Some(&Awaited::Rest);
        let clean = self.nodes.get(node).is_some_and(|n| n.link.is_some() && n.settling.is_empty());
        if told && clean {
            self.await_no_more(node);
        }
    }

    /// A node is not waited for any more: it has come back, or an administrator says that it is down.
    pub(super) fn await_no_more(&mut self, node: &NodeName) {
        let Some(state) = self.restored.awaited.remove(node) else { return };
        if state == Awaited::Word && self.nodes.contains_key(node) {
            self.restored.unheard.insert(node.clone());
        }
        self.unknown.remove(node);
        self.out.meta = true;
        self.end_hold();
    }

    /// Jobs start again if nothing is waited for any more.
    pub(super) fn end_hold(&mut self) {
        if !self.on_hold() {
            // Nobody is asked about any more.
            if !self.restored.awaited.is_empty() {
                self.restored.awaited.clear();
                self.out.meta = true;
            }
            let waiting: Vec<JobId> = self.queue.values().flatten().map(|key| key.job).collect();
            // With other reasons, and each partition is gone through.
            waiting.into_iter().for_each(|job| self.enqueue(job));
        }
    }
}
