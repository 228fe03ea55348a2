//! After a restart: the steps that an earlier agent left in the spool, with or without their supervisors.

use crate::driver::{KEPT, Kept, supervise};
use crate::jobs::{self, JobRecord};
use crate::paths::Paths;
use crate::registry::Registry;
use crate::supervisors;
use crate::used::Used;
use berth_agent_core::{Adopted, AdoptedPhase, SupervisorEvent};
use berth_model::ids::{JobId, StepKey};
use berth_model::launch::StepPhase;
use berth_model::time::Time;
use berth_runtime::JobNamespaces;
use berth_runtime::cgroup::Cgroup;
use berth_step::deadlines::Deadline;
use berth_step::spool::{self, LaunchFile, StepDir, read_json};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use tokio::sync::mpsc;

/// What was found.
pub struct Found {
    /// Steps, for the core.
    pub steps: Vec<Adopted>,
    /// Cgroups of steps that live.
    pub groups: BTreeMap<StepKey, Cgroup>,
    /// Jobs that have a directory.
    pub jobs: Vec<JobRecord>,
}

/// Looks through the spool and the job directories; what is of an earlier boot is removed.
pub async fn adopt(
    paths: &Paths,
    boot_id: &str,
    registry: &Registry,
    events: &mpsc::UnboundedSender<(StepKey, SupervisorEvent)>,
) -> io::Result<Found> {
    let mut found = Found { steps: Vec::new(), groups: BTreeMap::new(), jobs: Vec::new() };
    for (key, dir) in spool::scan(&paths.spool())? {
        let file = match dir.read_launch() {
            Ok(file) if file.launch.key == key && file.node.boot_id == boot_id => file,
            Ok(_) => {
                // No step outlives a reboot; the controller learns it from the new boot id.
                dir.remove()?;
                continue;
            }
            Err(e) => {
                // The agent ended before it had asked for a supervisor.
                tracing::warn!("step {key} was never started: {e}");
                dir.remove()?;
                continue;
            }
        };
        let Some(phase) = phase(&file, &dir, boot_id, registry, events).await? else {
            // Nothing of it ran, and the controller sends it again.
            tracing::warn!("step {key} was never started: the agent ended while its supervisor was made");
            if let Some(group) = &file.node.cgroup {
                clear(key, group);
            }
            dir.remove()?;
            continue;
        };
        tracing::info!("step {key} found: {}", word(&phase));
        match (&phase, file.node.cgroup) {
            (AdoptedPhase::Starting | AdoptedPhase::Running, Some(group)) => {
                found.groups.insert(key, group);
            }
            (_, Some(group)) => clear(key, &group),
            _ => {}
        }
        let Kept { timers, pull, renewals } = read_json(&dir.path().join(KEPT)).unwrap_or_default();
        let phase = match phase {
            AdoptedPhase::Exited(mut exit) => {
                exit.usage.gpu = exit.usage.gpu.or(Used::kept(&dir));
                AdoptedPhase::Exited(exit)
            }
            other => other,
        };
        found.steps.push(Adopted { launch: file.launch, timers, phase, pull, lease_known: renewals });
    }
    for record in jobs::scan(paths)? {
        crate::around::end_left(paths, Some(record.job));
        let has_steps = found.steps.iter().any(|s| s.launch.key.job == record.job);
        if record.boot_id == boot_id
            && !has_steps
            && !record.over
            && record.namespaces.is_some_and(|n| !n.are_held())
        {
            // The agent ended while it made the job: what holds its namespaces had not been told to stay. The controller
            // sends the first step again, and the job is made anew.
            tracing::warn!("job {} was never made to its end: removing what is there of it", record.job);
            if let Some(group) = &record.cgroup
                && let Err(e) = group.kill_and_remove(std::time::Duration::from_secs(10))
            {
                tracing::error!("job {}: {e}", record.job);
            }
            jobs::remove(paths, record.job)?;
        } else if record.boot_id == boot_id {
            // Of steps whose supervisor is gone, while no agent was there to see it.
            record.namespaces.iter().for_each(JobNamespaces::end_orphans);
            found.jobs.push(record);
        } else {
            jobs::remove(paths, record.job)?;
        }
    }
    jobs::sweep_scratch(paths, &found.jobs)?;
    Ok(found)
}

/// How far a step is; `None` when there never was a supervisor that came to say so, which each does first of all.
async fn phase(
    file: &LaunchFile,
    dir: &StepDir,
    boot_id: &str,
    registry: &Registry,
    events: &mpsc::UnboundedSender<(StepKey, SupervisorEvent)>,
) -> io::Result<Option<AdoptedPhase>> {
    let key = file.launch.key;
    let owner = (file.launch.identity.uid, file.launch.identity.gid);
    let found = supervisors::find(dir, boot_id).await?;
    if found.is_none() && matches!(dir.read_state(), Ok(None)) {
        return Ok(None);
    }
    registry.prepare(key, owner, file.launch.job.het.as_ref());
    if let Some((link, state)) = found {
        supervise(registry, key, owner, dir.clone(), link, events.clone());
        return Ok(Some(match state.phase {
            StepPhase::Exited(exit) => AdoptedPhase::Exited(exit),
            StepPhase::Running => AdoptedPhase::Running,
            StepPhase::Starting | StepPhase::Preparing(_) => AdoptedPhase::Starting,
        }));
    }
    Ok(Some(match dir.read_exit() {
        Ok(Some(exit)) => {
            registry.ended(key, &exit);
            AdoptedPhase::Exited(exit)
        }
        Ok(None) => AdoptedPhase::Gone,
        Err(e) => {
            tracing::error!("step {key}: {e}");
            AdoptedPhase::Gone
        }
    }))
}

/// Until when a run goes on out of touch, by its job's directory; absent: for ever. One of which that is written down and cannot be read has no time left:
/// the controller counts it as lost some time, and nobody here knows when.
pub fn deadline(job: JobId, dir: &Path) -> Option<Time> {
    match Deadline::of(dir) {
        Ok(found) => found.map(|deadline| deadline.until),
        Err(e) => {
            tracing::error!(
                "job {job}: {}, which says until when it may go on out of touch, cannot be read, and its steps here are ended: {e}",
                Deadline::file(dir).display()
            );
            Some(Time(0))
        }
    }
}

/// Ends what a supervisor that is gone could not end.
fn clear(key: StepKey, group: &Cgroup) {
    if let Err(e) = group.kill_and_remove(std::time::Duration::from_secs(10)) {
        tracing::error!("step {key}: {e}");
    }
}

fn word(phase: &AdoptedPhase) -> &'static str {
    match phase {
        AdoptedPhase::Starting => "starting",
        AdoptedPhase::Running => "running",
        AdoptedPhase::Exited(_) => "ended",
        AdoptedPhase::Gone => "its supervisor is gone",
    }
}

#[cfg(test)]
mod tests;
