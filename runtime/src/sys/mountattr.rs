//! `mount_setattr`: flags of one mount or of a whole tree, and id mapping.

use super::{SysResult, check};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `MOUNT_ATTR_RDONLY`.
pub const RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub const NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub const NODEV: u64 = 0x4;
/// Every way of keeping access times; relatime is none of its bits.
pub const ATIME: u64 = 0x70;
const IDMAP: u64 = 0x0010_0000;

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What to change about a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'a> {
    /// Flags to set.
    pub set: u64,
    /// Flags to clear.
    pub clear: u64,
    /// Propagation to set, as an `MS_*` constant; 0 leaves it.
    pub propagation: u64,
    /// User namespace whose mapping the mount shall have.
    pub idmap: Option<BorrowedFd<'a>>,
    /// The whole tree below too.
    pub recursive: bool,
}

/// Changes the mount that `mount` is the root of.
pub fn mount_setattr(mount: BorrowedFd<'_>, change: Change<'_>) -> SysResult<()> {
    let mut attr = MountAttr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        ..MountAttr::default()
    };
    if let Some(ns) = change.idmap {
        attr.attr_set |= IDMAP;
        attr.userns_fd = u64::try_from(ns.as_raw_fd()).unwrap_or(u64::MAX);
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty C string, `attr` has the layout and size the kernel is told, and both
    // live across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_mut(&mut attr),
            std::mem::size_of::<MountAttr>(),
        )
    })
    .map(drop)
}
