//! The agent's shell: feeds the core with what happens and does what the core decides.

mod ends;
mod killing;
mod outlast;
mod preparing;
mod runs;
mod spawning;

pub use spawning::{KEPT, Kept, supervise};

use crate::ahead::{Ahead, ForOthers};
use crate::around::Around;
use crate::cgroups::Cgroups;
use crate::clients::Service;
use crate::drift::Drift;
use crate::full_name::FullName;
use crate::gpus::Gpus;
use crate::holders::Holders;
use crate::hooks::Hooks;
use crate::images::{Images, Ready};
use crate::jobs::{self, JobRecord, REMOVAL};
use crate::link::LinkEvent;
use crate::paths::Paths;
use crate::pmix::Pmix;
use crate::registry::Registry;
use crate::room::Needs;
use crate::standby::{Slots, Standby};
use crate::term::Terms;
use crate::used::Used;
use crate::zygote::Zygote;
use crate::{notes, probe};
use berth_agent_core::{
    AgentCore, AgentEffect, AgentEvent, Fetched, ImageEvent, ProcessTarget, SupervisorEvent,
};
use berth_model::config::Understood;
use berth_model::exchange::{FromPeers, ToPeers};
use berth_model::hardware::Core;
use berth_model::ids::{Attempt, JobId, NodeName, StepKey};
use berth_model::launch::{StepExit, StepPhase, Usage};
use berth_model::link::{EndCause, FromAgent};
use berth_model::state::ExitStatus;
use berth_model::time::Time;
use berth_runtime::cgroup::Cgroup;
use berth_step::control::ToSupervisor;
use berth_step::deadlines::{Deadline, boot_clock};
use berth_step::spool::{ContainerDefaults, write_json};
use outlast::Outlast;
use std::collections::BTreeMap;
use std::io::PipeWriter;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};

/// How long an agent that stops waits for what is being removed.
pub const SETTLE: Duration = Duration::from_secs(2);
/// How often the place for a job's next step waits a moment for jobs that start: half a second in all.
const MOST_PUT_OFF: u32 = 25;
/// How often it is looked whether processes without a control group that could not be killed are gone.
const LEFT: Duration = Duration::from_secs(1);
/// How long the end of a step waits for what the driver counted of its processes.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Something for the driver.
pub enum Input {
    /// For the core.
    Core(AgentEvent),
    /// Of the link.
    Link(LinkEvent),
    /// A step's image is there, or cannot be had.
    Image(StepKey, Box<Result<Ready, String>>, Option<Fetched>),
    /// A step's image is not waited for any more, and why.
    ImageHangs(StepKey, String, Option<Fetched>),
    /// Which of these images do jobs need? It hears of it for as long as it is there.
    AskNeeded(Vec<String>, Arc<Needs>),
    /// Something to tell the controller about images that travel between nodes.
    Peers(FromPeers),
    /// The prolog of a run ended.
    Prolog(JobId, Attempt, Result<(), String>),
    /// A run's files are gone.
    Cleared(JobId, Attempt),
    /// A job may soon start another step. How often that was put off.
    WantNext(JobId, Attempt, u32),
    /// What was still to be learnt of a step that ended is known.
    Ended(StepKey, Box<StepExit>),
    /// A supervisor waits for a job's next step.
    Next(JobId, Attempt, Standby),
}

/// What does not change while the agent runs.
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// What a name service calls its machine.
    pub full_name: Arc<FullName>,
    /// The kernel's boot id.
    pub boot_id: String,
    /// Whether the agent acts for users.
    pub system: bool,
    /// Its cores, to which tasks can be bound.
    pub cores: Vec<Core>,
    /// Where things are.
    pub paths: Paths,
    /// The site's defaults for containers.
    pub defaults: ContainerDefaults,
    /// The administrator's hooks.
    pub hooks: Hooks,
    /// Programs before and after jobs.
    pub around: Arc<Around>,
    /// GPUs.
    pub gpus: Arc<Gpus>,
    /// What steps use.
    pub used: Arc<Used>,
    /// Control groups.
    pub cgroups: Arc<Cgroups>,
    /// Images.
    pub images: Arc<Images>,
    /// Users whom the node knows otherwise than the controller, where that is another machine.
    pub drift: Option<Arc<Drift>>,
    /// How long one call about a file may take by which a step's image comes; `None`: as long as it likes.
    pub file_limit: Option<Duration>,
    /// The `berth` program.
    pub program: PathBuf,
    /// The system's libpmix.
    pub pmix: Pmix,
    /// Forks supervisors.
    pub zygote: Arc<Zygote>,
    /// Supervisors that wait for steps.
    pub slots: Arc<Slots>,
    /// Processes that wait for jobs whose namespaces they will hold.
    pub holders: Holders,
    /// Steps, for clients.
    pub registry: Registry,
    /// For listeners.
    pub service: Arc<Service>,
}

