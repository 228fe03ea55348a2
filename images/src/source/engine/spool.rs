//! Where an engine's archive stands while it is read: a file without a name, of a bounded size.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstatvfs};

use crate::error::{Error, ErrorKind, Result};

/// Where large temporary files go (hier(7)); /tmp may be memory.
const USUAL: &str = "/var/tmp";
/// Headers and padding of an archive, above what the engine says that the image has.
const MARGIN: u64 = 1 << 30;

/// What to do where there is no place for it.
const NEXT: &str = "name a directory on a disk with enough space by TMPDIR";

fn directory() -> PathBuf {
    let named = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    named.unwrap_or_else(|| PathBuf::from(USUAL))
}

fn place(directory: &Path) -> String {
    format!("temporary file in {}", directory.display())
}

/// A file without a name, to be written and read.
pub(super) fn unnamed() -> Result<File> {
    unnamed_in(&directory())
}

fn unnamed_in(directory: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR);
    file.map(File::from).map_err(|e| Error::io(place(directory), e).next(NEXT))
}

/// The file, on its way.
pub(super) struct Spool {
    file: File,
    what: String,
    left: u64,
}

impl Spool {
    /// For an image of `size` bytes, in the directory that TMPDIR names, or in /var/tmp.
    pub(super) fn new(what: &str, size: u64) -> Result<Spool> {
        Spool::within(&directory(), what, size)
    }

    fn within(directory: &Path, what: &str, size: u64) -> Result<Spool> {
        let file = unnamed_in(directory)?;
        let place = place(directory);
        let space = fstatvfs(&file).map_err(|e| Error::io(&place, e))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < size {
            let reason = format!("{what} has {size} bytes, and there are {free} free");
            return Err(Error::new(ErrorKind::Io, place, reason).next(NEXT));
        }
        let left = size.saturating_mul(2).saturating_add(MARGIN);
        Ok(Spool { file, what: what.to_owned(), left })
    }

    /// Takes all that is to be read.
    pub(super) fn take(&mut self, from: &mut dyn Read) -> Result<()> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(&self.what, e)),
            };
            self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
                Error::new(
                    ErrorKind::Refused,
                    &self.what,
                    "it grows to more than twice what its engine says that it has",
                )
                .next("write it into a file with the engine's `save`, and name that")
            })?;
            self.file.write_all(&buffer[..read]).map_err(|e| Error::io("temporary file of an image", e))?;
        }
    }

    /// The file, to be read from its start.
    pub(super) fn into_file(mut self) -> Result<File> {
        self.file.rewind().map_err(|e| Error::io("temporary file of an image", e))?;
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_without_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::within(dir.path(), "docker-daemon:x", 0).unwrap();
        spool.left = 1 << 20;
        let error = spool.take(&mut std::io::repeat(0)).unwrap_err().to_string();
        assert!(error.contains("docker-daemon:x") && error.contains("more than twice"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let error = Spool::within(dir.path(), "docker-daemon:x", u64::MAX).err().unwrap().to_string();
        assert!(error.contains("free") && error.contains("TMPDIR"), "{error}");
    }
}
