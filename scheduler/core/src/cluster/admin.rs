//! What operators and administrators make of nodes.

use super::Cluster;
use berth_model::feature::RESUMED;
use berth_model::ids::NodeName;
use berth_model::link::ToAgent;
use berth_model::request::{Actor, NodeStateChange, Refusal, RefusalCode, Response};
use berth_model::state::Cause;

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

    /// A fenced device may be so by what was seen of it once: its agent is told that somebody says it is well.
    fn tell_of_resume(&mut self, name: &NodeName) {
        let term = self.term;
        let is_told = self.nodes.get(name).is_some_and(|node| {
            let mut devices = node.row.hardware.gres.iter().chain(&node.hardware.gres);
            devices.any(|device| device.fault.is_some()) && node.features.iter().any(|known| known == RESUMED)
        });
        if is_told {
            self.send(name, ToAgent::Resumed { term });
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
