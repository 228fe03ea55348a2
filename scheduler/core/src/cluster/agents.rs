//! What agents say: registration with comparison of states, progress, exits, and silence.

use super::Cluster;
use super::ending::unreported;
use super::said::{self, plain};
use crate::event::Effect;
use crate::job::Progress;
use crate::node::{Link, Node, is_by_file, is_same_file};
use crate::rows::{NodeRow, Phase, ROW_VERSION};
use crate::shrunk;
use berth_model::called::is_full_name;
use berth_model::hardware::{GresDevice, Hardware};
use berth_model::ids::{Attempt, JobId, NodeName, Session, StepId, StepKey, Term};
use berth_model::launch::{ImagePull, StepPhase};
use berth_model::link::{EndCause, FromAgent, Highest, ToAgent};
use berth_model::state::{Cause, NodeCondition};
use berth_model::time::{Span, Time};
use std::collections::BTreeSet;
use std::sync::Arc;

/// An agent's introduction.
struct Hello {
    boot_id: String,
    boot_time: Time,
    agent_start: Time,
    version: String,
    hardware: Hardware,
    term: Term,
    steps: Vec<(StepKey, StepPhase)>,
    jobs: Vec<(JobId, Attempt)>,
    asked: Time,
    unknown: Vec<String>,
    features: Vec<String>,
    highest: Highest,
    host: Option<String>,
}

impl Cluster {
    pub(super) fn agent(&mut self, node: &NodeName, connection: u64, message: FromAgent) {
        match message {
            FromAgent::Hello {
                node: name,
                boot_id,
                boot_time,
                agent_start,
                version,
                hardware,
                term,
                steps,
                jobs,
                asked,
                unknown,
                features,
                highest,
                host,
            } => {
                if name != *node {
                    let why = format!("this connection speaks for node {node}, not for {name}");
                    return self.turn_away(connection, why);
                }
                let hello = Hello {
                    boot_id: plain(&boot_id, said::WORD),
                    boot_time,
                    agent_start,
                    version: plain(&version, said::WORD),
                    hardware: said::hardware(hardware),
                    term,
                    steps,
                    jobs,
                    asked,
                    unknown,
                    features: said::features(&features),
                    highest,
                    host,
                };
                self.hello(node, connection, hello);
            }
            FromAgent::Step { session, key, phase } => {
                if self.heard(node, connection, session) {
                    self.step_report(node, key, phase);
                }
            }
            FromAgent::Pulled { session, key, pull } => {
                if self.heard(node, connection, session) {
                    self.pulled(node, key, pull);
                }
            }
            FromAgent::PrologFailed { session, job, attempt, why, faults } => {
                if self.heard(node, connection, session) {
                    self.could_not_begin(node, job, attempt, &plain(&why, said::REASON), faults);
                }
            }
            FromAgent::JobGone { session, job, attempt, steps, epilog, faults } => {
                if self.heard(node, connection, session) {
                    self.fence(node, faults);
                    if let Some(why) = epilog {
                        self.epilog_failed(node, job, attempt, &why);
                    }
                    for (key, phase) in steps {
                        self.step_report(node, key, phase);
                    }
                    self.job_gone(node, job, attempt);
                    self.was_there_before(node, job, attempt);
                    self.spare_end(job, attempt);
                }
            }
            FromAgent::RebootFailed { session, since, why } => {
                if self.heard(node, connection, session) {
                    self.reboot_failed(node, since, &why);
                }
            }
            FromAgent::ImagesHeld { session, ask, digests } => {
                if self.heard(node, connection, session) {
                    self.images_held(node, ask, digests);
                }
            }
            FromAgent::Peers { session, said } => {
                if self.heard(node, connection, session) {
                    self.peers(node, said);
                }
            }
            FromAgent::NotEnded { session, ask, keys } => {
                if self.heard(node, connection, session) {
                    self.not_ended(node, ask, keys);
                }
            }
            FromAgent::Signalled { session, job, attempt, number } => {
                if self.heard(node, connection, session) {
                    self.signalled(node, (job, attempt), number);
                }
            }
            FromAgent::Heartbeat { session, load, free_memory, troubles, drift, asked, used, gpus } => {
                if !self.heard(node, connection, session) {
                    return;
                }
                self.has_asked(node, asked);
                self.has_heard_of_resume(node, session);
                if let Some(n) = self.node_mut(node) {
                    n.load = load;
                    n.reported_free_memory = free_memory;
                    n.drift = said::drift(&drift);
                }
                self.troubles(node, &troubles);
                self.hear_of_use(node, used, &gpus);
            }
        }
    }

