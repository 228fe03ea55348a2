//! Images of jobs: which ones they may have, and which ones they need of the nodes' stores.

use super::Cluster;
use crate::rows::Phase;
use crate::spec::Spec;
use crate::store::Write;
use berth_model::ids::{JobId, StepId};
use berth_model::request::{Refusal, RefusalCode};
use berth_model::spec::{ContainerSpec, JobKind, JobSpec, ResolvedImage, StepSpec};
use std::collections::BTreeSet;
use std::sync::Arc;

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

    /// A node found what the name of a step's image means: the step, and where the image is the job's all of the job's tasks
    /// and later runs, have that image from now on. The first word counts.
    pub(super) fn keep_image(&mut self, job: JobId, id: StepId, found: ResolvedImage) {
        if !matches!(found, ResolvedImage::Manifest { .. }) {
            return;
        }
        let Some(record) = self.job(job) else { return };
        let Some(step) = record.steps.get(&id) else { return };
        let mut row = record.spec.row();
        match step.spec.as_ref().filter(|own| own.container.is_some()) {
            None => {
                let Some(image) = row.spec.container.as_mut().and_then(unresolved) else { return };
                *image = Some(found);
            }
            Some(own) => {
                let mut own = (**own).clone();
                let Some(image) = own.container.as_mut().and_then(unresolved) else { return };
                *image = Some(found.clone());
                if let Some(step) = self.step_mut(job, id) {
                    step.spec = Some(Arc::new(own));
                }
                // A run that comes after this one makes its first step from here.
                let first = row.first_step.as_mut().filter(|_| id == StepId::Number(0)).map(Arc::make_mut);
                let Some(image) = first.and_then(|first| first.container.as_mut()).and_then(unresolved)
                else {
                    return;
                };
                *image = Some(found);
            }
        }
        self.out.first.push(Write::PutSpec(Arc::new(row.clone())));
        let of = row.job;
        let spec = Arc::new(Spec::new(row, &mut self.common));
        let members = self.arrays.get(&of).map(|array| array.members.clone());
        for member in members.unwrap_or_else(|| BTreeSet::from([job])) {
            if let Some(record) = self.job_live(member) {
                record.spec = spec.clone();
            }
        }
    }

    /// Refuses a job whose images are not for its account. Of what has no image named yet (an allocation) its steps are judged.
    pub(super) fn check_job_images(
        &self,
        spec: &JobSpec,
        first_step: Option<&StepSpec>,
    ) -> Result<(), Refusal> {
        match (spec.kind, first_step) {
            (JobKind::Alloc, _) if spec.container.is_none() => Ok(()),
            (_, Some(step)) => self.check_step_images(spec, step),
            _ => self.check_image(spec.container.as_ref(), spec),
        }
    }

    /// As [`Cluster::check_job_images`], for a step of a job.
    pub(super) fn check_step_images(&self, job: &JobSpec, step: &StepSpec) -> Result<(), Refusal> {
        self.check_image(step.container.as_ref().or(job.container.as_ref()), job)
    }

    fn check_image(&self, container: Option<&ContainerSpec>, job: &JobSpec) -> Result<(), Refusal> {
        let (named, resolved) = match container {
            None => ("", &ResolvedImage::Host),
            Some(container) => match &container.image.resolved {
                Some(resolved) => (container.image.typed.as_str(), resolved),
                // Only the node finds out what it is, and judges it then.
                None => return Ok(()),
            },
        };
        let judged = self.config.images.admits(named, resolved, job.account.as_deref());
        judged.map_err(|why| Refusal::new(RefusalCode::Denied, format!("Access/permission denied: {why}")))
    }
}

/// Where a container's image is to be entered that came by its name alone.
fn unresolved(container: &mut ContainerSpec) -> Option<&mut Option<ResolvedImage>> {
    Some(&mut container.image.resolved).filter(|resolved| resolved.is_none())
}

fn digest(container: &Option<ContainerSpec>) -> Option<&str> {
    container.as_ref()?.image.digest()
}
