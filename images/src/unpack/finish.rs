//! The end of a layer: whiteouts and opaque marks as overlayfs wants them, then modes and times of directories.

use std::cmp::Reverse;

use rustix::fs::{FileType, Mode, XattrFlags, fchmod, fsetxattr, futimens, mknodat};
use rustix::io::Errno;

use super::path::CleanPath;
use super::{DirMeta, LayerReport, Unpacker, times};
use crate::error::{Error, ErrorKind, Result};

/// Mode of directories that the archive implies and does not describe.
const IMPLIED_MODE: u32 = 0o755;

impl Unpacker<'_> {
    pub(super) fn finish(mut self) -> Result<LayerReport> {
        for path in std::mem::take(&mut self.whiteouts) {
            self.make_whiteout(path)?;
        }
        for path in std::mem::take(&mut self.opaque) {
            self.mark(&path, b"y")?;
            self.report.opaque_directories += 1;
        }
        self.apply_directories()?;
        Ok(self.report)
    }

    /// A whiteout is a character device 0/0, which any user may make since Linux 5.8; where the file system
    /// forbids it, an empty file with an attribute (kernel documentation, overlayfs, "whiteouts and opaque
    /// directories").
    fn make_whiteout(&mut self, path: CleanPath) -> Result<()> {
        // The parent may have been replaced by a file since; then it hides everything below by itself.
        let parent = path.split().map(|(parent, _)| parent).unwrap_or_default();
        match self.tree.open_dir(&parent) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(path.io(errno)),
        }
        match self.tree.kind_at(&path)? {
            Some(FileType::Directory) => {
                // The same layer removes a directory and brings a new one: nothing below may show through.
                self.opaque.insert(path);
                return Ok(());
            }
            Some(_) => return Ok(()),
            None => {}
        }
        self.report.whiteouts += 1;
        let (directory, name) = self.tree.at(&path)?;
        match mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => return Ok(()),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {}
            Err(errno) => return Err(path.io(errno)),
        }
        let fd = self.create(&path, 0o600)?;
        fsetxattr(&fd, "user.overlay.whiteout", b"y", XattrFlags::empty())
            .map_err(|e| no_whiteouts(&path, e))?;
        if !self.opaque.contains(&parent) {
            self.mark(&parent, b"x")?;
        }
        Ok(())
    }

    /// Sets `user.overlay.opaque`: `y` hides all of the lower directory, `x` says that whiteouts are files.
    fn mark(&mut self, path: &CleanPath, value: &[u8]) -> Result<()> {
        match self.tree.open_dir(path) {
            Ok(fd) => fsetxattr(&fd, "user.overlay.opaque", value, XattrFlags::empty())
                .map_err(|e| no_whiteouts(path, e)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(path.io(errno)),
        }
    }

    /// Deepest first: once a directory has its mode, its owner may be unable to enter it.
    fn apply_directories(&mut self) -> Result<()> {
        for path in std::mem::take(&mut self.tree.implicit) {
            let implied = DirMeta { mode: IMPLIED_MODE, mtime: None, xattrs: Vec::new() };
            self.directories.entry(path).or_insert(implied);
        }
        self.directories.entry(CleanPath::default()).or_insert(DirMeta {
            mode: IMPLIED_MODE,
            mtime: None,
            xattrs: Vec::new(),
        });
        let mut directories: Vec<_> = std::mem::take(&mut self.directories).into_iter().collect();
        directories.sort_by_cached_key(|(path, _)| Reverse(path.depth()));
        for (path, meta) in directories {
            let fd = match self.tree.open_dir(&path) {
                Ok(fd) => fd,
                // A later entry replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(path.io(errno)),
            };
            self.set_xattrs(&fd, &meta.xattrs, &path)?;
            fchmod(&fd, Mode::from_raw_mode(meta.mode)).map_err(|e| path.io(e))?;
            if let Some(mtime) = meta.mtime {
                futimens(&fd, &times(mtime)).map_err(|e| path.io(e))?;
            }
        }
        Ok(())
    }
}

fn no_whiteouts(path: &CleanPath, errno: Errno) -> Error {
    if matches!(errno, Errno::OPNOTSUPP | Errno::PERM) {
        let reason = format!(
            "the file system cannot mark files hidden by {:?}: no extended attributes of users",
            String::from_utf8_lossy(path.as_bytes())
        );
        return Error::new(ErrorKind::Io, "image store", reason).next(
            "put the store (--state) on a local file system such as ext4, xfs, btrfs, or tmpfs of Linux 6.6",
        );
    }
    path.io(errno)
}
