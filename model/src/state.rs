//! States of jobs, steps and nodes, and the reasons printed beside them.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $long:literal / $short:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl $name {
            /// All of them, in the order of their numeric ids.
            pub const ALL: &[$name] = &[$($name::$variant),+];
            /// The long name, as `squeue -l` and `sacct` print it.
            pub fn name(self) -> &'static str { match self { $($name::$variant => $long),+ } }
            /// The compact code.
            pub fn code(self) -> &'static str { match self { $($name::$variant => $short),+ } }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.name()) }
        }
    };
}

named! {
    /// The state of a job or step as people see it.
    JobState {
        /// Waits for resources.
        Pending = "PENDING" / "PD",
        /// Has its allocation.
        Running = "RUNNING" / "R",
        /// Stopped, with its allocation.
        Suspended = "SUSPENDED" / "S",
        /// Ended with exit code 0.
        Completed = "COMPLETED" / "CD",
        /// Ended by a user or an administrator.
        Cancelled = "CANCELLED" / "CA",
        /// Ended with another exit code, or could not start.
        Failed = "FAILED" / "F",
        /// Ended at its time limit.
        Timeout = "TIMEOUT" / "TO",
        /// Lost with its node.
        NodeFail = "NODE_FAIL" / "NF",
        /// Ended for another job.
        Preempted = "PREEMPTED" / "PR",
        /// Its node did not start.
        BootFail = "BOOT_FAIL" / "BF",
        /// Could not run before its deadline.
        Deadline = "DEADLINE" / "DL",
        /// A process was killed because the memory limit was reached.
        OutOfMemory = "OUT_OF_MEMORY" / "OOM",
        /// Flag shown instead of the base state: processes are being ended.
        Completing = "COMPLETING" / "CG",
        /// Flag shown instead of the base state: the node prepares (image, namespaces).
        Configuring = "CONFIGURING" / "CF",
    }
}

impl JobState {
    /// Whether nothing more will happen in this run.
    pub fn is_terminal(self) -> bool {
        !matches!(
            self,
            JobState::Pending
                | JobState::Running
                | JobState::Suspended
                | JobState::Completing
                | JobState::Configuring
        )
    }
}

/// Why a job waits, or why it ended as it did.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing to say.
    #[default]
    None,
    /// An earlier job is first.
    Priority,
    /// First in line; what it needs is in use.
    Resources,
    /// `--begin` lies ahead.
    BeginTime,
    /// Held by its owner.
    JobHeldUser,
    /// Held by an administrator.
    JobHeldAdmin,
    /// The array's `%N` is reached.
    JobArrayTaskLimit,
    /// The partition is down.
    PartitionDown,
    /// The partition takes no jobs.
    PartitionInactive,
    /// More nodes than the partition allows.
    PartitionNodeLimit,
    /// A longer limit than the partition allows.
    PartitionTimeLimit,
    /// Nodes asked for are down or drained.
    ReqNodeNotAvail(String),
    /// The image is being fetched: percent done, where it is known.
    ImagePull(Option<u8>),
    /// A node could not start the job; the text says why.
    LaunchFailed(String),
    /// Ended with this exit code.
    NonZeroExitCode,
    /// Ended by a signal.
    RaisedSignal(i32),
    /// The time limit was reached.
    TimeLimit,
    /// The memory limit was reached.
    OutOfMemory,
    /// A node was lost.
    NodeDown,
    /// The dependency cannot be met.
    DependencyNeverSatisfied,
    /// Waits for other jobs.
    Dependency,
    /// A backup was restored, and not every node has told what it runs.
    Restored,
    /// All of its GPUs were idle for longer than the site lets them be.
    GpusIdle,
}

