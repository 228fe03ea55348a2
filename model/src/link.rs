//! What controller and agent say to each other. Every Start, signal and report names term, attempt and
//! session where they decide, so that a message that is late, doubled or out of order does no harm.

use crate::carry::Carry;
use crate::config::Understood;
use crate::exchange::{FromPeers, ToPeers};
use crate::hardware::Hardware;
use crate::ids::{Attempt, JobId, NodeName, Session, StepId, StepKey, Term};
use crate::launch::{ImagePull, StepLaunch, StepPhase, Usage};
use crate::login::Login;
use crate::state::Cause;
use crate::time::{Span, Time};
use serde::{Deserialize, Serialize};

/// What an agent finds wrong with its node, told for as long as it is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What kind.
    pub cause: Cause,
    /// The run of a job to which it belongs.
    #[serde(default)]
    pub run: Option<(JobId, Attempt)>,
    /// In words, for administrators.
    pub why: String,
}

/// How busy the GPUs of a run are on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpusBusy {
    /// Which job.
    pub job: JobId,
    /// Which run.
    pub attempt: Attempt,
    /// The highest utilisation of one of them since the last heartbeat that said so, in per cent.
    pub percent: u32,
}

/// A GPU that is to be given to nobody, found when a run left it or was about to begin on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFault {
    /// Its index.
    pub index: u32,
    /// In words.
    pub why: String,
}

/// The highest numbers that have been given out as far as an agent knows, whatever became of what had them: a controller that was made of a
/// backup knows of none that were given out since. Zero where it knows of none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Highest {
    /// Of a job.
    pub job: JobId,
    /// Of a run, whichever job's.
    pub attempt: Attempt,
    /// Of a step, whichever run's.
    pub step: u32,
    /// There may be higher ones: what was known once cannot be read any more.
    #[serde(default)]
    pub lost: bool,
}

impl Highest {
    /// With a run that was given out.
    #[must_use]
    pub fn with_run(self, job: JobId, attempt: Attempt) -> Highest {
        Highest { job: self.job.max(job), attempt: self.attempt.max(attempt), ..self }
    }

    /// With a step that was given out, and its run.
    #[must_use]
    pub fn with(self, key: StepKey) -> Highest {
        let step = if let StepId::Number(number) = key.step { self.step.max(number) } else { self.step };
        Highest { step, ..self.with_run(key.job, key.attempt) }
    }

    /// With all that another one knows.
    #[must_use]
    pub fn and(self, other: Highest) -> Highest {
        let with = self.with_run(other.job, other.attempt);
        Highest { step: self.step.max(other.step), lost: self.lost || other.lost, ..with }
    }
}

