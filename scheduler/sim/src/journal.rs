//! What happened, one line each, to be read by people and by programs: the same seed writes the same lines.

use crate::workload::ClientAct;
use crate::world::{Happening, World};
use berth_model::ids::Term;
use berth_model::launch::StepPhase;
use berth_model::link::{FromAgent, ToAgent};
use berth_sched_core::Write;
use serde::Serialize;
use std::fmt::Display;

/// The log's first line: how the run is made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Header {
    /// Version of the log's form.
    pub berth_sim: u32,
    /// Version of the program: another one may run differently.
    pub version: String,
    /// The seed.
    pub seed: u64,
    /// Whether faults happened.
    pub faults: bool,
    /// Whether the controller was made anew of a backup.
    #[serde(default)]
    pub backups: bool,
    /// How many events it could have; earlier versions did not write it down.
    #[serde(default = "usual_events")]
    pub max_events: u64,
}

fn usual_events() -> u64 {
    crate::Options::default().max_events
}

/// One event and what followed from it at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Number of the event, from 1.
    pub n: u64,
    /// When it happened: seconds of virtual time from the beginning, with six digits.
    pub at: String,
    /// Where it comes from.
    pub from: String,
    /// Whom it reaches.
    pub to: String,
    /// What it is.
    pub event: String,
    /// What was done upon it, in order.
    pub does: Vec<String>,
    /// The state after it: controller and nodes in a few words.
    pub state: String,
}

impl Entry {
    /// One line of JSON, without its end.
    pub fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
    }
}

/// Texts of messages are cut here: a Start carries a whole specification.
const LONGEST: usize = 300;

