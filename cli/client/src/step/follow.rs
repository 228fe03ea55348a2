//! One step from attaching to its end: what it writes goes out, what we read goes in, signals pass, and its exit
//! becomes ours. A restart of agent or controller in the middle is not noticed.

use super::interrupt::{Press, Presses};
use super::labels::Labels;
use super::stream::{self, Event, NotAttached, Output, Wanted};
use super::{exits, terminal};
use crate::error::{Failure, Kind, Outcome};
use crate::out;
use berth_model::StepKey;
use berth_model::launch::{Layout, StepExit};
use berth_model::record::{JobInfo, StepInfo};
use berth_model::state::{ExitStatus, JobState};
use berth_rpc::Client;
use berth_stream::{ALL_TASKS, Frame, MAX_PAYLOAD, STDIN_WINDOW};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

/// How long the stream may take to tell the end that the record has already.
const LAST_WORD: Duration = Duration::from_secs(2);
/// How long until there is a stream at all: what the step said waits at its node.
const FIRST_WORD: Duration = Duration::from_secs(20);
const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// Exits that come within this time of one another share their lines.
const GATHER: Duration = Duration::from_millis(100);

/// Who follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// `srun`: of tasks that fail is told, and Ctrl-C asks before it does anything.
    Srun,
    /// `berth exec`: as if the one command had been started here. Its exit code says how it ended.
    Exec,
}

impl Voice {
    /// The program's name in messages.
    fn name(self) -> &'static str {
        match self {
            Voice::Srun => "srun",
            Voice::Exec => "berth",
        }
    }
}

/// A step to follow.
#[derive(Debug)]
pub struct Step {
    /// How we speak.
    pub voice: Voice,
    /// Socket for its streams.
    pub socket: PathBuf,
    /// The controller, for what is asked rarely.
    pub client: Client,
    /// Which.
    pub key: StepKey,
    /// Its tasks.
    pub layout: Layout,
    /// `--label`.
    pub label: bool,
    /// `--pty`.
    pub pty: bool,
    /// The task that reads our stdin, [`ALL_TASKS`], or none.
    pub input: Option<u32>,
    /// The one task whose standard output is wanted; absent: of all.
    pub only_stdout: Option<u32>,
    /// The same for standard error.
    pub only_stderr: Option<u32>,
}

/// The job's record, as it changes.
pub type Records = watch::Receiver<Option<JobInfo>>;

/// Where we are with the connection.
enum Link {
    /// Trying; the task tells when it is there.
    Trying,
    /// There.
    Open(OwnedWriteHalf),
    /// The supervisor's last word was heard, or it is gone.
    Over,
}

struct Follower {
    step: Step,
    exits: BTreeMap<u32, ExitStatus>,
    told: BTreeMap<u32, ExitStatus>,
    link: Link,
    outstanding: usize,
    /// There was a connection once.
    met: bool,
    presses: Presses,
    started: bool,
    ended: Option<StepExit>,
    /// Set by a signal that ends the step: when to end it without regard.
    deadline: Option<Instant>,
    /// When to print the exits not yet told.
    gather: Option<Instant>,
    pending: Vec<Frame>,
    /// Messages of the step, so that none is told twice.
    heard: String,
}

