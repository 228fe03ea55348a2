//! Durable rows: what the core writes and reads back. Each carries a version; fields are only ever added.

use crate::parts::Parts;
use crate::tasks::Tasks;
use berth_model::bytes::ByteStr;
use berth_model::distribution::Distribution;
use berth_model::hardware::Hardware;
use berth_model::het::HetStep;
use berth_model::ids::{Attempt, JobId, NodeName, StepKey, Uid};
use berth_model::launch::{ImagePull, NodeShare, StepExit};
use berth_model::link::EndCause;
use berth_model::member::{AuditInfo, KeyId, MemberInfo, MemberRole, MemberState, TokenInfo};
use berth_model::rights::Role;
use berth_model::sluid::Sluid;
use berth_model::spec::{Identity, JobSpec, StepSpec, TimeLimit};
use berth_model::state::{Cause, ExitStatus, JobState, NodeCondition, Reason};
use berth_model::time::{Span, Time};
use imbl::OrdSet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Version of all rows that this build writes; rows of a later version are refused.
pub const ROW_VERSION: u32 = 1;

fn version() -> u32 {
    ROW_VERSION
}

/// Counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaRow {
    /// Version of this row.
    pub version: u32,
    /// The id of the next job.
    pub next_job: u32,
    /// Highest cluster time seen when this was written.
    pub clock: Time,
    /// The number of the next entry of the audit log, from 1; 0 before there was a log.
    #[serde(default)]
    pub next_audit: u64,
    /// The store came from a backup once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// Steps of cluster time on the word of the wall clock alone, since the first run that may have a limit from before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaps: Vec<Leap>,
    /// The last SLUID that was given out. After a restore without its realm: those that follow are in another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sluid: Option<Sluid>,
}

/// A step of cluster time on the word of the wall clock alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leap {
    /// What it was after it, when a controller began.
    pub at: Time,
    /// By how much.
    pub by: Span,
    /// Others have said since that it was right.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sure: bool,
}

/// What a restored backup cannot know, and what is done about it: bounds above everything that can have been given out since
/// the backup was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Jobs below this id are those of the backup, and those that were submitted after it and are lost.
    pub before: JobId,
    /// Their runs from now on have at least this number.
    pub attempts: u32,
    /// In runs of the backup, new steps have at least this number.
    pub steps: u32,
    /// The id of the first job after the restore, before any node told of another: by how much they raise it together counts from here. None where a version
    /// before restored it.
    #[serde(default)]
    pub base: JobId,
    /// No job starts before, whoever has come: a machine that joined after the backup is on no list of those to wait for. The beginning of time until such
    /// a machine can come, since the port of a controller after the restore listens; none where a version before restored it.
    #[serde(default)]
    pub not_before: Option<Time>,
    /// Nodes of the backup that have not yet come to rest; while there is one, no job starts. With them those of which nothing is awaited any more, for as
    /// long as the others are there.
    pub awaited: BTreeMap<NodeName, Awaited>,
    /// Nodes of the backup that are not waited for any more, and have told nothing: one that comes after all may have followed a later term.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unheard: BTreeSet<NodeName>,
    /// How often nodes said that they follow a later term, and have not come since.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub superseded: BTreeMap<NodeName, u32>,
}

/// What is awaited of a node after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Awaited {
    /// That it registers and tells what it runs.
    Word,
    /// That what it runs without belonging there is gone.
    Rest,
    /// An administrator's word: it is not in the backup, and has a certificate of the cluster's.
    Approval,
    /// An administrator's word: it told of this job, which is far above those of the backup.
    Beyond(JobId),
    /// Nothing: it was given up or removed, and is not asked about again. It holds nothing up.
    Gone,
}

/// A submission, immutable: shared by all tasks of an array.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpecRow {
    /// Version of this row.
    #[serde(default = "version")]
    pub version: u32,
    /// The job, or the array.
    pub job: JobId,
    /// What was asked for.
    pub spec: JobSpec,
    /// Whose it is.
    pub identity: Arc<Identity>,
    /// Partition it is in.
    pub partition: Arc<str>,
    /// Limit in force.
    pub time_limit: TimeLimit,
    /// When it was submitted.
    pub submitted: Time,
    /// The step that starts with the allocation, without its environment.
    #[serde(default)]
    pub first_step: Option<Arc<StepSpec>>,
    /// A login for its image came with it.
    #[serde(default)]
    pub login: bool,
}

/// Who holds a job back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// Its owner, or a coordinator of its account.
    User,
    /// An operator or an administrator.
    Admin,
}

