//! Nodes that an administrator gives up (`State=DOWN`, `berth node remove --force`).
//!
//! The word is evidence that runs are lost where nobody else can say so: on a node without a link. One that is connected is told to end what
//! it has, and says when that is gone: until then its jobs are ending, and none of them starts elsewhere beside what still runs. When the link is lost
//! meanwhile the word stands, and so it does when all that an end may take is over.

use super::Cluster;
use super::timers::{REPEAT, Timer};
use crate::event::RequestId;
use crate::rows::{MemberRow, Phase};
use berth_model::bytes::ByteStr;
use berth_model::ids::{Gid, JobId, NodeName, Uid};
use berth_model::request::{Actor, Refusal, RefusalCode, Response};
use berth_model::rights::Rank;
use berth_model::spec::Identity;
use berth_model::time::{Span, Time};

/// A connected machine that is being removed with its jobs.
#[derive(Debug)]
pub(super) struct Leaving {
    /// Who is told when it is out: nobody who asked a controller before this one.
    requests: Vec<RequestId>,
    actor: Actor,
    /// How many jobs had something on it.
    jobs: usize,
}

impl Cluster {
    /// The connection on which the agent of a node is registered: its link.
    pub fn connection_of(&self, node: &NodeName) -> Option<u64> {
        Some(self.nodes.get(node)?.link?.connection)
    }

    /// An administrator says that what runs on a node is lost.
    pub(super) fn give_up(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get(name) else { return };
        if node.link.is_none() {
            return self.lose_given_up(name);
        }
        let runs: Vec<JobId> = node.held.keys().map(|(job, _)| *job).collect();
        self.give_up_later(name);
        for id in runs {
            if matches!(self.job(id).map(|job| &job.row.phase), Some(Phase::Running(_))) {
                let verdict = self.lost_verdict(id);
                self.end_job(id, verdict);
            }
        }
    }

    /// How long the end of a run may take on a node that is connected: what it is told may be lost once, then SIGTERM, SIGKILL, and the wait for what
    /// does not end by that.
    fn patience_with_the_given_up(&self) -> Span {
        Span(REPEAT.0 + self.config.kill_wait.0 + self.config.unkillable.0)
    }

    /// Has the word stand when the node's time is over, whatever it says or does not.
    fn give_up_later(&mut self, name: &NodeName) {
        let due = self.clock + self.patience_with_the_given_up();
        if let Some(node) = self.node_mut(name).filter(|node| node.given_up.is_none()) {
            node.given_up = Some(due);
            self.timers.insert((due, Timer::GivenUp(name.clone())));
        }
    }

    /// After a start: runs of a node that is down were given up, and their node may be about to say that they are gone.
    pub(super) fn watch_given_up(&mut self) {
        let given_up: Vec<NodeName> = self
            .nodes
            .iter()
            // What was down in a backup may have been in service since.
            .filter(|(name, node)| {
                let awaited = self.restored.awaited.contains_key(*name) && !self.leaving.contains_key(*name);
                node.row.condition.down && !node.held.is_empty() && !awaited
            })
            .map(|(name, _)| name.clone())
            .collect();
        given_up.iter().for_each(|name| self.give_up_later(name));
    }

    /// The time of a node that was given up is over, unless the word was taken back.
    pub(super) fn check_given_up(&mut self, name: &NodeName) {
        let now = self.clock;
        let due = |due: Time| due <= now;
        if self.nodes.get(name).is_some_and(|node| node.row.condition.down && node.given_up.is_some_and(due))
        {
            self.lose_given_up(name);
        }
    }

    fn lose_given_up(&mut self, name: &NodeName) {
        if let Some(node) = self.node_mut(name) {
            node.given_up = None;
        }
        self.lose_node(name);
        self.await_no_more(name);
    }

    /// What runs on a node is lost, by evidence. Until the agent has ended it, the node takes nothing new, even when it is put back into service.
    pub(super) fn lose_node(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get(name) else { return };
        let runs: Vec<_> = node.held.keys().copied().collect();
        self.fail_on_node(name);
        if let Some(node) = self.node_mut(name)
            && node.link.is_some()
        {
            node.settling.extend(runs);
        }
        self.settle(name);
    }

    /// Takes a machine out once its agent has said that its jobs are gone, or as soon as that is known otherwise. The request is answered then.
    pub(super) fn remove_when_clear(&mut self, request: RequestId, actor: &Actor, name: &NodeName) {
        if let Some(leaving) = self.leaving.get_mut(name) {
            return leaving.requests.push(request);
        }
        let (now, jobs) = (self.clock, self.nodes.get(name).map_or(0, |node| node.held.len()));
        self.note(actor, format!("is removing {name}, and gives up {jobs} jobs on it"));
        if let Some(node) = self.node_mut(name) {
            let c = &mut node.row.condition;
            c.down = true;
            c.reason = Some("is being removed from the cluster".to_string());
            c.reason_user = Some(actor.identity.user.clone());
            c.reason_time = Some(now);
        }
        self.out.nodes.insert(name.clone());
        if let Some(member) = self.members.get(name).cloned() {
            self.put_member(MemberRow { leaving: true, ..(*member).clone() });
        }
        self.leaving.insert(name.clone(), Leaving { requests: vec![request], actor: actor.clone(), jobs });
        self.give_up(name);
    }

    /// After a start: what was being removed still is.
    pub(super) fn restore_leaving(&mut self) {
        let leaving = self.members.iter().filter(|(_, member)| member.leaving);
        let leaving: Vec<NodeName> = leaving.map(|(name, _)| name.clone()).collect();
        for name in leaving {
            let jobs = self.nodes.get(&name).map_or(0, |node| node.held.len());
            self.leaving.insert(name, Leaving { requests: Vec::new(), actor: own(), jobs });
        }
    }

    /// Takes out what was to be removed, and is clear now.
    pub(super) fn remove_what_is_clear(&mut self) {
        let clear = |name: &&NodeName| self.nodes.get(*name).is_none_or(|node| node.held.is_empty());
        let clear: Vec<NodeName> = self.leaving.keys().filter(clear).cloned().collect();
        for name in clear {
            let Some(Leaving { requests, actor, jobs }) = self.leaving.remove(&name) else { continue };
            // Asked for once more when its link was lost, it is out already.
            if self.nodes.contains_key(&name) || self.members.contains_key(&name) {
                self.remove_at_once(&actor, &name, jobs);
            }
            for request in requests {
                self.reply(request, Ok(Response::Done));
            }
        }
    }

    /// A machine that is being removed does not come back into service.
    pub(super) fn refuse_for_leaving(&self, nodes: &[NodeName]) -> Result<(), Refusal> {
        match nodes.iter().find(|name| self.leaving.contains_key(*name)) {
            None => Ok(()),
            Some(name) => Err(Refusal::new(
                RefusalCode::WrongState,
                format!(
                    "{name} is being removed from the cluster, and its jobs are being ended: it can join again with a token"
                ),
            )),
        }
    }
}

/// Who does on what was asked of an earlier controller: the audit log has who asked.
fn own() -> Actor {
    let identity = Identity {
        uid: Uid(0),
        gid: Gid(0),
        groups: Vec::new(),
        user: "berth".to_string(),
        group: String::new(),
        home: ByteStr::default(),
        shell: ByteStr::default(),
    };
    Actor { rank: Rank::Administrator, ..Actor::user(identity) }
}
