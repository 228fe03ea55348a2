//! Credentials that act on file access alone.

use super::Errno;

/// Makes file access use this user and group; the process keeps its other ids.
///
/// # Errors
/// `EPERM` when the ids did not change (these calls report no error of their own).
pub fn set_fs_ids(uid: u32, gid: u32) -> Result<(), Errno> {
    // SAFETY: both calls take a number and touch no memory.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
    // A second call with an impossible id changes nothing and returns the current one.
    // SAFETY: as above.
    let (now_uid, now_gid) = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    let same = |now: libc::c_int, want: u32| now.cast_unsigned() == want;
    if same(now_uid, uid) && same(now_gid, gid) { Ok(()) } else { Err(Errno::PERM) }
}
