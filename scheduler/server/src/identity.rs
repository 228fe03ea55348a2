//! Who a caller is: what NSS says of the uid that the kernel proved, kept for a short while, and which roles go with the name.
//!
//! A name service may hang for as long as it likes. It is asked by threads of its own, a bounded number of them, once for all who ask about
//! the same user; nobody waits for long, and nothing else of the controller waits at all.

use berth_model::request::{Actor, Peer, Refusal, RefusalCode};
use berth_model::rights::{Rank, Roles};
use berth_model::spec::Identity;
use berth_model::{ByteStr, Gid, Uid};
use nix::unistd::{Group, User, getgrouplist};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long an answer of NSS is believed: a directory service may be slow, and one client calls often.
const BELIEVED: Duration = Duration::from_secs(30);
/// Answers kept at most.
const KEPT: usize = 4096;
/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon one who found no place for a question looks again.
const AGAIN: Duration = Duration::from_millis(20);
/// Questions that may be open at a time, and those about one user (of several groups); root's always may.
const OPEN: usize = 64;
const OPEN_OF_ONE: usize = 4;

/// Who waits for the answer to a question.
type Waiting = HashMap<(Uid, Gid), Vec<oneshot::Sender<Result<Actor, Refusal>>>>;

/// A question that is open. Whatever becomes of it, it is over when this is dropped: who waited has the answer then, or sees that there is none.
struct Asked {
    of: Arc<Identities>,
    key: (Uid, Gid),
    answer: Option<Result<Actor, Refusal>>,
}

impl Asked {
    fn ask(mut self, peer: Peer) {
        self.answer = Some(self.of.resolve(peer));
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let all = self.of.waiting().remove(&self.key).unwrap_or_default();
        let Some(answer) = self.answer.take() else { return };
        for tell in all {
            // It may have gone.
            let _ = tell.send(answer.clone());
        }
    }
}

/// Resolves callers.
#[derive(Debug)]
pub(crate) struct Identities {
    roles: RwLock<Roles>,
    own: u32,
    known: Mutex<HashMap<(Uid, Gid), (Instant, Actor)>>,
    waiting: Mutex<Waiting>,
    patience: Duration,
    ask: fn(Peer) -> Result<Identity, Refusal>,
}

impl Identities {
    /// Root and the controller's own user are administrators; what others are is said by name.
    pub(crate) fn new(roles: Roles) -> Identities {
        Identities {
            roles: RwLock::new(roles),
            own: nix::unistd::geteuid().as_raw(),
            known: Mutex::new(HashMap::new()),
            waiting: Mutex::default(),
            patience: PATIENCE,
            ask: lookup,
        }
    }

