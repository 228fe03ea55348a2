//! The cluster: all state, and the one door through which it changes.

mod admin;
mod agents;
mod ahead;
mod audit;
mod awaiting;
mod branches;
mod busy;
mod called;
mod cancel;
mod causes;
mod ending;
mod enter;
mod exchange;
mod fencing;
mod given_up;
mod gpus;
mod het;
mod images;
mod imex;
mod layout;
mod leaps;
mod leases;
mod members;
mod names;
mod numbers;
mod pass;
mod programs;
mod queue;
mod reboot;
mod reconfigure;
mod restore;
mod restored;
mod rights;
mod said;
mod select;
mod signals;
mod sluids;
mod steps;
mod strange;
mod submit;
mod texts;
mod timers;
mod trail;

use crate::config::CoreConfig;
use crate::event::{AfterCommit, Effect, Event, Outcome, RequestId};
use crate::exchange::Exchange;
use crate::job::Job;
use crate::launch;
use crate::node::Node;
use crate::rows::{Leap, MemberRow, MetaRow, Phase, Restored, StepRow, TokenRow};
use crate::snapshot::Snapshot;
use crate::spec::Common;
use crate::store::{PayloadKey, Write};
use berth_model::ids::{Attempt, JobId, NodeName, StepId, StepKey, Term, Uid};
use berth_model::link::ToAgent;
use berth_model::member::{KeyId, NewToken};
use berth_model::request::{Actor, Payload, Refusal, RefusalCode, Request, Response};
use berth_model::spec::Identity;
use berth_model::time::Time;
use imbl::OrdMap;
pub(crate) use leaps::leapt_since;
use queue::{ArrayState, QueueKey};
pub use restore::RestoreError;
pub use restored::go_on_from;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use steps::Waiting;
use timers::Timer;

/// The whole cluster.
///
/// All changes go through [`Cluster::handle`]. Nothing in it reads a clock: time is what `handle` is told,
/// and never goes back.
pub struct Cluster {
    config: CoreConfig,
    term: Term,
    clock: Time,
    next_job: u32,
    next_session: u64,
    next_audit: u64,
    jobs: OrdMap<JobId, Arc<Job>>,
    /// Their records by SLUID, and what is needed to make more.
    sluids: sluids::Sluids,
    nodes: OrdMap<NodeName, Arc<Node>>,
    members: OrdMap<NodeName, Arc<MemberRow>>,
    /// The members' names by their keys.
    keys: OrdMap<KeyId, NodeName>,
    tokens: OrdMap<String, Arc<TokenRow>>,
    /// Machines that were removed since this core began: what one of them still says on a connection that it had comes too
    /// late. After a restart there is no such connection.
    departed: BTreeSet<NodeName>,
    /// Jobs that could start, in order, by partition.
    queue: BTreeMap<Arc<str>, BTreeSet<QueueKey>>,
    /// First jobs for which there was no room; nothing behind them is tried until something changes.
    blocked: BTreeMap<Arc<str>, QueueKey>,
    /// Jobs that fit on no set of nodes in service; tried again when nodes come back.
    aside: BTreeSet<JobId>,
    /// Partitions to be gone through.
    dirty: BTreeSet<Arc<str>>,
    /// Which nodes were told to fetch the images of which waiting jobs.
    ahead: BTreeSet<(NodeName, JobId, Attempt)>,
    /// Something changed since it was last looked what waiting jobs will run on, and whether it will be looked again.
    looking: ahead::Looking,
    /// Images that nodes may be removing for lack of room.
    going: BTreeMap<NodeName, images::Going>,
    /// Images that travel between nodes.
    exchange: Exchange,
    /// Keys of nobody by which machines have something of nodes.
    strange: strange::Strange,
    /// Entries of the audit log that nodes have made.
    removals: trail::Removals,
    /// Jobs that leave GPUs idle.
    idle: BTreeMap<JobId, gpus::Idle>,
    /// Images that users have nodes fetch without a job.
    asked: exchange::Asked,
    /// Names of images of which gateways are asked what they mean.
    names: names::Names,
    arrays: BTreeMap<JobId, ArrayState>,
    timers: BTreeSet<(Time, Timer)>,
    /// Steps whose Starts are carried to some of their nodes, and to which, until it is time that all of them are confirmed.
    carried: BTreeMap<StepKey, Vec<usize>>,
    /// Nodes that are to be rebooted, or are being: when these are told again.
    rebooting: BTreeMap<NodeName, Option<Time>>,
    waiting: BTreeMap<JobId, Vec<Waiting>>,
    /// Questions to agents which steps have not ended, by the job in which others wait for that.
    looks: BTreeMap<JobId, busy::Look>,
    next_look: u64,
    /// Signals that nodes have not passed on.
    owing: signals::Owing,
    last_signal: u64,
    /// Submissions by owner and digest of their id, for retries.
    submissions: BTreeSet<(Uid, u64, JobId)>,
    identities: BTreeMap<Uid, Arc<Identity>>,
    common: Common,
    active: usize,
    store_full: Option<String>,
    /// Steps of time on the word of the wall clock alone.
    leaps: Vec<Leap>,
    /// What the clocks of nodes say of the last ones.
    clocks: leaps::Clocks,
    /// What holds since a backup was restored.
    restored: Restored,
    /// Machines that came after a restore and are not in the backup: with which keys, and from where. They come again.
    unknown: BTreeMap<NodeName, BTreeMap<KeyId, String>>,
    /// Machines that are taken out as soon as their jobs are gone. That they are is on record; who asked, and is told then, is not.
    leaving: BTreeMap<NodeName, given_up::Leaving>,
    out: Changes,
}

