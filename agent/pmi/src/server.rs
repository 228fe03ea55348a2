//! The server of a step's tasks on one node.

use crate::keys::{BadKeys, Keys, Refused};
use crate::mapping::process_mapping;
use crate::session::{Mark, Phase, Session, Versions, answer};
use crate::wire::{Message, Wire, one};
use crate::{KEY_MAX, Limits, NAME_MAX, VALUE_TOLD};

const MAPPING: &[u8] = b"PMI_process_mapping";
const NO_SPAWN: &str = "MPI_Comm_spawn is not supported: a step has the tasks that it was started with; start the others with them \
     (-n), or with an srun of their own";
const NO_NAMES: &str = "publishing and looking up names of services (MPI_Publish_name) is not supported: exchange port names through a file";

/// What a server is told of its step.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Name of the step, and of its key space: a word of at most [`NAME_MAX`] bytes.
    pub name: String,
    /// Which node of the layout is ours.
    pub node: usize,
    /// The ranks of each node.
    pub tasks: Vec<Vec<u32>>,
    /// Ranks that there might be.
    pub universe: u32,
    /// What is offered.
    pub versions: Versions,
    /// What is held.
    pub limits: Limits,
}

/// What is to be done. Tasks are counted as they stand in this node's part of the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Bytes for a task.
    Send {
        /// Which.
        task: usize,
        /// What.
        bytes: Vec<u8>,
    },
    /// Every task of this node is at a fence: its keys are for the others, and [`Server::fenced`] ends it.
    Fence {
        /// The how manieth of the step, from 1.
        number: u32,
        /// What was put here since the last one.
        keys: Vec<u8>,
    },
    /// A task ends the whole step (`MPI_Abort`).
    Abort {
        /// Which.
        task: usize,
        /// With this exit code, which is not 0.
        code: u8,
        /// What it says, if anything.
        message: String,
    },
    /// The conversation with a task is over because of what it said; its connection is of no further use.
    Fault {
        /// Which.
        task: usize,
        /// What is wrong.
        why: String,
    },
    /// Something that the user should know.
    Note {
        /// Of which task.
        task: usize,
        /// What.
        text: String,
    },
}

/// A fence that cannot end: one that has to come to it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Ranks that wait.
    pub waiting: Vec<u32>,
    /// Ranks that are gone.
    pub gone: Vec<u32>,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    name: String,
    size: u32,
    universe: u32,
    alone: bool,
    versions: Versions,
    waits: usize,
    mapping: Option<String>,
    keys: Keys,
    attributes: Keys,
    sessions: Vec<Session>,
    /// The fence that was begun last.
    fence: u32,
    /// Its keys are on their way.
    fencing: bool,
}

impl Server {
    /// A server before any task spoke.
    pub fn new(setup: &Setup) -> Server {
        let ours = setup.tasks.get(setup.node).map(Vec::as_slice).unwrap_or_default();
        let size = setup.tasks.iter().map(Vec::len).sum::<usize>();
        Server {
            name: setup.name.clone(),
            size: u32::try_from(size).unwrap_or(u32::MAX),
            universe: setup.universe,
            alone: ours.len() == size,
            versions: setup.versions,
            waits: setup.limits.waits,
            mapping: process_mapping(&setup.tasks),
            keys: Keys::new(setup.limits.keys),
            attributes: Keys::new(setup.limits.attributes),
            sessions: ours.iter().map(|rank| Session::new(*rank)).collect(),
            fence: 0,
            fencing: false,
        }
    }