    /// Who it is, known or asked for.
    pub(crate) async fn find(self: &Arc<Self>, peer: Peer) -> Result<Actor, Refusal> {
        if let Some(actor) = self.known(peer) {
            return Ok(actor);
        }
        let root = peer.uid.0 == 0;
        let silent = || {
            if root {
                // Its groups are asked for as well, of a directory perhaps; who it is needs no answer.
                return Ok(controller());
            }
            let text = format!(
                "the name service of the controller's machine does not answer about user id {0}: 'getent passwd {0}' there shows \
                 when it does; try again then",
                peer.uid
            );
            Err(Refusal::new(RefusalCode::Unavailable, text))
        };
        let deadline = Instant::now() + if root { self.patience / 5 } else { self.patience };
        let told = loop {
            if let Some(told) = self.begin(peer) {
                break told;
            }
            // Where the name service answers, a place is free in a moment, or the answer is there by another's question.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return silent();
            }
            tokio::time::sleep(left.min(AGAIN)).await;
            if let Some(actor) = self.known(peer) {
                return Ok(actor);
            }
        };
        match tokio::time::timeout_at(deadline.into(), told).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => silent(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the question asked, unless it is being asked; nothing where too many are open.
    fn begin(self: &Arc<Self>, peer: Peer) -> Option<oneshot::Receiver<Result<Actor, Refusal>>> {
        let key = (peer.uid, peer.gid);
        let (tell, told) = oneshot::channel();
        let mut waiting = self.waiting();
        if let Some(others) = waiting.get_mut(&key) {
            others.retain(|other| !other.is_closed());
            others.push(tell);
            return Some(told);
        }
        let of_one = waiting.keys().filter(|(uid, _)| *uid == peer.uid).count();
        if (waiting.len() >= OPEN && peer.uid.0 != 0) || of_one >= OPEN_OF_ONE {
            return None;
        }
        waiting.insert(key, vec![tell]);
        drop(waiting);
        let question = Asked { of: Arc::clone(self), key, answer: None };
        // There may be no more threads: the question is dropped then, unanswered.
        let _ = std::thread::Builder::new().name("identity".to_string()).spawn(move || question.ask(peer));
        Some(told)
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
    fn resolve(&self, peer: Peer) -> Result<Actor, Refusal> {
        let identity = (self.ask)(peer)?;
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

    /// Of a name service that hangs.
    fn hanging(_: Peer) -> Result<Identity, Refusal> {
        std::thread::sleep(Duration::from_secs(60));
        Ok(controller().identity)
    }

    fn slow(_: Peer) -> Result<Identity, Refusal> {
        std::thread::sleep(Duration::from_millis(300));
        Ok(controller().identity)
    }

    #[test]
    fn a_name_service_that_hangs_holds_nobody_up_for_long_and_root_gets_in() {
        let short = Duration::from_millis(200);
        let identities =
            Arc::new(Identities { ask: hanging, patience: short, ..Identities::new(Roles::default()) });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let begun = Instant::now();
            let ask = |uid, gid| {
                let identities = Arc::clone(&identities);
                tokio::spawn(async move { identities.find(peer(uid, gid)).await })
            };
            // More users than questions may be open, and all of them twice.
            let all: Vec<_> = (1000..1100).chain(1000..1100).map(|uid| ask(uid, 1)).collect();
            for one in all {
                let refusal = one.await.unwrap().unwrap_err();
                assert_eq!(refusal.code, RefusalCode::Unavailable);
                assert!(refusal.message.contains("getent passwd 10"), "{}", refusal.message);
            }
            assert_eq!(identities.waiting().len(), OPEN);
            assert!(identities.find(peer(0, 0)).await.unwrap().is_administrator());
            assert_eq!(tokio::task::spawn_blocking(|| 7).await.unwrap(), 7);
            assert!(begun.elapsed() < Duration::from_secs(30), "somebody was waited for");
        });
    }

    #[test]
    fn one_user_has_few_questions_open_and_all_who_ask_the_same_one_answer() {
        let identities = Arc::new(Identities { ask: slow, ..Identities::new(Roles::default()) });
        let told: Vec<_> = (0..6).map(|gid| identities.begin(peer(1000, gid))).collect();
        assert_eq!(told.iter().filter(|told| told.is_some()).count(), OPEN_OF_ONE);
        let again = identities.begin(peer(1000, 0)).unwrap();
        let first = told.into_iter().flatten().next().unwrap();
        assert_eq!(first.blocking_recv().unwrap(), again.blocking_recv().unwrap());
        assert_eq!(identities.waiting().get(&(Uid(1000), Gid(0))).map(Vec::len), None);
    }

    #[test]
    fn who_finds_no_place_waits_for_one_where_the_name_service_answers() {
        let identities = Arc::new(Identities { ask: slow, ..Identities::new(Roles::default()) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ask = |uid, gid| {
                let identities = Arc::clone(&identities);
                tokio::spawn(async move { identities.find(peer(uid, gid)).await })
            };
            // More users than questions may be open, and one of more groups than theirs may be.
            let all = (2000..2000 + u32::try_from(OPEN).unwrap() + 20).map(|uid| ask(uid, 1));
            let one = (0..2 * u32::try_from(OPEN_OF_ONE).unwrap()).map(|gid| ask(1000, gid));
            for found in one.chain(all).collect::<Vec<_>>() {
                assert!(found.await.unwrap().is_ok());
            }
        });
        assert!(identities.waiting().is_empty());
    }

    /// Of a name service whose library breaks down.
    fn broken(_: Peer) -> Result<Identity, Refusal> {
        panic!("a library's fault")
    }

    #[test]
    fn a_question_that_breaks_down_takes_no_place_from_others() {
        let identities = Arc::new(Identities { ask: broken, ..Identities::new(Roles::default()) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..2 * OPEN_OF_ONE {
            let refusal = runtime.block_on(identities.find(peer(1000, 1))).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Unavailable);
        }
        assert!(identities.waiting().is_empty());
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
        let coordinators = vec!["daemon".into()];
        let account = AccountConfig { name: "physics".into(), coordinators, ..AccountConfig::default() };
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
