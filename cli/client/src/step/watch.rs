//! Hearing a step beside the `srun` that started it: its output comes here, our input goes to its tasks, and with its end we end.
//! Whatever becomes of us, the step goes on.

use super::labels::Labels;
use super::nodes::{Nodes, To};
use super::signals::Signals;
use super::sinks::{Lost, Sinks};
use super::stream::{self, Event, Output, Wanted};
use super::{exits, terminal};
use crate::error::{Failure, Kind, Outcome};
use crate::het;
use crate::out;
use berth_model::StepKey;
use berth_model::hostlist;
use berth_model::launch::{Layout, StepExit};
use berth_model::query::JobQuery;
use berth_model::record::{JobInfo, StepInfo};
use berth_model::state::ExitStatus;
use berth_rpc::Client;
use berth_stream::{Attach, Frame, Resume, Watch};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Exits that come within this time of one another share their lines.
const GATHER: Duration = Duration::from_millis(100);
/// How often the record is asked while a node cannot be reached: the step may be over.
const LOOK: Duration = Duration::from_secs(2);
/// How long a node to which the connection is lost keeps what we have not heard of a step that is over.
const LAST_WORD: Duration = Duration::from_secs(20);

/// A step to hear.
#[derive(Debug)]
pub struct Watched {
    /// Socket for its streams.
    pub socket: PathBuf,
    /// The controller, for what only the record tells.
    pub client: Client,
    /// Which.
    pub key: StepKey,
    /// The part of it that each node has, where it is in several components of a job; empty otherwise.
    pub parts: Vec<StepKey>,
    /// Its tasks.
    pub layout: Layout,
    /// Lines carry the number of their task.
    pub label: bool,
    /// Our terminal is that of its first task.
    pub pty: bool,
    /// The task that reads our input, or [`berth_stream::ALL_TASKS`].
    pub input: u32,
    /// The one task whose standard output is wanted; absent: of all.
    pub stdout: Option<u32>,
    /// The same for standard error.
    pub stderr: Option<u32>,
    /// Say nothing of tasks that fail.
    pub quiet: bool,
    /// Say to which nodes there is a connection.
    pub verbose: bool,
}

struct Watcher {
    step: Watched,
    nodes: Nodes,
    exits: BTreeMap<u32, ExitStatus>,
    told: BTreeMap<u32, ExitStatus>,
    gather: Option<Instant>,
    /// A task ended the whole step, with this exit code.
    aborted: Option<u8>,
}

