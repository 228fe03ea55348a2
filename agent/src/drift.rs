//! Users whom this node's own name service knows otherwise than the controller's.
//!
//! Jobs run as what came with them: names, numbers, groups and homes of the controller. That a node has others changes nothing of it, and
//! is worth knowing: files of one user belong to another there. So it is looked up, aside of everything, and told to the administrator by the
//! node's record and to the user by a line of the job. A name service may hang: nobody waits for it but for a moment.

use berth_model::ids::Uid;
use berth_model::spec::Identity;
use nix::unistd::User;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For how long what was found counts; whoever differs is looked at again that often, so that a node that was mended says so.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// How long the first job of a user waits for the line.
const MOMENT: Duration = Duration::from_millis(200);
/// Most that may be looked up at once: a service that hangs takes no more threads.
const MOST_AT_ONCE: usize = 8;
/// Most groups that are named of a user.
const MOST_GROUPS: usize = 8;
/// Most users who are told of in a heartbeat.
const MOST_TOLD: usize = 32;

/// A user as a name service has them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: Vec<u8>,
    /// All groups; absent where the service does not say.
    groups: Option<Vec<u32>>,
}

#[derive(Clone, Debug)]
struct Known {
    identity: Arc<Identity>,
    looked: Option<Instant>,
    looking: bool,
    differs: Option<String>,
}

/// What is known of users.
#[derive(Default)]
pub struct Drift {
    users: Mutex<BTreeMap<Uid, Known>>,
    found: Condvar,
    running: AtomicUsize,
}

impl Drift {
    fn users(&self) -> MutexGuard<'_, BTreeMap<Uid, Known>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a user was looked up before: nobody has to wait then.
    pub fn knows(&self, identity: &Identity) -> bool {
        self.users().get(&identity.uid).is_some_and(|k| k.looked.is_some() && *k.identity == *identity)
    }

    /// Has a user looked up where that is due, and waits for it a moment where nothing is known yet. Blocks.
    pub fn look(self: &Arc<Self>, identity: &Identity) {
        self.begin(identity);
        let waiting = |users: &mut BTreeMap<Uid, Known>| {
            users.get(&identity.uid).is_some_and(|k| k.looking && k.looked.is_none())
        };
        // What is not there in time is told with the next job.
        drop(self.found.wait_timeout_while(self.users(), MOMENT, waiting));
    }

    /// What a user is told of the node.
    pub fn line(&self, uid: Uid) -> Option<String> {
        let text = self.users().get(&uid)?.differs.clone()?;
        Some(format!(
            "this node knows you otherwise than the cluster: {text}. The job runs as the cluster knows you; tell the \
             administrator"
        ))
    }

    /// All who differ, for the node's record.
    pub fn lines(&self) -> Vec<String> {
        self.users().values().filter_map(|k| k.differs.clone()).take(MOST_TOLD).collect()
    }

