//! `berth-oci`: the OCI runtime command line as a program of its own, without the rest of Berth.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    berth_oci::main_by_name(std::env::args_os().collect())
}
