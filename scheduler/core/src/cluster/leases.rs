//! Runs that end by themselves on a node which hears nothing of the controller (`lost_after_seconds` of the site, or a job's own
//! `--lost-after`), and what follows of it here.
//!
//! An agent asks with its Hello and each heartbeat, and says what its clock since boot shows. It is answered until when, by that clock, runs
//! go on: the time of the question and the run's span. Supervisors keep to it, with or without an agent. The question was sent
//! before it was heard; so when the span and a margin have passed here since the last one was heard, no such run is alive there.

use super::Cluster;
use super::submit::refuse;
use super::timers::Timer;
use crate::event::Effect;
use berth_model::ids::{Attempt, JobId, NodeName};
use berth_model::link::ToAgent;
use berth_model::request::{Refusal, RefusalCode};
use berth_model::spec::JobSpec;
use berth_model::time::{Span, Time};

/// What is waited for beyond a run's span. Cluster time is a tenth faster than the clock since boot at most, while it follows the
/// wall clock; the rest is for clocks that are not equally fast, and for what a kill takes.
fn margin(span: Span) -> Span {
    Span(span.0 / 5 + 5_000_000)
}

/// Most that a job may ask for: what a site can say, in microseconds.
const MOST: Span = Span(u32::MAX as i64 * 1_000_000);

impl Cluster {
    /// Whether a job may have the deadline that it asks for.
    pub(super) fn check_lost_after(&self, spec: &JobSpec) -> Result<(), Refusal> {
        let Some(own) = spec.lost_after else { return Ok(()) };
        let least = self.config.node_timeout.max(Span::from_secs(5));
        if own < least || own > MOST {
            return refuse(
                RefusalCode::Invalid,
                format!(
                    "Invalid --lost-after: {} seconds: write {} at least, after which a node counts as not responding \
                     (node_timeout_seconds), and {} at most",
                    own.secs(),
                    least.secs(),
                    MOST.secs()
                ),
            );
        }
        match self.config.lost_after.filter(|site| own > *site) {
            None => Ok(()),
            Some(site) => refuse(
                RefusalCode::Invalid,
                format!(
                    "Invalid --lost-after: {} seconds: on this cluster all jobs end that are out of touch for {} seconds \
                     (lost_after_seconds); write no more, or leave it out",
                    own.secs(),
                    site.secs()
                ),
            ),
        }
    }

    /// For how long a job that starts now goes on out of touch: what it asks for, and no longer than the site lets any.
    pub(super) fn lease_of(&self, id: JobId) -> Option<Span> {
        let own = self.job(id).and_then(|job| job.spec.spec.lost_after);
        own.into_iter().chain(self.config.lost_after).min()
    }

    /// An agent asked when its clock showed this: runs of its node go on for as long as they may from there.
    pub(super) fn has_asked(&mut self, node: &NodeName, asked: Time) {
        let now = self.clock;
        let Some(n) = self.node_mut(node) else { return };
        // Questions may overtake each other; and agents of an earlier version do not ask.
        if asked.0 <= 0 || n.asked.is_some_and(|before| before >= asked) {
            return;
        }
        n.asked = Some(asked);
        n.asked_at = now;
        let runs: Vec<(JobId, Attempt, Time)> =
            self.leased(node).into_iter().map(|(job, attempt, span)| (job, attempt, asked + span)).collect();
        if !runs.is_empty() {
            self.send(node, ToAgent::Renew { term: self.term, runs });
        }
    }

    /// Runs on a node that end by themselves, with their spans.
    fn leased(&self, node: &NodeName) -> Vec<(JobId, Attempt, Span)> {
        let Some(n) = self.nodes.get(node) else { return Vec::new() };
        let span = |job: JobId, attempt: Attempt| {
            self.job(job).filter(|j| j.row.attempt == attempt).and_then(|j| j.run()).and_then(|r| r.lease)
        };
        n.held.keys().filter_map(|(job, attempt)| Some((*job, *attempt, span(*job, *attempt)?))).collect()
    }

    /// Ends what has ended by itself on a node that is not heard of, and looks again when the next may have.
    pub(super) fn check_lost(&mut self, node: &NodeName) {
        let Some(n) = self.nodes.get(node).filter(|n| n.row.condition.not_responding) else { return };
        let (now, since, link) = (self.clock, n.asked_at, n.link);
        let (lost, left): (Vec<_>, Vec<_>) =
            self.leased(node).into_iter().partition(|(_, _, span)| since + *span + margin(*span) <= now);
        if let Some(next) = left.iter().map(|(_, _, span)| since + *span + margin(*span)).min() {
            self.timers.insert((next, Timer::Lost(node.clone())));
        }
        if lost.is_empty() {
            return;
        }
        // What it has left of them it says with its next Hello, and takes nothing new before.
        if let Some(link) = link {
            let why = format!("{node} was not heard of for so long that jobs there have ended by themselves");
            self.out.effects.push(Effect::Disconnect { connection: link.connection, why });
        }
        if let Some(n) = self.node_mut(node) {
            n.link = None;
        }
        for (job, attempt, _) in lost {
            self.lose_run(node, job, attempt);
        }
    }
}
