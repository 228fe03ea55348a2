//! What agents and the controller say to each other about images that travel between nodes: who fetches one, who has it, and
//! which node may have it of which.

use crate::ids::{Attempt, JobId, NodeName, StepKey, Uid};
use crate::login::Login;
use crate::spec::ResolvedImage;
use crate::time::Span;
use serde::{Deserialize, Serialize};

/// From an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromPeers {
    /// Other nodes can fetch images here.
    Ready {
        /// `host:port`; without a host it is the controller's machine, by whatever name others reach that.
        address: String,
        /// Digest of the key that this node shows, on both sides of a connection.
        key: String,
        /// It takes streams of steps at the same port.
        streams: bool,
        /// Digests of the keys of machines that are connected there, or may be: those that are nobody's any more are answered with
        /// [`ToPeers::EndServe`].
        connected: Vec<String>,
    },
    /// An image is wanted for a run of a job. Said again every few seconds for as long as it is.
    Wanted {
        /// Number of the question: the same while it is the same pull.
        ask: u64,
        /// Whose job.
        job: JobId,
        /// Which run.
        attempt: Attempt,
        /// `sha256:...` of the manifest.
        digest: String,
        /// Bytes that came so far, from wherever they come.
        bytes: u64,
        /// Nodes that did not give it; this one itself where it has no way to where the image is from.
        failed: Vec<NodeName>,
    },
    /// An image is wanted for a user who asked for it by [`PullImage`](crate::request::Request::PullImage), without a job. Said again as
    /// [`FromPeers::Wanted`] is.
    Asked {
        /// Number of the question.
        ask: u64,
        /// For whom.
        user: Uid,
        /// `sha256:...` of the manifest.
        digest: String,
        /// Bytes that came so far, from wherever they come.
        bytes: u64,
        /// Nodes that did not give it; this one itself where it has no way to where the image is from.
        failed: Vec<NodeName>,
    },
    /// A name that came without its meaning means this image here. Said again every few seconds until it is answered.
    Found {
        /// Number of the question.
        ask: u64,
        /// Which step wants it.
        key: StepKey,
        /// What was found.
        image: ResolvedImage,
    },
    /// What does the name of a step's image mean? This node asks no registry: gateways are to. Said again every few seconds until it is
    /// answered.
    Name {
        /// Number of the question.
        ask: u64,
        /// Which step wants it: its name, its user and its login are what the controller has on record of it.
        key: StepKey,
    },
    /// What a gateway found that was told to fetch an image that came by its name alone.
    Named {
        /// The step of which it was told.
        key: StepKey,
        /// What the name means; absent where that cannot be found.
        image: Option<ResolvedImage>,
        /// Why it cannot.
        why: String,
        /// Where the name says the digest of an index, the indexes on the way from there to the image, outermost first.
        proof: Vec<String>,
    },
    /// Images in the node's store.
    Holds {
        /// These are all; else what changed.
        all: bool,
        /// With who has shown there that they may have them.
        images: Vec<HeldImage>,
        /// `sha256:...` of the manifests of those that went.
        gone: Vec<String>,
    },
    /// Images that others have were removed here by somebody who has a say in all of them. Said until it is answered, so it may be said twice.
    Removed {
        /// Number of the word.
        ask: u64,
        /// Who did it.
        by: Uid,
        /// Who that is on the node.
        user: String,
        /// Which they were.
        images: Vec<RemovedImage>,
    },
    /// Nothing more is wanted by this question.
    Done {
        /// Which question.
        ask: u64,
        /// Whether the image is there now.
        there: bool,
        /// Why it is not; empty where nobody wants it any more.
        why: String,
    },
}

/// An image in a node's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldImage {
    /// `sha256:...` of its manifest.
    pub digest: String,
    /// Who has shown there that they may have it; of a node that serves one user alone, that one.
    pub users: Vec<Uid>,
    /// What the node made of its layers by itself, and could give to others.
    pub made: Vec<MadeForm>,
}

