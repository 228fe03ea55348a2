//! Presence of the clients that drive allocations (`srun`, `salloc`): an allocation whose client is away for
//! half a minute is ended.

use crate::driver::Input;
use crate::identity;
use crate::shared::Shared;
use berth_model::JobId;
use berth_model::request::Request;
use berth_model::spec::{JobKind, JobSpec};
use std::collections::HashMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an allocation lives without its client.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Whether a job is ended when its client is away.
pub(crate) fn needs_client(spec: &JobSpec) -> bool {
    spec.kind != JobKind::Batch && !spec.clientless
}

/// A client's presence for one job.
#[derive(Debug)]
struct Presence {
    clients: usize,
    /// When the last one left, or when the job was first known.
    since: Instant,
}

/// All jobs that need a client.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases {
    jobs: Arc<Mutex<HashMap<JobId, Presence>>>,
}

/// One client that is there. Dropped when it is gone.
#[derive(Debug)]
pub(crate) struct Held {
    job: JobId,
    leases: Leases,
}

impl Leases {
    /// Jobs that a client drives; it has [`PATIENCE`] to show itself.
    pub(crate) fn begin(&self, jobs: impl IntoIterator<Item = JobId>) {
        let mut table = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for job in jobs {
            table.entry(job).or_insert_with(|| Presence { clients: 0, since: Instant::now() });
        }
    }

    /// The client is there.
    pub(crate) fn hold(&self, job: JobId) -> Held {
        let mut table = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        table.entry(job).or_insert_with(|| Presence { clients: 0, since: Instant::now() }).clients += 1;
        Held { job, leases: self.clone() }
    }

    /// Jobs whose client is away for too long; each is named once in each such period.
    fn lost(&self, now: Instant) -> Vec<JobId> {
        let mut table = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lost = Vec::new();
        for (job, presence) in table.iter_mut() {
            if presence.clients == 0 && now.saturating_duration_since(presence.since) >= PATIENCE {
                presence.since = now;
                lost.push(*job);
            }
        }
        lost.sort_unstable();
        lost
    }

    fn forget(&self, job: JobId) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&job);
    }

    fn known(&self) -> Vec<JobId> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.leases.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(presence) = table.get_mut(&self.job) {
            presence.clients = presence.clients.saturating_sub(1);
            presence.since = Instant::now();
        }
    }
}

/// Ends what nobody drives any more, and forgets what is over.
pub(crate) async fn keep(leases: Leases, inputs: Sender<Input>, shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let snapshot = shared.snapshot();
        for job in leases.known() {
            if snapshot.job(job).is_none_or(|info| info.state.is_terminal()) {
                leases.forget(job);
            }
        }
        for job in leases.lost(Instant::now()) {
            tracing::info!("job {job}: its client is away for {} s, it is ended", PATIENCE.as_secs());
            let body = Request::ClientLost { job };
            let (reply, answer) = tokio::sync::oneshot::channel();
            let request = shared.next_request();
            if inputs.send(Input::Client { request, actor: identity::controller(), body, reply }).is_err() {
                return; // stopping
            }
            if let Ok(Err(refusal)) = answer.await {
                tracing::warn!("job {job}: {refusal}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_lost_only_after_its_last_client_is_away_for_long() {
        let leases = Leases::default();
        let start = Instant::now();
        leases.begin([JobId(1), JobId(2)]);
        let first = leases.hold(JobId(1));
        let second = leases.hold(JobId(1));
        let late = start + PATIENCE + Duration::from_secs(1);
        assert_eq!(leases.lost(late), [JobId(2)], "never came");
        drop(first);
        assert!(leases.lost(late).is_empty());
        drop(second);
        assert!(leases.lost(Instant::now()).is_empty(), "its time begins when it leaves");
        assert_eq!(leases.lost(Instant::now() + PATIENCE), [JobId(1)]);
        leases.forget(JobId(2));
        assert_eq!(leases.known(), [JobId(1)]);
    }
}
