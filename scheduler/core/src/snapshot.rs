//! What readers see: the committed state of one moment, cheap to publish and to keep.

use crate::config::PartitionRules;
use crate::gpus;
use crate::job::Job;
use crate::node::Node;
use crate::rows::{Leap, MemberRow, Phase, TokenRow};
use berth_model::ids::{JobId, NodeName, Uid};
use berth_model::member::{KeyId, MemberInfo, TokenInfo};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::sluid::Sluid;
use berth_model::state::JobState;
use berth_model::tres::Tres;
use imbl::OrdMap;
use std::sync::Arc;

/// An immutable view of jobs, nodes, partitions, members and tokens. Cloning costs nothing; records are put together on
/// reading. Publish it after the commit of what it contains.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) jobs: OrdMap<JobId, Arc<Job>>,
    pub(crate) nodes: OrdMap<NodeName, Arc<Node>>,
    pub(crate) partitions: Arc<Vec<PartitionRules>>,
    pub(crate) members: OrdMap<NodeName, Arc<MemberRow>>,
    pub(crate) keys: OrdMap<KeyId, NodeName>,
    pub(crate) tokens: OrdMap<String, Arc<TokenRow>>,
    pub(crate) sluids: OrdMap<Sluid, JobId>,
    pub(crate) leaps: Vec<Leap>,
}

impl Snapshot {
    /// One record: a job, an array task, or an array's waiting tasks (under the array's id, while some wait).
    pub fn job(&self, id: JobId) -> Option<JobInfo> {
        self.jobs.get(&id).filter(|j| !j.row.is_empty_array()).map(|j| self.whole(j))
    }

    /// The record that has this SLUID.
    pub fn job_of(&self, sluid: Sluid) -> Option<JobInfo> {
        self.job(*self.sluids.get(&sluid)?)
    }

    fn info(&self, job: &Job) -> JobInfo {
        JobInfo { leapt: job.leapt(&self.leaps), ..job.info() }
    }

    /// With what nodes say of it while it runs.
    fn whole(&self, job: &Job) -> JobInfo {
        let mut info = self.info(job);
        let Some(run) = job.run().filter(|_| matches!(job.row.phase, Phase::Running(_))) else { return info };
        for (step, row) in info.steps.iter_mut().zip(job.steps.values()) {
            for part in row.nodes.iter().filter(|part| part.exit.is_none()) {
                let used = self.nodes.get(&part.node).and_then(|node| node.used.get(&row.key));
                used.iter().for_each(|used| step.usage.merge(used));
            }
        }
        for (name, share) in run.allocation.nodes.iter().zip(&run.allocation.shares) {
            if let Some(node) = self.nodes.get(name) {
                info.notices.extend(gpus::faulty(share, &node.hardware).map(|d| gpus::fenced(name, d)));
            }
        }
        info
    }

    /// A record's state as shown.
    pub fn state(&self, id: JobId) -> Option<JobState> {
        self.jobs.get(&id).map(|j| match &j.row.phase {
            Phase::Ending { .. } => JobState::Completing,
            _ => j.row.base_state(),
        })
    }

    /// All records, by id.
    pub fn jobs(&self) -> impl Iterator<Item = JobInfo> + '_ {
        self.jobs.values().filter(|j| !j.row.is_empty_array()).map(|j| self.info(j))
    }

    /// Every record of the array, or the one record of a plain job.
    pub fn array(&self, array: JobId) -> impl Iterator<Item = JobInfo> + '_ {
        self.jobs
            .range(array..)
            .map(|(_, j)| j)
            .filter(move |j| j.row.spec_of == array && !j.row.is_empty_array())
            .map(|j| self.whole(j))
    }

    /// Whether the core still knows the id, an array whose tasks were all split off included.
    pub fn knows(&self, id: JobId) -> bool {
        self.jobs.contains_key(&id)
    }

    /// Who owns a job.
    pub fn owner(&self, id: JobId) -> Option<Uid> {
        self.jobs.get(&id).map(|j| j.spec.identity.uid)
    }

    /// How many records there are.
    pub fn job_count(&self) -> usize {
        self.jobs.len()
    }

    /// One node.
    pub fn node(&self, name: &NodeName) -> Option<NodeInfo> {
        self.nodes.get(name).map(|n| n.info(&self.partitions))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = NodeInfo> + '_ {
        self.nodes.values().map(|n| n.info(&self.partitions))
    }

    /// The member that has this key, waiting ones included.
    pub fn member_by_key(&self, key: &KeyId) -> Option<MemberInfo> {
        self.member(self.keys.get(key)?)
    }

    /// One member.
    pub fn member(&self, name: &NodeName) -> Option<MemberInfo> {
        self.members.get(name).map(|m| m.info())
    }

    /// All members, by name.
    pub fn members(&self) -> impl Iterator<Item = MemberInfo> + '_ {
        self.members.values().map(|m| m.info())
    }

    /// One token.
    pub fn token(&self, id: &str) -> Option<TokenInfo> {
        self.tokens.get(id).map(|t| t.info())
    }

    /// All tokens, by id.
    pub fn tokens(&self) -> impl Iterator<Item = TokenInfo> + '_ {
        self.tokens.values().map(|t| t.info())
    }

    /// All partitions, in the order of the configuration.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionInfo> + '_ {
        self.partitions.iter().map(|p| {
            let mut total = Tres::default();
            let mut nodes = Vec::new();
            for (name, node) in self.nodes.iter().filter(|(name, _)| p.has(name)) {
                nodes.push(name.clone());
                total.add(&node.total());
            }
            PartitionInfo { config: p.config.clone(), nodes, total }
        })
    }
}
