//! What a step waits for: steps that run, or ends that are on their way here. An `srun` returns when it has heard the end of its step from the
//! nodes, and the exits come here by the agents, a moment later or, on busy machines, much later. So no step is refused for what others have
//! before their agents have looked, and said that these have not ended.

use super::Cluster;
use super::steps::{NoRoom, Waiting};
use super::timers::Timer;
use crate::event::RequestId;
use crate::rows::StepRow;
use berth_model::feature::LOOK_FOR_ENDS;
use berth_model::ids::{JobId, NodeName, StepKey};
use berth_model::link::ToAgent;
use berth_model::time::Span;
use std::collections::{BTreeMap, BTreeSet};

/// How long agents may take to answer, and an exit that is on its way to come: after that what others have counts as in use.
const ANSWER: Span = Span::from_secs(20);

/// How long a step that waits is to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Until there is room for it, or its time comes.
    Waits,
    /// No longer, once it is known that it waits for steps that run: agents are to be asked.
    Over,
    /// The same, and they were asked since.
    Asked,
}

/// A question to agents which steps of a job have not ended. It serves all that wait in the job by then: those that come later wait for the
/// next one, so that the questions do not grow with those who wait.
#[derive(Clone, Debug)]
pub(super) struct Look {
    ask: u64,
    /// What each node was asked about.
    about: BTreeMap<NodeName, BTreeSet<StepKey>>,
    /// Nodes that have not answered.
    open: BTreeSet<NodeName>,
    /// What has not ended, as far as anybody can say.
    live: BTreeMap<NodeName, BTreeSet<StepKey>>,
}

impl Look {
    /// Whether a step's part counts as in use on a node: its agent says so, or was not asked about it, as it began later. When it began does
    /// not tell: much happens at one time.
    fn lives(&self, step: &StepRow, node: &NodeName) -> bool {
        let names = |keys: Option<&BTreeSet<StepKey>>| keys.is_some_and(|keys| keys.contains(&step.key));
        !names(self.about.get(node)) || names(self.live.get(node))
    }

    /// A node will not answer: what it was asked about counts as in use.
    fn give_up(&mut self, node: &NodeName) {
        if self.open.remove(node)
            && let Some(keys) = self.about.get(node)
        {
            self.live.insert(node.clone(), keys.clone());
        }
    }
}

impl Cluster {
    /// A step has waited for as long as its client has patience: it is refused as soon as it is known that it waits for steps that run.
    pub(super) fn has_waited(&mut self, job: JobId, request: RequestId) {
        let mut queue = self.waiting.get_mut(&job).into_iter().flatten();
        let asks = |w: &&mut Waiting| w.request == request && !w.answered && w.patience == Patience::Waits;
        let Some(waiting) = queue.find(asks) else { return };
        waiting.patience = Patience::Over;
        self.timers.insert((self.clock + ANSWER, Timer::StepBusy(job, request)));
        if !self.looks.contains_key(&job) {
            self.look_for_ends(job);
        }
    }

    /// Asks the agents for those whose patience is over.
    fn look_for_ends(&mut self, job: JobId) {
        let (mut jobs, mut asks) = (BTreeSet::new(), false);
        for waiting in self.waiting.get_mut(&job).into_iter().flatten() {
            if waiting.patience == Patience::Waits {
                continue;
            }
            // Those that were asked for before are judged by this answer, too.
            asks |= waiting.patience == Patience::Over;
            waiting.patience = Patience::Asked;
            jobs.extend(waiting.parts(job).map(|(part, _)| part));
        }
        if !asks {
            return;
        }
        let mut about: BTreeMap<NodeName, BTreeSet<StepKey>> = BTreeMap::new();
        for record in jobs.iter().filter_map(|id| self.jobs.get(id)) {
            for step in record.steps.values().filter(|s| s.result.is_none() && s.consumes) {
                for (_, part) in step.nodes.unended() {
                    about.entry(part.node.clone()).or_default().insert(step.key);
                }
            }
        }
        let steps: BTreeSet<StepKey> = about.values().flatten().copied().collect();
        for step in steps {
            // What is carried may come behind the question: who does not have it yet would say that it has ended.
            self.send_what_is_unconfirmed(step);
        }
        self.next_look += 1;
        // No earlier core had it: an answer to that one is none to this one.
        let ask = (self.term.0 << 32) | self.next_look;
        let open = about.keys().cloned().collect();
        let mut look = Look { ask, about, open, live: BTreeMap::new() };
        for node in look.open.clone() {
            let keys: Vec<StepKey> = look.about.get(&node).into_iter().flatten().copied().collect();
            if self.says_what_has_ended(&node) {
                self.send(&node, ToAgent::LookForEnds { ask, keys });
            } else {
                look.give_up(&node);
            }
        }
        self.looks.insert(job, look);
        self.timers.insert((self.clock + ANSWER, Timer::Look(job, ask)));
        self.judge_busy(job);
    }

    fn says_what_has_ended(&self, node: &NodeName) -> bool {
        let knows = |known: &String| known == LOOK_FOR_ENDS;
        self.nodes.get(node).is_some_and(|n| n.link.is_some() && n.features.iter().any(knows))
    }

    /// An agent has looked: these have not ended. Exits of the others were told before, or come.
    pub(super) fn not_ended(&mut self, node: &NodeName, ask: u64, keys: Vec<StepKey>) {
        let Some((job, look)) = self.looks.iter_mut().find(|(_, look)| look.ask == ask) else { return };
        let job = *job;
        if look.open.remove(node) {
            look.live.insert(node.clone(), keys.into_iter().collect());
        }
        self.judge_busy(job);
    }

    /// What an agent was asked on a connection that is gone it does not answer.
    pub(super) fn no_answer_from(&mut self, node: &NodeName) {
        for look in self.looks.values_mut() {
            look.give_up(node);
        }
        let jobs: Vec<JobId> = self.looks.keys().copied().collect();
        for job in jobs {
            self.judge_busy(job);
        }
    }

    /// The time is over that agents had.
    pub(super) fn no_answer_to(&mut self, job: JobId, ask: u64) {
        let Some(look) = self.looks.get_mut(&job).filter(|look| look.ask == ask) else { return };
        for node in look.open.clone() {
            look.give_up(&node);
        }
        self.judge_busy(job);
    }

    /// Where all have answered: refuses those that wait for steps that run. The others wait for ends that are on their way.
    fn judge_busy(&mut self, job: JobId) {
        if self.looks.get(&job).is_none_or(|look| !look.open.is_empty()) {
            return;
        }
        let Some(look) = self.looks.remove(&job) else { return };
        let lives = |step: &StepRow, node: &NodeName| look.lives(step, node);
        let queue = self.waiting.get(&job).into_iter().flatten();
        let busy: Vec<RequestId> = queue
            .filter(|w| w.patience == Patience::Asked)
            .filter(|w| {
                w.parts(job)
                    .any(|(part, spec)| matches!(self.plan_beside(part, spec, &lives), Err(NoRoom::Busy)))
            })
            .map(|w| w.request)
            .collect();
        for request in busy {
            self.give_up_waiting(job, request, true);
        }
        // Who came meanwhile is not answered by what was seen before.
        self.look_for_ends(job);
    }
}