    /// A job that ended by a message which also says that it is gone need not be ended there.
    fn spare_end(&mut self, gone: JobId, run: Attempt) {
        if self.job(gone).is_some_and(|j| matches!(j.row.phase, Phase::Ending { .. })) {
            return;
        }
        self.out.effects.retain(|effect| match effect {
            Effect::Send { message: ToAgent::EndJob { job, attempt, .. }, .. } => {
                (*job, *attempt) != (gone, run)
            }
            _ => true,
        });
    }

    fn turn_away(&mut self, connection: u64, why: String) {
        let message = ToAgent::Refused(why.clone());
        self.out.effects.push(Effect::Send { connection, message, payload: None, login: None });
        self.out.effects.push(Effect::Disconnect { connection, why });
    }

    /// Notes a sign of life of the current registration; false for messages of an earlier one.
    fn heard(&mut self, node: &NodeName, connection: u64, session: Session) -> bool {
        let now = self.clock;
        let Some(n) = self.nodes.get(node) else { return false };
        if n.link != Some(Link { connection, session }) {
            return false;
        }
        let silent = n.row.condition.not_responding;
        if let Some(n) = self.node_mut(node) {
            n.last_heard = now;
            n.row.condition.not_responding = false;
        }
        if silent {
            self.watch_silence(node);
            self.node_is_back(node);
        }
        true
    }

    pub(super) fn agent_lost(&mut self, node: &NodeName, connection: u64) {
        let lost = |n: &Arc<Node>| n.link.is_some_and(|l| l.connection == connection);
        if self.nodes.get(node).is_some_and(lost)
            && let Some(n) = self.node_mut(node)
        {
            n.link = None;
            self.going.remove(node);
            let told = self.exchange.gone(node, self.clock);
            self.tell_peers(told);
            self.no_answer_from(node);
        }
    }

    fn hello(&mut self, name: &NodeName, connection: u64, hello: Hello) {
        if hello.term > self.term {
            if self.supersede(name, hello.term) {
                let why = format!("the controller goes on under a later term than {}; come back", hello.term);
                return self.turn_away(connection, why);
            }
            let why = format!(
                "the agent follows a controller of term {}, this one is of term {}",
                hello.term, self.term
            );
            return self.turn_away(connection, why);
        }
        if self.departed.contains(name) {
            let why = format!("{name} was removed from the cluster: it can join again with a token");
            return self.turn_away(connection, why);
        }
        if let Err(why) = said::fits(&hello.hardware).and_then(|()| check_hardware(&hello.hardware)) {
            return self.turn_away(connection, format!("the hardware of {name} cannot be: {why}"));
        }
        if self.nodes.get(name).is_some_and(|n| connection < n.last_connection) {
            return self.turn_away(connection, format!("the agent of {name} has a later connection"));
        }
        let late = self.has_not_come(name);
        let given_up = self.restored.unheard.remove(name);
        let followed = self.restored.superseded.remove(name).is_some();
        if given_up || followed {
            self.out.meta = true;
        }
        let before = self.nodes.get(name).and_then(|n| n.link);
        if let Some(old) = before.filter(|l| l.connection != connection) {
            let why = format!("the agent of {name} registered again");
            self.out.effects.push(Effect::Disconnect { connection: old.connection, why });
        }
        self.going.remove(name);
        let rebooted = self.nodes.get(name).is_some_and(|n| n.row.boot_id != hello.boot_id);
        if let Some(n) = self.node_mut(name) {
            n.link = None;
            n.settling.clear();
            if rebooted {
                // Its clock counts anew.
                n.asked = None;
                n.given_up = None;
            }
        }
        if rebooted {
            self.end_cause(name, Cause::Unkillable);
            // No process outlives a boot: this is the evidence on which lost jobs end or run again.
            self.fail_on_node(name);
        }
        let hardware_before = self.nodes.get(name).map(|n| Arc::clone(&n.hardware));
        self.register(name, &hello);
        // What it was told before is over for it with the connection.
        self.ahead.retain(|(node, ..)| node != name);
        self.looking.stale = true;
        if before.is_none_or(|l| l.connection != connection) {
            let told = self.exchange.gone(name, self.clock);
            self.tell_peers(told);
            self.no_answer_from(name);
        }
        // Said again on the same connection it is the same registration: its Welcome may have been lost, or this one may be.
        let session = match before.filter(|l| l.connection == connection) {
            Some(link) => link.session,
            None => {
                self.next_session += 1;
                Session((self.term.0 << 32) | self.next_session)
            }
        };
        let now = self.clock;
        if let Some(n) = self.node_mut(name) {
            n.link = Some(Link { connection, session });
            n.last_connection = connection;
            n.last_heard = now;
            n.row.condition.not_responding = false;
            n.unknown_settings = said::drift(&hello.unknown);
            n.features = hello.features;
        }
        self.has_asked(name, hello.asked);
        self.compare_clock(name, &hello.boot_id, hello.boot_time, hello.asked);
        self.judge_settings(name);
        let heartbeat = Span((self.config.node_timeout.0 / 6).max(1_000_000));
        self.send(name, ToAgent::Welcome { term: self.term, session, heartbeat });
        self.tell_configuration(name);
        self.watch_silence(name);
        let beyond = self.pass_over(
            name,
            hello.steps.iter().map(|(key, _)| key.job).chain(hello.jobs.iter().map(|(id, _)| *id)),
            hello.highest,
            late,
        );
        let fresh = before.is_none_or(|l| l.connection != connection);
        self.compare(name, hello.steps, &hello.jobs, fresh);
        self.signal_again(name);
        if let Some(hardware) = hardware_before {
            self.tell_of_fenced(name, &hardware);
        }
        self.has_told(name, beyond);
        self.has_booted(name, rebooted, fresh);
        self.pass_on_resume(name);
        self.node_is_back(name);
    }

