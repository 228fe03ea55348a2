//! `berth up`: starts a cluster of this machine.

use super::{config, doctor};
use crate::daemon::{self, Part};
use crate::joined::Joined;
use crate::{scope, units};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::site::StateDir;
use berth_model::query::Status;
use berth_rpc::{Client, Endpoint};
use nix::sys::signal::Signal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// Start a cluster of this machine: a controller and an agent
///
/// On a machine that joined a cluster ('berth join') it starts the agent alone. As root it serves all users of the machine, with limits that the kernel enforces; as an ordinary user it is that
/// user's alone and needs no privilege. What runs already is left alone.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Come back when the cluster is up; without it, the cluster and its running jobs end with this command
    #[arg(long, short = 'd')]
    detach: bool,
    /// Configuration [default: berth.toml in the state directory]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = StateDir::named_or_own(state)?;
    daemon::check_place(&dir)?;
    if let Some(joined) = Joined::read(&dir)? {
        if args.config.is_some() {
            return Err(Failure::user(
                "--config: this machine has its configuration from the cluster that it joined: change berth.toml on the \
                 controller",
            ));
        }
        daemon::make_state(&dir)?;
        return super::join::start(&dir, &joined, args.detach, true);
    }
    let file = args.config.as_ref().map(|f| std::path::absolute(f).unwrap_or_else(|_| f.clone()));
    config::of(&dir, file.as_deref())?;
    let uid = nix::unistd::geteuid();
    if let Ok(None) = nix::unistd::User::from_uid(uid) {
        // The controller would answer nothing else.
        return Err(Failure::user(format!(
            "user id {uid} has no name on this machine, by which jobs run: 'getent passwd {uid}' must know it; add the user there, or \
             start the cluster as another one"
        )));
    }
    daemon::make_state(&dir)?;
    if args.detach && units::installed(Part::Controller, &dir) && units::installed(Part::Agent, &dir) {
        return start_units(&dir, file.as_deref());
    }
    let before = status(&dir);
    let (now, mut children) = start_missing(&dir, file.as_deref(), before.is_some())?;
    announce(&dir, &now, children.is_empty(), before.is_some())?;
    if args.detach || children.is_empty() {
        return Ok(0);
    }
    stay(&dir, &mut children)
}

/// Has systemd start what does not run.
fn start_units(dir: &StateDir, file: Option<&Path>) -> Outcome {
    if let Some(file) = file {
        return Err(Failure::user(format!(
            "--config {}: systemd starts the cluster: put the file at {}/berth.toml, or add --config to ExecStart of both units \
             (systemctl edit)",
            file.display(),
            dir.0.display()
        )));
    }
    let before = status(dir).is_some();
    let ran = before && daemon::pid_file(dir, Part::Agent).is_some();
    for part in
        [Part::Controller, Part::Agent].into_iter().filter(|part| daemon::pid_file(dir, *part).is_none())
    {
        let started = units::systemctl(&["start", units::name(part)]);
        started.map_err(|e| Failure::new(e.kind, format!("{}\n{}", e.text, units::tail(part))))?;
    }
    let now = wait(dir, &mut [], |s| lives(dir, s).then(|| s.clone()))?;
    announce(dir, &now, ran, before)?;
    Ok(0)
}

/// Starts what does not run and waits until the agent is connected; says what it started.
pub fn start_missing(
    dir: &StateDir,
    config: Option<&Path>,
    controller_runs: bool,
) -> Result<(Status, Vec<(Part, Child)>), Failure> {
    let mut children = Vec::new();
    // What is started is born in the group of this process.
    if daemon::pid_file(dir, Part::Agent).is_none()
        && let Err(e) = scope::enter(dir)
    {
        out::complain(&format!("berth: warning: the cluster has no control group of its own: {e}"));
    }
    if !controller_runs {
        children.push((Part::Controller, daemon::start(dir, Part::Controller, config)?));
    }
    wait(dir, &mut children, |s| Some(s.clone()))?;
    if daemon::pid_file(dir, Part::Agent).is_none() {
        children.push((Part::Agent, daemon::start(dir, Part::Agent, config)?));
    }
    // The controller may still hold an agent for connected that was killed a moment ago; the new one tells its pid.
    let now = wait(dir, &mut children, |s| lives(dir, s).then(|| s.clone()))?;
    Ok((now, children))
}

