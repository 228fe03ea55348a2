//! `gpus.kept_from`: control groups that are not the agent's, those of login sessions above all, in which no device opens that jobs are
//! given. It holds while there is no agent, too; what is in force is written down, so that the next one can undo it.

use crate::cgroups::tree_name;
use crate::paths::Paths;
use berth_runtime::cgroup::{CgroupFacts, Controller, DeviceKind, DeviceRule, Foreign};
use berth_step::spool::{read_json, write_json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often is looked whether a group is there that was not, or another one in its place.
const PAUSE: Duration = Duration::from_secs(2);

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    groups: Vec<String>,
    rules: Vec<DeviceRule>,
}

/// Groups and the devices that are kept from them.
pub struct Sessions {
    record: Record,
    /// By what the kernel's programs are found again.
    owner: String,
    /// Groups that were seen, as they were made, and whether they took it: one that did not is tried again, and told of once.
    done: Mutex<BTreeMap<String, (u64, bool)>>,
}

impl Sessions {
    /// Puts in force what is configured and undoes what an earlier agent had put in force and is not. `facts`: the agent's own groups.
    pub fn begin(
        state: &Path,
        groups: &[String],
        devices: Vec<DeviceRule>,
        facts: &CgroupFacts,
    ) -> Arc<Sessions> {
        let file = Paths::new(state).sessions();
        let earlier: Record = read_json(&file).unwrap_or_default();
        let groups = groups.iter().filter(|group| may_be(group, facts)).cloned().collect();
        let sessions = Sessions {
            record: Record { groups, rules: devices },
            owner: owner(state),
            done: Mutex::default(),
        };
        let record = &sessions.record;
        for group in &earlier.groups {
            let kept = record.groups.contains(group);
            let over = |rule: &&DeviceRule| !kept || !record.rules.contains(rule);
            let over: Vec<DeviceRule> = earlier.rules.iter().filter(over).copied().collect();
            // One that stays gets its new program in the place of the old one.
            if !kept || Foreign::named(group).is_some_and(|found| found.is_v1()) {
                release(group, &over, &sessions.owner);
            }
        }
        if record.groups.is_empty() {
            let _ = std::fs::remove_file(&file);
        } else if let Err(e) = write_json(&file, record) {
            tracing::error!("cannot write down in {} what is kept from sessions: {e}", file.display());
        }
        sessions.apply();
        Arc::new(sessions)
    }

    /// Whether there is anything to do.
    pub fn is_any(&self) -> bool {
        !self.record.groups.is_empty()
    }

    /// Puts it in force in groups that are there by now.
    fn apply(&self) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        for group in &self.record.groups {
            let Some(found) = Foreign::named(group) else { continue };
            let made = found.made();
            let before = done.get(group).copied().filter(|(known, _)| made == Some(*known));
            let (again, held) = (before.is_some(), before.is_some_and(|(_, holds)| holds));
            // A service manager that opens all devices to a group of v1 is not seen: such a list shows nothing of what is not on it.
            if made.is_none() || (held && !found.is_v1()) {
                continue;
            }
            let kept = found.keep(&self.record.rules, &self.owner);
            let holds = kept.is_ok();
            match kept {
                // Said once, and again when it has changed.
                _ if again && holds == held => {}
                Ok(()) => {
                    tracing::info!("{}: no device that jobs are given opens there", found.dir().display())
                }
                Err(e) => tracing::error!("gpus.kept_from: {e}; devices of jobs open in {group}"),
            }
            done.extend(made.map(|made| (group.clone(), (made, holds))));
        }
    }

    /// Looks again and again, as sessions' groups come with the first session.
    pub async fn keep(self: Arc<Sessions>) {
        while self.is_any() {
            tokio::time::sleep(PAUSE).await;
            let sessions = Arc::clone(&self);
            let _ = tokio::task::spawn_blocking(move || sessions.apply()).await;
        }
    }
}

/// Undoes what an agent that is gone had put in force.
pub fn undo(state: &Path) {
    let file = Paths::new(state).sessions();
    let Ok(earlier) = read_json::<Record>(&file) else { return };
    earlier.groups.iter().for_each(|group| release(group, &earlier.rules, &owner(state)));
    let _ = std::fs::remove_file(file);
}

/// The rules for these device files, and for all of a driver's by its major number.
pub fn rules(files: impl Iterator<Item = DeviceRule>, major: Option<u32>) -> Vec<DeviceRule> {
    let whole =
        |major| DeviceRule { kind: DeviceKind::Char, major: Some(major), minor: None, make_only: false };
    let mut rules: Vec<DeviceRule> = files.collect();
    rules.extend(major.map(whole));
    rules
}

fn release(group: &str, rules: &[DeviceRule], owner: &str) {
    let Some(found) = Foreign::named(group) else { return };
    if let Err(e) = found.release(rules, owner) {
        tracing::error!("devices that were kept from {group} are not given back: {e}");
    }
}

/// Where the agent itself is, jobs would be without their devices.
fn may_be(group: &str, facts: &CgroupFacts) -> bool {
    let Some(found) = Foreign::named(group) else {
        tracing::error!(
            "gpus.kept_from: devices are not limited on this node, so nothing is kept from {group}"
        );
        return false;
    };
    let own: Option<&PathBuf> = facts.v1.get(&Controller::Devices).or(facts.v2.as_ref());
    let holds = own.is_some_and(|own| own.starts_with(found.dir()));
    if holds {
        tracing::error!(
            "gpus.kept_from: the agent and its jobs are in {} themselves, so nothing is kept from it: start the agent as a \
             service (berth install-units)",
            found.dir().display()
        );
    }
    !holds
}

/// The name of the tree of this state directory, as programs are called.
fn owner(state: &Path) -> String {
    tree_name(state).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_from_the_agents_own_group() {
        let Some(found) = Foreign::named("a.slice") else { return };
        let below = |dir: &Path| {
            let dir = dir.join("b.service");
            CgroupFacts {
                v2: Some(dir.clone()),
                v1: [(Controller::Devices, dir)].into(),
                ..CgroupFacts::default()
            }
        };
        assert!(!may_be("a.slice", &below(found.dir())));
        assert!(may_be("a.slice", &below(&found.dir().with_file_name("b.slice"))));
        assert_eq!(owner(Path::new("/x")).len(), 14);
    }

    #[test]
    fn a_driver_is_kept_whole_by_its_major_number() {
        let one = DeviceRule { kind: DeviceKind::Char, major: Some(195), minor: Some(0), make_only: false };
        let all = rules([one].into_iter(), Some(239));
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["c 195:0 rwm", "c 239:* rwm"]);
    }
}
