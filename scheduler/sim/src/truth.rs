//! What really happened, beside what the controller believes: programs that ran, evidence of lost nodes, and everything that
//! was made durable or promised. Safety is that the two never contradict each other.

use crate::fencing::least;
use crate::machine::{Supervised, UNKILLABLE};
use crate::world::World;
use berth_agent_core::StepTimers;
use berth_model::ids::{Attempt, JobId, NodeName, StepKey};
use berth_model::launch::StepLaunch;
use berth_model::request::{NodeStateChange, Request};
use berth_model::sluid::Sluid;
use berth_model::state::{ExitStatus, JobState};
use berth_model::time::{Span, Time};
use berth_sched_core::{Event, JobRow, Phase, StepNode, Write};
use std::collections::{BTreeMap, BTreeSet};

/// What really became of a step on a node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ran {
    pub(crate) status: Option<ExitStatus>,
    /// Its supervisor left no word of how it ended.
    pub(crate) untold: bool,
}

/// What is on record.
#[derive(Clone, Default)]
pub(crate) struct OnRecord {
    exits: BTreeMap<(StepKey, NodeName), ExitStatus>,
    /// Jobs that ended, as which run, and how.
    ended: BTreeMap<JobId, (Attempt, JobState, ExitStatus)>,
    /// The latest run of each job.
    pub(crate) attempts: BTreeMap<JobId, Attempt>,
    /// Submissions on record.
    specs: BTreeSet<JobId>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Truth {
    pub(crate) ran: BTreeMap<(StepKey, NodeName), Ran>,
    /// Runs that may count as lost on a node: it booted anew, or an administrator says so of one that is not connected.
    pub(crate) evidence: BTreeSet<(JobId, Attempt, NodeName)>,
    /// Runs on nodes that were given up while they were connected: when that counts as evidence at the earliest, unless the link is lost before.
    given_up: BTreeMap<(JobId, Attempt, NodeName), Time>,
    pub(crate) record: OnRecord,
    /// Exits that agents were told are on record.
    pub(crate) promised: BTreeMap<(StepKey, NodeName), ExitStatus>,
    /// Steps of which the controller that lives now has heard that they run.
    pub(crate) told: BTreeSet<(StepKey, NodeName)>,
    /// Steps that are gone without a word, with all that their node had. Whether the controller has forgotten since that
    /// they ran: then they may start again, for all that anybody knows.
    pub(crate) cleared: BTreeMap<(StepKey, NodeName), bool>,
    /// Digests of images that came by their names, by job or array.
    pub(crate) images: BTreeMap<JobId, String>,
    /// When each run began, as the controller saw it.
    began: BTreeMap<(JobId, Attempt), Time>,
    /// Nodes from or to which nothing gets through.
    pub(crate) cut_off: BTreeSet<NodeName>,
    /// All SLUIDs that ever were on record, also before a restore: of which job or array.
    sluids: BTreeMap<Sluid, JobId>,
}

impl Truth {
    /// Looks at what has just been made durable.
    pub(crate) fn durable(&mut self, writes: &[Write]) -> Result<(), String> {
        for write in writes {
            match write {
                Write::PutSpec(row) => {
                    self.record.specs.insert(row.job);
                }
                Write::PutStep(row) => {
                    row.nodes.iter().try_for_each(|part| self.part(row.key, part))?;
                }
                Write::PutPart { key, part, .. } => self.part(*key, part)?,
                Write::PutJob(row) => {
                    let known = self.record.attempts.entry(row.job).or_default();
                    if row.attempt < *known {
                        return Err(format!(
                            "run {} of job {} is on record after {known}",
                            row.attempt, row.job
                        ));
                    }
                    *known = row.attempt;
                    self.named(row)?;
                    let now = match &row.phase {
                        Phase::Ended { result, .. } => Some((row.attempt, result.state, result.exit)),
                        _ => None,
                    };
                    match (self.record.ended.get(&row.job), now) {
                        (Some(before), now) if before.0 == row.attempt && Some(*before) != now => {
                            return Err(format!(
                                "job {} ended as {before:?}, and is {now:?} on record",
                                row.job
                            ));
                        }
                        (_, Some(end)) => {
                            self.record.ended.insert(row.job, end);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// No two jobs have one SLUID. In an array it goes over to the last task.
    fn named(&mut self, row: &JobRow) -> Result<(), String> {
        let Some(sluid) = row.sluid else { return Ok(()) };
        let of = *self.sluids.entry(sluid).or_insert(row.spec_of);
        if of == row.spec_of { Ok(()) } else { Err(format!("job {} has {sluid}, as job {of} had", row.job)) }
    }

    /// How a step is on a node, on record.
    fn part(&mut self, key: StepKey, part: &StepNode) -> Result<(), String> {
        let at = (key, part.node.clone());
        let now = part.exit.as_ref().map(|e| e.status);
        match (self.record.exits.get(&at), now) {
            (Some(before), now) if Some(*before) != now => {
                return Err(format!(
                    "the exit of {key} on {} was {before}, and is {now:?} on record",
                    part.node
                ));
            }
            (None, Some(status)) => {
                self.record.exits.insert(at, status);
            }
            _ => {}
        }
        Ok(())
    }

    /// While the store has no room, nothing new is taken.
    pub(crate) fn nothing_new(&self, writes: &[Write]) -> Result<(), String> {
        for write in writes {
            if let Write::PutSpec(row) = write
                && !self.record.specs.contains(&row.job)
            {
                return Err(format!("job {} is taken while the store has no room", row.job));
            }
        }
        Ok(())
    }

    /// An agent is told that it may forget an exit.
    pub(crate) fn acknowledged(
        &mut self,
        key: StepKey,
        node: &NodeName,
        forgotten: bool,
    ) -> Result<(), String> {
        let at = (key, node.clone());
        if forgotten && !self.record.exits.contains_key(&at) {
            let status = self.ran.get(&at).and_then(|ran| ran.status).unwrap_or_default();
            self.promised.insert(at, status);
            return Ok(());
        }
        let Some(exit) = self.record.exits.get(&at) else {
            return Err(format!("the exit of {key} on {node} is acknowledged, and on no record"));
        };
        self.promised.insert(at, *exit);
        Ok(())
    }

    /// A run counts as lost on a node from now on.
    pub(crate) fn lost(&mut self, run: (JobId, Attempt), node: &NodeName) {
        self.evidence.insert((run.0, run.1, node.clone()));
    }

    /// Time has come to this: what was given up long enough ago counts as lost.
    pub(crate) fn word_stands(&mut self, now: Time) {
        let due = self.given_up.iter().filter(|(_, at)| **at <= now).map(|(run, _)| run.clone());
        self.evidence.extend(due);
        self.given_up.retain(|_, at| *at > now);
    }

    /// Whether the controller knows that a step runs, or how it ended.
    pub(crate) fn is_known(&self, key: StepKey, node: &NodeName) -> bool {
        let at = (key, node.clone());
        self.told.contains(&at) || self.record.exits.contains_key(&at)
    }

    /// The controller begins anew, with what is on record.
    pub(crate) fn forget_what_was_told(&mut self) {
        self.told.clear();
        self.cleared.values_mut().for_each(|forgotten| *forgotten = true);
    }

    pub(crate) fn is_lost(&self, run: (JobId, Attempt), node: &NodeName) -> bool {
        self.evidence.contains(&(run.0, run.1, node.clone()))
    }
}

/// What is lost in whole microseconds.
const SLACK: Span = Span(1_000);

/// How long a step may outlive its limit where an agent attends to it: KillWait, and what a repeated kill takes.
const GRACE: Span = Span::from_secs(30);

impl World {
    /// Notes what the controller is about to learn that counts as evidence, or shows how hard a run is.
    pub(crate) fn seen_by_the_controller(&mut self, event: &Event) {
        use berth_model::launch::StepPhase;
        use berth_model::link::FromAgent;
        self.truth.word_stands(self.now);
        match event {
            Event::Client {
                body: Request::UpdateNode { nodes, state: NodeStateChange::Down, .. },
                actor,
                ..
            } if actor.is_operator() => {
                nodes.iter().for_each(|node| self.gives_up(node));
                if nodes.iter().any(|n| self.machines.get(n).is_some_and(|m| m.blocked.is_some())) {
                    self.count("nodes given up while they were cut off");
                }
            }
            Event::Client { body: Request::UpdateNode { state: NodeStateChange::Resume, .. }, .. } => {
                self.restores.said = true;
            }
            Event::Client { body: Request::RemoveMember { name, force: true }, actor, .. }
                if actor.is_administrator() =>
            {
                self.removes(name);
            }
            Event::Agent {
                node, message: FromAgent::Step { key, phase: StepPhase::Exited(_), .. }, ..
            } => {
                if self.truth.record.exits.contains_key(&(*key, node.clone())) {
                    self.count("an exit told again");
                }
                if self.truth.record.attempts.get(&key.job).is_some_and(|latest| *latest > key.attempt) {
                    self.count("an exit of an earlier run told");
                }
            }
            Event::Agent {
                node,
                message: FromAgent::Step { key, phase: StepPhase::Starting | StepPhase::Running, .. },
                ..
            } if !self.is_stale(event) => {
                self.truth.told.insert((*key, node.clone()));
            }
            Event::Agent { message: FromAgent::Hello { boot_id, steps, .. }, node, connection } => {
                let latest = self.controller.introduced.entry(node.clone()).or_default();
                *latest = (*connection).max(*latest);
                if steps.iter().any(|(_, phase)| matches!(phase, StepPhase::Exited(_))) {
                    self.count("exits told by a Hello");
                }
                if self.store.boot(node).is_some_and(|before| before != boot_id) {
                    self.count("a Hello of a new boot");
                }
            }
            _ => {}
        }
    }

    /// An administrator gives a node up. Of one that is connected his word alone is no evidence: it can say itself what it has.
    pub(crate) fn gives_up(&mut self, node: &NodeName) {
        let Some(core) = &self.controller.core else { return };
        let snapshot = core.snapshot();
        let jobs = snapshot.jobs().filter(|job| job.layout.nodes.contains(node));
        let runs: Vec<_> = jobs.map(|job| (job.id, job.attempt)).collect();
        let connected = core.connection_of(node).is_some();
        let kill_wait = self.controller.config.kill_wait;
        let due = self.now + least(Span(kill_wait.0 + UNKILLABLE.0));
        for (job, attempt) in runs {
            if connected {
                self.truth.given_up.entry((job, attempt, node.clone())).or_insert(due);
            } else {
                self.truth.lost((job, attempt), node);
            }
        }
        if connected && self.is_at_work(node) {
            self.count("nodes given up while they were connected and at work");
        }
    }

    /// Whether something lives on a machine.
    pub(crate) fn is_at_work(&self, node: &NodeName) -> bool {
        self.machines.get(node).is_some_and(|m| m.spool.values().any(Supervised::lives))
    }

    /// What counts as lost does not run, or somebody said so.
    pub(crate) fn no_loss_of_what_runs(&mut self, writes: &[Write]) -> Result<(), String> {
        use berth_model::link::EndCause;
        let mut lost = 0;
        for write in writes {
            let (key, parts): (StepKey, Vec<&StepNode>) = match write {
                Write::PutStep(row) => (row.key, row.nodes.iter().collect()),
                Write::PutPart { key, part, .. } => (*key, vec![part]),
                _ => continue,
            };
            for part in parts {
                let failed = part.exit.as_ref().is_some_and(|e| e.ended_by == Some(EndCause::NodeFailed));
                let known = self.truth.record.exits.contains_key(&(key, part.node.clone()));
                let Some(m) = self.machines.get(&part.node).filter(|_| failed && !known) else { continue };
                let run = (key.job, key.attempt);
                if self.truth.is_lost(run, &part.node) || self.restored.is_some() {
                    continue;
                }
                lost += 1;
                if m.spool.get(&key).is_some_and(|s| s.lives() && !m.is_over(s, self.now)) {
                    return Err(format!("{key} counts as lost on {}, and runs there", part.node));
                }
            }
        }
        for _ in 0..lost {
            self.count("steps that counted as lost by their deadline");
        }
        Ok(())
    }

    /// A supervisor is about to be started: nothing may run twice, nor outside of what its job has.
    pub(crate) fn may_start(
        &mut self,
        node: &NodeName,
        launch: &StepLaunch,
        timers: &StepTimers,
    ) -> Result<(), String> {
        let key = launch.key;
        let run = (key.job, key.attempt);
        let Some(m) = self.machines.get(node) else { return Ok(()) };
        let Some(job) = m.jobs.get(&run) else {
            return Err(format!("step {key} starts on {node}, where its job has nothing"));
        };
        // Of the lost controller's words none is under way any more to who follows a later one.
        if self.restores.lost.contains(&run) && m.term > self.restores.term {
            return Err(format!("step {key} has the number of a run that is lost, which was another's"));
        }
        if m.prolog && m.prologs.get(&run) != Some(&true) {
            return Err(format!("step {key} starts on {node} before the prolog of its job has ended"));
        }
        if launch.share.cpus.iter().any(|c| !job.cpus.contains(c)) || launch.share.cpus.is_empty() {
            return Err(format!("step {key} gets CPUs on {node} that its job does not have"));
        }
        if launch.share.gres.iter().any(|d| !job.gres.contains(d)) {
            return Err(format!("step {key} gets devices on {node} that its job does not have"));
        }
        if launch.job.end.is_some() && timers.job_limit.is_none() {
            return Err(format!("step {key} starts on {node} without the time limit of its job"));
        }
        for (other, s) in m.spool.iter().filter(|(other, s)| (other.job, other.attempt) == run && s.lives()) {
            // A controller made of a backup may not have heard yet of a step that the lost one began.
            if alone(launch) && alone(&s.launch) && self.restored.is_none() {
                if let Some(cpu) = launch.share.cpus.iter().find(|c| s.launch.share.cpus.contains(c)) {
                    return Err(format!("steps {key} and {other} both have CPU {cpu} of {node}"));
                }
                let asked = |l: &StepLaunch| l.env.iter().any(|e| e.0 == b"GRES=1");
                let both = launch.share.gres.iter().find(|d| s.launch.share.gres.contains(d));
                if let Some(d) = both.filter(|_| asked(launch) && asked(&s.launch)) {
                    return Err(format!(
                        "steps {key} and {other} both have {} {} of {node}",
                        d.name, d.index
                    ));
                }
            }
        }
        // Whichever of both was given up: it may come to start what it was told long before.
        let itself = self.truth.is_lost(run, node);
        if self.options.backups {
            self.runs_alone(launch)?;
        }
        let mut given_up = false;
        let now = self.now;
        for m in self.machines.values() {
            let other_run = |(k, s): &(&StepKey, &Supervised)| {
                k.job == key.job && k.attempt != key.attempt && s.lives() && !m.is_over(s, now)
            };
            for (other, _) in m.spool.iter().filter(other_run) {
                if !itself && !self.truth.is_lost((other.job, other.attempt), &m.name) {
                    return Err(format!("{key} starts on {node} while {other} is alive on {}", m.name));
                }
                given_up = true;
            }
        }
        if given_up {
            self.count("two runs alive after an administrator gave one up");
        }
        let again = self.truth.ran.insert((key, node.clone()), Ran::default()).is_some();
        if again && self.truth.cleared.get(&(key, node.clone())) != Some(&true) {
            return Err(format!("step {key} of attempt {} runs twice on {node}", key.attempt));
        }
        Ok(())
    }

    /// No other run of the job, and no other run of the array's task, is alive anywhere.
    fn runs_alone(&self, launch: &StepLaunch) -> Result<(), String> {
        let key = launch.key;
        let task = |launch: &StepLaunch| launch.job.array.as_ref().map(|a| (a.array, a.task));
        let same = |other: &StepLaunch| {
            let another = (other.key.job, other.key.attempt) != (key.job, key.attempt);
            another && (other.key.job == key.job || (task(launch).is_some() && task(other) == task(launch)))
        };
        let alive = self
            .machines
            .values()
            .flat_map(|m| m.spool.values().filter(|s| s.lives() && !m.is_over(s, self.now)));
        match alive.map(|s| &s.launch).find(|other| same(other)) {
            Some(other) => Err(format!(
                "step {key} of attempt {} starts while {} of attempt {} runs",
                key.attempt, other.key, other.key.attempt
            )),
            None => Ok(()),
        }
    }

    /// The controller ends no run at its limit before that time was there: by what it takes for it, which goes faster than the world's by a tenth at most.
    pub(crate) fn limits_are_granted(&mut self, writes: &[Write]) -> Result<(), String> {
        use berth_model::link::EndCause;
        use berth_model::state::Reason;
        for write in writes {
            let Write::PutJob(row) = write else { continue };
            let key = (row.job, row.attempt);
            let (run, result) = match &row.phase {
                Phase::Running(_) => {
                    self.truth.began.entry(key).or_insert(self.now);
                    continue;
                }
                Phase::Ending { run, result, .. } | Phase::Ended { run: Some(run), result } => (run, result),
                Phase::Pending | Phase::Ended { run: None, .. } => continue,
            };
            let own = result.cause == EndCause::TimeLimit && result.reason == Reason::TimeLimit;
            let (Some(limit), Some(began)) = (run.limit, self.truth.began.get(&key)) else { continue };
            let (granted, had) = (limit.since(run.started), self.now.since(*began));
            if own && Span(had.0 + SLACK.0) < least(granted) {
                return Err(format!(
                    "job {} is ended at its limit of {} s after {} s",
                    row.job,
                    granted.secs(),
                    had.secs()
                ));
            }
            if own {
                self.count("jobs ended at their limit by the controller");
            }
        }
        Ok(())
    }

    /// A step has just ended: not long after its limit, if somebody was there to end it.
    pub(crate) fn in_time(&self, node: &NodeName, key: StepKey, timers: &StepTimers) -> Result<(), String> {
        let Some(m) = self.machines.get(node) else { return Ok(()) };
        let limits = timers.job_limit.into_iter().chain(timers.step_limit);
        let Some(limit) = limits.min() else { return Ok(()) };
        let alone = if m.agent.is_none() { self.now.since(m.alone_since) } else { Span(0) };
        let latest = limit + GRACE + m.unattended + alone;
        let now: Time = m.clock(self.now);
        if now > latest {
            return Err(format!("step {key} outlives its limit on {node} by {} s", now.since(limit).secs()));
        }
        Ok(())
    }
}

/// Whether others must leave its CPUs alone.
fn alone(launch: &StepLaunch) -> bool {
    launch.key.step != berth_model::ids::StepId::Batch && !launch.env.iter().any(|e| e.0 == b"OVERLAP=1")
}
