//! Another configuration is put in force while everything runs.

use super::Cluster;
use super::rights::at_least;
use super::timers::Timer;
use crate::config::CoreConfig;
use crate::rows::Phase;
use berth_model::config::Understood;
use berth_model::ids::{JobId, NodeName};
use berth_model::link::ToAgent;
use berth_model::request::{Actor, Refusal, RefusalCode, Response};
use berth_model::rights::Rank;
use std::sync::Arc;

impl Cluster {
    /// Goes on with `config`: jobs that wait are looked at anew, idle nodes have what it says of them at once and busy ones when
    /// they are free, and agents are told.
    pub(super) fn reconfigure(&mut self, actor: &Actor, config: CoreConfig) -> Result<Response, Refusal> {
        at_least(actor, Rank::Administrator, "changes the configuration")?;
        if config.cluster != self.config.cluster {
            let text = format!(
                "berth.toml: cluster: '{}' instead of '{}' needs a restart: 'berth down --keep-jobs', then 'berth up'",
                config.cluster, self.config.cluster
            );
            return Err(Refusal::new(RefusalCode::WrongState, text));
        }
        if config.idle != self.config.idle {
            self.count_idle_anew();
        }
        self.config = config;
        let nodes: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in &nodes {
            if let Some(node) = self.nodes.get_mut(name).map(Arc::make_mut) {
                node.refit_when_free(&self.config);
            }
            self.watch_silence(name);
            self.watch_fence(name);
        }
        self.purge_anew();
        let queued: Vec<JobId> = self.queue.values().flatten().map(|key| key.job).collect();
        let aside = std::mem::take(&mut self.aside);
        self.blocked.clear();
        for job in queued.into_iter().chain(aside) {
            self.enqueue(job);
        }
        self.looking.stale = true;
        for name in &nodes {
            self.tell_configuration(name);
        }
        self.note(actor, "put the configuration in force anew".to_string());
        Ok(Response::Done)
    }

    /// Tells a node's agent the configuration in force.
    pub(super) fn tell_configuration(&mut self, node: &NodeName) {
        let told = Understood { config: (*self.config.for_agents).clone(), unknown: Vec::new() };
        self.send(node, ToAgent::Configure(Box::new(told)));
    }

    /// How long ended jobs stay may be another time now.
    fn purge_anew(&mut self) {
        let age = self.config.min_job_age;
        for (id, job) in &self.jobs {
            if let Phase::Ended { result, .. } = &job.row.phase {
                self.timers.insert((result.ended + age, Timer::Purge(*id)));
            }
        }
    }
}
