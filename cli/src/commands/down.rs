//! `berth down`: stops the cluster of this machine.

use super::up;
use crate::daemon::{self, Part};
use crate::joined::Joined;
use crate::units;
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::site::{Site, StateDir};
use berth_model::query::JobQuery;
use berth_model::request::CancelRequest;
use berth_model::spec::JobSelector;
use berth_model::state::JobState;
use berth_rpc::{Client, Endpoint};
use std::path::Path;
use std::time::{Duration, Instant};

/// Stop the cluster of this machine
///
/// Jobs that run are ended first; jobs that wait stay in the queue for the next 'berth up'.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Let running steps go on: the next 'berth up' finds them again (for upgrades)
    #[arg(long)]
    keep_jobs: bool,
}

/// How long a daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long the agent may take to remove what ended jobs left on the disk.
const SWEEPING: Duration = Duration::from_secs(5);

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = match StateDir::named(state)? {
        Some(dir) => dir,
        None => Site::find(None).ok().and_then(|site| site.state).map_or_else(StateDir::own, Ok)?,
    };
    // Before any job is ended: somebody else's cluster stays as it is.
    for part in [Part::Agent, Part::Controller] {
        if let Some(pid) = daemon::pid_file(&dir, part) {
            daemon::may_stop(pid, part)?;
        }
    }
    if let Some(joined) = Joined::read(&dir)? {
        return stop_node(&dir, &joined, args.keep_jobs);
    }
    let mut revived = Vec::new();
    if !args.keep_jobs {
        // Steps outlive agent and controller: only these can end them and put the end on record.
        let whole = [Part::Agent, Part::Controller].iter().all(|p| daemon::pid_file(&dir, *p).is_some());
        if !whole && berth_agent::holds_steps(&dir.0) {
            out::complain("berth: steps run on without their agent or controller: starting it to end them");
            revived = up::start_missing(&dir, None, up::status(&dir).is_some())?.1;
        }
        end_jobs(&dir)?;
    }
    let stopped = stop(&dir)?;
    for (_, mut child) in revived {
        // Its end was waited for; this takes its exit code.
        let _ = child.wait();
    }
    // An agent that was killed could not take away what it had made.
    berth_agent::remove_groups(&dir.0);
    if let Err(e) = berth_agent::release_memory(&dir.0, !args.keep_jobs) {
        out::complain(&format!(
            "berth: warning: {} keeps a tmpfs mounted: {e}; unmount it before you remove the directory",
            dir.0.display()
        ));
    }
    if stopped {
        out::print(&format!("The cluster in {} is down.\n", dir.0.display()))?;
    } else {
        out::print(&format!("No cluster runs in {}.\n", dir.0.display()))?;
    }
    Ok(0)
}

/// Stops the agent of a machine that joined a cluster. Its jobs are the controller's to end.
fn stop_node(dir: &StateDir, joined: &Joined, keep_jobs: bool) -> Outcome {
    if !keep_jobs && berth_agent::holds_steps(&dir.0) {
        return Err(Failure::user(format!(
            "steps run on {}: 'scontrol update NodeName={} State=DRAIN Reason=...' on the controller lets them end, and \
             'berth down --keep-jobs' stops the agent alone",
            joined.name, joined.name
        )));
    }
    let stopped = stop(dir)?;
    berth_agent::remove_groups(&dir.0);
    if let Err(e) = berth_agent::release_memory(&dir.0, !keep_jobs) {
        out::complain(&format!(
            "berth: warning: {} keeps a tmpfs mounted: {e}; unmount it before you remove the directory",
            dir.0.display()
        ));
    }
    out::print(&format!("{} is {}down.\n", joined.name, if stopped { "" } else { "already " }))?;
    Ok(0)
}

/// Ends the jobs that run, where a controller answers.
pub fn end_jobs(dir: &StateDir) -> Result<(), Failure> {
    let endpoint = Endpoint::Unix(dir.controller_socket());
    let ended = berth_client::block_on(async {
        let client = Client::connect(&endpoint).await?;
        cancel_and_wait(&client).await
    });
    match ended {
        Err(e) if e.kind == Kind::Unreachable => return Ok(()),
        other => other?,
    }
    // The jobs are over for the controller; the agent is still taking away what they left.
    let deadline = Instant::now() + SWEEPING;
    while !berth_agent::is_swept(&dir.0)
        && daemon::pid_file(dir, Part::Agent).is_some()
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Cancels what has nodes and waits until it is gone.
async fn cancel_and_wait(client: &Client) -> Result<(), Failure> {
    let kill_wait = u64::from(client.config().await?.kill_wait_seconds);
    let deadline = Instant::now() + Duration::from_secs(kill_wait + 10);
    let mut told = false;
    loop {
        let jobs = client.jobs(&JobQuery::default()).await?;
        let holding: Vec<_> =
            jobs.iter().filter(|j| j.state != JobState::Pending && !j.state.is_terminal()).collect();
        if holding.is_empty() {
            return Ok(());
        }
        let running: Vec<_> = holding
            .iter()
            .filter(|j| j.state != JobState::Completing)
            .map(|j| (JobSelector::Job(j.id), None))
            .collect();
        if !told {
            told = true;
            out::complain(&format!(
                "berth: ending {} running jobs ('--keep-jobs' would let them go on)",
                holding.len()
            ));
        }
        if !running.is_empty() {
            client.cancel(&CancelRequest { jobs: running, ..CancelRequest::default() }).await?;
        }
        if Instant::now() > deadline {
            out::complain("berth: warning: some jobs do not end; their processes are left to the kernel");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ends agent and controller; whether there was anything to end.
pub fn stop(dir: &StateDir) -> Result<bool, Failure> {
    let mut any = false;
    for part in [Part::Agent, Part::Controller] {
        if units::installed(part, dir) && units::state(part) != "inactive" {
            // Also one that failed and would be started again.
            any = true;
            units::systemctl(&["stop", units::name(part)])?;
        }
        if let Some(pid) = daemon::pid_file(dir, part) {
            any = true;
            daemon::stop(pid, part, PATIENCE)?;
        }
    }
    Ok(any)
}
