//! Which steps the node has, whose they are and how far they are: what a client that wants to attach is
//! answered from.

use berth_model::ids::{Gid, JobId, StepKey, Uid};
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
    /// A step that is to run here.
    pub fn prepare(&self, key: StepKey, owner: (Uid, Gid)) {
        self.change(|steps| {
            steps.entry(key).or_insert(Entry { owner, stage: StepStage::Preparing, inside: false });
        });
    }

    /// Its supervisor takes commands.
    pub fn live(&self, key: StepKey, owner: (Uid, Gid), to: mpsc::UnboundedSender<SupervisorCommand>) {
        self.change(|steps| {
            steps.insert(key, Entry { owner, stage: StepStage::Live(to), inside: false });
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

    /// The job is over: clients that were processes of it do not come back to hear how their steps ended.
    pub fn job_over(&self, job: JobId) {
        let of_job = |(key, entry): (&StepKey, &Entry)| (key.job == job && entry.inside).then_some(*key);
        let steps: Vec<StepKey> = {
            let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            steps.iter().filter_map(of_job).collect()
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
