//! Reboots through us: a node is told to when nothing of a job is left there, and is back with another boot id.

use super::Cluster;
use super::timers::{REPEAT, Timer};
use crate::node::names;
use crate::rows::NodeRow;
use berth_model::ids::NodeName;
use berth_model::link::ToAgent;
use berth_model::programs::REBOOT;
use berth_model::request::{Actor, Refusal, RefusalCode, Response};
use berth_model::state::{Cause, NextState, Reboot};
use berth_model::time::{Span, Time};

impl Cluster {
    pub(super) fn reboot_nodes(
        &mut self,
        actor: &Actor,
        mut nodes: Vec<NodeName>,
        asap: bool,
        next: NextState,
        reason: Option<String>,
    ) -> Result<Response, Refusal> {
        self.known_nodes(&nodes)?;
        let program = &self.config.for_agents.programs.reboot;
        if program.is_empty() {
            return Err(Refusal::new(
                RefusalCode::Invalid,
                "RebootProgram isn't defined: name one in programs.reboot of berth.toml",
            ));
        }
        let usual = program.0 == REBOOT.as_bytes();
        if nodes.is_empty() {
            nodes = self.nodes.keys().cloned().collect();
        }
        // On machines that joined the agent is root.
        let own = |name: &&NodeName| !self.members.contains_key(*name);
        if self.config.user_mode
            && usual
            && let Some(name) = nodes.iter().find(own)
        {
            return Err(Refusal::new(
                RefusalCode::Invalid,
                format!(
                    "{name} cannot be rebooted: this is one user's cluster (user mode), whose agent there is not root, and {REBOOT} \
                     takes root. Reboot the machine yourself, or name a program that may do it in programs.reboot of berth.toml, such \
                     as a script with sudo, and 'scontrol reconfigure'"
                ),
            ));
        }
        let (since, user) = (self.clock, actor.identity.user.clone());
        for name in &nodes {
            let Some(node) = self.node_mut(name) else { continue };
            let reboot = &mut node.row.condition.reboot;
            if reboot.as_ref().is_some_and(|reboot| reboot.issued.is_some()) {
                continue; // it is on its way
            }
            let (user, reason) = (user.clone(), reason.clone());
            *reboot = Some(Reboot { asap, next, issued: None, reason, user, since });
            self.out.nodes.insert(name.clone());
            self.rebooting.insert(name.clone(), None);
        }
        let mut what = format!("has {} rebooted", names(&nodes));
        if let Some(reason) = reason {
            what.push_str(&format!(": {reason}"));
        }
        self.note(actor, what);
        Ok(Response::Done)
    }

    /// Takes the wish back from those of which it was not fulfilled yet.
    pub(super) fn cancel_reboot(&mut self, nodes: &[NodeName]) -> Result<(), Refusal> {
        let issued = |name: &&NodeName| {
            let reboot = self.nodes.get(*name).and_then(|n| n.row.condition.reboot.as_ref());
            reboot.is_some_and(|reboot| reboot.issued.is_some())
        };
        if let Some(name) = nodes.iter().find(issued) {
            return Err(Refusal::new(
                RefusalCode::Invalid,
                format!(
                    "{name} was told to reboot already: it cannot be cancelled; state=resume gives the wait for it up"
                ),
            ));
        }
        Ok(())
    }

    /// Nodes at which a reboot is looked for, after a start of the controller.
    pub(super) fn watch_reboot(&mut self, row: &NodeRow) {
        let Some(reboot) = &row.condition.reboot else { return };
        self.rebooting.insert(row.name.clone(), None);
        if reboot.issued.is_some() {
            self.look_after_reboot(&row.name);
        }
    }

    fn look_after_reboot(&mut self, name: &NodeName) {
        let at = self.clock + REPEAT;
        self.rebooting.insert(name.clone(), Some(at));
        self.timers.insert((at, Timer::Reboot(name.clone())));
    }

    fn patience(&self) -> Span {
        Span::from_secs(self.config.for_agents.programs.reboot_timeout_seconds.into())
    }

