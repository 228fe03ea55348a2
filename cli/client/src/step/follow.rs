//! One step from attaching to its end, on all of its nodes: what it writes goes out, what we read goes in, signals
//! pass, and its exit becomes ours. A restart of agent or controller in the middle is not noticed.

mod telling;

use super::around::{self, Around};
use super::display::Display;
use super::exchange::{Answer, Exchange};
use super::hung;
use super::interrupt::{Press, Presses};
use super::labels::Labels;
use super::nodes::{Nodes, To};
use super::signals::Signals;
use super::sinks::{Lost, Sinks};
use super::stream::{self, Event, Output, Wanted};
use super::terminal;
use crate::error::{Failure, Kind, Outcome};
use crate::out;
use crate::x11::Carrier;
use berth_model::StepKey;
use berth_model::hostlist;
use berth_model::ids::NodeName;
use berth_model::launch::Layout;
use berth_model::record::JobInfo;
use berth_model::request::CancelRequest;
use berth_model::spec::JobSelector;
use berth_model::state::ExitStatus;
use berth_model::time::Span;
use berth_rpc::Client;
use berth_stream::{ALL_TASKS, Attach, Frame, Resume};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc, watch};

/// How long the stream may take to tell the end that the record has already.
const LAST_WORD: Duration = Duration::from_secs(2);
/// How long until there is a stream at all: what the step said waits at its node.
const FIRST_WORD: Duration = Duration::from_secs(20);
const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// How long nodes that are about to begin may take to hear that the step is ended.
const HEARD: Duration = Duration::from_secs(1);

/// How long supervisors may take to hear that we heard the end: those that do not wait a minute for us. Those of versions before this was
/// answered do not answer it.
const LEAVING: Duration = Duration::from_secs(2);

/// How long the controller may take to end the step for us. Where it does not answer, its nodes are told all the same.
const ANSWER: Duration = Duration::from_secs(5);

/// Exits that come within this time of one another share their lines.
const GATHER: Duration = Duration::from_millis(100);

/// Who follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// `srun`: of tasks that fail is told, and Ctrl-C asks before it does anything.
    Srun,
    /// `sbcast`: what tasks say is all that is said, and how they end the exit code.
    Sbcast,
    /// `berth exec`: as if the one command had been started here. Its exit code says how it ended.
    Exec,
}

impl Voice {
    /// The program's name in messages.
    fn name(self) -> &'static str {
        match self {
            Voice::Srun => "srun",
            Voice::Sbcast => "sbcast",
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
    /// The part of it that each node has, where it is in several components of a job; empty otherwise.
    pub parts: Vec<StepKey>,
    /// Its tasks.
    pub layout: Layout,
    /// `--label`.
    pub label: bool,
    /// `--unbuffered`: of lines with labels also what has no line feed yet.
    pub unbuffered: bool,
    /// `--pty`.
    pub pty: bool,
    /// The task that reads our stdin, [`ALL_TASKS`], or none.
    pub input: Option<u32>,
    /// What tasks read instead of our standard input.
    pub feed: Option<mpsc::Receiver<Vec<u8>>>,
    /// Where what they write goes.
    pub sinks: Sinks,
    /// The one task whose standard output is wanted; absent: of all.
    pub only_stdout: Option<u32>,
    /// The same for standard error.
    pub only_stderr: Option<u32>,
    /// `--kill-on-bad-exit`: each node ends its own tasks; those of the others end with them.
    pub kill_on_bad_exit: bool,
    /// `--wait`: how long after the first task ended the others may go on.
    pub wait_after_first_exit: Option<Span>,
    /// What runs here before and after it.
    pub around: Option<Around>,
    /// What Ctrl-C means.
    pub presses: Presses,
    /// Where its programs' connections to our display go, where we carry it to other machines.
    pub carriers: Vec<Carrier>,
}

impl Step {
    /// The step in each of the jobs that have a part of it.
    fn keys(&self) -> Vec<StepKey> {
        let mut keys = self.parts.clone();
        keys.dedup();
        if keys.is_empty() {
            keys.push(self.key);
        }
        keys
    }

