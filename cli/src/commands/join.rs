//! `berth join` and `berth leave`: makes this machine part of a cluster, and no part of it any more.

use crate::daemon::{self, Part};
use crate::joined::{self, Joined, Joining, Told};
use crate::units;
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::site::StateDir;
use berth_model::NodeName;
use berth_model::config::PORT;
use berth_model::member::{MemberRole, MemberState};
use berth_model::request::RefusalCode;
use berth_trust::JoinToken;
use std::path::Path;
use std::time::{Duration, Instant};

/// Join a cluster whose controller is on another machine
///
/// Makes a key on this machine, has the cluster's authority sign a certificate for it, and starts the agent. 'berth token
/// create' on the controller prints what to type. No file needs to be written on this machine, and no port opened.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The controller, as HOST or HOST:PORT
    #[arg(value_name = "ADDRESS")]
    address: String,
    /// What 'berth token create' printed; '-' reads it from standard input, so that no list of processes shows it
    #[arg(value_name = "TOKEN")]
    token: String,
    /// Come back when the node is connected; without it, the agent ends with this command. Where systemd runs the machine, the
    /// agent is made a service (berth-agent.service) that starts at each boot
    #[arg(long, short = 'd')]
    detach: bool,
    /// With --detach, start the agent as a process of this command's, not as the service of systemd's that it is otherwise where
    /// systemd runs the machine
    #[arg(long, requires = "detach")]
    no_systemd: bool,
    /// Name in the cluster [default: the machine's host name, whole, as 'hostname' prints it; no name service is asked for its domain]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Take this machine out of the cluster that it joined
///
/// After 'berth down'. The controller takes it out of the cluster, as by 'berth node remove' there, and its key is deleted. While
/// jobs have something on it, it stays. Where the controller cannot be reached, it leaves all the same, and 'berth node remove NAME'
/// there does the rest.
#[derive(Debug, clap::Args)]
pub struct Leave {}

/// How long the agent may take to be connected.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same where systemd starts it, which may wait for the network first.
const UNIT_PATIENCE: Duration = Duration::from_secs(90);

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = StateDir::named_or_own(state)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::user(
            "joining a cluster needs root: its jobs run as their users here; an ordinary user's own cluster is 'berth up'",
        ));
    }
    let token: JoinToken = token_text(&args.token)?.parse().map_err(|e| Failure::user(format!("{e}")))?;
    let address = with_port(&args.address)?;
    daemon::check_place(&dir)?;
    if let Some(joined) = Joined::read(&dir)? {
        return Err(Failure::user(format!(
            "this machine is {} of cluster '{}' at {} already: 'berth up' starts it, 'berth leave' takes it out",
            joined.name, joined.cluster, joined.address
        )));
    }
    if dir.0.join("db").exists() {
        return Err(Failure::user(format!(
            "{} has a cluster of its own: name another directory with --state, or move that one away",
            dir.0.display()
        )));
    }
    daemon::make_state(&dir)?;
    let name = NodeName(args.name.clone().unwrap_or_else(|| berth_agent::host_name().0));
    let joining = Joining { address, token, name, dir: &dir };
    let say = |text: &str| out::complain(&format!("berth: warning: {text}"));
    let (joined, member) = berth_client::block_on(async { joining.join(say).await })?;
    out::print(&format!(
        "{} joined cluster '{}' at {} as a {} node.\n",
        joined.name,
        joined.cluster,
        joined.address,
        match joined.role {
            MemberRole::Compute => "compute",
            MemberRole::Login => "login",
        }
    ))?;
    if joined.role == MemberRole::Compute {
        let hardware = berth_agent::hardware_in_words(&crate::own_path()?).map_err(Failure::user)?;
        out::print(&format!("{hardware}\n"))?;
    }
    if member == MemberState::Pending {
        out::print(&format!(
            "It waits for an administrator's word: 'berth node approve {}' on the controller.\n",
            joined.name
        ))?;
    }
    if args.detach && !args.no_systemd && units::usable() {
        if !units::installed(Part::Agent, &dir) {
            units::write(Part::Agent, &crate::own_path()?, Path::new(units::OWN), &dir)?;
            units::systemctl(&["daemon-reload"])?;
        }
        units::systemctl(&["enable", "--quiet", units::name(Part::Agent)])?;
    }
    start(&dir, &joined, args.detach, member == MemberState::Approved)
}