pub(crate) fn cut(text: impl Display) -> String {
    let text = text.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The log of a run, where one is kept.
#[derive(Default)]
pub(crate) struct Journal {
    pub(crate) entries: Vec<Entry>,
}

impl World {
    /// Adds to what the present event does.
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(entry) = self.journal.as_mut().and_then(|j| j.entries.last_mut()) {
            entry.does.push(text());
        }
    }

    /// Begins the entry of an event.
    pub(crate) fn enter(&mut self, what: &Happening) {
        if self.journal.is_none() {
            return;
        }
        let (from, to, event) = self.words(what);
        let at = self.now.0 - crate::world::BEGINNING.0;
        let entry = Entry {
            n: self.events,
            at: format!("{}.{:06}", at / 1_000_000, at % 1_000_000),
            from,
            to,
            event: cut(event),
            does: Vec::new(),
            state: String::new(),
        };
        if let Some(journal) = &mut self.journal {
            journal.entries.push(entry);
        }
    }

    /// Ends the entry: with the state as it is now.
    pub(crate) fn leave(&mut self) {
        if self.journal.is_none() {
            return;
        }
        let state = self.in_a_few_words();
        if let Some(entry) = self.journal.as_mut().and_then(|j| j.entries.last_mut()) {
            entry.state = state;
        }
    }

    fn words(&self, what: &Happening) -> (String, String, String) {
        let words = |from: &dyn Display, to: &dyn Display, event: &dyn Display| {
            (from.to_string(), to.to_string(), event.to_string())
        };
        let node = |connection: &u64| match self.links.get(connection) {
            Some(link) => link.node.0.clone(),
            None => "?".to_string(),
        };
        let on = |connection: &u64, text: String| format!("{text} (connection {connection})");
        match what {
            Happening::ToController { connection, message, .. } => {
                words(&node(connection), &"controller", &on(connection, from_agent(message)))
            }
            Happening::ToAgent { connection, message } => {
                words(&"controller", &node(connection), &on(connection, to_agent(message)))
            }
            Happening::Carries { connection, bundle } => words(
                &"controller",
                &node(connection),
                &format!("{} starts to carry to others", bundle.len()),
            ),
            Happening::Brought { carried } => {
                let (launch, session) = (&carried.start.launch, carried.to.session.0);
                words(&"another node", &launch.node, &format!("Start {} session {session}", launch.key))
            }
            Happening::LossSeen { connection } => words(
                &"network",
                &"controller",
                &format!("the end of connection {connection} of {}", node(connection)),
            ),
            Happening::Cut { connection } => {
                words(&"network", &node(connection), &format!("the end of connection {connection}"))
            }
            Happening::Unanswered { connection, by_agent } => {
                let to = if *by_agent { node(connection) } else { "controller".into() };
                words(&"network", &to, &format!("connection {connection} is silent for too long"))
            }
            Happening::Connect { node, .. } => words(&node, &"controller", &"a new connection"),
            Happening::AgentWake { node, .. } => words(&"clock", &node, &"the agent's time has come"),
            Happening::CoreWake { .. } => words(&"clock", &"controller", &"its time has come"),
            Happening::Flush { .. } => words(&"controller", &"store", &"commit"),
            Happening::Image { node, key, event, .. } => {
                words(&"images", &node, &format!("image of {key}: {event:?}"))
            }
            Happening::Finds { node, ask, .. } => {
                words(&"images", &node, &format!("what does the name of question {ask} mean for all?"))
            }
            Happening::Running { node, key, .. } => words(&"supervisor", &node, &format!("{key} runs")),
            Happening::Ends { node, key, status, .. } => {
                words(&"supervisor", &node, &format!("{key} ends with {status}"))
            }
            Happening::Lease { node, key, .. } => {
                words(&"supervisor", &node, &format!("{key} may have nothing more to go on by"))
            }
            Happening::Deadline { node, job, attempt, .. } => words(
                &"deadlines",
                &node,
                &format!("run {attempt} of job {job} may have nothing more to go on by"),
            ),
            Happening::Continues { node, key, .. } => {
                words(&"supervisor", &node, &format!("the supervisor of {key} goes on"))
            }
            Happening::GroupKilled { node, key, .. } => {
                words(&"kernel", &node, &format!("all of {key} is killed"))
            }
            Happening::Gone { node, key, .. } => {
                words(&"supervisor", &node, &format!("the supervisor of {key} is gone"))
            }
            Happening::Prolog { node, job, attempt, .. } => {
                words(&"prolog", &node, &format!("the prolog of run {attempt} of job {job} ends"))
            }
            Happening::Removed { node, job, attempt, .. } => {
                words(&"jobs", &node, &format!("run {attempt} of job {job} is removed"))
            }
            Happening::Reboots { node, .. } => {
                words(&"reboot", &node, &"the machine reboots, by an administrator's wish")
            }
            Happening::Checked { node, .. } => words(&"health", &node, &"is the node well?"),
            Happening::Looked { node, job, attempt, .. } => {
                words(&"jobs", &node, &format!("what is left of run {attempt} of job {job}?"))
            }
            Happening::AgentStarts { node } => words(&"init", &node, &"the agent starts"),
            Happening::Fences { node, .. } => {
                words(&"fence", &node, &"the program that powers it off gets to it")
            }
            Happening::Fenced { node, result, .. } => {
                words(&"fence", &node, &format!("the program that powers it off says {result:?}"))
            }
            Happening::MachineUp { node } => words(&"init", &node, &"the machine is up"),
            Happening::Ask { node, .. } => words(&"images", &node, &"which images are needed?"),
            Happening::ControllerStarts { anew, .. } => {
                let how = if *anew { "the controller starts" } else { "the core is built anew" };
                words(&"init", &"controller", &how)
            }
            Happening::Joins { node } => words(&"init", &node, &"does it belong to the cluster?"),
            Happening::Reconfigure => {
                words(&"administrator", &"controller", &"another configuration is put in force")
            }
            Happening::DiskLook => words(&"store", &"controller", &"a look at the disk"),
            Happening::Heals { node } => words(&"network", &node, &"messages get through again"),
            Happening::Client(act) => match act {
                ClientAct::New => words(&"client", &"controller", &"does something new"),
                ClientAct::Send(wish) => words(&"client", &"controller", &self.client.words(*wish)),
                ClientAct::Leaves(wish) => {
                    words(&"client", &"controller", &format!("gives up: {}", self.client.words(*wish)))
                }
                ClientAct::Looks(wish) => {
                    let what = self.client.words(*wish);
                    words(&"client", &"controller", &format!("looks whether it can run at all: {what}"))
                }
                ClientAct::Answer(request, result) => {
                    words(&"controller", &"client", &format!("answer to {}: {result:?}", request.0))
                }
            },
            Happening::Backup => words(&"store", &"backup", &"a backup is made"),
            Happening::GoesBack => words(&"backup", &"store", &"the controller is destroyed"),
            Happening::Fault => words(&"chance", &"world", &"a fault"),
        }
    }

    /// The state in one line.
    pub(crate) fn in_a_few_words(&self) -> String {
        let mut parts = Vec::new();
        match &self.controller.core {
            None => parts.push("controller down".to_string()),
            Some(core) => {
                let mut states: std::collections::BTreeMap<String, u32> = Default::default();
                for job in core.snapshot().jobs() {
                    *states.entry(job.state.name().to_lowercase()).or_default() += 1;
                }
                let jobs: Vec<String> = states.iter().map(|(state, n)| format!("{n} {state}")).collect();
                parts.push(format!("controller term {}: {}", self.controller.term.0, jobs.join(" ")));
            }
        }
        for m in self.machines.values() {
            let agent = match (m.up, m.agent.is_some(), m.connection) {
                (false, ..) => "down".to_string(),
                (true, false, _) => "no agent".to_string(),
                (true, true, None) => "no connection".to_string(),
                (true, true, Some(c)) => format!("c{c}"),
            };
            let mut words = format!("{} {agent} jobs {} spool {}", m.name, m.jobs.len(), m.spool.len());
            for (holds, word) in [
                (m.blocked.is_some(), "cut off"),
                (m.frozen.is_some_and(|f| f > self.now), "frozen"),
                (m.is_full(self.now), "full"),
            ] {
                if holds {
                    words += &format!(" {word}");
                }
            }
            parts.push(words);
        }
        parts.join("; ")
    }

    /// All of the state, for whoever steps through a run.
    pub(crate) fn in_many_words(&self) -> String {
        let mut lines = Vec::new();
        match &self.controller.core {
            None => lines.push("controller: down".to_string()),
            Some(core) => {
                let snapshot = core.snapshot();
                lines.push(format!(
                    "controller: term {}, connections {:?}, {} events wait for the commit",
                    self.controller.term.0,
                    self.controller.open,
                    self.controller.group.len()
                ));
                for n in snapshot.nodes() {
                    lines.push(format!(
                        "  node {}: {:?}, allocated {:?}, completing {}",
                        n.name, n.condition, n.allocated, n.completing
                    ));
                }
                for j in snapshot.jobs() {
                    lines.push(format!(
                        "  job {} {} {} run {} on {:?}",
                        j.id, j.state, j.reason, j.attempt, j.layout.nodes
                    ));
                    for s in &j.steps {
                        lines.push(format!(
                            "    step {} {} {} on {:?}",
                            s.id, s.state, s.exit, s.layout.nodes
                        ));
                    }
                }
            }
        }
        for m in self.machines.values() {
            lines.push(format!(
                "{}: boot {}, up {}, agent {}, connection {:?}, term {}, frozen {:?}, cut off {:?}, full {:?}",
                m.name,
                m.boot,
                m.up,
                m.agent.is_some(),
                m.connection,
                m.term.0,
                m.frozen.filter(|until| *until > self.now),
                m.blocked,
                m.full
            ));
            for ((job, attempt), share) in &m.jobs {
                let devices: Vec<u32> = share.gres.iter().map(|g| g.index).collect();
                lines.push(format!(
                    "  job {job} run {attempt}: CPUs {:?}, {} MiB, devices {devices:?}",
                    share.cpus, share.memory
                ));
            }
            for (key, s) in &m.spool {
                let how = match (&s.exit, s.running) {
                    (Some(exit), _) => format!("ended with {}", exit.status),
                    (None, _) if s.gone => "without a supervisor".to_string(),
                    (None, true) => "runs".to_string(),
                    (None, false) => "starts".to_string(),
                };
                lines.push(format!("  step {key}: {how}"));
            }
        }
        lines.join("\n")
    }
}

