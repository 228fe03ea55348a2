//! Users by name: the name service of the machine, as far as the C library linked here reads it.

use crate::error::{Failure, Kind};
use crate::local_names::{self, Entry};
use berth_model::spec::Identity;
use berth_model::{ByteStr, Gid};
use nix::unistd::{Group, Uid, User};

/// The numeric id of a user, given as a name or as a number.
pub fn uid(name: &str) -> Option<u32> {
    if let Ok(Some(user)) = User::from_name(name) {
        return Some(user.uid.as_raw());
    }
    name.parse().ok()
}

/// The name of a user, or the number where it has none.
pub fn name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// A user that the name service knows.
fn account(uid: Uid) -> Option<Entry> {
    let user = User::from_uid(uid).ok().flatten()?;
    Some(Entry {
        name: user.name,
        home: ByteStr::from(user.dir.as_path()),
        shell: ByteStr::from(user.shell.as_path()),
    })
}

/// Who we are, as jobs and containers of ours run.
pub fn own_identity() -> Result<Identity, Failure> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let (user, group) = local_names::user_and_group(uid.as_raw(), gid.as_raw());
    let user = user.or_else(|| account(uid));
    let group = group.or_else(|| Group::from_gid(gid).ok().flatten().map(|group| group.name));
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
