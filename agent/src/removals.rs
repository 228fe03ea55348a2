//! Whose images somebody removes who has a say in all of a store: the audit log is to have it.

use berth_images::{Digest, Store};
use berth_model::exchange::RemovedImage;
use berth_model::ids::Uid;
use std::collections::BTreeMap;

/// Most characters of a name, and most users that are named.
const LONGEST: usize = 100;
const NAMED: usize = 5;

/// Images in a store that others have: looked at before some of them go, since who had one goes with it.
pub struct Others(BTreeMap<Digest, (String, Vec<u32>)>);

impl Others {
    /// Those that others than `by` have.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn than(by: Uid, store: &Store) -> berth_images::Result<Others> {
        store.of_others(by.0).map(Others)
    }

    /// Those among the ones that were removed.
    pub fn among(&self, removed: &[Digest]) -> Vec<RemovedImage> {
        let of_others = removed.iter().filter_map(|digest| Some((digest, self.0.get(digest)?)));
        let described = of_others.map(|(digest, (name, users))| {
            let mut owners: Vec<String> = users.iter().take(NAMED).map(|uid| user_name(Uid(*uid))).collect();
            if users.len() > NAMED {
                owners.push(format!("{} more", users.len() - NAMED));
            }
            RemovedImage { digest: digest.to_string(), name: name.chars().take(LONGEST).collect(), owners }
        });
        described.collect()
    }
}

/// How this node calls a user.
pub(crate) fn user_name(uid: Uid) -> String {
    let known = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid.0)).ok().flatten();
    known.map_or_else(|| format!("uid {uid}"), |user| user.name)
}