/// Hears a step to its end, and gives the highest exit code of its tasks; or until a signal ends us, with 128 and its number.
///
/// # Errors
/// A node will not have us, or there are no threads.
pub async fn watch(step: Watched) -> Outcome {
    let internal =
        |what: &str, e: std::io::Error| Failure::new(Kind::Internal, format!("cannot {what}: {e}"));
    let (events_in, mut events) = mpsc::channel(256);
    let tasks = step.layout.tasks.iter().map(Vec::len).sum::<usize>();
    let tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
    let labels = step.label.then(|| Labels::new(tasks, false, Sinks::default().are_one()));
    let wanted = Wanted { stdout: step.stdout, stderr: step.stderr };
    let output = Output::start(labels, wanted, Sinks::default(), events_in.clone())
        .map_err(|e| internal("start a thread for output", e))?;
    let mut signals = Signals::new().map_err(|e| internal("handle signals", e))?;
    let _raw = if step.pty { terminal::Raw::enter() } else { None };
    let mut input = Some(stream::read_stdin().map_err(|e| internal("start a thread for input", e))?);
    // By chance: the standard library's hashers have their keys from the kernel.
    let client = RandomState::new().build_hasher().finish();
    let watch = |key: StepKey| {
        Frame::Watch(Watch {
            step: Attach { resume: Some(Resume { client, heard: 0 }), ..Attach::from(key) },
            stdout: step.stdout,
            stderr: step.stderr,
            // It is the first part's.
            terminal: step.pty && key == step.key,
        })
    };
    let first = match step.parts.as_slice() {
        [] => vec![watch(step.key)],
        parts => parts.iter().map(|key| watch(*key)).collect(),
    };
    let among = step.layout.nodes.len();
    let nodes = Nodes::connect(step.socket.clone(), first, step.layout.clone(), events_in.clone());
    let (exits, told) = (BTreeMap::new(), BTreeMap::new());
    let mut me = Watcher { step, nodes, exits, told, gather: None, aborted: None };
    let mut look = Instant::now() + LOOK;
    // Since when the record says that the step is over, and a node may still have words of it for us.
    let mut over: Option<Instant> = None;
    let code = loop {
        if me.nodes.all_ended() {
            break me.finish(None);
        }
        if let Some((at, why)) = me.nodes.refusal() {
            let why = format!("StepId={}: {}: {why}", me.step.key, me.nodes.name(at));
            // It may be over, and its supervisor gone, since it was asked after.
            match me.recorded().await {
                Some(step) => break me.finish(Some(&step)),
                None => return Err(Failure::user(why)),
            }
        }
        let room = input.is_some() && me.nodes.have_room(me.step.input);
        tokio::select! {
            event = events.recv() => match event {
                Some((at, Event::Attached(stream, taken))) => {
                    let (reader, writer) = stream.into_split();
                    if taken.is_none() && me.nodes.goes_on(at) {
                        me.complain_of_loss(at, "the connection was lost for too long: what its tasks said meanwhile is not seen here");
                    }
                    let heard = me.nodes.opened(at, writer, taken);
                    output.pump((at, among), reader, events_in.clone(), heard, me.nodes.rooms());
                    if me.step.verbose {
                        out::complain(&format!("sattach: hearing StepId={} on {}", me.step.key, me.nodes.name(at)));
                    }
                }
                // Nobody reads what we write.
                Some((_, Event::OutputGone)) => {
                    me.leave().await;
                    return Ok(141);
                }
                Some((at, event)) => me.event(at, event).await,
                None => return Err(Failure::new(Kind::Internal, "the connections to the step ended in a fault")),
            },
            () = me.nodes.flush(), if me.nodes.is_waiting() => {}
            chunk = next(&mut input), if room => match chunk {
                Some(data) => {
                    let task = me.step.input;
                    me.nodes.send(To::Task(task), &Frame::Stdin { task, data });
                }
                // The end of our input is not that of the tasks'.
                None => input = None,
            },
            number = signals.next() => {
                if number != SignalKind::window_change().as_raw_value() {
                    me.leave().await;
                    return Ok(left(number));
                }
            }
            () = until(me.gather) => me.tell(),
            () = sleep_until(look) => {
                look = Instant::now() + LOOK;
                if me.nodes.any_trying() && let Some(step) = me.recorded().await {
                    let away = hostlist::compress(&me.nodes.lost());
                    let since = *over.get_or_insert_with(Instant::now);
                    if away.is_empty() || since.elapsed() >= LAST_WORD {
                        if !away.is_empty() {
                            out::complain(&format!(
                                "sattach: warning: step {} is over, and {away} cannot be reached: not all that it wrote there is seen here",
                                me.step.key
                            ));
                        }
                        break me.finish(Some(&step));
                    }
                }
            }
        }
    };
    // Connections that tell no more may have to.
    drop(events);
    me.nodes.abort();
    drop((events_in, me));
    let mut done = output.close();
    tokio::select! {
        lost = &mut done => match lost.ok().flatten() {
            None => Ok(code),
            Some(Lost { what, error, .. }) => {
                out::complain(&format!("sattach: error: cannot write to {what}: {error}"));
                Ok(code.max(1))
            }
        },
        number = signals.next() => Ok(left(number)),
    }
}

/// The exit code of a command that a signal ended.
fn left(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(queue) => queue.recv().await,
        None => std::future::pending().await,
    }
}

