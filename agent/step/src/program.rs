//! What the program berth-step does, by the name it was called by.

use rustix::fd::AsFd;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// Dispatches on the program's name and its first argument.
pub fn main() -> ExitCode {
    // Nothing before the dispatch starts a thread: supervisors and containers are forked from here.
    let argv: Vec<OsString> = std::env::args_os().collect();
    let name = argv.first().and_then(|n| Path::new(n).file_name());
    if name != Some(OsStr::new("berth-step")) {
        // Called as srun, squeue and so on inside a container. It has no registry client: references go
        // to the node as they were typed, and are resolved there as the user.
        // Nor has it a name service: the container's may be modules of any other C library.
        berth_client::users::files_alone();
        return berth_client::main_by_name(argv, None);
    }
    if argv.get(1).is_some_and(|a| a == "zygote") {
        return zygote();
    }
    if argv.get(1).is_some_and(|a| a == "receive") {
        return crate::receive::main(&argv[2..]);
    }
    crate::log::say("this program is started by berth itself; see 'berth --help'");
    ExitCode::from(2)
}

/// The agent's socket is standard input.
fn zygote() -> ExitCode {
    match rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3) {
        Ok(socket) => ExitCode::from(u8::try_from(crate::zygote::run(socket)).unwrap_or(1)),
        Err(e) => {
            crate::log::say(&format!("standard input is not the agent's socket: {e}"));
            ExitCode::from(2)
        }
    }
}
