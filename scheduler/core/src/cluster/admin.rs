//! What operators and administrators make of nodes.

use super::Cluster;
use crate::node::Node;
use berth_model::feature::RESUMED;
use berth_model::ids::{NodeName, Session};
use berth_model::link::ToAgent;
use berth_model::request::{Actor, NodeStateChange, Refusal, RefusalCode, Response};
use berth_model::state::Cause;
use std::sync::Arc;

/// As an administrator writes it.
fn word(state: NodeStateChange) -> &'static str {
    match state {
        NodeStateChange::Down => "DOWN",
        NodeStateChange::Drain => "DRAIN",
        NodeStateChange::Fail => "FAIL",
        NodeStateChange::Resume => "RESUME",
        NodeStateChange::Idle => "IDLE",
        NodeStateChange::Undrain => "UNDRAIN",
        NodeStateChange::CancelReboot => "CANCEL_REBOOT",
    }
}

impl Cluster {
    pub(super) fn update_node(
        &mut self,
        actor: &Actor,
        nodes: &[NodeName],
        state: NodeStateChange,
        reason: Option<String>,
    ) -> Result<Response, Refusal> {
        self.known_nodes(nodes)?;
        if matches!(state, NodeStateChange::Resume | NodeStateChange::Idle) {
            self.refuse_for_leaving(nodes)?;
        }
        if state == NodeStateChange::CancelReboot {
            self.cancel_reboot(nodes)?;
        }
        // As Slurm has it: what works is not made idle by a word.
        let works = |name: &&NodeName| {
            self.nodes.get(*name).is_some_and(|n| !n.row.condition.down && !n.held.is_empty())
        };
        if state == NodeStateChange::Idle
            && let Some(name) = nodes.iter().find(works)
        {
            return Err(Refusal::new(
                RefusalCode::Invalid,
                format!(
                    "Invalid node state transition\n{name} has work: use state=resume to have it take more"
                ),
            ));
        }
        let needs = matches!(state, NodeStateChange::Down | NodeStateChange::Drain | NodeStateChange::Fail);
        if needs && reason.as_ref().is_none_or(|r| r.trim().is_empty()) {
            return Err(Refusal::new(
                RefusalCode::Invalid,
                "You must specify a reason when DOWNING or DRAINING a node: add Reason=\"...\"",
            ));
        }
        let (now, user) = (self.clock, actor.identity.user.clone());
        for name in nodes {
            self.out.nodes.insert(name.clone());
            let Some(node) = self.node_mut(name) else { continue };
            let c = &mut node.row.condition;
            match state {
                NodeStateChange::Down => c.down = true,
                NodeStateChange::Drain => c.drain = true,
                NodeStateChange::Fail => c.fail = true,
                NodeStateChange::Resume | NodeStateChange::Idle => {
                    (c.down, c.drain, c.fail) = (false, false, false);
                    c.reboot = None;
                    node.given_up = None;
                    // It is to work with what it has.
                    node.row.registered = None;
                    // What is still wrong is told again; what its agent does not know it knows no better now.
                    node.row.causes.retain(|cause, _| *cause == Cause::Settings);
                }
                NodeStateChange::Undrain => c.drain = false,
                NodeStateChange::CancelReboot => c.reboot = None,
            }
            if needs {
                c.reason.clone_from(&reason);
                c.reason_user = Some(user.clone());
                c.reason_time = Some(now);
            } else if !(c.down || c.drain || c.fail) {
                (c.reason, c.reason_user, c.reason_time) = (None, None, None);
            }
            if matches!(state, NodeStateChange::Down | NodeStateChange::Resume | NodeStateChange::Idle) {
                self.judge_beyond(name, state != NodeStateChange::Down);
            }
            if matches!(state, NodeStateChange::Resume | NodeStateChange::Idle) {
                self.tell_of_resume(name);
            }
            if state == NodeStateChange::Down {
                self.give_up(name);
            } else if !needs {
                self.node_is_back(name);
            }
        }
        let mut what = format!("set {} to {}", crate::node::names(nodes), word(state));
        if let Some(reason) = reason.filter(|_| needs) {
            what.push_str(&format!(": {reason}"));
        }
        self.note(actor, what);
        Ok(Response::Done)
    }

    /// A fenced device may be so by what was seen of it once: its agent is told that somebody says it is well, now or when it is back.
    fn tell_of_resume(&mut self, name: &NodeName) {
        let Some(node) = self.node_mut(name) else { return };
        node.row.resumed = node.has_fenced();
        self.pass_on_resume(name);
    }

    /// Tells the agent of a node, where it is to be told still.
    pub(super) fn pass_on_resume(&mut self, name: &NodeName) {
        let Some(node) = self.node_mut(name).filter(|node| node.row.resumed) else { return };
        let Some(link) = node.link else { return };
        // What is well by now, and an agent of an earlier version, have nothing to hear.
        let is_told = node.has_fenced() && node.features.iter().any(|known| known == RESUMED);
        (node.row.resumed, node.told_resumed) = (is_told, is_told.then_some((link.session, false)));
        self.out.nodes.insert(name.clone());
        if is_told {
            self.send(name, ToAgent::Resumed { term: self.term });
        }
    }

    /// An agent is heard on: what it was told by this registration did not go with a connection that broke at once. The first time may be of
    /// what was on its way before.
    pub(super) fn has_heard_of_resume(&mut self, name: &NodeName, session: Session) {
        let told = |node: &Arc<Node>| node.told_resumed.filter(|(by, _)| node.row.resumed && *by == session);
        let Some((_, again)) = self.nodes.get(name).and_then(told) else { return };
        let Some(node) = self.node_mut(name) else { return };
        if again {
            node.row.resumed = false;
            self.out.nodes.insert(name.clone());
        } else {
            node.told_resumed = Some((session, true));
        }
    }

    pub(super) fn known_nodes(&self, nodes: &[NodeName]) -> Result<(), Refusal> {
        match nodes.iter().find(|n| !self.nodes.contains_key(*n)) {
            None => Ok(()),
            Some(name) => Err(Refusal::new(
                RefusalCode::NotFound,
                format!("Invalid node name specified: {name} never registered (see sinfo -N)"),
            )),
        }
    }
}
