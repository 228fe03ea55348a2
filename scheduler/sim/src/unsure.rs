//! Jobs that were taken while the cluster had no node, its machines being removed: whether one can ever run them nobody could say then.
//! When they are back the owner asks, and cancels what none can. That is not for the cluster to do: another machine may join.

use crate::workload::{ClientAct, actor};
use crate::world::{Happening, World};
use berth_model::ids::SubmissionId;
use berth_model::request::{CancelRequest, Refusal, RefusalCode, Request, Response};
use berth_model::spec::JobSelector;
use berth_model::state::JobState;
use berth_model::time::Span;

impl World {
    /// Whether the books have no node.
    pub(crate) fn has_no_node(&self) -> bool {
        self.controller.core.as_ref().is_some_and(|core| core.snapshot().nodes().next().is_none())
    }

    /// Whoever has such a job begins to ask.
    pub(crate) fn look_what_can_run(&mut self) {
        for id in self.client.unsure.clone() {
            self.plan(Span(0), Happening::Client(ClientAct::Looks(id)));
        }
    }

    /// Asks whether what waits could be taken now, and again after a while.
    pub(crate) fn looks_whether_it_can_run(&mut self, id: u64) {
        let Some((owner, body, job)) = self.client.submission(id) else { return };
        let Some(job) = job else { return };
        let state = self.controller.core.as_ref().map(|core| core.snapshot().state(job));
        if state.is_some_and(|state| state != Some(JobState::Pending)) {
            return;
        }
        let (owner, mut body) = (owner.clone(), body.clone());
        let name = SubmissionId(format!("u{}", self.client.new_request().0));
        match &mut body {
            Request::Submit { spec, test_only, .. } => {
                spec.submission = name;
                *test_only = true;
            }
            Request::SubmitHet { components, test_only } => {
                if let Some((first, _)) = components.first_mut() {
                    first.submission = name;
                }
                *test_only = true;
            }
            _ => return,
        }
        let question = self.wish(owner, body);
        self.client.asked.insert(question, job);
        self.plan(Span::from_secs(60), Happening::Client(ClientAct::Looks(id)));
    }

    /// What no node of the cluster could ever run is cancelled.
    pub(crate) fn cancel_what_cannot_run(&mut self, id: u64, answer: &Result<Response, Refusal>) {
        let Some(job) = self.client.asked.remove(&id) else { return };
        if answer.as_ref().is_err_and(|refusal| refusal.code == RefusalCode::Impossible) {
            self.count("jobs cancelled that no machine could ever run");
            let jobs = vec![(JobSelector::Job(job), None)];
            self.wish(actor(0), Request::Cancel(CancelRequest { jobs, ..CancelRequest::default() }));
        }
    }
}
