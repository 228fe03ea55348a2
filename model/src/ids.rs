//! Newtype ids: what names a job, a step, a node, a leader, a run and a registration.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number_id!(/// A job, or one task of an array once it was split from the array's record. Starts at 1.
    JobId(u32));
number_id!(/// A numeric user id on the cluster.
    Uid(u32));
number_id!(/// A numeric group id on the cluster.
    Gid(u32));
number_id!(/// Which leader speaks: grows with every controller that takes over the store.
    Term(u64));
number_id!(/// Which run of a job: 0 for the first, one more for each requeue. Durable.
    Attempt(u32));
number_id!(/// One registration of an agent with a controller.
    Session(u64));

/// A step within a job. Ordered as it is listed: batch, extern, then by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepId {
    /// The batch script (`12.batch`).
    Batch,
    /// The allocation's own shell step (`12.interactive`).
    Interactive,
    /// A step made by `srun` (`12.0`).
    Number(u32),
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepId::Batch => f.pad("batch"),
            StepId::Interactive => f.pad("interactive"),
            StepId::Number(n) => fmt::Display::fmt(n, f),
        }
    }
}

/// The text is not a step id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a step: expected a number, 'batch' or 'interactive'")]
pub struct BadStepId(pub String);

impl FromStr for StepId {
    type Err = BadStepId;
    fn from_str(s: &str) -> Result<Self, BadStepId> {
        match s {
            "batch" => Ok(StepId::Batch),
            "interactive" => Ok(StepId::Interactive),
            _ if !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) => {
                s.parse().map(StepId::Number).map_err(|_| BadStepId(s.to_string()))
            }
            _ => Err(BadStepId(s.to_string())),
        }
    }
}

impl Serialize for StepId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for StepId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One run of one step: what a Start, a report and a spool entry are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepKey {
    /// The job (an array's task has its own id).
    pub job: JobId,
    /// Which run of the job.
    pub attempt: Attempt,
    /// Which step of the run.
    pub step: StepId,
}

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.step)
    }
}

/// The full host name under which a node is registered. Compared as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<&str> for NodeName {
    fn from(s: &str) -> Self {
        NodeName(s.to_string())
    }
}

/// Made by the client for each submission, so that a retry after an unknown outcome runs once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SubmissionId(pub String);
