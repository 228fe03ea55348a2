//! What goes into the core and what comes out of it: events, writes, and effects that wait for the commit.

use crate::config::CoreConfig;
use crate::store::{Committed, PayloadKey, Write};
use berth_model::carry::CarriedTo;
use berth_model::ids::{JobId, NodeName, StepKey, Term, Uid};
use berth_model::link::{FromAgent, Start, ToAgent};
use berth_model::login::SealedLogin;
use berth_model::member::KeyId;
use berth_model::request::{Actor, Refusal, Request, Response};
use berth_model::time::Time;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Names one outstanding request of a client; made by the server's shell, unique while it is unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Something that happened outside the core.
#[derive(Clone, Debug)]
pub enum Event {
    /// A client asks for something.
    Client {
        /// Names the request in the reply.
        request: RequestId,
        /// Who asks, as proven by the transport.
        actor: Actor,
        /// What.
        body: Request,
    },
    /// The client of an unanswered request is gone: a step that waits for resources is not made for nobody.
    Abandoned {
        /// Which request.
        request: RequestId,
    },
    /// A message of an agent.
    Agent {
        /// The node, as the transport proved it.
        node: NodeName,
        /// The connection on which it came: numbered upwards, never used twice by one controller process.
        connection: u64,
        /// What it says.
        message: FromAgent,
    },
    /// An agent's connection ended.
    AgentLost {
        /// The node.
        node: NodeName,
        /// The connection that ended.
        connection: u64,
    },
    /// An administrator has another configuration put in force, which the shell has read and judged.
    Reconfigure {
        /// Names the request in the reply.
        request: RequestId,
        /// Who asks.
        actor: Actor,
        /// The configuration.
        config: Box<CoreConfig>,
    },
    /// A program has ended that was to power a node off ([`Effect::Fence`]).
    Fenced {
        /// Which node.
        node: NodeName,
        /// As the effect said.
        asked: Time,
        /// The node is off, or was since it was asked for; or nobody knows, and why.
        result: Result<(), String>,
    },
    /// The agent of a node has come that shows a certificate of the cluster's, and a key that no machine in the books has. It was turned away.
    Unknown {
        /// The name for which its certificate is.
        node: NodeName,
        /// What it shows.
        key: KeyId,
        /// The network address from which it came.
        from: String,
    },
    /// What belongs to a Start cannot be read from the store, and is not there at the second look either: it was not sent.
    CannotStart {
        /// To which node.
        node: NodeName,
        /// Of which step.
        key: StepKey,
        /// In words.
        why: String,
    },
    /// The port for other machines listens. Said once to each core, as soon as it does.
    Listening,
    /// The store has no room for new work (`Some` says why), or has room again (`None`).
    StoreFull(Option<String>),
    /// The time of [`crate::Cluster::next_wake`] has come.
    Tick,
}

/// What follows from an event. The shell commits `writes` and only then opens `after_commit`.
#[derive(Debug)]
#[must_use = "an outcome that is dropped loses writes, replies and starts"]
pub struct Outcome {
    /// Changes to make durable, in order, all or none.
    pub writes: Vec<Write>,
    /// What may leave once they are durable.
    pub after_commit: AfterCommit,
    /// Jobs whose record changed, for those who watch them.
    pub changed: BTreeSet<JobId>,
}

/// Effects that are locked until the writes before them are durable.
#[derive(Debug, Default)]
#[must_use = "locked effects must be opened after the commit"]
pub struct AfterCommit {
    effects: Vec<Effect>,
}

impl AfterCommit {
    pub(crate) fn new(effects: Vec<Effect>) -> AfterCommit {
        AfterCommit { effects }
    }

    /// The effects, given the proof that everything written so far is durable. One commit may open the
    /// effects of several events, in their order.
    pub fn open(self, _proof: &Committed) -> Vec<Effect> {
        self.effects
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }
}

/// Where a sealed login is.
#[derive(Clone, Debug)]
pub enum LoginOf {
    /// In the store, of the owner of the job that is started or whose image is fetched.
    Stored(PayloadKey),
    /// Here, of this user.
    Kept(Uid, Arc<SealedLogin>),
}

/// Something for the shell to do. Doing it twice, or not at all before a crash, is harmless: it is derived
/// again from the state.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Answer a request.
    Reply {
        /// Which.
        request: RequestId,
        /// With what.
        result: Result<Response, Refusal>,
    },
    /// Send a message to an agent.
    Send {
        /// On which connection; the message is dropped when it is gone.
        connection: u64,
        /// The message.
        message: ToAgent,
        /// For a `Start` or a `Prefetch` whose script and environment are in the store: fill them in before sending, with
        /// [`crate::fill_payload`].
        payload: Option<PayloadKey>,
        /// For those for whose image there is a sealed login: open it before sending. It may be gone, or sealed to another key: the
        /// image is fetched without it then.
        login: Option<LoginOf>,
    },
    /// Send its Start to a node that carries those of others to them: the same, but for what is theirs alone. What cannot be signed or is
    /// too much for one message goes to the first node only; the others are sent theirs when they do not confirm it in time.
    Carry {
        /// On which connection; nothing is sent when it is gone.
        connection: u64,
        /// The Start of the node that carries.
        start: Box<Start>,
        /// The others.
        to: Vec<CarriedTo>,
        /// As for `Send`.
        payload: Option<PayloadKey>,
        /// As for `Send`.
        login: Option<LoginOf>,
    },
    /// For the log: Starts that were carried to these nodes are not confirmed, and are sent to them directly.
    Unconfirmed {
        /// Of which step.
        key: StepKey,
        /// To which nodes.
        nodes: Vec<NodeName>,
        /// More is said of the step, and comes behind; otherwise their time is over.
        early: bool,
    },
    /// Close every connection of a node's agent, also those on which it has not introduced itself yet.
    CutOff {
        /// Which node.
        node: NodeName,
        /// Why, for the log.
        why: String,
    },
    /// After a restore: an agent has followed a controller of this term. Begin a later one, and build the core anew.
    Supersede(Term),
    /// Have a node powered off by the site's program, without delaying anything else, and answer [`Event::Fenced`]. Not while another one runs
    /// for that node.
    Fence {
        /// Which node.
        node: NodeName,
        /// To be told with the answer.
        asked: Time,
    },
    /// Close a connection.
    Disconnect {
        /// Which.
        connection: u64,
        /// Why, for the log.
        why: String,
    },
}
