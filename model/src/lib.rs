//! Words and grammars of Berth: ids, job and step specifications, resources, states and reasons, and
//! the texts in which people write them. Pure: no clock, no file, no socket; depends on nothing of ours.
#![forbid(unsafe_code)]

pub mod admission;
pub mod array;
pub mod bind;
pub mod bytes;
pub mod check;
pub mod config;
pub mod count;
pub mod distribution;
pub mod effective;
pub mod elapsed;
pub mod env;
pub mod export;
pub mod grammar;
pub mod gres;
pub mod hardware;
pub mod hostlist;
pub mod ids;
pub mod jobid;
pub mod launch;
pub mod limit;
pub mod limits;
pub mod link;
pub mod listing;
pub mod login;
pub mod member;
pub mod memory;
pub mod mount;
pub mod mpi;
pub mod multiprog;
pub mod options;
pub mod pattern;
pub mod place;
pub mod programs;
pub mod query;
pub mod quota;
pub mod receive;
pub mod record;
pub mod request;
pub mod runs;
pub mod sbatch;
pub mod signal;
pub mod signature;
pub mod spec;
pub mod stamp;
pub mod state;
pub mod time;
pub mod tres;
pub mod when;
pub mod x11;

pub use bytes::ByteStr;
pub use ids::{Attempt, Gid, JobId, NodeName, Session, StepId, StepKey, SubmissionId, Term, Uid};
pub use options::is_container_name;
pub use time::{Span, Time};
pub use tres::Tres;
