//! `berth status`: shows the controller and the agents.

use crate::daemon;
use berth_client::error::{Failure, Outcome};
use berth_client::fmt::time;
use berth_client::out;
use berth_client::site::Site;
use berth_model::NodeName;
use berth_model::query::Status;
use serde_json::json;
use std::path::Path;

/// Show the controller and the agents of a cluster
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let site = Site::find(state)?;
    let (status, jobs) = berth_client::block_on(async {
        let client = site.connect().await?;
        let status = client.status().await?;
        let jobs = client.jobs(&Default::default()).await?;
        Ok::<_, Failure>((status, jobs))
    })?;
    let running = jobs.iter().filter(|j| j.started.is_some()).count();
    let waiting = jobs.len() - running;
    // Of this machine's; pids of others mean nothing here.
    let own = site.state.as_ref().and_then(daemon::agent);
    let pid =
        |node: &NodeName| own.as_ref().filter(|(_, name)| name.as_ref() == Some(node)).map(|(pid, _)| *pid);
    if args.json {
        return out::print(&document(&status, pid, running, waiting)).map(|()| 0);
    }
    let now = berth_client::now();
    let mut text = format!(
        "controller  pid {}, version {}, up {}, state {}\n",
        status.pid,
        status.version,
        time::short(now.since(status.since)),
        status.state_dir.display()
    );
    for a in &status.agents {
        let pid = pid(&a.node).map_or(String::new(), |p| format!("pid {p}, "));
        let state = if a.connected { "connected" } else { "not in touch" };
        text.push_str(&format!("agent       node {}, {pid}version {}, {state}\n", a.node, a.version));
    }
    if status.agents.is_empty() {
        text.push_str("agent       none has registered yet; see log/agent.log in the state directory\n");
    }
    text.push_str(&format!("jobs        {running} running, {waiting} waiting\n"));
    if !status.accepting {
        text.push_str("            no new jobs are taken\n");
    }
    for alarm in &status.alarms {
        text.push_str(&format!("alarm       {alarm}\n"));
    }
    out::print(&text).map(|()| 0)
}

fn document(
    status: &Status,
    pid: impl Fn(&NodeName) -> Option<i32>,
    running: usize,
    waiting: usize,
) -> String {
    let agents: Vec<_> = status
        .agents
        .iter()
        .map(|a| {
            json!({
                "node": a.node, "pid": pid(&a.node), "version": a.version,
                "state": if a.connected { "connected" } else { "lost" },
                "started": a.started.map(|t| t.secs()),
            })
        })
        .collect();
    let doc = json!({
        "controller": {
            "pid": status.pid, "version": status.version, "state": "up", "since": status.since.secs(),
            "state_dir": status.state_dir, "accepting": status.accepting,
        },
        "agents": agents,
        "jobs": {"running": running, "waiting": waiting},
        "alarms": status.alarms,
    });
    serde_json::to_string_pretty(&doc).unwrap_or_default() + "\n"
}
