//! `cargo xtask`: builds both artefacts into one directory and checks licences and advisories.
#![forbid(unsafe_code)]

mod build;
mod elf;
mod licences;
mod spdx;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

commands:
  build [--debug]   build `berth` and the static `berth-step` into target/release
                    (with --debug: target/debug and target/debug/static)
  licences          check the licence of every dependency against the list in deny.toml, then the
                    advisory database where a tool for it is installed";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["build"] => build::run(build::Profile::Release),
        ["build", "--debug"] => build::run(build::Profile::Debug),
        ["licences"] => licences::run(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [] => Err(format!("no command given\n{USAGE}")),
        other => Err(format!("unknown command `{}`\n{USAGE}", other.join(" "))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Root of the workspace: the parent of this package's directory.
fn workspace() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

/// The cargo that runs us, so that a toolchain chosen by the caller is kept.
fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string())
}
