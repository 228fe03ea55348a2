//! Connections and messages: late, twice, out of order, held up for minutes, or lost; and what either side makes of silence.

use crate::faults::Kind;
use crate::journal::term_of;
use crate::machine::Blocked;
use crate::world::{Happening, World};
use berth_agent_core::AgentEvent;
use berth_model::ids::NodeName;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::time::{Span, Time};
use berth_sched_core::Event;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToController,
    ToAgent,
}

/// A connection, whether it still is one or not.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeName,
    /// Which life of the node's agent made it.
    pub(crate) life: u64,
    /// When what was sent last arrives, each way.
    arrives: [Time; 2],
}

impl World {
    /// Sends a message on its way.
    pub(crate) fn deliver(&mut self, way: Way, connection: u64, what: Happening) {
        let mut copies = 1;
        // An introduction that comes after that of a later connection is rare, and hard to get right.
        let hello = matches!(&what, Happening::ToController { message, .. } if matches!(**message, FromAgent::Hello { .. }));
        let often = if hello { 150 } else { 12 };
        if self.faults {
            if self.chaos.on(Kind::Loss) && self.rng.permille(12) {
                self.count(Kind::Loss.name());
                copies = 0;
            } else if self.chaos.on(Kind::Doubles) && self.rng.permille(15) {
                self.count(Kind::Doubles.name());
                copies = 2;
            }
        }
        for copy in 0..copies {
            let mut after = self.span(50, 20_000);
            if copy > 0 {
                after = self.span(50, 6_000_000);
            } else if self.faults && self.chaos.on(Kind::Delay) && self.rng.permille(often) {
                self.count(Kind::Delay.name());
                after = self.span(50_000, 15_000_000);
            }
            let mut at = self.now + after;
            let in_order = !(self.faults && self.chaos.on(Kind::Overtaking));
            let Some(link) = self.links.get_mut(&connection) else { return };
            let last = &mut link.arrives[way as usize];
            let overtakes = at < *last;
            if overtakes && in_order {
                at = *last;
            }
            *last = at.max(*last);
            if overtakes && !in_order {
                self.count(Kind::Overtaking.name());
            }
            self.plan_at(at, what.clone());
        }
    }

    /// A message of the controller comes to a node. The agent's shell lets in what is of its present connection alone; in some
    /// worlds also what an earlier controller said, which has to be refused by its term.
    pub(crate) fn reaches_agent(&mut self, connection: u64, message: ToAgent) -> Result<(), String> {
        let Some(link) = self.links.get(&connection).cloned() else { return Ok(()) };
        let Some(m) = self.machines.get(&link.node) else { return Ok(()) };
        let older = term_of(&message).is_some_and(|term| term < m.term);
        if m.connection != Some(connection) {
            let same_agent = m.agent.is_some() && m.agent_life == link.life && m.connection.is_some();
            if !self.chaos.on(Kind::Late) || !same_agent || !older {
                self.count("messages of an old connection dropped by an agent");
                return Ok(());
            }
            self.count(Kind::Late.name());
        }
        if let ToAgent::Start(start) = &message
            && self.truth.ran.contains_key(&(start.launch.key, link.node.clone()))
        {
            self.count("a Start came twice");
        }
        if older {
            self.count("commands of an older term refused");
            self.agent(&link.node, AgentEvent::Tick)?;
            return self.agent_stays(&link.node, AgentEvent::Controller(message));
        }
        self.agent(&link.node, AgentEvent::Controller(message))
    }

    pub(crate) fn connect(&mut self, node: &NodeName, life: u64) -> Result<(), String> {
        let alive = self.controller.core.is_some();
        let known = self.lets_in(node)?;
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        if m.agent.is_none() || m.agent_life != life || m.connection.is_some() {
            return Ok(());
        }
        let held = self.controller.held.is_some_and(|(_, until)| until > self.now);
        if !alive || held || m.blocked.is_some_and(|b| b.until > self.now) {
            // Who waited for an answer in vain waits longer.
            let again = if held { self.span(500_000, 12_000_000) } else { self.span(500_000, 2_000_000) };
            self.plan(again, Happening::Connect { node: node.clone(), life });
            return Ok(());
        }
        if !known {
            self.count("machines turned away that are in no books");
            let again = self.span(1_000_000, 5_000_000);
            self.plan(again, Happening::Connect { node: node.clone(), life });
            return Ok(());
        }
        self.controller.connections += 1;
        let connection = self.controller.connections;
        m.connection = Some(connection);
        let link = Link { node: node.clone(), life, arrives: [self.now; 2] };
        self.links.insert(connection, link);
        self.controller.open.insert(connection);
        if self.faults && self.chaos.on(Kind::Cut) && self.rng.permille(100) {
            self.count(Kind::Cut.name());
            let after = self.span(0, 100_000);
            self.plan(after, Happening::Cut { connection });
        }
        self.agent(node, AgentEvent::Connected)
    }

