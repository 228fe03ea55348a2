//! Words and grammars of Berth: ids, job and step specifications, resources, states and reasons, and
//! the texts in which people write them. Pure: no clock, no file, no socket; depends on nothing of ours.
#![forbid(unsafe_code)]

// Under this name fuzz targets use it.
#[cfg(test)]
extern crate self as berth_model;

pub mod admission;
pub mod array;
pub mod bind;
pub mod bytes;
pub mod called;
pub mod carry;
pub mod check;
pub mod config;
pub mod count;
pub mod devices;
pub mod direct;
pub mod distribution;
pub mod effective;
pub mod elapsed;
pub mod elf;
pub mod env;
pub mod exchange;
pub mod export;
pub mod fabric;
pub mod feature;
#[cfg(test)]
#[path = "../fuzz/fuzz_targets/mod.rs"]
mod fuzz_targets;
pub mod gpus;
pub mod grammar;
pub mod gres;
pub mod hardware;
pub mod het;
pub mod hostlist;
pub mod ids;
pub mod jobid;
pub mod launch;
pub mod ldcache;
pub mod limit;
pub mod limits;
pub mod link;
pub mod listing;
pub mod login;
pub mod login_shell;
pub mod member;
pub mod memory;
pub mod mount;
pub mod mpi;
pub mod mpirun;
pub mod multiprog;
pub mod options;
pub mod pattern;
pub mod pin;
pub mod place;
pub mod programs;
pub mod query;
pub mod quota;
pub mod receive;
pub mod record;
pub mod request;
pub mod rights;
pub mod runs;
pub mod sbatch;
pub mod signal;
pub mod signature;
pub mod sluid;
pub mod spec;
pub mod stamp;
pub mod state;
pub mod time;
pub mod tres;
pub mod usage;
pub mod when;
pub mod x11;

pub use bytes::ByteStr;
pub use ids::{Attempt, Gid, JobId, NodeName, Session, StepId, StepKey, SubmissionId, Term, Uid};
pub use options::is_container_name;
pub use sluid::{Realm, Sluid};
pub use time::{Span, Time};
pub use tres::Tres;
