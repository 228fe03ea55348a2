//! Users by name: from the name service of the machine, or from its files alone.

use crate::error::{Failure, Kind};
use crate::local_names::{self, Entry};
use berth_model::spec::Identity;
use berth_model::{ByteStr, Gid};
use nix::unistd::{Gid as NumberOfGroup, Group, Uid, User};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether `/etc/passwd` and `/etc/group` are all that is asked.
static FILES_ALONE: AtomicBool = AtomicBool::new(false);

/// From here on no name service is asked. A static program in a container must not: its C library would load the modules that
/// the image's configuration names, made for another library or by whoever made the image.
pub fn files_alone() {
    FILES_ALONE.store(true, Ordering::Relaxed);
}

/// The numeric id of a user, given as a name or as a number.
pub fn uid(name: &str) -> Option<u32> {
    let known = if FILES_ALONE.load(Ordering::Relaxed) {
        local_names::uid(name)
    } else {
        User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
    };
    known.or_else(|| name.parse().ok())
}

/// The name of a user, or the number where it has none.
pub fn name(uid: u32) -> String {
    account(Uid::from_raw(uid)).map_or_else(|| uid.to_string(), |user| user.name)
}

/// A user that the name service knows.
fn account(uid: Uid) -> Option<Entry> {
    if FILES_ALONE.load(Ordering::Relaxed) {
        return local_names::user(uid.as_raw());
    }
    let user = User::from_uid(uid).ok().flatten()?;
    Some(Entry {
        name: user.name,
        home: ByteStr::from(user.dir.as_path()),
        shell: ByteStr::from(user.shell.as_path()),
    })
}

fn name_of_group(gid: NumberOfGroup) -> Option<String> {
    if FILES_ALONE.load(Ordering::Relaxed) {
        return local_names::group(gid.as_raw());
    }
    Group::from_gid(gid).ok().flatten().map(|group| group.name)
}

/// Who we are, as jobs and containers of ours run.
pub fn own_identity() -> Result<Identity, Failure> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let (user, group) = local_names::user_and_group(uid.as_raw(), gid.as_raw());
    let user = user.or_else(|| account(uid));
    let group = group.or_else(|| name_of_group(gid));
    let groups = nix::unistd::getgroups()
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot read the supplementary groups: {e}")))?;
    let home = std::env::var_os("HOME").map(ByteStr::from);
    Ok(Identity {
        uid: berth_model::Uid(uid.as_raw()),
        gid: Gid(gid.as_raw()),
        groups: groups.into_iter().map(|g| Gid(g.as_raw())).collect(),
        user: user.as_ref().map_or_else(|| uid.to_string(), |u| u.name.clone()),
        group: group.unwrap_or_else(|| gid.to_string()),
        home: user.as_ref().map(|u| u.home.clone()).or(home).unwrap_or_else(|| "/".into()),
        shell: user.map_or_else(|| "/bin/sh".into(), |u| u.shell),
    })
}