    /// The agent's side of a connection ends; the controller sees it soon, or when it writes.
    pub(crate) fn cut(&mut self, connection: u64) -> Result<(), String> {
        let Some(link) = self.links.get(&connection).cloned() else { return Ok(()) };
        let Some(m) = self.machines.get_mut(&link.node).filter(|m| m.connection == Some(connection)) else {
            return Ok(());
        };
        m.connection = None;
        let life = m.agent_life;
        self.ends_unseen(connection);
        let again = self.span(100_000, 2_000_000);
        self.plan(again, Happening::Connect { node: link.node.clone(), life });
        self.agent(&link.node, AgentEvent::Disconnected)
    }

    /// A connection is over, of which the controller learns soon, or much later.
    pub(crate) fn ends_unseen(&mut self, connection: u64) {
        let late = self.rng.permille(200);
        let seen = if late { self.span(3_000_000, 30_000_000) } else { self.span(100, 3_000_000) };
        self.plan(seen, Happening::LossSeen { connection });
    }

    pub(crate) fn loss_seen(&mut self, connection: u64) -> Result<(), String> {
        let Some(link) = self.links.get(&connection) else { return Ok(()) };
        let node = link.node.clone();
        if self.controller.open.remove(&connection) {
            self.control(Event::AgentLost { node, connection })?;
        }
        Ok(())
    }

    /// Nothing came for too long on one side, if nothing comes still.
    pub(crate) fn unanswered(&mut self, connection: u64, by_agent: bool) -> Result<(), String> {
        let Some(m) = self.links.get(&connection).and_then(|l| self.machines.get(&l.node)) else {
            return Ok(());
        };
        let blocked = m.blocked.is_some_and(|b| b.until > self.now);
        let frozen = m.frozen.is_some_and(|until| until > self.now);
        if by_agent && blocked {
            return self.cut(connection);
        }
        if !by_agent && (blocked || frozen) && self.controller.open.contains(&connection) {
            self.plan(Span(1000), Happening::Cut { connection });
            return self.loss_seen(connection);
        }
        Ok(())
    }

    /// Messages of a node do not get through for a time, both ways or one.
    pub(crate) fn partition(&mut self, node: &NodeName, one_way: bool) {
        let lasts = match self.rng.below(10) {
            0..4 => self.span(1_000_000, 15_000_000),
            4..8 => self.span(20_000_000, 60_000_000),
            _ => self.span(60_000_000, 120_000_000),
        };
        let until = self.now + lasts;
        let which = self.rng.permille(500);
        let (to_controller, to_agent) = if one_way { (which, !which) } else { (true, true) };
        let Some(m) = self.machines.get_mut(node) else { return };
        m.blocked = Some(Blocked { until, to_controller, to_agent });
        let connection = m.connection;
        self.plan_at(until, Happening::Heals { node: node.clone() });
        let Some(connection) = connection else { return };
        for by_agent in [true, false] {
            let after = self.span(1_000_000, 40_000_000);
            self.plan(after, Happening::Unanswered { connection, by_agent });
        }
        if lasts > Span::from_secs(20) {
            self.count("partitions longer than the node's timeout");
        }
        // Steps that end while nobody hears of it.
        self.truth.cut_off.insert(node.clone());
    }

    pub(crate) fn heal(&mut self, node: &NodeName) {
        let now = self.now;
        if let Some(m) = self.machines.get_mut(node).filter(|m| m.blocked.is_some_and(|b| b.until <= now)) {
            m.blocked = None;
            self.truth.cut_off.remove(node);
        }
    }
}
