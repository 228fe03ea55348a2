//! Taking an image from other nodes: the bytes of a part from one, continued after a cut from where they stopped, and from the
//! next one where it dies, lies or stalls.

use super::Turn;
use super::http::{Head, content_range, read_head, status};
use super::serve::SIGNATURES;
use berth_images::{BlobKind, BlobSource, Digest, Error, ErrorKind, Hasher, Result};
use berth_model::exchange::{ImageWay, MadeForm};
use berth_model::ids::NodeName;
use berth_rpc::{PeerConnection, PeerIdentity};
use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is of at most this size is judged before it is handed on.
const JUDGED_WHOLE: u64 = 1 << 20;
/// Most bytes of an index, or of what a node has of signatures.
const MOST_EVIDENCE: u64 = 4 << 20;
/// How often a node that knows nothing of it is asked again: the controller's word may be on its way there.
const NOT_YET: u32 = 25;
const PAUSE: Duration = Duration::from_millis(200);
/// How often a part is continued at one node without any progress in between.
const RESUMES: u32 = 1;
/// In this time a node gives so many bytes, or another one is asked.
const SLOW: (Duration, u64) = (Duration::from_secs(30), 64 << 10);
/// How often a small part is fetched anew because a node gave wrong bytes.
const MOST_LIARS: usize = 8;

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    node: NodeName,
    address: String,
    key: String,
    /// Read-only images of layers on which nodes agree, as the controller said.
    forms: Vec<MadeForm>,
}

impl Peer {
    /// Whether it is said with this node that others made this.
    fn agrees(&self, digest: &Digest) -> bool {
        let digest = digest.to_string();
        self.forms.iter().any(|form| form.digest == digest)
    }
}

/// Other nodes that have an image, one after the other, as the controller names them.
pub(crate) struct PeerSource {
    inner: Arc<Inner>,
}

struct Inner {
    turn: Arc<Turn>,
    identity: Arc<PeerIdentity>,
    /// By which it is asked for.
    name: String,
    source: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peer: Option<Peer>,
    /// What those said that did not give it.
    before: Vec<String>,
    /// The controller knows nobody else.
    exhausted: bool,
}

impl PeerSource {
    /// From this node first. `source`: where the image is from. Nothing where that is one machine's, or this node nobody.
    pub(crate) fn new(turn: &Arc<Turn>, first: &ImageWay, source: &str) -> Option<PeerSource> {
        let (name, peer) = (super::shared_name(source)?, turn.peer(first)?);
        let identity = turn.peers.identity()?;
        let state = Mutex::new(State { peer: Some(peer), ..State::default() });
        let (turn, source) = (Arc::clone(turn), source.to_string());
        Some(PeerSource { inner: Arc::new(Inner { turn, identity, name, source, state }) })
    }

    /// Why no other node gave it, where none did.
    pub(crate) fn exhausted(&self) -> Option<String> {
        let state = self.inner.state();
        state.exhausted.then(|| state.before.join("; "))
    }
}

impl PeerSource {
    /// What the node that gives the image has of its signatures. One that has nothing gives the image all the same.
    fn evidence(&self, digest: &Digest, path: &str) -> Result<Box<dyn Read + Send>> {
        loop {
            let peer = self.inner.peer()?;
            match self.inner.small(&peer, path) {
                Ok(bytes) => return Ok(Box::new(Cursor::new(bytes))),
                // What it says itself, and not its connection.
                Err(e) if e.kind() == io::ErrorKind::Other => {
                    let reason = format!("{} does not say what it is signed by: {e}", peer.node);
                    return Err(Error::new(ErrorKind::NotFound, digest.to_string(), reason));
                }
                Err(e) => self.inner.fail(&peer, &e.to_string()),
            }
        }
    }
}

impl PeerSource {
    /// What the controller said of read-only images of a layer, with the node that gives the image.
    fn agreed(&self, layer: &Digest) -> Result<Box<dyn Read + Send>> {
        let (peer, layer) = (self.inner.peer()?, layer.to_string());
        let forms: Vec<&MadeForm> = peer.forms.iter().filter(|form| form.layer == layer).collect();
        let bytes = serde_json::to_vec(&forms).map_err(|e| Error::io(layer, io::Error::other(e)))?;
        Ok(Box::new(Cursor::new(bytes)))
    }
}

