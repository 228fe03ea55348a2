//! How the Starts of a step get to its nodes: by the link of each, or, of a step over many, to the first node of each branch, which carries
//! them to the others. Who does not confirm in time is sent its own by its link all the same.

use super::Cluster;
use super::timers::Timer;
use crate::event::{Effect, LoginOf};
use crate::job::Progress;
use crate::launch;
use crate::rows::Phase;
use crate::store::{PayloadKey, fill_payload};
use berth_model::carry::{CarriedPart, CarriedTo, Registration};
use berth_model::feature::CARRY;
use berth_model::ids::{JobId, StepId, StepKey};
use berth_model::link::{Start, ToAgent};
use berth_model::time::Span;

/// How long it may take until a node confirms what is carried to it. Agents tell of a step that they have taken a tenth of a second later; the
/// rest is for two ways and for a controller that has much to hear. By so much does a step start later whose branch's head is silent.
const CONFIRMED: Span = Span::from_secs(1);

/// A Start, on its way to the agent of its node.
struct Outbound {
    connection: u64,
    start: Box<Start>,
    payload: Option<PayloadKey>,
    login: Option<LoginOf>,
}

impl Cluster {
    /// Sends the Starts of a step that begins on so many nodes.
    pub(super) fn send_starts(&mut self, key: StepKey, parts: usize) {
        let tree = self.config.tree.filter(|tree| parts >= tree.from && !self.has_display(key));
        let mut able: Vec<(usize, CarriedTo)> = Vec::new();
        for at in 0..parts {
            match tree.and_then(|_| self.carried_to(key, at)) {
                Some(to) => able.push((at, to)),
                None => self.send_start(key.job, key.step, at),
            }
        }
        let Some(tree) = tree else { return };
        let mut able = able.into_iter();
        let mut carried = Vec::new();
        while let Some((head, _)) = able.next() {
            let (places, to): (Vec<usize>, Vec<CarriedTo>) = able.by_ref().take(tree.width - 1).unzip();
            if to.is_empty() {
                self.send_start(key.job, key.step, head);
            } else if let Some(Outbound { connection, start, payload, login }) =
                self.outbound(key.job, key.step, head)
            {
                self.out.effects.push(Effect::Carry { connection, start, to, payload, login });
                carried.extend(places);
            }
        }
        if !carried.is_empty() {
            self.carried.insert(key, carried);
            self.timers.insert((self.clock + CONFIRMED, Timer::Carried(key)));
        }
    }

    /// Whether what is told of it is not the same on all nodes: the display is some nodes' alone, and its own cookie that of its machine.
    fn has_display(&self, key: StepKey) -> bool {
        self.step(key).and_then(|row| row.spec.as_ref()).is_some_and(|spec| spec.x11.is_some())
    }

    /// What is for the `at`-th node of a step, if it can be carried there, or the node can carry: its agent is there and knows how to, it has
    /// a port, and it is known how old what is said to it is.
    fn carried_to(&self, of: StepKey, at: usize) -> Option<CarriedTo> {
        let record = self.jobs.get(&of.job)?;
        let (run, row) = (record.run()?, record.steps.get(&of.step)?);
        let name = &row.nodes.get(at)?.node;
        let node = self.nodes.get(name)?;
        let (session, asked) = (node.link?.session, node.asked?);
        if !node.features.iter().any(|known| known == CARRY) {
            return None;
        }
        let (address, key) = self.exchange.reached(name)?;
        let part = launch::part(run, row, at, Some(asked))?;
        let part =
            CarriedPart { part, to: Registration { session, asked, boot_id: node.row.boot_id.clone() } };
        Some(CarriedTo { address: address.to_string(), key: key.to_string(), part })
    }

    /// Sends the Start of a step to the `at`-th of its nodes, if its agent is connected.
    pub(super) fn send_start(&mut self, job: JobId, step: StepId, at: usize) {
        if let Some(Outbound { connection, start, payload, login }) = self.outbound(job, step, at) {
            self.out.effects.push(Effect::Send {
                connection,
                message: ToAgent::Start(start),
                payload,
                login,
            });
        }
    }

    fn outbound(&mut self, job: JobId, step: StepId, at: usize) -> Option<Outbound> {
        let record = self.jobs.get(&job)?;
        let (run, row) = (record.run()?, record.steps.get(&step)?);
        let asked = row.nodes.get(at).and_then(|part| self.nodes.get(&part.node)).and_then(|n| n.asked);
        let common = launch::Common {
            asked,
            cluster: &self.config.cluster,
            term: self.term,
            kill_wait: self.config.kill_wait,
            told_within: self.config.told_within,
            now: self.clock,
            leaps: &self.leaps,
            het: self.het_facts(record),
            master: self.master_of(row),
        };
        let layouts = match &self.out.layouts {
            Some((of, layouts)) if *of == row.key => layouts.clone(),
            _ => launch::Layouts::of(run, row),
        };
        self.out.layouts = Some((row.key, layouts.clone()));
        let (mut start, key) = launch::start(&common, record, run, (row, layouts), at)?;
        let connection = self.nodes.get(&start.launch.node).and_then(|n| n.link)?.connection;
        let login = match (row.login, record.spec.login) {
            (true, _) => Some(PayloadKey::StepLogin(job, step)),
            (false, true) => Some(PayloadKey::Login(record.row.spec_of)),
            (false, false) => None,
        };
        let mut payload = Some(key);
        if let Some(found) = self.out.payloads.get(&key) {
            fill_payload(&mut start.launch, found);
            payload = None;
        }
        Some(Outbound { connection, start: Box::new(start), payload, login: login.map(LoginOf::Stored) })
    }

    /// More is to be said of a step, behind what starts it: who has not confirmed what is carried to it is sent its Start by its own link.
    pub(super) fn send_what_is_unconfirmed(&mut self, key: StepKey) {
        self.send_directly(key, true);
    }

    /// The time is over that nodes have to confirm what is carried to them.
    pub(super) fn is_not_confirmed(&mut self, key: StepKey) {
        self.send_directly(key, false);
    }

    fn send_directly(&mut self, key: StepKey, early: bool) {
        let Some(carried) = self.carried.remove(&key) else { return };
        let Some(job) = self.job(key.job).filter(|job| matches!(job.row.phase, Phase::Running(_))) else {
            return;
        };
        let (Some(row), Some(progress)) = (self.step(key), job.progress.get(&key.step)) else { return };
        let open = |at: usize| row.nodes.get(at).is_some_and(|part| part.exit.is_none());
        let unheard = |at: &usize| open(*at) && matches!(progress.get(*at), Some(Progress::Sent(_)));
        let unheard: Vec<usize> = carried.into_iter().filter(unheard).collect();
        if unheard.is_empty() {
            return;
        }
        let nodes = unheard.iter().filter_map(|at| Some(row.nodes.get(*at)?.node.clone())).collect();
        self.out.effects.push(Effect::Unconfirmed { key, nodes, early });
        for at in unheard {
            self.send_start(key.job, key.step, at);
        }
    }
}
