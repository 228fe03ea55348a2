//! Ends of jobs that their clients know of before they are on record: what the same user asks next waits a moment for
//! the record, so that a client need not wait for a commit and `sacct` behind it still shows how its job ended.

use crate::shared::Shared;
use berth_model::state::JobState;
use berth_model::{JobId, Uid};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a reader waits for an end that a client has seen.
const PATIENCE: Duration = Duration::from_secs(1);
/// Ends of one user that are waited for at most. One who says more waits for the last of them.
const MOST: usize = 256;

/// Ends to come, by who has seen them.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    coming: Mutex<HashMap<Uid, Vec<(JobId, Instant)>>>,
}

fn is_over(shared: &Shared, job: JobId) -> bool {
    let state = shared.snapshot().state(job);
    state.is_none_or(|state| state.is_terminal() || state == JobState::Completing)
}

impl Ends {
    fn coming(&self) -> std::sync::MutexGuard<'_, HashMap<Uid, Vec<(JobId, Instant)>>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client of `reader` has seen the end of a job.
    pub(crate) fn seen(&self, shared: &Shared, reader: Uid, job: JobId, now: Instant) {
        if is_over(shared, job) {
            return;
        }
        let mut coming = self.coming();
        // What nobody asked about is forgotten with the next.
        coming.retain(|_, jobs| {
            jobs.retain(|(_, until)| *until > now);
            !jobs.is_empty()
        });
        let jobs = coming.entry(reader).or_default();
        if jobs.len() == MOST {
            jobs.remove(0);
        }
        jobs.push((job, now + PATIENCE));
    }

    /// Waits until what the reader's clients have seen by now is on record; not for ever.
    pub(crate) async fn recorded(&self, shared: &Shared, reader: Uid) {
        let seen = self.coming().get(&reader).cloned().unwrap_or_default();
        for (job, until) in seen {
            // Before the look, so that no change falls between the two.
            let mut watcher = shared.watchers.watch(job);
            while !is_over(shared, job) {
                if tokio::time::timeout_at(until.into(), watcher.changed()).await.is_err() {
                    break;
                }
            }
            let mut coming = self.coming();
            if let Some(jobs) = coming.get_mut(&reader) {
                jobs.retain(|(other, _)| *other != job);
                if jobs.is_empty() {
                    coming.remove(&reader);
                }
            }
        }
    }
}
