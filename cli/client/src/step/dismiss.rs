//! The end of a step that was made and that nobody is going to follow, because what is ours to do for it cannot be done. Its supervisors
//! would keep what they have to tell, and themselves, for a client that does not come: so one comes, ends them and hears them out.

use super::follow::Step;
use super::reach;
use super::stream::{self, NotAttached};
use berth_model::{NodeName, StepKey};
use berth_stream::asynchronous::{read_frame, write_frame};
use berth_stream::{Attach, Frame};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;
/// How long the nodes may take. One that is not reached is the controller's, and its supervisor waits a minute for a client.
const HEARD: Duration = Duration::from_secs(10);
/// Between two attempts to reach a node.
const AGAIN: Duration = Duration::from_millis(50);

/// Ends the step, and waits until nothing of it is left on the nodes that can be reached.
pub async fn dismiss(step: &Step) {
    // First: what has not begun on a node, or fetches its image there, is told of by nobody else.
    step.cancel(Some(SIGKILL)).await;
    let mut ends = JoinSet::new();
    reach::make_room(step.layout.nodes.len());
    for (at, node) in step.layout.nodes.iter().enumerate() {
        let key = step.parts.get(at).copied().unwrap_or(step.key);
        ends.spawn(end(step.socket.clone(), node.clone(), key));
    }
    let _ = timeout(HEARD, async { while ends.join_next().await.is_some() {} }).await;
}

/// Ends what a node has of the step, and comes back when that has told how it ended.
async fn end(socket: PathBuf, node: NodeName, key: StepKey) {
    let first = Frame::Attach(Attach::from(key));
    let mut stream = loop {
        match stream::attach(&socket, Some(&node), &first).await {
            Ok((stream, _)) => break stream,
            Err(NotAttached::Refused(_)) => return,
            Err(NotAttached::Away(_)) => sleep(AGAIN).await,
        }
    };
    // One that has ended already closes behind its last word: then there is nothing to kill, and all the same something to read.
    let _ = write_frame(&mut stream, &Frame::Signal(SIGKILL)).await;
    while let Ok(Some(frame)) = read_frame(&mut stream).await {
        if matches!(frame, Frame::StepExit(_)) {
            return;
        }
    }
}
