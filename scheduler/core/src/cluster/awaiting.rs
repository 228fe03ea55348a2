//! What a restored cluster waits for before it starts a job, in words, and what an administrator says of it.

use super::Cluster;
use super::restored::COMING;
use crate::node::names;
use crate::rows::{Awaited, MemberRow, ROW_VERSION};
use berth_model::ids::{JobId, NodeName};
use berth_model::member::{KeyId, MemberRole, MemberState, check_host_name};
use berth_model::request::{Actor, Refusal, RefusalCode, Response};
use std::collections::BTreeMap;

/// Most keys that are kept of a machine that is not in the backup.
const MOST_KEYS: usize = 8;
/// By how much nodes raise the ids of jobs by what they report after a restore, all of them together, without an administrator's word. Whatever the
/// age of the backup: what one machine that is not one's own any more can take of the ids may not grow with it.
pub(super) const UNASKED: u32 = 1_000_000;

impl Cluster {
    /// Nodes of a restored backup for which all jobs wait.
    pub fn awaited(&self) -> impl Iterator<Item = &NodeName> {
        self.restored.awaited.iter().filter(|(_, state)| **state != Awaited::Gone).map(|(name, _)| name)
    }

    /// Why no job starts since a backup was restored, and what to do about it.
    pub fn why_held(&self) -> Option<String> {
        let awaited = &self.restored.awaited;
        let mut parts = Vec::new();
        if self.may_yet_come() {
            let seconds = COMING.secs();
            let when = match self.no_port_yet() {
                true => format!("before the port for other machines has been open for {seconds} seconds"),
                false => format!("in the first {seconds} seconds"),
            };
            parts.push(format!(
                "a backup was restored, and no job starts {when}: machines that joined since the backup was made are on no list of those \
                 to wait for, and may yet come"
            ));
        }
        let missing = awaited.iter().filter(|(_, state)| matches!(state, Awaited::Word | Awaited::Rest));
        // What was approved is no node before it has come again.
        let (nodes, members): (Vec<&NodeName>, Vec<&NodeName>) =
            missing.map(|(name, _)| name).partition(|name| self.nodes.contains_key(*name));
        for (missing, word) in [
            (nodes, "scontrol update NodeName=... State=DOWN Reason=..."),
            (members, "'berth node remove NAME', and it can join again with a token"),
        ] {
            if !missing.is_empty() {
                parts.push(format!(
                    "a backup was restored, and no job starts before these nodes have come back and have nothing left that is on no \
                     record: {}; of one that will not come back say so: {word}",
                    names(missing)
                ));
            }
        }
        let strange = awaited.iter().filter(|(_, state)| matches!(state, Awaited::Approval));
        for (name, _) in strange {
            let keys = self.unknown.get(name);
            let shown = keys.map(|keys| format!(" ({})", told(keys))).unwrap_or_default();
            let what = if keys.is_some_and(|keys| keys.len() > 1) {
                format!(
                    "it has certificates of it by several keys, one of which may be an old one: 'berth node remove {name}' gives up \
                     what it runs, and it can join again with a token"
                )
            } else {
                format!(
                    "it has a certificate of it, is not in the backup, and may run jobs: 'berth node approve {name}' has it back, \
                     and 'berth node remove {name}' gives up what it runs"
                )
            };
            parts.push(format!(
                "a backup was restored, and no job starts before somebody says whether {name}{shown} belongs to the cluster: {what}"
            ));
        }
        for (name, state) in awaited {
            let Awaited::Beyond(job) = state else { continue };
            parts.push(format!(
                "a backup was restored, and no job starts before somebody says whether {name} is right: it tells of job {job}, \
                 more than {UNASKED} above those of the backup: if so many can have been submitted since, scontrol update \
                 NodeName={name} State=RESUME has ids go on above {job}; State=DOWN Reason=... takes no notice of it"
            ));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// The first id of a job of which no node is believed without an administrator's word.
    pub(super) fn beyond(&self) -> JobId {
        let most = self.restored.base.0.saturating_add(UNASKED);
        JobId(most.max(self.next_job).min(u32::MAX - 1))
    }

    /// Ids of jobs go on above this one. What has one up to it, be it given out since the restore, may have the id of another that is lost.
    pub(super) fn go_on_above(&mut self, id: JobId) {
        let before = self.next_above(id);
        if before > self.restored.before {
            self.restored.before = before;
            self.out.meta = true;
            self.number_anew();
        }
    }

    /// The next job has an id above this one: that which comes next to it.
    pub(super) fn next_above(&mut self, id: JobId) -> JobId {
        let next = id.0.saturating_add(1).min(u32::MAX - 1);
        if next > self.next_job {
            self.next_job = next;
            self.out.meta = true;
        }
        JobId(next)
    }

    /// The agent of a machine has come that shows a certificate of the cluster's and is not in its books. While nothing starts anyway, it is waited for
    /// what an administrator says: it may have joined after the backup, and run what would start again.
    ///
    /// A certificate is good for every spelling of its name, and an old one has been in many hands: it is asked about once, by the name that was told
    /// first, and about no machine that is known.
    pub(super) fn unknown(&mut self, name: NodeName, key: KeyId, from: String) {
        let fit = check_host_name(&name.0).is_ok() && KeyId::parse(&key.0).is_ok();
        if !self.on_hold() || !fit || self.keys.contains_key(&key) || self.taken(&name).is_some() {
            return;
        }
        let same = |other: &NodeName| other.0.eq_ignore_ascii_case(&name.0);
        let otherwise = self.unknown.iter().any(|(of, keys)| keys.contains_key(&key) && !same(of));
        if otherwise || self.departed.iter().any(same) {
            return;
        }
        let known = self.restored.awaited.iter().find(|(other, _)| same(other));
        let name = match known.map(|(other, state)| (other.clone(), *state)) {
            Some((other, Awaited::Approval)) => other,
            Some(_) => return,
            None => {
                self.restored.awaited.insert(name.clone(), Awaited::Approval);
                let what = format!(
                    "waits for a word about {name}, which is not in the backup: key {}, from {from}",
                    key.short()
                );
                self.note_own(what);
                name
            }
        };
        let keys = self.unknown.entry(name).or_default();
        if keys.len() < MOST_KEYS || keys.contains_key(&key) {
            keys.insert(key, from);
        }
    }

    /// Whether a machine waits for an administrator's word because it is not in the backup.
    pub(super) fn is_unknown(&self, name: &NodeName) -> bool {
        self.restored.awaited.get(name) == Some(&Awaited::Approval)
    }

    /// It belongs to the cluster, by the key that it showed: it is waited for what it runs.
    pub(super) fn approve_unknown(&mut self, actor: &Actor, name: &NodeName) -> Result<Response, Refusal> {
        let wrong = |text: String| Err(Refusal::new(RefusalCode::WrongState, text));
        let Some(keys) = self.unknown.get(name) else {
            return wrong(format!(
                "{name} has not come again since the controller started: try again in a moment"
            ));
        };
        // Whoever came last is not therefore the right one.
        let (1, Some((key, from))) = (keys.len(), keys.first_key_value()) else {
            return wrong(format!(
                "{name} came with {} keys ({}), and which is its own cannot be told here: 'berth node remove {name}', and join it \
                 again with a token",
                keys.len(),
                told(keys)
            ));
        };
        if let Some(other) = self.keys.get(key) {
            return wrong(format!(
                "{name} shows the key of {other}: 'berth node remove {name}', and join it again with a token"
            ));
        }
        if let Some(other) = self.taken(name) {
            return wrong(format!(
                "there is a machine {other} in the cluster already, with another key: 'berth node remove {name}' gives up what \
                 came by this name"
            ));
        }
        let (key, from) = (key.clone(), from.clone());
        let now = self.clock;
        self.note(actor, format!("approved {name}, which is not in the backup, with key {}", key.short()));
        self.put_member(MemberRow {
            version: ROW_VERSION,
            name: name.clone(),
            role: MemberRole::Compute,
            state: MemberState::Approved,
            key,
            joined: now,
            token: String::new(),
            token_hash: String::new(),
            from,
            renewed: now,
            administrators: false,
            leaving: false,
        });
        Ok(Response::Done)
    }

    /// It does not, or is lost: what it runs is given up.
    pub(super) fn give_up_unknown(&mut self, actor: &Actor, name: &NodeName) {
        self.note(actor, format!("gave up {name}, which is not in the backup"));
        self.is_gone(name);
    }

    /// A machine is out: while nothing starts anyway it is on record that it is not asked about again, whichever controller it comes to.
    pub(super) fn is_gone(&mut self, name: &NodeName) {
        self.departed.insert(name.clone());
        self.unknown.remove(name);
        if self.on_hold() {
            self.restored.awaited.insert(name.clone(), Awaited::Gone);
            self.out.meta = true;
            self.end_hold();
        }
    }

    /// A machine is in the books: one that was not in the backup is to say what it runs, if it runs anything.
    pub(super) fn is_known_now(&mut self, name: &NodeName, role: MemberRole) {
        if self.restored.awaited.get(name) == Some(&Awaited::Gone) {
            self.restored.awaited.remove(name);
            self.out.meta = true;
        }
        if !self.is_unknown(name) {
            return;
        }
        match role {
            MemberRole::Compute => {
                self.restored.awaited.insert(name.clone(), Awaited::Word);
                self.unknown.remove(name);
                self.out.meta = true;
            }
            MemberRole::Login => self.await_no_more(name),
        }
    }

    /// An administrator says whether a node is right that told of a job far above those of the backup.
    pub(super) fn judge_beyond(&mut self, name: &NodeName, right: bool) {
        let Some(Awaited::Beyond(job)) = self.restored.awaited.get(name).copied() else { return };
        if right {
            self.go_on_above(job);
            self.note_own(format!(
                "ids of jobs go on above {job}, of which node {name} told after the restore"
            ));
        }
        self.restored.awaited.insert(name.clone(), Awaited::Rest);
        self.out.meta = true;
        self.at_rest(name);
    }
}

/// Keys, and from where they came.
fn told(keys: &BTreeMap<KeyId, String>) -> String {
    let told: Vec<String> =
        keys.iter().map(|(key, from)| format!("key {}, from {from}", key.short())).collect();
    told.join("; ")
}
