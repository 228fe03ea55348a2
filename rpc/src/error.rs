//! What can go wrong on the wire, and how a refusal travels.

use crate::pb;
use crate::wire::{Field, Malformed};
use berth_model::request::{Refusal, RefusalCode};
use prost::Message;
use tonic::{Code, Status};

/// Why a call gave no answer, or a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// The controller refuses: its own words.
    #[error("{0}")]
    Refused(Refusal),
    /// No connection: nothing was asked.
    #[error("cannot reach the controller at {endpoint}: {why}")]
    Unreachable {
        /// Where it should be.
        endpoint: String,
        /// Why not, and what to do.
        why: String,
    },
    /// The connection broke before the answer came: whether the request was carried out is unknown. A
    /// submission may be repeated, because it carries its own id.
    #[error("the connection to the controller was lost before it answered: {0}")]
    Lost(String),
    /// The other side does not speak as this version does.
    #[error(
        "the controller does not speak this version's protocol ({0}); use the same version of berth on both sides"
    )]
    Protocol(String),
}

impl RpcError {
    /// Whether the same call may succeed later without anyone's doing: the controller is starting, stopping,
    /// or cannot write just now.
    pub fn is_transient(&self) -> bool {
        match self {
            RpcError::Unreachable { .. } | RpcError::Lost(_) => true,
            RpcError::Refused(refusal) => refusal.code == RefusalCode::Unavailable,
            RpcError::Protocol(_) => false,
        }
    }

    pub(crate) fn from_status(status: &Status) -> RpcError {
        if let Some(refusal) = refusal_in(status) {
            return RpcError::Refused(refusal);
        }
        let message = status.message().to_string();
        match status.code() {
            Code::Unimplemented => RpcError::Protocol(message),
            Code::InvalidArgument | Code::OutOfRange => {
                RpcError::Refused(Refusal::new(RefusalCode::Invalid, message))
            }
            Code::PermissionDenied | Code::Unauthenticated => {
                RpcError::Refused(Refusal::new(RefusalCode::Denied, message))
            }
            _ => RpcError::Lost(describe(status)),
        }
    }
}

impl From<prost::DecodeError> for RpcError {
    fn from(e: prost::DecodeError) -> RpcError {
        RpcError::Protocol(e.to_string())
    }
}

impl From<Malformed> for RpcError {
    fn from(e: Malformed) -> RpcError {
        RpcError::Protocol(e.to_string())
    }
}

fn refusal_in(status: &Status) -> Option<Refusal> {
    if status.details().is_empty() {
        return None;
    }
    let wire = pb::Refusal::decode(status.details()).ok()?;
    Refusal::get(wire).ok()
}

/// The status with the causes beneath it, which tonic's own text leaves out.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_string();
    let mut cause = std::error::Error::source(status);
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = e.source();
    }
    text
}

/// The refusal as a gRPC status, with code and message in its details.
pub(crate) fn to_status(refusal: &Refusal) -> Status {
    let code = match refusal.code {
        RefusalCode::Invalid => Code::InvalidArgument,
        RefusalCode::NotFound => Code::NotFound,
        RefusalCode::Denied => Code::PermissionDenied,
        RefusalCode::Impossible | RefusalCode::WrongState => Code::FailedPrecondition,
        RefusalCode::Busy => Code::ResourceExhausted,
        RefusalCode::Unavailable => Code::Unavailable,
        RefusalCode::Internal => Code::Internal,
    };
    // Texts become HTTP/2 header fields: a very long one would make the other side drop the whole answer.
    let mut short = refusal.clone();
    if short.message.len() > 4096 {
        let end = (0..=4096).rev().find(|i| short.message.is_char_boundary(*i)).unwrap_or(0);
        short.message.truncate(end);
        short.message.push_str(" ...");
    }
    let wire: pb::Refusal = short.put();
    let details = wire.encode_to_vec();
    Status::with_details(code, short.message, details.into())
}

pub(crate) fn malformed(e: &Malformed) -> Status {
    to_status(&Refusal::new(RefusalCode::Invalid, e.to_string()))
}
