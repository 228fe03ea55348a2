//! `berth controller`: runs a controller in the foreground.

use crate::daemon::{self, Part};
use crate::{log, notify};
use berth_client::error::{Failure, Kind, Outcome};
use std::path::{Path, PathBuf};

/// Run a controller in the foreground ('berth up' starts one)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration [default: berth.toml in the state directory]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    log: log::Options,
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = daemon::enter(&args.log, state, Part::Controller)?;
    let system = nix::unistd::geteuid().is_root();
    let options = berth_controller::ControllerOptions {
        state_dir: dir.0,
        config_path: args.config.clone(),
        system,
        read: super::agent::read_config,
        ready: notify::ready,
        power_off: |fence| {
            let owner = nix::unistd::geteuid().as_raw();
            let program = fence.program.as_path();
            let node = (fence.cluster.as_str(), fence.node.0.as_str());
            berth_agent::around::fence(program, fence.seconds, node, owner, &fence.private)
        },
        in_force: |config| log::rules(&config.logs),
    };
    daemon::serve(Box::pin(async move {
        // It minds SIGTERM and SIGINT by itself.
        let ended = berth_controller::run(options, Box::pin(std::future::pending())).await;
        notify::stopping();
        ended.map_err(|e| Failure::new(Kind::Internal, e.to_string()))
    }))
}