struct Job {
    record: JobRecord,
    listener: Option<AbortHandle>,
    /// Why the job's parts could not be made.
    failure: Option<String>,
    /// Waits for the next step.
    next: Option<Standby>,
    /// Makes [`Job::next`].
    making_next: Option<JoinHandle<()>>,
}

impl Job {
    fn new(record: JobRecord, listener: Option<AbortHandle>, failure: Option<String>) -> Job {
        Job { record, listener, failure, next: None, making_next: None }
    }
}

/// The driver's state.
pub struct Driver {
    ahead: Ahead,
    node: Arc<Node>,
    core: AgentCore,
    inputs: mpsc::UnboundedSender<Input>,
    supervised: mpsc::UnboundedSender<(StepKey, SupervisorEvent)>,
    link: Option<(u64, mpsc::UnboundedSender<FromAgent>)>,
    preparing: BTreeMap<StepKey, Arc<AtomicBool>>,
    ready: BTreeMap<StepKey, Ready>,
    jobs: BTreeMap<JobId, Job>,
    groups: BTreeMap<StepKey, Cgroup>,
    /// Those who remove the files of runs that are over.
    clearing: BTreeMap<JobId, (Attempt, JoinHandle<()>)>,
    /// Records of the runs that are being removed.
    leaving: BTreeMap<JobId, (Attempt, JobRecord)>,
    /// Prologs that run: one ends when its pipe is dropped.
    prologs: BTreeMap<JobId, (PipeWriter, JoinHandle<()>)>,
    /// Epilogs that run or will, likewise.
    epilogs: BTreeMap<JobId, PipeWriter>,
    /// The check of the node's health that runs, if one does: it ends when its pipe is dropped.
    checking: Option<PipeWriter>,
    /// Who waits to hear which images jobs need, by the number of the question.
    asking: BTreeMap<u64, Weak<Needs>>,
    asked: u64,
    /// The configuration that the controller has, until it is looked at.
    wanted: Option<Box<Understood>>,
    /// Images for other nodes.
    fetching: ForOthers,
    outlast: Outlast,
    terms: Terms,
}

impl Driver {
    /// A driver with what was adopted: jobs with their records, steps with their cgroups.
    pub fn new(
        node: Arc<Node>,
        core: AgentCore,
        terms: Terms,
        inputs: mpsc::UnboundedSender<Input>,
        supervised: mpsc::UnboundedSender<(StepKey, SupervisorEvent)>,
        adopted_jobs: Vec<JobRecord>,
        groups: BTreeMap<StepKey, Cgroup>,
    ) -> Driver {
        let ahead = Ahead::start(Arc::clone(&node.images));
        let mut driver = Driver {
            ahead,
            node,
            core,
            inputs,
            supervised,
            link: None,
            preparing: BTreeMap::new(),
            ready: BTreeMap::new(),
            jobs: BTreeMap::new(),
            groups,
            clearing: BTreeMap::new(),
            leaving: BTreeMap::new(),
            prologs: BTreeMap::new(),
            epilogs: BTreeMap::new(),
            checking: None,
            asking: BTreeMap::new(),
            asked: 0,
            wanted: None,
            fetching: ForOthers::default(),
            outlast: Outlast::default(),
            terms,
        };
        let leased = |record: &JobRecord| matches!(Deadline::of(&driver.node.paths.job(record.job)), Ok(Some(found)) if found.boot_id == record.boot_id);
        if adopted_jobs.iter().any(leased) {
            driver.outlast.see_to_keeper(&driver.node.zygote, &driver.node.paths, false);
        }
        for record in adopted_jobs {
            let listener = driver.listen(&record);
            driver.jobs.insert(record.job, Job::new(record, listener, None));
        }
        driver
    }

    /// Whether the controller is about to acknowledge an exit, upon which its files go.
    pub fn awaits_acknowledgement(&self) -> bool {
        self.core.awaits_acknowledgement()
    }

    /// The controller's configuration, when it was told since this was asked last.
    pub fn told_configuration(&mut self) -> Option<Box<Understood>> {
        self.wanted.take()
    }

    /// When the core wants to be woken at the latest.
    pub fn wake(&self) -> Option<Duration> {
        let at = self.core.next_wake()?;
        let left = at.0.saturating_sub(boot_clock().0);
        Some(Duration::from_micros(u64::try_from(left).unwrap_or(0)))
    }

