//! What is remembered of containers: one directory each below `--root`, changed under a lock.

use super::cgroup::Group;
use super::error::{Naming, OciError, Result, invalid};
use crate::hooks::Hooks;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What is remembered of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of its configuration.
    pub version: String,
    /// Its id.
    pub id: String,
    /// Absolute.
    pub bundle: PathBuf,
    /// Its root directory.
    pub rootfs: PathBuf,
    /// When it was created (RFC 3339).
    pub created: String,
    /// Pid of its first process; absent while it is made.
    pub pid: Option<i32>,
    /// When that process started, in clock ticks after boot: tells it from a later one of the same pid.
    pub start_time: u64,
    /// `start` succeeded.
    pub started: bool,
    /// From the configuration.
    pub annotations: BTreeMap<String, String>,
    /// Its control group.
    pub group: Group,
    /// Hooks that run later.
    pub hooks: Hooks,
    /// `CLONE_NEW*` of the namespaces that are not the runtime's.
    pub namespaces: i32,
    /// The mount of the root in the runtime's own mount namespace, where the container has none.
    pub node_mount: Option<u64>,
    /// The configuration as it was read.
    pub config: serde_json::Value,
}

/// As the specification's `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Being made.
    Creating,
    /// Made, its program not started.
    Created,
    /// Its program was started and has not ended.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Status {
    /// The specification's word.
    pub fn word(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// A container's directory, locked.
#[derive(Debug)]
pub struct Container {
    /// Where.
    pub dir: PathBuf,
    lock: OwnedFd,
}

/// The directory of all containers.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store at `root`, or at the default place.
    ///
    /// # Errors
    /// A directory that belongs to someone else, or that others may write.
    pub fn open(root: Option<&Path>) -> Result<Store> {
        Store::open_as("berth-oci", root)
    }

    /// As [`Store::open`], with another name for the default place: each engine has its own.
    ///
    /// # Errors
    /// There is no default place for this user.
    pub fn open_as(name: &str, root: Option<&Path>) -> Result<Store> {
        let root = match root {
            Some(root) => std::path::absolute(root).named_at("find", root)?,
            None if crate::facts::is_privileged() => Path::new("/run").join(name),
            None => match std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
                Some(dir) => PathBuf::from(dir).join(name),
                None => {
                    return Err(invalid(
                        "no place for containers: XDG_RUNTIME_DIR is not set",
                        "set it, or give --root",
                    ));
                }
            },
        };
        Ok(Store { root })
    }

    /// Where the containers are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directory, and checks whose it is.
    ///
    /// # Errors
    /// It belongs to someone else, or others may write it.
    pub fn prepare(&self) -> Result<()> {
        if let Some(above) = self.root.parent() {
            std::fs::create_dir_all(above).named_at("make", above)?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(&self.root) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).named_at("make", &self.root),
        }
        let meta = std::fs::symlink_metadata(&self.root).named_at("look at", &self.root)?;
        let own = meta.uid() == rustix::process::geteuid().as_raw();
        if !meta.is_dir() || !own || meta.permissions().mode() & 0o022 != 0 {
            return Err(invalid(
                format!("{} is not a directory that belongs to this user alone", self.root.display()),
                "give another --root",
            ));
        }
        Ok(())
    }

    /// A container's directory, by its id.
    ///
    /// # Errors
    /// The text is no id.
    pub fn dir(&self, id: &str) -> Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
        if id.is_empty() || id.len() > 255 || id == "." || id == ".." || !id.chars().all(plain) {
            return Err(invalid(format!("{id:?} is no container id"), "use letters, digits and _ + . -"));
        }
        Ok(self.root.join(id))
    }

    /// A new container's directory.
    ///
    /// # Errors
    /// There is one of this id.
    pub fn reserve(&self, id: &str) -> Result<Container> {
        let dir = self.dir(id)?;
        self.prepare()?;
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => Container::lock(dir),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(invalid(format!("container {id} exists already"), "delete it, or choose another id"))
            }
            Err(e) => Err(e).named_at("make", &dir),
        }
    }

    /// A container, locked, with what is remembered of it.
    pub fn find(&self, id: &str) -> Result<(Container, Record)> {
        let dir = self.dir(id)?;
        if !dir.is_dir() {
            return Err(OciError::NoContainer(id.into()));
        }
        let container = Container::lock(dir)?;
        let record = container.read()?.ok_or_else(|| OciError::NoContainer(id.into()))?;
        Ok((container, record))
    }

    /// What is remembered of a container, without a lock: for looking alone.
    pub fn look(&self, id: &str) -> Result<Record> {
        let dir = self.dir(id)?;
        let text = std::fs::read(dir.join(RECORD)).map_err(|_| OciError::NoContainer(id.into()))?;
        parse(&text, &dir)
    }

    /// Removes the rest of a container whose creation was cut off.
    pub fn discard(&self, id: &str) -> Result<()> {
        let dir = self.dir(id)?;
        if !dir.is_dir() {
            return Err(OciError::NoContainer(id.into()));
        }
        Container::lock(dir)?.remove()
    }
}

