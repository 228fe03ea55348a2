//! What clients ask of the controller, and what it answers or refuses: the vocabulary shared by the
//! scheduler's core, the wire and the commands.

use crate::bytes::ByteStr;
use crate::ids::{Attempt, Gid, JobId, NodeName, StepId, StepKey, Uid};
use crate::launch::{Layout, NodeShare};
use crate::login::SealedLogin;
use crate::member::{KeyId, MemberInfo, MemberRole};
use crate::record::JobInfo;
use crate::rights::Rank;
use crate::spec::{BatchScript, Identity, JobSelector, JobSpec, ResolvedImage, StepSpec};
use crate::state::{ExitStatus, JobState, NextState};
use crate::time::{Span, Time};
use serde::{Deserialize, Serialize};

/// Who asks, as proven by the transport; never as claimed in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Resolved through NSS on the controller.
    pub identity: Identity,
    /// What they are over the whole cluster.
    pub rank: Rank,
    /// The accounts whose jobs they coordinate.
    pub accounts: Vec<String>,
    /// The job whose container or script the client runs in, when the node vouches for it.
    pub inside: Option<JobId>,
    /// The machine of the cluster that vouches for them, where they are not on the controller's.
    pub via: Option<NodeName>,
}

impl Actor {
    /// Somebody without a role, outside of jobs.
    pub fn user(identity: Identity) -> Actor {
        Actor { identity, rank: Rank::User, accounts: Vec::new(), inside: None, via: None }
    }

    /// The same one without any role: the owner of their jobs, and no more.
    #[must_use]
    pub fn without_role(self) -> Actor {
        Actor { rank: Rank::User, accounts: Vec::new(), ..self }
    }

    /// Whether they are an administrator.
    pub fn is_administrator(&self) -> bool {
        self.rank >= Rank::Administrator
    }

    /// Whether they are an operator, or more.
    pub fn is_operator(&self) -> bool {
        self.rank >= Rank::Operator
    }

    /// Whether they coordinate the account under which that user has a job. Names of accounts are compared as Slurm has them,
    /// without regard to capitals. Root's jobs are nobody's to coordinate: no machine but the controller's speaks for root.
    pub fn coordinates(&self, owner: Uid, account: Option<&str>) -> bool {
        let of = |name: &str| self.accounts.iter().any(|own| own.eq_ignore_ascii_case(name));
        owner != Uid(0) && account.is_some_and(of)
    }

    /// Whether all of a job's record is for them.
    pub fn reads(&self, job: &JobInfo) -> bool {
        self.identity.uid == job.identity.uid
            || self.is_operator()
            || self.coordinates(job.identity.uid, job.spec.account.as_deref())
    }
}

/// The large parts of a job: they go to the store and not into memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// `sbatch`: the script.
    pub script: Option<BatchScript>,
    /// The environment for the batch script: `NAME=value`.
    pub env: Vec<ByteStr>,
    /// For the job's image, where its registry wanted one.
    #[serde(default)]
    pub login: Option<SealedLogin>,
}

