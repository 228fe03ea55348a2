//! IMEX channels: by one of them the processes of a job share the memory of NVIDIA's GPUs over the nodes of a fast link, and two
//! jobs with the same one could reach each other's. So each job that has such GPUs has a channel that no other has.

use super::Cluster;
use crate::rows::Allocation;
use berth_model::hardware::Vendor;
use berth_model::ids::{JobId, NodeName};
use berth_model::launch::NodeShare;
use std::collections::BTreeSet;

impl Cluster {
    /// The channel that the job would have: the lowest one that nobody has. `Some(None)`: it has no use for one; `None`: all are in
    /// use.
    pub(super) fn imex_channel(&self, id: JobId, allocation: &Allocation) -> Option<Option<u32>> {
        let channels = |(name, share): (&NodeName, &NodeShare)| {
            let there = self.nodes.get(name).map_or(0, |node| node.hardware.imex_channels);
            let has_gpu = share.gres.iter().any(|device| device.vendor == Vendor::Nvidia);
            (there > 0 && has_gpu).then_some(there)
        };
        let Some(count) = allocation.nodes.iter().zip(&allocation.shares).filter_map(channels).min() else {
            return Some(None);
        };
        // The components of a job are one to their processes.
        let mut others = self.whole(id).into_iter().filter(|other| *other != id);
        if let Some(channel) =
            others.find_map(|other| self.channel_of(other)).filter(|channel| *channel < count)
        {
            return Some(Some(channel));
        }
        let nodes = self.nodes.values().filter(|node| node.hardware.imex_channels > 0);
        let runs: BTreeSet<JobId> = nodes.flat_map(|node| node.held.keys().map(|(job, _)| *job)).collect();
        let used: BTreeSet<u32> = runs.into_iter().filter_map(|job| self.channel_of(job)).collect();
        // The driver makes the first one for everybody where it was told to: it is given only where there is no other.
        let free = (u32::from(count > 1)..count).find(|channel| !used.contains(channel))?;
        Some(Some(free))
    }

    fn channel_of(&self, id: JobId) -> Option<u32> {
        let job = self.job(id)?;
        let ended = matches!(job.row.phase, crate::rows::Phase::Ended { .. });
        job.run().filter(|_| !ended)?.imex_channel
    }
}
