//! Starts of wide steps, from node to node: the head of a branch hands to others what the controller signed for them, and a node takes what is
//! signed for it, whoever brings it. Nothing is reported: the controller hears of each node by that node's own link, or tells it itself.

use super::Peers;
use crate::driver::Input;
use berth_agent_core::AgentEvent;
use berth_model::carry::Carry;
use berth_rpc::Bringer;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Nodes to which this one hands something at the same time: a handshake takes the time of a processor, and the step's own start goes on.
pub(super) const HANDING: usize = 16;
/// Nodes that bring something at the same time: what one of them brings may be as long as a job's environment. Who finds no place does no
/// harm; the controller says itself what is missing.
pub(super) const TAKING: usize = 8;
/// How long a branch is carried: later the controller has told everybody itself.
const BRANCH: Duration = Duration::from_secs(2);

impl Peers {
    /// Hands to other nodes what is for them, while everything else goes on.
    pub(crate) fn carry(self: &Arc<Self>, carry: Carry) {
        let Some(identity) = self.identity() else { return };
        let (peers, carry) = (Arc::clone(self), Arc::new(carry));
        tokio::spawn(async move {
            let mut handing = JoinSet::new();
            for at in 0..carry.to.len() {
                let (peers, identity, carry) =
                    (Arc::clone(&peers), Arc::clone(&identity), Arc::clone(&carry));
                handing.spawn(async move {
                    let (Ok(_turn), Some(to)) = (peers.handing.acquire().await, carry.to.get(at)) else {
                        return None;
                    };
                    let handed = identity.hand_over(&carry, to, peers.controller.as_deref()).await;
                    handed.err().map(|e| format!("{}: {e}", to.address))
                });
            }
            let mut failed = Vec::new();
            let all = async {
                while let Some(done) = handing.join_next().await {
                    failed.extend(done.ok().flatten());
                }
            };
            // What is not done by then is given up with the set.
            let _ = tokio::time::timeout(BRANCH, all).await;
            if let Some(first) = failed.first() {
                let count = failed.len();
                tracing::info!(
                    "starts of a step that are not handed on, the controller sends them: {count}; the first: {first}"
                );
            }
        });
    }

    /// Takes what another node brings.
    pub(super) async fn take_start(&self, bringer: Bringer) -> Result<(), String> {
        let Ok(_place) = self.taking.try_acquire() else {
            return Err(format!("{TAKING} others bring starts of steps at this moment"));
        };
        let carried = bringer.take(&self.node).await;
        let carried =
            carried.map_err(|e| format!("the start of a step that it brings counts for nothing: {e}"))?;
        if let Some(inputs) = self.inputs.get() {
            // An error means that the agent ends.
            let _ = inputs.send(Input::Core(AgentEvent::Carried(Box::new(carried))));
        }
        Ok(())
    }
}