const RECORD: &str = "state.json";

fn parse(text: &[u8], dir: &Path) -> Result<Record> {
    serde_json::from_slice(text).map_err(|e| {
        invalid(
            format!("{}/{RECORD} cannot be read: {e}", dir.display()),
            "delete the container with --force",
        )
    })
}

impl Container {
    fn lock(dir: PathBuf) -> Result<Container> {
        let path = dir.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).named_at("open", &path)?;
        rustix::fs::flock(&fd, FlockOperation::LockExclusive).named_at("lock", &path)?;
        Ok(Container { dir, lock: fd })
    }

    /// Where `start` finds the waiting process.
    pub fn start_socket(&self) -> PathBuf {
        self.dir.join("start.sock")
    }

    fn read(&self) -> Result<Option<Record>> {
        match std::fs::read(self.dir.join(RECORD)) {
            Ok(text) => parse(&text, &self.dir).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Remembers, atomically.
    pub fn write(&self, record: &Record) -> Result<()> {
        let (new, path) = (self.dir.join("state.new"), self.dir.join(RECORD));
        let text = serde_json::to_vec(record)
            .map_err(|e| invalid(format!("state cannot be written: {e}"), "report this"))?;
        std::fs::write(&new, text).named_at("write", &new)?;
        std::fs::rename(&new, &path).named_at("write", &path)
    }

    /// Forgets it.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.dir).named_at("remove", &self.dir)
    }
}

/// Processes that become the container share the lock's file with the runtime: closing it here is not enough.
impl Drop for Container {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

impl Record {
    /// What it is now.
    pub fn status(&self) -> Status {
        let Some(pid) = self.pid else { return Status::Creating };
        match process_times(pid) {
            Some((start, state)) if start == self.start_time && !matches!(state, 'Z' | 'X') => {
                if self.group.frozen() {
                    Status::Paused
                } else if self.started {
                    Status::Running
                } else {
                    Status::Created
                }
            }
            _ => Status::Stopped,
        }
    }

    /// Refuses an action in any other state.
    pub fn require(&self, action: &str, allowed: &[Status], hint: &str) -> Result<Status> {
        let status = self.status();
        if allowed.contains(&status) {
            return Ok(status);
        }
        Err(OciError::Status {
            action: action.into(),
            id: self.id.clone(),
            status: status.word().into(),
            hint: if hint.is_empty() { String::new() } else { format!("; {hint}") },
        })
    }

    /// The state as the specification has it, for hooks and `state`.
    pub fn state(&self, status: Status) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": status.word(),
            "bundle": self.bundle,
        });
        let pid = if status == Status::Stopped { Some(0) } else { self.pid };
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        if !self.annotations.is_empty() {
            state["annotations"] = serde_json::json!(self.annotations);
        }
        state
    }
}

/// A process's start time and state letter.
pub fn process_times(pid: i32) -> Option<(u64, char)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have blanks and brackets in it.
    let rest = text.rsplit_once(") ")?.1;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.nth(18)?.parse().ok()?, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_places() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(&dir.path().join("s"))).unwrap();
        for bad in ["", ".", "..", "a/b", "../x", "a b", "ä"] {
            assert!(store.reserve(bad).is_err(), "{bad}");
        }
        let container = store.reserve("a+b_c-1.2").unwrap();
        assert!(store.reserve("a+b_c-1.2").unwrap_err().to_string().contains("exists"));
        assert!(matches!(store.look("a+b_c-1.2"), Err(OciError::NoContainer(_))));
        container.remove().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Store::open(Some(&open)).unwrap().reserve("x").unwrap_err().to_string().contains("alone"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(Store::open(Some(&link)).unwrap().reserve("x").is_err());
    }

    #[test]
    fn own_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (start, state) = process_times(pid).unwrap();
        assert!(start > 0 && "RSD".contains(state));
    }
}
