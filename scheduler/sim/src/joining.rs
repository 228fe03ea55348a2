//! Machines that join, leave, are removed with their jobs, and join again: who is let in is what the books say.

use crate::faults::Kind;
use crate::machine::Machine;
use crate::workload::actor;
use crate::world::{Happening, World, hardware};
use berth_model::ids::NodeName;
use berth_model::member::{KeyId, MemberRole, MemberState};
use berth_model::request::Request;
use berth_model::time::{Span, Time};
use berth_sched_core::Event;

/// How many machines come to a world beside those that it begins with, which are the controller's own.
const MOST: usize = 2;
/// What tokens' names are made of.
const LETTERS: [char; 4] = ['a', 'b', 'c', 'd'];

/// What a machine has of the cluster that it joined, or is about to.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) key: KeyId,
    /// Whether the key has been in the books.
    seen: bool,
    /// Once it is out, it does not join again before.
    away_until: Time,
}

/// Numbers that are used once.
#[derive(Default)]
pub(crate) struct Joining {
    keys: u64,
    tokens: u64,
}

impl Joining {
    fn key(&mut self) -> KeyId {
        self.keys += 1;
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&self.keys.to_le_bytes());
        KeyId::of_digest(digest)
    }

    /// A token's id, and the hash of its secret.
    fn token(&mut self) -> (String, String) {
        self.tokens += 1;
        let mut rest = self.tokens;
        let mut letter = || {
            let at = usize::try_from(rest % 4).unwrap_or(0);
            rest /= 4;
            LETTERS[at]
        };
        let id = (0..8).map(|_| letter()).collect();
        (id, format!("{:064x}", self.tokens))
    }
}

impl World {
    /// Another machine is there, and is to belong to the cluster.
    pub(crate) fn machine_comes(&mut self) {
        if self.machines.values().filter(|m| m.joined.is_some()).count() >= MOST {
            return;
        }
        self.count(Kind::Joining.name());
        let node = NodeName(format!("n{}", self.machines.len()));
        let booted = Time(self.now.0 - self.rng.between(1_000_000, 1_000_000_000));
        let mut machine = Machine::new(node.clone(), hardware(&mut self.rng), booted);
        machine.rate = if self.chaos.on(Kind::Drift) { self.rng.between(-10, 10) } else { 0 };
        machine.joined = Some(Membership { key: self.joining.key(), seen: false, away_until: self.now });
        self.machines.insert(node.clone(), machine);
        self.plan(Span(0), Happening::Joins { node });
    }

    /// It looks whether it belongs to the cluster, joins if it does not, and looks again.
    pub(crate) fn joins(&mut self, node: &NodeName) -> Result<(), String> {
        let again = self.span(3_000_000, 9_000_000);
        self.plan(again, Happening::Joins { node: node.clone() });
        let row = self.store.member(node)?;
        let away = self.span(0, 40_000_000);
        let (now, calm) = (self.now, self.calm);
        let Some(joined) = self.machines.get_mut(node).and_then(|m| m.joined.as_mut()) else {
            return Ok(());
        };
        if let Some(row) = row {
            joined.key = row.key;
            if row.state == MemberState::Pending {
                self.wish(actor(0), Request::ApproveMember { name: node.clone() });
            } else if !std::mem::replace(&mut joined.seen, true) {
                self.count("machines that joined");
                self.plan(Span(0), Happening::AgentStarts { node: node.clone() });
            }
            return Ok(());
        }
        if std::mem::take(&mut joined.seen) {
            joined.key = self.joining.key();
            joined.away_until = now + away;
        }
        if joined.away_until > now && !calm {
            return Ok(());
        }
        let key = joined.key.clone();
        let (id, hash) = self.joining.token();
        let token = Request::CreateToken {
            id: id.clone(),
            hash: hash.clone(),
            role: MemberRole::Compute,
            ttl: Span::from_mins(60),
            uses: 1,
            approval: self.rng.permille(200),
            administrators: false,
        };
        self.wish(actor(0), token);
        let after = self.span(50_000, 2_000_000);
        let from = "10.0.0.7".to_string();
        self.wish_after(after, actor(0), Request::Enrol { token: id, hash, key, name: node.clone(), from });
        Ok(())
    }

