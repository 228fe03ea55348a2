//! The narrow trait behind which durable state lies, and the token that proves a commit.

use crate::rows::{
    AuditRow, JobRow, MemberRow, MetaRow, NodeRow, Phase, SpecRow, StepNode, StepRow, TokenRow,
};
use berth_model::ids::{JobId, NodeName, StepId, StepKey};
use berth_model::launch::{Program, StepLaunch};
use berth_model::request::Payload;
use berth_model::x11;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a script or an environment is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayloadKey {
    /// A batch job's, or a whole array's.
    Job(JobId),
    /// The environment of one step.
    Step(JobId, StepId),
    /// The sealed login for the image of a job, or of a whole array; kept no longer than these.
    Login(JobId),
    /// That of one step's own image; kept no longer than the step.
    StepLogin(JobId, StepId),
}

impl PayloadKey {
    /// Whose it is.
    pub fn job(self) -> JobId {
        match self {
            PayloadKey::Job(job)
            | PayloadKey::Step(job, _)
            | PayloadKey::Login(job)
            | PayloadKey::StepLogin(job, _) => job,
        }
    }

    /// Whether it is a login.
    pub fn is_login(self) -> bool {
        matches!(self, PayloadKey::Login(_) | PayloadKey::StepLogin(..))
    }
}

/// One change of durable state. Rows carry their version; a later one with the same key replaces an earlier.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// What was submitted; written once. Key: job.
    PutSpec(Arc<SpecRow>),
    /// Where a job is. Key: job.
    PutJob(Box<JobRow>),
    /// A record that merged into others without ever having run.
    DeleteJob(JobId),
    /// A step. Key: job, attempt, step.
    PutStep(Arc<StepRow>),
    /// A part of a step as it is since the step's row was written, which is as long as the step has nodes. Key: the step's, and
    /// the place in its `nodes`. The next row of the step takes its place.
    PutPart {
        /// The step.
        key: StepKey,
        /// Place in its `nodes`.
        at: usize,
        /// The part.
        part: Box<StepNode>,
    },
    /// A node that a job which is ending has left since the job's row was written. The next row of the job takes its place.
    LeaveNode {
        /// The job.
        job: JobId,
        /// The node.
        node: NodeName,
    },
    /// A script and an environment.
    PutPayload {
        /// Under which key.
        key: PayloadKey,
        /// What.
        payload: Arc<Payload>,
    },
    /// They are not needed any more.
    DeletePayload(PayloadKey),
    /// A node. Key: name.
    PutNode(Box<NodeRow>),
    /// It was removed from the cluster.
    DeleteNode(NodeName),
    /// A machine of the cluster. Key: name.
    PutMember(Arc<MemberRow>),
    /// It is none any more.
    DeleteMember(NodeName),
    /// A token. Key: id.
    PutToken(Arc<TokenRow>),
    /// It is used up, expired or revoked.
    DeleteToken(String),
    /// An entry of the audit log. Key: number; written once.
    AddAudit(Box<AuditRow>),
    /// Counters. One row.
    PutMeta(MetaRow),
    /// The job left the core's memory: its rows stay for accounting and are not loaded again.
    Retire(JobId),
}

/// The commit failed, or nobody knows. The core that made the writes must be dropped and rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing was written.
    #[error("the store refused the commit: {0}")]
    Failed(String),
    /// It may or may not have been written.
    #[error("the outcome of the commit is unknown: {0}")]
    Unknown(String),
}

/// Proof that writes are durable. Only [`commit`] makes one.
#[derive(Debug)]
pub struct Committed(());

/// Durable state.
pub trait Store {
    /// Makes the writes durable in one transaction, in order, all or none; returns when they are.
    ///
    /// # Errors
    /// [`CommitError`], after which the state must be read again.
    fn apply(&mut self, writes: &[Write]) -> Result<(), CommitError>;
}

/// Commits `writes` (none at all is fine) and returns the proof.
///
/// # Errors
/// As the store's own.
pub fn commit<S: Store + ?Sized>(store: &mut S, writes: &[Write]) -> Result<Committed, CommitError> {
    if !writes.is_empty() {
        store.apply(writes)?;
    }
    Ok(Committed(()))
}

