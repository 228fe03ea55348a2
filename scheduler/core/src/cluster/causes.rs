//! Why the cluster itself keeps new work from a node: what its agent finds wrong, for as long as it is wrong.

use super::Cluster;
use super::said::{REASON, plain};
use crate::rows::{CauseNote, Phase};
use berth_model::config::restricts;
use berth_model::ids::{Attempt, JobId, NodeName};
use berth_model::link::Trouble;
use berth_model::state::Cause;
use std::collections::BTreeMap;

impl Cluster {
    /// All that is wrong with a node at this moment, as its agent says it with each sign of life. What is not named any more is
    /// over, and the node takes work again unless an administrator had taken it out of service.
    pub(super) fn troubles(&mut self, name: &NodeName, troubles: &[Trouble]) {
        let mut now: BTreeMap<Cause, Vec<&str>> = BTreeMap::new();
        for trouble in troubles {
            now.entry(trouble.cause).or_default().push(&trouble.why);
            if let (Cause::Unkillable, Some(run)) = (trouble.cause, trouble.run) {
                self.let_end(name, run);
            }
        }
        for (cause, why) in &now {
            self.begin_cause(name, *cause, &why.join("; "));
        }
        let Some(node) = self.nodes.get(name) else { return };
        let over: Vec<Cause> = node
            .row
            .causes
            .keys()
            .copied()
            // Of its reboot the controller knows itself, and what its agent does not know that says when it introduces itself.
            .filter(|cause| !matches!(cause, Cause::Reboot | Cause::Settings) && !now.contains_key(cause))
            // A new agent has not come to look yet; what it still has it names itself.
            .filter(|cause| *cause != Cause::Unkillable || node.settling.is_empty())
            .collect();
        over.into_iter().for_each(|cause| self.end_cause(name, cause));
    }

    /// Processes of a run do not end. Nothing more will be heard of it: for its job it is over on the node, which takes nothing new
    /// before they are gone.
    fn let_end(&mut self, name: &NodeName, run: (JobId, Attempt)) {
        let (id, attempt) = run;
        let waits = self.job(id).is_some_and(|job| {
            job.row.attempt == attempt
                && matches!(&job.row.phase, Phase::Ending { left, .. } if left.contains(name))
        });
        if !waits {
            return;
        }
        // First, so that nothing is put on the node meanwhile.
        if let Some(node) = self.node_mut(name) {
            node.settling.insert(run);
        }
        self.end_on_node(name, id, attempt);
        self.settle(name);
    }

    /// Its agent has introduced itself. Jobs may not run where a rule about them is not known.
    pub(super) fn judge_settings(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get(name) else { return };
        let rules: Vec<&str> =
            node.unknown_settings.iter().map(String::as_str).filter(|key| restricts(key)).collect();
        if rules.is_empty() {
            return self.end_cause(name, Cause::Settings);
        }
        let why = format!(
            "its agent (version {}) does not know {}, which restricts jobs: upgrade it, or leave that out",
            node.row.agent_version,
            rules.join(", ")
        );
        self.begin_cause(name, Cause::Settings, &why);
    }

    pub(super) fn begin_cause(&mut self, name: &NodeName, cause: Cause, why: &str) {
        // It ends on administrators' terminals.
        let why = plain(why, REASON);
        let now = self.clock;
        let Some(node) = self.node_mut(name) else { return };
        let since = match node.row.causes.get(&cause) {
            Some(known) if known.why == why => return,
            Some(known) => known.since,
            None => now,
        };
        node.row.causes.insert(cause, CauseNote { why, since });
        self.out.nodes.insert(name.clone());
    }

    pub(super) fn end_cause(&mut self, name: &NodeName, cause: Cause) {
        let Some(node) = self.node_mut(name) else { return };
        if node.row.causes.remove(&cause).is_some() {
            self.out.nodes.insert(name.clone());
            self.node_is_back(name);
        }
    }
}
