//! What queries answer: jobs, steps, nodes and partitions as the commands print them.

use crate::bytes::ByteStr;
use crate::hardware::{GresDevice, Hardware};
use crate::het::HetStep;
use crate::ids::{Attempt, JobId, NodeName, StepId};
use crate::launch::{Layout, NodeShare, Usage};
use crate::sluid::Sluid;
use crate::spec::{ArraySpec, Identity, JobSpec, TimeLimit};
use crate::state::{ExitStatus, JobState, NodeCondition, Reason};
use crate::time::{Span, Time};
use crate::tres::Tres;
use serde::{Deserialize, Serialize};

/// A job, an array's waiting tasks, or one array task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its own id.
    pub id: JobId,
    /// The array it belongs to; equal to `id` for the array's own record.
    #[serde(default)]
    pub array: Option<JobId>,
    /// Its index, once split from the array's record.
    #[serde(default)]
    pub task: Option<u32>,
    /// Indices still in the array's record (waiting tasks).
    #[serde(default)]
    pub waiting: Option<ArraySpec>,
    /// What was asked for, defaults filled in.
    pub spec: JobSpec,
    /// Whose it is.
    pub identity: Identity,
    /// Partition it is in.
    pub partition: String,
    /// Limit in force.
    pub time_limit: TimeLimit,
    /// State as shown.
    pub state: JobState,
    /// Why.
    pub reason: Reason,
    /// Which run.
    pub attempt: Attempt,
    /// Order in the queue: larger is earlier.
    pub priority: u32,
    /// What it needs in all.
    pub requested: Tres,
    /// What it has, or had.
    #[serde(default)]
    pub allocated: Tres,
    /// Where.
    #[serde(default)]
    pub layout: Layout,
    /// What it has on each node, in node order.
    #[serde(default)]
    pub shares: Vec<NodeShare>,
    /// Exit status of the job.
    #[serde(default)]
    pub exit: ExitStatus,
    /// Highest exit status of its steps except the batch script.
    #[serde(default)]
    pub derived_exit: ExitStatus,
    /// Who cancelled it, by uid.
    #[serde(default)]
    pub cancelled_by: Option<crate::ids::Uid>,
    /// When it was submitted.
    pub submitted: Time,
    /// When it could first have started.
    pub eligible: Time,
    /// When this run started.
    #[serde(default)]
    pub started: Option<Time>,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<Time>,
    /// While it runs: by how much later its limit is reached than start and limit say, since time went on by so much on the word of the wall clock alone.
    #[serde(default)]
    pub leapt: Span,
    /// Steps, in order.
    #[serde(default)]
    pub steps: Vec<StepInfo>,
    /// What the cluster has to say of it while it runs: of GPUs that are idle or fenced.
    #[serde(default)]
    pub notices: Vec<String>,
    /// Its name among the jobs of all clusters; absent of one that an earlier version took. Shared by the waiting tasks of an array, and kept
    /// over requeues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sluid: Option<Sluid>,
}

impl JobInfo {
    /// `sha256:...` of the image's manifest: as pinned at submission, else as the nodes found it.
    pub fn digest(&self) -> Option<&str> {
        let pinned = self.spec.container.as_ref().and_then(|c| c.image.digest());
        pinned.or_else(|| self.steps.iter().find_map(|s| s.digest.as_deref()))
    }

    /// What the images of its steps took, as far as it is known.
    pub fn pull(&self) -> Option<PullInfo> {
        self.steps.iter().filter_map(|s| s.pull).reduce(PullInfo::and)
    }

    /// Whether it says under which name a container is kept.
    pub fn names_a_container(&self) -> bool {
        self.spec.container.as_ref().is_some_and(|c| c.named.is_some())
    }

    /// Takes out what only its owner, its account's coordinators, operators and administrators may know: under which names containers are kept, where they are
    /// saved, and what repeats that: the command line of a job that says it, and why something could not be started.
    pub fn hide(&mut self) {
        if self.names_a_container() {
            self.spec.submit_line = ByteStr::default();
        }
        if let Some(container) = &mut self.spec.container {
            (container.named, container.save) = (None, None);
            container.image.typed = without_name(&container.image.typed);
        }
        if let Reason::LaunchFailed(why) = &mut self.reason {
            why.clear();
        }
        for step in &mut self.steps {
            step.message = None;
            step.image = step.image.as_deref().map(without_name);
        }
    }
}