/// A job: compact, written at each change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    /// Version of this row.
    #[serde(default = "version")]
    pub version: u32,
    /// Its id.
    pub job: JobId,
    /// Whose specification it has: its own, or its array's.
    pub spec_of: JobId,
    /// Its place in an array.
    #[serde(default)]
    pub tasks: Tasks,
    /// Which run.
    #[serde(default)]
    pub attempt: Attempt,
    /// Order in the queue: larger is earlier.
    pub priority: u32,
    /// Whether it is held.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// When it can first start.
    pub eligible: Time,
    /// How many of its runs GPUs that do not work stopped, since it was last held for that.
    #[serde(default, skip_serializing_if = "is_none")]
    pub refusals: u32,
    /// Its name among the jobs of all clusters; absent of one that an earlier version took, and of an array of which no task is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sluid: Option<Sluid>,
    /// How far it is.
    pub phase: Phase,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_none(count: &u32) -> bool {
    *count == 0
}

/// How far a job is, with what it has there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits.
    Pending,
    /// Has its allocation.
    Running(Run),
    /// Is over; some nodes have not yet said that nothing is left of it.
    Ending {
        /// The run.
        run: Run,
        /// How it ended.
        result: JobResult,
        /// Nodes that have not answered.
        left: OrdSet<NodeName>,
        /// Goes back to the queue then.
        requeue: bool,
    },
    /// Is over.
    Ended {
        /// The run, if it ever started.
        run: Option<Run>,
        /// How it ended.
        result: JobResult,
    },
}

/// One run of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What it has.
    pub allocation: Arc<Allocation>,
    /// When it started.
    pub started: Time,
    /// When its time limit is reached.
    #[serde(default)]
    pub limit: Option<Time>,
    /// For how long it goes on at a node that hears nothing of the controller; absent: for ever.
    #[serde(default)]
    pub lease: Option<Span>,
    /// The channel by which it may share its GPUs' memory between nodes: one that no other run has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imex_channel: Option<u32>,
}

/// What a run has on its nodes, in node order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Nodes.
    pub nodes: Vec<NodeName>,
    /// What it has on each.
    pub shares: Vec<NodeShare>,
    /// Tasks on each.
    pub tasks: Vec<u32>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobResult {
    /// A terminal state.
    pub state: JobState,
    /// Why.
    #[serde(default)]
    pub reason: Reason,
    /// Exit status.
    #[serde(default)]
    pub exit: ExitStatus,
    /// Highest exit status of its steps except the batch script.
    #[serde(default)]
    pub derived: ExitStatus,
    /// Who cancelled it.
    #[serde(default)]
    pub cancelled_by: Option<Uid>,
    /// Why its steps are ended.
    pub cause: EndCause,
    /// When.
    pub ended: Time,
}

/// A step of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRow {
    /// Version of this row.
    #[serde(default = "version")]
    pub version: u32,
    /// Which run of which step.
    pub key: StepKey,
    /// Its name.
    pub name: String,
    /// What was asked for, without its environment; absent for the batch script.
    #[serde(default)]
    pub spec: Option<Arc<StepSpec>>,
    /// Where it is.
    pub nodes: Parts,
    /// Whether other steps must leave its CPUs alone (not `--overlap`, not the batch script).
    pub consumes: bool,
    /// When it started.
    pub started: Time,
    /// Its own time limit.
    #[serde(default)]
    pub time_limit: Option<TimeLimit>,
    /// Why it is being ended, if it is.
    #[serde(default)]
    pub ending: Option<EndCause>,
    /// Who cancelled it.
    #[serde(default)]
    pub cancelled_by: Option<Uid>,
    /// How it ended.
    #[serde(default)]
    pub result: Option<StepResult>,
    /// How its tasks are laid out over its nodes.
    #[serde(default)]
    pub distribution: Distribution,
    /// A login for its own image came with it.
    #[serde(default)]
    pub login: bool,
    /// It is a part of a step in several components of a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub het: Option<Arc<HetStep>>,
}

/// A step's part on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepNode {
    /// The node.
    pub node: NodeName,
    /// Tasks there; numbered in node order.
    pub tasks: u32,
    /// What it may use there; absent means all that the job has there.
    #[serde(default)]
    pub share: Option<NodeShare>,
    /// What its image took there, once that is known.
    #[serde(default)]
    pub pull: Option<ImagePull>,
    /// How it ended there.
    #[serde(default)]
    pub exit: Option<StepExit>,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// A terminal state.
    pub state: JobState,
    /// Exit status.
    pub exit: ExitStatus,
    /// Launch error or other text.
    #[serde(default)]
    pub message: Option<String>,
    /// When.
    pub ended: Time,
}