/// A read-only image of a layer that a node made of the layer's archive. Whoever makes it of the same layer, by the same writer, makes the
/// same bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MadeForm {
    /// `sha256:...` of the layer's content, as the configuration of its image names it.
    pub layer: String,
    /// What wrote it, with its version and what it was told: others may make other bytes of the layer.
    pub writer: String,
    /// `sha256:...` of what travels of it.
    pub digest: String,
    /// Bytes of that.
    pub size: u64,
}

/// An image that somebody removed whose own it was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedImage {
    /// `sha256:...` of its manifest.
    pub digest: String,
    /// A name of it; empty where it has none.
    pub name: String,
    /// Names of users who had it.
    pub owners: Vec<String>,
}

impl RemovedImage {
    /// Most of them in one word to the controller: so many fit into an entry of the audit log.
    pub const MOST: usize = 8;
}

/// To an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToPeers {
    /// Answer to [`FromPeers::Wanted`]; a later one to the same question replaces it, until the first that is not to wait.
    Way {
        /// Which question.
        ask: u64,
        /// Where the image is to come from.
        way: ImageWay,
        /// What gateways said that did not get it.
        note: String,
    },
    /// Answer to [`FromPeers::Found`]: this is what the name means, for all of the job's tasks, nodes and runs.
    Pinned {
        /// Which question.
        ask: u64,
        /// The image that was found first.
        image: ResolvedImage,
    },
    /// Answer to [`FromPeers::Removed`]: it is in the audit log.
    Noted {
        /// Which word.
        ask: u64,
    },
    /// Answer to [`FromPeers::Name`].
    Name {
        /// Which question.
        ask: u64,
        /// What the name means; absent where no gateway found it.
        image: Option<ResolvedImage>,
        /// Who found it, or what each gateway said; empty for what all of the job have already.
        note: String,
        /// As the gateway gave it, see [`FromPeers::Named`]: nobody has judged it.
        proof: Vec<String>,
    },
    /// This node is a gateway, and others wait for an image that a user asked for by
    /// [`PullImage`](crate::request::Request::PullImage), without a job: fetch it. Only for agents that know
    /// [`crate::feature::GATEWAY`].
    Fetch {
        /// For whom, as this node knows them.
        user: Uid,
        /// Which.
        image: ResolvedImage,
    },
    /// Comes before an [`ImageWay::Source`], where a login came with what a user asked for: with it the image may be fetched. Only for agents
    /// that know [`crate::feature::GATEWAY`].
    Login {
        /// Of which question.
        ask: u64,
        /// The login, put in on the way to the node.
        #[serde(skip)]
        login: Option<Login>,
    },
    /// Answer to [`FromPeers::Wanted`] of a gateway: the job is gone, and no other node waits for the image. Only for agents that know
    /// [`crate::feature::GATEWAY`].
    Unwanted {
        /// Which question.
        ask: u64,
    },
    /// A node may fetch an image here, for one user.
    Serve {
        /// The node, for messages.
        node: NodeName,
        /// Digest of its key.
        key: String,
        /// `sha256:...` of the manifest.
        digest: String,
        /// Where the image is from: the user must have shown here that this gives it to them.
        source: String,
        /// For whom.
        user: Uid,
        /// For how long, counted from when it is heard.
        time: Span,
    },
    /// It may not any more; where that is so for all images, its connections are cut.
    EndServe {
        /// Digest of its key.
        key: String,
        /// Which image; all of them where it is absent.
        digest: Option<String>,
    },
}

/// Where an image is to come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageWay {
    /// Nothing yet: another node fetches it.
    Wait,
    /// From where it is, by this node itself.
    Source,
    /// From another node.
    Peer {
        /// Its name.
        node: NodeName,
        /// As it said itself, see [`FromPeers::Ready`].
        address: String,
        /// Digest of the key that it shows.
        key: String,
        /// Read-only images of the image's layers that so many nodes made alike that they are believed: the node may have them.
        forms: Vec<MadeForm>,
    },
}
