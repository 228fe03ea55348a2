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
use tokio::task::JoinHandle;

/// When the controller is first asked about nodes that have not said anything yet. The pauses double from there.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// The longest of them.
const LONGEST: Duration = Duration::from_secs(30);

/// The pause behind one of this length.
pub(super) fn after(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST)
}

/// How long it may take to answer. Nothing waits for it; it is asked again.
const ANSWER: Duration = Duration::from_secs(20);

/// A question about nodes that is on its way, beside everything else.
pub(super) type Question = JoinHandle<BTreeSet<NodeName>>;

/// Asks which of these nodes the controller does not hear of either, or which are down.
pub(super) fn ask(client: &Client, names: Vec<NodeName>) -> Question {
    let client = client.clone();
    tokio::spawn(async move { silent(&client, names).await })
}

/// None where it does not answer: silence of the controller says nothing of nodes.
async fn silent(client: &Client, names: Vec<NodeName>) -> BTreeSet<NodeName> {
    let Ok(Ok(nodes)) = tokio::time::timeout(ANSWER, client.nodes_of(&names)).await else {
        return BTreeSet::new();
    };
    let names: BTreeSet<NodeName> = names.into_iter().collect();
    let silent = nodes.into_iter().filter(|node| node.condition.not_responding || node.condition.down);
    // A controller of an earlier version tells of all nodes.
    silent.map(|node| node.name).filter(|name| names.contains(name)).collect()
}

/// The answer to a question; never where none was asked.
pub(super) async fn answer(question: &mut Option<Question>) -> BTreeSet<NodeName> {
    match question {
        Some(question) => question.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_the_controller_misses_is_asked_after_within_half_a_minute() {
        let (mut looks, mut pause) = (vec![LOOK], LOOK);
        while looks.last().is_some_and(|at| at.as_secs() < 600) {
            pause = after(pause);
            looks.extend(looks.last().map(|at| *at + pause));
        }
        let longest = looks.windows(2).map(|two| two[1] - two[0]).max();
        assert_eq!(longest, Some(Duration::from_secs(30)));
        // As the user's guide has it: silent from the start, and missed after a minute.
        let named = looks.iter().find(|at| at.as_secs() >= 60);
        assert_eq!(named, Some(&Duration::from_secs(65)));
    }
}
