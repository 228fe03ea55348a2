//! Hooks: programs that run at given moments of a container's life, as the OCI runtime specification has them. Those of a
//! bundle are its own; those of a step's container are the administrator's alone.

mod bundle;
mod run;
mod trust;

pub use bundle::make as make_bundle;
pub use run::{Alone, Attend, Attended, HookRun, run, run_all};
pub use trust::{unchangeable, unchangeable_place};

use berth_model::ByteStr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// A hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// Absolute.
    pub path: PathBuf,
    /// With the program's name.
    pub args: Vec<String>,
    /// All there is; where it is not given, a startContainer hook of a bundle has the program's.
    pub env: Option<Vec<String>>,
    /// Seconds.
    pub timeout: Option<u32>,
    /// Name of the file that configures it.
    #[serde(default)]
    pub file: Option<String>,
}

/// Hooks by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// Before createRuntime ones.
    pub prestart: Vec<HookPlan>,
    /// In the runtime's namespaces, before the root is changed.
    pub create_runtime: Vec<HookPlan>,
    /// In the container's namespaces, before the root is changed.
    pub create_container: Vec<HookPlan>,
    /// In the container, before its program.
    pub start_container: Vec<HookPlan>,
    /// After the program was started.
    pub poststart: Vec<HookPlan>,
    /// After the container was deleted.
    pub poststop: Vec<HookPlan>,
}

impl Hooks {
    /// With their names, in the order in which they run.
    pub fn kinds(&self) -> [(&'static str, &[HookPlan]); 6] {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("startContainer", &self.start_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
    }

    /// The list of a kind; `None` when there is no such kind.
    pub fn of_kind(&mut self, kind: &str) -> Option<&mut Vec<HookPlan>> {
        Some(match kind {
            "prestart" => &mut self.prestart,
            "createRuntime" => &mut self.create_runtime,
            "createContainer" => &mut self.create_container,
            "startContainer" => &mut self.start_container,
            "poststart" => &mut self.poststart,
            "poststop" => &mut self.poststop,
            _ => return None,
        })
    }

    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        self.kinds().iter().all(|(_, hooks)| hooks.is_empty())
    }
}

/// A hook that did not end well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookFailure {
    /// Which kind.
    pub kind: String,
    /// Its program.
    pub path: String,
    /// Name of the file that configures it.
    pub file: Option<String>,
    /// How it ended.
    pub why: String,
    /// The first line that it said.
    #[serde(default)]
    pub first: Box<str>,
    /// It was ended because what it ran for was no longer wanted.
    pub given_up: bool,
}

impl HookFailure {
    fn of(kind: &str, hook: &HookPlan, why: String) -> HookFailure {
        let path = hook.path.display().to_string();
        HookFailure {
            kind: kind.into(),
            path,
            file: hook.file.clone(),
            why,
            first: Box::default(),
            given_up: false,
        }
    }
}

impl fmt::Display for HookFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} hook {}", self.kind, self.path)?;
        if let Some(file) = &self.file {
            write!(f, " ({file})")?;
        }
        if self.given_up {
            return write!(f, " was ended with the step");
        }
        write!(f, " failed: {}", self.why)?;
        if self.file.is_some() {
            write!(
                f,
                "; the cluster's administrator configured it (container.hooks_dirs in 'scontrol show config')"
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for HookFailure {}

/// Seconds for a hook of the administrator's that gives no time-out: the step waits for it.
const USUAL_TIMEOUT: u32 = 60;

/// The administrator's hooks for the container of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerHooks {
    /// By kind, in order.
    pub hooks: Hooks,
    /// A directory that the user cannot enter, for `config.json` and as place of the container's root.
    pub bundle: ByteStr,
    /// The container's id in their state.
    pub id: String,
    /// What is said of the container: by the cluster, never by image or user.
    pub annotations: BTreeMap<String, String>,
    /// The environment that `config.json` shows, likewise: `NAME=value`.
    pub env: Vec<String>,
    /// Whose their programs may be, besides root.
    pub owner: u32,
}

impl ContainerHooks {
    /// Where the root is mounted while the container is made.
    pub fn rootfs(&self) -> ByteStr {
        let mut path = self.bundle.0.clone();
        path.extend_from_slice(b"/rootfs");
        ByteStr(path)
    }

    /// The state that a hook reads; no pid where there is no process.
    fn state(&self, status: &str, pid: Option<i32>) -> String {
        let mut state = serde_json::json!({
            "ociVersion": bundle::VERSION,
            "id": self.id,
            "status": status,
            "bundle": self.bundle.display(),
            "annotations": self.annotations,
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        state.to_string()
    }

    fn how(&self) -> HookRun<'_> {
        HookRun {
            env: &[],
            keep_stderr: true,
            keep_stdout: false,
            timeout: Some(USUAL_TIMEOUT),
            owner: Some(self.owner),
            at_root: true,
        }
    }

    /// Before the root is changed, in the namespaces of the node.
    pub(crate) fn made(&self, pid: i32, attend: &mut dyn Attend) -> Result<(), HookFailure> {
        let state = self.state("creating", Some(pid));
        run("prestart", &self.hooks.prestart, &state, self.how(), attend)?;
        run("createRuntime", &self.hooks.create_runtime, &state, self.how(), attend)?;
        // For the next: in a user namespace, root's files are no longer seen to be root's.
        self.hooks.create_container.iter().try_for_each(|hook| {
            let found = unchangeable(&hook.path, self.owner);
            found.map(drop).map_err(|why| HookFailure::of("createContainer", hook, why))
        })
    }

    /// Before the root is changed, in the namespaces of the container. Ended with its init.
    pub(crate) fn within(&self, pid: i32) -> Result<(), HookFailure> {
        let how = HookRun { owner: None, ..self.how() };
        let state = self.state("creating", Some(pid));
        run("createContainer", &self.hooks.create_container, &state, how, &mut Alone)
    }

    /// In the container, as its user, with no more rights than its tasks: the program is what lies there. Ended with its init.
    pub(crate) fn inside(&self, pid: i32) -> Result<(), HookFailure> {
        let how = HookRun { owner: None, ..self.how() };
        let state = self.state("created", Some(pid));
        run("startContainer", &self.hooks.start_container, &state, how, &mut Alone)
    }

    /// When the tasks were started.
    ///
    /// # Errors
    /// The first that fails.
    pub fn started(&self, pid: i32, attend: &mut dyn Attend) -> Result<(), HookFailure> {
        let state = self.state("running", Some(pid));
        run("poststart", &self.hooks.poststart, &state, self.how(), attend)
    }

    /// When the container is gone, or was not made. All of them run; those that fail are returned.
    pub fn stopped(&self, attend: &mut dyn Attend) -> Vec<HookFailure> {
        run_all("poststop", &self.hooks.poststop, &self.state("stopped", None), self.how(), attend)
    }
}
