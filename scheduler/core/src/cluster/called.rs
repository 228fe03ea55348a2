//! What people call nodes: by the nodes' own names, or by the full names of their machines.

use super::Cluster;
use berth_model::called::Called;
use berth_model::ids::NodeName;
use berth_model::request::Request;
use berth_model::spec::{JobSpec, StepSpec};
use std::collections::BTreeSet;

fn of_job(spec: &mut JobSpec) -> [&mut Vec<NodeName>; 2] {
    [&mut spec.resources.node_list, &mut spec.resources.exclude]
}

fn of_step(spec: &mut StepSpec) -> [&mut Vec<NodeName>; 2] {
    [&mut spec.node_list, &mut spec.exclude]
}

/// The lists of nodes in a request that people write.
fn lists(request: &mut Request) -> Vec<&mut Vec<NodeName>> {
    match request {
        Request::Submit { spec, first_step, .. } => {
            let first = first_step.iter_mut().flat_map(|step| of_step(step));
            of_job(spec).into_iter().chain(first).collect()
        }
        Request::SubmitHet { components, .. } => {
            components.iter_mut().flat_map(|(spec, _)| of_job(spec)).collect()
        }
        Request::CreateStep { spec, .. } => of_step(spec).into_iter().collect(),
        Request::CreateHetStep { parts } => parts.iter_mut().flat_map(|(_, spec)| of_step(spec)).collect(),
        Request::Cancel(cancel) => vec![&mut cancel.nodes],
        Request::UpdateNode { nodes, .. }
        | Request::RebootNodes { nodes, .. }
        | Request::PullImage { nodes, .. } => vec![nodes],
        // Of itself a machine speaks by its name, and all others name one node or none.
        _ => Vec::new(),
    }
}

impl Cluster {
    /// Puts nodes' names in the place of their machines' full ones. What is a node's name, or a machine's that has joined, means that.
    pub(super) fn by_their_names(&self, request: &mut Request) {
        let taken = |name: &NodeName| self.nodes.contains_key(name) || self.members.contains_key(name);
        if let Request::ApproveMember { name } | Request::RemoveMember { name, .. } = request {
            if !taken(name)
                && let Some(node) = self.called().node(name)
            {
                *name = node.clone();
            }
            return;
        }
        let mut called = None;
        for list in lists(request) {
            if list.iter().all(taken) {
                continue;
            }
            let called = called.get_or_insert_with(|| self.called());
            for name in list.iter_mut().filter(|name| !taken(name)) {
                if let Some(node) = called.node(name) {
                    *name = node.clone();
                }
            }
            // One that was named in both ways is asked for once.
            let mut seen = BTreeSet::new();
            list.retain(|name| seen.insert(name.clone()));
        }
    }

    fn called(&self) -> Called {
        Called::of(self.nodes.iter().map(|(name, node)| (name, node.row.host_name.as_deref())))
    }
}
