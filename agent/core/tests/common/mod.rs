//! A node's agent core with a connection, for the tests of this crate.

use berth_agent_core::*;
use berth_model::hardware::Hardware;
use berth_model::ids::*;
use berth_model::link::ToAgent;
use berth_model::time::{Span, Time};

/// The core, its clock, and what it decided.
pub struct Node {
    pub core: AgentCore,
    pub now: Time,
    pub seen: Vec<AgentEffect>,
}

impl Node {
    pub fn new(adopted: Vec<Adopted>) -> Node {
        let config = AgentConfig {
            node: "n1".into(),
            boot_id: "b".into(),
            boot_time: Time(0),
            agent_start: Time(0),
            version: "1".into(),
            hardware: Hardware::default(),
            term: Term(3),
            prolog: false,
            unkillable: Span::from_secs(60),
            health: None,
            unhealthy: None,
            unknown: vec![],
        };
        let now = Time::from_secs(100);
        let mut node = Node { core: AgentCore::new(config, adopted, vec![], now), now, seen: vec![] };
        node.event(AgentEvent::Connected);
        node.say(ToAgent::Welcome { term: Term(3), session: Session(1), heartbeat: Span::from_secs(10) });
        node
    }

    pub fn event(&mut self, event: AgentEvent) {
        self.seen.extend(self.core.handle(event, self.now));
    }

    pub fn say(&mut self, message: ToAgent) {
        self.event(AgentEvent::Controller(message));
    }

    pub fn count(&self, what: impl Fn(&AgentEffect) -> bool) -> usize {
        self.seen.iter().filter(|e| what(e)).count()
    }

    pub fn spawns(&self) -> usize {
        self.count(|e| matches!(e, AgentEffect::Spawn { .. }))
    }
}
