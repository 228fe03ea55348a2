//! What people ask to see, and what the controller tells about itself.

use crate::bytes::ByteStr;
use crate::ids::{JobId, NodeName, Uid};
use crate::record::JobInfo;
use crate::sluid::Sluid;
use crate::spec::JobSelector;
#[cfg(doc)]
use crate::spec::JobSpec;
use crate::state::JobState;
use crate::time::Time;
use serde::{Deserialize, Serialize};

/// Which jobs to list from the controller's memory. Empty lists filter nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobQuery {
    /// Jobs; whole arrays by the array's id, and jobs of several components by the leader's.
    pub ids: Vec<JobId>,
    /// Owners.
    pub users: Vec<Uid>,
    /// States as shown.
    pub states: Vec<JobState>,
    /// Whether jobs that ended lately are wanted, too.
    pub include_finished: bool,
    /// Whether what a list of jobs shows is enough: see [`JobSpec::brief`]. Steps, what the job has on each node, its
    /// SLUID and the owner's home, shell and groups are left out, too.
    pub brief: bool,
    /// Records by their SLUIDs, beside those of `ids`.
    pub sluids: Vec<Sluid>,
}

impl JobQuery {
    /// What these name, finished jobs included; everything that is not over where there are none.
    pub fn of<'a>(selectors: impl IntoIterator<Item = &'a JobSelector>) -> JobQuery {
        let mut query = JobQuery::default();
        for selector in selectors {
            ask(selector, &mut query.ids, &mut query.sluids);
        }
        query
    }

    /// Whether jobs are named.
    pub fn names_jobs(&self) -> bool {
        !self.ids.is_empty() || !self.sluids.is_empty()
    }

    /// Whether the job is wanted. A job that is named, or whose state is named, is wanted also when it is over.
    pub fn matches(&self, job: &JobInfo) -> bool {
        named(&self.ids, &self.sluids, job)
            && (self.users.is_empty() || self.users.contains(&job.identity.uid))
            && if self.states.is_empty() {
                self.include_finished || self.names_jobs() || !job.state.is_terminal()
            } else {
                self.states.contains(&job.state)
            }
    }
}

/// Which jobs to read from the store, finished ones included. Empty lists filter nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountingQuery {
    /// Jobs, or whole arrays by the array's id.
    pub ids: Vec<JobId>,
    /// Owners.
    pub users: Vec<Uid>,
    /// States.
    pub states: Vec<JobState>,
    /// Only jobs that were not over before this time.
    pub from: Option<Time>,
    /// Only jobs that were submitted before this time.
    pub until: Option<Time>,
    /// Job names.
    pub names: Vec<String>,
    /// Partitions.
    pub partitions: Vec<String>,
    /// Accounts.
    pub accounts: Vec<String>,
    /// Records by their SLUIDs, beside those of `ids`.
    pub sluids: Vec<Sluid>,
}

impl AccountingQuery {
    /// What these name; everything where there are none.
    pub fn of<'a>(selectors: impl IntoIterator<Item = &'a JobSelector>) -> AccountingQuery {
        let mut query = AccountingQuery::default();
        for selector in selectors {
            ask(selector, &mut query.ids, &mut query.sluids);
        }
        query
    }

    /// Whether the job is wanted.
    pub fn matches(&self, job: &JobInfo) -> bool {
        named(&self.ids, &self.sluids, job)
            && (self.users.is_empty() || self.users.contains(&job.identity.uid))
            && (self.states.is_empty() || self.states.contains(&job.state))
            && self.from.is_none_or(|from| job.ended.is_none_or(|ended| ended >= from))
            && self.until.is_none_or(|until| job.submitted < until)
            && (self.names.is_empty() || self.names.contains(&job.spec.name))
            && (self.partitions.is_empty() || self.partitions.contains(&job.partition))
            && (self.accounts.is_empty()
                || job.spec.account.as_ref().is_some_and(|account| self.accounts.contains(account)))
    }
}

fn ask(selector: &JobSelector, ids: &mut Vec<JobId>, sluids: &mut Vec<Sluid>) {
    match selector {
        JobSelector::Sluid(sluid) => sluids.push(*sluid),
        other => ids.extend(other.named()),
    }
}

fn named(ids: &[JobId], sluids: &[Sluid], job: &JobInfo) -> bool {
    let whole = job.array.or(job.spec.het.map(|het| het.leader));
    (ids.is_empty() && sluids.is_empty())
        || ids.contains(&job.id)
        || whole.is_some_and(|whole| ids.contains(&whole))
        || job.sluid.is_some_and(|sluid| sluids.contains(&sluid))
}

/// What a running controller tells about itself and its agents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its state directory.
    pub state_dir: ByteStr,
    /// When it started.
    pub since: Time,
    /// Whether new jobs are taken; the alarms say why not.
    pub accepting: bool,
    /// What an administrator should look at.
    pub alarms: Vec<String>,
    /// Agents that it knows.
    pub agents: Vec<AgentStatus>,
    /// Public key to which logins of registries are sealed that travel with jobs.
    #[serde(default)]
    pub login_key: ByteStr,
}

/// An agent, as its controller sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its node.
    pub node: NodeName,
    /// Its version.
    pub version: String,
    /// Whether it is in touch.
    pub connected: bool,
    /// When it started.
    pub started: Option<Time>,
}
