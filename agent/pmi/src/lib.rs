//! PMI-1 and PMI-2, the process management interfaces by which the ranks of an MPI program find one another, as a node
//! serves them to the tasks of a step. Pure: bytes from tasks go in, bytes for tasks and what is asked of others come out.
//!
//! The formats are those of MPICH (`src/pmi/maint/pmi-1.1.txt` and `pmi-2.0.txt` there) and, where they differ, of Slurm's
//! `libpmi2`. A connection begins with a line of PMI-1, `cmd=init pmi_version=1 pmi_subversion=1`; one that asks for version
//! 2 goes on with messages of PMI-2, which are preceded by their length in six characters.
//!
//! What is put under a key is seen by the other tasks of the node at once, and by those of other nodes after the next
//! fence: [`Effect::Fence`] gives what was put here since the last one, and [`Server::fenced`] takes what all nodes put.
//!
//! Tasks are anybody's programs. What they make a server hold is bounded ([`Limits`]), and a wrong word ends the
//! conversation with the task that said it, and nothing else.
#![forbid(unsafe_code)]

// Under this name fuzz targets use it.
#[cfg(test)]
extern crate self as berth_pmi;

#[cfg(test)]
#[path = "../../fuzz/fuzz_targets/mod.rs"]
mod fuzz_targets;
mod keys;
mod mapping;
pub mod pmix;
mod server;
mod session;
mod wire;

pub use keys::{BadKeys, count};
pub use mapping::process_mapping;
pub use server::{Effect, Server, Setup, Stuck};
pub use session::Versions;

/// Bytes of a key, at most (`PMI2_MAX_KEYLEN`, and hydra's `PMI_MAXKEYLEN`).
pub const KEY_MAX: usize = 64;
/// Bytes of a value, at most (`PMI2_MAX_VALLEN`).
pub const VALUE_MAX: usize = 1024;
/// What PMI-1 is told of values: its libraries build lines in buffers of 1,024 bytes, which must hold the names as well.
pub const VALUE_TOLD: usize = 896;
/// Bytes of the name of a key space, at most.
pub const NAME_MAX: usize = 256;

/// How much a server holds for the tasks of a step on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of keys and values of all nodes, with what it takes to keep them.
    pub keys: usize,
    /// Bytes of attributes of the node.
    pub attributes: usize,
    /// Attributes that one task may wait for at the same time.
    pub waits: usize,
}

impl Default for Limits {
    /// 32 MiB of keys: 100,000 ranks with the address of one each.
    fn default() -> Limits {
        Limits { keys: 32 << 20, attributes: 1 << 20, waits: 16 }
    }
}
