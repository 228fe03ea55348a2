//! One file per command. What several commands share is here: who asks, how time is shown, and lists.

pub mod sacct;
pub mod salloc;
pub mod sattach;
pub mod sbatch;
pub mod sbcast;
pub mod scancel;
pub mod scontrol;
pub mod sinfo;
pub mod squeue;
pub mod srun;
pub mod sstat;

use crate::error::Failure;
use crate::fmt::View;
use berth_model::called::Called;
use berth_model::record::NodeInfo;
use berth_model::stamp::TimeFormat;
use berth_model::state::JobState;
use berth_model::{NodeName, Time};
use berth_rpc::Client;
use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock.
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// How records are shown to this caller. The cluster's name is asked for only where it is printed.
pub(crate) async fn view(client: Option<&Client>) -> View {
    let format = std::env::var("SLURM_TIME_FORMAT").ok();
    let cluster = match client {
        Some(client) => client.config().await.map(|c| c.cluster).unwrap_or_default(),
        None => String::new(),
    };
    View {
        now: now(),
        zone: jiff::tz::TimeZone::system(),
        format: TimeFormat::from_env(format.as_deref()),
        cluster,
    }
}

/// Words separated by commas, empty ones left out.
pub(crate) fn words(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|w| !w.is_empty()).map(str::to_string).collect()
}

/// A job state by name or code, in any case.
pub(crate) fn job_state(text: &str) -> Option<JobState> {
    let wanted = text.to_ascii_uppercase();
    JobState::ALL.iter().copied().find(|s| s.name() == wanted || s.code() == wanted)
}

/// Nodes of a hostlist.
pub(crate) fn nodes(list: &str) -> Result<Vec<NodeName>, Failure> {
    berth_model::hostlist::nodes(list).map_err(|e| Failure::user(format!("Invalid node list specified: {e}")))
}

/// Nodes' names in the place of the full names of their machines.
pub fn meant(mut names: Vec<NodeName>, all: &[NodeInfo]) -> Vec<NodeName> {
    let called = Called::of(all.iter().map(|node| (&node.name, node.host_name.as_deref())));
    for name in &mut names {
        if !all.iter().any(|node| node.name == *name)
            && let Some(node) = called.node(name)
        {
            *name = node.clone();
        }
    }
    names
}

/// The same; the cluster is asked only where a name has a domain.
pub(crate) async fn found(client: &Client, names: Vec<NodeName>) -> Result<Vec<NodeName>, Failure> {
    if !names.iter().any(|name| name.0.contains('.')) {
        return Ok(names);
    }
    Ok(meant(names, &client.nodes().await?))
}

/// The command line, for records: arguments joined by blanks.
pub(crate) fn command_line(name: &str, args: &[std::ffi::OsString]) -> Vec<String> {
    std::iter::once(name.to_string()).chain(args.iter().map(|a| a.to_string_lossy().into_owned())).collect()
}
