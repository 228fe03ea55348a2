//! Starts of a wide step that one of its nodes, the head of a branch, carries to others: what is the same for all once, what is one node's
//! apart. Nobody believes who carries: each node sees for itself that the controller signed what is for it.

use crate::bytes::ByteStr;
use crate::ids::{NodeName, Session};
use crate::launch::NodeShare;
use crate::link::Start;
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most nodes of a branch: its opening, which goes to each of them, grows with them.
pub const MOST_CARRIED: u32 = 256;

/// What of a Start is one node's alone: all else is the same in the Starts of all nodes of a step that wants no display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPart {
    /// The node.
    pub node: NodeName,
    /// Its index within the step.
    pub node_index: u32,
    /// What the step may use there.
    pub share: NodeShare,
    /// What the job has there.
    pub job_share: NodeShare,
    /// [`Start::lease`].
    pub lease: Option<Time>,
}

impl StartPart {
    /// Takes it out of a Start: what is left is the same for all.
    pub fn take(start: &mut Start) -> StartPart {
        let launch = &mut start.launch;
        launch.job.mem_per_node = None;
        StartPart {
            node: NodeName(std::mem::take(&mut launch.node.0)),
            node_index: std::mem::take(&mut launch.node_index),
            share: std::mem::take(&mut launch.share),
            job_share: std::mem::take(&mut launch.job.share),
            lease: start.lease.take(),
        }
    }

    /// Puts it into what is the same for all.
    pub fn give(self, start: &mut Start) {
        let launch = &mut start.launch;
        launch.node = self.node;
        launch.node_index = self.node_index;
        launch.share = self.share;
        launch.job.mem_per_node = Some(self.job_share.memory);
        launch.job.share = self.job_share;
        start.lease = self.lease;
    }
}

/// To which registration of a node's agent something is said: to another one it means nothing, whatever happens to be the same of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its number.
    pub session: Session,
    /// When the agent had last asked for renewals, by the node's clock since boot: not before it introduced itself, and so old what is said is
    /// at most.
    pub asked: Time,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// What is for one node that gets its Start from another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarriedPart {
    /// Its part of the Start.
    pub part: StartPart,
    /// For whom it is.
    pub to: Registration,
}

/// A node to which something is carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarriedTo {
    /// `host:port` of its own port; without a host it is on the controller's machine.
    pub address: String,
    /// Digest of the key that it shows.
    pub key: String,
    /// What is for it.
    pub part: CarriedPart,
}

/// A node to which something is to be handed, and its part as the controller signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hand {
    /// As [`CarriedTo::address`].
    pub address: String,
    /// As [`CarriedTo::key`].
    pub key: String,
    /// Its part, as it goes over the wire.
    pub part: ByteStr,
}

/// What the head of a branch is told: its own Start, and what it hands to others as it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carry {
    /// What the controller signed, and with what: see `berth-rpc`.
    pub opening: ByteStr,
    /// What is the same in the Starts of all.
    pub common: ByteStr,
    /// The head's own part of its Start.
    pub own: ByteStr,
    /// To whom.
    pub to: Vec<Hand>,
}

// There may be a login in what is the same for all: it is in no log.
impl fmt::Debug for Carry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to: Vec<&str> = self.to.iter().map(|hand| hand.address.as_str()).collect();
        f.debug_struct("Carry").field("common", &self.common.0.len()).field("to", &to).finish_non_exhaustive()
    }
}

/// A Start that came by another node, and that the controller signed for this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// For whom it is.
    pub to: Registration,
    /// The Start.
    pub start: Start,
}
