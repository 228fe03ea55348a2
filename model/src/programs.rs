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
        }
    }
}

/// Most seconds that a program may have: a day.
const MOST_SECONDS: u32 = 86_400;

impl ProgramsConfig {
    /// Programs and seconds, with the names of their keys.
    fn all(&self) -> [(&'static str, &ByteStr, u32); 4] {
        [
            ("prolog", &self.prolog, self.prolog_seconds),
            ("epilog", &self.epilog, self.epilog_seconds),
            ("task_prolog", &self.task_prolog, self.task_prolog_seconds),
            ("task_epilog", &self.task_epilog, self.task_epilog_seconds),
        ]
    }

    /// Programs that are configured, with the names of their keys.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &ByteStr)> {
        self.all().into_iter().filter(|(_, path, _)| !path.0.is_empty()).map(|(name, path, _)| (name, path))
    }

    /// Tells `wrong` each key with what is wrong with it.
    pub(crate) fn check(&self, wrong: &mut dyn FnMut(String, String)) {
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
        let bad = ProgramsConfig {
            prolog: "prolog".into(),
            prolog_seconds: 0,
            epilog_seconds: 86_401,
            ..ProgramsConfig::default()
        };
        assert_eq!(keys(bad), ["programs.prolog", "programs.prolog_seconds", "programs.epilog_seconds"]);
    }
}