/// Has systemd start the agent, and waits until it is connected.
fn start_unit(dir: &StateDir, joined: &Joined, approved: bool) -> Outcome {
    let unit = units::name(Part::Agent);
    units::systemctl(&["start", "--no-block", unit])?;
    let deadline = Instant::now() + UNIT_PATIENCE;
    while approved && !berth_agent::is_connected(&dir.0) {
        let failed = units::state(Part::Agent) == "failed";
        if failed || Instant::now() > deadline {
            let text = format!(
                "{unit} {}; the end of its log (journalctl -u {unit}):\n{}",
                if failed {
                    "has failed".to_string()
                } else {
                    format!("is not connected within {} s and goes on trying", UNIT_PATIENCE.as_secs())
                },
                units::tail(Part::Agent)
            );
            let kind = if failed { Kind::Internal } else { Kind::Unreachable };
            return Err(Failure::new(kind, text));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    out::print(&format!("{} is up ({unit}). Stop it with: berth down\n", joined.name))?;
    Ok(0)
}

/// Starts the agent of a machine that has joined.
pub fn start(dir: &StateDir, joined: &Joined, detach: bool, approved: bool) -> Outcome {
    if let Some(pid) = daemon::pid_file(dir, Part::Agent) {
        out::print(&format!("{} is already up (agent pid {pid}).\n", joined.name))?;
        return Ok(0);
    }
    if detach && units::installed(Part::Agent, dir) {
        return start_unit(dir, joined, approved);
    }
    if let Err(e) = crate::scope::enter(dir) {
        out::complain(&format!("berth: warning: the node has no control group of its own: {e}"));
    }
    // One that was killed could not take back that it was connected. What cannot be removed is not there.
    let _ = std::fs::remove_file(berth_agent::Paths::new(&dir.0).connected());
    let mut child = daemon::start(dir, Part::Agent, None)?;
    let deadline = Instant::now() + PATIENCE;
    let log = crate::log::path(dir, Part::Agent);
    let lives = || daemon::pid_file(dir, Part::Agent).is_some() && berth_agent::is_connected(&dir.0);
    while approved && !lives() {
        if let Ok(Some(how)) = child.try_wait() {
            let text = format!(
                "the agent ended at once ({how}); the end of its log {}:\n{}",
                log.display(),
                daemon::tail(&log, 5)
            );
            return Err(Failure::new(Kind::Internal, text));
        }
        if Instant::now() > deadline {
            let text = format!(
                "the agent is not connected within {} s and goes on trying; the end of its log {}:\n{}",
                PATIENCE.as_secs(),
                log.display(),
                daemon::tail(&log, 5)
            );
            return Err(Failure::new(Kind::Unreachable, text));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    out::print(&format!("{} is up (agent pid {}). Stop it with: berth down\n", joined.name, child.id()))?;
    if detach {
        return Ok(0);
    }
    super::up::stay(dir, &mut [(Part::Agent, child)])
}

/// Leaves.
pub fn leave(_: &Leave, state: Option<&Path>) -> Outcome {
    let dir = StateDir::named_or_own(state)?;
    let Some(joined) = Joined::read(&dir).ok().flatten() else {
        // Half of it may be there.
        joined::leave(&dir).map_err(|_| Failure::user(format!("{} joined no cluster", dir.0.display())))?;
        return Err(Failure::user(format!("{} joined no cluster", dir.0.display())));
    };
    if let Some(pid) = daemon::pid_file(&dir, Part::Agent) {
        return Err(Failure::user(format!(
            "the agent of {} runs (pid {pid}): 'berth down' first",
            joined.name
        )));
    }
    // While there is a key to say it with.
    let told = berth_client::block_on(async { Ok(joined::tell(&dir, &joined).await) })?;
    let unheard = match told {
        Told::Left => None,
        Told::Unheard(why) => Some(why),
        Told::Stays(why) => return Err(Failure::new(Kind::Refused(RefusalCode::WrongState), why)),
    };
    joined::leave(&dir)?;
    if units::installed(Part::Agent, &dir) {
        units::systemctl(&["disable", "--quiet", "--now", units::name(Part::Agent)])?;
        if units::remove(Part::Agent, Path::new(units::OWN), &dir)? {
            units::systemctl(&["daemon-reload"])?;
        }
    }
    out::print(&format!("{} left cluster '{}'.\n", joined.name, joined.cluster))?;
    if let Some(why) = unheard {
        let name = &joined.name;
        out::complain(&format!(
            "berth: warning: the cluster was not told ({why}): where 'berth node ls' on the controller still has {name}, \
             'berth node remove {name}' there takes it out"
        ));
    }
    Ok(0)
}

fn token_text(argument: &str) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument.to_string());
    }
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|e| Failure::user(format!("the token cannot be read from standard input: {e}")))?;
    Ok(line)
}

/// `host`, `host:port`, `address`, `[address]:port`.
fn with_port(text: &str) -> Result<String, Failure> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Failure::user("an empty address: name the controller's machine, as HOST or HOST:PORT"));
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok(format!("[{text}]:{PORT}"));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !text.ends_with(']') => match port.parse::<u16>() {
            Ok(_) => Ok(text.to_string()),
            Err(_) => {
                Err(Failure::user(format!("address '{text}': '{port}' is no port; write HOST or HOST:PORT")))
            }
        },
        _ => Ok(format!("{text}:{PORT}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_the_port() {
        for (typed, whole) in [
            ("head", "head:7817"),
            ("head:1", "head:1"),
            ("10.0.0.1", "10.0.0.1:7817"),
            ("::1", "[::1]:7817"),
            ("[::1]", "[::1]:7817"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(with_port(typed).unwrap(), whole);
        }
        assert!(with_port("head:x").unwrap_err().text.contains("'x' is no port"));
        assert!(with_port(" ").is_err());
    }
}
