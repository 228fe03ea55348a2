//! `berth controller`: runs a controller in the foreground.

use crate::daemon;
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::site::StateDir;
use std::path::{Path, PathBuf};

/// Run a controller in the foreground ('berth up' starts one)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration [default: berth.toml in the state directory]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave the caller's session
    #[arg(long, hide = true)]
    background: bool,
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    if args.background {
        daemon::leave_session();
    }
    let dir = StateDir::named_or_own(state)?;
    daemon::make_state(&dir)?;
    daemon::log_to_stderr()?;
    let system = nix::unistd::geteuid().is_root();
    let options = berth_controller::ControllerOptions {
        state_dir: dir.0,
        config_path: args.config.clone(),
        system,
        read: super::agent::read_config,
    };
    daemon::serve(Box::pin(async move {
        // It minds SIGTERM and SIGINT by itself.
        berth_controller::run(options, Box::pin(std::future::pending()))
            .await
            .map_err(|e| Failure::new(Kind::Internal, e.to_string()))
    }))
}