    /// Tells nodes to reboot that are to, and have nothing of a job.
    pub(super) fn reboot_what_is_free(&mut self) {
        if self.rebooting.is_empty() {
            return;
        }
        let (now, term) = (self.clock, self.term);
        for name in self.rebooting.keys().cloned().collect::<Vec<_>>() {
            let Some(node) = self.nodes.get(&name) else {
                self.rebooting.remove(&name);
                continue;
            };
            let Some(reboot) = &node.row.condition.reboot else {
                self.rebooting.remove(&name);
                continue;
            };
            let free = node.link.is_some() && node.held.is_empty() && node.settling.is_empty();
            if reboot.issued.is_some() || !free {
                continue;
            }
            let since = reboot.since;
            if let Some(reboot) = self.node_mut(&name).and_then(|n| n.row.condition.reboot.as_mut()) {
                reboot.issued = Some(now);
            }
            self.out.nodes.insert(name.clone());
            self.send(&name, ToAgent::Reboot { term, since });
            self.look_after_reboot(&name);
        }
    }

    /// A node has registered: with another boot id it was rebooted, by us or by anybody. `again`: with the same on a new
    /// connection, so that it may not have heard what it was told.
    pub(super) fn has_booted(&mut self, name: &NodeName, rebooted: bool, again: bool) {
        let term = self.term;
        let Some(reboot) = self.nodes.get(name).and_then(|n| n.row.condition.reboot.clone()) else { return };
        if !rebooted {
            if reboot.issued.is_some() && again {
                self.send(name, ToAgent::Reboot { term, since: reboot.since });
            }
            return;
        }
        let now = self.clock;
        if let Some(node) = self.node_mut(name) {
            let c = &mut node.row.condition;
            c.reboot = None;
            match reboot.next {
                NextState::Before => {}
                NextState::Resume => {
                    (c.down, c.drain, c.fail) = (false, false, false);
                    (c.reason, c.reason_user, c.reason_time) = (None, None, None);
                }
                NextState::Down => {
                    c.down = true;
                    let usual = || "nextstate=DOWN of its reboot".to_string();
                    c.reason = Some(reboot.reason.unwrap_or_else(usual));
                    c.reason_user = Some(reboot.user);
                    c.reason_time = Some(now);
                }
            }
        }
        self.rebooting.remove(name);
        self.out.nodes.insert(name.clone());
        self.end_cause(name, Cause::Reboot);
    }

    /// The program that was to do it failed: the node is as it was, and takes nothing new until somebody has looked at it.
    pub(super) fn reboot_failed(&mut self, name: &NodeName, since: Time, why: &str) {
        let this = |reboot: &mut Reboot| reboot.issued.is_some() && reboot.since == since;
        let Some(node) = self.node_mut(name) else { return };
        if node.row.condition.reboot.take_if(this).is_none() {
            return; // told twice, or of a wish that is given up
        }
        node.row.causes.remove(&Cause::Reboot);
        self.rebooting.remove(name);
        self.drain(name, &format!("reboot failed: {why}"));
    }

    /// Tells a node again that is not back: what it was told may be lost, and so may its answer.
    pub(super) fn check_reboot(&mut self, name: &NodeName) {
        // Only the latest timer counts, or each wish would leave one more that goes on for ever.
        if self.rebooting.get(name).is_none_or(|at| at.is_none_or(|at| at > self.clock)) {
            return;
        }
        let condition = self.nodes.get(name).map(|node| &node.row.condition);
        let Some(reboot) = condition.and_then(|c| c.reboot.as_ref()) else { return };
        let (Some(issued), since, term) = (reboot.issued, reboot.since, self.term) else { return };
        let patience = self.patience();
        if issued + patience <= self.clock {
            let seconds = patience.0 / 1_000_000;
            self.begin_cause(name, Cause::Reboot, &format!("reboot: not back within {seconds} s"));
        }
        self.send(name, ToAgent::Reboot { term, since });
        self.look_after_reboot(name);
    }
}