impl BlobSource for PeerSource {
    fn describe(&self) -> String {
        format!("{} (from other nodes)", self.inner.source)
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        let part = match kind {
            // Of signatures, whose bytes are judged by keys: an index beside the image's own manifest.
            BlobKind::Manifest if !self.inner.turn.is_about(digest) => {
                return self.evidence(digest, &format!("manifests/{digest}"));
            }
            BlobKind::Signatures => {
                let tag = digest.to_string().replacen(':', "-", 1);
                return self.evidence(digest, &format!("manifests/{SIGNATURES}{tag}"));
            }
            BlobKind::Manifest | BlobKind::Proof => "manifests",
            BlobKind::Forms => return self.agreed(digest),
            BlobKind::Blob | BlobKind::Archive | BlobKind::Form => "blobs",
            BlobKind::Held | BlobKind::SifSignatures => {
                let reason = "other nodes say nothing of it";
                return Err(Error::new(ErrorKind::NotFound, digest.to_string(), reason));
            }
        };
        let mut liars = 0;
        loop {
            let mut blob = Blob {
                source: Arc::clone(&self.inner),
                path: format!("{part}/{digest}"),
                digest: digest.clone(),
                form: kind == BlobKind::Form,
                at: offset,
                total: None,
                from: None,
                left: 0,
                resumes: RESUMES,
                hasher: (offset == 0).then(|| Hasher::new(digest.algorithm())),
                gave: Vec::new(),
                window: (Instant::now(), 0),
            };
            blob.connect()?;
            if offset > 0 || blob.total.is_none_or(|total| total > JUDGED_WHOLE) {
                return Ok(Box::new(blob));
            }
            let mut bytes = Vec::new();
            match blob.read_to_end(&mut bytes) {
                Ok(_) => return Ok(Box::new(Cursor::new(bytes))),
                Err(e) => match e.downcast::<Error>() {
                    Ok(error) if error.kind() == ErrorKind::Mirror && liars < MOST_LIARS => liars += 1,
                    Ok(error) => return Err(error),
                    Err(e) => return Err(Error::io(digest.to_string(), e)),
                },
            }
        }
    }

    fn is_peers(&self) -> bool {
        true
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self, before: &[String]) -> Error {
        let reason = format!("no other node gives it: {}", before.join("; "));
        Error::new(ErrorKind::Unreachable, self.source.clone(), reason)
    }

    /// The node to ask, as long as there is one.
    fn peer(&self) -> Result<Peer> {
        let mut state = self.state();
        if state.exhausted || self.turn.is_stopped() {
            return Err(self.gone(&state.before));
        }
        if let Some(peer) = &state.peer {
            return Ok(peer.clone());
        }
        // Others that read wait for the same answer.
        match self.turn.peer(&self.turn.way_within(super::MIDWAY)) {
            Some(peer) => {
                tracing::info!("image {}: goes on from {}", self.source, peer.node);
                state.peer = Some(peer.clone());
                Ok(peer)
            }
            None => {
                state.exhausted = true;
                Err(self.gone(&state.before))
            }
        }
    }

    /// A node did not give it: it is not asked again for this image.
    fn fail(&self, peer: &Peer, why: &str) {
        let mut state = self.state();
        if self.turn.is_stopped() {
            return;
        }
        if self.turn.failed(&peer.node) {
            tracing::info!("image {}: {} does not give it: {why}", self.source, peer.node);
            state.before.push(format!("{}: {why}", peer.node));
        }
        if state.peer.as_ref().is_some_and(|now| now.node == peer.node) {
            state.peer = None;
        }
    }
}

impl Inner {
    /// Asks a node, and reads the head of its answer.
    fn get(&self, peer: &Peer, path: &str, range: &str) -> io::Result<(PeerConnection, Head)> {
        let mut connection = self.identity.connect(&peer.address, &peer.key)?;
        let mut asked = 0;
        loop {
            write!(
                connection,
                "GET /v2/{}/{path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: berth/{}\r\n{range}\r\n",
                self.name,
                peer.address,
                env!("CARGO_PKG_VERSION")
            )?;
            connection.flush()?;
            let head = read_head(&mut connection)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            asked += 1;
            if status(&head)? == 403 && asked < NOT_YET && !self.turn.is_stopped() {
                std::thread::sleep(PAUSE);
                continue;
            }
            return Ok((connection, head));
        }
    }

    /// All of something small.
    fn small(&self, peer: &Peer, path: &str) -> io::Result<Vec<u8>> {
        let (mut connection, head) = self.get(peer, path, "")?;
        match (status(&head)?, length(&head)) {
            (200, Some(length)) if length <= MOST_EVIDENCE => {
                let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
                let (begun, mut at) = (Instant::now(), 0);
                while at < bytes.len() {
                    if begun.elapsed() > SLOW.0 || self.turn.is_stopped() {
                        return Err(io::Error::other("it is not there in time"));
                    }
                    match connection.read(&mut bytes[at..]) {
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(read) => at += read,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(e),
                    }
                }
                Ok(bytes)
            }
            (200, _) => Err(io::Error::other("it gives more than anybody needs")),
            (404, _) => Err(io::Error::other("it has nothing of it")),
            (status, _) => Err(io::Error::other(format!("it answers with status {status}"))),
        }
    }
}

fn length(head: &Head) -> Option<u64> {
    head.field("content-length").and_then(|text| text.parse().ok())
}

/// A part on its way.
struct Blob {
    source: Arc<Inner>,
    path: String,
    digest: Digest,
    /// It is what travels of a layer's read-only image: whoever does not have it may have the layer's archive.
    form: bool,
    /// Offset of the next byte.
    at: u64,
    /// Length of all, as the first said.
    total: Option<u64>,
    from: Option<(Peer, PeerConnection)>,
    /// Bytes that are still to come by this connection.
    left: u64,
    resumes: u32,
    /// Sums up what is handed on, where it begins at the beginning.
    hasher: Option<Hasher>,
    gave: Vec<Peer>,
    /// Since when so many bytes came.
    window: (Instant, u64),
}

