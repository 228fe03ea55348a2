//! What an image is called, kept in its user's own cache: to name one, all of it has to be read, and a file that is as it
//! was (device, inode, size, times of change) has the name that it had, on all nodes that share it and the cache. So has an
//! image of an engine with the id that it had.
//!
//! Nothing in the cache is believed by others: whoever fetches the layer checks it against its digest, as that of any
//! source.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::source::open_regular;

/// Below the home directory.
const DIRECTORY: &str = ".cache/berth/squashfs";
const ENGINES: &str = ".cache/berth/engines";
/// Which archive and configuration are made of an image: to be raised when others are made of the same files.
const FORMAT: u32 = 3;
/// Bytes of an entry, and how many entries are kept.
const LARGEST: u64 = 1 << 20;
const MOST: usize = 256;
/// How long a file must have been as it is.
const SETTLED: Duration = Duration::from_secs(2);

/// An entry: manifest and configuration as they were made.
#[derive(Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) manifest: String,
    pub(crate) config: String,
}

/// Where a file is remembered.
pub(crate) struct Remembered {
    directory: PathBuf,
    name: String,
    changed: SystemTime,
}

impl Remembered {
    /// The place for a file as it is now.
    pub(crate) fn of(home: &Path, file: &Metadata) -> Remembered {
        let name = format!(
            "{}-{:x}-{:x}-{:x}-{:x}.{}-{:x}.{}",
            FORMAT,
            device(file.dev()),
            file.ino(),
            file.size(),
            file.mtime(),
            file.mtime_nsec(),
            file.ctime(),
            file.ctime_nsec(),
        );
        let seconds = Duration::from_secs(u64::try_from(file.ctime()).unwrap_or(0));
        Remembered { directory: home.join(DIRECTORY), name, changed: SystemTime::UNIX_EPOCH + seconds }
    }

    /// The place for an image of an engine: its id is that of its content, which never changes.
    pub(crate) fn of_image(home: &Path, engine: &str, id: &Digest) -> Remembered {
        let name = format!("{FORMAT}-{engine}-{}", id.file_name());
        Remembered { directory: home.join(ENGINES), name, changed: SystemTime::UNIX_EPOCH }
    }

    /// Whether the file is still as it was.
    pub(crate) fn is(&self, other: &Remembered) -> bool {
        self.name == other.name
    }

    /// What is remembered. One that is not ours alone to write, or that cannot be read, is none.
    pub(crate) fn read(&self) -> Option<Entry> {
        private(&self.directory).ok()?;
        let mut text = Vec::new();
        open_regular(&self.directory.join(&self.name)).ok()?.take(LARGEST).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Remembers, unless the file was changed so shortly before `now` that it may change again without its times showing it.
    ///
    /// # Errors
    /// There is no place for it, which is no reason to fail.
    pub(crate) fn write(&self, entry: &Entry, now: SystemTime) -> io::Result<()> {
        if !now.duration_since(self.changed).is_ok_and(|age| age >= SETTLED) {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        private(&self.directory)?;
        if fs::read_dir(&self.directory)?.count() >= MOST {
            // It fills again with what is in use.
            for old in fs::read_dir(&self.directory)?.flatten() {
                // Somebody else may be about it, too.
                let _ = fs::remove_file(old.path());
            }
        }
        let temporary = self.directory.join(format!(".{}.{}", std::process::id(), self.name));
        let written = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&serde_json::to_vec(entry)?))
            .and_then(|()| fs::rename(&temporary, self.directory.join(&self.name)));
        if written.is_err() {
            // The error that counts is the first.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// The device of a file as all nodes call it. A filesystem without a block device, as every network filesystem is, has a
/// number of each node's own; inode, size and times, down to nanoseconds, are the server's.
fn device(number: u64) -> u64 {
    if rustix::fs::major(number) == 0 { 0 } else { number }
}

/// Refuses a directory into which others may write.
fn private(directory: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(directory)?;
    let ours =
        found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if ours { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_network_filesystem_is_the_same_on_all_nodes() {
        let number = rustix::fs::makedev;
        assert_eq!(device(number(0, 57)), device(number(0, 61)));
        assert_ne!(device(number(259, 1)), device(number(259, 2)));
    }

    #[test]
    fn what_has_changed_just_now_is_not_remembered() {
        let home = tempfile::tempdir().unwrap();
        let place = Remembered::of(home.path(), &home.path().metadata().unwrap());
        let entry = || Entry { manifest: "m".into(), config: "c".into() };
        let at = |seconds| place.changed + Duration::from_secs(seconds);
        place.write(&entry(), at(1)).unwrap();
        assert!(place.read().is_none());
        place.write(&entry(), at(2)).unwrap();
        assert_eq!(place.read().map(|entry| entry.manifest), Some("m".to_string()));
    }

    #[test]
    fn what_is_kept_does_not_grow_for_ever() {
        let home = tempfile::tempdir().unwrap();
        let mut place = Remembered::of(home.path(), &home.path().metadata().unwrap());
        let now = place.changed + SETTLED;
        for n in 0..2 * MOST {
            place.name = n.to_string();
            place.write(&Entry { manifest: String::new(), config: String::new() }, now).unwrap();
            assert!(place.read().is_some());
        }
        assert!(fs::read_dir(&place.directory).unwrap().count() <= MOST);
    }
}