    /// Whether the controller's port lets the agent of a machine in: by what is on record of its key.
    pub(crate) fn lets_in(&self, node: &NodeName) -> Result<bool, String> {
        let Some(joined) = self.machines.get(node).and_then(|m| m.joined.as_ref()) else { return Ok(true) };
        let row = self.store.member(node)?;
        Ok(row.is_some_and(|row| row.key == joined.key && row.state == MemberState::Approved))
    }

    /// A machine says that it leaves.
    pub(crate) fn machine_leaves(&mut self, node: &NodeName) {
        let joined = self.machines.get(node).and_then(|m| m.joined.as_ref());
        let Some(key) = joined.filter(|joined| joined.seen).map(|joined| joined.key.clone()) else { return };
        self.count(Kind::Leaving.name());
        self.wish(actor(0), Request::Leave { name: node.clone(), key });
    }

    /// An administrator removes one, mostly whatever runs there. What joined nothing is removed only while it is away, and is back by itself.
    pub(crate) fn machine_is_removed(&mut self, node: &NodeName) {
        self.count(Kind::Removal.name());
        let force = self.rng.permille(800);
        self.wish(actor(0), Request::RemoveMember { name: node.clone(), force });
    }

    /// The controller is about to be told to remove a machine with all that runs there: what that is evidence of.
    pub(crate) fn removes(&mut self, node: &NodeName) {
        let Some(core) = &self.controller.core else { return };
        let connected = core.connection_of(node).is_some();
        if core.snapshot().member(node).is_none() && connected {
            return; // that is refused
        }
        if connected && self.is_at_work(node) {
            self.count("machines removed while they were connected and at work");
        }
        self.gives_up(node);
    }

    /// Somebody is told that a machine is out of the cluster: nothing runs there any more, but for what was given up.
    pub(crate) fn is_out(&mut self, node: &NodeName, how: &'static str) -> Result<(), String> {
        self.truth.word_stands(self.now);
        let Some(m) = self.machines.get(node) else { return Ok(()) };
        let mut alive =
            m.spool.iter().filter(|(_, s)| s.lives() && !m.is_over(s, self.now)).map(|(key, _)| *key);
        let kept = alive.find(|key| !self.truth.is_lost((key.job, key.attempt), node));
        if let Some(key) = kept {
            return Err(format!("{node} is out of the cluster, and {key} runs there"));
        }
        self.count(how);
        Ok(())
    }

    /// Whether it is the word of a machine that is not in the books any more.
    pub(crate) fn is_of_nobody(&self, event: &Event) -> bool {
        let Event::Agent { node, .. } = event else { return false };
        let joined = self.machines.get(node).is_some_and(|m| m.joined.is_some());
        let core = self.controller.core.as_ref().filter(|_| joined);
        core.is_some_and(|core| core.snapshot().member(node).is_none())
    }

    /// When all is over the books have every machine that joined, with the key that it has, and no other.
    pub(crate) fn compare_members(&self) -> Result<(), String> {
        let Some(core) = &self.controller.core else { return Ok(()) };
        let snapshot = core.snapshot();
        let joined = self.machines.values().filter_map(|m| Some((&m.name, m.joined.as_ref()?)));
        let mut count = 0;
        for (name, joined) in joined {
            count += 1;
            match snapshot.member(name) {
                Some(member) if member.key == joined.key => {}
                other => return Err(format!("{name} has joined, and the books have {other:?} of it")),
            }
        }
        match snapshot.members().count() {
            known if known == count => Ok(()),
            known => Err(format!("{count} machines have joined, and {known} are in the books")),
        }
    }
}
