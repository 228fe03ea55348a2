//! The directory that a layer is unpacked into, reached only by descriptor and never left.
//!
//! Paths are resolved by the kernel with `openat2(2)`: beneath the root, through no symbolic link, across no
//! mount. Where a layer names an entry below one of its own symbolic links (`lib -> usr/lib`, then `lib/x`), the
//! link is followed by text inside the root, as other tools do, and the result is resolved in the same strict way.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

use super::path::CleanPath;
use super::remove::remove_tree;
use crate::archive::refused;
use crate::error::Result;

/// How the kernel resolves every path of a layer.
pub(crate) const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// Most symbolic links followed for one name, as in the kernel.
const MAX_LINKS: usize = 40;
const WORKING_MODE: Mode = Mode::RWXU;

/// A tree being filled.
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory used last: archives list a directory's entries together.
    cached: Option<(CleanPath, OwnedFd)>,
    /// Directories that no entry described so far.
    pub(super) implicit: Vec<CleanPath>,
    /// How often an entry had to make room for a later one.
    pub(super) replaced: u64,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, cached: None, implicit: Vec::new(), replaced: 0 }
    }

    /// The physical place of `path`: its parent resolved and made where it is missing, links followed inside the
    /// root. The last component is never followed.
    pub(super) fn place(&mut self, path: CleanPath) -> Result<CleanPath> {
        let (parent, _) = path.split_bytes();
        if self.cached.as_ref().is_some_and(|(cached, _)| cached.as_bytes() == parent) {
            return Ok(path);
        }
        let Some((parent, name)) = path.split() else {
            return Ok(path);
        };
        match self.open_dir(&parent) {
            Ok(directory) => {
                self.cached = Some((parent, directory));
                Ok(path)
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                let physical = self.make_parents(&parent, &path)?;
                let directory = self.open_dir(&physical).map_err(|e| physical.io(e))?;
                let mut placed = physical.clone();
                placed.push(name);
                self.cached = Some((physical, directory));
                Ok(placed)
            }
            Err(errno) => Err(path.io(errno)),
        }
    }

    /// The parent directory and the name of a path that [`Tree::place`] gave.
    pub(super) fn at<'a>(&'a mut self, placed: &'a CleanPath) -> Result<(BorrowedFd<'a>, &'a [u8])> {
        let (parent, name) = placed.split_bytes();
        if self.cached.as_ref().is_none_or(|(cached, _)| cached.as_bytes() != parent) {
            let parent = placed.split().map(|(parent, _)| parent).unwrap_or_default();
            let directory = self.open_dir(&parent).map_err(|e| placed.io(e))?;
            self.cached = Some((parent, directory));
        }
        let directory = self.cached.as_ref().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
        Ok((directory, name))
    }

    /// Opens a directory for finishing it.
    pub(super) fn open_dir(&self, path: &CleanPath) -> std::result::Result<OwnedFd, Errno> {
        let name: &[u8] = if path.is_root() { b"." } else { path.as_bytes() };
        openat2(&self.root, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), STRICT)
    }

    /// What stands at a placed path, not following a link.
    pub(super) fn kind_at(&mut self, placed: &CleanPath) -> Result<Option<FileType>> {
        let (directory, name) = self.at(placed)?;
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(placed.io(errno)),
        }
    }

    /// Makes room for an entry: what an earlier entry of the same name made is removed, as the last one counts.
    pub(super) fn clear(&mut self, placed: &CleanPath) -> Result<()> {
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

    /// Makes a directory unless there is one.
    pub(super) fn make_dir(&mut self, placed: &CleanPath) -> Result<()> {
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

    /// Walks `parent` component by component, following links by text and making what is missing.
    fn make_parents(&mut self, parent: &CleanPath, entry: &CleanPath) -> Result<CleanPath> {
        let mut todo: Vec<Vec<u8>> = parent.components().map(<[u8]>::to_vec).collect();
        todo.reverse();
        let mut physical = CleanPath::default();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            match component.as_slice() {
                b"" | b"." => continue,
                // Only from the text of a link; above the root is the root, as after chroot.
                b".." => {
                    physical.pop();
                    continue;
                }
                _ => {}
            }
            let mut here = physical.clone();
            here.push(&component);
            match self.kind_at(&here)? {
                Some(FileType::Directory) => physical = here,
                Some(FileType::Symlink) => {
                    links += 1;
                    if links > MAX_LINKS || todo.len() > 4096 {
                        return Err(refused(
                            entry.as_bytes(),
                            "its name leads through too many symbolic links",
                        ));
                    }
                    let (directory, name) = self.at(&here)?;
                    let target = readlinkat(directory, name, Vec::new()).map_err(|e| here.io(e))?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        physical = CleanPath::default();
                    }
                    todo.extend(target.split(|b| *b == b'/').map(<[u8]>::to_vec).rev());
                }
                Some(_) => {
                    return Err(refused(
                        entry.as_bytes(),
                        "the layer has a file where a directory of this name is needed",
                    ));
                }
                None => {
                    self.make_dir(&here)?;
                    self.implicit.push(here.clone());
                    physical = here;
                }
            }
        }
        Ok(physical)
    }
}
