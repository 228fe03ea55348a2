//! `berth backup`: saves a cluster's records, keys and configuration in one file.

use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::site::StateDir;
use std::path::{Path, PathBuf};

/// Save a cluster's records, keys and configuration in one file
///
/// The cluster may run: the file has everything that was acknowledged before. It holds keys, so that it is readable for its
/// owner alone (0600). It is written whole or not at all; what had its name is replaced.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file
    file: PathBuf,
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = StateDir::named_or_own(state)?;
    let saved =
        berth_controller::backup::backup(&dir.0, &args.file, berth_client::VERSION, berth_client::now())
            .map_err(|e| Failure::new(Kind::Configuration, e.to_string()))?;
    let bytes: u64 = saved.members.iter().map(|m| m.size).sum();
    out::print(&format!(
        "{}: cluster '{}' with {} files, {} KiB; the next job is {}\n",
        args.file.display(),
        saved.cluster,
        saved.members.len(),
        bytes.div_ceil(1024),
        saved.next_job
    ))?;
    Ok(0)
}