/// From an agent to the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAgent {
    /// First message of a connection: who I am, and every step that I hold, exits not yet acknowledged included.
    Hello {
        /// The node's name.
        node: NodeName,
        /// The kernel's boot id: a new one means that no earlier step can be alive.
        boot_id: String,
        /// When the machine booted.
        boot_time: Time,
        /// When the agent started.
        agent_start: Time,
        /// The agent's version.
        version: String,
        /// What was detected.
        hardware: Hardware,
        /// Highest term ever accepted; commands of older terms are refused.
        term: Term,
        /// The steps in the agent's spool.
        steps: Vec<(StepKey, StepPhase)>,
        /// Jobs that hold something on the node (a job's end was not yet cleaned up).
        jobs: Vec<(JobId, Attempt)>,
        /// When this was sent, by the node's clock since boot: what runs end by themselves counts from there.
        asked: Time,
        /// Keys of the controller's configuration that this version does not know.
        unknown: Vec<String>,
        /// What it knows of what jobs may ask for ([`crate::feature`]): nothing, where an agent is too early to say so.
        features: Vec<String>,
        /// The highest numbers that it knows to have been given out; nothing, where an agent is too early to say so.
        highest: Highest,
        /// The machine's full name, as its name service says it; nothing, where that says none, or an agent is too early to ask.
        host: Option<String>,
    },
    /// A step got further. `Exited` is repeated until acknowledged.
    Step {
        /// Registration that this belongs to.
        session: Session,
        /// Which.
        key: StepKey,
        /// How far.
        phase: StepPhase,
    },
    /// What the image of a step that lives took. Of one that ended its exit says it.
    Pulled {
        /// Registration that this belongs to.
        session: Session,
        /// Which.
        key: StepKey,
        /// What it took.
        pull: ImagePull,
    },
    /// No process of the job is left on the node: the answer to `EndJob`, and what follows by itself when the step
    /// ended by which the job lives.
    JobGone {
        /// Registration that this belongs to.
        session: Session,
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// Exits of its steps that are not acknowledged: the controller records all of it at once.
        steps: Vec<(StepKey, StepPhase)>,
        /// What the epilog failed of: the node is drained with it.
        epilog: Option<String>,
        /// GPUs that it left unfit for others.
        faults: Vec<GpuFault>,
    },
    /// The prolog of a job failed on the node, or its GPUs do not work any more, and nothing of the job runs there. Repeated until the
    /// run is ended.
    PrologFailed {
        /// Registration that this belongs to.
        session: Session,
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// Program, exit and last line; or the GPU and what is wrong with it.
        why: String,
        /// GPUs that do not work any more: they are fenced, and the node goes on. None of a prolog that failed, for which the node is
        /// drained.
        faults: Vec<GpuFault>,
    },
    /// The program that was to reboot the machine failed. Told again when the wish is.
    RebootFailed {
        /// Registration that this belongs to.
        session: Session,
        /// Which wish.
        since: Time,
        /// Program, exit and last line.
        why: String,
    },
    /// Images in the node's store, before some are removed for lack of room: which of them do jobs need? Those that no job needs may be
    /// going from then on, until the node asks again, be it about none.
    ImagesHeld {
        /// Registration that this belongs to.
        session: Session,
        /// Number of the question.
        ask: u64,
        /// `sha256:...` of their manifests.
        digests: Vec<String>,
    },
    /// About images that travel between nodes.
    Peers {
        /// Registration that this belongs to.
        session: Session,
        /// What.
        said: FromPeers,
    },
    /// Answer to `LookForEnds`: these have not ended. Of the others the exit was told before, or comes.
    NotEnded {
        /// Registration that this belongs to.
        session: Session,
        /// Number of the question.
        ask: u64,
        /// Which.
        keys: Vec<StepKey>,
    },
    /// A signal was passed on to all that it was for, or nothing is left of that.
    Signalled {
        /// Registration that this belongs to.
        session: Session,
        /// Which job.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// Number of the signal.
        number: u64,
    },
    /// Sign of life.
    Heartbeat {
        /// Registration that this belongs to.
        session: Session,
        /// One-minute load, in hundredths.
        load: u32,
        /// Free memory in MiB.
        free_memory: u64,
        /// Users whom the node's own name service knows otherwise than the controller's, a line each.
        drift: Vec<String>,
        /// All that is wrong at this moment; also told at once when it changes.
        troubles: Vec<Trouble>,
        /// When this was sent, by the node's clock since boot.
        asked: Time,
        /// What steps that run have used so far.
        used: Vec<(StepKey, Usage)>,
        /// How busy the GPUs of runs are, where somebody looks.
        gpus: Vec<GpusBusy>,
    },
}

