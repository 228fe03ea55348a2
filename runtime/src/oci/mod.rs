//! The OCI runtime command line: containers from a `config.json`, planned purely and then made.
//!
//! Everything here runs in a process with one thread. A container's first process is a fork of the `create`
//! call; it makes itself ready, waits on a socket, and becomes the program when `start` knocks.

mod cgroup;
mod channel;
mod config;
mod console;
mod copy;
mod create;
mod engine;
mod error;
mod exec;
mod features;
mod finish;
mod gvariant;
mod lifecycle;
pub mod plan;
mod procfs;
mod rootfs;
mod run;
mod seal;
mod stage;
mod stats;
mod store;
mod unit;

pub use config::read_json;
pub use create::{CreateOptions, Created, create, start};
pub use engine::Engine;
pub use error::{OciError, Result};
pub use exec::{ExecOptions, Started, exec};
pub use features::{features, template};
pub use lifecycle::{delete, kill, pause, processes, resume, signal_number, state, update};
pub use run::{Foreground, attach, wait};
pub use seal::seal;
pub use store::{Status, Store};

/// The time, as RFC 3339 has it.
pub fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// More descriptors than the kernel gives a process by default (`fs.nr_open`).
const MOST_DESCRIPTORS: u32 = 1 << 20;

/// Which of the `count` descriptors from 3 on the caller left open for the program. To be asked before anything
/// is opened: else one of the runtime's own could be taken for one of them.
pub fn preserved(count: u32) -> Vec<i32> {
    let end = i32::try_from(count.min(MOST_DESCRIPTORS)).unwrap_or(0) + 3;
    (3..end).filter(|n| crate::sys::exec::is_open(*n)).collect()
}

/// What a container uses now, as runc's `events` has it.
///
/// # Errors
/// No such container, or one that does not run.
pub fn stats(store: &Store, id: &str) -> Result<serde_json::Value> {
    let record = store.look(id)?;
    record.require("watch", &[Status::Created, Status::Running, Status::Paused], "")?;
    Ok(stats::collect(&record.group))
}

/// Whether a container has ended, and how many of its processes the memory limit has killed.
///
/// # Errors
/// No such container.
pub fn watch(store: &Store, id: &str) -> Result<(bool, u64)> {
    let record = store.look(id)?;
    Ok((record.status() == Status::Stopped, stats::oom_kills(&record.group)))
}
