//! Starts that nodes carry to one another: lost, twice, late, or brought once more when all is over; by heads that are silent or gone. A third of
//! all worlds have a tree; the others are as they were without one.

use crate::network::Way;
use crate::world::{Happening, World};
use berth_agent_core::AgentEvent;
use berth_model::carry::{Carried, CarriedPart, CarriedTo};
use berth_model::exchange::FromPeers;
use berth_model::ids::NodeName;
use berth_model::link::Start;

/// From how many nodes on a step is launched by a tree, and by branches of how many, in a world with this seed.
pub(crate) fn tree(seed: u64, backups: bool) -> (u32, u32) {
    let width = if seed.is_multiple_of(2) { 2 } else { 3 };
    let from = if seed.is_multiple_of(3) && !backups { 2 } else { 0 };
    (from, width)
}

impl World {
    /// An agent that has registered says where others find it.
    pub(crate) fn has_port(&mut self, node: &NodeName) -> Result<(), String> {
        if self.chaos.config.launch_tree_from == 0 {
            return Ok(());
        }
        let joined = self.machines.get(node).and_then(|m| m.joined.as_ref());
        let key = joined.map_or_else(|| format!("key of {node}"), |joined| joined.key.0.clone());
        let address = format!("{node}:7818");
        let said = FromPeers::Ready { address, key, streams: true, connected: Vec::new() };
        self.agent(node, AgentEvent::Peers(said))
    }

    /// The head of a branch is told what it is to carry, beside its own Start.
    pub(crate) fn head_is_told(&mut self, connection: u64, start: &Start, to: Vec<CarriedTo>) {
        let carried = to.into_iter().map(|to| {
            let CarriedPart { part, to } = to.part;
            let mut start = start.clone();
            part.give(&mut start);
            Carried { to, start }
        });
        let bundle = carried.collect();
        self.deliver(Way::ToAgent, connection, Happening::Carries { connection, bundle });
    }

    /// It carries, or nobody hears of it.
    pub(crate) fn head_carries(&mut self, connection: u64, bundle: Vec<Carried>) {
        let head = self.links.get(&connection).and_then(|link| self.machines.get(&link.node));
        let there = head.is_some_and(|m| m.agent.is_some() && m.connection == Some(connection));
        if !there || self.faults && self.rng.permille(150) {
            return self.count("heads of branches that were silent or gone");
        }
        for carried in bundle {
            let copies = match self.rng.below(10) {
                0 if self.faults => 0,
                1 if self.faults => 2,
                _ => 1,
            };
            match copies {
                0 => self.count("carried starts lost"),
                2 => self.count("carried starts doubled"),
                _ => {}
            }
            for _ in 0..copies {
                let late = self.faults && self.rng.permille(200);
                if late {
                    self.count("carried starts late");
                }
                let after = if late { self.span(500_000, 20_000_000) } else { self.span(200, 30_000) };
                self.plan(after, Happening::Brought { carried: Box::new(carried.clone()) });
            }
        }
    }

    /// A node brings a Start to another one. It may keep it, and bring it once more at any time.
    pub(crate) fn brought(&mut self, carried: Carried) -> Result<(), String> {
        let node = carried.start.launch.node.clone();
        if self.faults && self.rng.permille(100) {
            self.count("carried starts brought once more, much later");
            let after = self.span(1_000_000, 200_000_000);
            self.plan(after, Happening::Brought { carried: Box::new(carried.clone()) });
        }
        self.count("starts brought by another node");
        let older = self.machines.get(&node).is_some_and(|m| carried.start.term < m.term);
        let event = AgentEvent::Carried(Box::new(carried));
        if older {
            self.agent(&node, AgentEvent::Tick)?;
            return self.agent_stays(&node, event);
        }
        self.agent(&node, event)
    }
}
