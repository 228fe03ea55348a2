//! Backups on record: who makes one reads the files without any controller, and carries off all keys of the cluster. It leaves a note, and
//! the controller enters that into the audit log, at once or when it runs again.

use super::{sync_dir, trouble};
use crate::ControllerError;
use berth_model::Time;
use nix::unistd::{Gid, Uid, User};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The notes' directory, below `private/`.
const NOTES: &str = "backups";

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// By whom.
    pub(crate) user: String,
    /// The file.
    pub(crate) file: String,
    /// When, by the time of day.
    pub(crate) time: Time,
}

/// Leaves a note, before there is a backup. Where the state's disk takes nothing more it is made all the same.
pub(super) fn leave(state_dir: &Path, file: &Path, time: Time) -> Result<(), ControllerError> {
    let uid = Uid::current();
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name);
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf()).display().to_string();
    let dir = state_dir.join("private").join(NOTES);
    match write(&dir, &Note { user, file, time }) {
        Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::ReadOnlyFilesystem) => {
            tracing::warn!("the backup is not in the audit log: {}: {e}", dir.display());
            Ok(())
        }
        Err(e) => Err(trouble(&dir, format!("the backup cannot be noted for the audit log: {e}"))),
        Ok(()) => sync_dir(&dir),
    }
}

fn write(dir: &Path, note: &Note) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let name = format!("{}-{}", note.time.0, std::process::id());
    let (new, path) = (dir.join(format!("{name}.new")), dir.join(format!("{name}.json")));
    let mut out = File::create(&new)?;
    out.write_all(&serde_json::to_vec(note)?)?;
    out.set_permissions(Permissions::from_mode(0o600))?;
    out.sync_all()?;
    // Root may save a user's cluster, whose controller is to read and remove it.
    if let Some(above) = dir.parent()
        && Uid::effective().is_root()
    {
        let owner = above.metadata()?;
        for own in [dir, new.as_path()] {
            nix::unistd::chown(own, Some(Uid::from_raw(owner.uid())), Some(Gid::from_raw(owner.gid())))?;
        }
    }
    std::fs::rename(&new, &path)
}

/// The notes that are there, in order, with their files. What is none goes away.
pub(crate) fn left(private: &Path) -> Vec<(PathBuf, Note)> {
    let mut notes = Vec::new();
    for entry in std::fs::read_dir(private.join(NOTES)).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        match read(&path) {
            Ok(note) => notes.push((path, note)),
            Err(e) => match remove(&path) {
                Ok(()) => tracing::warn!("{} is no note of a backup, and was removed: {e}", path.display()),
                // It is found again at once: that is not said twice a second.
                Err(_) => tracing::debug!("{} is no note of a backup: {e}", path.display()),
            },
        }
    }
    notes.sort_by_key(|(_, note)| note.time);
    notes
}

fn read(path: &Path) -> std::io::Result<Note> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Removes the file of a note.
pub(crate) fn remove(path: &Path) -> std::io::Result<()> {
    std::fs::remove_file(path)
}

/// Notes that are on record, and whose files could not be removed: nothing but their removal is tried again.
#[derive(Debug, Default)]
pub(crate) struct Entered(BTreeSet<PathBuf>);

impl Entered {
    /// Of these notes, which are all that are there, those that are not on record.
    pub(crate) fn open(
        &mut self,
        mut notes: Vec<(PathBuf, Note)>,
        remove: impl Fn(&Path) -> std::io::Result<()>,
    ) -> Vec<(PathBuf, Note)> {
        self.0.retain(|path| notes.iter().any(|(there, _)| there == path));
        notes.retain(|(path, _)| !self.0.contains(path));
        self.0.retain(|path| remove(path).is_err());
        notes
    }

    /// A note is on record.
    pub(crate) fn forget(&mut self, path: PathBuf, remove: impl Fn(&Path) -> std::io::Result<()>) {
        if let Err(e) = remove(&path) {
            tracing::warn!(
                "{}: the note of a backup, which is in the audit log, cannot be removed, and will be entered again when the \
                 controller starts: {e}",
                path.display()
            );
            self.0.insert(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_found_until_it_is_forgotten_and_what_is_none_goes() {
        let state = tempfile::tempdir().unwrap();
        let private = state.path().join("private");
        std::fs::create_dir(&private).unwrap();
        assert!(left(&private).is_empty());
        leave(state.path(), Path::new("/backups/second.tar"), Time(2)).unwrap();
        leave(state.path(), Path::new("first.tar"), Time(1)).unwrap();
        std::fs::write(private.join("backups/3.json"), "{").unwrap();
        let notes = left(&private);
        let files: Vec<&str> = notes.iter().map(|(_, note)| note.file.as_str()).collect();
        assert!(files[0].starts_with('/') && files[0].ends_with("/first.tar"), "{files:?}");
        assert_eq!(files[1..], ["/backups/second.tar"]);
        let mut entered = Entered::default();
        notes.into_iter().for_each(|(path, _)| entered.forget(path, remove));
        assert!(left(&private).is_empty());
        assert_eq!(std::fs::read_dir(private.join("backups")).unwrap().count(), 0);
    }

    #[test]
    fn a_note_that_cannot_be_removed_is_entered_once() {
        let state = tempfile::tempdir().unwrap();
        let private = state.path().join("private");
        leave(state.path(), Path::new("/backups/first.tar"), Time(1)).unwrap();
        let cannot = |_: &Path| Err(std::io::Error::from(ErrorKind::ReadOnlyFilesystem));
        let mut entered = Entered::default();
        let files =
            |notes: &[(PathBuf, Note)]| notes.iter().map(|(_, note)| note.file.clone()).collect::<Vec<_>>();
        let open = entered.open(left(&private), cannot);
        assert_eq!(files(&open), ["/backups/first.tar"]);
        // It was refused, and is found again; then it is on record.
        for (path, _) in entered.open(left(&private), cannot) {
            entered.forget(path, cannot);
        }
        assert!(entered.open(left(&private), cannot).is_empty());
        // Another one is entered beside it, and the first goes as soon as it can.
        leave(state.path(), Path::new("/backups/second.tar"), Time(2)).unwrap();
        let open = entered.open(left(&private), remove);
        assert_eq!(files(&open), ["/backups/second.tar"]);
        assert_eq!(files(&left(&private)), ["/backups/second.tar"]);
    }
}