    /// Lets what is being removed go, for a moment: whoever looks at what is left must not find half of it.
    pub async fn settle(&mut self) {
        // The next agent runs these again.
        self.prologs.clear();
        self.epilogs.clear();
        self.checking = None;
        let all = async {
            for (_, clearing) in std::mem::take(&mut self.clearing).into_values() {
                let _ = clearing.await;
            }
        };
        if tokio::time::timeout(SETTLE, all).await.is_err() {
            tracing::warn!("some jobs' parts are still there");
        }
    }

    /// The time of [`Driver::wake`] has come.
    pub fn tick(&mut self) {
        self.feed(AgentEvent::Tick);
    }

    /// Takes an input and does everything that follows from it.
    pub fn take(&mut self, input: Input) {
        match input {
            Input::Core(event) => self.feed(event),
            Input::Link(LinkEvent::Up(connection, sender)) => {
                self.link = Some((connection, sender));
                self.feed(AgentEvent::Connected);
            }
            Input::Link(LinkEvent::Said(connection, message)) => {
                if self.link.as_ref().is_some_and(|(current, _)| *current == connection) {
                    self.feed(AgentEvent::Controller(message));
                }
            }
            Input::Link(LinkEvent::Down(connection)) => {
                if self.link.as_ref().is_some_and(|(current, _)| *current == connection) {
                    self.link = None;
                    self.feed(AgentEvent::Disconnected);
                }
            }
            Input::Image(key, result, fetched) => {
                // One that was cancelled meanwhile is of no more interest.
                if self.preparing.remove(&key).is_some() {
                    let event = match *result {
                        Ok(ready) => {
                            self.ready.insert(key, ready);
                            ImageEvent::Ready(fetched)
                        }
                        Err(why) => ImageEvent::Failed(why, fetched),
                    };
                    self.feed(AgentEvent::Image { key, event });
                }
            }
            Input::ImageHangs(key, why, fetched) => {
                if let Some(stop) = self.preparing.remove(&key) {
                    stop.store(true, Ordering::Relaxed);
                    tracing::warn!("step {key}: {why}");
                    self.feed(AgentEvent::Image { key, event: ImageEvent::Failed(why, fetched) });
                }
            }
            Input::AskNeeded(digests, needs) => {
                self.asked += 1;
                self.asking.retain(|_, needs| needs.strong_count() > 0);
                self.asking.insert(self.asked, Arc::downgrade(&needs));
                self.feed(AgentEvent::AskNeeded { ask: self.asked, digests });
            }
            Input::Peers(said) => self.feed(AgentEvent::Peers(said)),
            Input::Prolog(job, attempt, result) => {
                self.prologs.remove(&job);
                self.prolog_ended(job, attempt, result);
            }
            Input::Cleared(job, attempt) => {
                if self.clearing.get(&job).is_some_and(|(of, _)| *of == attempt) {
                    self.clearing.remove(&job);
                    self.epilogs.remove(&job);
                    self.leaving.remove(&job);
                }
            }
            Input::Ended(key, exit) => self.supervised(key, SupervisorEvent::Exited(*exit)),
            Input::WantNext(job, attempt, put_off) => self.make_next(job, attempt, put_off),
            Input::Next(job, attempt, standby) => {
                if let Some(job) = self.jobs.get_mut(&job).filter(|j| j.record.attempt == attempt) {
                    job.next = Some(standby);
                    job.making_next = None;
                }
            }
        }
    }

    /// Takes what a supervisor did.
    pub fn supervisor(&mut self, key: StepKey, event: SupervisorEvent) {
        match event {
            SupervisorEvent::Exited(exit) if self.node.used.looks_again(key) => {
                let (node, inputs) = (Arc::clone(&self.node), self.inputs.clone());
                tokio::task::spawn_blocking(move || {
                    node.used.look(LAST_LOOK);
                    let _ = inputs.send(Input::Ended(key, Box::new(exit)));
                });
            }
            event => self.supervised(key, event),
        }
    }

