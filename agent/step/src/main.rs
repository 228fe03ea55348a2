//! The program as this package's own tests start it: linked dynamically. The one that is installed is built by package berth.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_step::program::main()
}
