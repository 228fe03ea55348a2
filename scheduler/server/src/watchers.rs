//! Who waits for changes of which job.

use berth_model::JobId;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

type Subscribers = HashMap<JobId, watch::Sender<()>>;

/// Tells those who watch a job that it changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watchers {
    jobs: Arc<Mutex<Subscribers>>,
}

/// One who watches.
#[derive(Debug)]
pub(crate) struct Watcher {
    job: JobId,
    changes: watch::Receiver<()>,
    of: Watchers,
}

impl Watchers {
    /// Begins to watch: changes published from now on are told.
    pub(crate) fn watch(&self, job: JobId) -> Watcher {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = jobs.entry(job).or_insert_with(|| watch::channel(()).0).subscribe();
        Watcher { job, changes, of: self.clone() }
    }

    pub(crate) fn changed(&self, changed: &BTreeSet<JobId>) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.is_empty() {
            return;
        }
        for job in changed {
            if let Some(sender) = jobs.get(job) {
                sender.send_replace(());
            }
        }
    }

    /// After a rebuild of the core, anything may be different.
    pub(crate) fn all_changed(&self) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in jobs.values() {
            sender.send_replace(());
        }
    }
}

impl Watcher {
    /// Waits for the next change.
    pub(crate) async fn changed(&mut self) {
        // The sender lives in the table as long as a watcher does.
        let _ = self.changes.changed().await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut jobs = self.of.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.get(&self.job).is_some_and(|sender| sender.receiver_count() <= 1) {
            jobs.remove(&self.job);
        }
    }
}
