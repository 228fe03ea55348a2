//! `berth agent`: runs a node's agent in the foreground.

use crate::daemon::{self, Part};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::site::StateDir;
use std::path::{Path, PathBuf};

/// Run a node agent in the foreground ('berth up' starts one)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration of the cluster [default: berth.toml in the state directory]
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
    let config = super::config::of(&dir, args.config.as_deref())?;
    let images = berth_agent::store_place(&config.images, &dir.0)
        .map_err(|why| Failure::new(Kind::Configuration, why))?;
    let options = berth_agent::AgentOptions {
        state_dir: dir.0.clone(),
        node: None,
        system: nix::unistd::geteuid().is_root(),
        config,
        program: crate::own_path()?,
        step_program: daemon::step_program()?,
    };
    let _pid = daemon::PidFile::write(&dir, Part::Agent, Some(&images))?;
    daemon::serve(Box::pin(async move {
        berth_agent::run(options, Box::pin(daemon::ended_by_signal()?))
            .await
            .map_err(|e| Failure::new(Kind::Internal, e.to_string()))
    }))
}
