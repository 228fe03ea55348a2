//! What agent and supervisor share: the spool's files, the packets between them, and both ends' code that
//! runs in the small static program.
#![forbid(unsafe_code)]

pub mod control;
pub mod deadlines;
pub mod kept;
mod log;
pub mod pmix_server;
pub mod program;
pub mod receive;
pub mod spool;
pub mod supervisor;
pub mod tree;
pub mod zygote;
