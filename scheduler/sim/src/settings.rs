//! Configurations that are put in force while everything runs: other times, and a partition that takes or starts nothing for a while.

use crate::faults::Kind;
use crate::workload::actor;
use crate::world::World;
use berth_model::config::{PartitionConfig, PartitionState};
use berth_sched_core::{CoreConfig, Event, Phase, Write};

impl World {
    /// An administrator puts another configuration in force. After the faults the partition is open.
    pub(crate) fn reconfigure(&mut self) -> Result<(), String> {
        self.count(Kind::Reconfigure.name());
        let states = [
            PartitionState::Up,
            PartitionState::Up,
            PartitionState::Down,
            PartitionState::Drain,
            PartitionState::Inactive,
        ];
        let state = self.rng.pick(&states).copied().filter(|_| !self.calm).unwrap_or_default();
        let kill_wait = *self.rng.pick(&[0, 5, 5, 12]).unwrap_or(&5);
        let min_job_age = *self.rng.pick(&[0, 2, 60, 60]).unwrap_or(&60);
        let prefetch = self.rng.count(0, 2);
        let config = &mut self.chaos.config;
        config.kill_wait_seconds = kill_wait;
        config.min_job_age_seconds = min_job_age;
        config.images.prefetch = prefetch;
        config.partitions = vec![PartitionConfig { default: true, state, ..PartitionConfig::default() }];
        let config = CoreConfig::new(config).map_err(|e| e.to_string())?;
        self.note(|| format!("the partition is {state:?}, jobs have {kill_wait} s to end"));
        let starts = matches!(state, PartitionState::Up | PartitionState::Drain);
        if starts {
            self.controller.closed = None;
        } else {
            self.count("partitions closed while everything ran");
        }
        // Whichever controller comes next reads it, too.
        self.controller.config = config.clone();
        let request = self.client.new_request();
        self.control(Event::Reconfigure { request, actor: actor(0), config: Box::new(config) })?;
        if !starts && self.controller.closed.is_none() {
            self.controller.closed = Some(self.cluster_time());
        }
        Ok(())
    }

    /// No job starts in a partition that starts none.
    pub(crate) fn nothing_starts_while_closed(&self, writes: &[Write]) -> Result<(), String> {
        let Some(closed) = self.controller.closed else { return Ok(()) };
        for write in writes {
            if let Write::PutJob(row) = write
                && let Phase::Running(run) = &row.phase
                && run.started > closed
            {
                return Err(format!("job {} starts in a partition that starts nothing", row.job));
            }
        }
        Ok(())
    }

    /// When all is over every agent has been told the configuration in force.
    pub(crate) fn compare_settings(&self) -> Result<(), String> {
        let force = &*self.controller.config.for_agents;
        match self.machines.values().find(|m| m.told.as_ref().is_none_or(|told| told.config != *force)) {
            None => Ok(()),
            Some(m) => {
                Err(format!("the agent of {} goes by another configuration than that in force", m.name))
            }
        }
    }
}