    /// Writes down what the agent says of the node itself.
    fn register(&mut self, name: &NodeName, hello: &Hello) {
        let known = self.nodes.get(name);
        let row = NodeRow {
            version: ROW_VERSION,
            name: name.clone(),
            // Hardware does not change under running jobs; what is said now counts once they are gone. But for devices that do not
            // work any more, or do so again.
            hardware: match known {
                Some(n) if !n.held.is_empty() => with_faults(&n.row.hardware, &hello.hardware),
                _ => hello.hardware.clone(),
            },
            boot_id: hello.boot_id.clone(),
            boot_time: hello.boot_time,
            agent_start: hello.agent_start,
            agent_version: hello.version.clone(),
            condition: known.map_or_else(NodeCondition::default, |n| NodeCondition {
                not_responding: false,
                ..n.row.condition.clone()
            }),
            causes: known.map(|n| n.row.causes.clone()).unwrap_or_default(),
            registered: match known {
                Some(n) if n.held.is_empty() => {
                    shrunk::registered(n.row.registered, &n.row.hardware, &hello.hardware)
                }
                Some(n) => n.row.registered,
                None => None,
            },
            // What was seen before a boot is over with it.
            resumed: known.is_some_and(|n| n.row.resumed && n.row.boot_id == hello.boot_id),
            // A name service that does not answer has not taken it back.
            host_name: match hello.host.as_ref().filter(|host| is_full_name(host)) {
                Some(host) => Some(host.clone()),
                None => known.and_then(|n| n.row.host_name.clone()),
            },
        };
        let less = shrunk::missing(row.registered, &row.hardware);
        let news = known.is_some_and(|n| shrunk::is_news(&n.row, &row));
        let now = self.clock;
        if let Some(n) = self.nodes.get_mut(name).map(Arc::make_mut)
            && n.entered.is_due(news, !less.is_empty(), now)
        {
            self.note_own(format!("node {name} has come back with less: {}", less.join("; ")));
        }
        match self.nodes.get(name) {
            None => {
                let node = Node::new(row, &self.config, self.clock);
                self.nodes.insert(name.clone(), Arc::new(node));
                if !self.members.contains_key(name) {
                    self.strange.add_own(name);
                }
            }
            Some(n) => {
                let same = NodeCondition { not_responding: false, ..n.row.condition.clone() };
                let unchanged = NodeRow { condition: same, ..n.row.clone() } == row;
                if let Some(n) = self.nodes.get_mut(name).map(Arc::make_mut) {
                    let before = Arc::clone(&n.hardware);
                    let refit = n.held.is_empty() && n.row.hardware != row.hardware;
                    if !unchanged {
                        n.row = row;
                    }
                    if refit {
                        n.refit(&self.config);
                    }
                    n.take_faults(&self.config, Some(&hello.hardware));
                    // Nothing that is written down says what a file of the configuration that was well is now.
                    if unchanged && n.hardware == before {
                        return;
                    }
                }
            }
        }
        self.out.nodes.insert(name.clone());
    }

