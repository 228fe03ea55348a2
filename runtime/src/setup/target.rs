//! Mount targets: descriptors opened beneath the container's root, made where they are missing.
//!
//! Every lookup starts at the root's descriptor and is confined to it by the kernel (`openat2` with
//! `RESOLVE_IN_ROOT`), so that a symbolic link in the image, or one swapped in while a mount is made, can
//! lead nowhere else.

use super::{Doing, Setup, SetupFailure, rights};
use crate::sys::Errno;
use berth_model::ByteStr;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// The container's root while the container is made.
pub(crate) struct Root {
    fd: OwnedFd,
    mount: u64,
    made: bool,
}

impl Root {
    /// `made`: the filesystem was made for this container and shows the user nothing of the node's that could be
    /// written: what is made in it may be made with root's rights. Anything else is the user's own affair.
    pub fn new(fd: OwnedFd, made: bool) -> Setup<Root> {
        let mount = mount_id(fd.as_fd()).doing("look at the container's root")?;
        Ok(Root { fd, mount, made })
    }

    /// Whether a place lies in the root itself, and not in something that was mounted into it.
    pub fn holds(&self, place: BorrowedFd<'_>) -> Result<bool, Errno> {
        Ok(mount_id(place)? == self.mount)
    }

    /// Does something to a directory: with the user's rights, and where these do not suffice, and the directory lies in
    /// a root that was made for this container, with root's. Layers have directories that even their owner cannot
    /// write.
    pub fn change<T>(&self, dir: BorrowedFd<'_>, action: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match action() {
            Err(Errno::ACCESS | Errno::PERM) if self.made && self.holds(dir)? => rights::with_roots(action)?,
            other => other,
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 { Err(Errno::NOSYS) } else { Ok(stat.stx_mnt_id) }
}

/// What a target is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Opens what is at an absolute path of the container, without reading it.
pub(crate) fn open(root: &Root, path: &[u8], extra: OFlags) -> Result<OwnedFd, Errno> {
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
pub(crate) fn ensure(root: &Root, path: &ByteStr, kind: Kind) -> Setup<OwnedFd> {
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
                let made = root.change(parent.as_fd(), || {
                    if last && kind == Kind::File {
                        make_file(&parent, name)
                    } else {
                        rustix::fs::mkdirat(&parent, OsStr::from_bytes(name), Mode::from_raw_mode(0o755))
                    }
                });
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
        Errno::ACCESS | Errno::PERM => failure
            .hint("you may not write in the directory that is mounted there: make it, or mount elsewhere"),
        Errno::ROFS => {
            failure.hint("make it in the directory that is mounted read-only there, or mount elsewhere")
        }
        _ => failure,
    }
}

/// Makes an empty file that was not there before.
pub(crate) fn make_file<D: AsFd>(dir: D, name: &[u8]) -> Result<(), Errno> {
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
pub(crate) fn is_directory(fd: &OwnedFd) -> Result<bool, Errno> {
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
        let root = Root::new(root, false).unwrap();
        let stop = AtomicBool::new(false);
        let (mut made, mut refused, mut escaped) = (0, 0, None);
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
                        if !real.starts_with(&inside) {
                            escaped = Some(real);
                            break;
                        }
                    }
                    Err(_) => refused += 1,
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(escaped, None);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{made} made, {refused} refused");
        // Both must have happened, or nothing was raced.
        assert!(made > 0 && refused > 0, "{made} made, {refused} refused");
    }
}
