//! Users by name: the name service of the machine, as far as the C library linked here reads it.

use nix::unistd::{Uid, User};

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
