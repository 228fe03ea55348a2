//! Steps of an agent that is a service of systemd, where control groups are v2 alone. systemd takes a unit's group with the unit, and puts no
//! process into one that is divided; so what jobs have is in a scope beside the service. A process of ours keeps it while no step
//! does; steps keep it while there is no agent.

use crate::cgroups::tree_name;
use crate::start::{AgentError, AgentOptions, doing};
use crate::zygote::Zygote;
use berth_runtime::cgroup::{CgroupFacts, LEAF, Unified, into_leaf};
use berth_runtime::systemd;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long systemd may take; one that stops has to be done with its last process first.
const PATIENCE: Duration = Duration::from_secs(20);

/// The scope, for as long as the agent has it.
pub struct Scope {
    /// Its groups.
    pub facts: CgroupFacts,
    /// Whoever keeps it.
    _keeper: Zygote,
}

impl Scope {
    /// Takes it; none where the unit's own groups serve, because v1 controllers hold the limits, or systemd does not run here.
    ///
    /// # Errors
    /// systemd gives none.
    pub fn take(options: &AgentOptions) -> Result<Option<Scope>, AgentError> {
        if Unified::detect().is_none() {
            return Ok(None);
        }
        if let Some(why) = systemd::missing() {
            return Err(AgentError::Scope(why));
        }
        let name = format!("{}.scope", tree_name(&options.state_dir));
        let description = format!("Steps of Berth's jobs, by the agent of {}", options.state_dir.display());
        let found = Arc::new(OnceLock::new());
        let seen = Arc::clone(&found);
        let settle = move |pid: u32| {
            systemd::take_scope(&name, &description, LEAF, pid, PATIENCE).map_err(io::Error::other)?;
            let facts = CgroupFacts::of(&pid.to_string());
            into_leaf(&facts, pid).map_err(io::Error::other)?;
            // It is the same place each time.
            let _ = seen.set(facts);
            Ok(())
        };
        let keeper = Zygote::start(options.step_program.clone(), Box::new(settle))
            .map_err(doing("cannot take a scope of systemd's for steps"))?;
        match found.get() {
            Some(facts) => Ok(Some(Scope { facts: facts.clone(), _keeper: keeper })),
            None => Err(AgentError::Scope("systemd did not say where it is".into())),
        }
    }
}
