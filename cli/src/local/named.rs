//! Containers that are kept: an image's layers below a directory of the user's that holds what was written. One
//! directory each in the state directory; a lock says which one runs.

use berth_client::error::{Failure, Kind};
use berth_client::site::StateDir;
use berth_images::ResolvedManifest;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A container that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The image as it was named.
    pub image: String,
    /// What that meant when the container was made.
    pub pinned: ResolvedManifest,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

/// Held while the container runs.
#[derive(Debug)]
pub struct Hold {
    /// Where what it writes is kept.
    pub upper: PathBuf,
    _lock: File,
}

fn base(state: &StateDir) -> PathBuf {
    state.0.join("containers")
}

fn place(state: &StateDir, name: &str) -> Result<PathBuf, Failure> {
    if super::records::is_name(name) {
        return Ok(base(state).join(name));
    }
    Err(Failure::user(format!(
        "'{name}' cannot be a container's name: use letters, digits, '_', '-' and '.', a letter or digit first"
    )))
}

fn fault(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("{}: {}", path.display(), berth_client::error::io_text(e)))
}

fn missing(name: &str) -> Failure {
    Failure::user(format!("there is no container named '{name}': 'enroot list' shows those that there are"))
}

/// Makes one.
pub fn create(state: &StateDir, name: &str, container: &Named) -> Result<(), Failure> {
    let dir = place(state, name)?;
    let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
    make(&base(state)).map_err(|e| fault(&base(state), &e))?;
    match DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return Err(Failure::user(format!(
                "a container named '{name}' exists already: --force replaces it, another name keeps it"
            )));
        }
        Err(e) => return Err(fault(&dir, &e)),
    }
    make(&dir.join("written")).map_err(|e| fault(&dir, &e))?;
    File::create(dir.join("lock")).map_err(|e| fault(&dir, &e))?;
    // Written last: a directory without it is no container.
    let path = dir.join("container.json");
    let text = serde_json::to_vec(container).map_err(|e| fault(&path, &std::io::Error::other(e)))?;
    std::fs::write(&path, text).map_err(|e| fault(&path, &e))
}

/// Those that there are, by name.
pub fn list(state: &StateDir) -> Result<Vec<(String, Named)>, Failure> {
    let entries = match std::fs::read_dir(base(state)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(fault(&base(state), &e)),
    };
    let mut found: Vec<(String, Named)> = entries
        .flatten()
        .filter_map(|entry| {
            let text = std::fs::read(entry.path().join("container.json")).ok()?;
            Some((entry.file_name().into_string().ok()?, serde_json::from_slice(&text).ok()?))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The one of that name, if there is one.
pub fn find(state: &StateDir, name: &str) -> Result<Option<Named>, Failure> {
    Ok(list(state)?.into_iter().find(|(n, _)| n == name).map(|(_, named)| named))
}

/// Takes it for a run.
pub fn hold(state: &StateDir, name: &str) -> Result<Hold, Failure> {
    let dir = place(state, name)?;
    let lock = File::open(dir.join("lock")).map_err(|_| missing(name))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Hold { upper: dir.join("written"), _lock: lock }),
        Err(_) => Err(Failure::user(format!(
            "the container '{name}' runs already, and two runs cannot write to it at once: use 'enroot exec PID', or \
             wait for it"
        ))),
    }
}

/// Removes one with all that was written in it.
pub fn remove(state: &StateDir, name: &str) -> Result<(), Failure> {
    let dir = place(state, name)?;
    if !dir.exists() {
        return Err(missing(name));
    }
    let hold = hold(state, name);
    if hold.is_err() && dir.join("container.json").exists() {
        return hold.map(drop);
    }
    open_up(&dir).and_then(|()| std::fs::remove_dir_all(&dir)).map_err(|e| fault(&dir, &e))
}

/// Gives the owner back every directory: the kernel's own ones of an overlay, and what a program closed. Symbolic
/// links are not followed.
fn open_up(path: &Path) -> std::io::Result<()> {
    if !std::fs::symlink_metadata(path)?.is_dir() {
        return Ok(());
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o700))?;
    for entry in std::fs::read_dir(path)? {
        open_up(&entry?.path())?;
    }
    Ok(())
}