/// Follows a step; comes back with srun's exit code.
pub async fn follow(step: Step, mut records: Records) -> Outcome {
    let internal =
        |what: &str, e: std::io::Error| Failure::new(Kind::Internal, format!("cannot {what}: {e}"));
    if let [_, _, ..] = step.layout.nodes.as_slice() {
        // Only one of them could be heard: nothing of it runs on unseen.
        step.client.cancel_one(step.key.job, Some(step.key.step)).await?;
        return Err(Failure::user(format!(
            "step {} would be on {} nodes: a step is on one node yet; ask for -N1, and start one for each node (-w NODE)",
            step.key,
            step.layout.nodes.len()
        )));
    }
    let (events_in, mut events) = mpsc::channel(256);
    let labels = step.label.then(|| Labels::new(u32::try_from(tasks(&step.layout)).unwrap_or(u32::MAX)));
    let name = step.voice.name();
    let wanted = Wanted { stdout: step.only_stdout, stderr: step.only_stderr };
    let output = Output::start(labels, wanted, events_in.clone())
        .map_err(|e| internal("start a thread for output", e))?;
    let mut signals = Signals::new().map_err(|e| internal("handle signals", e))?;
    let _raw = if step.pty { terminal::Raw::enter() } else { None };
    let mut input = match step.input {
        Some(_) => Some(stream::read_stdin().map_err(|e| internal("start a thread for input", e))?),
        None => None,
    };
    let mut me = Follower {
        step,
        exits: BTreeMap::new(),
        told: BTreeMap::new(),
        link: Link::Trying,
        outstanding: 0,
        met: false,
        presses: Presses::default(),
        started: false,
        ended: None,
        deadline: None,
        gather: None,
        pending: Vec::new(),
        heard: String::new(),
    };
    match me.step.input {
        None => me.pending.push(Frame::StdinEof { task: ALL_TASKS }),
        Some(ALL_TASKS) => {}
        // Our input is one task's; that of the others ends at once, or they would wait for it for ever.
        Some(task) => {
            let others = me.step.layout.tasks.iter().flatten().filter(|other| **other != task);
            me.pending.extend(others.map(|other| Frame::StdinEof { task: *other }));
        }
    }
    let mut connecting = me.connect();
    // When the record says that the step is over: its stream gets a moment for the last word.
    let mut patience: Option<Instant> = None;
    let mut watched = true;
    let by_record = loop {
        if me.ended.is_some() {
            break None;
        }
        let room = me.outstanding + MAX_PAYLOAD <= STDIN_WINDOW && matches!(me.link, Link::Open(_));
        tokio::select! {
            attached = &mut connecting, if matches!(me.link, Link::Trying) => match attached {
                Ok(Ok(stream)) => {
                    let (reader, mut writer) = stream.into_split();
                    output.pump(reader, events_in.clone());
                    for frame in std::mem::take(&mut me.pending) {
                        stream::send(&mut writer, &frame).await;
                    }
                    // Credit that was on its way to a connection that was lost does not come.
                    me.outstanding = 0;
                    me.met = true;
                    me.link = Link::Open(writer);
                }
                Ok(Err(why)) => {
                    // The record tells more, if the step is over; it comes within a moment.
                    me.link = Link::Over;
                    if let Some(code) = me.recorded_code(&mut records, Some(why)).await? {
                        break Some(code);
                    }
                }
                Err(_) => return Err(Failure::new(Kind::Internal, "the connection to the step ended in a fault")),
            },
            event = events.recv() => match event {
                Some(event) => me.event(event).await,
                None => me.link = Link::Over,
            },
            chunk = next(&mut input), if room => me.input(chunk, &mut input).await,
            number = signals.next() => me.signal(number).await,
            changed = records.changed(), if watched => {
                // Without a watcher the stream alone tells the end.
                watched = changed.is_ok();
                if me.is_over(&records) {
                    let wait = if me.met { LAST_WORD } else { FIRST_WORD };
                    patience.get_or_insert(Instant::now() + wait);
                }
            }
            () = until(me.gather) => me.tell(false),
            () = until(me.deadline) => {
                me.deadline = None;
                me.send(Frame::Signal(SIGKILL)).await;
            }
            () = until(patience) => {
                patience = None;
                if !matches!(me.link, Link::Open(_)) && let Some(code) = me.recorded_code(&mut records, None).await? {
                    if !me.met {
                        stream::message(&format!(
                            "{name}: warning: step {} is over, and its node cannot be reached: what it wrote is not seen here",
                            me.step.key
                        ));
                    }
                    break Some(code);
                }
            }
        }
        if matches!(me.link, Link::Over) && me.ended.is_none() {
            if let Some(code) = me.recorded_code(&mut records, None).await? {
                break Some(code);
            }
            connecting = me.connect();
            me.link = Link::Trying;
        }
    };
    connecting.abort();
    drop(events_in);
    let mut done = output.close();
    let lost = loop {
        tokio::select! {
            lost = &mut done => break lost.ok().flatten(),
            number = signals.next() => {
                // The step is over; a slow reader of its output alone keeps us.
                if number == libc_signal(SignalKind::interrupt()) || number == libc_signal(SignalKind::terminate()) {
                    return Ok(130);
                }
            }
        }
    };
    let code = by_record.unwrap_or_else(|| me.finish());
    match lost {
        None => Ok(code),
        Some(e) => {
            out::complain(&format!(
                "{name}: error: cannot write to standard output: {e}; what the tasks wrote is lost"
            ));
            Ok(code.max(1))
        }
    }
}

/// Waits until then; for ever where there is no such time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn libc_signal(kind: SignalKind) -> i32 {
    kind.as_raw_value()
}

fn tasks(layout: &Layout) -> usize {
    layout.tasks.iter().map(Vec::len).sum()
}

/// The next chunk of input; never where there is none to read.
async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(queue) => queue.recv().await,
        None => std::future::pending().await,
    }
}

type Connecting = tokio::task::JoinHandle<Result<tokio::net::UnixStream, String>>;

