//! What jobs need of the nodes' image stores.

use super::Cluster;
use crate::rows::Phase;
use berth_model::spec::ContainerSpec;
use std::collections::BTreeSet;

impl Cluster {
    /// Those of these images that jobs need which wait, are held, run, or go back to the queue. A job that is over needs none:
    /// if it is requeued by hand, its image is fetched again by the digest that it was pinned to.
    pub(super) fn images_needed(&self, held: Vec<String>) -> Vec<String> {
        let mut needed: BTreeSet<&str> = BTreeSet::new();
        for job in self.jobs.values() {
            let over = match &job.row.phase {
                Phase::Pending | Phase::Running(_) => false,
                Phase::Ending { requeue, .. } => !requeue,
                Phase::Ended { .. } => true,
            };
            if over || job.row.is_empty_array() {
                continue;
            }
            needed.extend(digest(&job.spec.spec.container));
            needed.extend(job.spec.first_step.iter().filter_map(|step| digest(&step.container)));
            let steps = job.steps.values().filter(|step| step.result.is_none());
            needed.extend(steps.filter_map(|step| digest(&step.spec.as_ref()?.container)));
        }
        held.into_iter().filter(|digest| needed.contains(digest.as_str())).collect()
    }
}

fn digest(container: &Option<ContainerSpec>) -> Option<&str> {
    container.as_ref()?.image.digest()
}
