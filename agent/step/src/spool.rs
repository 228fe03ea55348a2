//! A step's spool directory: what the agent leaves for the supervisor, and what the supervisor leaves for
//! every later agent. Files of steps are replaced by rename and never synced: no step outlives a reboot.

use crate::kept::{KeptPart, Member};
use berth_model::ByteStr;
use berth_model::elf::NeedsGlibc;
use berth_model::hardware::Core;
use berth_model::ids::{Attempt, JobId, StepId, StepKey};
use berth_model::launch::{NodeShare, StepExit, StepLaunch, StepPhase};
use berth_model::programs::{TASK_EPILOG_SECONDS, TASK_PROLOG_SECONDS};
use berth_runtime::cgroup::Cgroup;
use berth_runtime::hooks::ContainerHooks;
pub use berth_runtime::procfs::start_ticks;
use berth_runtime::{ExtraMount, JobNamespaces};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Version of the files below. Fields are only added, with defaults; a change of meaning raises it.
pub const FORMAT: u32 = 1;

/// Number of the batch script's descriptor in its task. The job's client directory has a link
/// `slurm_script` to it, so that the script's `$0` is a name.
pub const SCRIPT_FD: i32 = 63;

/// `launch.json`: everything the supervisor needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaunchFile {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// What the controller asked for.
    pub launch: StepLaunch,
    /// What the agent prepared on the node.
    pub node: NodePart,
}

/// What the agent prepared before it asked for a supervisor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodePart {
    /// The agent is root and acts for users.
    pub system: bool,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The image's layers and configuration; absent for `host:` and for root directories.
    pub image: Option<PreparedImage>,
    /// A root directory is opened through no link: the site has a rule about paths.
    pub root_without_links: bool,
    /// The step's cgroups, made beforehand; absent where none can be made.
    pub cgroup: Option<Cgroup>,
    /// The job's namespaces; absent where each step makes its own.
    pub namespaces: Option<JobNamespaces>,
    /// Directory of the job on this node that its user can write (private `/tmp` and writable layers).
    pub scratch: Option<ByteStr>,
    /// Directory shown in containers as `/run/berth`: the job's socket and the link to the batch script.
    pub client_dir: Option<ByteStr>,
    /// Directory shown in containers as `/run/berth/bin`: the client programs.
    pub client_programs: Option<ByteStr>,
    /// The cluster's state directory, by which clients on the node's own filesystem find it.
    pub state_dir: Option<ByteStr>,
    /// The site's defaults for container options that were not given.
    pub container: ContainerDefaults,
    /// Names of the user's supplementary groups, where known.
    pub group_names: BTreeMap<u32, String>,
    /// The `berth` program, which writes images for `--container-save`.
    pub program: Option<ByteStr>,
    /// What the node's libpmix tells a task of a made-up step; empty where there is none, or nobody will ask.
    pub pmix: Vec<String>,
    /// The container that `--container-name` names.
    pub kept: Option<KeptPart>,
    /// The step runs in the container of another one, which has no name (`berth exec`).
    pub join: Option<Member>,
    /// The administrator's hooks that this step's container matches.
    pub hooks: Option<ContainerHooks>,
    /// What of the node the step's devices need in a container: libraries of a driver, programs, sockets.
    pub injected: Vec<ExtraMount>,
    /// Variables that its devices bring, beside the image's.
    pub device_env: Vec<ByteStr>,
    /// Groups beside the user's that come with them.
    pub device_groups: Vec<u32>,
    /// The glibc that those libraries need.
    pub glibc: Option<NeedsGlibc>,
    /// The site's programs around tasks.
    pub task_programs: TaskProgramsPart,
    /// What the agent has to tell the user.
    pub notes: Vec<String>,
    /// The node's cores, where tasks are to be bound to some of them.
    pub cores: Vec<Core>,
    /// Its fast networks.
    pub fabric: FabricPart,
    /// Until when, by the clock since boot, the step goes on without a renewal; absent: for ever.
    pub lease: Option<berth_model::Time>,
    /// The display of another machine as the step that is entered shows it here.
    pub display: Option<CarriedDisplay>,
}

/// The display of another machine, which a step's client carries here (`--x11`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedDisplay {
    /// What tasks call it.
    pub name: String,
    /// The supervisor's socket that a container of its own network shows in the place of an X server's; absent where it is a port of the node's.
    #[serde(default)]
    pub socket: Option<ByteStr>,
}

