//! Performs the planned mounts, each on a descriptor opened beneath the container's root.

use super::overlay::{filesystem, tmpfs};
use super::target::{self, Kind, Root};
use super::{Doing, Setup, SetupFailure, attach, dev, open_path, rights};
use crate::plan::{Attrs, Mode, MountKind, Plan, PlannedMount};
use crate::sys::{Errno, mountattr};
use berth_model::ByteStr;
use rustix::fs::OFlags;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, UnmountFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Opens the sources of all binds, in the plan's order; the caller decides with whose rights.
///
/// In system mode Berth's own sources are opened later, by root: the state directory may be closed to the
/// user.
pub(super) fn open_sources(plan: &Plan) -> Setup<Vec<Source>> {
    let open = |m: &PlannedMount| match &m.kind {
        MountKind::Bind { .. } if plan.mode == Mode::System && m.origin == "berth" => Ok(Source::Ours),
        MountKind::Bind { source, .. } => match open_path(source).map_err(|e| source_failure(m, source, e)) {
            Ok(fd) => Ok(Source::Open(fd)),
            // The user's rights do not suffice, and no other rights are tried.
            Err(failure) if !m.required => Ok(Source::Absent(failure)),
            Err(failure) => Err(failure),
        },
        _ => Ok(Source::None),
    };
    plan.mounts.iter().map(open).collect()
}

/// What a mount shows.
pub(super) enum Source {
    /// Nothing of the node.
    None,
    /// Something of the node, open.
    Open(OwnedFd),
    /// Something of Berth's own, which root opens.
    Ours,
    /// It could not be opened, and the container does without.
    Absent(SetupFailure),
}

fn source_failure(m: &PlannedMount, source: &berth_model::ByteStr, errno: Errno) -> SetupFailure {
    if errno == Errno::NOENT {
        return SetupFailure::refuse(
            "use the mount source",
            source,
            &format!("{}: source path does not exist: correct it, or make it on the node first", m.origin),
        );
    }
    SetupFailure::at("open the mount source", source, errno).hint(format!("asked for by {}", m.origin))
}

