//! What a running step has on a node, as the kernel says: limits, control groups, namespaces.

use crate::limits::{LimitValue, Resource};
use serde::{Deserialize, Serialize};

/// A step on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Effective {
    /// The node.
    pub node: String,
    /// Limits of its tasks when they start.
    pub limits: Vec<EffectiveLimit>,
    /// Its control groups' values: the file, and what it holds.
    pub control_groups: Vec<(String, String)>,
    /// Its namespaces: the kind, and the kernel's number.
    pub namespaces: Vec<(String, u64)>,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectiveLimit {
    /// Of what.
    pub resource: Resource,
    /// Enforced.
    pub soft: LimitValue,
    /// Up to which the soft one can be raised.
    pub hard: LimitValue,
}