/// From the controller to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    /// Answer to a Hello.
    Welcome {
        /// Who leads.
        term: Term,
        /// This registration.
        session: Session,
        /// How often a heartbeat is expected.
        heartbeat: Span,
    },
    /// The Hello was refused; the text says why.
    Refused(String),
    /// Start a step; the first for a job on this node also makes the job's parts. Idempotent by key.
    Start(Box<Start>),
    /// Send a signal. Repeated until it was passed on to agents that know [`crate::feature::SIGNALLED`].
    Signal {
        /// Who leads.
        term: Term,
        /// Which job's run.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// Which steps.
        target: SignalTarget,
        /// Signal number.
        signal: i32,
        /// Number of this one: later ones have higher numbers, and one that was heard is not heard again. Absent in what a controller of
        /// an earlier version says.
        number: Option<u64>,
    },
    /// End a step: SIGCONT, SIGTERM, `kill_wait`, SIGKILL. The exit is reported as usual.
    Terminate {
        /// Who leads.
        term: Term,
        /// Which.
        key: StepKey,
        /// From SIGTERM to SIGKILL; zero kills at once.
        kill_wait: Span,
        /// Why, for the line that the user reads (`CANCELLED`, `DUE TO TIME LIMIT`).
        cause: EndCause,
    },
    /// The run of the job is over: end all of its steps and remove all that it has here, then answer JobGone.
    EndJob {
        /// Who leads.
        term: Term,
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// From SIGTERM to SIGKILL for steps that still run.
        kill_wait: Span,
        /// Why.
        cause: EndCause,
    },
    /// Answer to `ImagesHeld`: those that jobs which wait or run need. It says how things are when it is sent; what comes to be needed
    /// of the others, which may be going, is told in the same way later.
    ImagesNeeded {
        /// Number of the question.
        ask: u64,
        /// `sha256:...` of their manifests.
        digests: Vec<String>,
    },
    /// A job that waits will probably run on the node: fetch the image of its first step, where there is room anyway, as
    /// nothing else needs the node. Only identity, environment, image and login of the start are meant; the job may never come.
    Prefetch(Box<Start>),
    /// It will not, or somewhere else.
    EndPrefetch {
        /// Who leads.
        term: Term,
        /// Which.
        job: JobId,
        /// Which run.
        attempt: Attempt,
    },
    /// The configuration in force at the controller: after each Welcome, and when it has changed.
    Configure(Box<Understood>),
    /// Reboot the machine as soon as nothing of a job is there. Repeated until it has another boot id; a wish is fulfilled once.
    Reboot {
        /// Who leads.
        term: Term,
        /// Since when it is wished for, which tells one wish from another.
        since: Time,
    },
    /// About images that travel between nodes.
    Peers(ToPeers),
    /// Answer to a Hello and to each heartbeat: until when, by the node's clock since boot, these runs go on without another
    /// one. It never shortens what was said before.
    Renew {
        /// Who leads.
        term: Term,
        /// The runs that end by themselves.
        runs: Vec<(JobId, Attempt, Time)>,
    },
    /// Other nodes wait for the image of this step, and this one is a gateway: fetch it. Of the start identity, environment, image and
    /// login are meant.
    Fetch(Box<Start>),
    /// A line for whoever reads the error stream of a step. Only for agents that know [`crate::feature::SAY`].
    Say {
        /// Which.
        key: StepKey,
        /// What.
        text: String,
    },
    /// Another step waits for what these have: which of them have not ended? Looked up when it is asked, so that one whose client has heard its
    /// end is none of them. Only for agents that know [`crate::feature::LOOK_FOR_ENDS`].
    LookForEnds {
        /// Number of the question.
        ask: u64,
        /// Which.
        keys: Vec<StepKey>,
    },
    /// An administrator has put the node back into service: what is wrong with it by what was once seen, and not by what is there now, is over.
    /// Only for agents that know [`crate::feature::RESUMED`].
    Resumed {
        /// Who leads.
        term: Term,
    },
    /// The exit is durable: the spool entry may go.
    ExitRecorded {
        /// Which.
        key: StepKey,
    },
    /// Somebody comes to the node's own port, for a stream of a step.
    Admit(Box<crate::direct::Admission>),
    /// Somebody wants a stream to the node: connect, and say this number.
    Dial {
        /// Names the stream.
        number: u64,
    },
    /// Start a step, and hand their Starts to other nodes of it. Only for agents that know [`crate::feature::CARRY`].
    Carry(Box<Carry>),
}

/// A step to start on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Who leads.
    pub term: Term,
    /// All that the supervisor needs.
    pub launch: StepLaunch,
    /// Time left to the job when this was sent; absent without limit. The agent counts it on its own clock.
    pub job_time_left: Option<Span>,
    /// Time limit of the step itself.
    pub step_time_left: Option<Span>,
    /// `--signal`: sent this long before the end of the job.
    pub warn: Option<crate::spec::WarnSignal>,
    /// Until when, by the node's clock since boot, the step goes on without a renewal; absent: for ever. A Start that comes
    /// later than that is none.
    #[serde(default)]
    pub lease: Option<Time>,
    /// The login that came with the job or the step, for its image.
    #[serde(skip)]
    pub login: Option<Login>,
}

/// Which of a job's steps a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalTarget {
    /// One step, all of its processes.
    Step(StepId),
    /// All steps except the batch script (`scancel -s` without `-b` or `-f`).
    Steps,
    /// Only the batch shell itself (`-b`).
    BatchShell,
    /// Everything (`-f`).
    All,
}

/// Why a step is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// A user or an administrator.
    Cancelled,
    /// The time limit of job or step.
    TimeLimit,
    /// The job is over (its batch script ended, its client left).
    JobEnded,
    /// It goes back to the queue.
    Requeued,
    /// Its node counts as lost.
    NodeFailed,
    /// Its node heard nothing of the controller for as long as the site says.
    OutOfTouch,
}
