//! What goes into the agent's core and what comes out of it.

use berth_model::carry::Carried;
use berth_model::config::Understood;
use berth_model::exchange::{FromPeers, ToPeers};
use berth_model::hardware::Hardware;
use berth_model::ids::{Attempt, JobId, NodeName, StepKey, Term};
use berth_model::launch::{ImagePull, StepExit, StepLaunch};
use berth_model::link::{EndCause, FromAgent, GpuFault, Highest, ToAgent};
use berth_model::login::Login;
use berth_model::spec::{ResolvedImage, WarnSignal};
use berth_model::time::{Span, Time};
use serde::{Deserialize, Serialize};

/// What the agent knows of itself when it starts.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Full host name.
    pub node: NodeName,
    /// The kernel's boot id.
    pub boot_id: String,
    /// When the machine booted, wall clock.
    pub boot_time: Time,
    /// When the agent started, wall clock.
    pub agent_start: Time,
    /// The agent's version.
    pub version: String,
    /// What was detected.
    pub hardware: Hardware,
    /// The highest term ever accepted, as kept by [`AgentEffect::RememberTerm`].
    pub term: Term,
    /// Why that term may not be on the disk, where an agent before this one left it half kept: it is tried again, and not followed before.
    pub unkept: Option<String>,
    /// Whether a prolog runs before anything of a job does.
    pub prolog: bool,
    /// How long the end of processes that were killed is waited for.
    pub unkillable: Span,
    /// When the node's health is checked; never without.
    pub health: Option<HealthPlan>,
    /// What the last check found wrong, as kept by [`AgentEffect::RememberHealth`].
    pub unhealthy: Option<String>,
    /// What the agent itself found at its start for which the node is to take no new work.
    pub unfit: Option<String>,
    /// Keys of the controller's configuration that this version does not know.
    pub unknown: Vec<String>,
    /// What this version knows of what jobs may ask for.
    pub features: Vec<String>,
    /// The highest numbers that were given out as far as is known here, as kept by [`AgentEffect::RememberHighest`].
    pub highest: Highest,
}

/// When a node's health is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthPlan {
    /// From the end of one check to the next; zero checks only when the agent starts.
    pub interval: Span,
    /// Whether there must be something of a job, or nothing; `None` checks in any case.
    pub busy: Option<bool>,
}

/// A run of a job that has parts on the node when the agent starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptedJob {
    /// Which.
    pub job: JobId,
    /// Which run.
    pub attempt: Attempt,
    /// Its prolog ran to a good end: it does not run again.
    pub prolog_done: bool,
    /// The last [`AgentEffect::Deadline`] of it; absent where it goes on for ever, or where an agent of an earlier version had it.
    pub until: Option<Time>,
}

/// A step found in the spool when the agent starts. The shell removes entries of an earlier boot before: no
/// step outlives a reboot.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// What it was started with (`launch.json`).
    pub launch: StepLaunch,
    /// Its timers, as they came with [`AgentEffect::Spawn`].
    pub timers: StepTimers,
    /// How far it is (`state.json`).
    pub phase: AdoptedPhase,
    /// What its image took, as it came with [`AgentEffect::Spawn`].
    pub pull: Option<ImagePull>,
    /// Every renewal was written down before its supervisor heard of it: none goes further than the timers say.
    pub lease_known: bool,
}

/// How far an adopted step is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdoptedPhase {
    /// The supervisor lives; no task runs yet.
    Starting,
    /// The supervisor lives; tasks run.
    Running,
    /// It ended.
    Exited(StepExit),
    /// The supervisor is gone and left no exit.
    Gone,
}

/// When things are due for a step, on the boot-time clock. The shell keeps them in the step's spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepTimers {
    /// End of the job's time limit.
    pub job_limit: Option<Time>,
    /// End of the step's own.
    pub step_limit: Option<Time>,
    /// `--signal`.
    pub warn: Option<WarnSignal>,
    /// Until when it goes on without a renewal, as far as this agent knows: its supervisor keeps to that.
    pub lease: Option<Time>,
}