/// A request that may change something. Queries do not come here: they read snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Submit a job; with `first_step`, one commit holds job and step (`srun` outside an allocation).
    Submit {
        /// The job.
        spec: Box<JobSpec>,
        /// Script and environment.
        payload: Payload,
        /// The step that starts with the allocation.
        first_step: Option<Box<StepSpec>>,
        /// Check and estimate only (`--test-only`).
        test_only: bool,
    },
    /// Submit a job of several components, all or none of them; the first one is the leader, with the script and its
    /// environment.
    SubmitHet {
        /// The components: of the others' payloads only the login counts.
        components: Vec<(JobSpec, Payload)>,
        /// Check and estimate only.
        test_only: bool,
    },
    /// Make one step in several components of a job; answered when all of them have the resources.
    CreateHetStep {
        /// The components with what the step is in each, in the order of the tasks.
        parts: Vec<(JobId, StepSpec)>,
    },
    /// Make a step in an allocation; answered when it has its resources.
    CreateStep {
        /// The job, or an array's task.
        job: JobId,
        /// The step.
        spec: Box<StepSpec>,
    },
    /// `scancel`.
    Cancel(CancelRequest),
    /// `scontrol hold`.
    Hold(Vec<JobSelector>),
    /// `scontrol release`.
    Release(Vec<JobSelector>),
    /// `scontrol requeue`.
    Requeue(Vec<JobSelector>),
    /// `scontrol update NodeName=… State=…`.
    UpdateNode {
        /// Which.
        nodes: Vec<NodeName>,
        /// To what.
        state: NodeStateChange,
        /// Why; required for down, drain and fail.
        reason: Option<String>,
    },
    /// `scontrol reboot`.
    RebootNodes {
        /// Which; none means all.
        nodes: Vec<NodeName>,
        /// Nothing new starts there meanwhile.
        asap: bool,
        /// What becomes of them.
        next: NextState,
        /// Why.
        reason: Option<String>,
    },
    /// `berth image pull --cluster`: the caller will have these nodes fetch an image, which one of them may give to the others.
    PullImage {
        /// Which.
        image: Box<ResolvedImage>,
        /// Which nodes.
        nodes: Vec<NodeName>,
        /// For the image, where its registry wanted one.
        login: Option<SealedLogin>,
    },
    /// The client that drives an allocation (`salloc`, `srun`) is done with it.
    EndAllocation {
        /// Which.
        job: JobId,
        /// Exit status to record.
        status: ExitStatus,
    },
    /// The client that drives an allocation went away without a word; sent by the server's shell.
    ClientLost {
        /// Which.
        job: JobId,
    },
    /// `berth token create`: machines may join with a secret that only its hash is kept of.
    CreateToken {
        /// Names it: made by the server's shell, see [`crate::member::is_token_id`].
        id: String,
        /// SHA-256 of the secret, in lower-case hexadecimal digits.
        hash: String,
        /// What machines that join with it are for.
        role: MemberRole,
        /// For how long it is good.
        ttl: Span,
        /// How many machines may join with it.
        uses: u32,
        /// Who joins waits for `berth node approve`.
        approval: bool,
        /// Its machines may vouch for operators and administrators; login nodes alone.
        administrators: bool,
    },
    /// `berth token revoke`: nobody joins with it any more. Who did stays.
    RevokeToken {
        /// Which.
        id: String,
    },
    /// A machine asks to become a member. Sent by the server's shell, which has proof that the machine has the key.
    Enrol {
        /// The id of the token that it shows.
        token: String,
        /// SHA-256 of the secret that it shows, in lower-case hexadecimal digits.
        hash: String,
        /// Its key.
        key: KeyId,
        /// Its full host name, by its own account.
        name: NodeName,
        /// The network address from which it asks.
        from: String,
    },
    /// A member asks for another key. Sent by the server's shell, which has proof that the member has both.
    Renew {
        /// Which member.
        name: NodeName,
        /// The key by which it is known.
        old: KeyId,
        /// The key by which it is to be known.
        new: KeyId,
    },
    /// `berth leave`: a member says that it belongs to the cluster no longer. Sent by the server's shell, which has proof that
    /// the member has the key.
    Leave {
        /// Which member.
        name: NodeName,
        /// The key by which it said so.
        key: KeyId,
    },
    /// `berth node approve`.
    ApproveMember {
        /// Which.
        name: NodeName,
    },
    /// `berth node remove`: its key is good for nothing any more, and its name is free.
    RemoveMember {
        /// Which: a member, or a node that is not connected.
        name: NodeName,
        /// Also while jobs have something on it: they are lost. Of one that is connected they are ended first, and the answer comes when they are gone.
        force: bool,
    },
    /// `berth backup`: all records and keys of the cluster were saved. Only noted; sent by the server's shell.
    BackedUp {
        /// By whom.
        by: String,
        /// The file.
        file: String,
        /// How long ago.
        ago: Span,
    },
    /// `berth down` and its like: the controller is about to stop. Only noted; sent by the server's shell.
    Shutdown,
}