/// Performs them in order.
pub(super) fn perform(
    plan: &Plan,
    root: &Root,
    sources: Vec<Source>,
    mut shm: Option<OwnedFd>,
    notes: &mut Vec<String>,
) -> Setup<()> {
    for (m, source) in plan.mounts.iter().zip(sources) {
        // The job's memory was opened before its place was known.
        let source = match (&m.kind, shm.take_if(|_| m.kind == MountKind::JobShm)) {
            (MountKind::JobShm, Some(shm)) => Source::Open(shm),
            _ => source,
        };
        match one(root, m, source) {
            Ok(()) => {}
            Err(e) if !m.required => {
                // What is absent needs no protection.
                if !m.silent && (e.errno != libc::ENOENT || m.origin != "berth") {
                    notes.push(format!("left out: {e}"));
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// One mount.
pub(super) fn one(root: &Root, m: &PlannedMount, source: Source) -> Setup<()> {
    let attrs = attr_flags(m.attrs);
    match &m.kind {
        MountKind::Proc => {
            let fs = filesystem("proc", &[], attrs).doing("mount /proc").map_err(|f| {
                f.hint("if this is itself a container, its /proc is masked: start it with an unmasked /proc")
            })?;
            place(root, m, fs.as_fd(), Kind::Directory)
        }
        MountKind::Bind { source: path, recursive, slave } => {
            let source = match source {
                Source::Open(fd) => fd,
                Source::Ours => rights::lend(|| open_path(path).map_err(|e| source_failure(m, path, e)))?,
                Source::Absent(failure) => return Err(failure),
                Source::None => return Err(SetupFailure::at("find the source of", &m.target, Errno::INVAL)),
            };
            bind(root, m, &source, *recursive, *slave)
        }
        MountKind::Tmpfs { size, mode } => {
            let mode = format!("{mode:o}");
            let size = size.map(|n| n.to_string());
            let mut options = vec![("mode", mode.as_str())];
            if let Some(size) = &size {
                options.push(("size", size));
            }
            let fs = tmpfs(&options, attrs).doing_at("make a filesystem in memory for", &m.target)?;
            place(root, m, fs.as_fd(), Kind::Directory)
        }
        MountKind::JobShm => {
            let Source::Open(fs) = source else {
                return Err(SetupFailure::at("find the source of", &m.target, Errno::INVAL));
            };
            let change = mountattr::Change { set: u64::from(attrs.bits()), ..mountattr::Change::default() };
            mountattr::mount_setattr(fs.as_fd(), change).doing("set the flags of /dev/shm")?;
            place(root, m, fs.as_fd(), Kind::Directory)
        }
        MountKind::Dev { devices } => dev::make(root, m, devices, attrs),
        MountKind::Devpts => {
            let options = [("ptmxmode", "0666"), ("mode", "0620")];
            let fs = filesystem("devpts", &options, attrs).doing("mount /dev/pts")?;
            place(root, m, fs.as_fd(), Kind::Directory)
        }
        MountKind::Mqueue => {
            let fs = filesystem("mqueue", &[], attrs).doing("mount /dev/mqueue")?;
            place(root, m, fs.as_fd(), Kind::Directory)
        }
        MountKind::Umount => umount(root, m),
        MountKind::ReadOnly => read_only(root, &m.target),
        MountKind::Mask => mask(root, &m.target),
    }
}

fn attr_flags(a: Attrs) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    let pairs = [
        (a.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (a.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (a.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (a.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ];
    for (on, flag) in pairs {
        if on {
            flags |= flag;
        }
    }
    flags
}

fn place(root: &Root, m: &PlannedMount, mount: BorrowedFd<'_>, kind: Kind) -> Setup<()> {
    let target = target::ensure(root, &m.target, kind)?;
    attach(mount, &target, "").doing_at("mount on", &m.target)
}

pub(crate) fn clone_tree(source: &OwnedFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(source, "", flags)
}

fn bind(root: &Root, m: &PlannedMount, source: &OwnedFd, recursive: bool, slave: bool) -> Setup<()> {
    let directory = target::is_directory(source).doing_at("look at the source of", &m.target)?;
    if m.create_dir.is_some_and(|dir| dir != directory) && m.origin == "--container-mounts" {
        return Err(SetupFailure::refuse(
            "mount on",
            &m.target,
            if directory {
                "x-create=file, but the source is a directory"
            } else {
                "x-create=dir, but the source is a file"
            },
        ));
    }
    // The place first: a clone that is not attached in the end costs the kernel a grace period.
    let place = target::ensure(root, &m.target, if directory { Kind::Directory } else { Kind::File })?;
    let tree = clone_tree(source, recursive).map_err(|e| {
        let failure = SetupFailure::at("bind the source of", &m.target, e);
        // The kernel does not let a user namespace reveal what lies under the node's mounts.
        if e == Errno::INVAL && !recursive {
            failure.hint("something is mounted below the source, and only root may hide it: use rbind")
        } else {
            failure
        }
    })?;
    let change = mountattr::Change {
        set: u64::from(attr_flags(m.attrs).bits()),
        propagation: if slave { libc::MS_SLAVE } else { libc::MS_PRIVATE },
        recursive,
        ..mountattr::Change::default()
    };
    mountattr::mount_setattr(tree.as_fd(), change).doing_at("set the flags of the mount on", &m.target)?;
    attach(tree.as_fd(), &place, "").doing_at("mount on", &m.target)
}

fn umount(root: &Root, m: &PlannedMount) -> Setup<()> {
    let fd = target::open(root, &m.target.0, OFlags::PATH).doing_at("unmount", &m.target)?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(|e| {
        let failure = SetupFailure::at("unmount", &m.target, e);
        if e == Errno::INVAL { failure.hint("nothing is mounted there") } else { failure }
    })
}

/// Makes a path of the container, with all below it, read-only.
pub(crate) fn read_only(root: &Root, target: &ByteStr) -> Setup<()> {
    let fd = target::open(root, &target.0, OFlags::PATH).doing_at("protect", target)?;
    let tree = clone_tree(&fd, true).doing_at("protect", target)?;
    let change =
        mountattr::Change { set: mountattr::RDONLY, recursive: true, ..mountattr::Change::default() };
    mountattr::mount_setattr(tree.as_fd(), change).doing_at("protect", target)?;
    attach(tree.as_fd(), &fd, "").doing_at("protect", target)
}

/// Covers a path of the container: a file by the null device, checked by its number, a directory by an empty one.
pub(crate) fn mask(root: &Root, target: &ByteStr) -> Setup<()> {
    let fd = target::open(root, &target.0, OFlags::PATH).doing_at("mask", target)?;
    let cover = if target::is_directory(&fd).doing_at("mask", target)? {
        tmpfs(&[("mode", "555"), ("size", "4096")], MountAttrFlags::MOUNT_ATTR_RDONLY)
    } else {
        dev::open_device("/dev/null", Some((1, 3))).and_then(|null| clone_tree(&null, false))
    };
    attach(cover.doing_at("mask", target)?.as_fd(), &fd, "").doing_at("mask", target)
}
