//! One step from its start to its last process, in one thread around one poll.

mod agents;
mod beginning;
mod clients;
mod end;
mod hooks;

pub use beginning::LaunchFailure;

use super::display::{Display, DisplayToken};
use super::ending::{Deadlines, Due};
use super::files::Messages;
use super::lease::Lease;
use super::pmi::{Pmi, PmiEvent};
use super::pmix::Pmix;
use super::processes::{Processes, TaskEvent};
use super::streams::{StreamToken, Streams};
use crate::spool::{LaunchFile, StateFile, StepDir};
use berth_model::launch::{StepLaunch, StepPhase, Usage};
use berth_model::state::ExitStatus;
use berth_model::time::Span;
use berth_runtime::Parked;
use berth_stream::Frame;
use hooks::Hooks;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long the client of an attached step may take to come, and how long the end of one is kept for it.
const CLIENT_COMES: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum Token {
    Listener,
    Lease,
    Agent(usize),
    Processes,
    Saving,
    Stream(StreamToken),
    Pmi(usize),
    Pmix,
    Display(DisplayToken),
}

pub struct Step {
    dir: StepDir,
    file: Rc<LaunchFile>,
    state: StateFile,
    listener: OwnedFd,
    parked: Option<Parked>,
    images: Option<OwnedFd>,
    agents: Vec<OwnedFd>,
    streams: Streams,
    messages: Messages,
    processes: Option<Processes>,
    /// What the tasks of an MPI program find one another by.
    pmi: Option<Pmi>,
    pmix: Option<Pmix>,
    /// The display that the client carries here.
    display: Option<Display>,
    hooks: Hooks,
    /// The client said that the tasks may begin.
    told: bool,
    /// For tasks that are not there yet, and whether for their first processes alone.
    signals: Vec<(i32, bool)>,
    /// The highest number of a signal of the agent's.
    heard: u64,
    tasks: Vec<(u32, Option<ExitStatus>)>,
    launch_error: Option<String>,
    /// A task ended the whole step with this exit code.
    aborted: Option<u8>,
    deadlines: Deadlines,
    lease: Option<Lease>,
}

impl Step {
    pub fn new(
        dir: StepDir,
        file: LaunchFile,
        state: StateFile,
        listener: OwnedFd,
        (parked, images): (Option<Parked>, Option<OwnedFd>),
    ) -> Step {
        let local = file.launch.layout.tasks.get(file.launch.node_index as usize);
        let tasks = local.into_iter().flatten().map(|task| (*task, None)).collect();
        let streams = Streams::new(file.launch.attached);
        Step {
            dir,
            file: Rc::new(file),
            state,
            listener,
            parked,
            images,
            agents: Vec::new(),
            streams,
            messages: Messages::default(),
            processes: None,
            pmi: None,
            pmix: None,
            display: None,
            hooks: Hooks::Idle,
            told: false,
            signals: Vec::new(),
            heard: 0,
            tasks,
            launch_error: None,
            aborted: None,
            deadlines: Deadlines::default(),
            lease: None,
        }
    }

    /// Runs the step to its end, and stays until its client was told.
    pub fn run(mut self) -> io::Result<()> {
        if self.launch().attached {
            self.deadlines.client_in(Instant::now(), CLIENT_COMES);
        }
        if let Some(until) = self.file.node.lease {
            self.lease = Some(Lease::until(until)?);
        }
        match self.start() {
            Ok(processes) => {
                self.processes = Some(processes);
                for (signal, leaders_only) in std::mem::take(&mut self.signals) {
                    self.signal(signal, leaders_only);
                }
                // What tasks did meanwhile may have come with the word that the container stands; a short one may be over.
                self.hear_processes()?;
            }
            Err(mut failure) => {
                self.pmix = None;
                self.clear_up(failure.begun.take().map(|hooks| *hooks));
                self.undo_container();
                self.end(Some(failure), Usage::default(), false)?;
            }
        }
        while !self.finished() {
            self.turn(&[], None)?;
        }
        Ok(())
    }

    fn launch(&self) -> &StepLaunch {
        &self.file.launch
    }