    /// Brings the agent's steps and the cluster's into agreement.
    fn compare(
        &mut self,
        node: &NodeName,
        steps: Vec<(StepKey, StepPhase)>,
        jobs: &[(JobId, Attempt)],
        fresh: bool,
    ) {
        let first = self.first_word(node);
        let reported: BTreeSet<StepKey> = steps.iter().map(|(key, _)| *key).collect();
        for (key, phase) in steps {
            self.step_report(node, key, phase);
        }
        for run in jobs {
            self.expect_gone_unless_held(node, *run);
        }
        let held: Vec<(JobId, Attempt)> =
            self.nodes.get(node).map(|n| n.held.keys().copied().collect()).unwrap_or_default();
        let (term, kill_wait) = (self.term, self.config.kill_wait);
        for (id, attempt) in held {
            let Some(job) = self.job(id) else { continue };
            if let Phase::Ending { result, .. } = &job.row.phase {
                let cause = result.cause;
                self.send(node, ToAgent::EndJob { term, job: id, attempt, kill_wait, cause });
                self.arm_resend(id);
                continue;
            }
            let open: Vec<(StepId, usize, Option<EndCause>, Option<Progress>)> = job
                .steps
                .iter()
                .filter_map(|(step, row)| {
                    let at = row.nodes.find(node).filter(|at| row.nodes[*at].exit.is_none())?;
                    Some((*step, at, row.ending, job.progress.get(step).and_then(|p| p.get(at)).copied()))
                })
                .collect();
            for (step, at, ending, progress) in open {
                let key = StepKey { job: id, attempt, step };
                let there = reported.contains(&key);
                let ran = matches!(progress, Some(Progress::Starting | Progress::Running));
                match (there, ending) {
                    (true, None) => {}
                    (false, _) if self.ended_since(key, at, first) => {}
                    // One that is not there yet when a Hello is repeated may be on its way.
                    (there, Some(cause)) if there || !fresh => {
                        self.send(node, ToAgent::Terminate { term, key, kill_wait, cause })
                    }
                    // It was to be ended and the agent does not have it: it never ran, or is no more.
                    (_, Some(cause)) => self.step_exited(id, step, at, unreported(cause, self.clock)),
                    // It ran, and the agent has lost it: it must not run a second time.
                    (false, None) if ran && fresh => {
                        self.step_exited(id, step, at, unreported(EndCause::NodeFailed, self.clock));
                    }
                    // A Hello that is said again may have been on its way since before it ran.
                    (false, None) if ran => {}
                    (false, None) => {
                        self.set_progress(id, step, at, Progress::Sent(self.clock));
                        self.send_start(id, step, at);
                    }
                }
            }
            self.arm_resend(id);
        }
    }

    /// The node has a run of a job. If it should not, the run is ended, and the node takes nothing new before.
    fn expect_gone_unless_held(&mut self, node: &NodeName, run: (JobId, Attempt)) {
        self.pass_over_run(run);
        let Some(n) = self.node_mut(node) else { return };
        if n.held.contains_key(&run) || n.settling.insert(run).is_some() {
            return;
        }
        self.settle(node);
    }

    /// A run that did not belong on the node is gone from it.
    pub(super) fn settled(&mut self, node: &NodeName, job: JobId, attempt: Attempt) {
        let Some(n) = self.node_mut(node) else { return };
        if n.settling.remove(&(job, attempt)).is_some() && n.settling.is_empty() {
            self.at_rest(node);
            self.node_is_back(node);
        }
    }

    fn set_progress(&mut self, job: JobId, step: StepId, at: usize, progress: Progress) {
        let Some(record) = self.job_live(job) else { return };
        if let Some(slot) = record.progress.get_mut(&step).and_then(|p| p.get_mut(at)) {
            *slot = progress;
        }
    }

