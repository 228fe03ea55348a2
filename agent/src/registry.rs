//! Which steps the node has, whose they are and how far they are: what a client that wants to attach is
//! answered from.

use berth_model::het::HetFacts;
use berth_model::ids::{Attempt, Gid, JobId, StepKey, Uid};
use berth_model::launch::StepExit;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};

use berth_step::control::ToSupervisor;

/// A packet for a supervisor, with a descriptor where it needs one.
pub type SupervisorCommand = (ToSupervisor, Option<OwnedFd>);

/// How far a step is, as far as clients are concerned.
#[derive(Clone, Debug)]
pub enum StepStage {
    /// No supervisor yet.
    Preparing,
    /// The supervisor takes commands.
    Live(mpsc::UnboundedSender<SupervisorCommand>),
    /// It ended before a supervisor took clients, or its supervisor is gone.
    Ended(Box<StepExit>),
}

#[derive(Clone, Debug)]
struct Entry {
    owner: (Uid, Gid),
    stage: StepStage,
    /// Its client is a process of the job, and ends with it.
    inside: bool,
    /// The jobs of which its own is a component, itself among them; none where it is one by itself.
    whole: Vec<JobId>,
}

/// Steps by key. Cheap to clone; every clone is the same registry.
#[derive(Clone)]
pub struct Registry {
    steps: Arc<Mutex<BTreeMap<StepKey, Entry>>>,
    changed: Arc<watch::Sender<()>>,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry { steps: Arc::default(), changed: Arc::new(watch::Sender::new(())) }
    }
}

impl Registry {
    /// A step that is to run here, and the components of the job that its own is one of.
    pub fn prepare(&self, key: StepKey, owner: (Uid, Gid), het: Option<&HetFacts>) {
        let whole = het.map(|het| het.groups.iter().map(|group| group.job).collect()).unwrap_or_default();
        self.change(|steps| {
            steps.entry(key).or_insert(Entry { owner, stage: StepStage::Preparing, inside: false, whole });
        });
    }

    /// Its supervisor takes commands.
    pub fn live(&self, key: StepKey, owner: (Uid, Gid), to: mpsc::UnboundedSender<SupervisorCommand>) {
        self.change(|steps| {
            let whole = steps.remove(&key).map(|entry| entry.whole).unwrap_or_default();
            steps.insert(key, Entry { owner, stage: StepStage::Live(to), inside: false, whole });
        });
    }

    /// It ended. A live supervisor still serves its client, and stays.
    pub fn ended(&self, key: StepKey, exit: &StepExit) {
        self.change(|steps| {
            if let Some(entry) = steps.get_mut(&key) {
                let serves = matches!(&entry.stage, StepStage::Live(to) if !to.is_closed());
                if !serves {
                    entry.stage = StepStage::Ended(Box::new(exit.clone()));
                }
            }
        });
    }

    /// Whether a process of a job may have to do with a step: one of its own, or of another component of it.
    pub fn is_of(&self, key: StepKey, job: JobId) -> bool {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        key.job == job || steps.get(&key).is_some_and(|entry| entry.whole.contains(&job))
    }

    /// The jobs with steps on this node that have to do with the steps of a job: itself, and other components of it.
    pub fn beside(&self, job: JobId) -> Vec<JobId> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let are = |(key, entry): (&StepKey, &Entry)| {
            (key.job == job || entry.whole.contains(&job)).then_some(key.job)
        };
        let mut found: Vec<JobId> = steps.iter().filter_map(are).collect();
        // By key, so that those of one job are neighbours.
        found.dedup();
        found
    }

    /// Whether a supervisor still serves it.
    pub fn served(&self, key: StepKey) -> bool {
        matches!(self.get(key), Some((_, StepStage::Live(to))) if !to.is_closed())
    }

    /// Where its client is that came last.
    pub fn client_is(&self, key: StepKey, inside: bool) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = steps.get_mut(&key) {
            entry.inside = inside;
        }
    }

    /// A run of a job is over, and all of its steps: clients that were processes of it do not come back to hear how these ended. The next
    /// run may have begun.
    pub fn run_over(&self, job: JobId, attempt: Attempt) {
        let of_run = |(key, entry): (&StepKey, &Entry)| {
            (key.job == job && key.attempt == attempt && entry.inside).then_some(*key)
        };
        let steps: Vec<StepKey> = {
            let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            steps.iter().filter_map(of_run).collect()
        };
        for key in steps {
            self.command(key, ToSupervisor::Kill);
        }
    }

    /// Nothing is known of it any more.
    pub fn forget(&self, key: StepKey) {
        self.change(|steps| {
            steps.remove(&key);
        });
    }

    /// Whose a step is, and how far it is.
    pub fn get(&self, key: StepKey) -> Option<((Uid, Gid), StepStage)> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.get(&key).map(|e| (e.owner, e.stage.clone()))
    }

    /// Sends a packet to a step's supervisor; false when there is none that takes it.
    pub fn command(&self, key: StepKey, command: ToSupervisor) -> bool {
        match self.get(key) {
            Some((_, StepStage::Live(to))) => to.send((command, None)).is_ok(),
            _ => false,
        }
    }

    /// Is notified after every change.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<StepKey, Entry>)) {
        change(&mut self.steps.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::het::HetGroup;
    use berth_model::ids::StepId;
    use berth_model::launch::Layout;

    #[test]
    fn a_job_has_to_do_with_its_own_steps_and_those_of_its_other_components() {
        let registry = Registry::default();
        let key = |job| StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Number(1) };
        let group = |job| HetGroup {
            job: JobId(job),
            partition: "all".into(),
            layout: Layout { nodes: Vec::new(), tasks: Vec::new(), cpus: Vec::new() },
            tasks: None,
            tasks_per_node: None,
            cpus_per_task: None,
            mem_per_node: None,
            mem_per_cpu: None,
        };
        let het = HetFacts { leader: JobId(7), offset: 1, groups: vec![group(7), group(8)] };
        registry.prepare(key(8), (Uid(1), Gid(1)), Some(&het));
        registry.prepare(key(9), (Uid(1), Gid(1)), None);
        let (to, _from) = mpsc::unbounded_channel();
        registry.live(key(8), (Uid(1), Gid(1)), to);
        let has = |of, job| registry.is_of(key(of), JobId(job));
        assert!(has(8, 7) && has(8, 8) && !has(8, 9));
        assert!(has(9, 9) && !has(9, 8) && !has(10, 9));
        let beside = |job| registry.beside(JobId(job));
        assert_eq!([beside(7), beside(8), beside(9)], [[JobId(8)], [JobId(8)], [JobId(9)]]);
        assert!(beside(10).is_empty());
    }

    #[test]
    fn the_end_of_a_run_is_told_where_a_process_of_it_was_the_client_and_to_no_later_run() {
        let registry = Registry::default();
        let mut told = Vec::new();
        for (attempt, step, inside) in [(0, 1, true), (0, 2, false), (1, 1, true)] {
            let key = StepKey { job: JobId(7), attempt: Attempt(attempt), step: StepId::Number(step) };
            let (to, from) = mpsc::unbounded_channel();
            registry.live(key, (Uid(1), Gid(1)), to);
            registry.client_is(key, inside);
            told.push(from);
        }
        registry.run_over(JobId(7), Attempt(0));
        let killed = told.iter_mut().map(|from| matches!(from.try_recv(), Ok((ToSupervisor::Kill, None))));
        assert_eq!(killed.collect::<Vec<_>>(), [true, false, false]);
    }
}
