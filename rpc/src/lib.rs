//! The wire: protobuf services, conversion to model types, identity, the authorisation table.
//!
//! The only crate that knows gRPC. Generated types never leave it: callers of [`Client`] and [`AgentLink`]
//! and implementors of [`Service`] speak `berth_model` alone.
//!
//! A new member of a model type needs a field in `proto/` and its name in `wire/`; a new method needs a line
//! in [`auth`]. The compiler asks for each.
#![forbid(unsafe_code)]

// Under this name fuzz targets use it.
#[cfg(test)]
extern crate self as berth_rpc;

mod agent;
pub mod auth;
mod branch;
mod carried;
mod client;
mod direct;
mod duplex;
mod error;
#[cfg(test)]
#[path = "../fuzz/fuzz_targets/mod.rs"]
mod fuzz_targets;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod machines;
mod methods;
mod peers;
mod places;
mod preface;
mod raw;
mod receiving;
mod retry;
mod saying;
mod serve;
mod splice;
mod strangers;
mod transport;
mod turned_away;
mod uplink;
mod wire;

pub use agent::{AgentLink, AgentReceiver, AgentSender};
pub use branch::{Unbelieved, own_start, seal};
pub use carried::Bringer;
pub use client::{Call, Client, JobWatch, LeaseGuard};
pub use direct::{Arrival, DirectStream};
pub use duplex::Duplex;
pub use error::RpcError;
pub use machines::MachineListener;
pub use peers::{PeerConnection, PeerIdentity};
pub use places::{Place, Places, one_users_part};
pub use preface::{Hex, Preface, Question, Reply};
pub use retry::Backoff;
pub use saying::Unheard;
pub use serve::{AgentConnection, Answers, Caller, Listeners, PAGE, Service, serve};
pub use splice::splice;
pub use strangers::{Stranger, Strangers, Unproven};
pub use transport::Endpoint;
pub use turned_away::TurnedAway;
pub use uplink::{Remote, Uplink};

/// Generated from `proto/` by `tests/generated.rs`; private to the crate.
#[allow(missing_docs, clippy::all, clippy::pedantic)] // generated code
mod pb {
    include!("generated/messages.rs");
}

/// Largest message that either side reads: a job's script, environment and specification together.
pub const MAX_MESSAGE: usize = 16 << 20;