    fn step_report(&mut self, node: &NodeName, key: StepKey, phase: StepPhase) {
        let at = self.step(key).and_then(|s| s.nodes.find(node));
        let Some(at) = at.or_else(|| self.take_over_step(node, key)) else {
            if matches!(phase, StepPhase::Exited(_)) {
                // Known no more, or told a second time. What the node still has of its job it names itself.
                return self.send(node, ToAgent::ExitRecorded { key });
            }
            let run = (key.job, key.attempt);
            if self.nodes.get(node).is_some_and(|n| n.held.contains_key(&run)) {
                let (term, kill_wait, cause) = (self.term, self.config.kill_wait, EndCause::JobEnded);
                return self.send(node, ToAgent::Terminate { term, key, kill_wait, cause });
            }
            return self.expect_gone_unless_held(node, run);
        };
        let recorded = self.step(key).is_some_and(|s| s.nodes[at].exit.is_some());
        match phase {
            StepPhase::Exited(exit) => {
                if !recorded {
                    self.step_exited(key.job, key.step, at, said::exit(exit));
                }
                self.send(node, ToAgent::ExitRecorded { key });
            }
            _ if recorded => {}
            StepPhase::Preparing(percent) => {
                self.advance(key, at, Progress::Preparing(percent.map(|p| p.min(100))));
            }
            StepPhase::Starting => self.advance(key, at, Progress::Starting),
            StepPhase::Running => self.advance(key, at, Progress::Running),
        }
    }

    /// What a step's image took on its node: written down once.
    fn pulled(&mut self, node: &NodeName, key: StepKey, pull: ImagePull) {
        let Some(at) = self.step(key).and_then(|s| s.nodes.find(node)) else { return };
        let mut pull = said::pull(pull);
        if let Some(found) = pull.found.take() {
            self.keep_image(key.job, key.step, *found);
        }
        let told = self.step(key).is_none_or(|s| s.nodes[at].pull.is_some());
        if !told && let Some(step) = self.part_mut(key.job, key.step, at) {
            step.nodes.pulled(at, pull);
        }
    }

    /// Progress never goes back: reports may overtake each other.
    fn advance(&mut self, key: StepKey, at: usize, progress: Progress) {
        let rank = |p: &Progress| match p {
            Progress::Sent(_) => 0,
            Progress::Preparing(_) => 1,
            Progress::Starting => 2,
            Progress::Running => 3,
        };
        let now = self.job(key.job).and_then(|j| j.progress.get(&key.step)).and_then(|p| p.get(at));
        if now.is_some_and(|old| rank(old) <= rank(&progress) && *old != progress) {
            self.set_progress(key.job, key.step, at, progress);
        }
    }
}

/// Refuses hardware that no machine can have.
pub(super) fn check_hardware(hw: &Hardware) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for core in &hw.cores {
        if core.cpus.is_empty() {
            return Err("a core has no CPU".into());
        }
        if let Some(cpu) = core.cpus.iter().find(|c| !seen.insert(**c)) {
            return Err(format!("CPU {cpu} is in two cores"));
        }
    }
    if hw.cores.is_empty() {
        return Err("it has no core".into());
    }
    let mut devices = BTreeSet::new();
    match hw.gres.iter().find(|d| !devices.insert((&d.name, d.index))) {
        Some(d) => Err(format!("{} {} is named twice", d.name, d.index)),
        None => Ok(()),
    }
}

/// The hardware that was registered, with what is said now of its devices.
fn with_faults(before: &Hardware, now: &Hardware) -> Hardware {
    let mut hardware = before.clone();
    for device in &mut hardware.gres {
        let same = |d: &&GresDevice| {
            let here = d.uuid.is_none() && d.bus.is_some() && d.bus == device.bus;
            d.name == device.name
                && match (&device.uuid, &device.cdi) {
                    // One that fell off the bus does not say any more who it is.
                    (Some(_), _) => d.uuid == device.uuid || here,
                    // Its index is its place among those that are named now.
                    (None, Some(_)) => d.cdi == device.cdi,
                    (None, None) if is_by_file(device) => is_same_file(d, device),
                    (None, None) => d.index == device.index,
                }
        };
        device.fault = match now.gres.iter().find(same) {
            Some(found) => found.fault.clone(),
            // The agent names those alone that cannot be given.
            None if is_by_file(device) => None,
            None => Some("the node does not find it any more".to_string()),
        };
    }
    hardware
}
