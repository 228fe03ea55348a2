//! `[gpus]`: how often GPUs are looked at while jobs have them, what becomes of jobs that leave theirs idle, from whom they are kept,
//! where the control daemon of MPS is, and what becomes of nodes whose driver and library do not fit.

use serde::{Deserialize, Serialize};

/// Most seconds between two looks: an hour.
const MOST_SECONDS: u32 = 3600;
/// Where the control daemon of MPS has its pipes where nobody says otherwise (`CUDA_MPS_PIPE_DIRECTORY`).
pub const MPS_PIPES: &str = "/tmp/nvidia-mps";
/// Most bytes of another directory: a socket's path has 107 at most (`unix(7)`), and the longest name there is `control_privileged`.
const MOST_OF_MPS: usize = 107 - "/control_privileged".len();
/// Most minutes of a policy: a month.
const MOST_MINUTES: u32 = 31 * 24 * 60;
const MOST_MORE_SECONDS: u32 = MOST_MINUTES * 60;

/// `[gpus]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpusConfig {
    /// Seconds between two looks at what jobs use of their GPUs; 0 never looks, and then their use is not on record.
    pub sample_seconds: u32,
    /// Per cent of utilisation below which a GPU is idle.
    pub idle_percent: u32,
    /// Minutes for which all GPUs of a job must be idle until its user is warned; 0, without seconds either, warns nobody.
    pub idle_warn_minutes: u32,
    /// Seconds more.
    pub idle_warn_seconds: u32,
    /// Minutes after that warning until the job is ended, if its GPUs are idle all the time; 0, without seconds either, ends none.
    pub idle_release_minutes: u32,
    /// Seconds more.
    pub idle_release_seconds: u32,
    /// Control groups that are not the agent's, such as `user.slice`: in these no device opens that jobs are given.
    pub kept_from: Vec<String>,
    /// Directory of the pipes of MPS's control daemon on the nodes; [`MPS_PIPES`] where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mps_pipe_directory: Option<String>,
    /// Nodes whose NVIDIA driver and library are of different versions stay in service for work without GPUs.
    pub serve_mismatched: bool,
}

impl Default for GpusConfig {
    fn default() -> Self {
        GpusConfig {
            sample_seconds: 10,
            idle_percent: 5,
            idle_warn_minutes: 0,
            idle_warn_seconds: 0,
            idle_release_minutes: 0,
            idle_release_seconds: 0,
            kept_from: Vec::new(),
            mps_pipe_directory: None,
            serve_mismatched: false,
        }
    }
}

impl GpusConfig {
    /// What of it is an agent's affair.
    #[must_use]
    pub fn for_agents(&self) -> GpusConfig {
        GpusConfig {
            sample_seconds: self.sample_seconds,
            kept_from: self.kept_from.clone(),
            mps_pipe_directory: self.mps_pipe_directory.clone(),
            serve_mismatched: self.serve_mismatched,
            ..GpusConfig::default()
        }
    }

    /// Seconds for which all GPUs of a job must be idle until its user is warned; 0 warns nobody.
    #[must_use]
    pub fn idle_warn(&self) -> u64 {
        u64::from(self.idle_warn_minutes) * 60 + u64::from(self.idle_warn_seconds)
    }

    /// Seconds from that warning to the job's end; 0 ends none.
    #[must_use]
    pub fn idle_release(&self) -> u64 {
        u64::from(self.idle_release_minutes) * 60 + u64::from(self.idle_release_seconds)
    }

    /// Directory of the pipes of MPS's control daemon.
    pub fn mps_pipes(&self) -> &str {
        self.mps_pipe_directory.as_deref().unwrap_or(MPS_PIPES)
    }