impl Blob {
    /// Asks for what is left, one node after the other.
    fn connect(&mut self) -> Result<()> {
        loop {
            let peer = self.source.peer()?;
            if self.form && !peer.agrees(&self.digest) {
                return Err(self.not_there(&peer));
            }
            match self.request(&peer) {
                Err(e) if self.form && e.kind() == io::ErrorKind::NotFound => {
                    return Err(self.not_there(&peer));
                }
                Ok(connection) => {
                    if !self.gave.contains(&peer) {
                        self.gave.push(peer.clone());
                    }
                    self.window = (Instant::now(), 0);
                    self.from = Some((peer, connection));
                    return Ok(());
                }
                Err(e) => self.source.fail(&peer, &e.to_string()),
            }
        }
    }

    fn not_there(&self, peer: &Peer) -> Error {
        let reason = format!("{} has it not as nodes agree on it", peer.node);
        Error::new(ErrorKind::NotFound, self.digest.to_string(), reason)
    }

    fn request(&mut self, peer: &Peer) -> io::Result<PeerConnection> {
        let range = if self.at > 0 { format!("Range: bytes={}-\r\n", self.at) } else { String::new() };
        let (connection, head) = self.source.get(peer, &self.path, &range)?;
        let refused = |why: String| Err(io::Error::other(why));
        let length = length(&head);
        let (from, total) = match status(&head)? {
            200 => (0, length),
            206 => match head.field("content-range").and_then(content_range) {
                Some((from, all)) => (from, Some(all)),
                None => return refused("it gives another range than asked".into()),
            },
            404 => {
                let why = "it does not have it for this user";
                return Err(io::Error::new(io::ErrorKind::NotFound, why));
            }
            status => return refused(format!("it answers with status {status}")),
        };
        let Some(total) = total.filter(|total| from == self.at && length == total.checked_sub(from)) else {
            return refused("it gives another range than asked".into());
        };
        if self.total.is_some_and(|known| known != total) {
            return refused("it has another length than others say".into());
        }
        (self.total, self.left) = (Some(total), total - from);
        Ok(connection)
    }

    /// What to do after a cut.
    fn cut(&mut self, why: &str) {
        let Some((peer, _)) = self.from.take() else { return };
        if self.resumes > 0 {
            self.resumes -= 1;
            std::thread::sleep(PAUSE);
        } else {
            self.resumes = RESUMES;
            self.source.fail(&peer, why);
        }
    }

    /// The end: all of it must be what was asked for, whoever gave of it.
    fn judge(&mut self) -> io::Result<usize> {
        let Some(hasher) = self.hasher.take() else { return Ok(0) };
        let found = hasher.finish();
        if found == self.digest {
            if self.form {
                let gave: Vec<&str> = self.gave.iter().map(|peer| peer.node.0.as_str()).collect();
                let (image, size) = (&self.source.source, self.at);
                tracing::info!(
                    "image {image}: a layer came as its read-only image ({found}, {size} bytes) from {}",
                    gave.join(", ")
                );
            }
            return Ok(0);
        }
        let why = format!("gave bytes with digest {found} for {}", self.digest);
        for peer in std::mem::take(&mut self.gave) {
            self.source.fail(&peer, &why);
        }
        Err(Error::new(ErrorKind::Mirror, self.digest.to_string(), format!("other nodes {why}")).into())
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.total == Some(self.at) {
                return self.judge();
            }
            if self.source.turn.is_stopped() {
                return Err(io::Error::other("it is not wanted any more"));
            }
            let Some((_, connection)) = &mut self.from else {
                self.connect()?;
                continue;
            };
            let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
            match connection.read(&mut buffer[..most]) {
                Ok(0) => self.cut("the connection broke"),
                Ok(read) => {
                    (self.at, self.left) = (self.at + read as u64, self.left - read as u64);
                    self.window.1 += read as u64;
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&buffer[..read]);
                    }
                    if self.window.0.elapsed() > SLOW.0 {
                        if self.window.1 < SLOW.1 && self.left > 0 {
                            self.resumes = 0;
                            self.cut("it gives next to nothing");
                        }
                        self.window = (Instant::now(), 0);
                    } else if self.window.1 >= SLOW.1 {
                        self.resumes = RESUMES;
                    }
                    return Ok(read);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    self.resumes = 0;
                    self.cut("nothing comes from it");
                }
                Err(e) => self.cut(&e.to_string()),
            }
        }
    }
}

impl Turn {
    /// The node that the controller names, with the whole of its address.
    pub(super) fn peer(&self, way: &ImageWay) -> Option<Peer> {
        let ImageWay::Peer { node, address, key, forms } = way else { return None };
        let address = match (address.strip_prefix(':'), &self.peers.controller) {
            (Some(_), Some(controller)) => format!("{controller}{address}"),
            (Some(_), None) => format!("127.0.0.1{address}"),
            (None, _) => address.clone(),
        };
        Some(Peer { node: node.clone(), address, key: key.clone(), forms: forms.clone() })
    }
}
