//! The agent's state machine.

use crate::event::{Adopted, AgentConfig, AgentEffect, AgentEvent};
use berth_model::ids::{Attempt, JobId};
use berth_model::link::FromAgent;
use berth_model::time::Time;

/// All that the agent has to remember.
pub struct AgentCore {
    config: AgentConfig,
    jobs: Vec<(JobId, Attempt)>,
}

impl AgentCore {
    /// The agent after its start: with the steps of the spool, and the runs of jobs that have parts on the node.
    pub fn new(
        config: AgentConfig,
        _adopted: Vec<Adopted>,
        jobs: Vec<(JobId, Attempt)>,
        _now: Time,
    ) -> AgentCore {
        AgentCore { config, jobs }
    }

    /// Applies an event.
    #[must_use = "effects that are dropped lose starts and reports"]
    pub fn handle(&mut self, event: AgentEvent, _now: Time) -> Vec<AgentEffect> {
        match event {
            AgentEvent::Connected => vec![AgentEffect::Send(FromAgent::Hello {
                node: self.config.node.clone(),
                boot_id: self.config.boot_id.clone(),
                boot_time: self.config.boot_time,
                agent_start: self.config.agent_start,
                version: self.config.version.clone(),
                hardware: self.config.hardware.clone(),
                term: self.config.term,
                steps: Vec::new(),
                jobs: self.jobs.clone(),
            })],
            _ => Vec::new(),
        }
    }

    /// When [`AgentEvent::Tick`] is to be sent at the latest.
    pub fn next_wake(&self) -> Option<Time> {
        None
    }
}
