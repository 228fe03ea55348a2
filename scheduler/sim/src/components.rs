//! Clients with jobs of several components, and steps over them.

use crate::world::World;
use berth_model::ids::JobId;
use berth_model::request::{Actor, Payload, Request};
use berth_model::spec::{JobKind, JobSpec, StepSpec};
use berth_model::state::JobState;

/// What a submission is known by: the one job, or the first component.
pub(crate) fn submitted(body: &Request) -> Option<&JobSpec> {
    match body {
        Request::Submit { spec, .. } => Some(&**spec),
        Request::SubmitHet { components, .. } => components.first().map(|(spec, _)| spec),
        _ => None,
    }
}

impl World {
    /// One job, or sometimes several components of one.
    pub(crate) fn batch_or_components(&mut self) -> Request {
        let mut first = self.batch();
        if !self.rng.permille(250) {
            return first;
        }
        let Request::Submit { spec, payload, test_only, .. } = &mut first else { return first };
        spec.array = None;
        let count = self.rng.count(1, 3);
        let mut components = vec![((**spec).clone(), payload.clone())];
        for _ in 0..count {
            let mut next = self.job(JobKind::Batch);
            next.requeue = spec.requeue;
            next.hold = self.rng.permille(50);
            components.push((next, Payload::default()));
        }
        let test_only = *test_only;
        self.count("jobs of several components");
        Request::SubmitHet { components, test_only }
    }

    /// A step over all components of a job that runs.
    pub(crate) fn step_over_components(&mut self) -> Option<(Actor, Request)> {
        let core = self.controller.core.as_ref()?;
        let snapshot = core.snapshot();
        let led = snapshot
            .jobs()
            .filter(|job| job.state == JobState::Running && job.spec.het.is_some_and(|het| het.leads()));
        let jobs: Vec<_> = led.filter_map(|job| Some((job.spec.het?, job.identity.uid))).collect();
        let (het, owner) = self.rng.pick(&jobs).copied()?;
        let parts: Vec<(JobId, StepSpec)> = het.members().map(|job| (job, self.step())).collect();
        self.count("steps over several components");
        Some((crate::workload::actor(owner.0), Request::CreateHetStep { parts }))
    }
}