    /// One wait and what comes of it. `also`, `until`: what else ends the wait.
    fn turn(&mut self, also: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<()> {
        // A step may have ended since the last turn, as it began: then nothing that is waited for comes by itself.
        self.tell_exit();
        let ready = self.ready(also, until)?;
        for (token, flags) in ready {
            match token {
                Token::Listener => self.welcome_agent(),
                Token::Lease => self.out_of_touch()?,
                Token::Agent(i) => self.hear_agent(i)?,
                Token::Processes => self.hear_processes()?,
                Token::Saving => {
                    let events = self.processes.as_mut().map(Processes::advance).unwrap_or_default();
                    self.act_on(events)?;
                }
                Token::Stream(token) => {
                    for event in self.streams.ready(token, flags) {
                        self.hear_client(event);
                    }
                }
                Token::Pmi(task) => {
                    let events = self.pmi.as_mut().map(|pmi| pmi.ready(task, flags));
                    self.act_on_pmi(events.unwrap_or_default());
                }
                Token::Pmix => {
                    let events = self.pmix.as_mut().map(|pmix| pmix.ready(flags));
                    self.act_on_pmi(events.unwrap_or_default());
                }
                Token::Display(token) => {
                    let frames = self.display.as_mut().map(|display| display.ready(token, flags));
                    self.tell_of_display(frames);
                }
            }
        }
        for due in self.deadlines.due(Instant::now()) {
            match due {
                Due::Kill => self.kill()?,
                Due::AfterFirstExit => {
                    self.say("First task exited. Terminating step.");
                    self.terminate(self.launch().kill_wait);
                }
                Due::NoClient => {
                    self.streams.give_up_client();
                    self.terminate(self.launch().kill_wait);
                }
            }
        }
        self.tell_exit();
        self.streams.watchers().let_go(Instant::now());
        Ok(())
    }

    /// Tells how the step ended, once all that its tasks said is told.
    fn tell_exit(&mut self) {
        if self.streams.drained()
            && let Some(exit) = self.exited().cloned()
        {
            let frame = Frame::StepExit(Box::new(exit));
            if !self.streams.ended() && self.streams.attached() {
                self.streams.tell_end(&frame);
            }
            self.streams.watchers().end(&frame);
        }
    }

    fn ready(
        &mut self,
        also: &[BorrowedFd<'_>],
        until: Option<Instant>,
    ) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut tokens = vec![Token::Listener];
        let mut set = vec![PollFd::new(&self.listener, PollFlags::IN)];
        if let Some(lease) = self.lease.as_ref().filter(|lease| !lease.over()) {
            tokens.push(Token::Lease);
            set.push(PollFd::from_borrowed_fd(lease.fd(), PollFlags::IN));
        }
        for (i, agent) in self.agents.iter().enumerate() {
            tokens.push(Token::Agent(i));
            set.push(PollFd::new(agent, PollFlags::IN));
        }
        // What tasks do is heard when the hooks that began with them have run.
        let processes = self.processes.as_ref().filter(|_| self.hooks == Hooks::Idle);
        if let Some(processes) = processes.and_then(Processes::fd) {
            tokens.push(Token::Processes);
            set.push(PollFd::from_borrowed_fd(processes, PollFlags::IN));
        }
        if let Some(saving) = processes.and_then(Processes::saving_fd) {
            tokens.push(Token::Saving);
            set.push(PollFd::from_borrowed_fd(saving, PollFlags::IN));
        }
        for (token, fd, flags) in self.streams.interests() {
            tokens.push(Token::Stream(token));
            set.push(PollFd::from_borrowed_fd(fd, flags));
        }
        for (task, fd, flags) in self.pmi.iter().flat_map(Pmi::interests) {
            tokens.push(Token::Pmi(task));
            set.push(PollFd::from_borrowed_fd(fd, flags));
        }
        if let Some((fd, flags)) = self.pmix.as_ref().and_then(Pmix::interest) {
            tokens.push(Token::Pmix);
            set.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let flows = self.streams.client_takes_more();
        let now = Instant::now();
        for (token, fd, flags) in self.display.iter().flat_map(|display| display.interests(flows, now)) {
            tokens.push(Token::Display(token));
            set.push(PollFd::from_borrowed_fd(fd, flags));
        }
        set.extend(also.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let until = until.map(|until| until.saturating_duration_since(now));
        let rest = self.display.as_ref().and_then(|display| display.until(now));
        let left = [self.deadlines.until(now), self.streams.until(now), rest, until];
        let left = left.into_iter().flatten().min();
        let timeout = left.and_then(|d| Timespec::try_from(d).ok());
        match poll(&mut set, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = tokens.into_iter().zip(set.iter().map(PollFd::revents));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn act_on_pmi(&mut self, events: Vec<PmiEvent>) {
        for event in events {
            match event {
                PmiEvent::Tell(frame) => self.streams.tell(&frame),
                PmiEvent::Say(text) => self.say(&text),
                PmiEvent::Abort(code, text) if self.aborted.is_none() => {
                    self.say(&text);
                    self.streams.tell_all(&Frame::Aborted(code));
                    self.abort(code);
                }
                PmiEvent::Stuck(text) if !self.deadlines.ending() => {
                    self.say(&format!("Terminating the step: {text}"));
                    self.terminate(self.launch().kill_wait);
                }
                PmiEvent::Abort(..) | PmiEvent::Stuck(_) => {}
            }
        }
    }

    fn hear_processes(&mut self) -> io::Result<()> {
        while let Some(processes) = &mut self.processes {
            let events = processes.events(&mut self.streams);
            // It may have been a pause, for hooks.
            let more = matches!(events.last(), Some(TaskEvent::Running));
            self.act_on(events)?;
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn act_on(&mut self, events: Vec<TaskEvent>) -> io::Result<()> {
        for event in events {
            match event {
                TaskEvent::Running => {
                    self.state.phase = StepPhase::Running;
                    self.publish()?;
                    self.streams.tell_all(&Frame::Started);
                    self.streams.run();
                    self.run_poststart()?;
                }
                TaskEvent::NotStarted { task, status, why } => {
                    if self.launch_error.is_none() {
                        self.say_failure(&why);
                    }
                    self.launch_error.get_or_insert(why);
                    self.task_ended(task, status);
                }
                TaskEvent::Note(text) => self.say(&text),
                TaskEvent::Exited { task, status } => self.task_ended(task, status),
                TaskEvent::Saved(Ok(path)) => {
                    let node = self.launch().node.clone();
                    self.say_line(format!("slurmstepd: info: the container was saved to {path} on {node}"));
                }
                TaskEvent::Saved(Err(why)) => {
                    // Beside what became of the tasks, which the client says when it has heard of this.
                    self.say(&why);
                    self.launch_error.get_or_insert(why);
                }
                TaskEvent::AllGone { usage, oom_kills } => {
                    self.pmix = None;
                    let hooks = self.processes.take().and_then(Processes::into_hooks);
                    self.clear_up(hooks);
                    if oom_kills > 0 {
                        let step = self.launch().key;
                        self.say(&format!(
                            "Detected {oom_kills} oom_kill event{} in StepId={step}. Some of the step tasks \
                             have been OOM Killed.",
                            if oom_kills == 1 { "" } else { "s" }
                        ));
                    }
                    self.end(None, usage, oom_kills > 0)?;
                }
            }
        }
        Ok(())
    }

    /// A client reads what went wrong in the step's exit; a file has nothing else to tell it.
    fn say_failure(&mut self, text: &str) {
        if !self.launch().attached {
            self.say(text);
        }
    }

    /// Tells the user, where the user reads.
    fn say(&mut self, text: &str) {
        self.say_line(format!("slurmstepd: error: {text}"));
    }

    fn say_line(&mut self, line: String) {
        if !self.streams.is_heard() {
            self.messages.write(line.clone());
        }
        self.streams.tell_all(&Frame::Message(line));
    }
}

fn duration(span: Span) -> Duration {
    Duration::from_micros(u64::try_from(span.0).unwrap_or(0))
}