    fn supervised(&mut self, key: StepKey, mut event: SupervisorEvent) {
        match &mut event {
            SupervisorEvent::Exited(exit) => {
                let used = self.node.used.end(key);
                exit.usage.gpu = used.or(exit.usage.gpu);
            }
            SupervisorEvent::Gone => drop(self.node.used.end(key)),
            SupervisorEvent::Started | SupervisorEvent::Waits(_) => {}
        }
        let over = matches!(event, SupervisorEvent::Exited(_) | SupervisorEvent::Gone);
        let namespaces = self.jobs.get(&key.job).and_then(|job| job.record.namespaces);
        if let Some(namespaces) = namespaces.filter(|_| matches!(event, SupervisorEvent::Gone)) {
            // The supervisor would have done it.
            tokio::task::spawn_blocking(move || namespaces.end_orphans());
        }
        if let SupervisorEvent::Exited(exit) = &event {
            self.node.registry.ended(key, exit);
        }
        self.feed(AgentEvent::Supervisor { key, event });
        // Nothing of the step lives any more, or nothing of it may. Where its job went, its group went, too.
        if over && let Some(group) = self.groups.remove(&key) {
            tokio::task::spawn_blocking(move || {
                if let Err(e) = group.kill_and_remove(REMOVAL) {
                    tracing::error!("step {key}: {e}; processes left: {:?}", group.processes());
                }
            });
        }
    }

    fn feed(&mut self, event: AgentEvent) {
        let brought =
            if let AgentEvent::Carried(carried) = &event { Some(carried.start.launch.key) } else { None };
        let effects = self.core.handle(event, boot_clock());
        // Of one that begins nothing nothing is said: somebody may bring it again and again.
        let begins = |effect: &AgentEffect| matches!(effect, AgentEffect::PrepareImage { key, .. } if Some(*key) == brought);
        if let Some(key) = brought.filter(|_| effects.iter().any(begins)) {
            tracing::info!("step {key}: its start came by another node");
        }
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: AgentEffect) {
        match effect {
            AgentEffect::Send(message) => self.send(message),
            AgentEffect::RememberTerm(term) => {
                let result = tokio::task::block_in_place(|| self.terms.remember(term));
                self.feed(AgentEvent::TermKept { term, result });
            }
            AgentEffect::RememberHighest(highest) => {
                let kept = || crate::highest::remember(&self.node.paths, highest);
                if let Err(e) = tokio::task::block_in_place(kept) {
                    tracing::error!(
                        "cannot keep the numbers of jobs, for a controller that is restored: {e}"
                    );
                }
            }
            AgentEffect::MakeJob { job, attempt, launch } => self.make_job(job, attempt, &launch),
            AgentEffect::RunProlog { job, attempt } => self.run_prolog(job, attempt),
            AgentEffect::PrepareImage { key, launch, login } => self.prepare_image(key, launch, login),
            AgentEffect::CancelImage { key } => {
                // Processes that fetch are ended. Where there are none the thread goes on, but for a layer that waits for others, and
                // what it fetched serves the next; nobody waits for it.
                if let Some(stop) = self.preparing.remove(&key) {
                    stop.store(true, Ordering::Relaxed);
                }
                self.ready.remove(&key);
            }
            AgentEffect::Configure(config) => self.wanted = Some(config),
            AgentEffect::Prefetch { job, attempt, launch, login } => {
                self.ahead.fetch((job, attempt), launch, login);
            }
            AgentEffect::CancelPrefetch { job, attempt } => self.ahead.give_up((job, attempt)),
            AgentEffect::Fetch { launch, login } => self.fetching.fetch(&self.node.images, launch, login),
            AgentEffect::Peers(ToPeers::Fetch { user, image }) => {
                self.fetching.fetch_for_user(&self.node.images, user, image);
            }
            AgentEffect::Peers(said) => self.node.images.peers().hear(said),
            AgentEffect::Registered => self.node.images.peers().registered(),
            AgentEffect::ImagesNeeded { ask, digests } => {
                // Who does not wait any more asks again.
                if let Some(needs) = self.asking.get(&ask).and_then(Weak::upgrade) {
                    needs.say(digests);
                }
            }
            AgentEffect::Spawn { key, launch, timers, pull } => {
                let kept = Kept { timers, pull, renewals: true };
                let result = tokio::task::block_in_place(|| self.spawn(key, *launch, &kept));
                if let Err(why) = result {
                    tracing::warn!("step {key} could not be started: {why}");
                    self.supervisor(key, SupervisorEvent::Exited(not_started(why)));
                }
            }
            AgentEffect::Deadline { job, attempt, until } => self.keep_deadline(job, attempt, until),
            AgentEffect::Renew { key, until } => self.renew(key, until),
            AgentEffect::EndLogins { job } => self.end_logins(job),
            AgentEffect::SignalStep { key, target, signal, number } => {
                let leaders_only = target == ProcessTarget::BatchShell;
                self.command(key, ToSupervisor::Signal { signal, leaders_only, number });
            }
            AgentEffect::KillStep { key } => self.kill(key),
            AgentEffect::Reboot => {
                tracing::warn!("rebooting the machine, as the controller has it");
                let (node, inputs) = (Arc::clone(&self.node), self.inputs.clone());
                tokio::task::spawn_blocking(move || {
                    let result = node.around.reboot(&node.name.0, node.system, &node.paths.private());
                    if let Err(why) = &result {
                        tracing::error!("reboot failed: {why}");
                    }
                    let _ = inputs.send(Input::Core(AgentEvent::Rebooted(result)));
                });
            }
            AgentEffect::CheckHealth => self.check_health(),
            AgentEffect::RememberHealth(unhealthy) => {
                if let Err(e) = write_json(&self.node.paths.unhealthy(), &unhealthy) {
                    tracing::error!("cannot keep what the health check says: {e}");
                }
            }
            AgentEffect::AbandonStep { key } => self.abandon(key),
            AgentEffect::LookForLeft { job, attempt } => self.look_for_left(job, attempt),
            AgentEffect::Note { key, cause, whole_job } => self.note(key, cause, whole_job),
            AgentEffect::Say { key, text } => self.command(key, ToSupervisor::Note(text)),
            AgentEffect::LookForEnds { ask, keys } => self.look_for_ends(ask, keys),
            AgentEffect::Resumed => {
                let node = Arc::clone(&self.node);
                tokio::task::spawn_blocking(move || node.gpus.lift());
            }
            AgentEffect::ForgetSpool { key } => self.forget(key),
            AgentEffect::RemoveJob { job, attempt } => self.remove_job(job, attempt),
        }
    }

