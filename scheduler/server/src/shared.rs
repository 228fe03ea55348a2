//! What the core's thread publishes for everyone else.

use crate::unreadable::Unreadable;
use crate::watchers::Watchers;
use berth_model::Time;
use berth_sched_core::{RequestId, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use tokio::sync::watch;

/// Shared by the core's thread, which writes, and the services, which read.
#[derive(Debug)]
pub(crate) struct Shared {
    snapshot: RwLock<Snapshot>,
    /// Who waits for which job.
    pub(crate) watchers: Watchers,
    /// Starts for which the store does not give what they need.
    pub(crate) unreadable: Unreadable,
    alarms: Mutex<BTreeMap<&'static str, String>>,
    accepting: AtomicBool,
    /// Cluster time, as it was in the last round.
    time: AtomicI64,
    requests: AtomicU64,
    connections: AtomicU64,
    ended: watch::Sender<bool>,
}

impl Shared {
    pub(crate) fn new(snapshot: Snapshot, now: Time) -> Shared {
        Shared {
            snapshot: RwLock::new(snapshot),
            watchers: Watchers::default(),
            unreadable: Unreadable::default(),
            alarms: Mutex::new(BTreeMap::new()),
            accepting: AtomicBool::new(true),
            time: AtomicI64::new(now.0),
            requests: AtomicU64::new(1),
            connections: AtomicU64::new(1),
            ended: watch::channel(false).0,
        }
    }

    /// Committed state: everything that was acknowledged so far.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn publish(&self, snapshot: Snapshot, changed: &BTreeSet<berth_model::JobId>) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
        self.watchers.changed(changed);
    }

    /// A number for a request that no other of this process has.
    pub(crate) fn next_request(&self) -> RequestId {
        RequestId(self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// The same for an agent's connection.
    pub(crate) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Something that an administrator should look at; logged when it is new.
    pub(crate) fn alarm(&self, what: &'static str, text: String) {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        if alarms.get(what) != Some(&text) {
            tracing::error!("{text}");
            alarms.insert(what, text);
        }
    }

    pub(crate) fn all_clear(&self, what: &'static str) {
        let cleared = self.alarms.lock().unwrap_or_else(PoisonError::into_inner).remove(what);
        if let Some(text) = cleared {
            tracing::info!("over: {text}");
        }
    }

    pub(crate) fn alarms(&self) -> Vec<String> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn set_time(&self, now: Time) {
        self.time.store(now.0, Ordering::Relaxed);
    }

    /// Cluster time, but for the seconds for which nothing happens.
    pub(crate) fn time(&self) -> Time {
        Time(self.time.load(Ordering::Relaxed))
    }

    pub(crate) fn set_accepting(&self, accepting: bool) {
        self.accepting.store(accepting, Ordering::Relaxed);
    }

    pub(crate) fn accepting(&self) -> bool {
        self.accepting.load(Ordering::Relaxed)
    }

    /// Said by the core's thread as it ends, whatever the reason.
    pub(crate) fn set_ended(&self) {
        self.ended.send_replace(true);
    }

    pub(crate) async fn ended(&self) {
        // The sender lives as long as this value.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}
