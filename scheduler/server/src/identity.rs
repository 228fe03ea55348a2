//! Who a caller is: what NSS says of the uid that the kernel proved, kept for a short while, and which roles go with the name.

use berth_model::request::{Actor, Peer, Refusal, RefusalCode};
use berth_model::rights::{Rank, Roles};
use berth_model::spec::Identity;
use berth_model::{ByteStr, Gid, Uid};
use nix::unistd::{Group, User, getgrouplist};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How long an answer of NSS is believed: a directory service may be slow, and one client calls often.
const BELIEVED: Duration = Duration::from_secs(30);
/// Answers kept at most.
const KEPT: usize = 4096;

/// Resolves callers.
#[derive(Debug)]
pub(crate) struct Identities {
    roles: RwLock<Roles>,
    own: u32,
    known: Mutex<HashMap<(Uid, Gid), (Instant, Actor)>>,
}

impl Identities {
    /// Root and the controller's own user are administrators; what others are is said by name.
    pub(crate) fn new(roles: Roles) -> Identities {
        Identities {
            roles: RwLock::new(roles),
            own: nix::unistd::geteuid().as_raw(),
            known: Mutex::new(HashMap::new()),
        }
    }

    /// Others have roles from now on.
    pub(crate) fn set_roles(&self, roles: Roles) {
        *self.roles.write().unwrap_or_else(PoisonError::into_inner) = roles;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The answer, if it is fresh.
    pub(crate) fn known(&self, peer: Peer) -> Option<Actor> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(peer.uid, peer.gid)).filter(|(at, _)| at.elapsed() < BELIEVED).map(|(_, a)| a.clone())
    }

    /// Asks NSS; may take long.
    pub(crate) fn resolve(&self, peer: Peer) -> Result<Actor, Refusal> {
        let identity = lookup(peer)?;
        let always = peer.uid.0 == 0 || peer.uid.0 == self.own;
        let roles = self.roles.read().unwrap_or_else(PoisonError::into_inner);
        let rank = if always { Rank::Administrator } else { roles.rank(&identity.user) };
        let accounts = roles.accounts(&identity.user);
        let actor = Actor { rank, accounts, ..Actor::user(identity) };
        // Still under the roles' lock: who has another role from now on is not remembered with the old one.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert((peer.uid, peer.gid), (Instant::now(), actor.clone()));
        Ok(actor)
    }
}

/// The controller itself, for what it does on nobody's behalf.
pub(crate) fn controller() -> Actor {
    let identity = Identity {
        uid: Uid(0),
        gid: Gid(0),
        groups: Vec::new(),
        user: "root".to_string(),
        group: "root".to_string(),
        home: ByteStr::from("/"),
        shell: ByteStr::from("/bin/sh"),
    };
    Actor { rank: Rank::Administrator, ..Actor::user(identity) }
}

fn lookup(peer: Peer) -> Result<Identity, Refusal> {
    let uid = peer.uid;
    let failed = |what: &str, e: nix::errno::Errno| {
        let text = format!("{what} of user id {uid} cannot be looked up on the controller: {e}; try again");
        Refusal::new(RefusalCode::Unavailable, text)
    };
    let user = User::from_uid(nix::unistd::Uid::from_raw(uid.0)).map_err(|e| failed("the name", e))?;
    let Some(user) = user else {
        let text = format!(
            "user id {uid} has no name on the controller: 'getent passwd {uid}' must know it; add the user there"
        );
        return Err(Refusal::new(RefusalCode::Denied, text));
    };
    let name = CString::new(user.name.clone()).map_err(|_| {
        Refusal::new(RefusalCode::Denied, format!("user id {uid} has a name with a zero byte"))
    })?;
    let groups = getgrouplist(&name, user.gid).map_err(|e| failed("the groups", e))?;
    // The group that the caller has just now (newgrp, sg), if it is one of the user's own: a setgid program
    // gives its group to nobody's job.
    let now = nix::unistd::Gid::from_raw(peer.gid.0);
    let gid = if groups.contains(&now) { now } else { user.gid };
    let group = Group::from_gid(gid).map_err(|e| failed("the group", e))?;
    Ok(Identity {
        uid,
        gid: Gid(gid.as_raw()),
        groups: groups.iter().map(|g| Gid(g.as_raw())).collect(),
        user: user.name,
        group: group.map_or_else(|| gid.to_string(), |g| g.name),
        home: ByteStr::from(user.dir.as_path()),
        shell: ByteStr::from(user.shell.as_path()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::config::{AccountConfig, Config};

    fn peer(uid: u32, gid: u32) -> Peer {
        Peer { uid: Uid(uid), gid: Gid(gid), job: None }
    }

    #[test]
    fn root_is_an_administrator_with_its_own_group() {
        let identities = Identities::new(Roles::default());
        assert!(identities.known(peer(0, 0)).is_none());
        let actor = identities.resolve(peer(0, 0)).unwrap();
        assert!(actor.is_administrator());
        assert_eq!(actor.identity.user, "root");
        assert_eq!(identities.known(peer(0, 0)), Some(actor));
        let odd = identities.resolve(peer(0, 54_321)).unwrap();
        assert_eq!(odd.identity.gid, Gid(0), "a group that is not the user's own is not taken over");
    }

    #[test]
    fn roles_go_with_names_until_others_are_given_and_strangers_are_refused() {
        let account = AccountConfig { name: "physics".into(), coordinators: vec!["daemon".into()] };
        let config = Config { accounts: vec![account], ..Config::default() };
        let daemon = || vec!["daemon".to_string()];
        let administered = Config { administrators: daemon(), ..config.clone() };
        let operated = Config { operators: daemon(), ..config };
        let identities = Identities::new(Roles::of(&administered));
        let first = identities.resolve(peer(1, 1)).unwrap();
        assert_eq!((first.rank, first.accounts), (Rank::Administrator, vec!["physics".to_string()]));
        assert!(identities.known(peer(1, 1)).is_some());
        identities.set_roles(Roles::of(&operated));
        assert_eq!(identities.known(peer(1, 1)), None, "what it was before is not remembered");
        if identities.own != 1 {
            assert_eq!(identities.resolve(peer(1, 1)).unwrap().rank, Rank::Operator);
            let plain = Identities::new(Roles::default()).resolve(peer(1, 1)).unwrap();
            assert_eq!((plain.rank, plain.accounts), (Rank::User, vec![]));
        }
        let plain = Identities::new(Roles::default());
        let stranger = plain.resolve(peer(3_999_999_999, 1)).unwrap_err();
        assert_eq!(stranger.code, RefusalCode::Denied);
        assert!(stranger.message.contains("getent passwd 3999999999"), "{}", stranger.message);
    }
}