    fn check_health(&mut self) {
        let (stop, stopped) = match std::io::pipe() {
            Ok((reader, writer)) => (writer, reader),
            Err(e) => {
                let why = format!("the health check cannot be run: {e}");
                let _ = self.inputs.send(Input::Core(AgentEvent::HealthChecked(Err(why))));
                return;
            }
        };
        self.checking = Some(stop);
        let (node, inputs) = (Arc::clone(&self.node), self.inputs.clone());
        tokio::task::spawn_blocking(move || {
            let dir = node.paths.private();
            if let Some(result) = node.around.check_health(&node.name.0, &dir, &stopped) {
                let _ = inputs.send(Input::Core(AgentEvent::HealthChecked(result)));
            }
        });
    }

    /// Names the processes of a run that is being removed, beside everything else.
    fn look_for_left(&self, job: JobId, attempt: Attempt) {
        let Some((_, record)) = self.leaving.get(&job).filter(|(of, _)| *of == attempt).cloned() else {
            return;
        };
        let inputs = self.inputs.clone();
        tokio::task::spawn_blocking(move || {
            let processes = crate::left::describe(jobs::processes(&record));
            if let Some(text) = &processes {
                tracing::error!("job {job}: processes of it do not end although they were killed: {text}");
            }
            let _ = inputs.send(Input::Core(AgentEvent::Left { job, attempt, processes }));
        });
    }

    fn send(&mut self, mut message: FromAgent) {
        match &mut message {
            FromAgent::Hello { host, .. } => *host = self.node.full_name.known(),
            FromAgent::Heartbeat { load, free_memory, drift, used, gpus, .. } => {
                (*used, *gpus) = (self.node.used.live(), self.node.used.busy());
                (*load, *free_memory) = probe::load();
                *drift = self.node.drift.as_ref().map(|known| known.lines()).unwrap_or_default();
            }
            FromAgent::Step { key, phase: StepPhase::Exited(exit), .. } => {
                self.node.registry.ended(*key, exit);
            }
            // The end of what never had a supervisor may be told with its run's alone.
            FromAgent::JobGone { steps, .. } => {
                for (key, phase) in steps {
                    if let StepPhase::Exited(exit) = phase {
                        self.node.registry.ended(*key, exit);
                    }
                }
            }
            _ => {}
        }
        if let Some((_, link)) = &self.link {
            // A link that is gone says so by itself.
            let _ = link.send(message);
        }
    }

    fn command(&self, key: StepKey, command: ToSupervisor) {
        let text = format!("{command:?}");
        if !self.node.registry.command(key, command) {
            tracing::debug!("step {key} has no supervisor for {text}");
        }
    }

    fn note(&self, key: StepKey, cause: EndCause, whole_job: bool) {
        if let Some(line) = notes::ending(key, &self.node.name, cause, whole_job, &notes::now()) {
            self.command(key, ToSupervisor::Note(line));
        }
    }
}

fn not_started(why: String) -> StepExit {
    StepExit {
        status: ExitStatus { code: 1, signal: 0 },
        tasks: Vec::new(),
        oom: false,
        launch_error: Some(why),
        ended_by: None,
        image: None,
        usage: Usage::default(),
        ended: wall_clock(),
    }
}

/// The wall clock.
pub fn wall_clock() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Time(now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000))
}
