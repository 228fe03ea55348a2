//! Newtype ids: what names a job, a step, a node, a leader, a run and a registration.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
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

/// The full host name under which a node is registered. The same where it is written the same; ordered as people count, so that `n2` comes
/// before `n10`: where tasks are, and what a list of nodes looks like, follows from that.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

impl Ord for NodeName {
    fn cmp(&self, other: &Self) -> Ordering {
        by_numbers(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl PartialOrd for NodeName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The order of bytes, but that digits in a row are one number. Of two numbers with the same value the one with fewer zeros before it is
/// first.
fn by_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let Some(at) = a.iter().zip(b).position(|(x, y)| x != y) else { return a.len().cmp(&b.len()) };
    // Most names differ within a number that begins before.
    let start = a[..at].iter().rposition(|byte| !byte.is_ascii_digit()).map_or(0, |last| last + 1);
    let number = |of: &[u8]| of[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (long, wide) = (number(a), number(b));
    if long == 0 || wide == 0 {
        return a[at].cmp(&b[at]);
    }
    let (x, y) = (&a[start..start + long], &b[start..start + wide]);
    let value = |of: &[u8]| of.iter().take_while(|byte| **byte == b'0').count();
    let (p, q) = (&x[value(x)..], &y[value(y)..]);
    p.len().cmp(&q.len()).then_with(|| p.cmp(q)).then_with(|| long.cmp(&wide)).then_with(|| a[at].cmp(&b[at]))
}

#[cfg(test)]
mod order {
    use super::NodeName;

    #[test]
    fn nodes_are_in_the_order_in_which_people_count() {
        let names = [
            "",
            "0",
            "00",
            "1",
            "2",
            "10",
            "a",
            "gpu-1.r2",
            "gpu-1.r10",
            "gpu-2.r1",
            "n",
            "n0",
            "n0.2",
            "n0.10",
            "n0x",
            "n00",
            "n00.1",
            "n1",
            "n01",
            "n001",
            "n2",
            "n9",
            "n10",
            "n10a",
            "n10b",
            "n99999999999999999999998",
            "n99999999999999999999999",
            "n100000000000000000000000",
            "na",
            "o1",
        ];
        let names = names.map(NodeName::from);
        for (at, one) in names.iter().enumerate() {
            for (other_at, other) in names.iter().enumerate() {
                assert_eq!(one.cmp(other), at.cmp(&other_at), "{one} and {other}");
            }
        }
    }
}

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