    /// Has the controller end it, by a signal or as it ends steps, where it answers: our own end is that of a job of our own.
    pub async fn cancel(&self, signal: Option<i32>) {
        let jobs = self.keys().iter().map(|key| (JobSelector::Job(key.job), Some(key.step))).collect();
        let request = CancelRequest { jobs, signal, ..CancelRequest::default() };
        let _ = tokio::time::timeout(ANSWER, self.client.cancel(&request)).await;
    }
}

/// The job's record, as it changes.
pub type Records = watch::Receiver<Option<JobInfo>>;

struct Follower {
    step: Step,
    nodes: Nodes,
    exits: BTreeMap<u32, ExitStatus>,
    told: BTreeMap<u32, ExitStatus>,
    presses: Presses,
    /// Set by a signal that ends the step: when to end it without regard.
    deadline: Option<Instant>,
    /// When to end the tasks that are left, because the first one ended.
    wait: Option<Instant>,
    /// When to give up, through the controller, what has not begun of a step that is ended.
    give_up: Option<Instant>,
    /// When to print the exits not yet told.
    gather: Option<Instant>,
    /// When to ask for nodes that have not said anything yet, and the pause after that.
    look: Option<Instant>,
    pause: Duration,
    /// The question about them that is not answered yet.
    question: Option<hung::Question>,
    /// Messages of the step, so that none is told twice.
    heard: String,
    /// A task ended the whole step, with this exit code (`MPI_Abort`).
    aborted: Option<u8>,
    /// What its tasks tell one another.
    exchange: Exchange,
    display: Display,
}

/// What a step says that was ended while its tasks waited for the prolog: why is told here.
const ENDED_BEFORE: &str = "the step was ended before its tasks began";

/// Follows a step; comes back with srun's exit code.
pub async fn follow(mut step: Step, records: Records) -> Outcome {
    let around = step.around.take();
    let outcome = follow_tasks(step, records, around.as_ref()).await;
    if let Some(around) = around {
        around.finish().await;
    }
    outcome
}

async fn follow_tasks(mut step: Step, mut records: Records, around: Option<&Around>) -> Outcome {
    let internal =
        |what: &str, e: std::io::Error| Failure::new(Kind::Internal, format!("cannot {what}: {e}"));
    let (events_in, mut events) = mpsc::channel(256);
    let count = u32::try_from(tasks(&step.layout)).unwrap_or(u32::MAX);
    let labels = step.label.then(|| Labels::new(count, step.unbuffered, step.sinks.are_one()));
    let name = step.voice.name();
    let wanted = Wanted { stdout: step.only_stdout, stderr: step.only_stderr };
    let output = Output::start(labels, wanted, std::mem::take(&mut step.sinks), events_in.clone())
        .map_err(|e| internal("start a thread for output", e))?;
    let mut signals = Signals::new().map_err(|e| internal("handle signals", e))?;
    let mut input = match step.input {
        Some(_) if step.feed.is_some() => step.feed.take(),
        Some(_) => Some(stream::read_stdin().map_err(|e| internal("start a thread for input", e))?),
        None => None,
    };
    let step_nodes = step.layout.nodes.len().max(1);
    // By chance: the standard library's hashers have their keys from the kernel.
    let client = RandomState::new().build_hasher().finish();
    let attach = |key: StepKey| {
        Frame::Attach(Attach { resume: Some(Resume { client, heard: 0 }), ..Attach::from(key) })
    };
    let first = match step.parts.as_slice() {
        [] => vec![attach(step.key)],
        parts => parts.iter().map(|key| attach(*key)).collect(),
    };
    let nodes = Nodes::connect(step.socket.clone(), first, step.layout.clone(), events_in.clone());
    let exchange = Exchange::new(step_nodes);
    let presses = std::mem::take(&mut step.presses);
    let display = Display::new(std::mem::take(&mut step.carriers), events_in.clone());
    let mut me = Follower {
        step,
        nodes,
        exits: BTreeMap::new(),
        told: BTreeMap::new(),
        presses,
        deadline: None,
        wait: None,
        give_up: None,
        gather: None,
        look: Some(Instant::now() + hung::LOOK),
        pause: hung::LOOK,
        question: None,
        heard: String::new(),
        aborted: None,
        exchange,
        display,
    };
    me.begin_input();
    let (mut raw, mut prolog) = (None, None);
    match around.filter(|around| around.has_prolog()).map(Around::begin) {
        None => raw = me.raw(),
        Some(Ok(None)) => raw = me.begin(),
        Some(Ok(Some(running))) => prolog = Some(running),
        Some(Err(why)) => me.not_begun(&why),
    }
    // When the record says that the step is over: its streams get a moment for the last word.
    let mut patience: Option<Instant> = None;
    let mut watched = true;
    let mut leaving: Option<Instant> = None;
    let by_record = loop {
        if me.nodes.all_ended() {
            if me.nodes.all_left() {
                break None;
            }
            if leaving.is_none() {
                leaving = Some(Instant::now() + LEAVING);
                // The step is over: what is typed now is for somebody else.
                (raw, input) = (None, None);
            }
        }
        if let Some(why) = me.nodes.refusal().map(|(at, why)| me.of_node(at, why)) {
            // The record tells more, if the step is over; it comes within a moment.
            if let Some(code) = me.recorded_code(&mut records, Some(why)).await? {
                break Some(code);
            }
        }
        let room = input.is_some() && me.nodes.have_room(me.step.input.unwrap_or(ALL_TASKS));
        tokio::select! {
            event = events.recv() => match event {
                Some((at, Event::Attached(..))) if me.nodes.has_ended(at) => me.nodes.left(at),
                Some((at, Event::Attached(stream, taken))) => {
                    let (reader, writer) = stream.into_split();
                    let heard = me.nodes.opened(at, writer, taken);
                    let again = if me.nodes.goes_on(at) { None } else { me.reopened(at) };
                    output.pump((at, step_nodes), reader, events_in.clone(), heard, me.nodes.rooms());
                    if let Some(frame) = again {
                        for other in (0..step_nodes).filter(|other| *other != at) {
                            me.nodes.send(To::Node(other), &frame);
                        }
                    }
                }
                Some((at, event)) => {
                    let closed = matches!(event, Event::Closed) && !me.nodes.has_ended(at);
                    me.event(at, event).await;
                    if closed && me.is_over(&records) {
                        patience = Some(Instant::now() + me.last_words(&records));
                    }
                }
                None => return Err(Failure::new(Kind::Internal, "the connections to the step ended in a fault")),
            },
            () = me.nodes.flush(), if me.nodes.is_waiting() => {}
            chunk = next(&mut input), if room => me.input(chunk, &mut input),
            number = signals.next() => match &mut prolog {
                Some(running) if around::ends(number) => running.signal(number),
                _ if leaving.is_some() && around::ends(number) => break None,
                _ => me.signal(number).await,
            },
            ended = around::ended(&mut prolog), if prolog.is_some() => {
                prolog = None;
                match ended {
                    Ok(()) => raw = me.begin(),
                    Err(why) => me.not_begun(&why),
                }
            }
            changed = records.changed(), if watched => {
                // Without a watcher the streams alone tell the end.
                watched = changed.is_ok();
                if me.is_over(&records) {
                    let wait = me.last_words(&records).max(LAST_WORD);
                    patience.get_or_insert(Instant::now() + wait);
                }
            }
            () = until(me.gather) => me.tell(false),
            () = until(me.wait) => me.waited().await,
            () = until(me.look) => me.look_for_silent(),
            silent = hung::answer(&mut me.question), if me.question.is_some() => me.give_up_silent(&silent).await,
            () = until(me.give_up) => me.give_up_beginnings().await,
            () = until(me.deadline) => {
                me.deadline = None;
                me.nodes.send(To::All, &Frame::Signal(SIGKILL));
            }
            () = until(leaving) => break None,
            () = until(patience), if leaving.is_none() => {
                patience = None;
                me.nodes.let_go();
                if !me.nodes.any_open() && let Some(code) = me.recorded_code(&mut records, None).await? {
                    let away = [me.nodes.never_met(), me.nodes.lost()].concat();
                    if !away.is_empty() && !me.failed_to_start(&records) {
                        stream::message(&format!(
                            "{name}: warning: step {} is over, and {} cannot be reached: not all that it wrote there is seen here",
                            me.step.key,
                            hostlist::compress(&away)
                        ));
                    }
                    break Some(code);
                }
                if me.nodes.any_open() {
                    // Their supervisors are about to tell.
                    patience = Some(Instant::now() + LAST_WORD);
                }
            }
        }
    };
    // Connections that tell no more may have to.
    drop(events);
    me.nodes.abort();
    if prolog.take().is_some() {
        out::complain("srun: ending the prolog: the step is over");
    }
    drop(events_in);
    let code = by_record.unwrap_or_else(|| me.finish());
    drop(me);
    drop(raw);
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
    match lost {
        None => Ok(code),
        Some(Lost { what, error, .. }) => {
            out::complain(&format!(
                "{name}: error: cannot write to {what}: {error}; what the tasks wrote is lost"
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

impl Follower {
    /// Makes the caller's terminal that of the step, where it has one.
    fn raw(&self) -> Option<terminal::Raw> {
        if self.step.pty { terminal::Raw::enter() } else { None }
    }

    /// What ran before the tasks has ended: they begin.
    fn begin(&mut self) -> Option<terminal::Raw> {
        self.nodes.send(To::All, &Frame::Begin);
        self.raw()
    }

    /// What was to run before the tasks failed: they do not begin.
    fn not_begun(&mut self, why: &str) {
        out::complain(&format!("srun: error: {why}; the step is not run"));
        self.heard.push_str(ENDED_BEFORE);
        self.nodes.send(To::All, &Frame::Signal(SIGKILL));
        self.give_up_beginnings_soon();
    }

    fn give_up_beginnings_soon(&mut self) {
        self.give_up.get_or_insert(Instant::now() + HEARD);
    }

    /// Ends what has not begun on nodes that were told so and did not hear it: one that fetches its image hears us when it has that, and the
    /// controller at once.
    async fn give_up_beginnings(&mut self) {
        self.give_up = None;
        if !self.nodes.never_met().is_empty() || self.nodes.any_out_of_reach() {
            self.step.cancel(None).await;
        }
    }

    /// Ends the input of tasks that get none of ours.
    fn begin_input(&mut self) {
        match self.step.input {
            None => self.nodes.send(To::All, &Frame::StdinEof { task: ALL_TASKS }),
            Some(ALL_TASKS) => {}
            // Our input is one task's; that of the others ends at once, or they would wait for it for ever.
            Some(task) => {
                let all: Vec<u32> = self.nodes.layout().tasks.iter().flatten().copied().collect();
                for other in all.into_iter().filter(|other| *other != task) {
                    self.nodes.send(To::Task(other), &Frame::StdinEof { task: other });
                }
            }
        }
    }

    /// What a node says, with its name where there are several.
    fn of_node(&self, at: usize, why: &str) -> String {
        if self.nodes.layout().nodes.len() > 1 {
            format!("{}: {why}", self.nodes.name(at))
        } else {
            why.to_string()
        }
    }

    async fn event(&mut self, at: usize, event: Event) {
        match event {
            Event::Frame(Frame::TaskExit { task, status }) => {
                self.exits.insert(task, status);
                if !status.success() {
                    self.gather.get_or_insert(Instant::now() + GATHER);
                }
                self.first_exit(task, status).await;
                self.find_stuck().await;
            }
            Event::Frame(Frame::StepExit(exit)) => {
                // With that the supervisor knows that it may go.
                self.nodes.say_heard(at);
                self.exits.extend(exit.tasks.iter().copied());
                if self.nodes.layout().nodes.len() > 1
                    && let Some(why) = &exit.launch_error
                    && !self.heard.contains(why.trim())
                {
                    // The controller ends the others: what for is said first.
                    self.complain_of_launch(at, why);
                    self.heard.push_str(why);
                }
                self.display.ended(at);
                self.nodes.ended(at, *exit);
            }
            Event::Heard(_) => self.nodes.say_heard(at),
            Event::Frame(Frame::Heard(count)) => self.nodes.was_heard(at, count),
            Event::Frame(Frame::Started) => self.nodes.started(at),
            Event::Frame(Frame::Credit(n)) => self.nodes.credit(at, n),
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
            Event::Frame(Frame::Fence { number, last, data }) => self.fence(at, number, last, &data).await,
            Event::Frame(Frame::Peer { node, last, data }) => match self.exchange.carry(at, node, last, data)
            {
                Ok((to, frame)) => self.nodes.send(To::Node(to), &frame),
                Err(why) => {
                    let text = format!("{}: {why}", self.nodes.name(at));
                    self.give_up(&text).await;
                }
            },
            Event::Frame(Frame::Aborted(code)) if self.aborted.is_none() => {
                self.aborted = Some(code);
                self.nodes.send(To::All, &Frame::Aborted(code));
            }
            Event::Frame(
                frame @ (Frame::DisplayOpen { .. }
                | Frame::DisplayData { .. }
                | Frame::DisplayCredit { .. }
                | Frame::DisplayEnd { .. }),
            ) if self.nodes.is_open(at) => {
                if let Some(answer) = self.display.hear(at, frame).await {
                    self.tell_of_display(at, answer);
                }
            }
            Event::Display(frame) => {
                if let Some(frame) = self.display.said(at, frame) {
                    self.tell_of_display(at, frame);
                }
            }
            Event::Frame(_) | Event::Attached(..) => {}
            Event::Refused(why) => {
                self.display.reopened(at);
                self.nodes.refused(at, why);
            }
            Event::Closed => {
                self.nodes.closed(at);
                if self.nodes.is_unheard(at) && self.question.is_none() {
                    // It was there: whether it still is is asked soon.
                    self.pause = hung::LOOK;
                    let soon = Instant::now() + self.pause;
                    self.look = Some(self.look.map_or(soon, |look| look.min(soon)));
                }
            }
            Event::OutputGone => {
                self.nodes.send(To::All, &Frame::Signal(libc_signal(SignalKind::pipe())));
            }
        }
    }

    /// Tells a node of a connection to our display, unless it takes nothing: it has none then.
    fn tell_of_display(&mut self, at: usize, frame: Frame) {
        self.nodes.send(To::Node(at), &frame);
        if self.nodes.refuses(at) {
            self.display.reopened(at);
        }
    }

    /// A node's connection is a new one, and goes on with nothing. What the others are told of that.
    fn reopened(&mut self, at: usize) -> Option<Frame> {
        self.display.reopened(at);
        self.exchange.reopened(at)
    }

    /// Tasks of a node are at a fence; they go on when those of all nodes are.
    async fn fence(&mut self, at: usize, number: u32, last: bool, data: &[u8]) {
        let (to, frames) = match self.exchange.hear(at, number, last, data) {
            Ok(None) => return self.find_stuck().await,
            Ok(Some(Answer::All(frames))) => (To::All, frames),
            Ok(Some(Answer::One(frames))) => (To::Node(at), frames),
            Err(why) => {
                let text = format!("{}: {why}", self.nodes.name(at));
                return self.give_up(&text).await;
            }
        };
        for frame in frames {
            self.nodes.send(to, &frame);
        }
    }

    /// Ends the step when tasks wait for others that cannot come: nothing else would.
    async fn find_stuck(&mut self) {
        if self.exits.is_empty() {
            return;
        }
        let Some((there, missed)) = self.exchange.waiting() else { return };
        let missed = missed.into_iter().find_map(|at| {
            let tasks = self.nodes.layout().tasks.get(at)?;
            Some((at, *tasks.iter().find(|task| self.exits.contains_key(task))?))
        });
        if let Some((at, task)) = missed {
            let waiting: Vec<&str> = there.into_iter().map(|at| self.nodes.name(at)).collect();
            let text = format!(
                "the PMI barrier at which the tasks of {} wait will not be reached by task {task} of {}, which ended before it",
                hostlist::compress(&waiting),
                self.nodes.name(at)
            );
            self.give_up(&text).await;
        }
    }

    /// The step cannot go on.
    async fn give_up(&mut self, why: &str) {
        if self.deadline.is_none() && self.aborted.is_none() {
            out::complain(&format!(
                "{}: error: Terminating StepId={}: {why}",
                self.step.voice.name(),
                self.step.key
            ));
            self.end(libc_signal(SignalKind::terminate())).await;
        }
    }

    /// A task ended: what that means for those of other nodes, whose supervisors do not know of it.
    async fn first_exit(&mut self, task: u32, status: ExitStatus) {
        if self.nodes.layout().nodes.len() < 2 {
            return;
        }
        if self.step.kill_on_bad_exit && !status.success() {
            self.give_up(&format!("task {task} exited with {}", status.shell_code())).await;
        }
        if let Some(wait) = self.step.wait_after_first_exit {
            let wait = Duration::from_micros(u64::try_from(wait.0).unwrap_or(0));
            self.wait.get_or_insert(Instant::now() + wait);
        }
    }

    /// The time that tasks had after the first one's end is over.
    async fn waited(&mut self) {
        self.wait = None;
        if self.exits.len() < tasks(self.nodes.layout()) {
            self.report();
            out::complain(&format!("srun: Terminating StepId={}", self.step.key));
            self.end(libc_signal(SignalKind::terminate())).await;
        }
    }

    /// Asks the controller after nodes whose tasks do not run yet. There is an end of that when all run.
    fn look_for_silent(&mut self) {
        self.look = None;
        let unheard = self.nodes.unheard();
        if !unheard.is_empty() {
            let names = unheard.iter().map(|at| NodeName::from(self.nodes.name(*at))).collect();
            self.question = Some(hung::ask(&self.step.client, names));
        }
    }

    /// Gives up nodes that never answered, or were lost before their tasks ran, and with them the step: the others are ended, and the node is
    /// told when it is back. What a node said meanwhile counts. As long as there are others whose tasks do not run, they are asked after again.
    async fn give_up_silent(&mut self, silent: &BTreeSet<NodeName>) {
        self.question = None;
        self.pause = hung::after(self.pause);
        let unheard = self.nodes.unheard();
        let (silent, others): (Vec<usize>, Vec<usize>) =
            unheard.into_iter().partition(|at| silent.contains(&NodeName::from(self.nodes.name(*at))));
        self.look = (!others.is_empty()).then(|| Instant::now() + self.pause);
        for at in &silent {
            let exit = hung::given_up(self.nodes.was_met(*at));
            self.complain_of_launch(*at, exit.launch_error.as_deref().unwrap_or_default());
            self.heard.push_str(exit.launch_error.as_deref().unwrap_or_default());
            self.display.ended(*at);
            self.nodes.ended(*at, exit);
        }
        if !silent.is_empty() {
            // The others hear nothing else than that.
            self.heard.push_str(ENDED_BEFORE);
            // Of the node the controller alone can take care.
            self.step.cancel(None).await;
            if self.deadline.is_none() {
                self.end(libc_signal(SignalKind::terminate())).await;
            }
        }
    }

    /// Ends what is left of the step: with this signal, and without regard when the cluster's time for it is over.
    async fn end(&mut self, number: i32) {
        let asked = Instant::now();
        self.nodes.let_go();
        self.nodes.send(To::All, &Frame::Signal(nix::sys::signal::Signal::SIGCONT as i32));
        self.nodes.send(To::All, &Frame::Signal(number));
        self.give_up_beginnings_soon();
        self.deadline = Some(asked + kill_wait(&self.step.client).await);
    }

    fn input(&mut self, chunk: Option<Vec<u8>>, input: &mut Option<mpsc::Receiver<Vec<u8>>>) {
        let task = self.step.input.unwrap_or(ALL_TASKS);
        match chunk {
            Some(data) => self.nodes.send(To::Task(task), &Frame::Stdin { task, data }),
            None => {
                *input = None;
                self.nodes.send(To::Task(task), &Frame::StdinEof { task });
            }
        }
    }

    async fn signal(&mut self, number: i32) {
        let id = self.step.key;
        let exec = self.step.voice != Voice::Srun;
        if number == libc_signal(SignalKind::window_change()) {
            if let Some(size) = terminal::size().filter(|_| self.step.pty) {
                self.nodes.send(To::Task(0), &Frame::Winch(size));
            }
        } else if number == libc_signal(SignalKind::interrupt()) && !exec {
            match self.presses.press(Instant::now()) {
                Press::Report => {
                    out::complain("srun: interrupt (one more within 1 sec to abort)");
                    self.report();
                }
                Press::Interrupt => {
                    out::complain(&format!("srun: sending Ctrl-C to StepId={id}"));
                    self.nodes.send(To::All, &Frame::Signal(number));
                }
                Press::Kill => {
                    out::complain("srun: forcing job termination");
                    self.nodes.let_go();
                    self.nodes.send(To::All, &Frame::Signal(SIGKILL));
                    self.give_up_beginnings_soon();
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
            self.end(number).await;
        } else {
            self.nodes.send(To::All, &Frame::Signal(number));
        }
    }
}

/// From SIGTERM to SIGKILL: the cluster's time, or the usual one where the controller does not answer.
async fn kill_wait(client: &Client) -> Duration {
    let config = tokio::time::timeout(Duration::from_secs(1), client.config()).await;
    Duration::from_secs(config.ok().and_then(Result::ok).map_or(30, |c| u64::from(c.kill_wait_seconds)))
}