impl Follower {
    /// Tries to attach until the step takes us or refuses.
    fn connect(&self) -> Connecting {
        let (socket, key) = (self.step.socket.clone(), self.step.key);
        let node = self.step.layout.nodes.first().cloned();
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(20);
            loop {
                match stream::attach(&socket, node.as_ref(), key).await {
                    Ok(stream) => return Ok(stream),
                    Err(NotAttached::Refused(why)) => return Err(why),
                    Err(NotAttached::Away(_)) => sleep(pause).await,
                }
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        })
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Frame(Frame::TaskExit { task, status }) => {
                self.exits.insert(task, status);
                if !status.success() {
                    self.gather.get_or_insert(Instant::now() + GATHER);
                }
            }
            Event::Frame(Frame::StepExit(exit)) => {
                self.exits.extend(exit.tasks.iter().copied());
                self.ended = Some(*exit);
            }
            Event::Frame(Frame::Started) => self.started = true,
            Event::Frame(Frame::Credit(n)) => {
                self.outstanding = self.outstanding.saturating_sub(usize::try_from(n).unwrap_or(usize::MAX));
            }
            Event::Frame(Frame::Message(text)) => {
                stream::message(text.trim_end_matches('\n'));
                if self.step.voice == Voice::Srun
                    && text.contains(" CANCELLED AT ")
                    && !self.heard.contains(" CANCELLED AT ")
                {
                    let seconds = kill_wait(&self.step.client).await.as_secs().saturating_add(2);
                    out::complain(&format!(
                        "srun: Job step aborted: Waiting up to {seconds} seconds for job step to finish."
                    ));
                }
                self.heard.push_str(&text);
            }
            Event::Frame(_) => {}
            Event::Closed => self.link = Link::Over,
            Event::StdoutGone => self.send(Frame::Signal(libc_signal(SignalKind::pipe()))).await,
        }
    }

    async fn input(&mut self, chunk: Option<Vec<u8>>, input: &mut Option<mpsc::Receiver<Vec<u8>>>) {
        let task = self.step.input.unwrap_or(ALL_TASKS);
        match chunk {
            Some(data) => {
                self.outstanding += data.len();
                self.send(Frame::Stdin { task, data }).await;
            }
            None => {
                *input = None;
                self.send(Frame::StdinEof { task }).await;
            }
        }
    }

    /// Sends a frame, now or when the step is there.
    async fn send(&mut self, frame: Frame) {
        match &mut self.link {
            Link::Open(writer) => stream::send(writer, &frame).await,
            _ => self.pending.push(frame),
        }
    }

    async fn signal(&mut self, number: i32) {
        let id = self.step.key;
        let exec = self.step.voice == Voice::Exec;
        if number == libc_signal(SignalKind::window_change()) {
            if let Some(size) = terminal::size().filter(|_| self.step.pty) {
                self.send(Frame::Winch(size)).await;
            }
        } else if number == libc_signal(SignalKind::interrupt()) && !exec {
            match self.presses.press(Instant::now()) {
                Press::Report => {
                    out::complain("srun: interrupt (one more within 1 sec to abort)");
                    self.report();
                }
                Press::Interrupt => {
                    out::complain(&format!("srun: sending Ctrl-C to StepId={id}"));
                    self.send(Frame::Signal(number)).await;
                }
                Press::Kill => {
                    out::complain("srun: forcing job termination");
                    self.send(Frame::Signal(SIGKILL)).await;
                }
            }
        } else if [SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()]
            .into_iter()
            .any(|k| libc_signal(k) == number)
        {
            if !exec {
                out::complain("srun: forcing job termination");
            }
            if self.deadline.is_some() {
                // Asked twice: without waiting.
                self.deadline = Some(Instant::now());
                return;
            }
            let asked = Instant::now();
            self.send(Frame::Signal(nix::sys::signal::Signal::SIGCONT as i32)).await;
            self.send(Frame::Signal(number)).await;
            self.deadline = Some(asked + kill_wait(&self.step.client).await);
        } else {
            self.send(Frame::Signal(number)).await;
        }
    }

    /// How the tasks are.
    fn report(&self) {
        let all: Vec<u32> = self.step.layout.tasks.iter().flatten().copied().collect();
        let (mut ended, mut alive): (Vec<u32>, Vec<u32>) =
            all.iter().partition(|t| self.exits.contains_key(t));
        ended.sort_unstable();
        alive.sort_unstable();
        let state = if self.started || matches!(self.link, Link::Open(_)) { "running" } else { "starting" };
        for (tasks, what) in [(alive, state), (ended, "exited")] {
            if !tasks.is_empty() {
                out::complain(&format!(
                    "srun: StepId={} {}: {what}",
                    self.step.key,
                    exits::tasks_text(&tasks)
                ));
            }
        }
    }

    /// Prints the lines of tasks that failed and were not yet told about.
    fn tell(&mut self, oom: bool) {
        self.gather = None;
        let fresh: Vec<(u32, ExitStatus)> =
            self.exits.iter().filter(|(t, _)| !self.told.contains_key(t)).map(|(t, s)| (*t, *s)).collect();
        self.told.extend(fresh.iter().copied());
        if self.step.voice == Voice::Exec {
            return;
        }
        for line in exits::lines(&self.step.layout, &fresh) {
            let line = match line.strip_suffix(": Killed") {
                Some(start) if oom => format!("{start}: Out Of Memory"),
                _ => line,
            };
            out::complain(&format!("srun: error: {line}"));
        }
    }

    /// Why the step could not be started.
    fn complain_of_launch(&self, why: &str) {
        let node = self.step.layout.nodes.first().map_or("", |n| n.0.as_str());
        for line in why.lines() {
            match self.step.voice {
                Voice::Srun => out::complain(&format!("srun: error: {node}: {line}")),
                Voice::Exec => out::complain(&format!("berth: error: {line}")),
            }
        }
    }

    /// The step's last words and the exit code.
    fn finish(mut self) -> u8 {
        let Some(exit) = self.ended.take() else { return 1 };
        let name = self.step.voice.name();
        if let Some(why) = exit.launch_error.as_ref().filter(|why| !self.heard.contains(why.trim())) {
            self.complain_of_launch(why);
        } else {
            self.tell(exit.oom);
            let ended_by = |signal| self.exits.values().any(|s| i32::from(s.signal) == signal);
            // Somebody ended it, and it was neither we nor a cancellation, which has its own line.
            if self.deadline.is_none()
                && self.step.voice == Voice::Srun
                && !exit.oom
                && !self.heard.contains(" CANCELLED AT ")
                && (ended_by(SIGKILL) || ended_by(libc_signal(SignalKind::terminate())))
            {
                out::complain(&format!("srun: Force Terminated StepId={}", self.step.key));
            }
        }
        let code = exits::code(self.exits.values().copied().chain([exit.status]));
        if code == 0 && exit.oom {
            // A task may have gone on without the process that was killed: the step did not do its work.
            let node = self.step.layout.nodes.first().map_or("", |n| n.0.as_str());
            out::complain(&format!("{name}: error: {node}: StepId={}: Out Of Memory", self.step.key));
        }
        if code == 0 && (exit.oom || exit.launch_error.is_some()) { 1 } else { code }
    }

    fn record<'a>(&self, job: &'a JobInfo) -> Option<&'a StepInfo> {
        job.steps.iter().find(|s| s.id == self.step.key.step && s.attempt == self.step.key.attempt)
    }

    fn is_over(&self, records: &Records) -> bool {
        let record = records.borrow();
        let Some(job) = record.as_ref() else { return false };
        match self.record(job) {
            Some(step) => step.ended.is_some(),
            None => job.state.is_terminal() || job.attempt != self.step.key.attempt,
        }
    }

    /// The exit code by the controller's record, once it knows the step's end; waits for it when the connection was
    /// refused.
    async fn recorded_code(
        &mut self,
        records: &mut Records,
        refused: Option<String>,
    ) -> Result<Option<u8>, Failure> {
        if refused.is_some() {
            let until = tokio::time::Instant::now() + Duration::from_secs(3);
            while !self.is_over(records) {
                match tokio::time::timeout_at(until, records.changed()).await {
                    Ok(Ok(())) => {}
                    _ => break,
                }
            }
        }
        if !self.is_over(records) {
            return match refused {
                Some(why) => Err(Failure::user(format!("StepId={}: {why}", self.step.key))),
                None => Ok(None),
            };
        }
        self.tell(false);
        let name = self.step.voice.name();
        let record = records.borrow().clone();
        let Some(job) = record else { return Ok(None) };
        let Some(step) = self.record(&job) else {
            out::complain(&format!(
                "{name}: error: StepId={} did not start: {}",
                self.step.key,
                crate::fmt::job::reason(&job)
            ));
            return Ok(Some(1));
        };
        match &step.message {
            Some(why) => self.complain_of_launch(why),
            None if step.state == JobState::Completed => {}
            None => out::complain(&format!("{name}: error: StepId={} {}", self.step.key, step.state.name())),
        }
        let code = exits::code(self.exits.values().copied().chain([step.exit]));
        Ok(Some(if code == 0 && step.state != JobState::Completed { 1 } else { code }))
    }
}

/// From SIGTERM to SIGKILL: the cluster's time, or the usual one where the controller does not answer.
async fn kill_wait(client: &Client) -> Duration {
    let config = tokio::time::timeout(Duration::from_secs(1), client.config()).await;
    Duration::from_secs(config.ok().and_then(Result::ok).map_or(30, |c| u64::from(c.kill_wait_seconds)))
}

/// The signals that srun passes on, or acts on.
struct Signals {
    all: Vec<(i32, Signal)>,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::alarm(),
            SignalKind::window_change(),
        ];
        let all =
            kinds.into_iter().map(|k| Ok((k.as_raw_value(), signal(k)?))).collect::<std::io::Result<_>>()?;
        Ok(Signals { all })
    }

    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, signal) in &mut self.all {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