    /// Looks at those who differ again, from time to time.
    pub async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(GOOD_FOR).await;
            let again: Vec<Arc<Identity>> = self
                .users()
                .values()
                .filter(|k| k.differs.is_some())
                .map(|k| Arc::clone(&k.identity))
                .collect();
            again.iter().for_each(|identity| self.begin(identity));
        }
    }

    fn begin(self: &Arc<Self>, identity: &Identity) {
        let identity = {
            let mut users = self.users();
            let known = users.entry(identity.uid).or_insert_with(|| Known {
                identity: Arc::new(identity.clone()),
                looked: None,
                looking: false,
                differs: None,
            });
            let fresh =
                known.looked.is_some_and(|at| at.elapsed() < GOOD_FOR) && *known.identity == *identity;
            if known.looking || fresh || self.running.load(Ordering::Relaxed) >= MOST_AT_ONCE {
                return;
            }
            known.looking = true;
            known.identity = Arc::new(identity.clone());
            Arc::clone(&known.identity)
        };
        let this = Arc::clone(self);
        this.running.fetch_add(1, Ordering::Relaxed);
        // A thread of its own: the runtime waits for its own threads at its end, and this one may never come back.
        let started = std::thread::Builder::new().name("drift".into()).spawn(move || {
            let found = lookup(&identity);
            this.running.fetch_sub(1, Ordering::Relaxed);
            this.take(&identity, found);
        });
        if let Err(e) = started {
            tracing::debug!("users are not looked up: {e}");
            self.running.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn take(&self, identity: &Identity, found: Result<Option<String>, String>) {
        let mut users = self.users();
        let Some(known) = users.get_mut(&identity.uid) else { return };
        known.looking = false;
        match found {
            // It is asked again with the next job.
            Err(why) => tracing::debug!("user {}: {why}", identity.user),
            Ok(differs) => {
                if differs != known.differs {
                    match &differs {
                        Some(text) => tracing::warn!(
                            "the name service of this node differs from the controller's: {text}"
                        ),
                        None => tracing::info!(
                            "the name service of this node has user {} as the controller's now",
                            identity.user
                        ),
                    }
                }
                known.looked = Some(Instant::now());
                known.differs = differs;
            }
        }
        drop(users);
        self.found.notify_all();
    }
}

/// Asks the node's name service.
fn lookup(identity: &Identity) -> Result<Option<String>, String> {
    let entry = |user: User| Entry {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        home: user.dir.as_os_str().as_bytes().to_vec(),
        groups: None,
    };
    let mut by_name = User::from_name(&identity.user).map_err(|e| e.desc().to_string())?.map(entry);
    let by_uid = User::from_uid(identity.uid.0.into()).map_err(|e| e.desc().to_string())?.map(entry);
    if let Some(here) = &mut by_name
        && let Ok(name) = CString::new(here.name.as_bytes())
    {
        let groups = nix::unistd::getgrouplist(&name, here.gid.into()).ok();
        here.groups = groups.map(|all| all.into_iter().map(|group| group.as_raw()).collect());
    }
    Ok(compare(identity, by_name.as_ref(), by_uid.as_ref()))
}

/// What differs, in words. A node that does not know a user at all differs in nothing: the controller's word is enough.
fn compare(identity: &Identity, by_name: Option<&Entry>, by_uid: Option<&Entry>) -> Option<String> {
    let mut parts = Vec::new();
    let (user, uid) = (identity.user.escape_debug(), identity.uid.0);
    if let Some(here) = by_name {
        if here.uid != uid {
            parts.push(format!("uid {} here and {uid} at the controller", here.uid));
        }
        if here.gid != identity.gid.0 {
            parts.push(format!("primary group {} here and {} at the controller", here.gid, identity.gid.0));
        }
        if here.home != identity.home.0 {
            parts.push(format!(
                "home {} here and {} at the controller",
                String::from_utf8_lossy(&here.home).escape_debug(),
                identity.home.display().escape_debug()
            ));
        }
        if let Some(groups) = &here.groups {
            let primary = [here.gid, identity.gid.0];
            let others = |all: BTreeSet<u32>| &all - &BTreeSet::from(primary);
            let here: BTreeSet<u32> = others(groups.iter().copied().collect());
            let there = others(identity.groups.iter().map(|group| group.0).collect());
            for (more, than, place) in [(&here, &there, "here"), (&there, &here, "at the controller")] {
                parts.extend(some(more - than).map(|some| format!("{some} only {place}")));
            }
        }
    }
    if let Some(here) = by_uid.filter(|here| here.name != identity.user) {
        parts.push(format!("uid {uid} is '{}' here", here.name.escape_debug()));
    }
    (!parts.is_empty()).then(|| format!("user {user}: {}", parts.join(", ")))
}

/// Groups, as far as a line has room for them.
fn some(groups: BTreeSet<u32>) -> Option<String> {
    let shown: Vec<String> = groups.iter().take(MOST_GROUPS).map(ToString::to_string).collect();
    let (all, s) = (groups.len(), if groups.len() == 1 { "" } else { "s" });
    let more = if all > shown.len() { format!(" and {} more", all - shown.len()) } else { String::new() };
    (all > 0).then(|| format!("group{s} {}{more}", shown.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids::Gid;

    fn ann() -> Identity {
        Identity {
            uid: Uid(1000),
            gid: Gid(100),
            groups: vec![],
            user: "ann".into(),
            group: "users".into(),
            home: "/home/ann".into(),
            shell: "/bin/sh".into(),
        }
    }

    fn entry(name: &str, uid: u32, gid: u32, home: &str) -> Entry {
        Entry { name: name.into(), uid, gid, home: home.into(), groups: None }
    }

    #[test]
    fn what_differs_is_named_and_what_is_unknown_is_no_difference() {
        let same = entry("ann", 1000, 100, "/home/ann");
        assert_eq!(compare(&ann(), Some(&same), Some(&same)), None);
        assert_eq!(compare(&ann(), None, None), None);
        let other = entry("ann", 2000, 50, "/users/ann");
        let bob = entry("bob", 1000, 100, "/home/bob");
        assert_eq!(
            compare(&ann(), Some(&other), Some(&bob)).unwrap(),
            "user ann: uid 2000 here and 1000 at the controller, primary group 50 here and 100 at the controller, home \
             /users/ann here and /home/ann at the controller, uid 1000 is 'bob' here"
        );
        // Nobody's terminal is written to by a name.
        let odd = entry("b\u{1b}[2J", 1000, 100, "/");
        assert!(!compare(&ann(), None, Some(&odd)).unwrap().contains('\u{1b}'));
    }

    #[test]
    fn groups_that_only_one_side_has_are_named() {
        let identity = Identity { groups: vec![Gid(100), Gid(7), Gid(8)], ..ann() };
        let with =
            |groups: &[u32]| Entry { groups: Some(groups.to_vec()), ..entry("ann", 1000, 100, "/home/ann") };
        // In whatever order, and with the primary one or without.
        for same in [[8, 100, 7].as_slice(), &[7, 8]] {
            assert_eq!(compare(&identity, Some(&with(same)), None), None);
        }
        assert_eq!(
            compare(&identity, Some(&with(&[7, 9])), None).unwrap(),
            "user ann: group 9 only here, group 8 only at the controller"
        );
        let many: Vec<u32> = (7..30).collect();
        assert_eq!(
            compare(&identity, Some(&with(&many)), None).unwrap(),
            "user ann: groups 9 10 11 12 13 14 15 16 and 13 more only here"
        );
    }

    #[test]
    fn a_user_is_looked_up_once_and_known_from_then_on() {
        let drift = Arc::new(Drift::default());
        let root = User::from_uid(0.into()).unwrap().unwrap();
        let groups = nix::unistd::getgrouplist(c"root", root.gid).unwrap();
        let identity = Identity {
            uid: Uid(0),
            gid: Gid(root.gid.as_raw()),
            user: root.name,
            home: root.dir.as_path().into(),
            groups: groups.into_iter().map(|group| Gid(group.as_raw())).collect(),
            ..ann()
        };
        assert!(!drift.knows(&identity));
        drift.look(&identity);
        assert!(drift.knows(&identity) && drift.lines().is_empty() && drift.line(Uid(0)).is_none());
        let looked = drift.users()[&Uid(0)].looked;
        drift.look(&identity);
        assert_eq!(drift.users()[&Uid(0)].looked, looked);
        // Another home at the controller is another question.
        let moved = Identity { home: "/moved".into(), ..identity };
        assert!(!drift.knows(&moved));
        drift.look(&moved);
        let until = Instant::now() + Duration::from_secs(20);
        while drift.lines().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(drift.lines()[0].contains("/moved at the controller"), "{:?}", drift.lines());
        assert!(drift.line(Uid(0)).unwrap().contains("tell the administrator"));
    }
}
