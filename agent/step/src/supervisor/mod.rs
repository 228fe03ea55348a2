//! The supervisor of one step on one node: makes its container, attends to its tasks until the last is
//! gone, and leaves their exit in the spool. It outlives the agent and needs neither it nor the controller.

mod as_user;
mod client;
mod ending;
mod environment;
mod files;
mod login;
mod processes;
mod script;
mod step;
mod streams;

use crate::spool::{FORMAT, LaunchFile, StateFile, StepDir, boot_id, read_json, start_ticks, write_json};
use berth_model::launch::StepPhase;
use rustix::fd::OwnedFd;
use std::io;

/// Supervises the step whose directory this is. `listener`: the step's control socket.
pub fn run(dir: &StepDir, listener: OwnedFd) -> i32 {
    match supervise(dir, listener) {
        Ok(()) => 0,
        Err(e) => {
            // Goes to the step's supervisor.log; the agent finds no exit and reports the step as lost.
            eprintln!("berth-step: {}: {e}", dir.path().display());
            1
        }
    }
}

fn supervise(dir: &StepDir, listener: OwnedFd) -> io::Result<()> {
    let file: LaunchFile = read_json(&dir.launch())?;
    if file.format != FORMAT {
        return Err(io::Error::other(format!(
            "launch.json has format {} and this supervisor reads {FORMAT}",
            file.format
        )));
    }
    if file.node.system {
        // The step's processes may have the same uid as nobody of ours, but a mistake must not be enough.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    }
    let pid = std::process::id().cast_signed();
    let state = StateFile {
        format: FORMAT,
        key: file.launch.key,
        pid,
        start_ticks: start_ticks(pid).unwrap_or(0),
        boot_id: boot_id()?,
        phase: StepPhase::Starting,
    };
    write_json(&dir.state(), &state)?;
    step::Step::new(dir.clone(), file, state, listener).run()
}
