//! `berth agent`: runs a node's agent in the foreground.

use crate::daemon::{self, Part};
use crate::joined::following::Following;
use crate::joined::{self, Joined};
use crate::{log, notify};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::site::StateDir;
use berth_model::config::{Config, Understood};
use berth_model::member::MemberRole;
use berth_rpc::{Remote, Uplink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Run a node's agent in the foreground ('berth up' and 'berth join' start one)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration of the cluster [default: berth.toml in the state directory]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As the service of systemd that it is: what jobs have is put where it outlives the service
    #[arg(long, hide = true)]
    service: bool,
    #[command(flatten)]
    log: log::Options,
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = daemon::enter(&args.log, state, Part::Agent)?;
    let member = match Joined::read(&dir)? {
        Some(joined) => Some((joined.remote(&dir)?, joined)),
        None => None,
    };
    let understood = match &member {
        None => {
            let config = super::config::of(&dir, args.config.as_deref())?;
            Understood { config, unknown: Vec::new() }
        }
        Some(_) if args.config.is_some() => {
            return Err(Failure::user(
                "--config: this machine has its configuration from the cluster that it joined: change berth.toml on the \
                 controller",
            ));
        }
        Some((remote, _)) => {
            let uplink = Uplink::Remote(Arc::clone(remote));
            notify::status("waits for the cluster's configuration from the controller");
            berth_client::block_on(joined::settings(&dir, &uplink))?
        }
    };
    put_in_force(&understood);
    match member {
        Some((remote, joined)) if joined.role == MemberRole::Login => login(dir, joined, remote),
        member => node(dir, understood, member, args),
    }
}

/// What of a configuration is the daemon's own affair, and a word about what it does not know.
fn put_in_force(understood: &Understood) {
    log::rules(&understood.config.logs);
    if !understood.unknown.is_empty() {
        tracing::warn!(
            "this version does not know what the controller has configured as {}: it goes without; upgrade it",
            understood.unknown.join(", ")
        );
    }
}

/// Serves the users of a login node.
fn login(dir: StateDir, joined: Joined, remote: Arc<Remote>) -> Outcome {
    let _pid = daemon::PidFile::write(&dir, Part::Agent, &joined.name, None)?;
    daemon::serve(Box::pin(async move {
        let name = joined.name.clone();
        let mut following = Following::of(&dir);
        let told = move |settings| {
            if let Some(understood) = following.hear(settings) {
                put_in_force(&understood);
            }
        };
        let keeping = tokio::spawn(joined::keep(dir.clone(), joined, Arc::clone(&remote)));
        let ended = berth_agent::login::run(
            (&dir.0, name, joined::peer_identity),
            Uplink::Remote(remote),
            Box::new(told),
            Box::pin(daemon::ended_by_signal()?),
            notify::ready,
        )
        .await;
        notify::stopping();
        keeping.abort();
        ended.map_err(|e| Failure::new(Kind::Internal, e.to_string()))
    }))
}

/// Runs jobs.
fn node(
    dir: StateDir,
    understood: Understood,
    member: Option<(Arc<Remote>, Joined)>,
    args: &Args,
) -> Outcome {
    let Understood { config, unknown } = understood;
    let images = berth_agent::store_place(&config.images, &dir.0)
        .map_err(|why| Failure::new(Kind::Configuration, why))?;
    let options = berth_agent::AgentOptions {
        state_dir: dir.0.clone(),
        node: member.as_ref().map(|(_, joined)| joined.name.clone()),
        system: nix::unistd::geteuid().is_root(),
        config,
        unknown,
        read_again: berth_agent::ReadAgain { file: args.config.clone(), read: read_config },
        uplink: member.as_ref().map(|(remote, _)| Uplink::Remote(Arc::clone(remote))),
        identity: joined::peer_identity,
        program: crate::own_path()?,
        step_program: daemon::step_program()?,
        service: args.service,
        ready: notify::ready,
    };
    let program = options.program.clone();
    let name = options.node.clone().unwrap_or_else(berth_agent::host_name);
    let _pid = daemon::PidFile::write(&dir, Part::Agent, &name, Some(&images))?;
    daemon::serve(Box::pin(async move {
        let keeping = member.map(|(remote, joined)| tokio::spawn(joined::keep(dir, joined, remote)));
        let ended = berth_agent::run(options, Box::pin(daemon::ended_by_signal()?)).await;
        if !matches!(ended, Ok(berth_agent::Ended::Reconfigured)) {
            notify::stopping();
        }
        if let Some(keeping) = keeping {
            keeping.abort();
        }
        match ended.map_err(|e| Failure::new(Kind::Internal, e.to_string()))? {
            berth_agent::Ended::Asked => Ok(()),
            berth_agent::Ended::Reconfigured => Err(start_again(&program)),
        }
    }))
}

/// Goes on as the same process with the other configuration: who waits for it, and its pid file, need not know. From here,
/// so that no thread is waited for which still fetches an image. Returns why that cannot be done.
fn start_again(program: &Path) -> Failure {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let failed = std::process::Command::new(program).args(words).exec();
    Failure::new(Kind::Internal, format!("cannot start {} again: {failed}", program.display()))
}

/// The configuration that would be read now, judged.
pub fn read_config(dir: &Path, file: Option<&Path>) -> Result<Config, String> {
    super::config::of(&StateDir(dir.to_path_buf()), file).map_err(|failure| failure.text)
}