/// All rows that the core needs after a restart: specs and jobs that were not retired, the steps of the jobs'
/// current attempts (older ones are harmless), every node, member and token, and the counters.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Counters; absent in a new store.
    pub meta: Option<MetaRow>,
    /// Specifications.
    pub specs: Vec<SpecRow>,
    /// Jobs.
    pub jobs: Vec<JobRow>,
    /// Steps.
    pub steps: Vec<StepRow>,
    /// Nodes.
    pub nodes: Vec<NodeRow>,
    /// Machines of the cluster.
    pub members: Vec<MemberRow>,
    /// Tokens.
    pub tokens: Vec<TokenRow>,
}

impl Stored {
    /// Whether no job has anything on a node.
    pub fn is_idle(&self) -> bool {
        !self.jobs.iter().any(|job| matches!(job.phase, Phase::Running(_) | Phase::Ending { .. }))
    }

    /// Brings rows up to date with what was written beside them: parts of steps, and nodes that jobs have left.
    pub fn bring_up_to_date(
        &mut self,
        parts: impl IntoIterator<Item = (StepKey, usize, StepNode)>,
        left: impl IntoIterator<Item = (JobId, NodeName)>,
    ) {
        let steps: BTreeMap<StepKey, usize> = self.steps.iter().map(|step| step.key).zip(0..).collect();
        for (key, at, part) in parts {
            if let Some(step) = steps.get(&key).and_then(|place| self.steps.get_mut(*place)) {
                step.nodes.replace(at, part);
            }
        }
        let jobs: BTreeMap<JobId, usize> = self.jobs.iter().map(|job| job.job).zip(0..).collect();
        for (job, node) in left {
            if let Some(job) = jobs.get(&job).and_then(|place| self.jobs.get_mut(*place))
                && let Phase::Ending { left, .. } = &mut job.phase
                // Of the last one a row would say that the job is over: this is of an earlier run, as versions before kept it.
                && left.iter().any(|other| *other != node)
            {
                left.remove(&node);
            }
        }
    }
}

/// Fills a `Start`'s script and environment in from what the store holds under the effect's key. The own cookie of a display goes to no node
/// that has no use for it.
pub fn fill_payload(launch: &mut StepLaunch, payload: &Payload) {
    launch.env.clone_from(&payload.env);
    if launch.x11.as_ref().is_none_or(|x11| x11.is_carried_to(&launch.node.0)) {
        let own = [x11::COOKIE.as_bytes(), b"="].concat();
        launch.env.retain(|text| !text.0.starts_with(&own));
    }
    if let (Program::Script { .. }, Some(script)) = (&launch.program, &payload.script) {
        launch.program = Program::Script { text: script.text.clone(), args: script.args.clone() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ByteStr;
    use berth_model::ids::Attempt;
    use berth_model::x11::{X11Nodes, X11Spec};

    #[test]
    fn the_own_cookie_of_a_display_goes_to_its_machine_alone() {
        let key = StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Number(0) };
        let env = ["A=b", "BERTH_X11_COOKIE=aa", "BERTH_X11_CARRIED=bb"].map(ByteStr::from).to_vec();
        let payload = Payload { env: env.clone(), ..Payload::default() };
        let told = |node: &str, x11: Option<X11Spec>| {
            let mut launch = StepLaunch { node: node.into(), x11, ..berth_samples::launch(key) };
            fill_payload(&mut launch, &payload);
            launch.env
        };
        let spec = |carried| {
            Some(X11Spec { display: ":0".into(), nodes: X11Nodes::All, host: "n1".into(), carried })
        };
        let without = vec![env[0].clone(), env[2].clone()];
        assert_eq!(told("n1", spec(true)), env);
        assert_eq!(told("n2", spec(true)), without);
        assert_eq!(
            told("n2", spec(false)),
            env,
            "it is reached by the network, or the step is refused there"
        );
        assert_eq!(told("n1", None), without);
    }
}
