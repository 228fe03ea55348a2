//! Which steps have not ended, by what their supervisors wrote down: they do that before they tell their clients, and before the word of it
//! comes to the agent.

use super::{Driver, Input};
use berth_agent_core::AgentEvent;
use berth_model::ids::StepKey;
use berth_step::spool::StepDir;

impl Driver {
    /// Looks which of these steps have left no exit, beside everything else.
    pub(super) fn look_for_ends(&self, ask: u64, mut keys: Vec<StepKey>) {
        let (spool, inputs) = (self.node.paths.spool(), self.inputs.clone());
        tokio::task::spawn_blocking(move || {
            // What cannot be read is no end. One whose files are gone already is on the controller's record.
            keys.retain(|key| !matches!(StepDir::of(&spool, *key).read_exit(), Ok(Some(_))));
            let _ = inputs.send(Input::Core(AgentEvent::NotEnded { ask, keys }));
        });
    }
}