/// The term in a command.
pub(crate) fn term_of(message: &ToAgent) -> Option<Term> {
    match message {
        ToAgent::Start(start) | ToAgent::Prefetch(start) | ToAgent::Fetch(start) => Some(start.term),
        ToAgent::Signal { term, .. }
        | ToAgent::Terminate { term, .. }
        | ToAgent::EndJob { term, .. }
        | ToAgent::Reboot { term, .. }
        | ToAgent::Renew { term, .. }
        | ToAgent::Resumed { term }
        | ToAgent::EndPrefetch { term, .. } => Some(*term),
        ToAgent::Welcome { .. }
        | ToAgent::Refused(_)
        | ToAgent::ImagesNeeded { .. }
        | ToAgent::Configure(_)
        | ToAgent::Dial { .. }
        | ToAgent::Admit(_)
        | ToAgent::Carry(_)
        | ToAgent::Peers(_)
        | ToAgent::Say { .. }
        | ToAgent::LookForEnds { .. }
        | ToAgent::ExitRecorded { .. } => None,
    }
}

pub(crate) fn to_agent(message: &ToAgent) -> String {
    match message {
        ToAgent::Start(start) => {
            let Some(left) = start.job_time_left else {
                return format!("Start {} term {}", start.launch.key, start.term.0);
            };
            format!("Start {} term {}, {} s left", start.launch.key, start.term.0, left.secs())
        }
        ToAgent::Admit(admission) => format!("Admit to {}", admission.step),
        ToAgent::Dial { number } => format!("Dial {number}"),
        ToAgent::Fetch(start) => format!("Fetch {} term {}", start.launch.key, start.term.0),
        ToAgent::Prefetch(start) => format!("Prefetch {} term {}", start.launch.key, start.term.0),
        ToAgent::Terminate { term, key, cause, .. } => format!("Terminate {key} {cause:?} term {}", term.0),
        ToAgent::ExitRecorded { key } => format!("ExitRecorded {key}"),
        other => format!("{other:?}"),
    }
}

