//! What a restored cluster waits for before it starts a job, in words, and what an administrator says of it.

use super::Cluster;
use crate::node::names;
use crate::rows::Awaited;
use berth_model::ids::{JobId, NodeName};
use berth_model::time::Time;

/// By how much a node may raise the ids of jobs by what it reports, whenever the backup was made.
const LEAST: u64 = 1_000_000;
/// More jobs than a controller takes in a second: so many ids may have been given out for each since the backup was made.
const RATE: u64 = 1_000;

impl Cluster {
    /// Nodes of a restored backup for which all jobs wait.
    pub fn awaited(&self) -> impl Iterator<Item = &NodeName> {
        self.restored.awaited.keys()
    }

    /// Why no job starts since a backup was restored, and what to do about it.
    pub fn why_held(&self) -> Option<String> {
        let awaited = &self.restored.awaited;
        let mut parts = Vec::new();
        let missing = awaited.iter().filter(|(_, state)| matches!(state, Awaited::Word | Awaited::Rest));
        let missing: Vec<&NodeName> = missing.map(|(name, _)| name).collect();
        if !missing.is_empty() {
            parts.push(format!(
                "a backup was restored, and no job starts before these nodes have come back and have nothing left that is on no \
                 record: {}; of one that will not come back say so: scontrol update NodeName=... State=DOWN Reason=...",
                names(missing)
            ));
        }
        for (name, state) in awaited {
            let Awaited::Beyond(job) = state else { continue };
            parts.push(format!(
                "a backup was restored, and no job starts before somebody says whether {name} is right: it tells of job {job}, \
                 which cannot have been given out since the backup, at {RATE} jobs a second: scontrol update NodeName={name} \
                 State=RESUME has ids go on above {job}, State=DOWN Reason=... takes no notice of it"
            ));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// The first id of a job that cannot have been given out since the backup was made.
    pub(super) fn beyond(&self) -> u64 {
        let made = self.restored.made;
        let seconds = if made == Time::default() { 0 } else { self.clock.since(made).secs() };
        let most = LEAST.max(RATE.saturating_mul(u64::try_from(seconds).unwrap_or(0)));
        u64::from(self.next_job).saturating_add(most).min(u64::from(u32::MAX - 1))
    }

    /// Ids of jobs go on above this one.
    pub(super) fn go_on_above(&mut self, id: JobId) {
        let next = id.0.saturating_add(1).min(u32::MAX - 1);
        if next > self.next_job {
            self.next_job = next;
            self.restored.before = JobId(next);
            self.out.meta = true;
        }
    }

    /// An administrator says whether a node is right that told of a job which cannot have been given out.
    pub(super) fn judge_beyond(&mut self, name: &NodeName, right: bool) {
        let Some(Awaited::Beyond(job)) = self.restored.awaited.get(name).copied() else { return };
        if right {
            self.go_on_above(job);
        }
        self.restored.awaited.insert(name.clone(), Awaited::Rest);
        self.out.meta = true;
        self.at_rest(name);
    }
}
