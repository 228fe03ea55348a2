//! The last part of a restore: what was replaced goes aside, what came from the backup to its place. It begins once the
//! database bears its name, and goes on from wherever it was when it was killed.

use super::{sync_dir, trouble};
use crate::ControllerError;
use berth_store::DirectoryLock;
use serde::{Deserialize, Serialize};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// In the database's directory: what is still to be done.
pub(super) const LEFT: &str = "restored";
/// In that: the plan.
pub(super) const PLAN: &str = "plan.json";
/// In that: files by their paths below the state directory.
pub(super) const FILES: &str = "files";
/// Where the new database is made, and where the old one is for a moment.
pub(super) const STAGE: &str = "db.restoring";

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Name of the directory, in the state directory, for what was replaced.
    pub(super) aside: String,
}

/// Finishes a restore that was killed after the database had got its name. A controller does it before all else.
///
/// # Errors
/// A controller runs, or what is in the way of a file.
pub fn finish_interrupted(state_dir: &Path) -> Result<(), ControllerError> {
    let db = state_dir.join("db");
    if db.join(LEFT).join(PLAN).exists() {
        let _lock = DirectoryLock::take(&db)?;
        finish(state_dir)?;
        tracing::info!("{}: an interrupted restore was finished", state_dir.display());
    }
    Ok(())
}

/// Does what is left to do, in an order in which nothing is lost whenever it stops. Whoever calls it has the database's
/// lock. Returns where what was replaced is.
pub(super) fn finish(root: &Path) -> Result<Option<PathBuf>, ControllerError> {
    let left = root.join("db").join(LEFT);
    let plan = left.join(PLAN);
    let text = match std::fs::read(&plan) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(trouble(&plan, e)),
    };
    let Plan { aside } = serde_json::from_slice(&text).map_err(|e| trouble(&plan, e))?;
    let aside = root.join(aside);
    let old = root.join(STAGE);
    if old.exists() {
        private(&aside)?;
        rename(&old, &aside.join("db"))?;
    }
    let files = left.join(FILES);
    let mut names = Vec::new();
    list(&files, Path::new(""), &mut names)?;
    for name in names {
        let (target, kept) = (root.join(&name), aside.join(&name));
        if std::fs::symlink_metadata(&target).is_ok() {
            private(kept.parent().unwrap_or(&aside))?;
            rename(&target, &kept)?;
        }
        let place = target.parent().unwrap_or(root);
        private(place)?;
        rename(&files.join(&name), &target)?;
        sync_dir(place)?;
    }
    sync_dir(root)?;
    std::fs::remove_dir_all(&left).map_err(|e| trouble(&left, e))?;
    sync_dir(&root.join("db"))?;
    Ok(aside.exists().then_some(aside))
}

fn rename(from: &Path, to: &Path) -> Result<(), ControllerError> {
    std::fs::rename(from, to).map_err(|e| trouble(to, e))
}

/// Makes a directory that is its owner's alone, where there is none.
pub(super) fn private(dir: &Path) -> Result<(), ControllerError> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| trouble(dir, e))
}

/// Files below a directory, by their paths in it.
fn list(dir: &Path, name: &Path, names: &mut Vec<PathBuf>) -> Result<(), ControllerError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(trouble(dir, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| trouble(dir, e))?;
        let inner = name.join(entry.file_name());
        match entry.file_type().map_err(|e| trouble(dir, e))?.is_dir() {
            true => list(&entry.path(), &inner, names)?,
            false => names.push(inner),
        }
    }
    Ok(())
}
