//! `berth down`: stops the cluster of this machine.

use crate::daemon::{self, Part};
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

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = match StateDir::named(state)? {
        Some(dir) => dir,
        None => Site::find(None).ok().and_then(|site| site.state).map_or_else(StateDir::own, Ok)?,
    };
    let endpoint = Endpoint::Unix(dir.controller_socket());
    if !args.keep_jobs {
        let ended = berth_client::block_on(async {
            let client = Client::connect(&endpoint).await?;
            end_jobs(&client).await
        });
        match ended {
            Err(e) if e.kind == Kind::Unreachable => {}
            other => other?,
        }
    }
    let stopped = stop(&dir)?;
    // An agent that was killed could not take away what it had made.
    berth_agent::remove_groups(&dir.0);
    if stopped {
        out::print(&format!("The cluster in {} is down.\n", dir.0.display()))?;
    } else {
        out::print(&format!("No cluster runs in {}.\n", dir.0.display()))?;
    }
    Ok(0)
}

/// Cancels what has nodes and waits until it is gone.
async fn end_jobs(client: &Client) -> Result<(), Failure> {
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
        if let Some(pid) = daemon::pid_file(dir, part) {
            any = true;
            daemon::stop(pid, part, PATIENCE)?;
        }
    }
    Ok(any)
}
