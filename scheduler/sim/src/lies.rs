//! Nodes that tell a restored controller of jobs that nobody gave out: such a one may be broken, or not the cluster's own any more.

use crate::world::World;
use berth_model::ids::{JobId, NodeName};
use berth_model::link::FromAgent;
use berth_sched_core::Write;

/// How far each goes above what the one before tells of.
const EACH: u32 = 900_000;
/// By how much all together raise the ids of jobs unasked, and what is given out in a world beside that.
const UNASKED: u32 = 1_000_000 + 1000;

impl World {
    /// What a node says instead of what it knows, in worlds in which they do so.
    pub(crate) fn lies(&mut self, node: &NodeName, message: &mut FromAgent) {
        let FromAgent::Hello { highest, .. } = message else { return };
        if !self.restores.lies || self.restored.is_none() {
            return;
        }
        let place = self.machines.keys().position(|name| name == node).unwrap_or_default();
        let told = JobId(EACH * (u32::try_from(place).unwrap_or_default() + 1));
        if told > highest.job {
            highest.job = told;
            self.count("Hellos that told of jobs nobody gave out");
        }
    }

    /// Ids go on far above those of the backup by an administrator's word alone.
    pub(crate) fn ids_suffice(&self, writes: &[Write]) -> Result<(), String> {
        for write in writes.iter().filter(|_| !self.restores.said) {
            let Write::PutMeta(meta) = write else { continue };
            let Some(restored) = &meta.restored else { continue };
            if meta.next_job > restored.base.0.saturating_add(UNASKED) {
                return Err(format!(
                    "job {} is next without a word of an administrator, and {} was when the backup was restored",
                    meta.next_job, restored.base
                ));
            }
        }
        Ok(())
    }
}
