//! berth-step: step supervisor, container init, and the client inside containers. It is a program of this package so that
//! both share every compiled dependency, and `cargo xtask build` links it statically.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_step::program::main()
}
