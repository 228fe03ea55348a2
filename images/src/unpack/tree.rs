//! A layer as a directory, reached only by descriptor and never left.
//!
//! Paths are resolved by the kernel with `openat2(2)`: beneath the root, through no symbolic link, across no mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags, fchmod, fsetxattr,
    ftruncate, futimens, linkat, mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::form::{EachContent, Form, Meta, Whiteout};
use super::listing::BLOCK;
use super::names::Names;
use super::path::CleanPath;
use super::remove::{empty_tree, remove_tree};
use crate::error::{Error, ErrorKind, Result};

/// How the kernel resolves every path of a layer.
pub(crate) const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const WORKING_MODE: Mode = Mode::RWXU;

/// A directory being filled.
pub(crate) struct Tree {
    root: OwnedFd,
    /// The directory used last: archives list a directory's entries together.
    cached: Option<(Vec<u8>, OwnedFd)>,
    umask: u32,
    replaced: u64,
}

impl Tree {
    /// Starts in an empty directory.
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root, cached: None, umask: current_umask(), replaced: 0 }
    }

    /// The parent directory and the name of a placed path.
    fn at<'a>(&'a mut self, placed: &'a CleanPath) -> Result<(BorrowedFd<'a>, &'a [u8])> {
        let (parent, name) = placed.split_bytes();
        self.enter(parent).map_err(|e| placed.io(e))?;
        let directory = self.cached.as_ref().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
        Ok((directory, name))
    }

    fn open_dir(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        let name: &[u8] = if path.is_empty() { b"." } else { path };
        openat2(&self.root, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), STRICT)
    }

    /// Tells of the file at a placed path; gives the names in the directory that is there instead.
    fn content(&mut self, path: &CleanPath, each: &mut EachContent<'_>) -> Result<Option<Names>> {
        let io = |e| path.io(e);
        match self.kind_at(path)? {
            Some(FileType::Directory) => {
                let directory = self.open_dir(path.as_bytes()).map_err(io)?;
                Names::of(&directory, |_| Ok(true)).map(Some).map_err(io)
            }
            Some(FileType::RegularFile) => {
                let (directory, name) = self.at(path)?;
                let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io)?;
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                if size > 0 && stat.st_mode & 0o400 != 0 {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    let file = openat(directory, name, flags, Mode::empty()).map_err(io)?;
                    each(path.as_bytes(), size, &mut std::fs::File::from(file))?;
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Opens a directory for finishing it; a later entry may have replaced it.
    fn finished(&self, placed: &CleanPath) -> Result<Option<OwnedFd>> {
        match self.open_dir(placed.as_bytes()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(placed.io(errno)),
        }
    }
}

/// A file of a directory's, and the end of what was written.
pub(crate) struct Written {
    fd: OwnedFd,
    end: u64,
}

impl Form for Tree {
    type File = Written;
    const ENTRY: usize = 0;
    const DIRECTORY: usize = 0;

    fn charged(size: u64) -> u64 {
        size.max(1).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
    }

    fn enter(&mut self, path: &[u8]) -> std::result::Result<(), Errno> {
        if self.cached.as_ref().is_none_or(|(cached, _)| cached != path) {
            self.cached = Some((path.to_vec(), self.open_dir(path)?));
        }
        Ok(())
    }

    fn kind_at(&mut self, placed: &CleanPath) -> Result<Option<FileType>> {
        let (directory, name) = self.at(placed)?;
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(placed.io(errno)),
        }
    }

    fn target_at(&mut self, placed: &CleanPath) -> Result<Vec<u8>> {
        let (directory, name) = self.at(placed)?;
        readlinkat(directory, name, Vec::new()).map(std::ffi::CString::into_bytes).map_err(|e| placed.io(e))
    }

    fn clear(&mut self, placed: &CleanPath) -> Result<()> {
        match self.kind_at(placed)? {
            None => Ok(()),
            Some(FileType::Directory) => {
                self.replaced += 1;
                let (directory, name) = self.at(placed)?;
                remove_tree(directory, name).map_err(|e| placed.io(e))?;
                // The cached directory may have been inside the removed one.
                self.cached = None;
                Ok(())
            }
            Some(_) => {
                self.replaced += 1;
                let (directory, name) = self.at(placed)?;
                unlinkat(directory, name, AtFlags::empty()).map_err(|e| placed.io(e))
            }
        }
    }

    fn contents(&mut self, placed: &CleanPath, each: &mut EachContent<'_>) -> Result<()> {
        let mut path = placed.clone();
        let mut levels: Vec<Names> = self.content(&path, each)?.into_iter().collect();
        while let Some(names) = levels.last_mut() {
            let Some(name) = names.pop() else {
                levels.pop();
                path.pop();
                continue;
            };
            path.push(&name);
            match self.content(&path, each)? {
                Some(below) => levels.push(below),
                None => path.pop(),
            }
        }
        Ok(())
    }

    fn empty(&mut self, directory: &CleanPath) -> Result<()> {
        if let Some(fd) = self.finished(directory)? {
            empty_tree(&fd).map_err(|e| directory.io(e))?;
        }
        self.cached = None;
        Ok(())
    }

    fn replaced(&self) -> u64 {
        self.replaced
    }

    fn make_dir(&mut self, placed: &CleanPath) -> Result<()> {
        for _ in 0..2 {
            let (directory, name) = self.at(placed)?;
            match mkdirat(directory, name, WORKING_MODE) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(placed.io(errno)),
            }
            if self.kind_at(placed)? == Some(FileType::Directory) {
                return Ok(());
            }
            self.clear(placed)?;
        }
        Err(placed.io(Errno::EXIST))
    }

    fn create(&mut self, placed: &CleanPath, mode: u32) -> Result<Written> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Set-id bits wait until the content is complete: a write would remove them.
        let mode = Mode::from_raw_mode(mode & 0o777);
        let (directory, name) = self.at(placed)?;
        let opened = match openat(directory, name, flags, mode) {
            Err(Errno::EXIST) => {
                self.clear(placed)?;
                let (directory, name) = self.at(placed)?;
                openat(directory, name, flags, mode)
            }
            other => other,
        };
        opened.map(|fd| Written { fd, end: 0 }).map_err(|e| placed.io(e))
    }

    fn write(
        &mut self,
        file: &mut Written,
        mut data: &[u8],
        mut offset: u64,
    ) -> std::result::Result<(), Errno> {
        file.end = offset + data.len() as u64;
        while !data.is_empty() {
            match rustix::io::pwrite(&file.fd, data, offset) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => {
                    data = &data[written..];
                    offset += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn complete(&mut self, file: Written, size: u64, meta: &Meta) -> std::result::Result<u64, Errno> {
        let Written { fd: file, end } = file;
        if end < size {
            ftruncate(&file, size)?;
        }
        let skipped = set_xattrs(&file, &meta.xattrs)?;
        if meta.mode & self.umask != 0 || meta.mode & 0o7000 != 0 {
            fchmod(&file, Mode::from_raw_mode(meta.mode))?;
        }
        futimens(&file, &times(meta.mtime))?;
        Ok(skipped)
    }

    fn symlink(&mut self, placed: &CleanPath, target: &[u8], mtime: (i64, u32)) -> Result<()> {
        let (directory, name) = self.at(placed)?;
        symlinkat(target, directory, name)
            .and_then(|()| utimensat(directory, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW))
            .map_err(|e| placed.io(e))
    }

    fn hard_link(&mut self, target: &CleanPath, placed: &CleanPath) -> Result<()> {
        let (source_parent, source_name) = target.split_bytes();
        let source = self.open_dir(source_parent).map_err(|e| target.io(e))?;
        let (directory, name) = self.at(placed)?;
        linkat(&source, source_name, directory, name, AtFlags::empty()).map_err(|e| placed.io(e))
    }

    fn fifo(&mut self, placed: &CleanPath, mode: u32, mtime: (i64, u32)) -> Result<()> {
        let umask = self.umask;
        let (directory, name) = self.at(placed)?;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let made = mknodat(directory, name, FileType::Fifo, mode, 0).and_then(|()| {
            if mode.as_raw_mode() & umask != 0 {
                rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?;
            }
            utimensat(directory, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
        });
        made.map_err(|e| placed.io(e))
    }

    /// A whiteout is a character device 0/0, which any user may make since Linux 5.8; where the file system
    /// forbids it, an empty file with an attribute (kernel documentation, overlayfs, "whiteouts and opaque
    /// directories").
    fn whiteout(&mut self, placed: &CleanPath) -> Result<Whiteout> {
        let (directory, name) = self.at(placed)?;
        match mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => return Ok(Whiteout::Device),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {}
            Err(errno) => return Err(placed.io(errno)),
        }
        let file = self.create(placed, 0o600)?;
        fsetxattr(&file.fd, "user.overlay.whiteout", b"y", XattrFlags::empty())
            .map_err(|e| no_whiteouts(placed, e))?;
        Ok(Whiteout::File)
    }

    fn mark(&mut self, placed: &CleanPath, value: &[u8]) -> Result<()> {
        let Some(fd) = self.finished(placed)? else { return Ok(()) };
        fsetxattr(&fd, "user.overlay.opaque", value, XattrFlags::empty()).map_err(|e| no_whiteouts(placed, e))
    }

    fn describe(&mut self, placed: &CleanPath, meta: &Meta) -> Result<u64> {
        let Some(fd) = self.finished(placed)? else { return Ok(0) };
        let described = set_xattrs(&fd, &meta.xattrs).and_then(|skipped| {
            fchmod(&fd, Mode::from_raw_mode(meta.mode))?;
            futimens(&fd, &times(meta.mtime))?;
            Ok(skipped)
        });
        described.map_err(|e| placed.io(e))
    }
}

/// Sets attributes; gives how many the file system does not take.
fn set_xattrs(fd: &OwnedFd, xattrs: &[(Vec<u8>, Vec<u8>)]) -> std::result::Result<u64, Errno> {
    let mut skipped = 0;
    for (name, value) in xattrs {
        match fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            // The file system has no attributes, or no room for one this large.
            Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::PERM) => skipped += 1,
            Err(errno) => return Err(errno),
        }
    }
    Ok(skipped)
}

/// Access time set like the modification time.
fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
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

/// The process's umask, read without changing it: another thread may be creating files.
fn current_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    // Unknown: assume that it hides everything, so that every mode is set explicitly.
    mask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
}