impl Reason {
    /// Whether it waits for somebody to release it.
    pub fn is_hold(&self) -> bool {
        matches!(self, Reason::JobHeldUser | Reason::JobHeldAdmin)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::ReqNodeNotAvail(nodes) if nodes.is_empty() => f.write_str("ReqNodeNotAvail"),
            Reason::ReqNodeNotAvail(nodes) => {
                write!(f, "ReqNodeNotAvail,_UnavailableNodes:{nodes}")
            }
            Reason::ImagePull(Some(p)) => write!(f, "ImagePull_{p}%"),
            Reason::ImagePull(None) => f.write_str("ImagePull"),
            Reason::LaunchFailed(_) => f.write_str("JobLaunchFailure"),
            Reason::RaisedSignal(n) => write!(f, "RaisedSignal:{n}"),
            other => fmt::Debug::fmt(other, f),
        }
    }
}

/// How a process, a step or a job ended. Printed as `code:signal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code, 0 to 255.
    pub code: u8,
    /// The signal that ended it, or 0.
    pub signal: u8,
}

impl ExitStatus {
    /// Success.
    pub const OK: ExitStatus = ExitStatus { code: 0, signal: 0 };
    /// Whether it is success.
    pub fn success(self) -> bool {
        self == Self::OK
    }
    /// The code that a shell, and `srun`, would return: 128 + signal for a killed process.
    pub fn shell_code(self) -> i32 {
        if self.signal != 0 { 128 + i32::from(self.signal) } else { i32::from(self.code) }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.code, self.signal))
    }
}

/// Why the cluster itself keeps new work from a node, for as long as that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Processes of a job do not end although they were killed.
    Unkillable,
    /// The site's check of the node fails, or the agent's own of what all of the node's GPUs need.
    HealthCheck,
    /// It was rebooted by an administrator's wish and did not come back in time.
    Reboot,
    /// Its agent does not know a setting that restricts jobs: it is older than the controller.
    Settings,
}

/// What an administrator, or a failure, made of a node. How busy it is follows from its allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeCondition {
    /// Takes no work and its work counts as lost.
    pub down: bool,
    /// Takes no new work.
    pub drain: bool,
    /// Takes no new work because it fails.
    pub fail: bool,
    /// No word from its agent.
    pub not_responding: bool,
    /// Why, for down, drain and fail.
    pub reason: Option<String>,
    /// Who set the reason.
    pub reason_user: Option<String>,
    /// When it was set.
    pub reason_time: Option<crate::time::Time>,
    /// An administrator wants it rebooted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot: Option<Reboot>,
}

/// `scontrol reboot`: until the node is back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reboot {
    /// It takes nothing new meanwhile.
    #[serde(default)]
    pub asap: bool,
    /// What becomes of it then.
    #[serde(default)]
    pub next: NextState,
    /// When its agent was told to, which is when nothing of a job is left there.
    #[serde(default)]
    pub issued: Option<crate::time::Time>,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// Who wants it.
    pub user: String,
    /// Since when.
    pub since: crate::time::Time,
}

/// What becomes of a node that was rebooted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextState {
    /// What it was before.
    #[default]
    Before,
    /// In service, whatever it was before.
    Resume,
    /// Down.
    Down,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts split what `squeue` prints into its columns, and Slurm's reasons have no space.
    #[test]
    fn every_reason_is_one_word() {
        use Reason::{GpusIdle, ImagePull, LaunchFailed, None, RaisedSignal, ReqNodeNotAvail, Resources};
        let unavailable = ReqNodeNotAvail("n[1-4,7]".into());
        for (reason, word) in [
            (ImagePull(Some(63)), "ImagePull_63%"),
            (ImagePull(Option::None), "ImagePull"),
            (unavailable, "ReqNodeNotAvail,_UnavailableNodes:n[1-4,7]"),
            (LaunchFailed("no such image".into()), "JobLaunchFailure"),
            (RaisedSignal(9), "RaisedSignal:9"),
            (GpusIdle, "GpusIdle"),
            (Resources, "Resources"),
            (None, "None"),
        ] {
            assert_eq!(reason.to_string(), word);
            assert!(!word.contains(char::is_whitespace), "{word}");
        }
    }
}