/// Something that happened outside the core.
#[derive(Clone, Debug)]
pub enum AgentEvent {
    /// A connection to the controller is up. A Hello follows as an effect.
    Connected,
    /// It is down.
    Disconnected,
    /// A message of the controller, of the current connection.
    Controller(ToAgent),
    /// The answer to [`AgentEffect::RememberTerm`].
    TermKept {
        /// Which.
        term: Term,
        /// Else what could not be written, and why.
        result: Result<(), String>,
    },
    /// A Start that another node brought, and that the controller signed for this one: that was seen to. It may come twice, late, or from an
    /// earlier time.
    Carried(Box<Carried>),
    /// The image of a step.
    Image {
        /// Which step.
        key: StepKey,
        /// How far.
        event: ImageEvent,
    },
    /// A step's supervisor.
    Supervisor {
        /// Which step.
        key: StepKey,
        /// What it did.
        event: SupervisorEvent,
    },
    /// The prolog of a run ended.
    Prolog {
        /// Which job.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// Else program, exit and last line.
        result: Result<(), String>,
    },
    /// GPUs of a run that is to begin do not work any more: the other answer to [`AgentEffect::MakeJob`], before any about its image or its
    /// prolog. Nothing of it was made.
    Unfit {
        /// Which job.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// The GPU and what is wrong with it.
        why: String,
        /// Those of the node's that do not work, as far as that was seen.
        faults: Vec<GpuFault>,
    },
    /// No process of the run is left on the node, and its epilog has ended.
    JobRemoved {
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// What the epilog failed of: program, exit and last line.
        epilog: Option<String>,
        /// GPUs that it left unfit for others.
        faults: Vec<GpuFault>,
    },
    /// The answer to [`AgentEffect::LookForLeft`].
    Left {
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// Processes that do not end, in words; `None` where none is left.
        processes: Option<String>,
    },
    /// The program that reboots the machine ended.
    Rebooted(Result<(), String>),
    /// The check of the node's health ended.
    HealthChecked(Result<(), String>),
    /// Before images are removed for lack of room: which of these do jobs need? Answered by [`AgentEffect::ImagesNeeded`]; by that
    /// it is also told, until something else is asked, what of the others comes to be needed.
    AskNeeded {
        /// Number of the question.
        ask: u64,
        /// `sha256:...` of the manifests.
        digests: Vec<String>,
    },
    /// Something to tell the controller about images that travel between nodes. Who does not hear asks again.
    Peers(FromPeers),
    /// The answer to [`AgentEffect::LookForEnds`].
    NotEnded {
        /// Number of the question.
        ask: u64,
        /// Steps of which the spool has no exit.
        keys: Vec<StepKey>,
    },
    /// The time of [`crate::AgentCore::next_wake`] has come.
    Tick,
}

/// How far an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageEvent {
    /// Percent, where known.
    Progress(Option<u8>),
    /// It is present; also for a step without an image.
    Ready(Option<Fetched>),
    /// What is wrong, why, and what to do; and what was fetched until then.
    Failed(String, Option<Fetched>),
}

/// What a step's image came to, as the shell saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes fetched for this step.
    pub bytes: u64,
    /// All of it was there.
    pub hit: bool,
    /// `sha256:...` of the manifest, where it is known.
    pub digest: Option<String>,
    /// What the image's name was found to mean, where it came by its name alone.
    pub found: Option<Box<ResolvedImage>>,
}

/// What a supervisor did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SupervisorEvent {
    /// Tasks run.
    Started,
    /// Killed before tasks ran: what its processes waited for then, in words. Its end follows.
    Waits(String),
    /// All tasks ended. Also how the shell reports a supervisor that it could not start: with a
    /// `launch_error`.
    Exited(StepExit),
    /// It is gone and left no exit.
    Gone,
}

/// Which processes of a step a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessTarget {
    /// All of them.
    All,
    /// Only the batch shell.
    BatchShell,
}

impl AgentEffect {
    /// Whether what the shell writes for it is on the disk before it does what comes next: power may go at any moment, and no later agent may have forgotten it.
    pub fn is_durable(&self) -> bool {
        matches!(self, AgentEffect::RememberTerm(_) | AgentEffect::RememberHighest(_))
    }
}

