//! Steps that are killed: by their supervisors, by their control groups where these do not answer, and supervisors that do not end
//! themselves. Of a step that never came to run it is looked first what it waits for: nobody could say it afterwards.

use super::Driver;
use crate::left;
use berth_agent_core::SupervisorEvent;
use berth_model::ids::StepKey;
use berth_model::launch::StepPhase;
use berth_runtime::cgroup::Cgroup;
use berth_step::control::ToSupervisor;
use berth_step::spool::{StateFile, StepDir};
use std::time::Duration;

/// How long a supervisor may take to kill all of its step, which it does better than anybody else.
const ITSELF: Duration = Duration::from_secs(2);
/// How long it may be looked what a step waits for: what hangs must keep nothing from being killed.
const LOOK: Duration = Duration::from_secs(1);

impl Driver {
    /// Kills a step.
    pub(super) fn kill(&self, key: StepKey) {
        let group = self.groups.get(&key).cloned();
        if let Some(group) = group.clone() {
            tokio::spawn(async move {
                tokio::time::sleep(ITSELF).await;
                let _ = tokio::task::spawn_blocking(move || group.kill()).await;
            });
        }
        let Some(state) = self.alive(key).filter(|state| state.phase == StepPhase::Starting) else {
            return self.command(key, ToSupervisor::Kill);
        };
        let (registry, supervised) = (self.node.registry.clone(), self.supervised.clone());
        tokio::spawn(async move {
            let look = move || left::waiting(of_start(group.as_ref(), state.pid));
            let looked = tokio::time::timeout(LOOK, tokio::task::spawn_blocking(look)).await;
            if let Ok(Ok(Some(what))) = looked {
                tracing::warn!("step {key} is killed before its tasks run: {what}");
                // Before the word of its end, which comes by the same way.
                let _ = supervised.send((key, SupervisorEvent::Waits(what)));
            }
            registry.command(key, ToSupervisor::Kill);
        });
    }

    /// A supervisor that does not answer any more hangs itself, in a file of its user's most likely.
    pub(super) fn abandon(&self, key: StepKey) {
        if let Some(pid) = self.alive(key).and_then(|state| rustix::process::Pid::from_raw(state.pid)) {
            tracing::error!(
                "step {key} does not end although it was killed: killing its supervisor {}",
                pid.as_raw_nonzero()
            );
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// What a step's supervisor says of itself, if it lives.
    fn alive(&self, key: StepKey) -> Option<StateFile> {
        let state = StepDir::of(&self.node.paths.spool(), key).read_state().ok().flatten();
        state.filter(|state| state.supervisor_alive(&self.node.boot_id))
    }
}

/// Processes by which a step begins: what is in its group, the supervisor's children where there is none, and the supervisor.
fn of_start(group: Option<&Cgroup>, supervisor: i32) -> Vec<i32> {
    let children = || -> Vec<i32> {
        let text = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"));
        text.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    let mut all: Vec<i32> = group.map_or_else(children, Cgroup::processes);
    all.push(supervisor);
    all
}
