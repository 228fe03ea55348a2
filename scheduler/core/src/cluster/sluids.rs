//! SLUIDs: given out at submission, and when tasks of an array get a record of their own; and which record has which.

use super::Cluster;
use super::submit::digest;
use crate::rows::JobRow;
use berth_model::ids::JobId;
use berth_model::sluid::{Realm, Sluid};
use imbl::OrdMap;

/// What was given out last, and who has what.
#[derive(Default)]
pub(super) struct Sluids {
    /// The last one; 0 before the first.
    last: Sluid,
    /// In which realm those are that follow, once that is known.
    realm: Option<Realm>,
    /// The records in memory.
    records: OrdMap<Sluid, JobId>,
}

impl Sluids {
    /// What the counters' row says was given out last.
    pub(super) fn go_on_after(&mut self, last: Option<Sluid>) {
        self.last = last.unwrap_or_default();
        self.realm = last.and_then(Sluid::realm);
    }

    /// The last one, for the counters' row.
    pub(super) fn last(&self) -> Option<Sluid> {
        Some(self.last).filter(|last| last.0 != 0)
    }

    /// All records, for readers.
    pub(super) fn records(&self) -> OrdMap<Sluid, JobId> {
        self.records.clone()
    }

    /// The record that has this one.
    pub(super) fn record(&self, sluid: Sluid) -> Option<JobId> {
        self.records.get(&sluid).copied()
    }

    /// A record is in memory from now on.
    pub(super) fn enter(&mut self, row: &JobRow) {
        if let Some(sluid) = row.sluid {
            self.records.insert(sluid, row.job);
        }
    }

    /// A record is in memory no longer.
    pub(super) fn leave(&mut self, row: &JobRow) {
        if let Some(sluid) = row.sluid {
            self.records.remove(&sluid);
        }
    }
}

impl Cluster {
    /// A random number, by which the realm of SLUIDs is drawn unless one is on record: it is not for a new cluster, and not after a restore. To
    /// be told after [`Cluster::restore`]; told again, it changes nothing. Without it the realm follows from the cluster's name.
    pub fn draw_realm(&mut self, random: u64) {
        self.sluids.realm.get_or_insert(Realm::drawn(random));
    }

    /// A SLUID that no record had before.
    pub(super) fn new_sluid(&mut self) -> Sluid {
        let named = Realm::drawn(digest(&self.config.cluster));
        let realm = *self.sluids.realm.get_or_insert(named);
        self.sluids.last = self.sluids.last.next(realm, self.clock);
        self.out.meta = true;
        self.sluids.last
    }
}
