//! Nodes that say nothing as a step begins, or are lost before its tasks run. A node that is silent may come back, and nothing restarts what runs there; but a step that
//! waits for one that it never heard of waits for nothing. A node whose agent is well and whose part of the step does not start is its
//! agent's affair, which gives that up (`start_timeout_seconds`).

use berth_model::NodeName;
use berth_model::launch::{StepExit, Usage};
use berth_model::state::ExitStatus;
use berth_model::time::Time;
use berth_rpc::Client;
use std::collections::BTreeSet;
use std::time::Duration;

/// When the controller is first asked about nodes that have not said anything yet. The pauses double from there.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// The longest of them.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// How long it may take to answer: signals wait meanwhile.
const ANSWER: Duration = Duration::from_secs(1);

/// Those of these nodes that the controller does not hear of either, or that are down. None where it does not answer.
pub(super) async fn silent(client: &Client, names: &[&str]) -> BTreeSet<NodeName> {
    let Ok(Ok(nodes)) = tokio::time::timeout(ANSWER, client.nodes()).await else { return BTreeSet::new() };
    let silent = nodes.into_iter().filter(|node| node.condition.not_responding || node.condition.down);
    silent.map(|node| node.name).filter(|name| names.contains(&name.0.as_str())).collect()
}

/// The end of a part that never began. `met`: there was a connection to it once.
pub(super) fn given_up(met: bool) -> StepExit {
    let why = if met {
        "the node was lost before the tasks of its part of the step began"
    } else {
        "the node has not answered since it was told to start its part of the step"
    };
    StepExit {
        status: ExitStatus { code: 1, signal: 0 },
        tasks: Vec::new(),
        oom: false,
        launch_error: Some(format!("{why}: see 'sinfo -R', and 'berth status' there")),
        ended_by: None,
        image: None,
        usage: Usage::default(),
        ended: Time(0),
    }
}