/// What one event changed, until it is told.
#[derive(Default)]
struct Changes {
    first: Vec<Write>,
    jobs: BTreeSet<JobId>,
    steps: BTreeSet<StepKey>,
    /// Parts of steps of which nothing else changed, and nodes that jobs have left of which nothing else did.
    parts: BTreeSet<(StepKey, usize)>,
    left: BTreeSet<(JobId, NodeName)>,
    nodes: BTreeSet<NodeName>,
    meta: bool,
    last: Vec<Write>,
    effects: Vec<Effect>,
    changed: BTreeSet<JobId>,
    /// Payloads of this event, so that a start in the same event needs no read of the store.
    payloads: BTreeMap<PayloadKey, Arc<Payload>>,
    /// Where the tasks are of the step that is being started.
    layouts: Option<(StepKey, launch::Layouts)>,
}

impl Cluster {
    /// A cluster without history, led under `term`.
    pub fn new(config: CoreConfig, term: Term) -> Cluster {
        Cluster {
            config,
            term,
            clock: Time::default(),
            next_job: 1,
            next_session: 0,
            next_audit: 1,
            jobs: OrdMap::new(),
            sluids: sluids::Sluids::default(),
            nodes: OrdMap::new(),
            members: OrdMap::new(),
            keys: OrdMap::new(),
            tokens: OrdMap::new(),
            departed: BTreeSet::new(),
            queue: BTreeMap::new(),
            blocked: BTreeMap::new(),
            aside: BTreeSet::new(),
            dirty: BTreeSet::new(),
            ahead: BTreeSet::new(),
            looking: ahead::Looking::default(),
            going: BTreeMap::new(),
            exchange: Exchange::default(),
            strange: strange::Strange::default(),
            removals: trail::Removals::default(),
            idle: BTreeMap::new(),
            asked: exchange::Asked::default(),
            names: names::Names::default(),
            arrays: BTreeMap::new(),
            timers: BTreeSet::new(),
            carried: BTreeMap::new(),
            rebooting: BTreeMap::new(),
            waiting: BTreeMap::new(),
            looks: BTreeMap::new(),
            next_look: 0,
            owing: signals::Owing::new(),
            last_signal: 0,
            submissions: BTreeSet::new(),
            identities: BTreeMap::new(),
            common: Common::default(),
            active: 0,
            store_full: None,
            leaps: Vec::new(),
            clocks: leaps::Clocks::default(),
            restored: Restored::default(),
            unknown: BTreeMap::new(),
            leaving: BTreeMap::new(),
            out: Changes::default(),
        }
    }

    /// Applies an event at cluster time `now`. A `now` before an earlier one counts as that one.
    pub fn handle(&mut self, event: Event, now: Time) -> Outcome {
        self.clock = self.clock.max(now);
        match event {
            Event::Client { request, actor, body } => self.client(request, &actor, body),
            Event::Abandoned { request } => self.abandoned(request),
            Event::Agent { node, connection, message } => self.agent(&node, connection, message),
            Event::AgentLost { node, connection } => self.agent_lost(&node, connection),
            Event::Reconfigure { request, actor, config } => {
                let result = self.admit(&actor).and_then(|actor| self.reconfigure(&actor, *config));
                self.reply(request, result);
            }
            Event::Fenced { node, asked, result } => self.fenced(&node, asked, result),
            Event::Unknown { node, key, from } => self.unknown(node, key, from),
            Event::CannotStart { node, key, why } => self.cannot_start(&node, key, &why),
            Event::Listening => self.they_can_come(),
            Event::StoreFull(why) => self.store_full = why,
            Event::Tick => {}
        }
        self.fire_timers();
        // First, so that a node which has just become free does not get work again.
        self.remove_what_is_clear();
        self.reboot_what_is_free();
        self.pass();
        self.look_soon();
        self.outcome()
    }

