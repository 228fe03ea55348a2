//! The supervisor of one step on one node: makes its container, attends to its tasks until the last is
//! gone, and leaves their exit in the spool. It outlives the agent and needs neither it nor the controller.

mod around;
mod as_user;
mod binding;
mod client;
mod display;
mod ending;
mod environment;
mod files;
mod gpus;
mod layers;
mod lease;
mod memlock;
mod pmi;
mod pmix;
mod processes;
mod resuming;
mod saving;
mod script;
mod step;
mod streams;
mod watchers;
mod x11;

use crate::spool::{FORMAT, LaunchFile, StateFile, StepDir, boot_id, start_ticks, write_json};
use berth_model::ByteStr;
use berth_model::launch::{Program, StepLaunch, StepPhase};
use berth_runtime::{ContainerRequest, Parked};
use rustix::fd::OwnedFd;
use std::io;

/// Closes the process to debuggers: the step's processes may have no uid of ours, but a mistake must not be
/// enough.
pub fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// What would be asked of the runtime for a step: its container, with the command, and what only its first task has
/// in its environment. Nothing is made.
///
/// # Errors
/// What would keep the step from starting: what, why, and what to do.
pub fn planned(file: &LaunchFile) -> Result<(ContainerRequest, Vec<ByteStr>), String> {
    let request = processes::asked(file).map_err(|failure| failure.text)?;
    Ok((request, environment::of_task(file, 0)))
}

/// The program that a step runs, as it is named; `None` when that is the image's own.
pub fn program(launch: &StepLaunch) -> Option<ByteStr> {
    match &launch.program {
        Program::Argv(argv) => argv.first().cloned(),
        Program::LoginShell => Some(launch.identity.shell.clone()),
        Program::Script { text, .. } => script::interpreter(&text.0).ok()?.into_iter().next(),
    }
}

/// Supervises the step whose directory this is. `listener`: the step's control socket. `parked`: a process
/// that is in the step's cgroups already.
pub fn run(dir: &StepDir, listener: OwnedFd, parked: Option<Parked>, images: Option<OwnedFd>) -> i32 {
    match supervise(dir, listener, parked, images) {
        Ok(()) => 0,
        Err(e) => {
            // Goes to the step's supervisor.log; the agent finds no exit and reports the step as lost.
            crate::log::say(&format!("{}: {e}", dir.path().display()));
            1
        }
    }
}

fn supervise(
    dir: &StepDir,
    listener: OwnedFd,
    parked: Option<Parked>,
    images: Option<OwnedFd>,
) -> io::Result<()> {
    let file = dir.read_launch()?;
    if file.format != FORMAT {
        return Err(io::Error::other(format!(
            "launch.json has format {} and this supervisor reads {FORMAT}",
            file.format
        )));
    }
    if file.node.system {
        hide()?;
    }
    let pid = std::process::id().cast_signed();
    let state = StateFile {
        format: FORMAT,
        key: file.launch.key,
        pid,
        start_ticks: start_ticks(pid).unwrap_or(0),
        boot_id: boot_id()?,
        phase: StepPhase::Starting,
        member: None,
        watched: true,
        resumes: true,
        display: None,
    };
    write_json(&dir.state(), &state)?;
    step::Step::new(dir.clone(), file, state, listener, (parked, images)).run()
}