    /// A task said this.
    pub fn read(&mut self, task: usize, bytes: &[u8]) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(session) = self.sessions.get_mut(task) else { return effects };
        if session.phase == Phase::Over {
            return effects;
        }
        session.decoder.feed(bytes);
        while let Some(session) = self.sessions.get_mut(task) {
            let wire = match session.phase {
                Phase::New => Wire::One,
                Phase::Open(wire) => wire,
                Phase::Over => break,
            };
            let heard = match session.decoder.next(wire) {
                Ok(Some(message)) => self.hear(task, wire, &message, &mut effects),
                Ok(None) => break,
                Err(e) => Err(e.to_string()),
            };
            if let Err(why) = heard {
                if let Some(session) = self.sessions.get_mut(task) {
                    session.end();
                }
                effects.push(Effect::Fault { task, why });
            }
        }
        effects
    }

    /// A task's connection ended, or the task did.
    pub fn gone(&mut self, task: usize) {
        if let Some(session) = self.sessions.get_mut(task) {
            session.end();
        }
    }

    /// Whether a task ever spoke.
    pub fn spoke(&self, task: usize) -> bool {
        self.sessions.get(task).is_some_and(|s| s.spoke)
    }

    /// What all nodes put before a fence. Keys of this node may be among them.
    ///
    /// # Errors
    /// They are damaged, or more than are held.
    pub fn fenced(&mut self, number: u32, keys: &[u8]) -> Result<Vec<Effect>, BadKeys> {
        if !self.fencing || number != self.fence {
            return Ok(Vec::new());
        }
        self.keys.merge(keys)?;
        Ok(self.end_fence())
    }

    /// The fence that cannot end, where there is one.
    pub fn stuck(&self) -> Option<Stuck> {
        let ranks = |wanted: &dyn Fn(&&Session) -> bool| -> Vec<u32> {
            self.sessions.iter().filter(wanted).map(|s| s.rank).collect()
        };
        let waiting = ranks(&|s| s.fence.is_some());
        let gone = ranks(&|s| s.phase == Phase::Over);
        (!self.fencing && !waiting.is_empty() && !gone.is_empty()).then_some(Stuck { waiting, gone })
    }

    fn hear(
        &mut self,
        task: usize,
        wire: Wire,
        message: &Message,
        effects: &mut Vec<Effect>,
    ) -> Result<(), String> {
        if let Some(Session { phase: Phase::New, .. }) = self.sessions.get(task) {
            return self.begin(task, message, effects);
        }
        match wire {
            Wire::One => self.hear_one(task, message, effects),
            Wire::Two => self.hear_two(task, message, effects),
        }
    }

    fn begin(&mut self, task: usize, message: &Message, effects: &mut Vec<Effect>) -> Result<(), String> {
        if message.command != b"init" {
            return Err(format!("cmd={} before cmd=init", shown(&message.command)));
        }
        let version: Option<u32> = message.number("pmi_version");
        let (wire, subversion) = match (version, self.versions) {
            (Some(1), _) => (Wire::One, "1"),
            (Some(2), Versions::Both) => (Wire::Two, "0"),
            (Some(2), Versions::One) => {
                return Err(
                    "it asks for PMI-2, and the step was started with --mpi=pmi1: use --mpi=pmi2".into()
                );
            }
            _ => return Err("it asks for a version of PMI that is neither 1 nor 2".into()),
        };
        if let Some(session) = self.sessions.get_mut(task) {
            session.phase = Phase::Open(wire);
            session.spoke = true;
        }
        let version = if wire == Wire::One { "1" } else { "2" };
        let fields: [(&str, &[u8]); 3] =
            [("pmi_version", version.as_bytes()), ("pmi_subversion", subversion.as_bytes()), ("rc", b"0")];
        effects.push(Effect::Send { task, bytes: one("response_to_init", &fields) });
        Ok(())
    }

    fn hear_one(&mut self, task: usize, message: &Message, effects: &mut Vec<Effect>) -> Result<(), String> {
        let mut say = |command: &str, fields: &[(&str, &[u8])]| {
            effects.push(Effect::Send { task, bytes: one(command, fields) });
        };
        let ours = message.get("kvsname").is_none_or(|name| name == self.name.as_bytes());
        match message.command.as_slice() {
            b"get_maxes" => say(
                "maxes",
                &[
                    ("rc", b"0"),
                    ("kvsname_max", NAME_MAX.to_string().as_bytes()),
                    ("keylen_max", KEY_MAX.to_string().as_bytes()),
                    ("vallen_max", VALUE_TOLD.to_string().as_bytes()),
                ],
            ),
            b"get_appnum" => say("appnum", &[("rc", b"0"), ("appnum", b"0")]),
            b"get_universe_size" => {
                say("universe_size", &[("rc", b"0"), ("size", self.universe.to_string().as_bytes())]);
            }
            b"get_my_kvsname" => say("my_kvsname", &[("rc", b"0"), ("kvsname", self.name.as_bytes())]),
            b"put" if !ours => say("put_result", &[("rc", b"-1"), ("msg", b"no_such_kvs")]),
            b"put" => {
                let key = message.get("key").unwrap_or_default();
                match self.keys.put(key, message.get("value").unwrap_or_default()) {
                    Ok(()) => say("put_result", &[("rc", b"0"), ("msg", b"success")]),
                    Err(why) => {
                        say("put_result", &[("rc", b"-1"), ("msg", why.word().as_bytes())]);
                        self.full(task, why, effects);
                    }
                }
            }
            b"get" => {
                let key = message.get("key").unwrap_or_default();
                match self.lookup(key).filter(|_| ours) {
                    Some(value) => say("get_result", &[("rc", b"0"), ("msg", b"success"), ("value", value)]),
                    None => {
                        say("get_result", &[("rc", b"-1"), ("msg", b"key_not_found"), ("value", b"unknown")])
                    }
                }
            }
            b"getbyidx" => {
                let place: Option<usize> = message.number("idx");
                match place.filter(|_| ours).and_then(|at| Some((at, self.keys.at(at)?))) {
                    Some((at, (key, value))) => {
                        let next = (at + 1).to_string();
                        let fields = [
                            ("rc", b"0".as_slice()),
                            ("nextidx", next.as_bytes()),
                            ("key", key),
                            ("val", value),
                        ];
                        say("getbyidx_results", &fields);
                    }
                    None => say("getbyidx_results", &[("rc", b"-2"), ("reason", b"no_more_keyvals")]),
                }
            }
            b"barrier_in" => return self.enter_fence(task, None, effects),
            b"finalize" => {
                say("finalize_ack", &[("rc", b"0")]);
                self.finalize(task);
            }
            b"abort" => self.abort(task, message, effects),
            b"spawn" => {
                say("spawn_result", &[("rc", b"-1"), ("msg", b"spawn_is_not_supported")]);
                self.note(task, NO_SPAWN, effects);
            }
            command @ (b"publish_name" | b"unpublish_name" | b"lookup_name") => {
                let answer = match command {
                    b"publish_name" => "publish_result",
                    b"unpublish_name" => "unpublish_result",
                    _ => "lookup_result",
                };
                let fields: [(&str, &[u8]); 3] =
                    [("rc", b"-1"), ("info", b"not_supported"), ("msg", b"not_supported")];
                say(answer, &fields);
                self.note(task, NO_NAMES, effects);
            }
            other => return Err(format!("cmd={} is nothing that PMI-1 has", shown(other))),
        }
        Ok(())
    }

    fn hear_two(&mut self, task: usize, message: &Message, effects: &mut Vec<Effect>) -> Result<(), String> {
        let mark: Mark = message.get("thrid").map(<[u8]>::to_vec);
        let Some(command) = std::str::from_utf8(&message.command).ok().filter(|c| is_command(c)) else {
            return Err(format!("cmd={} is nothing that PMI-2 has", shown(&message.command)));
        };
        let mut say = |rc: i32, fields: &[(&str, &[u8])]| {
            effects.push(Effect::Send { task, bytes: answer(command, &mark, rc, fields) });
        };
        let key = message.get("key").unwrap_or_default();
        let value = message.get("value").unwrap_or_default();
        match command {
            "fullinit" => {
                let rank = self.sessions.get(task).map_or(0, |s| s.rank).to_string();
                let size = self.size.to_string();
                let fields: [(&str, &[u8]); 7] = [
                    ("pmi-version", b"2"),
                    ("pmi-subversion", b"0"),
                    ("rank", rank.as_bytes()),
                    ("size", size.as_bytes()),
                    ("appnum", b"0"),
                    ("debugged", b"FALSE"),
                    ("pmiverbose", b"FALSE"),
                ];
                say(0, &fields);
            }
            "job-getid" => say(0, &[("jobid", self.name.as_bytes())]),
            "kvs-put" => match self.keys.put(key, value) {
                Ok(()) => say(0, &[]),
                Err(why) => {
                    say(-1, &[("errmsg", why.word().as_bytes())]);
                    self.full(task, why, effects);
                }
            },
            "kvs-get" => {
                let ours = message.get("jobid").is_none_or(|id| id.is_empty() || id == self.name.as_bytes());
                found(self.lookup(key).filter(|_| ours), &mut say);
            }
            "kvs-fence" => return self.enter_fence(task, mark, effects),
            "info-getjobattr" => {
                let universe = self.universe.to_string();
                let value = if key == b"universeSize" { Some(universe.as_bytes()) } else { self.lookup(key) };
                found(value, &mut say);
            }
            "info-getnodeattr" => {
                let local = self.sessions.len().to_string();
                let known = match key {
                    // What Slurm's library asks for.
                    b"localRanksCount" => Some(local.as_bytes()),
                    _ => self.attributes.get(key),
                };
                let wait = message.get("wait") == Some(b"TRUE");
                if known.is_some() || !wait {
                    found(known, &mut say);
                } else if let Some(session) = self.sessions.get_mut(task) {
                    if session.waits.len() >= self.waits || key.len() > KEY_MAX {
                        return Err(format!("it waits for more than {} attributes of the node", self.waits));
                    }
                    session.waits.push((key.to_vec(), mark));
                }
            }
            "info-putnodeattr" => match self.attributes.put(key, value) {
                Ok(()) => {
                    say(0, &[]);
                    self.tell_attribute(key, value, effects);
                }
                Err(why) => say(-1, &[("errmsg", why.word().as_bytes())]),
            },
            "finalize" => {
                say(0, &[]);
                self.finalize(task);
            }
            "abort" => self.abort(task, message, effects),
            "spawn" => {
                say(-1, &[("errmsg", b"spawn is not supported")]);
                self.note(task, NO_SPAWN, effects);
            }
            "name-publish" | "name-unpublish" | "name-lookup" => {
                say(-1, &[("errmsg", b"names of services are not supported")]);
                self.note(task, NO_NAMES, effects);
            }
            other => {
                say(-1, &[("errmsg", b"not supported")]);
                let text = format!("PMI-2's {other} is not supported");
                self.note(task, &text, effects);
            }
        }
        Ok(())
    }

    /// A value that every task may have: of the step itself, or put by one.
    fn lookup(&self, key: &[u8]) -> Option<&[u8]> {
        if key == MAPPING {
            return self.mapping.as_ref().map(String::as_bytes);
        }
        self.keys.get(key)
    }

    fn tell_attribute(&mut self, key: &[u8], value: &[u8], effects: &mut Vec<Effect>) {
        for (task, session) in self.sessions.iter_mut().enumerate() {
            let (now, later) = std::mem::take(&mut session.waits).into_iter().partition(|(k, _)| k == key);
            session.waits = later;
            let now: Vec<(Vec<u8>, Mark)> = now;
            for (_, mark) in now {
                let fields: [(&str, &[u8]); 2] = [("found", b"TRUE"), ("value", value)];
                effects.push(Effect::Send { task, bytes: answer("info-getnodeattr", &mark, 0, &fields) });
            }
        }
    }

    fn enter_fence(&mut self, task: usize, mark: Mark, effects: &mut Vec<Effect>) -> Result<(), String> {
        if let Some(session) = self.sessions.get_mut(task) {
            if session.fence.is_some() {
                return Err("it comes to a fence twice at the same time".into());
            }
            session.fence = Some(mark);
        }
        if self.sessions.iter().any(|s| s.fence.is_none()) {
            return Ok(());
        }
        self.fence = self.fence.wrapping_add(1);
        let keys = self.keys.take_fresh();
        if self.alone {
            effects.extend(self.end_fence());
        } else {
            self.fencing = true;
            effects.push(Effect::Fence { number: self.fence, keys });
        }
        Ok(())
    }

    fn end_fence(&mut self) -> Vec<Effect> {
        self.fencing = false;
        let sessions = self.sessions.iter_mut().enumerate();
        sessions.filter_map(|(task, s)| Some(Effect::Send { task, bytes: s.fence_over()? })).collect()
    }

    fn finalize(&mut self, task: usize) {
        if let Some(session) = self.sessions.get_mut(task) {
            session.phase = Phase::New;
            session.fence = None;
            session.waits = Vec::new();
        }
    }

    fn abort(&mut self, task: usize, message: &Message, effects: &mut Vec<Effect>) {
        let code: i64 = message.number("exitcode").unwrap_or(1);
        // What a shell sees of an exit code; an abort is no success.
        let code = u8::try_from(code & 0xff).ok().filter(|code| *code != 0).unwrap_or(1);
        let said = message.get("msg").or_else(|| message.get("message")).unwrap_or_default();
        let text: String = String::from_utf8_lossy(said).chars().filter(|c| !c.is_control()).collect();
        if let Some(session) = self.sessions.get_mut(task) {
            session.end();
        }
        effects.push(Effect::Abort { task, code, message: text });
    }

    fn full(&mut self, task: usize, why: Refused, effects: &mut Vec<Effect>) {
        if why == Refused::Full {
            self.note(task, "its keys are more than the node holds for a step: they are refused", effects);
        }
    }

    /// Tells the user, once for each task.
    fn note(&mut self, task: usize, text: &str, effects: &mut Vec<Effect>) {
        if let Some(session) = self.sessions.get_mut(task)
            && !std::mem::replace(&mut session.told, true)
        {
            effects.push(Effect::Note { task, text: text.to_string() });
        }
    }
}

/// Sends an answer: its result, and its words.
type Say<'a> = &'a mut dyn FnMut(i32, &[(&str, &[u8])]);

/// Says what a key has, or that it is not there.
fn found(value: Option<&[u8]>, say: Say<'_>) {
    match value {
        Some(value) => say(0, &[("found", b"TRUE"), ("value", value)]),
        None => say(0, &[("found", b"FALSE")]),
    }
}

fn is_command(text: &str) -> bool {
    text.len() <= 32 && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

/// A task's word as it may stand in a message to the user.
fn shown(word: &[u8]) -> String {
    let text = String::from_utf8_lossy(word);
    text.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect()
}