pub(crate) fn from_agent(message: &FromAgent) -> String {
    let phases = |steps: &[(berth_model::ids::StepKey, StepPhase)]| {
        let words = steps.iter().map(|(key, phase)| format!("{key} {}", phase_word(phase)));
        words.collect::<Vec<_>>().join(", ")
    };
    match message {
        FromAgent::Hello { boot_id, term, steps, jobs, .. } => {
            format!("Hello {boot_id} term {}, steps [{}], jobs {jobs:?}", term.0, phases(steps))
        }
        FromAgent::Step { session, key, phase } => {
            format!("Step {key} {} session {}", phase_word(phase), session.0)
        }
        FromAgent::JobGone { session, job, attempt, steps, .. } => {
            format!("JobGone {job} run {attempt}, steps [{}], session {}", phases(steps), session.0)
        }
        FromAgent::PrologFailed { session, job, attempt, .. } => {
            format!("PrologFailed {job} run {attempt} session {}", session.0)
        }
        FromAgent::Pulled { session, key, .. } => format!("Pulled {key} session {}", session.0),
        FromAgent::RebootFailed { session, .. } => format!("RebootFailed session {}", session.0),
        FromAgent::Heartbeat { session, .. } => format!("Heartbeat session {}", session.0),
        FromAgent::Peers { session, said } => format!("{said:?} session {}", session.0),
        FromAgent::ImagesHeld { session, ask, .. } => format!("ImagesHeld {ask} session {}", session.0),
        FromAgent::Signalled { session, job, attempt, number } => {
            format!("Signalled {job} run {attempt} number {number} session {}", session.0)
        }
        FromAgent::NotEnded { session, ask, keys } => {
            let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
            format!("NotEnded {ask} [{}] session {}", keys.join(", "), session.0)
        }
    }
}

fn phase_word(phase: &StepPhase) -> String {
    match phase {
        StepPhase::Exited(exit) => format!("ended with {}", exit.status),
        other => format!("{other:?}"),
    }
}

pub(crate) fn write(write: &Write) -> String {
    match write {
        Write::PutSpec(row) => format!("spec {}", row.job),
        Write::PutJob(row) => format!("job {} {:?} run {} {:?}", row.job, row.tasks, row.attempt, row.phase),
        Write::PutStep(row) => {
            let exits: Vec<String> = row
                .nodes
                .iter()
                .map(|n| n.exit.as_ref().map_or("-".into(), |e| e.status.to_string()))
                .collect();
            format!("step {} {:?} exits {exits:?}", row.key, row.result.as_ref().map(|r| r.state))
        }
        Write::PutPart { key, part, .. } => {
            let exit = part.exit.as_ref().map_or("-".into(), |e| e.status.to_string());
            format!("step {key} on {} exit {exit}", part.node)
        }
        Write::PutNode(row) => format!("node {} {:?}", row.name, row.condition),
        Write::PutPayload { key, .. } => format!("payload {key:?}"),
        other => format!("{other:?}"),
    }
}
