//! The cluster: all state, and the one door through which it changes.

use crate::config::CoreConfig;
use crate::event::{AfterCommit, Effect, Event, Outcome};
use crate::job::Job;
use crate::node::Node;
use crate::snapshot::Snapshot;
use crate::store::{Stored, Write};
use berth_model::ids::{JobId, NodeName, Term};
use berth_model::request::{Refusal, RefusalCode};
use berth_model::time::Time;
use imbl::OrdMap;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is stored cannot be the state of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored {row} is not usable: {why}")]
pub struct RestoreError {
    /// Which row.
    pub row: String,
    /// What is wrong with it.
    pub why: String,
}

/// The whole cluster.
pub struct Cluster {
    pub(crate) config: CoreConfig,
    pub(crate) term: Term,
    pub(crate) jobs: OrdMap<JobId, Arc<Job>>,
    pub(crate) nodes: OrdMap<NodeName, Arc<Node>>,
    writes: Vec<Write>,
    effects: Vec<Effect>,
}

impl Cluster {
    /// A cluster without history.
    pub fn new(config: CoreConfig, term: Term) -> Cluster {
        Cluster {
            config,
            term,
            jobs: OrdMap::new(),
            nodes: OrdMap::new(),
            writes: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// The cluster that `stored` describes, led under `term`.
    ///
    /// # Errors
    /// Names the row that cannot be.
    pub fn restore(
        config: CoreConfig,
        term: Term,
        _stored: Stored,
        _now: Time,
    ) -> Result<Cluster, RestoreError> {
        Ok(Cluster::new(config, term))
    }

    /// Applies an event.
    pub fn handle(&mut self, event: Event, _now: Time) -> Outcome {
        if let Event::Client { request, .. } = event {
            let result = Err(Refusal::new(RefusalCode::Unavailable, "the scheduler is not ready"));
            self.effects.push(Effect::Reply { request, result });
        }
        Outcome {
            writes: std::mem::take(&mut self.writes),
            after_commit: AfterCommit::new(std::mem::take(&mut self.effects)),
            changed: BTreeSet::new(),
        }
    }

    /// When [`Event::Tick`] is to be sent at the latest.
    pub fn next_wake(&self) -> Option<Time> {
        None
    }

    /// The state for readers. Publish it once the writes before it are durable.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            jobs: self.jobs.clone(),
            nodes: self.nodes.clone(),
            partitions: self.config.partitions.clone(),
        }
    }
}
