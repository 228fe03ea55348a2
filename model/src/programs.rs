//! `[programs]`: the administrator's programs around jobs and tasks.

use crate::bytes::ByteStr;
use serde::{Deserialize, Serialize};

/// `[programs]`. Paths are absolute and those of each node; an empty one stands for no program. Each has seconds that it may
/// take, after which it is killed and has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProgramsConfig {
    /// Runs on a node before anything of a job is started there.
    pub prolog: ByteStr,
    /// Seconds for it.
    pub prolog_seconds: u32,
    /// Runs on a node when the last process of a job is gone from it.
    pub epilog: ByteStr,
    /// Seconds for it.
    pub epilog_seconds: u32,
    /// Runs before each task, as its user and where it runs.
    pub task_prolog: ByteStr,
    /// Seconds for it, and for that of `srun --task-prolog`.
    pub task_prolog_seconds: u32,
    /// Runs after each task, likewise.
    pub task_epilog: ByteStr,
    /// Seconds for it, and for that of `srun --task-epilog`.
    pub task_epilog_seconds: u32,
    /// Runs before each step of an `srun`, where the `srun` is and as who called it.
    pub srun_prolog: ByteStr,
    /// Seconds for it, and for that of `srun --prolog`.
    pub srun_prolog_seconds: u32,
    /// Runs after each step of an `srun`, likewise.
    pub srun_epilog: ByteStr,
    /// Seconds for it, and for that of `srun --epilog`.
    pub srun_epilog_seconds: u32,
    /// Looks whether a node is well: one that fails drains it, one that passes later returns it.
    pub health_check: ByteStr,
    /// Seconds for it.
    pub health_check_seconds: u32,
    /// Seconds from the end of one to the next; 0 runs it only when the node's agent starts.
    pub health_check_interval_seconds: u32,
    /// On which nodes it runs.
    pub health_check_nodes: CheckedNodes,
    /// Reboots a machine (`scontrol reboot`).
    pub reboot: ByteStr,
    /// Seconds for the program itself.
    pub reboot_seconds: u32,
    /// Seconds for a machine to be back.
    pub reboot_timeout_seconds: u32,
    /// Powers a node off that was not heard of for too long: the controller runs it, with the node's name.
    pub fence: ByteStr,
    /// Seconds for it.
    pub fence_seconds: u32,
    /// Seconds without a word from a node's agent after which it runs.
    pub fence_after_seconds: u32,
}

/// `health_check_nodes`: what a node does while its health is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckedNodes {
    /// Whatever it does.
    #[default]
    Any,
    /// Nothing of a job is there.
    Idle,
    /// Something of a job is there.
    Allocated,
}

/// Seconds for a task prolog, where nothing else is said.
pub const TASK_PROLOG_SECONDS: u32 = 60;
/// Seconds for a task epilog, where nothing else is said.
pub const TASK_EPILOG_SECONDS: u32 = 10;

impl Default for ProgramsConfig {
    fn default() -> Self {
        ProgramsConfig {
            prolog: ByteStr::default(),
            prolog_seconds: 60,
            epilog: ByteStr::default(),
            epilog_seconds: 60,
            task_prolog: ByteStr::default(),
            task_prolog_seconds: TASK_PROLOG_SECONDS,
            task_epilog: ByteStr::default(),
            task_epilog_seconds: TASK_EPILOG_SECONDS,
            srun_prolog: ByteStr::default(),
            srun_prolog_seconds: 60,
            srun_epilog: ByteStr::default(),
            srun_epilog_seconds: 60,
            health_check: ByteStr::default(),
            health_check_seconds: 60,
            health_check_interval_seconds: 300,
            health_check_nodes: CheckedNodes::Any,
            reboot: REBOOT.into(),
            reboot_seconds: 60,
            reboot_timeout_seconds: 900,
            fence: ByteStr::default(),
            fence_seconds: 120,
            fence_after_seconds: 0,
        }
    }
}

/// What reboots a machine, where nothing else is said.
pub const REBOOT: &str = "/sbin/reboot";

/// Most seconds that a program may have: a day.
const MOST_SECONDS: u32 = 86_400;

