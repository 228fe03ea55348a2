//! Touching the user's files as the user: never with root's rights, which network filesystems squash and
//! which would follow the user's symbolic links into other people's files.

use berth_model::spec::Identity;
use berth_runtime::sys::fork::exit_now;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setegid, seteuid, setgroups};
use std::io;

/// Runs `action` with the user's ids, groups and umask. The process must have one thread. Without root's
/// rights there is only one user, and nothing changes but the umask.
///
/// # Errors
/// When the ids cannot be taken on; `action` has not run then.
pub fn as_user<T>(identity: &Identity, mask: u32, action: impl FnOnce() -> T) -> io::Result<T> {
    let old_mask = umask(Mode::from_bits_truncate(mask));
    let result = with_ids(identity, action);
    umask(old_mask);
    result
}

fn with_ids<T>(identity: &Identity, action: impl FnOnce() -> T) -> io::Result<T> {
    if !geteuid().is_root() {
        return Ok(action());
    }
    let (groups, gid) = (getgroups()?, getegid());
    let wanted: Vec<Gid> = identity.groups.iter().map(|g| Gid::from_raw(g.0)).collect();
    setgroups(&wanted)?;
    let taken = setegid(Gid::from_raw(identity.gid.0)).and_then(|()| seteuid(Uid::from_raw(identity.uid.0)));
    let result = taken.map(|()| action());
    let restored = seteuid(Uid::from_raw(0)).and_then(|()| setegid(gid)).and_then(|()| setgroups(&groups));
    if let Err(e) = restored {
        // Half a user is nothing to go on with.
        crate::log::say(&format!("cannot take root's ids back: {e}"));
        exit_now(1);
    }
    Ok(result?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids;

    #[test]
    fn a_file_made_as_the_user_is_the_users_and_root_is_back_afterwards() {
        if !geteuid().is_root() {
            return;
        }
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let identity = Identity {
            uid: ids::Uid(65501),
            gid: ids::Gid(65502),
            groups: vec![ids::Gid(65502), ids::Gid(65503)],
            user: "u".into(),
            group: "g".into(),
            home: "/".into(),
            shell: "/bin/sh".into(),
        };
        let path = dir.path().join("out");
        as_user(&identity, 0o027, || std::fs::write(&path, b"x")).unwrap().unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (65501, 65502, 0o640));
        std::fs::write(dir.path().join("root-only"), b"secret").unwrap();
        std::fs::set_permissions(dir.path().join("root-only"), std::fs::Permissions::from_mode(0o600))
            .unwrap();
        let read = as_user(&identity, 0o022, || std::fs::read(dir.path().join("root-only"))).unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(geteuid().is_root());
        assert!(std::fs::read(dir.path().join("root-only")).is_ok());
    }
}
