//! Mount targets: descriptors opened beneath the container's root, made where they are missing.
//!
//! Every lookup starts at the root's descriptor and is confined to it by the kernel (`openat2` with
//! `RESOLVE_IN_ROOT`), so that a symbolic link in the image, or one swapped in while a mount is made, can
//! lead nowhere else.

use super::{Doing, Setup, SetupFailure};
use crate::sys::Errno;
use berth_model::ByteStr;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// What a target is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Opens what is at an absolute path of the container, without reading it.
pub(super) fn open(root: &OwnedFd, path: &[u8], extra: OFlags) -> Result<OwnedFd, Errno> {
    let relative = match path {
        b"/" | b"" => b".",
        p => p.strip_prefix(b"/").unwrap_or(p),
    };
    // EAGAIN: a rename elsewhere disturbed the confined walk; the kernel asks for another try.
    for _ in 0..32 {
        let result = rustix::fs::openat2(
            root,
            OsStr::from_bytes(relative),
            extra | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        match result {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a mount target, making it and the directories above it where they are missing.
pub(super) fn ensure(root: &OwnedFd, path: &ByteStr, kind: Kind) -> Setup<OwnedFd> {
    match open(root, &path.0, OFlags::PATH) {
        Ok(fd) => return check(fd, path, kind),
        Err(Errno::NOENT) => {}
        Err(e) => return Err(SetupFailure::at("open the mount target", path, e)),
    }
    let mut parent = open(root, b"/", OFlags::PATH).doing("open the container's root")?;
    let mut at = 0;
    while at < path.0.len() {
        let end = path.0[at + 1..].iter().position(|b| *b == b'/').map_or(path.0.len(), |n| at + 1 + n);
        let (prefix, name) = (&path.0[..end], &path.0[at + 1..end]);
        let last = end == path.0.len();
        parent = match open(root, prefix, OFlags::PATH) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                let made = if last && kind == Kind::File {
                    make_file(&parent, name)
                } else {
                    rustix::fs::mkdirat(&parent, OsStr::from_bytes(name), Mode::from_raw_mode(0o755))
                };
                made.map_err(|e| not_made(path, e))?;
                open(root, prefix, OFlags::PATH).doing_at("open the mount target", path)?
            }
            Err(e) => return Err(SetupFailure::at("open the mount target", path, e)),
        };
        at = end;
    }
    check(parent, path, kind)
}

fn not_made(path: &ByteStr, errno: Errno) -> SetupFailure {
    let failure = SetupFailure::at("make the mount target", path, errno);
    match errno {
        Errno::EXIST => {
            failure.hint("the image has a symbolic link there that leads to nothing: mount elsewhere")
        }
        Errno::ROFS => {
            failure.hint("make it in the directory that is mounted read-only there, or mount elsewhere")
        }
        _ => failure,
    }
}

/// Makes an empty file that was not there before.
pub(super) fn make_file<D: AsFd>(dir: D, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::from_raw_mode(0o644)).map(drop)
}

fn check(fd: OwnedFd, path: &ByteStr, kind: Kind) -> Setup<OwnedFd> {
    let directory = is_directory(&fd).doing_at("look at the mount target", path)?;
    match (kind, directory) {
        (Kind::Directory, false) => Err(SetupFailure::refuse(
            "mount a directory on",
            path,
            "the container has a file there: mount elsewhere",
        )),
        (Kind::File, true) => Err(SetupFailure::refuse(
            "mount a file on",
            path,
            "the container has a directory there: name the file in the target too",
        )),
        _ => Ok(fd),
    }
}

/// Whether a descriptor is a directory.
pub(super) fn is_directory(fd: &OwnedFd) -> Result<bool, Errno> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, RenameFlags};
    use std::os::fd::AsRawFd;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn no_swap_of_a_directory_and_a_link_leads_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("root"), dir.path().join("outside"));
        for d in [&inside.join("swap"), &outside] {
            std::fs::create_dir_all(d).unwrap();
        }
        std::os::unix::fs::symlink("../outside", inside.join("link")).unwrap();
        let root = rustix::fs::open(&inside, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let stop = AtomicBool::new(false);
        let (mut made, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let (a, b) = (inside.join("swap"), inside.join("link"));
                    rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                }
            });
            for n in 0..5_000 {
                let kind = if n % 2 == 0 { Kind::Directory } else { Kind::File };
                let path = ByteStr::from(format!("/swap/a{}/b{n}", n % 7));
                match ensure(&root, &path, kind) {
                    Ok(fd) => {
                        made += 1;
                        let real = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
                        assert!(real.starts_with(&inside), "{}", real.display());
                    }
                    Err(_) => refused += 1,
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{made} made, {refused} refused");
        // Both must have happened, or nothing was raced.
        assert!(made > 0 && refused > 0, "{made} made, {refused} refused");
    }
}
