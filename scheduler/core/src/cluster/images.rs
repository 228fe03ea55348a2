//! Images of jobs: which ones they may have, and which ones they need of the nodes' stores.

use super::Cluster;
use super::exchange::{MOST_SOURCE, MOST_TEXT};
use crate::rows::{Phase, StepRow};
use crate::spec::Spec;
use crate::store::Write;
use berth_model::admission::Asked;
use berth_model::ids::{JobId, NodeName, StepId, StepKey};
use berth_model::link::ToAgent;
use berth_model::request::{Refusal, RefusalCode};
use berth_model::spec::{ContainerSpec, ImageRef, JobKind, JobSpec, ResolvedImage, StepSpec};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Most indexes that an image is reached by.
const MOST_INDEXES: usize = 16;

/// Images that a node may be removing: no job needed them when it asked.
#[derive(Debug)]
pub(super) struct Going {
    /// Number of its question.
    ask: u64,
    digests: BTreeSet<String>,
}

/// Whether a name may mean this: it is on record for as long as the job is.
pub(super) fn may_be_kept(found: &ResolvedImage) -> bool {
    let ResolvedImage::Manifest { source, digest, indexes, .. } = found else { return false };
    let mut texts = indexes.iter().chain([digest]);
    source.len() <= MOST_SOURCE && indexes.len() <= MOST_INDEXES && texts.all(|text| text.len() <= MOST_TEXT)
}

impl Cluster {
    /// A node asks which of its images jobs need, before it removes others. Until it asks again it hears of each one of the others that
    /// comes to be needed. Nothing held says that nothing goes any more.
    pub(super) fn images_held(&mut self, node: &NodeName, ask: u64, held: Vec<String>) {
        let needed = self.images_needed(held.clone());
        let stay: BTreeSet<&String> = needed.iter().collect();
        let digests: BTreeSet<String> = held.into_iter().filter(|digest| !stay.contains(digest)).collect();
        self.going.remove(node);
        if !digests.is_empty() {
            self.going.insert(node.clone(), Going { ask, digests });
        }
        self.send(node, ToAgent::ImagesNeeded { ask, digests: needed });
    }

    /// Tells the nodes that may be removing one of these images that a job needs it.
    fn keep_images(&mut self, digests: &[String]) {
        let mut told = Vec::new();
        for (node, going) in &mut self.going {
            let kept = digests.iter().filter(|digest| going.digests.remove(digest.as_str()));
            let kept: Vec<String> = kept.cloned().collect();
            if !kept.is_empty() {
                told.push((node.clone(), ToAgent::ImagesNeeded { ask: going.ask, digests: kept }));
            }
        }
        for (node, word) in told {
            self.send(&node, word);
        }
    }

    /// The same of what a job needs that waits now, or goes back to the queue.
    pub(super) fn keep_images_of(&mut self, job: JobId) {
        if self.going.is_empty() {
            return;
        }
        let Some(job) = self.job(job) else { return };
        let first = job.spec.first_step.iter().filter_map(|step| digest(&step.container));
        let all = digest(&job.spec.spec.container).into_iter().chain(first);
        let all: Vec<String> = all.map(str::to_owned).collect();
        self.keep_images(&all);
    }

    /// The same of what a step needs that begins, or waits for room in its job.
    pub(super) fn keep_image_of_step(&mut self, spec: &StepSpec) {
        if let Some(digest) = digest(&spec.container).filter(|_| !self.going.is_empty()) {
            self.keep_images(&[digest.to_owned()]);
        }
    }

    /// Those of these images that jobs need which wait, are held, run, or go back to the queue. A job that is over needs none:
    /// if it is requeued by hand, its image is fetched again by the digest that it was pinned to.
    fn images_needed(&self, held: Vec<String>) -> Vec<String> {
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
        // Of a step that waits for room in its job nothing else tells.
        for (job, waiting) in &self.waiting {
            let parts = waiting.iter().flat_map(|step| step.parts(*job));
            needed.extend(parts.filter_map(|(_, spec)| digest(&spec.container)));
        }
        held.into_iter().filter(|digest| needed.contains(digest.as_str())).collect()
    }