    /// When [`Event::Tick`] is to be sent at the latest; at once when a pass was cut short.
    pub fn next_wake(&self) -> Option<Time> {
        if !self.dirty.is_empty() {
            return Some(self.clock);
        }
        self.timers.first().map(|(at, _)| *at)
    }

    /// The state for readers. Publish it once the writes before it are durable.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            jobs: self.jobs.clone(),
            nodes: self.nodes.clone(),
            partitions: self.config.partitions.clone(),
            members: self.members.clone(),
            keys: self.keys.clone(),
            tokens: self.tokens.clone(),
            sluids: self.sluids.records(),
            leaps: self.leaps.clone(),
        }
    }

    /// The term under which this core speaks.
    pub fn term(&self) -> Term {
        self.term
    }

    fn client(&mut self, request: RequestId, actor: &Actor, mut body: Request) {
        let actor = match self.admit(actor) {
            Ok(actor) => actor,
            Err(refusal) => return self.reply(request, Err(refusal)),
        };
        if let Err(refusal) = rights::check(&actor, &body) {
            return self.reply(request, Err(refusal));
        }
        self.by_their_names(&mut body);
        let result = match body {
            Request::Submit { spec, payload, first_step, test_only } => {
                let first_step = first_step.map(|step| self.as_asked(&actor, *step));
                self.submit(&actor, *spec, payload, first_step, test_only)
            }
            Request::SubmitHet { components, test_only } => self.submit_het(&actor, components, test_only),
            Request::CreateHetStep { parts } => {
                let parts = parts.into_iter().map(|(job, step)| (job, self.as_asked(&actor, step))).collect();
                if let Err(refusal) = self.create_het_step(request, &actor, parts) {
                    self.reply(request, Err(refusal));
                }
                return;
            }
            Request::CreateStep { job, spec } => {
                // Answered when the step has its resources, perhaps much later.
                if let Err(refusal) = self.create_step(request, &actor, job, self.as_asked(&actor, *spec)) {
                    self.reply(request, Err(refusal));
                }
                return;
            }
            Request::Cancel(cancel) => self.cancel(&actor, &cancel),
            Request::Hold(selectors) => self.hold(&actor, &selectors),
            Request::Release(selectors) => self.release(&actor, &selectors),
            Request::Requeue(selectors) => self.requeue(&actor, &selectors),
            Request::UpdateNode { nodes, state, reason } => self.update_node(&actor, &nodes, state, reason),
            Request::RebootNodes { nodes, asap, next, reason } => {
                self.reboot_nodes(&actor, nodes, asap, next, reason)
            }
            Request::PullImage { image, nodes, login } => self.pull_image(&actor, &image, nodes, login),
            Request::EndAllocation { job, status } => self.end_allocation(&actor, job, Some(status)),
            Request::ClientLost { job } => self.end_allocation(&actor, job, None),
            Request::CreateToken { id, hash, role, ttl, uses, approval, administrators } => {
                let token = NewToken { role, ttl, uses, approval, administrators };
                self.create_token(&actor, id, hash, &token)
            }
            Request::RevokeToken { id } => self.revoke_token(&actor, &id),
            Request::Enrol { token, hash, key, name, from } => {
                self.enrol(&actor, &token, &hash, key, name, from)
            }
            Request::Renew { name, old, new } => self.renew(&actor, &name, &old, new),
            Request::Leave { name, key } => self.leave(&actor, &name, &key),
            Request::ApproveMember { name } => self.approve_member(&actor, &name),
            Request::RemoveMember { name, force } => match self.remove_member(&actor, &name, force) {
                Ok(true) => Ok(Response::Done),
                // Answered when its jobs are gone.
                Ok(false) => return self.remove_when_clear(request, &actor, &name),
                Err(refusal) => Err(refusal),
            },
            Request::BackedUp { by, file, ago } => self.note_backup(&actor, by, &file, ago),
            Request::Shutdown => self.note_shutdown(&actor),
        };
        self.reply(request, result);
    }

    /// A client inside a job acts as the job's owner and as nothing more: without any role, and only
    /// while the job holds something.
    fn admit(&self, actor: &Actor) -> Result<Actor, Refusal> {
        let Some(inside) = actor.inside else { return Ok(actor.clone()) };
        let job = self
            .jobs
            .get(&inside)
            .filter(|j| matches!(j.row.phase, Phase::Running(_) | Phase::Ending { .. }));
        match job {
            Some(job) if job.spec.identity.uid == actor.identity.uid => Ok(actor.clone().without_role()),
            Some(_) => Err(Refusal::new(
                RefusalCode::Denied,
                format!("Access/permission denied: this is job {inside}, which belongs to somebody else"),
            )),
            None => Err(Refusal::new(
                RefusalCode::Denied,
                format!("Access/permission denied: job {inside}, from which this was asked, is not running"),
            )),
        }
    }

    fn reply(&mut self, request: RequestId, result: Result<Response, Refusal>) {
        self.out.effects.push(Effect::Reply { request, result });
    }

    fn send(&mut self, node: &NodeName, message: ToAgent) {
        if let Some(link) = self.nodes.get(node).and_then(|n| n.link) {
            self.out.effects.push(Effect::Send {
                connection: link.connection,
                message,
                payload: None,
                login: None,
            });
        }
    }

    /// Where a step's first node is found, if its tasks are to know: see [`berth_model::launch::StepLaunch::master`].
    fn master_of(&self, row: &StepRow) -> Option<String> {
        row.spec.as_ref().filter(|spec| spec.pytorch)?;
        let first = match &row.het {
            Some(het) => het.layout.nodes.first()?,
            None => &row.nodes.get(0)?.node,
        };
        self.address_of(first)
    }

    fn job(&self, id: JobId) -> Option<&Arc<Job>> {
        self.jobs.get(&id)
    }

    /// A job to change durably.
    fn job_mut(&mut self, id: JobId) -> Option<&mut Job> {
        let job = self.jobs.get_mut(&id)?;
        self.out.jobs.insert(id);
        self.out.changed.insert(id);
        Some(Arc::make_mut(job))
    }

    /// A job to change in what is not stored.
    fn job_live(&mut self, id: JobId) -> Option<&mut Job> {
        let job = self.jobs.get_mut(&id)?;
        self.out.changed.insert(id);
        Some(Arc::make_mut(job))
    }

    /// A step to change durably in one of its parts alone.
    fn part_mut(&mut self, job: JobId, step: StepId, at: usize) -> Option<&mut StepRow> {
        let record = Arc::make_mut(self.jobs.get_mut(&job)?);
        let row = record.steps.get_mut(&step)?;
        if row.nodes.len() > 1 {
            self.out.parts.insert((row.key, at));
        } else {
            self.out.steps.insert(row.key);
        }
        self.out.changed.insert(job);
        Some(Arc::make_mut(row))
    }

    /// A step to change durably.
    fn step_mut(&mut self, job: JobId, step: StepId) -> Option<&mut StepRow> {
        let record = Arc::make_mut(self.jobs.get_mut(&job)?);
        let row = record.steps.get_mut(&step)?;
        self.out.steps.insert(row.key);
        self.out.changed.insert(job);
        Some(Arc::make_mut(row))
    }

    fn node_mut(&mut self, name: &NodeName) -> Option<&mut Node> {
        self.nodes.get_mut(name).map(Arc::make_mut)
    }

    /// The step of that key, if it belongs to the job's current attempt.
    fn step(&self, key: StepKey) -> Option<&Arc<StepRow>> {
        self.jobs.get(&key.job)?.steps.get(&key.step).filter(|s| s.key == key)
    }

    fn attempt_of(&self, job: JobId) -> Option<Attempt> {
        self.jobs.get(&job).map(|j| j.row.attempt)
    }

    /// Turns what changed into rows: each once, in its last form.
    fn outcome(&mut self) -> Outcome {
        let out = std::mem::take(&mut self.out);
        let mut writes = out.first;
        for id in &out.jobs {
            if let Some(job) = self.jobs.get(id) {
                writes.push(Write::PutJob(Box::new(job.row.clone())));
            }
        }
        for key in &out.steps {
            if let Some(step) = self.step(*key) {
                writes.push(Write::PutStep(step.clone()));
            }
        }
        // What a whole row says is not said again.
        for (key, at) in &out.parts {
            let part = self.step(*key).and_then(|step| step.nodes.get(*at));
            if let Some(part) = part.filter(|_| !out.steps.contains(key)) {
                writes.push(Write::PutPart { key: *key, at: *at, part: Box::new(part.clone()) });
            }
        }
        for (job, node) in out.left {
            if self.jobs.contains_key(&job) && !out.jobs.contains(&job) {
                writes.push(Write::LeaveNode { job, node });
            }
        }
        for name in &out.nodes {
            if let Some(node) = self.nodes.get(name) {
                let mut row = node.row.clone();
                row.condition.not_responding = false; // found out anew after a restart
                writes.push(Write::PutNode(Box::new(row)));
            }
        }
        writes.extend(out.last);
        if out.meta {
            writes.push(Write::PutMeta(MetaRow {
                version: crate::rows::ROW_VERSION,
                next_job: self.next_job,
                clock: self.clock,
                next_audit: self.next_audit,
                restored: Some(self.restored.clone()).filter(|r| *r != Restored::default()),
                leaps: self.leaps.clone(),
                sluid: self.sluids.last(),
            }));
        }
        Outcome { writes, after_commit: AfterCommit::new(out.effects), changed: out.changed }
    }
}
