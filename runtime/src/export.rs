//! The container's root as a POSIX archive, without what is mounted in it.
//!
//! A process of the container writes it: forked by init, with the user's ids, and with the one capability to read what the
//! user owns but has closed. It reads a copy of the root's mount that was made before anything was mounted in it.

use crate::setup::SetupFailure;
use crate::sys::Errno;
use berth_tar::{BLOCK, END, Kind, Member, WHOLE, padding};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Directories below one another; more is nothing that another program could use.
const DEPTH: usize = 256;
/// Attributes that make sense in another container; overlayfs's own do not.
const KEPT: &[u8] = b"user.";
const NOT_KEPT: &[u8] = b"user.overlay.";
/// Largest list of attributes of a file that is kept.
const ATTRIBUTES: usize = 256 << 10;

/// Writes the archive of `root` to `out`. `owners`: those of the files, as the container sees them; else all belong to root,
/// because all belong to the one user.
///
/// # Errors
/// The file that cannot be read, or the archive that cannot be written.
pub(crate) fn write(root: BorrowedFd<'_>, out: BorrowedFd<'_>, owners: bool) -> Result<(), SetupFailure> {
    let mut writer = Writer { out, owners, links: BTreeMap::new(), buffer: vec![0; 256 << 10] };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = openat(root, c".", flags, Mode::empty()).map_err(|e| unread(b".", e))?;
    writer.directory(&top, &mut Vec::new(), 0)?;
    writer.put(&END)?;
    writer.put(WHOLE)
}

fn unread(path: &[u8], errno: Errno) -> SetupFailure {
    SetupFailure::at("read the container's file", &path.into(), errno)
        .hint("nothing was saved; make it readable in the container, or remove it there")
}

/// What is there under a name; nothing when it went, or became something else, while it was looked for: programs of
/// other steps may still be at work.
fn unless_gone<T>(found: Result<T, Errno>, path: &[u8]) -> Result<Option<T>, SetupFailure> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::INVAL | Errno::NXIO) => Ok(None),
        Err(e) => Err(unread(path, e)),
    }
}

struct Writer<'a> {
    out: BorrowedFd<'a>,
    owners: bool,
    /// The first name of each file that has several.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn put(&self, mut bytes: &[u8]) -> Result<(), SetupFailure> {
        while !bytes.is_empty() {
            match rustix::io::write(self.out, bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::INTR) => {}
                Err(e) => {
                    return Err(SetupFailure::new("pass the container's files on", e));
                }
            }
        }
        Ok(())
    }

    /// The directory itself, unless it is the root, and all in it, by name.
    fn directory(&mut self, dir: &OwnedFd, path: &mut Vec<u8>, depth: usize) -> Result<(), SetupFailure> {
        if depth > DEPTH {
            return Err(unread(path, Errno::NAMETOOLONG).hint("it lies deeper than 256 directories"));
        }
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(dir).map_err(|e| unread(path, e))? {
            let entry = entry.map_err(|e| unread(path, e))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort();
        for name in names {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            self.entry(dir, &name, path, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &CString,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), SetupFailure> {
        let Some(stat) = unless_gone(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW), path)? else {
            return Ok(());
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let several = kind != FileType::Directory && stat.st_nlink > 1;
        if several && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
            return self.header(path, Kind::HardLink, &stat, 0, &first, &[]);
        }
        match kind {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = openat(dir, name, flags, Mode::empty());
                let Some(below) = unless_gone(below, path)? else { return Ok(()) };
                let attributes = attributes(&below);
                self.header(path, Kind::Directory, &stat, 0, b"", &attributes)?;
                self.directory(&below, path, depth + 1)?;
            }
            FileType::RegularFile => {
                let flags =
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = openat(dir, name, flags, Mode::empty());
                let Some(file) = unless_gone(file, path)? else { return Ok(()) };
                // What was opened counts, whatever was looked at.
                let stat = rustix::fs::fstat(&file).map_err(|e| unread(path, e))?;
                if !FileType::from_raw_mode(stat.st_mode).is_file() {
                    return Ok(());
                }
                let attributes = attributes(&file);
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.header(path, Kind::File, &stat, size, b"", &attributes)?;
                self.content(&file, path, size)?;
            }
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new());
                let Some(target) = unless_gone(target, path)? else { return Ok(()) };
                self.header(path, Kind::Symlink, &stat, 0, target.as_bytes(), &[])?;
            }
            FileType::Fifo => self.header(path, Kind::Fifo, &stat, 0, b"", &[])?,
            // Sockets mean nothing without their process; devices belong to the node.
            _ => return Ok(()),
        }
        if several {
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        Ok(())
    }

    fn header(
        &self,
        path: &[u8],
        kind: Kind,
        stat: &Stat,
        size: u64,
        link: &[u8],
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), SetupFailure> {
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let mode = stat.st_mode & 0o7777;
        let owner = if self.owners { (stat.st_uid, stat.st_gid) } else { (0, 0) };
        let mtime = (stat.st_mtime, nanos);
        self.put(&Member { path, kind, mode, owner, size, mtime, link, xattrs }.header())
    }

    /// Exactly as many bytes as the header says: one that shrinks meanwhile ends in zeros, what it gains is left out.
    fn content(&mut self, file: &OwnedFd, path: &[u8], size: u64) -> Result<(), SetupFailure> {
        let mut left = size;
        let mut buffer = std::mem::take(&mut self.buffer);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = match rustix::io::read(file, &mut buffer[..most]) {
                Ok(0) => {
                    buffer[..most].fill(0);
                    most
                }
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(unread(path, e)),
            };
            self.put(&buffer[..read])?;
            left -= read as u64;
        }
        self.buffer = buffer;
        self.put(&[0; BLOCK][..padding(size)])
    }
}

/// The attributes that are kept; a filesystem without any has none.
fn attributes(file: impl AsFd) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = vec![0_u8; 64 << 10];
    let Ok(length) = rustix::fs::flistxattr(&file, &mut list[..]) else { return Vec::new() };
    let mut found = Vec::new();
    let mut total = 0;
    let names = list[..length].split(|b| *b == 0);
    for name in names.filter(|n| n.starts_with(KEPT) && !n.starts_with(NOT_KEPT)) {
        let mut value = vec![0_u8; 64 << 10];
        let Ok(c_name) = CString::new(name) else { continue };
        let Ok(length) = rustix::fs::fgetxattr(&file, &c_name, &mut value[..]) else { continue };
        value.truncate(length);
        total += name.len() + length;
        if total > ATTRIBUTES {
            break;
        }
        found.push((name.to_vec(), value));
    }
    found.sort();
    found
}
