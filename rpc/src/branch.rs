//! Branches of the tree by which steps over many nodes are launched: what the controller signs for several nodes at once, and how each of
//! them sees that its own part is what was signed. Who carries it can change nothing and is told nothing that its own Start does not say,
//! but for what the others have on their nodes.

use crate::error::RpcError;
use crate::pb;
use crate::wire::Field;
use berth_model::NodeName;
use berth_model::carry::{Carried, CarriedPart, CarriedTo, Carry, Hand, StartPart};
use berth_model::link::Start;
use berth_trust::{Identity, TrustError, controller_signed, sha256, sign};
use prost::Message;
use std::io;
use std::time::SystemTime;

/// Longest opening: of a branch of as many nodes as there may be, with the longest names of hosts.
pub(crate) const MAX_OPENING: usize = 128 << 10;
/// Largest message to the head of a branch; where it would be larger, each node is told by itself.
const MAX_CARRY: usize = crate::MAX_MESSAGE / 2;

/// Why nothing follows from what another node brings.
#[derive(Debug, thiserror::Error)]
pub enum Unbelieved {
    /// The controller has not signed it.
    #[error("{0}")]
    Trust(#[from] TrustError),
    /// It signed it for others.
    #[error("what the controller signed is not for this node")]
    NotForUs,
    /// What came with it is not what it signed.
    #[error("{0} was altered on the way")]
    Altered(&'static str),
    /// It is no such message.
    #[error("it cannot be read: {0}")]
    Malformed(String),
    /// It did not come whole.
    #[error("it did not come whole: {0}")]
    Io(#[from] io::Error),
}

impl From<prost::DecodeError> for Unbelieved {
    fn from(e: prost::DecodeError) -> Unbelieved {
        Unbelieved::Malformed(e.to_string())
    }
}

impl From<RpcError> for Unbelieved {
    fn from(e: RpcError) -> Unbelieved {
        Unbelieved::Malformed(e.to_string())
    }
}

/// What the head of a branch is told, with its own Start: `own` is the controller's key and certificate. Nothing where that is too much for one
/// message.
///
/// # Errors
/// The kernel gives no random bytes.
pub fn seal(own: &Identity, start: &Start, to: Vec<CarriedTo>) -> Result<Option<Carry>, TrustError> {
    let mut common = start.clone();
    let part: pb::StartPart = StartPart::take(&mut common).put();
    let common: pb::Start = common.put();
    let (common, part) = (common.encode_to_vec(), part.encode_to_vec());
    let Ok(size) = u32::try_from(common.len()) else { return Ok(None) };
    let (mut nodes, mut hands, mut whole) = (Vec::new(), Vec::new(), common.len() + part.len());
    for CarriedTo { address, key, part } in to {
        let wire: pb::CarriedPart = part.put();
        let bytes = wire.encode_to_vec();
        let Ok(size) = u32::try_from(bytes.len()) else { return Ok(None) };
        whole = whole.saturating_add(bytes.len());
        nodes.push(pb::BranchNode { node: part.part.node.0, digest: sha256(&bytes).to_vec(), size });
        hands.push(Hand { address, key, part: bytes.into() });
    }
    let head = pb::BranchHead { digest: sha256(&common).to_vec(), size, nodes }.encode_to_vec();
    let signature = sign(own, &head)?;
    let opening = pb::BranchOpening { certificate: own.certificate.clone(), signature, head }.encode_to_vec();
    if opening.len() > MAX_OPENING || whole.saturating_add(opening.len()) > MAX_CARRY {
        return Ok(None);
    }
    Ok(Some(Carry { opening: opening.into(), common: common.into(), own: part.into(), to: hands }))
}

/// The own Start of the head of a branch: it came by its link, from the controller.
///
/// # Errors
/// It is of a version that writes it otherwise.
pub fn own_start(carry: &Carry) -> Result<Start, RpcError> {
    let part = StartPart::get(pb::StartPart::decode(carry.own.0.as_slice())?)?;
    whole(&carry.common.0, part)
}

fn whole(common: &[u8], part: StartPart) -> Result<Start, RpcError> {
    let mut start = Start::get(pb::Start::decode(common)?)?;
    part.give(&mut start);
    Ok(start)
}

/// Bytes that are still to come, as the controller signed them.
#[derive(Debug)]
struct Piece {
    digest: Vec<u8>,
    size: usize,
}

impl Piece {
    fn new(digest: Vec<u8>, size: u32) -> Piece {
        Piece { digest, size: usize::try_from(size).unwrap_or(usize::MAX) }
    }

    fn is(&self, bytes: &[u8]) -> bool {
        sha256(bytes).as_slice() == self.digest
    }
}

/// What the controller signed for a node.
#[derive(Debug)]
pub(crate) struct Expected {
    common: Piece,
    part: Piece,
}

impl Expected {
    /// What an opening promises to this node. `authority`: its certificate, DER.
    pub(crate) fn open(
        authority: &[u8],
        node: &NodeName,
        opening: &[u8],
        now: SystemTime,
    ) -> Result<Expected, Unbelieved> {
        let pb::BranchOpening { certificate, signature, head } = pb::BranchOpening::decode(opening)?;
        controller_signed(authority, &certificate, now, &head, &signature)?;
        let pb::BranchHead { digest, size, nodes } = pb::BranchHead::decode(head.as_slice())?;
        let own = nodes.into_iter().find(|own| own.node == node.0).ok_or(Unbelieved::NotForUs)?;
        let expected = Expected { common: Piece::new(digest, size), part: Piece::new(own.digest, own.size) };
        if expected.common.size.saturating_add(expected.part.size) > crate::MAX_MESSAGE {
            return Err(Unbelieved::Malformed("it is too long".to_string()));
        }
        Ok(expected)
    }

    /// How many bytes come: of what is the same for all nodes, and of what is this one's.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.common.size, self.part.size)
    }

    /// The Start, if these are the bytes.
    pub(crate) fn read(&self, node: &NodeName, common: &[u8], part: &[u8]) -> Result<Carried, Unbelieved> {
        if !self.common.is(common) {
            return Err(Unbelieved::Altered("what is the same for all nodes"));
        }
        if !self.part.is(part) {
            return Err(Unbelieved::Altered("what is this node's alone"));
        }
        let part = CarriedPart::get(pb::CarriedPart::decode(part)?).map_err(RpcError::from)?;
        let CarriedPart { part, to } = part;
        if part.node != *node {
            return Err(Unbelieved::NotForUs);
        }
        Ok(Carried { to, start: whole(common, part)? })
    }
}

#[cfg(test)]
mod tests;