/// Something for the shell to do.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a handful at a time, gone at once: a box for each message costs more than it saves
pub enum AgentEffect {
    /// Send a message to the controller; dropped without a connection. In a `Hello` the shell fills in the machine's full name, in a `Heartbeat` load, free memory, drift,
    /// and what steps use.
    Send(FromAgent),
    /// Keep the term across restarts of the agent and losses of power, and answer [`AgentEvent::TermKept`]: before that nothing is done for it.
    RememberTerm(Term),
    /// Keep these across restarts of the agent and boots of the machine. They are not lower than what was given out, and may be higher by a few, so
    /// that this does not come with each start.
    RememberHighest(Highest),
    /// The first step of a run of a job: make the job's parts (directories, cgroups, listener), unless its GPUs do not work any more
    /// ([`AgentEvent::Unfit`]). A failure is reported as the exit of the steps that are spawned, with a `launch_error`.
    MakeJob {
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// The step that it is made for: identity, job facts and share.
        launch: Box<StepLaunch>,
    },
    /// Run the prolog for a run of a job, without delaying any other effect, and answer `Prolog`. One that ended well is
    /// noted, so that the next agent gives it back in [`AdoptedJob`].
    RunProlog {
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
    },
    /// Make the step's image present (also where there is none: answer `Ready`), without delaying any other
    /// effect.
    PrepareImage {
        /// Which step.
        key: StepKey,
        /// What it will run.
        launch: Box<StepLaunch>,
        /// The login that came with it.
        login: Option<Login>,
    },
    /// The step is not wanted any more: stop preparing. No answer is expected, a late one is ignored.
    CancelImage {
        /// Which step.
        key: StepKey,
    },
    /// A job may soon start here: fetch its image, one at a time, behind everything else, and only where there is room. No
    /// answer is expected.
    Prefetch {
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// Identity, environment and image of its first step.
        launch: Box<StepLaunch>,
        /// The login that came with it.
        login: Option<Login>,
    },
    /// It will not: stop.
    CancelPrefetch {
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
    },
    /// The configuration in force at the controller.
    Configure(Box<Understood>),
    /// The answer to a question about images.
    ImagesNeeded {
        /// Which question.
        ask: u64,
        /// Those that jobs need, beside those that were told before; `None` while nobody can say it: then all of them are.
        digests: Option<Vec<String>>,
    },
    /// The controller's word about images that travel between nodes.
    Peers(ToPeers),
    /// Other nodes wait for this image: fetch it for them.
    Fetch {
        /// Identity, environment and image.
        launch: Box<StepLaunch>,
        /// The login that came with the job or the step.
        login: Option<Login>,
    },
    /// Registered: what the controller knew of this node's images it knows no more.
    Registered,
    /// Write the spool entry and start the supervisor.
    Spawn {
        /// Which step.
        key: StepKey,
        /// `launch.json`.
        launch: Box<StepLaunch>,
        /// To be kept in the spool and given back in [`Adopted`].
        timers: StepTimers,
        /// As the timers.
        pull: Option<ImagePull>,
    },
    /// End the logins of the job's user on the node: the run may count as lost from now on. Given again and again.
    EndLogins {
        /// Of which job.
        job: JobId,
    },
    /// Write down until when, on the boot-time clock, a run goes on without another renewal, for whoever ends it where neither supervisors nor
    /// agent do. Before anything that goes by it: where it cannot be written down, no step of the run is renewed or spawned.
    Deadline {
        /// Of which job.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// Until when; it never comes earlier than what was said before.
        until: Time,
    },
    /// Write down for the next agent, then tell the supervisor, until when, on the boot-time clock, its step goes on without another
    /// renewal.
    Renew {
        /// Which step.
        key: StepKey,
        /// Until when; a renewal never shortens.
        until: Time,
    },
    /// Send a signal to a step's processes.
    SignalStep {
        /// Which step.
        key: StepKey,
        /// Which processes.
        target: ProcessTarget,
        /// Signal number.
        signal: i32,
        /// Number of this one, if it has one: a supervisor that has heard a later one reads past it.
        number: Option<u64>,
    },
    /// SIGKILL everything of the step: cgroup and pid namespace. Of one of which no task runs yet, look before what it waits for and tell
    /// it by [`SupervisorEvent::Waits`].
    KillStep {
        /// Which step.
        key: StepKey,
    },
    /// The step does not end although it was killed, and nobody waits for it any more: end its supervisor, if that can be. Nothing
    /// that the supervisor still says is wanted.
    AbandonStep {
        /// Which step.
        key: StepKey,
    },
    /// A run that was to be removed is still there: answer `Left`, without delaying any other effect.
    LookForLeft {
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
    },
    /// Have the machine rebooted, without delaying any other effect, and answer `Rebooted` if that comes to anything.
    Reboot,
    /// Check the node's health, without delaying any other effect, and answer `HealthChecked`. Never given out before that answer.
    CheckHealth,
    /// Keep what the last check found wrong across restarts of the agent.
    RememberHealth(Option<String>),
    /// Tell the user why a step is being ended, in its error stream:
    /// `*** STEP 12.0 ON n1 CANCELLED AT … DUE TO TIME LIMIT ***`. The shell knows the wall clock.
    Note {
        /// Which step.
        key: StepKey,
        /// Why.
        cause: EndCause,
        /// Whether all of the job ends.
        whole_job: bool,
    },
    /// What is wrong with the node by what was once seen, and not by what is there now, is over: an administrator says it.
    Resumed,
    /// Tell whoever reads a step's error stream this line of the controller's.
    Say {
        /// Which step.
        key: StepKey,
        /// The line.
        text: String,
    },
    /// Look in the spool, without delaying any other effect, which of these steps have left no exit there, and answer `NotEnded`: what a
    /// supervisor has told its client may not have come to its agent yet.
    LookForEnds {
        /// Number of the question.
        ask: u64,
        /// Those whose end the core has not heard of.
        keys: Vec<StepKey>,
    },
    /// The exit is durable at the controller: remove the spool entry.
    ForgetSpool {
        /// Which step.
        key: StepKey,
    },
    /// No step of the run is alive: end what is left of it, a prolog first of all, run the epilog, answer `JobRemoved`, and
    /// remove the job's parts.
    RemoveJob {
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
    },
}