/// Whether this machine's agent runs and is connected.
fn lives(dir: &StateDir, status: &Status) -> bool {
    let Some((_, own)) = daemon::agent(dir) else { return false };
    status.agents.iter().any(|a| a.connected && own.as_ref().is_none_or(|own| *own == a.node))
}

/// The status of a controller that answers.
pub fn status(dir: &StateDir) -> Option<Status> {
    let endpoint = Endpoint::Unix(dir.controller_socket());
    berth_client::block_on(async { Ok(Client::connect(&endpoint).await?.status().await?) }).ok()
}

/// Waits until the controller says what is waited for, or a daemon that we started ends.
fn wait<T>(
    dir: &StateDir,
    children: &mut [(Part, Child)],
    seen: impl Fn(&Status) -> Option<T>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(found) = status(dir).as_ref().and_then(&seen) {
            return Ok(found);
        }
        for (part, child) in children.iter_mut() {
            if let Ok(Some(how)) = child.try_wait() {
                return Err(failed(dir, *part, &format!("ended at once ({how})")));
            }
        }
        if Instant::now() > deadline {
            let part = children.last().map_or(Part::Agent, |(p, _)| *p);
            return Err(failed(dir, part, &format!("does not answer within {} s", PATIENCE.as_secs())));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

fn failed(dir: &StateDir, part: Part, what: &str) -> Failure {
    let log = crate::log::path(dir, part);
    let tail = daemon::tail(&log, 5);
    // Then there was no room for the log's last words either.
    let full = daemon::full_disk(dir).map(|why| format!("{why}\n")).unwrap_or_default();
    Failure::new(
        Kind::Internal,
        format!("the {} {what}; {full}the end of its log {}:\n{tail}", part.name(), log.display()),
    )
}

fn announce(
    dir: &StateDir,
    status: &Status,
    nothing_started: bool,
    controller_ran: bool,
) -> Result<(), Failure> {
    let own = daemon::agent(dir).and_then(|(_, own)| own);
    let (own, others) = match own {
        Some(own) => (own.to_string(), status.agents.len().saturating_sub(1)),
        None => (status.agents.iter().map(|a| a.node.to_string()).collect::<Vec<_>>().join(","), 0),
    };
    let others = match others {
        0 => String::new(),
        1 => " and 1 other".to_string(),
        n => format!(" and {n} others"),
    };
    let how = match (nothing_started, controller_ran) {
        (true, _) => "is already up",
        (false, true) => "is up again (the controller was already up, the agent was started)",
        _ => "is up",
    };
    // Not the directory's owner: whoever made that need not be who started the cluster.
    let owner = std::fs::metadata(format!("/proc/{}", status.pid))
        .map_or_else(|_| nix::unistd::geteuid().as_raw(), |m| m.uid());
    let mode = if owner == 0 { "system mode" } else { "user mode" };
    out::print(&format!(
        "The cluster in {} {how}: controller pid {}, node {own}{others} ({mode}). Stop it with: berth down{}\n",
        dir.0.display(),
        status.pid,
        if StateDir::own().is_ok_and(|own| own == *dir) {
            String::new()
        } else {
            format!(" --state {}", dir.0.display())
        }
    ))?;
    if owner != nix::unistd::geteuid().as_raw() {
        // What its owner may enforce cannot be seen from here.
        return Ok(());
    }
    for line in doctor::not_enforced() {
        out::complain(&format!("berth: warning: {line}"));
    }
    Ok(())
}

/// Stays until a signal, then ends what was started.
pub fn stay(dir: &StateDir, children: &mut [(Part, Child)]) -> Outcome {
    use nix::sys::signal::SigSet;
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let fault = |e: nix::errno::Errno| Failure::new(Kind::Internal, format!("cannot handle signals: {e}"));
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().map_err(fault)?;
    let signals =
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(fault)?;
    out::complain("berth: Ctrl-C ends the cluster");
    loop {
        if signals.read_signal().map_err(fault)?.is_some() {
            break;
        }
        for (part, child) in children.iter_mut() {
            if let Ok(Some(how)) = child.try_wait() {
                let failure = failed(dir, *part, &format!("ended ({how})"));
                super::down::stop(dir)?;
                return Err(failure);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    super::down::end_jobs(dir)?;
    super::down::stop(dir)?;
    for (_, child) in children {
        // Their end was waited for; this takes their exit codes.
        let _ = child.wait();
    }
    Ok(0)
}