/// What `scancel` was asked to do. Selectors and filter must both match; without selectors the filter decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CancelRequest {
    /// Jobs named.
    pub jobs: Vec<(JobSelector, Option<StepId>)>,
    /// Filter: owner.
    pub user: Option<Uid>,
    /// Filter: job name.
    pub name: Option<String>,
    /// Filter: partition.
    pub partition: Option<String>,
    /// Filter: account.
    pub account: Option<String>,
    /// Filter: base states.
    pub states: Vec<JobState>,
    /// Filter: runs on one of these nodes.
    pub nodes: Vec<NodeName>,
    /// Signal to send instead of ending the job.
    pub signal: Option<i32>,
    /// Only the batch shell (`-b`).
    pub batch: bool,
    /// Batch script and steps (`-f`).
    pub full: bool,
}

/// What an administrator makes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NodeStateChange {
    /// Takes no work; what runs there is lost, once it has ended where the node is connected.
    Down,
    /// Takes no new work.
    Drain,
    /// Takes no new work because it fails.
    Fail,
    /// Back in service.
    Resume,
    /// As Resume, unless the node is down for lack of an agent.
    Idle,
    /// Takes the drain away.
    Undrain,
    /// No reboot is wanted any more.
    CancelReboot,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Nothing to tell.
    Done,
    /// A job was recorded, durably.
    Submitted {
        /// Its id.
        job: JobId,
        /// The first step's key, when one was submitted with it.
        step: Option<StepKey>,
        /// Notes for the user, such as a clamped limit.
        notes: Vec<String>,
        /// Where the first step's tasks are, when the job has its nodes already.
        started: Option<Layout>,
    },
    /// `--test-only`.
    WouldStart {
        /// The id it would have had.
        job: JobId,
        /// When, as far as known.
        at: Time,
        /// CPUs.
        cpus: u64,
        /// Where.
        nodes: Vec<NodeName>,
        /// Partition.
        partition: String,
        /// What it would have on each node, in the order of `nodes`.
        shares: Vec<NodeShare>,
    },
    /// A step has its resources and is being started.
    StepCreated {
        /// Which.
        key: StepKey,
        /// Where its tasks are.
        layout: Layout,
        /// How long it waited.
        waited: Span,
    },
    /// A step in several components has its resources and is being started.
    HetStepCreated {
        /// Its part in each component, and where in `layout` that one's nodes begin.
        parts: Vec<(StepKey, u32)>,
        /// Where its tasks are: the parts one behind the other.
        layout: Layout,
        /// How long it waited.
        waited: Span,
    },
    /// `scancel` and its like: what was acted on, and what was refused.
    Acted {
        /// Jobs acted on.
        jobs: Vec<JobId>,
        /// Selectors (as text) that were refused, with the reason.
        refused: Vec<(String, Refusal)>,
        /// Nodes that are not connected, and pass a signal on when they are back.
        later: Vec<NodeName>,
    },
    /// A token was made. Its secret is shown this once; made of [`Response::Done`] by the server's shell.
    TokenCreated {
        /// Names it.
        id: String,
        /// The secret, in lower-case hexadecimal digits.
        secret: String,
        /// Until when it is good.
        expires: Time,
        /// All that a machine needs to join, as one word.
        text: String,
    },
    /// A machine is a member, or waits to be approved.
    Enrolled {
        /// As it is known now.
        member: MemberInfo,
    },
}

/// Why a request was refused. `code` decides exit codes and texts; `message` names thing, reason and next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The kind.
    pub code: RefusalCode,
    /// One line for the user.
    pub message: String,
}

impl Refusal {
    /// A refusal with its text.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The request is malformed or contradicts itself.
    Invalid,
    /// No such job, step, node or partition.
    NotFound,
    /// Not the caller's to do.
    Denied,
    /// Can never run: more than any node, or all nodes together, have.
    Impossible,
    /// The job is over, or not running yet.
    WrongState,
    /// `--immediate` and no resources.
    Busy,
    /// Refused for now: the store cannot take more.
    Unavailable,
    /// A fault of ours.
    Internal,
}

/// A client's proof of presence for an allocation that it drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// Its run.
    pub attempt: Attempt,
}

/// What the kernel says of a connection's other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// User id.
    pub uid: Uid,
    /// Group id.
    pub gid: Gid,
    /// The job whose listener the client came through, if any.
    #[serde(default)]
    pub job: Option<JobId>,
}
