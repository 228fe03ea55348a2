//! `/dev`: a filesystem of the container's own with the standard devices and the allocated ones.

use super::target::{self, Kind, Root};
use super::{Doing, Setup, SetupFailure, attach, overlay, rights};
use crate::plan::PlannedMount;
use crate::sys::Errno;
use berth_model::ByteStr;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::mount::{MountAttrFlags, OpenTreeFlags};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Devices that every container has, with their numbers (Linux's `devices.txt`).
pub(crate) const STANDARD: [(&str, (u32, u32)); 6] = [
    ("null", (1, 3)),
    ("zero", (1, 5)),
    ("full", (1, 7)),
    ("random", (1, 8)),
    ("urandom", (1, 9)),
    ("tty", (5, 0)),
];

pub(crate) const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Mounts it on the planned target and fills it.
pub(super) fn make(root: &Root, m: &PlannedMount, devices: &[ByteStr], attrs: MountAttrFlags) -> Setup<()> {
    let what = "make /dev";
    let options = [("mode", "755"), ("size", "1m")];
    let dev = overlay::tmpfs(&options, attrs).doing(what)?;
    for (name, to) in LINKS {
        rustix::fs::symlinkat(to, &dev, name).doing(what)?;
    }
    for dir in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&dev, dir, Mode::from_raw_mode(0o755)).doing(what)?;
    }
    let own = nodes(&dev).doing(what)?;
    let shown = if own { &[][..] } else { &STANDARD };
    for (name, _) in shown {
        target::make_file(&dev, name.as_bytes()).doing(what)?;
    }
    let place = target::ensure(root, &m.target, Kind::Directory)?;
    attach(dev.as_fd(), &place, "").doing(what)?;
    for &(name, number) in shown {
        let path = format!("/dev/{name}");
        let source = open_device(&path, Some(number)).map_err(|e| wrong_device(&path, e))?;
        bind(&source, &dev, name.as_bytes()).doing_at("bring in", &path.into())?;
    }
    for device in devices {
        // The node's list of devices names them, not the user.
        let opened = rights::with_roots(|| open_device(device.as_os(), None));
        let source = opened.and_then(|opened| opened).map_err(|e| {
            SetupFailure::at("bring in the allocated device", device, e)
                .hint("the node's list of devices (gres) names a file that is no device")
        })?;
        let name = device.0.strip_prefix(b"/dev/").unwrap_or(&device.0);
        make_parents(&dev, name).doing_at("make the place of", device)?;
        match target::make_file(&dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(SetupFailure::at("make the place of", device, e)),
        }
        bind(&source, &dev, name).doing_at("bring in the allocated device", device)?;
    }
    Ok(())
}

/// Makes device files of the container's own, which cost a sixth of showing the node's. False where that is not allowed: in a
/// user namespace, and where the control group forbids it.
fn nodes(dev: &OwnedFd) -> Result<bool, Errno> {
    let make = || {
        let umask = rustix::process::umask(Mode::empty());
        let made = STANDARD.iter().try_for_each(|(name, (major, minor))| {
            let number = rustix::fs::makedev(*major, *minor);
            rustix::fs::mknodat(dev, *name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), number)
        });
        rustix::process::umask(umask);
        made
    };
    match rights::with_roots(make)? {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS) => {
            // The first was refused, or none: what is there would be in the way.
            for (name, _) in STANDARD {
                match rustix::fs::unlinkat(dev, name, AtFlags::empty()) {
                    Ok(()) => {}
                    Err(Errno::NOENT) => break,
                    Err(e) => return Err(e),
                }
            }
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

fn wrong_device(path: &str, errno: Errno) -> SetupFailure {
    let failure = SetupFailure::at("bring in", &path.into(), errno);
    if errno == Errno::NXIO {
        return failure.hint("the node has something else there");
    }
    failure
}

fn make_parents(dev: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    for (at, _) in name.iter().enumerate().filter(|(_, b)| **b == b'/') {
        match rustix::fs::mkdirat(dev, OsStr::from_bytes(&name[..at]), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Opens a device of the node by path and checks on the descriptor that it is one, and which.
/// `ENXIO`: something else is there.
pub(crate) fn open_device<P: rustix::path::Arg>(
    path: P,
    number: Option<(u32, u32)>,
) -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let fits = match number {
        Some((major, minor)) => {
            kind.is_char_device()
                && rustix::fs::major(stat.st_rdev) == major
                && rustix::fs::minor(stat.st_rdev) == minor
        }
        None => kind.is_char_device() || kind.is_block_device(),
    };
    if fits { Ok(fd) } else { Err(Errno::NXIO) }
}

fn bind(source: &OwnedFd, dev: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source, "", flags)?;
    let to = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", dev, OsStr::from_bytes(name), to)
}
