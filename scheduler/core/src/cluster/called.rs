//! What people call nodes: by the nodes' own names, or by the full names of their machines.

use super::Cluster;
use berth_model::called::Called;
use berth_model::ids::NodeName;
use berth_model::request::Request;
use berth_model::spec::{JobSpec, StepSpec};

fn of_job(spec: &mut JobSpec) -> impl Iterator<Item = &mut NodeName> {
    spec.resources.node_list.iter_mut().chain(&mut spec.resources.exclude)
}

fn of_step(spec: &mut StepSpec) -> impl Iterator<Item = &mut NodeName> {
    spec.node_list.iter_mut().chain(&mut spec.exclude)
}

/// The nodes that people name in a request.
fn named(request: &mut Request) -> Vec<&mut NodeName> {
    match request {
        Request::Submit { spec, first_step, .. } => {
            of_job(spec).chain(first_step.iter_mut().flat_map(|step| of_step(step))).collect()
        }
        Request::SubmitHet { components, .. } => {
            components.iter_mut().flat_map(|(spec, _)| of_job(spec)).collect()
        }
        Request::CreateStep { spec, .. } => of_step(spec).collect(),
        Request::CreateHetStep { parts } => parts.iter_mut().flat_map(|(_, spec)| of_step(spec)).collect(),
        Request::Cancel(cancel) => cancel.nodes.iter_mut().collect(),
        Request::UpdateNode { nodes, .. }
        | Request::RebootNodes { nodes, .. }
        | Request::PullImage { nodes, .. } => nodes.iter_mut().collect(),
        Request::ApproveMember { name } | Request::RemoveMember { name, .. } => vec![name],
        // Of itself a machine speaks by its name, and all others name no node.
        _ => Vec::new(),
    }
}

impl Cluster {
    /// Puts nodes' names in the place of their machines' full ones. What is a node's name, or a machine's that has joined, means that.
    pub(super) fn by_their_names(&self, request: &mut Request) {
        let taken = |name: &NodeName| self.nodes.contains_key(name) || self.members.contains_key(name);
        let others: Vec<&mut NodeName> = named(request).into_iter().filter(|name| !taken(name)).collect();
        if others.is_empty() {
            return;
        }
        let called = Called::of(self.nodes.iter().map(|(name, node)| (name, node.row.host_name.as_deref())));
        for name in others {
            if let Some(node) = called.node(name) {
                *name = node.clone();
            }
        }
    }
}