    /// Tells `wrong` each key with what is wrong with it.
    pub(crate) fn check(&self, wrong: &mut dyn FnMut(String, String)) {
        if self.sample_seconds > MOST_SECONDS {
            wrong("gpus.sample_seconds".into(), format!("write seconds, {MOST_SECONDS} at most; 0 is off"));
        }
        if self.idle_percent == 0 || self.idle_percent > 100 {
            wrong("gpus.idle_percent".into(), "write per cent, 1 to 100".into());
        }
        for (key, value, unit, most) in [
            ("idle_warn_minutes", self.idle_warn_minutes, "minutes", MOST_MINUTES),
            ("idle_warn_seconds", self.idle_warn_seconds, "seconds", MOST_MORE_SECONDS),
            ("idle_release_minutes", self.idle_release_minutes, "minutes", MOST_MINUTES),
            ("idle_release_seconds", self.idle_release_seconds, "seconds", MOST_MORE_SECONDS),
        ] {
            if value > most {
                wrong(format!("gpus.{key}"), format!("write {unit}, {most} at most; 0 is off"));
            }
        }
        let is_part = |part: &str| !matches!(part, "" | "." | "..");
        for (n, group) in self.kept_from.iter().enumerate() {
            if !group.split('/').all(is_part) {
                let why = format!(
                    "'{group}': write a control group's path from the top, without '/' before it, such as user.slice"
                );
                wrong(format!("gpus.kept_from[{}]", n + 1), why);
            }
        }
        if let Some(dir) = &self.mps_pipe_directory
            && dir.strip_prefix('/').is_none_or(|rest| !rest.split('/').all(is_part))
        {
            let why = format!(
                "'{dir}': write the directory's path from the root, without '.', '..' and a '/' at its end, as the daemon was started with \
                 it in CUDA_MPS_PIPE_DIRECTORY, such as {MPS_PIPES}"
            );
            wrong("gpus.mps_pipe_directory".into(), why);
        } else if let Some(dir) = self.mps_pipe_directory.as_ref().filter(|dir| dir.len() > MOST_OF_MPS) {
            let why = format!(
                "'{dir}' has {} bytes, and no socket of the daemon could be reached below more than {MOST_OF_MPS}: have it in a \
                 directory with a shorter path",
                dir.len()
            );
            wrong("gpus.mps_pipe_directory".into(), why);
        }
        let key = |name: &str, minutes: u32| {
            format!("gpus.idle_{name}_{}", if minutes > 0 { "minutes" } else { "seconds" })
        };
        if self.idle_release() > 0 && self.idle_warn() == 0 {
            let why = "nobody is ended without a warning: write idle_warn_minutes as well";
            wrong(key("release", self.idle_release_minutes), why.into());
        }
        if self.idle_warn() > 0 && self.sample_seconds == 0 {
            let why = "nobody looks at GPUs: write sample_seconds above 0 as well";
            wrong(key("warn", self.idle_warn_minutes), why.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_is_named() {
        let keys = |config: GpusConfig| {
            let mut keys = Vec::new();
            config.check(&mut |key, _| keys.push(key));
            keys
        };
        let plain = GpusConfig::default;
        assert_eq!(keys(plain()), Vec::<String>::new());
        assert_eq!(keys(GpusConfig { idle_percent: 0, ..plain() }), ["gpus.idle_percent"]);
        assert_eq!(keys(GpusConfig { sample_seconds: 3601, ..plain() }), ["gpus.sample_seconds"]);
        assert_eq!(keys(GpusConfig { idle_release_minutes: 5, ..plain() }), ["gpus.idle_release_minutes"]);
        assert_eq!(keys(GpusConfig { idle_release_seconds: 5, ..plain() }), ["gpus.idle_release_seconds"]);
        let month = GpusConfig { idle_warn_seconds: 31 * 24 * 3600, idle_release_seconds: 5, ..plain() };
        assert_eq!(keys(month.clone()), Vec::<String>::new());
        let more = GpusConfig { idle_warn_seconds: month.idle_warn_seconds + 1, ..month };
        assert_eq!(keys(more), ["gpus.idle_warn_seconds"]);
        let both = GpusConfig { idle_warn_minutes: 2, idle_warn_seconds: 30, ..plain() };
        assert_eq!((both.idle_warn(), both.idle_release(), keys(both.clone())), (150, 0, vec![]));
        let blind = GpusConfig { sample_seconds: 0, idle_warn_seconds: 1, ..plain() };
        assert_eq!(keys(blind), ["gpus.idle_warn_seconds"]);
        let blind = GpusConfig { sample_seconds: 0, idle_warn_minutes: 1, ..plain() };
        assert_eq!(keys(blind.clone()), ["gpus.idle_warn_minutes"]);
        assert_eq!(blind.for_agents(), GpusConfig { sample_seconds: 0, ..plain() });
        let groups = |names: &[&str]| GpusConfig {
            kept_from: names.iter().map(|name| (*name).to_string()).collect(),
            ..plain()
        };
        assert_eq!(keys(groups(&["user.slice", "a/b.slice"])), Vec::<String>::new());
        assert_eq!(groups(&["user.slice"]).for_agents(), groups(&["user.slice"]));
        let serves = GpusConfig { serve_mismatched: true, ..plain() };
        assert_eq!((keys(serves.clone()), serves.for_agents()), (vec![], serves));
        let pipes = |dir: &str| GpusConfig { mps_pipe_directory: Some(dir.into()), ..plain() };
        assert_eq!(keys(pipes("/run/nvidia-mps")), Vec::<String>::new());
        assert_eq!(pipes("/run/nvidia-mps").for_agents().mps_pipes(), "/run/nvidia-mps");
        assert_eq!(plain().mps_pipes(), "/tmp/nvidia-mps");
        let long = |bytes: usize| format!("/{}", "d".repeat(bytes - 1));
        assert_eq!(keys(pipes(&long(88))), Vec::<String>::new());
        for wrong in ["", "/", "run/nvidia-mps", "/run/nvidia-mps/", "/run/../mps", "/run//mps", &long(89)] {
            assert_eq!(keys(pipes(wrong)), ["gpus.mps_pipe_directory"], "{wrong}");
        }
        for wrong in ["", "/user.slice", "user.slice/", "../user.slice", "a/./b"] {
            assert_eq!(keys(groups(&["user.slice", wrong])), ["gpus.kept_from[2]"], "{wrong}");
        }
    }
}
