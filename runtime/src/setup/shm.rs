//! The `/dev/shm` that a job's containers share: the job's holder has it in a mount namespace of its own, and
//! each container takes a copy of the mount from there.

use super::target::Root;
use super::{Doing, Setup, SetupFds, attach, enter, overlay};
use crate::plan::{MountKind, Plan};
use crate::sys::fork;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use std::os::fd::{AsFd, OwnedFd};

/// Its name in the holder's mount namespace.
const PLACE: &str = "/shm";

/// Gives the calling process a mount namespace with nothing in it but the job's memory, so that no mount of
/// the node is held for as long as the job lives.
pub(crate) fn hold(size: Option<u64>) -> Setup<()> {
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fork::unshare(libc::CLONE_NEWNS).doing("make a mount namespace for the job")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing("detach the mounts from the node's")?;
    let root = overlay::tmpfs(&[("mode", "755"), ("size", "4096")], attrs).doing("make an empty root")?;
    attach(root.as_fd(), CWD, "/").doing("mount an empty root")?;
    rustix::fs::mkdirat(&root, &PLACE[1..], Mode::from_raw_mode(0o755)).doing("make a directory")?;
    let size = size.map(|n| n.to_string());
    let mut options = vec![("mode", "1777")];
    if let Some(size) = &size {
        options.push(("size", size));
    }
    let shm = overlay::tmpfs(&options, attrs).doing("make the job's /dev/shm")?;
    attach(shm.as_fd(), &root, &PLACE[1..]).doing("mount the job's /dev/shm")?;
    enter::pivot(&Root::new(root, false)?)
}

/// A copy of the mount, where the plan has it.
pub(super) fn take(plan: &Plan, fds: &SetupFds) -> Setup<Option<OwnedFd>> {
    let wanted = plan.mounts.iter().any(|m| m.kind == MountKind::JobShm);
    let Some(holder) = fds.holder.as_ref().filter(|_| wanted) else { return Ok(None) };
    let what = "take the job's /dev/shm";
    let own = rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing("open the mount namespace")?;
    rustix::thread::move_into_thread_name_spaces(holder.as_fd(), ThreadNameSpaceType::MOUNT).doing(what)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, PLACE, flags);
    rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Mount))
        .doing("come back from the job's mount namespace")?;
    tree.doing(what).map(Some)
}
