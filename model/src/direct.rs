//! What controller and machines say to each other about streams that do not go by the controller: who may come to which node, for
//! which step, by which key.

use crate::ids::{NodeName, StepKey};
use crate::request::Peer;
use crate::time::Span;
use serde::{Deserialize, Serialize};

/// To a node: one connection of another machine is expected, for a step of somebody. It is good for one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Names it: random, told to the machine that connects and to this node alone.
    pub grant: String,
    /// Digest of the key that the machine shows.
    pub key: String,
    /// For whom: what the controller believes of the machine's word.
    pub peer: Peer,
    /// To which step, and to nothing else.
    pub step: StepKey,
    /// For how long, counted from when it is heard.
    pub time: Span,
}

/// To a machine: how a node is reached for one step of somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamWay {
    /// The node.
    pub node: NodeName,
    /// As it said itself, see [`crate::exchange::FromPeers::Ready`].
    pub address: String,
    /// Digest of the key that it shows.
    pub key: String,
    /// What is to be said there, see [`Admission::grant`].
    pub grant: String,
}
