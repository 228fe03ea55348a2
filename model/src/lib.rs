//! Words and grammars of Berth: ids, job and step specifications, resources, states and reasons, and
//! the texts in which people write them. Pure: no clock, no file, no socket; depends on nothing of ours.
#![forbid(unsafe_code)]

pub mod bytes;
pub mod config;
pub mod hardware;
pub mod ids;
pub mod launch;
pub mod limits;
pub mod link;
pub mod record;
pub mod request;
pub mod spec;
pub mod state;
pub mod time;
pub mod tres;

pub use bytes::ByteStr;
pub use ids::{Attempt, Gid, JobId, NodeName, Session, StepId, StepKey, SubmissionId, Term, Uid};
pub use time::{Span, Time};
pub use tres::Tres;