/// Devices of fast networks that the step has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FabricPart {
    /// Their device files.
    pub files: Vec<ByteStr>,
    /// Their names.
    pub names: Vec<String>,
}

/// The site's programs around tasks, and for how long any may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskProgramsPart {
    /// Before each task; empty means none.
    pub prolog: ByteStr,
    /// Seconds for it, and for the user's.
    pub prolog_seconds: u32,
    /// After each task.
    pub epilog: ByteStr,
    /// Seconds for it, and for the user's.
    pub epilog_seconds: u32,
    /// Whose they may be, besides root.
    pub owner: u32,
}

impl Default for TaskProgramsPart {
    fn default() -> Self {
        TaskProgramsPart {
            prolog: ByteStr::default(),
            prolog_seconds: TASK_PROLOG_SECONDS,
            epilog: ByteStr::default(),
            epilog_seconds: TASK_EPILOG_SECONDS,
            owner: 0,
        }
    }
}

impl NodePart {
    /// The running container that the step enters, if it does.
    pub fn joined(&self) -> Option<&Member> {
        self.kept.as_ref().and_then(|kept| kept.join.as_ref()).or(self.join.as_ref())
    }
}

/// Bytes of a job's `/dev/shm`: the job's memory, where that is enforced; else the kernel's default.
pub fn shm_size(system: bool, job: &NodeShare) -> Option<u64> {
    (system && job.memory > 0).then_some(job.memory << 20)
}

/// The site's `[container]` section.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerDefaults {
    /// Mount the home directory.
    pub mount_home: bool,
    /// Show the user as root.
    pub remap_root: bool,
    /// Run the image's entrypoint.
    pub entrypoint: bool,
}

/// An image that is ready on the node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PreparedImage {
    /// Layer directories, the topmost first.
    pub layers: Vec<ByteStr>,
    /// Who owns their files on disk, where that is not the user.
    pub owner: Option<(u32, u32)>,
    /// `ENV`.
    pub env: Vec<ByteStr>,
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<ByteStr>,
    /// `CMD`.
    pub cmd: Vec<ByteStr>,
    /// `WORKDIR`.
    pub workdir: Option<ByteStr>,
    /// `USER`.
    pub user: Option<String>,
}

/// `state.json`: how far the step is, and who supervises it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFile {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Which step.
    pub key: StepKey,
    /// The supervisor's pid.
    pub pid: i32,
    /// When that process started, in the kernel's ticks since boot: tells it from a later one of the same pid.
    pub start_ticks: u64,
    /// The boot in which it ran.
    pub boot_id: String,
    /// How far.
    pub phase: StepPhase,
    /// How further steps of the job enter its container, once it stands; absent without one.
    #[serde(default)]
    pub member: Option<Member>,
    /// The supervisor lets others than the step's client hear it (`sattach`).
    #[serde(default)]
    pub watched: bool,
    /// The supervisor keeps what a client on another machine has not heard, until that comes back.
    #[serde(default)]
    pub resumes: bool,
    /// The display that its client carries here, where it does.
    #[serde(default)]
    pub display: Option<CarriedDisplay>,
}

/// A step's directory, and the names of what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepDir {
    path: PathBuf,
}

impl StepDir {
    /// The directory of a step below the spool.
    pub fn of(spool: &Path, key: StepKey) -> StepDir {
        StepDir { path: spool.join(format!("{}.{}.{}", key.job, key.attempt, key.step)) }
    }

    /// A directory by its path.
    pub fn at(path: impl Into<PathBuf>) -> StepDir {
        StepDir { path: path.into() }
    }