impl Watcher {
    /// Says that we go, so that nothing is kept for us.
    async fn leave(&mut self) {
        self.nodes.send(To::All, &Frame::Detach);
        // Nobody waits for a node that does not take it.
        let all_told = async {
            while self.nodes.is_waiting() {
                self.nodes.flush().await;
            }
        };
        let _ = tokio::time::timeout(GATHER, all_told).await;
    }

    fn complain_of_loss(&self, at: usize, what: &str) {
        out::complain(&format!("sattach: warning: {}: {what}", self.nodes.name(at)));
    }

    async fn event(&mut self, at: usize, event: Event) {
        match event {
            Event::Frame(Frame::TaskExit { task, status }) => {
                self.exits.insert(task, status);
                if !status.success() {
                    self.gather.get_or_insert(Instant::now() + GATHER);
                }
            }
            Event::Frame(Frame::StepExit(exit)) => {
                // With that the supervisor knows that it may go.
                self.nodes.say_heard(at);
                self.exits.extend(exit.tasks.iter().copied());
                self.nodes.ended(at, *exit);
            }
            Event::Heard(_) => self.nodes.say_heard(at),
            Event::Frame(Frame::Heard(count)) => self.nodes.was_heard(at, count),
            Event::Frame(Frame::Started) => self.nodes.started(at),
            Event::Frame(Frame::Credit(n)) => self.nodes.credit(at, n),
            Event::Frame(Frame::Message(text)) => stream::message(text.trim_end_matches('\n')),
            Event::Frame(Frame::Aborted(code)) => self.aborted = Some(code),
            Event::Refused(why) => self.nodes.refused(at, why),
            Event::Closed => {
                if !self.nodes.goes_on(at) {
                    self.complain_of_loss(at, "the connection is lost: what its tasks say until there is another one is not seen here");
                }
                self.nodes.closed(at);
            }
            Event::Frame(_) | Event::Attached(..) | Event::OutputGone | Event::Display(_) => {}
        }
    }

    /// Prints the lines of tasks that failed and were not told of yet.
    fn tell(&mut self) {
        self.gather = None;
        let fresh: Vec<(u32, ExitStatus)> =
            self.exits.iter().filter(|(t, _)| !self.told.contains_key(t)).map(|(t, s)| (*t, *s)).collect();
        self.told.extend(fresh.iter().copied());
        if !self.step.quiet {
            for line in exits::lines(self.nodes.layout(), &fresh) {
                out::complain(&format!("sattach: error: {line}"));
            }
        }
    }

    /// The last words, and the exit code. `record`: what is on record of a step whose nodes did not tell its end.
    fn finish(&mut self, record: Option<&StepInfo>) -> u8 {
        self.tell();
        let ends: Vec<(usize, StepExit)> = self.nodes.ends().map(|(at, exit)| (at, exit.clone())).collect();
        for (at, exit) in &ends {
            for line in exit.launch_error.iter().flat_map(|why| why.lines()) {
                out::complain(&format!("sattach: error: {}: {line}", self.nodes.name(*at)));
            }
        }
        let told = ends.iter().map(|(_, exit)| exit.status).chain(record.map(|step| step.exit));
        let code = exits::code(self.exits.values().copied().chain(told));
        self.aborted.unwrap_or(code)
    }

    /// The step's record, if it is over in all of its parts.
    async fn recorded(&self) -> Option<StepInfo> {
        let mut keys = self.step.parts.clone();
        keys.dedup();
        if keys.is_empty() {
            keys.push(self.step.key);
        }
        let ids = keys.iter().map(|key| key.job).collect();
        let query = JobQuery { ids, include_finished: true, ..JobQuery::default() };
        let asked = tokio::time::timeout(LOOK, self.step.client.jobs(&query)).await;
        let jobs = asked.ok()?.ok()?;
        let of_parts: Vec<Option<JobInfo>> =
            keys.iter().map(|key| jobs.iter().find(|job| job.id == key.job).cloned()).collect();
        let StepKey { attempt, step, .. } = *keys.first()?;
        let steps = het::merge(&keys, &of_parts)?.steps;
        steps.into_iter().find(|s| s.id == step && s.attempt == attempt).filter(|s| s.ended.is_some())
    }
}