/// An image as typed, or the option that stands where a container is named alone.
fn without_name(image: &str) -> String {
    let option = "--container-name";
    if image.starts_with(option) { option.to_string() } else { image.to_string() }
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepInfo {
    /// Which.
    pub id: StepId,
    /// Its name.
    pub name: String,
    /// Which run of the job.
    pub attempt: Attempt,
    /// State as shown.
    pub state: JobState,
    /// Image as typed.
    #[serde(default)]
    pub image: Option<String>,
    /// `sha256:...` of the manifest that it runs.
    #[serde(default)]
    pub digest: Option<String>,
    /// What making its image present took; absent until every node has said it.
    #[serde(default)]
    pub pull: Option<PullInfo>,
    /// What it has.
    pub allocated: Tres,
    /// Tasks and where they are.
    pub layout: Layout,
    /// Exit status.
    #[serde(default)]
    pub exit: ExitStatus,
    /// Launch error or other text.
    #[serde(default)]
    pub message: Option<String>,
    /// When it started.
    pub started: Time,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<Time>,
    /// What it used.
    #[serde(default)]
    pub usage: Usage,
    /// Limit in force.
    #[serde(default)]
    pub time_limit: Option<TimeLimit>,
    /// Working directory.
    #[serde(default)]
    pub work_dir: ByteStr,
    /// Who cancelled it, by uid.
    #[serde(default)]
    pub cancelled_by: Option<crate::ids::Uid>,
    /// While it runs, and is a part of a step in several components of a job: the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub het: Option<HetStep>,
}

/// What making images present took, over all nodes of a step, or all steps of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullInfo {
    /// The longest that a node took.
    pub took: Span,
    /// Bytes fetched.
    pub bytes: u64,
    /// Whether everything was there already.
    pub hit: bool,
    /// Time of GPUs that were allocated and waited: the sum over them.
    pub gpu_wait: Span,
}

impl PullInfo {
    /// Both together.
    #[must_use]
    pub fn and(self, other: PullInfo) -> PullInfo {
        PullInfo {
            took: self.took.max(other.took),
            bytes: self.bytes.saturating_add(other.bytes),
            hit: self.hit && other.hit,
            gpu_wait: Span(self.gpu_wait.0.saturating_add(other.gpu_wait.0)),
        }
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Full host name.
    pub name: NodeName,
    /// What it has.
    pub hardware: Hardware,
    /// What an administrator or a failure made of it.
    pub condition: NodeCondition,
    /// Partitions it is in.
    pub partitions: Vec<String>,
    /// What can be allocated.
    pub total: Tres,
    /// What is allocated.
    pub allocated: Tres,
    /// Whether a job is being ended there.
    pub completing: bool,
    /// Version of its agent.
    pub version: String,
    /// When it booted.
    pub boot_time: Option<Time>,
    /// When its agent started.
    pub agent_start: Option<Time>,
    /// When it was last busy.
    pub last_busy: Option<Time>,
    /// One-minute load, in hundredths.
    pub load: u32,
    /// Free memory in MiB.
    pub free_memory: u64,
    /// Users whom its own name service knows otherwise than the controller's, a line each.
    #[serde(default)]
    pub drift: Vec<String>,
    /// Keys of the configuration in force that its agent, an older one, does not know.
    #[serde(default)]
    pub unknown_settings: Vec<String>,
    /// What it has less of than it was registered with, a line each.
    #[serde(default)]
    pub hardware_drift: Vec<String>,
    /// The devices that jobs have, and of which devices they have how many shares: name, type, index and shares alone.
    #[serde(default)]
    pub used: Vec<GresDevice>,
    /// The full name of its machine, as a name service there says it; absent where none does.
    #[serde(default)]
    pub host_name: Option<String>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// Its configuration.
    pub config: crate::config::PartitionConfig,
    /// Nodes in it, in order.
    pub nodes: Vec<NodeName>,
    /// What its nodes have in all.
    pub total: Tres,
}