    /// The step whose directory this is; `None` when the name is not one of a step.
    pub fn key(&self) -> Option<StepKey> {
        let mut parts = self.path.file_name()?.to_str()?.splitn(3, '.');
        let job: u32 = parts.next()?.parse().ok()?;
        let attempt: u32 = parts.next()?.parse().ok()?;
        let step: StepId = parts.next()?.parse().ok()?;
        Some(StepKey { job: JobId(job), attempt: Attempt(attempt), step })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// What the supervisor reads.
    pub fn launch(&self) -> PathBuf {
        self.path.join("launch.json")
    }
    /// What the supervisor writes.
    pub fn state(&self) -> PathBuf {
        self.path.join("state.json")
    }
    /// The supervisor's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }
    /// What the supervisor says of itself.
    pub fn log(&self) -> PathBuf {
        self.path.join("supervisor.log")
    }

    /// Makes the directory, for its owner alone.
    pub fn create(&self) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        match fs::DirBuilder::new().mode(0o700).create(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Removes it with all that is in it; one that is gone already is no error.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Reads what the supervisor is to do.
    pub fn read_launch(&self) -> io::Result<LaunchFile> {
        read_json(&self.launch())
    }

    /// Writes it.
    pub fn write_launch(&self, file: &LaunchFile) -> io::Result<()> {
        write_json(&self.launch(), file)
    }

    /// Reads the state; `None` when the supervisor has not written one.
    pub fn read_state(&self) -> io::Result<Option<StateFile>> {
        match read_json(&self.state()) {
            Ok(state) => Ok(Some(state)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The exit, once the step has one.
    pub fn read_exit(&self) -> io::Result<Option<StepExit>> {
        Ok(self.read_state()?.and_then(|s| match s.phase {
            StepPhase::Exited(exit) => Some(exit),
            _ => None,
        }))
    }
}

/// Every step directory in the spool; other names are left alone.
pub fn scan(spool: &Path) -> io::Result<Vec<(StepKey, StepDir)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(spool)? {
        let dir = StepDir::at(entry?.path());
        if let Some(key) = dir.key() {
            found.push((key, dir));
        }
    }
    found.sort_by_key(|(key, _)| *key);
    Ok(found)
}

/// Reads a file of the spool.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = fs::read(path)?;
    serde_json::from_slice(&bytes).map_err(|e| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged: {e}", path.display()))
    })
}

/// Replaces a file of the spool whole.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, value, |_| Ok(()))
}

/// Replaces a file whole, and has it on the disk before it takes the place of the one before: what is read after a power cut is
/// one of the two.
pub fn write_json_durably<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, value, fs::File::sync_all)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn replace<T: Serialize>(
    path: &Path,
    value: &T,
    written: impl FnOnce(&fs::File) -> io::Result<()>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&bytes)?;
    written(&file)?;
    fs::rename(&temporary, path)
}

/// The kernel's boot id.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string())
}

impl StateFile {
    /// Whether the supervisor that wrote this still runs.
    pub fn supervisor_alive(&self, boot_id: &str) -> bool {
        self.boot_id == boot_id && start_ticks(self.pid) == Some(self.start_ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_step_directories_are_read_back_and_others_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let keys = [(7, 0, StepId::Batch), (7, 1, StepId::Number(3)), (12, 0, StepId::Interactive)]
            .map(|(j, a, step)| StepKey { job: JobId(j), attempt: Attempt(a), step });
        for key in keys {
            StepDir::of(dir.path(), key).create().unwrap();
        }
        for other in ["lost+found", "7.0", "7.x.batch", "7.0.batch.old"] {
            fs::create_dir(dir.path().join(other)).unwrap();
        }
        let found: Vec<StepKey> = scan(dir.path()).unwrap().into_iter().map(|(k, _)| k).collect();
        assert_eq!(found, keys);
    }

    #[test]
    fn a_state_tells_its_own_process_from_another_of_the_same_pid() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let state = StateFile {
            format: FORMAT,
            key: StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Batch },
            pid,
            start_ticks: start_ticks(pid).unwrap(),
            boot_id: boot_id().unwrap(),
            phase: StepPhase::Running,
            member: None,
            watched: true,
            resumes: true,
            display: None,
        };
        let boot = boot_id().unwrap();
        assert!(state.supervisor_alive(&boot));
        assert!(!state.supervisor_alive("another boot"));
        assert!(!StateFile { start_ticks: 1, ..state }.supervisor_alive(&boot));
    }

    #[test]
    fn a_torn_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let step = StepDir::at(dir.path().join("1.0.batch"));
        step.create().unwrap();
        assert!(step.read_state().unwrap().is_none());
        fs::write(step.state(), b"{\"format\":1,").unwrap();
        let error = step.read_state().unwrap_err().to_string();
        assert!(error.contains("state.json is damaged"), "{error}");
    }
}
