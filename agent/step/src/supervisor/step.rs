//! One step from its start to its last process, in one thread around one poll.

mod clients;

use super::display::{Display, DisplayToken};
use super::ending::{Deadlines, Due};
use super::files::{self, Messages};
use super::lease::Lease;
use super::pmi::{Pmi, PmiEvent};
use super::pmix::{self, Pmix};
use super::processes::{self, Processes, TaskEvent};
use super::resuming::Arrival;
use super::streams::{StreamToken, Streams};
use crate::control::{FromSupervisor, ToSupervisor, receive, send};
use crate::spool::{LaunchFile, StateFile, StepDir, write_json};
use berth_model::launch::{StepExit, StepLaunch, StepPhase, Usage};
use berth_model::mpi::MpiType;
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};
use berth_runtime::Parked;
use berth_runtime::hooks::{Attend, Attended, ContainerHooks};
use berth_stream::Frame;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

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

/// Whose hooks run just now, if any do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hooks {
    Idle,
    /// Of a container that is made or has just begun: who ends the step ends them.
    Beginning {
        /// The step was ended.
        given_up: bool,
    },
    /// Of one that is gone. They clear up for the node, and are ended only with a step that does not end otherwise.
    Clearing {
        /// When the one that runs was started, or the first.
        since: Instant,
        /// It is to be ended.
        given_up: bool,
    },
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

    fn start(&mut self) -> Result<Processes, LaunchFailure> {
        self.have_display_carried()?;
        let file = Rc::clone(&self.file);
        let (mut io, messages) = files::open(&file.launch, &mut self.streams)?;
        self.messages = messages;
        self.pmi = Pmi::of(&file.launch)
            .map_err(|e| LaunchFailure::new(format!("cannot make the tasks' PMI connections: {e}")))?;
        for (files, end) in io.iter_mut().zip(self.pmi.iter_mut().flat_map(Pmi::take_ends)) {
            files.pmi = Some(end);
        }
        self.start_pmix(&file, &mut io)?;
        self.let_pmix_come(&file, &mut io);
        // Behind what serves the tasks: other nodes may begin before this one, and speak to it.
        self.wait_for_word()?;
        let parked = (self.parked.take(), self.images.take());
        self.hooks = Hooks::Beginning { given_up: false };
        let started = processes::start(&file, io, parked, self);
        self.hooks = Hooks::Idle;
        let (processes, notes) = started?;
        // Told with the step's being under way.
        self.state.member = processes.member().cloned();
        for note in file.node.notes.iter().chain(&notes) {
            self.say_line(format!("slurmstepd: info: {note}"));
        }
        Ok(processes)
    }

    /// Waits until the client says that the tasks may begin, where it runs something before them (`srun --prolog`).
    fn wait_for_word(&mut self) -> Result<(), LaunchFailure> {
        let Some(within) = self.launch().told_within else { return Ok(()) };
        let until = Instant::now() + duration(within);
        self.hooks = Hooks::Beginning { given_up: false };
        let told = loop {
            // Both can come at once, where the client waited for this node.
            if self.hooks == (Hooks::Beginning { given_up: true }) {
                break Err("the step was ended before its tasks began".to_string());
            }
            if self.told {
                break Ok(());
            }
            if Instant::now() >= until {
                break Err(format!(
                    "srun did not say within {} s that its prolog has ended (srun_prolog_seconds): the step is given up",
                    duration(within).as_secs()
                ));
            }
            if let Err(e) = self.turn(&[], Some(until)) {
                break Err(e.to_string());
            }
        };
        self.hooks = Hooks::Idle;
        told.map_err(LaunchFailure::new)
    }

    /// Has the node's libpmix serve the step's tasks, where they are to have it, and waits until it does.
    fn start_pmix(&mut self, file: &LaunchFile, io: &mut [files::TaskFiles]) -> Result<(), LaunchFailure> {
        if file.launch.mpi_served() != MpiType::Pmix {
            return Ok(());
        }
        self.pmix = Some(Pmix::start(file)?);
        let until = Instant::now() + pmix::BEGINS;
        self.hooks = Hooks::Beginning { given_up: false };
        let begun = loop {
            if let Some(begun) = self.pmix.as_ref().and_then(Pmix::begun) {
                break begun;
            }
            if self.hooks == (Hooks::Beginning { given_up: true }) {
                break Err("the step was ended before it began".into());
            }
            if Instant::now() >= until {
                break Err(format!("libpmix did not begin within {} s", pmix::BEGINS.as_secs()));
            }
            if let Err(e) = self.turn(&[], Some(until)) {
                break Err(e.to_string());
            }
        };
        self.hooks = Hooks::Idle;
        begun.map_err(|why| LaunchFailure::new(format!("--mpi=pmix: node {}: {why}", file.launch.node)))?;
        for (task, files) in io.iter_mut().enumerate() {
            files.env = self.pmix.as_mut().map(|pmix| pmix.environment(task)).unwrap_or_default();
        }
        Ok(())
    }

    /// Lets the tasks of a step that did not say by what they find one another come to PMIx as well, where the node has it: what
    /// speaks it starts its server, and all else pays for an address.
    fn let_pmix_come(&mut self, file: &Rc<LaunchFile>, io: &mut [files::TaskFiles]) {
        if !file.launch.mpi_is_open() {
            return;
        }
        self.pmix = Pmix::lazily(file);
        for (task, files) in io.iter_mut().enumerate() {
            files.env = self.pmix.as_mut().map(|pmix| pmix.environment(task)).unwrap_or_default();
        }
    }

    /// Runs the hooks that come when all tasks were started.
    fn run_poststart(&mut self) -> io::Result<()> {
        let hooks = self.processes.as_ref().and_then(Processes::hooks);
        let Some((hooks, init)) = hooks.map(|(hooks, init)| (hooks.clone(), init)) else { return Ok(()) };
        self.hooks = Hooks::Beginning { given_up: false };
        let ran = hooks.started(init, self);
        self.hooks = Hooks::Idle;
        let Err(failed) = ran else { return Ok(()) };
        // As the specification has it since 1.3: an error, and the container is stopped.
        let why = failed.to_string();
        if failed.given_up {
            self.say(&why);
        } else {
            self.say_failure(&why);
            self.launch_error.get_or_insert(why);
        }
        self.kill()
    }

    /// Runs the hooks that come when the container is gone. That one fails is a warning, by the specification: the
    /// container did what it was to do.
    fn clear_up(&mut self, hooks: Option<ContainerHooks>) {
        let Some(hooks) = hooks else { return };
        self.hooks = Hooks::Clearing { since: Instant::now(), given_up: false };
        let failed = hooks.stopped(self);
        self.hooks = Hooks::Idle;
        for failed in failed {
            self.say(&failed.to_string());
        }
    }

    /// A container that was made under a name for this step alone, which could not be started, is none.
    fn undo_container(&self) {
        let Some(kept) = self.file.node.kept.as_ref().filter(|kept| kept.fresh) else { return };
        if let Err(e) = kept.undo() {
            crate::log::say(&format!("the container '{}' ({}): {e}", kept.name, kept.record.display()));
        }
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

    fn welcome_agent(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let Ok(agent) = rustix::net::accept_with(&self.listener, flags) else { return };
        // The spool is closed to all but us and root; the socket says so once more.
        let own = rustix::process::geteuid();
        let peer = rustix::net::sockopt::socket_peercred(&agent);
        if !peer.is_ok_and(|p| p.uid == own || p.uid.is_root()) {
            return;
        }
        if send(agent.as_fd(), &self.phase(), &[]).is_ok() {
            self.agents.push(agent);
        }
    }

    fn phase(&self) -> FromSupervisor {
        match self.state.phase {
            StepPhase::Exited(_) => FromSupervisor::Exited,
            StepPhase::Running => FromSupervisor::Running,
            StepPhase::Starting | StepPhase::Preparing(_) => FromSupervisor::Starting,
        }
    }

    fn hear_agent(&mut self, i: usize) -> io::Result<()> {
        let Some(agent) = self.agents.get(i) else { return Ok(()) };
        let (packet, fds) = match receive::<ToSupervisor>(agent.as_fd()) {
            Ok(Some(received)) => received,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // Gone, or speaking in tongues: steps do without agents.
            Ok(None) | Err(_) => {
                drop(self.agents.swap_remove(i));
                return Ok(());
            }
        };
        let arrival = Arrival::of(&packet);
        match packet {
            ToSupervisor::Attach | ToSupervisor::AttachRemote | ToSupervisor::AttachResuming(_) => {
                if let (Some(fd), Some(how)) = (fds.into_iter().next(), arrival) {
                    self.attach(fd, how);
                }
            }
            ToSupervisor::Watch { stdout, stderr, terminal, resume } => {
                if let Some(fd) = fds.into_iter().next() {
                    self.watch(fd, (stdout, stderr), terminal, resume);
                }
            }
            // An agent that was restarted hears again what it may have passed on before.
            ToSupervisor::Signal { number: Some(number), .. } if number <= self.heard => {}
            ToSupervisor::Signal { signal, leaders_only, number } => {
                self.heard = self.heard.max(number.unwrap_or_default());
                self.signal(signal, leaders_only);
                let events = self.processes.as_mut().map(|p| p.signalled_while_saving(signal));
                self.act_on(events.unwrap_or_default())?;
            }
            ToSupervisor::Renew { until } => {
                if let Some(lease) = &mut self.lease {
                    lease.renew(until)?;
                }
            }
            ToSupervisor::Kill => self.kill()?,
            ToSupervisor::Note(text) => self.say(&text),
        }
        Ok(())
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

    /// A task ended the whole step: its exit code is this one, however the others end now.
    fn abort(&mut self, code: u8) {
        self.aborted.get_or_insert(code);
        self.terminate(self.launch().kill_wait);
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

    fn task_ended(&mut self, index: usize, status: ExitStatus) {
        let Some((task, slot)) = self.tasks.get_mut(index) else { return };
        let task = *task;
        *slot = Some(status);
        // What it said last comes first: the exit that follows on an abort is no news.
        let ending = self.deadlines.ending();
        let mut events = self.pmi.as_mut().map(|pmi| pmi.exited(index)).unwrap_or_default();
        if let Some(pmix) = self.pmix.as_mut().filter(|_| !ending) {
            events.extend(pmix.exited(index, status));
        }
        self.act_on_pmi(events);
        self.streams.tell_all(&Frame::TaskExit { task, status });
        let now = Instant::now();
        if self.launch().kill_on_bad_exit && !status.success() && !self.deadlines.ending() {
            // Of several nodes each would say it, also of tasks that end because others did: there it is for srun to say, which hears all.
            if self.launch().layout.nodes.len() < 2 {
                self.say(&format!("Terminating the step: task {task} exited with {}", status.shell_code()));
            }
            self.terminate(self.launch().kill_wait);
        }
        if let Some(wait) = self.launch().wait_after_first_exit
            && self.tasks.iter().any(|(_, status)| status.is_none())
        {
            self.deadlines.end_in(now, duration(wait));
        }
    }

    /// The last process is gone, or none could be started.
    fn end(&mut self, failure: Option<LaunchFailure>, usage: Usage, oom: bool) -> io::Result<()> {
        self.streams.run();
        // Nobody is left who could come, and its port is free when the step is known to be over.
        self.display = None;
        let mut tasks: Vec<(u32, ExitStatus)> = Vec::new();
        if let Some(failure) = &failure {
            self.say_failure(&failure.text);
            tasks.extend(self.tasks.iter().map(|(task, _)| (*task, failure.status)));
        } else {
            // A task without a status went with the container's init: killed.
            let killed = ExitStatus { code: 0, signal: 9 };
            tasks.extend(self.tasks.iter().map(|(task, status)| (*task, status.unwrap_or(killed))));
        }
        let worst = tasks.iter().map(|(_, s)| *s).max_by_key(|s| s.shell_code()).unwrap_or(ExitStatus::OK);
        // A step that could not do all that it was asked for did not succeed.
        let worst = match (worst.success(), &self.launch_error) {
            (true, Some(_)) => ExitStatus { code: 1, signal: 0 },
            _ => worst,
        };
        let worst = match self.aborted {
            Some(code) => ExitStatus { code, signal: 0 },
            None => worst,
        };
        let status = failure.as_ref().map_or(worst, |f| f.status);
        let launch_error = failure.map(|f| f.text).or(self.launch_error.take());
        let exit = StepExit {
            status,
            tasks,
            oom,
            launch_error,
            ended_by: self
                .lease
                .as_ref()
                .filter(|lease| lease.over())
                .map(|_| berth_model::link::EndCause::OutOfTouch),
            image: None,
            usage,
            ended: wall_clock(),
        };
        self.state.phase = StepPhase::Exited(exit);
        self.publish()?;
        if self.launch().attached && !self.streams.attached() {
            self.deadlines.client_in(Instant::now(), CLIENT_COMES);
        }
        Ok(())
    }

    fn exited(&self) -> Option<&StepExit> {
        match &self.state.phase {
            StepPhase::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether nothing is left to be done for anyone.
    fn finished(&self) -> bool {
        if self.exited().is_none() {
            return false;
        }
        if !self.streams.watchers_gone() {
            return false;
        }
        if self.streams.attached() || self.streams.unheard() {
            // The client closes when it has read the exit; its end is heard as an event.
            return false;
        }
        self.streams.ended() || !self.launch().attached || !self.streams.expects_client()
    }

    fn publish(&mut self) -> io::Result<()> {
        write_json(&self.dir.state(), &self.state)?;
        let phase = self.phase();
        self.agents.retain(|agent| send(agent.as_fd(), &phase, &[]).is_ok());
        Ok(())
    }

    /// Nothing was heard of the controller for as long as the step may go on: it may count as lost now, and run elsewhere.
    fn out_of_touch(&mut self) -> io::Result<()> {
        let Some(lease) = self.lease.as_mut().filter(|lease| lease.is_due()) else { return Ok(()) };
        lease.end();
        if self.exited().is_some() {
            return Ok(());
        }
        // Again and again, until nothing is left. First of all: where words go to may hang.
        self.deadlines.kill_in(Instant::now(), Duration::ZERO);
        self.kill()?;
        self.say("nothing was heard of the controller for too long (lost_after_seconds, --lost-after): the step is ended");
        Ok(())
    }

    fn signal(&mut self, signal: i32, leaders_only: bool) {
        if processes::ends(signal) && self.give_up_hooks() {
            return;
        }
        if let Some(processes) = &mut self.processes {
            processes.signal(signal, leaders_only);
        } else if self.hooks_begin() {
            self.signals.push((signal, leaders_only));
        }
    }

    fn hooks_begin(&self) -> bool {
        matches!(self.hooks, Hooks::Beginning { .. })
    }

    /// The step is ended from outside: with the hooks with which it begins, if those run. Whether they do.
    fn give_up_hooks(&mut self) -> bool {
        if self.hooks_begin() {
            self.hooks = Hooks::Beginning { given_up: true };
        }
        self.hooks_begin()
    }

    fn terminate(&mut self, kill_wait: Span) {
        if self.give_up_hooks() || self.processes.is_none() {
            return;
        }
        let first = !self.deadlines.ending();
        self.deadlines.kill_in(Instant::now(), duration(kill_wait));
        if first {
            self.signal(nix::libc::SIGCONT, false);
            self.signal(nix::libc::SIGTERM, false);
        }
        let events = self.processes.as_mut().map(Processes::give_up_saving).unwrap_or_default();
        if let Err(e) = self.act_on(events) {
            crate::log::say(&format!("{}: {e}", self.launch().key));
        }
    }

    fn kill(&mut self) -> io::Result<()> {
        if self.exited().is_some() {
            // It is its client's time that is over.
            self.streams.nobody_returns();
            return Ok(());
        }
        if self.give_up_hooks() {
            return Ok(());
        }
        if let Hooks::Clearing { since, .. } = self.hooks {
            let left = duration(self.launch().kill_wait).saturating_sub(since.elapsed());
            self.hooks = Hooks::Clearing { since, given_up: left.is_zero() };
            self.deadlines.kill_in(Instant::now(), left);
        }
        match self.processes.as_mut().map(Processes::kill) {
            Some(events) => self.act_on(events),
            None => Ok(()),
        }
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

impl Attend for Step {
    fn wait(&mut self, fds: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<Attended> {
        self.turn(fds, until)?;
        Ok(match self.hooks {
            Hooks::Beginning { given_up: true } => Attended::GivenUp,
            Hooks::Clearing { given_up: true, .. } => {
                // The next has the same time.
                self.hooks = Hooks::Clearing { since: Instant::now(), given_up: false };
                Attended::GivenUp
            }
            _ => Attended::On,
        })
    }
}

/// Why a step could not be started.
#[derive(Clone, Debug)]
pub struct LaunchFailure {
    /// What, why, and what to do.
    pub text: String,
    /// What counts as the exit of its tasks.
    pub status: ExitStatus,
    /// The container's hooks, where some may have run: what they began is ended by others of them.
    pub begun: Option<Box<ContainerHooks>>,
}

impl LaunchFailure {
    /// A failure before any task ran.
    pub fn new(text: impl Into<String>) -> LaunchFailure {
        LaunchFailure { text: text.into(), status: ExitStatus { code: 1, signal: 0 }, begun: None }
    }
}

fn duration(span: Span) -> Duration {
    Duration::from_micros(u64::try_from(span.0).unwrap_or(0))
}

fn wall_clock() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
