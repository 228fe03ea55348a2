//! `berth install-units`: makes the daemons services of systemd.

use crate::daemon::Part;
use crate::joined::Joined;
use crate::units;
use berth_client::error::{Failure, Outcome};
use berth_client::out;
use berth_client::site::StateDir;
use std::path::{Path, PathBuf};

/// Have systemd run the daemons: write berth-controller.service and berth-agent.service
///
/// On a machine that joined a cluster it is the agent's alone ('berth join --detach' does it by itself). The units restart
/// what fails and start at each boot once they are enabled; stopping and restarting them ends no step. Where they are, 'berth
/// up --detach' and 'berth down' go by them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of which daemons [default: both; on a machine that joined a cluster the agent]
    #[arg(value_name = "DAEMON", value_parser = ["controller", "agent"])]
    daemons: Vec<String>,
    /// Write them there and tell systemd nothing: for those who make packages [default: /etc/systemd/system]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The program that they name [default: this one, where it is]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Stop, disable and remove them; steps run on
    #[arg(long)]
    remove: bool,
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = StateDir::named_or_own(state)?;
    let parts: Vec<Part> = [Part::Controller, Part::Agent]
        .into_iter()
        .filter(|part| args.daemons.is_empty() || args.daemons.iter().any(|name| name == part.name()))
        .collect();
    let parts = match Joined::read(&dir)? {
        Some(_) if args.daemons.is_empty() => vec![Part::Agent],
        Some(joined) if parts.contains(&Part::Controller) && !args.remove => {
            return Err(Failure::user(format!(
                "this machine is {} of cluster '{}', whose controller is at {}: it has an agent alone",
                joined.name, joined.cluster, joined.address
            )));
        }
        _ => parts,
    };
    let names: Vec<&str> = parts.iter().map(|part| units::name(*part)).collect();
    let to = args.dir.as_deref().unwrap_or(Path::new(units::OWN));
    let tell = args.dir.is_none();
    if tell && !units::usable() {
        return Err(Failure::user(
            "systemd does not run this machine, or you are not root: 'berth up --detach' starts the daemons without it, and \
             --dir DIR writes the units elsewhere",
        ));
    }
    if args.remove {
        return remove(&parts, to, tell, &dir);
    }
    let program = args.program.clone().map_or_else(crate::own_path, Ok)?;
    for part in &parts {
        let path = units::write(*part, &program, to, &dir)?;
        out::print(&format!("{}\n", path.display()))?;
    }
    if tell {
        crate::daemon::make_state(&dir)?;
        units::systemctl(&["daemon-reload"])?;
        out::print(&format!("Start now and at each boot: systemctl enable --now {}\n", names.join(" ")))?;
    }
    Ok(0)
}

fn remove(parts: &[Part], from: &Path, tell: bool, dir: &StateDir) -> Outcome {
    for part in parts.iter().rev() {
        let name = units::name(*part);
        if tell && units::installed(*part, dir) {
            units::systemctl(&["disable", "--now", name])?;
        }
        if units::remove(*part, from, dir)? {
            out::print(&format!("{} is removed.\n", from.join(name).display()))?;
        } else {
            out::print(&format!(
                "{} is not there, is another cluster's, or is not of berth's making.\n",
                from.join(name).display()
            ))?;
        }
    }
    if tell {
        units::systemctl(&["daemon-reload"])?;
    }
    Ok(0)
}