/// A node as it was registered, and what was made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Version of this row.
    #[serde(default = "version")]
    pub version: u32,
    /// Its name.
    pub name: NodeName,
    /// What its agent detected, without what the configuration adds.
    pub hardware: Hardware,
    /// The kernel's boot id at the last registration.
    pub boot_id: String,
    /// When it booted.
    pub boot_time: Time,
    /// When its agent started.
    pub agent_start: Time,
    /// Version of its agent.
    pub agent_version: String,
    /// Down, drained, failing; `not_responding` is not stored.
    pub condition: NodeCondition,
    /// Why the cluster itself keeps new work from it, beside what an administrator made of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub causes: BTreeMap<Cause, CauseNote>,
    /// What it was registered with, while it has less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<NodeSize>,
    /// Somebody put it back into service while devices of it were fenced, and its agent is still to be told.
    #[serde(default)]
    pub resumed: bool,
    /// The full name of its machine, as its agent was last told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
}

/// How much a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSize {
    /// Cores.
    pub cores: u64,
    /// CPUs of all of them.
    pub cpus: u64,
    /// Memory in MiB.
    pub memory: u64,
    /// GPUs, those that do not work among them.
    pub gpus: u64,
}

/// A cause, while it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseNote {
    /// In words.
    pub why: String,
    /// Since when.
    pub since: Time,
}

/// A machine of the cluster, beside the controller's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    /// Version of this row.
    #[serde(default = "version")]
    pub version: u32,
    /// Full host name.
    pub name: NodeName,
    /// What it is for.
    pub role: MemberRole,
    /// Whether it may do anything yet.
    pub state: MemberState,
    /// By which it is known.
    pub key: KeyId,
    /// When it joined.
    pub joined: Time,
    /// The id of the token with which it came.
    pub token: String,
    /// The hash of that token's secret: by it a machine that never saw the answer is known when it asks again.
    #[serde(default)]
    pub token_hash: String,
    /// The network address from which it joined.
    pub from: String,
    /// When it last got a key.
    pub renewed: Time,
    /// It may vouch for administrators.
    #[serde(default)]
    pub administrators: bool,
    /// It is being removed: it is taken out when what its jobs have there is gone.
    #[serde(default)]
    pub leaving: bool,
}

impl MemberRow {
    /// As it is shown.
    pub fn info(&self) -> MemberInfo {
        MemberInfo {
            name: self.name.clone(),
            role: self.role,
            state: self.state,
            key: self.key.clone(),
            joined: self.joined,
            token: self.token.clone(),
            from: self.from.clone(),
            renewed: self.renewed,
            ends: None,
            administrators: self.administrators,
        }
    }
}

/// A token with which machines may join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Version of this row.
    #[serde(default = "version")]
    pub version: u32,
    /// Names it.
    pub id: String,
    /// SHA-256 of its secret, in hexadecimal digits.
    pub hash: String,
    /// What its machines are for.
    pub role: MemberRole,
    /// When it was made.
    pub created: Time,
    /// Who made it.
    pub by: String,
    /// Until when it is good.
    pub expires: Time,
    /// How many machines may still join with it.
    pub uses_left: u32,
    /// Who joins waits to be approved.
    #[serde(default)]
    pub approval: bool,
    /// Its machines may vouch for administrators.
    #[serde(default)]
    pub administrators: bool,
}

impl TokenRow {
    /// As it is shown: without the hash.
    pub fn info(&self) -> TokenInfo {
        TokenInfo {
            id: self.id.clone(),
            role: self.role,
            created: self.created,
            by: self.by.clone(),
            expires: self.expires,
            uses_left: self.uses_left,
            approval: self.approval,
            administrators: self.administrators,
        }
    }
}

/// An entry of the audit log. Never changed, and not loaded again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Version of this row.
    #[serde(default = "version")]
    pub version: u32,
    /// Counts upward from 1.
    pub number: u64,
    /// When.
    pub at: Time,
    /// Who.
    pub uid: Uid,
    /// Who, by name.
    pub user: String,
    /// As what; entries of earlier versions do not say it.
    #[serde(default)]
    pub role: Option<Role>,
    /// The job from inside which it was asked.
    #[serde(default)]
    pub inside: Option<JobId>,
    /// The machine from which it was asked, where that is not the controller's; entries of earlier versions do not say it.
    #[serde(default)]
    pub via: Option<NodeName>,
    /// What was done.
    pub what: String,
}

impl AuditRow {
    /// As it is shown.
    pub fn info(self) -> AuditInfo {
        let AuditRow { version: _, number, at, uid, user, role, inside, via, what } = self;
        AuditInfo { number, at, uid, user, role, inside, via, what }
    }
}

/// Shown for a step without a working directory of its own.
pub(crate) fn step_work_dir(step: &StepRow, job: &JobSpec) -> ByteStr {
    step.spec.as_ref().map_or_else(|| job.work_dir.clone(), |s| s.work_dir.clone())
}
