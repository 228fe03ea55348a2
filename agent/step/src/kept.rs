//! A container that is kept under a name: what the agent found and claimed for a step, and what its supervisors tell the
//! supervisors of later steps of the job.

use crate::spool::{read_json, write_json};
use crate::tree::remove_tree;
use berth_model::ByteStr;
use berth_model::ids::{JobId, StepKey};
use berth_model::spec::{ContainerSpec, MountSpec, Unshared};
use berth_runtime::ContainerNamespaces;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The container of a step, as the agent prepared it. The agent's claim on it is a lock that the supervisor keeps open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptPart {
    /// Its name.
    pub name: String,
    /// Directory of the cluster's own, closed to users: what is known of the container.
    pub record: ByteStr,
    /// Directory of the user's: what was written to the container.
    pub written: ByteStr,
    /// It was made with the user's subordinate ids, to which what was written in it belongs.
    #[serde(default)]
    pub subids: bool,
    /// It was made for this step, and goes again when the step cannot be started.
    #[serde(default)]
    pub fresh: bool,
    /// It runs, and the step enters it.
    #[serde(default)]
    pub join: Option<Member>,
}

impl KeptPart {
    /// Removes a container that was made for one step alone and in which nothing ran. The claim on it must be held:
    /// until its record is gone, which it is all at once, nobody else takes the name.
    ///
    /// # Errors
    /// What cannot be removed; the container is there then as before, but for its files.
    pub fn undo(&self) -> io::Result<()> {
        remove_tree(self.written.as_path())?;
        forget(self.record.as_path())
    }
}

/// How the names of records begin that are being removed; no container's name begins with a dot.
const GONE: &str = ".gone-";

/// Whether this is a record whose removal was cut short.
pub fn is_forgotten(record: &Path) -> bool {
    record.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(GONE.as_bytes()))
}

/// Removes a container's record: of those who look for it none finds half of it.
///
/// # Errors
/// It cannot be removed. One that is not there is no error.
pub fn forget(record: &Path) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let gone = record.with_file_name(format!("{GONE}{}-{number}", std::process::id()));
    match fs::rename(record, &gone) {
        Ok(()) => remove_tree(&gone),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// A step that runs in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The step's job.
    pub job: JobId,
    /// How further steps enter.
    pub namespaces: ContainerNamespaces,
    /// How the container was started.
    pub started: StartedWith,
}

/// Options that were decided when a container was started, and are the same for all who enter it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartedWith {
    /// Its mounts.
    pub mounts: Vec<MountSpec>,
    /// The home directory is mounted.
    pub mount_home: bool,
    /// The user is root inside.
    pub remap_root: bool,
    /// With the user's subordinate ids.
    pub subids: bool,
    /// It is read-only.
    pub read_only: bool,
    /// Namespaces of its own.
    pub unshare: Vec<Unshared>,
    /// The display that it shows (`--x11`).
    pub display: Option<String>,
}

impl StartedWith {
    /// An option of a step which the container, as it runs, does not fulfil.
    pub fn contradicts(&self, asked: &ContainerSpec) -> Option<&'static str> {
        let other = |asked: Option<bool>, is: bool| asked.is_some_and(|asked| asked != is);
        if !asked.mounts.is_empty() && asked.mounts != self.mounts {
            return Some("--container-mounts");
        }
        if other(asked.mount_home, self.mount_home) {
            return Some("--container-mount-home");
        }
        if other(asked.remap_root, self.remap_root) {
            return Some("--container-remap-root");
        }
        if other(asked.subids, self.subids) {
            return Some(if self.subids { "--no-container-subids" } else { "--container-subids" });
        }
        if other(asked.writable, !self.read_only) {
            return Some(if self.read_only { "--container-writable" } else { "--container-readonly" });
        }
        if asked.unshare.iter().any(|ns| !self.unshare.contains(ns)) {
            return Some("--container-unshare");
        }
        None
    }
}

/// Where members of a container are told of.
pub fn members_dir(record: &Path) -> PathBuf {
    record.join("members")
}

/// Tells later steps of one that runs in a container; untold when it is dropped.
#[derive(Debug)]
pub struct Told(PathBuf);

impl Told {
    /// Tells.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn of(record: &Path, step: StepKey, member: &Member) -> io::Result<Told> {
        let path = members_dir(record).join(format!("{}.{}.json", step.job, step.step));
        write_json(&path, member)?;
        Ok(Told(path))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // A member that is not alive is no member, whatever the file says.
        let _ = fs::remove_file(&self.0);
    }
}

/// Steps that run in a container, and whose supervisors live.
///
/// # Errors
/// The directory cannot be read.
pub fn members(record: &Path) -> io::Result<Vec<Member>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(members_dir(record))? {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        // One that ends at this moment takes its file away.
        let Ok(member) = read_json::<Member>(&path) else { continue };
        if member.namespaces.alive() {
            found.push(member);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_a_running_container_cannot_fulfil_is_named() {
        let mut asked = berth_samples::container("x", None);
        let started =
            StartedWith { unshare: vec![Unshared::Net], remap_root: true, ..StartedWith::default() };
        assert_eq!(started.contradicts(&asked), None);
        asked.remap_root = Some(true);
        asked.unshare = vec![Unshared::Net];
        asked.writable = Some(true);
        assert_eq!(started.contradicts(&asked), None);
        asked.unshare = vec![Unshared::Ipc, Unshared::Net];
        assert_eq!(started.contradicts(&asked), Some("--container-unshare"));
        asked.writable = Some(false);
        assert_eq!(started.contradicts(&asked), Some("--container-readonly"));
        asked.mounts = vec![MountSpec { source: "/a".into(), target: "/a".into(), flags: Vec::new() }];
        assert_eq!(started.contradicts(&asked), Some("--container-mounts"));
    }
}
