//! Writes to `/proc` through one verified descriptor of a real procfs's root.

use super::error::{Naming, Result, invalid};
use crate::sys::Errno;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use std::os::fd::OwnedFd;
use std::path::Path;

// linux/magic.h, fs/proc/internal.h
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
const PROC_ROOT_INO: u64 = 1;

/// The root of the runtime's procfs, opened before anything of a container can be in the way.
#[derive(Debug)]
pub struct Procfs(OwnedFd);

impl Procfs {
    /// Opens `/proc` and checks that it is one.
    pub fn open() -> Result<Procfs> {
        Self::open_at("/proc")
    }

    fn open_at(path: &str) -> Result<Procfs> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).named_at("open", path)?;
        let magic = rustix::fs::fstatfs(&fd).named_at("look at", path)?.f_type;
        let inode = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH).named_at("look at", path)?.st_ino;
        if magic != PROC_SUPER_MAGIC || inode != PROC_ROOT_INO {
            return Err(invalid(
                format!("{path} is not the root of a procfs"),
                "mount the node's /proc there",
            ));
        }
        Ok(Procfs(fd))
    }

    /// Opens a file below, on the procfs itself and through no link.
    fn file(&self, path: &str, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        // `self` is a link of the kernel's own, and the one link that is meant.
        let own = path.strip_prefix("self/").map(|rest| {
            let pid = rustix::fs::readlinkat(&self.0, "self", Vec::new())?;
            let pid = pid.to_str().map_err(|_| Errno::INVAL)?.to_string();
            Ok::<String, Errno>(format!("{pid}/{rest}"))
        });
        let own = own.transpose()?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let path = own.as_deref().unwrap_or(path);
        rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Writes a value in one call.
    pub fn write(&self, path: &str, value: &str) -> Result<()> {
        self.try_write(path, value).named_at("write", Path::new("/proc").join(path))
    }

    /// As [`Procfs::write`], with the kernel's error.
    pub fn try_write(&self, path: &str, value: &str) -> std::result::Result<(), Errno> {
        let fd = self.file(path, OFlags::WRONLY)?;
        match rustix::io::write(&fd, value.as_bytes())? {
            n if n == value.len() => Ok(()),
            _ => Err(Errno::IO),
        }
    }

    /// Reads a file of the kernel's.
    pub fn read(&self, path: &str) -> std::result::Result<String, Errno> {
        use std::io::Read;
        let fd = self.file(path, OFlags::RDONLY)?;
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text).map_err(super::error::errno)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_real_procfs_is_written_to() {
        let proc = Procfs::open().unwrap();
        assert!(proc.read("self/status").unwrap().contains("Pid:"));
        assert_eq!(proc.read("self/fd/0/../status").unwrap_err(), Errno::LOOP);
        let dir = tempfile::tempdir().unwrap();
        assert!(
            Procfs::open_at(dir.path().to_str().unwrap()).unwrap_err().to_string().contains("not the root")
        );
        assert!(Procfs::open_at("/proc/self/").is_err() && Procfs::open_at("/proc/sys").is_err());
        // A link to a procfs, too, is not followed.
        let link = dir.path().join("proc");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        assert!(Procfs::open_at(link.to_str().unwrap()).is_err());
    }
}
