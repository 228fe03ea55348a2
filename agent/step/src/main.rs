//! berth-step: step supervisor, container init, and the client inside containers; static.
#![forbid(unsafe_code)]

use rustix::fd::AsFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Nothing before this line starts a thread: supervisors and containers are forked from here.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|a| a.to_str()) {
        Some("zygote") => zygote(),
        _ => {
            eprintln!("berth-step: this program is started by berth itself; see 'berth --help'");
            ExitCode::from(2)
        }
    }
}

/// The agent's socket is standard input.
fn zygote() -> ExitCode {
    match rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3) {
        Ok(socket) => ExitCode::from(u8::try_from(berth_step::zygote::run(socket)).unwrap_or(1)),
        Err(e) => {
            eprintln!("berth-step: standard input is not the agent's socket: {e}");
            ExitCode::from(2)
        }
    }
}