impl ProgramsConfig {
    /// Programs and seconds, with the names of their keys.
    fn all(&self) -> [(&'static str, &ByteStr, u32); 9] {
        [
            ("prolog", &self.prolog, self.prolog_seconds),
            ("epilog", &self.epilog, self.epilog_seconds),
            ("task_prolog", &self.task_prolog, self.task_prolog_seconds),
            ("task_epilog", &self.task_epilog, self.task_epilog_seconds),
            ("srun_prolog", &self.srun_prolog, self.srun_prolog_seconds),
            ("srun_epilog", &self.srun_epilog, self.srun_epilog_seconds),
            ("health_check", &self.health_check, self.health_check_seconds),
            ("reboot", &self.reboot, self.reboot_seconds),
            ("fence", &self.fence, self.fence_seconds),
        ]
    }

    /// What of it is an agent's affair: programs of `srun` are run by `srun`, and fences by the controller.
    #[must_use]
    pub fn for_agents(&self) -> ProgramsConfig {
        let ProgramsConfig {
            srun_prolog,
            srun_prolog_seconds,
            srun_epilog,
            srun_epilog_seconds,
            fence,
            fence_seconds,
            fence_after_seconds,
            ..
        } = ProgramsConfig::default();
        ProgramsConfig {
            srun_prolog,
            srun_prolog_seconds,
            srun_epilog,
            srun_epilog_seconds,
            fence,
            fence_seconds,
            fence_after_seconds,
            ..self.clone()
        }
    }

    /// Programs that are configured, with the names of their keys. The usual one for reboots need not be there before it is run.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &ByteStr)> {
        let usual = |name: &str, path: &ByteStr| name == "reboot" && path.0 == REBOOT.as_bytes();
        self.all()
            .into_iter()
            .filter(move |(name, path, _)| !path.0.is_empty() && !usual(name, path))
            .map(|(name, path, _)| (name, path))
    }

    /// Tells `wrong` each key with what is wrong with it.
    pub(crate) fn check(&self, wrong: &mut dyn FnMut(String, String)) {
        if !(1..=MOST_SECONDS).contains(&self.reboot_timeout_seconds) {
            wrong(
                "programs.reboot_timeout_seconds".into(),
                format!("write within how many seconds a machine is back, from 1 to {MOST_SECONDS}"),
            );
        }
        if self.health_check_interval_seconds > MOST_SECONDS {
            wrong(
                "programs.health_check_interval_seconds".into(),
                format!(
                    "write seconds from one check to the next, at most {MOST_SECONDS}; 0 checks only when an agent starts"
                ),
            );
        }
        for (name, path, seconds) in self.all() {
            if !path.0.is_empty() && !path.0.starts_with(b"/") {
                wrong(format!("programs.{name}"), format!("'{}' is not an absolute path", path.display()));
            }
            if seconds == 0 || seconds > MOST_SECONDS {
                wrong(
                    format!("programs.{name}_seconds"),
                    format!("write after how many seconds it is killed, from 1 to {MOST_SECONDS}"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ProgramsConfig;

    #[test]
    fn paths_are_absolute_and_every_program_has_an_end() {
        let keys = |config: ProgramsConfig| {
            let mut keys = Vec::new();
            config.check(&mut |key, _| keys.push(key));
            keys
        };
        assert!(keys(ProgramsConfig::default()).is_empty());
        let good = ProgramsConfig { prolog: "/etc/berth/prolog".into(), ..ProgramsConfig::default() };
        assert_eq!(good.named().map(|(name, _)| name).collect::<Vec<_>>(), ["prolog"]);
        assert!(keys(good).is_empty());
        let of_srun = ProgramsConfig {
            srun_prolog: "/etc/berth/srun_prolog".into(),
            srun_epilog_seconds: 5,
            ..ProgramsConfig::default()
        };
        assert!(keys(of_srun.clone()).is_empty());
        assert_eq!(of_srun.for_agents(), ProgramsConfig::default(), "no node has to do with them");
        let bad = ProgramsConfig {
            prolog: "prolog".into(),
            prolog_seconds: 0,
            epilog_seconds: 86_401,
            ..ProgramsConfig::default()
        };
        assert_eq!(keys(bad), ["programs.prolog", "programs.prolog_seconds", "programs.epilog_seconds"]);
    }
}