    /// A node found what the name of a step's image means, and is told what all of the job have: what was found first. Whoever has nothing
    /// to do with the step is told nothing: what it began of a run that is over ends when it hears of that.
    pub(super) fn pin_image(
        &mut self,
        node: &NodeName,
        key: StepKey,
        found: ResolvedImage,
    ) -> Option<ResolvedImage> {
        let theirs = |step: &StepRow| step.nodes.iter().any(|part| part.node == *node && part.exit.is_none());
        self.step(key).filter(|step| theirs(step))?;
        self.keep_image(key.job, key.step, found.clone());
        let kept = self.image_of(key.job, key.step).and_then(|image| image.resolved.clone());
        Some(kept.unwrap_or(found))
    }

    /// The image of a step: its own, or else its job's.
    pub(super) fn image_of(&self, job: JobId, id: StepId) -> Option<&ImageRef> {
        let record = self.job(job)?;
        let step = record.steps.get(&id)?;
        let own = step.spec.as_ref().and_then(|own| own.container.as_ref());
        own.or(record.spec.spec.container.as_ref()).map(|container| &container.image)
    }

    /// A node found what the name of a step's image means: the step, and where the image is the job's all of the job's tasks
    /// and later runs, have that image from now on, and so has what has this name in other components of the job. The first word counts.
    pub(super) fn keep_image(&mut self, job: JobId, id: StepId, found: ResolvedImage) {
        if !may_be_kept(&found) {
            return;
        }
        let Some(image) = self.image_of(job, id).filter(|image| image.resolved.is_none()) else { return };
        let typed = image.typed.clone();
        // A digest means the same on each node, which finds out itself what it leads to: no node says that to the others.
        if says_another_digest(&typed, &found) {
            return;
        }
        let own = self.job(job).and_then(|record| record.steps.get(&id)?.spec.as_ref());
        let own = own.is_some_and(|own| own.container.is_some());
        for component in self.whole(job) {
            self.keep_in(component, own.then_some(id), &typed, &found);
        }
    }

    /// Enters what a name means: in a job, or where it is the own image of a step in that. What the job may not have is entered
    /// nowhere; the node that found it refuses it, with the reason.
    fn keep_in(&mut self, job: JobId, step: Option<StepId>, typed: &str, found: &ResolvedImage) {
        let Some(record) = self.job(job) else { return };
        let asked = Asked::Job(record.spec.spec.account.as_deref());
        if self.config.images.admits(typed, found, asked).is_err() {
            return;
        }
        let mut row = record.spec.row();
        let changed = match step {
            None => row.spec.container.as_mut().is_some_and(|of| enter(of, typed, found)),
            Some(id) => {
                let own = record.steps.get(&id).and_then(|step| step.spec.as_ref());
                let own = own.map(|own| (**own).clone()).and_then(|mut own| {
                    own.container.as_mut().is_some_and(|of| enter(of, typed, found)).then_some(own)
                });
                if let (Some(own), Some(step)) = (own, self.step_mut(job, id)) {
                    step.spec = Some(Arc::new(own));
                }
                // A run that comes after this one makes its first step from here.
                let first = row.first_step.as_mut().filter(|_| id == StepId::Number(0)).map(Arc::make_mut);
                let first = first.and_then(|first| first.container.as_mut());
                first.is_some_and(|of| enter(of, typed, found))
            }
        };
        if !changed {
            return;
        }
        if let ResolvedImage::Manifest { digest, .. } = found {
            self.keep_images(std::slice::from_ref(digest));
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
        let judged = self.config.images.admits(named, resolved, Asked::Job(job.account.as_deref()));
        judged.map_err(|why| Refusal::new(RefusalCode::Denied, format!("Access/permission denied: {why}")))
    }
}

/// Whether a name that ends in a digest (`registry/name@sha256:…`) says another one than what was found has.
fn says_another_digest(typed: &str, found: &ResolvedImage) -> bool {
    let said = typed.rsplit_once('@').map(|(_, digest)| digest);
    let said = said.filter(|digest| digest.starts_with("sha256:") || digest.starts_with("sha512:"));
    match (said, found) {
        (Some(said), ResolvedImage::Manifest { digest, .. }) => said != digest,
        _ => false,
    }
}

/// Enters what a container's image is, where it came by this name alone.
fn enter(container: &mut ContainerSpec, typed: &str, found: &ResolvedImage) -> bool {
    let image = &mut container.image;
    let is = image.resolved.is_none() && image.typed == typed;
    if is {
        image.resolved = Some(found.clone());
    }
    is
}

fn digest(container: &Option<ContainerSpec>) -> Option<&str> {
    container.as_ref()?.image.digest()
}
