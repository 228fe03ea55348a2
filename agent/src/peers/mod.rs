//! Images between nodes: this node gives what it has to those whom the controller names, and takes from those to whom the controller
//! sends it. Who fetches, who waits and who gives is the controller's decision; nothing here waits for ever for it.

mod fetch;
mod held;
mod http;
mod names;
mod pins;
mod removed;
mod serve;
mod starts;

use crate::direct::Admitted;
pub(crate) use fetch::PeerSource;
pub(crate) use names::Named;
use serve::{Connections, Grants};

use crate::driver::Input;
use berth_images::{Algorithm, Digest};
use berth_model::exchange::{FromPeers, ImageWay, ToPeers};
use berth_model::ids::{Attempt, JobId, NodeName, Uid};
use berth_model::login::Login;
use berth_model::pin::file_of;
use berth_rpc::{PeerIdentity, Uplink};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, mpsc};

/// By what name nodes ask each other for an image from this source: `registry/repository`, or what stands for a file's path, which may
/// have letters that do not fit into a request. Nothing for what is one machine's.
fn shared_name(source: &str) -> Option<String> {
    if let Some(name) = source.strip_prefix("docker://") {
        return Some(name.to_string());
    }
    file_of(source)?;
    Some(format!("file/{}", Digest::of(Algorithm::Sha256, source.as_bytes()).hex()))
}

/// How often the controller is told that an image is still wanted.
const RENEW: Duration = Duration::from_secs(5);
/// A controller that says nothing for so long holds nobody up.
const UNHEARD: Duration = Duration::from_secs(12);
/// How often somebody who waits looks whether the image is still wanted.
const LOOK: Duration = Duration::from_millis(300);
/// How long somebody waits for another node's fetch after a node that gave the image is gone.
const MIDWAY: Duration = Duration::from_secs(300);
/// How often it is looked who this node is, until it is somebody, and from then on.
const SOON: Duration = Duration::from_millis(500);
const LATER: Duration = Duration::from_secs(2);

/// Tells who this node is to other nodes, if that is new: of the state directory, for a node of this name, who was somebody before.
pub type FindIdentity = fn(&std::path::Path, &NodeName, Option<&PeerIdentity>) -> Option<PeerIdentity>;

/// What this node has to do with others.
pub struct Peers {
    node: NodeName,
    identity: RwLock<Option<Arc<PeerIdentity>>>,
    /// As others reach this node; `host:port`, or the port alone on the controller's machine.
    address: OnceLock<String>,
    /// The host by which this node reaches the controller's machine, where that is another; and how it does.
    controller: Option<String>,
    uplink: Uplink,
    inputs: OnceLock<mpsc::UnboundedSender<Input>>,
    turns: Mutex<BTreeMap<u64, Open>>,
    /// Names that were found, of which it is not known yet what all have.
    pins: pins::Pins,
    /// Names of which it is not known yet what gateways find.
    names: names::Names,
    last: AtomicU64,
    grants: Grants,
    connections: Connections,
    /// Who may come for streams.
    admitted: Arc<Admitted>,
    /// What the controller was told of this node's images.
    told: held::Told,
    /// What the audit log does not have yet.
    unnoted: removed::Unnoted,
    /// It is to be looked who this node is.
    look: Notify,
    /// Turns to hand others their Starts, and places for those who bring some.
    handing: Semaphore,
    taking: Semaphore,
}

/// A question that is open.
struct Open {
    ways: Sender<(ImageWay, String)>,
    what: Arc<Asked>,
    stop: Arc<AtomicBool>,
}

struct Asked {
    whose: Whose,
    digest: String,
    bytes: AtomicU64,
    failed: Mutex<BTreeSet<NodeName>>,
    /// The login that came with it, for who fetches it from where it is.
    login: Mutex<Option<Login>>,
}

/// For what an image is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A run of a job.
    Run(JobId, Attempt),
    /// A user who asked for it without a job.
    User(Uid),
}

/// An image that is wanted, until this is dropped.
pub(crate) struct Turn {
    peers: Arc<Peers>,
    ask: u64,
    what: Arc<Asked>,
    ways: Mutex<Receiver<(ImageWay, String)>>,
    stop: Arc<AtomicBool>,
    waited: AtomicBool,
    /// The controller said that it is to come from where it is from.
    sent: AtomicBool,
    /// It was told that this node has no way there, and has not answered that yet.
    untold: AtomicBool,
    /// How it ended.
    ended: Mutex<Result<(), String>>,
    /// What gateways said that did not get it.
    note: Mutex<String>,
}

impl Peers {
    /// Nobody yet to anybody.
    pub fn new(node: NodeName, uplink: &Uplink) -> Peers {
        let controller = match uplink {
            Uplink::Local(_) => None,
            Uplink::Remote(_) => uplink.name().rsplit_once(':').map(|(host, _)| host.to_string()),
        };
        Peers {
            node,
            identity: RwLock::default(),
            address: OnceLock::new(),
            controller,
            uplink: uplink.clone(),
            inputs: OnceLock::new(),
            turns: Mutex::default(),
            pins: pins::Pins::default(),
            names: names::Names::default(),
            last: AtomicU64::new(0),
            grants: Grants::default(),
            connections: Connections::default(),
            admitted: Arc::default(),
            told: held::Told::default(),
            unnoted: removed::Unnoted::default(),
            look: Notify::new(),
            handing: Semaphore::new(starts::HANDING),
            taking: Semaphore::new(starts::TAKING),
        }
    }

    /// Registered with the controller, which knows nothing of this node's images; perhaps by another key than before.
    pub fn registered(&self) {
        self.told.forget();
        self.look.notify_one();
        self.announce();
        self.ask_for_pins();
        self.say_removed();
        self.ask_for_names();
    }

    /// This node.
    pub(crate) fn node(&self) -> &NodeName {
        &self.node
    }

    fn turns(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who may come for streams.
    pub(crate) fn admitted(&self) -> Arc<Admitted> {
        Arc::clone(&self.admitted)
    }

    /// Who this node is to others, once it is somebody.
    pub(crate) fn identity(&self) -> Option<Arc<PeerIdentity>> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn say(&self, said: FromPeers) {
        if let Some(inputs) = self.inputs.get() {
            // An error means that the agent ends.
            let _ = inputs.send(Input::Peers(said));
        }
    }

    /// The keys of machines that are connected here, or may be. While the controller was away it may have given up some of them.
    fn have_something(&self) -> Vec<String> {
        let mut keys = BTreeSet::new();
        self.grants.add_keys(&mut keys);
        self.connections.add_keys(&mut keys);
        self.admitted.add_keys(&mut keys);
        keys.into_iter().collect()
    }

    /// Tells the controller where others find this node, once it serves.
    pub fn announce(&self) {
        if let (Some(identity), Some(address)) = (self.identity(), self.address.get()) {
            let (address, key) = (address.clone(), identity.key().to_string());
            let connected = self.have_something();
            self.say(FromPeers::Ready { address, key, streams: true, connected });
            for (ask, open) in &*self.turns() {
                self.say(open.what.wanted(*ask));
            }
        }
    }

    /// The controller's word.
    pub fn hear(&self, said: ToPeers) {
        match said {
            ToPeers::Way { ask, way, note } => {
                if let Some(open) = self.turns().get(&ask) {
                    // Who does not listen any more needs nothing.
                    let _ = open.ways.send((way, note));
                }
            }
            ToPeers::Unwanted { ask } => {
                if let Some(open) = self.turns().get(&ask) {
                    open.stop.store(true, Ordering::Relaxed);
                }
            }
            ToPeers::Noted { ask } => self.unnoted.heard(ask),
            ToPeers::Pinned { ask, image } => self.pins.answer(ask, image),
            ToPeers::Name { ask, image, note, proof } => self.names.answer(ask, image, note, proof),
            ToPeers::Serve { node, key, digest, source, user, time } => {
                tracing::debug!("{node} may fetch {digest} here for uid {user}");
                self.grants.add(node, key, digest, source, user, time);
            }
            ToPeers::Login { ask, login } => {
                if let Some(open) = self.turns().get(&ask) {
                    *open.what.login() = login;
                }
            }
            // Who has the images sees to it.
            ToPeers::Fetch { .. } => {}
            ToPeers::EndServe { key, digest } => {
                self.grants.end(&key, digest.as_deref());
                if digest.is_none() {
                    self.connections.cut(&key);
                    self.admitted.cut(&key);
                }
            }
        }
    }

    /// Serves other nodes, and tells the controller what is still wanted, until it is dropped.
    pub(crate) async fn keep(self: Arc<Self>, start: Keeping) {
        // Set once.
        let _ = self.inputs.set(start.inputs.clone());
        let renewing = async {
            loop {
                tokio::time::sleep(RENEW).await;
                for (ask, open) in &*self.turns() {
                    self.say(open.what.wanted(*ask));
                }
            }
        };
        let holding = held::keep(Arc::clone(&self), Arc::clone(&start.images));
        tokio::join!(renewing, holding, self.serve(&start));
    }

    async fn serve(self: &Arc<Self>, start: &Keeping) {
        let Some(port) = start.port else { return };
        self.take_identity(start, SOON).await;
        let own = match &self.controller {
            Some(_) => loop {
                match own_address(start.uplink.name()).await {
                    Some(own) => break Some(own),
                    None => tokio::time::sleep(LATER).await,
                }
            },
            None => None,
        };
        let Some(listener) = listen(own, port).await else { return };
        let Ok(port) = listener.local_addr().map(|address| address.port()) else { return };
        let address = match own {
            Some(own) => std::net::SocketAddr::new(own, port).to_string(),
            None => format!(":{port}"),
        };
        tracing::info!("images are given to other nodes at {address}, and streams of steps are taken there");
        let _ = self.address.set(address);
        self.announce();
        let renewing = async {
            loop {
                self.take_identity(start, LATER).await;
                tracing::info!("other nodes know this one by a new key or certificate");
                self.announce();
            }
        };
        tokio::join!(renewing, serve::accept(listener, Arc::clone(self), start));
    }

    /// Waits until this node is somebody else than before.
    async fn take_identity(self: &Arc<Self>, start: &Keeping, every: Duration) {
        loop {
            let (find, state, node) = (start.find, start.state.clone(), self.node.clone());
            let before = self.identity();
            let found = tokio::task::spawn_blocking(move || find(&state, &node, before.as_deref())).await;
            if let Ok(Some(found)) = found {
                *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(found));
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = self.look.notified() => {}
            }
        }
    }

    /// By which host this node reaches one with this address: the controller tells its own machine's as an empty one.
    pub(crate) fn reached(&self, address: Option<String>) -> Option<String> {
        if !address.as_ref().is_some_and(String::is_empty) {
            return address;
        }
        host_of_controller(self.uplink.reached(), self.controller.as_deref()?)
    }

    /// As [`Peers::reached`] of the machine of a step's client: on the controller's own machine that is this one.
    pub(crate) fn client_reached(&self, address: Option<String>) -> Option<String> {
        let here = address.as_ref().is_some_and(String::is_empty) && self.controller.is_none();
        if here { Some(berth_model::env::LOOPBACK.to_string()) } else { self.reached(address) }
    }

    /// Whether this node has to do with others.
    pub(crate) fn are_there(&self) -> bool {
        self.address.get().is_some()
    }

    /// As if it served others.
    #[cfg(test)]
    pub(crate) fn serves(&self) {
        let _ = self.address.set(":1".into());
    }

    /// Asks for an image; nothing where this node has nothing to do with others, but for what a user asked for without a job: the controller
    /// may have a login that was sent along.
    pub(crate) fn ask(
        self: &Arc<Self>,
        whose: Whose,
        digest: &str,
        stop: &Arc<AtomicBool>,
    ) -> Option<Arc<Turn>> {
        let for_user = || matches!(whose, Whose::User(_)) && self.inputs.get().is_some();
        if !self.are_there() && !for_user() {
            return None;
        }
        let what = Asked {
            whose,
            digest: digest.to_string(),
            bytes: AtomicU64::new(0),
            failed: Mutex::default(),
            login: Mutex::default(),
        };
        let (what, (sender, ways)) = (Arc::new(what), channel());
        let ask = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let open = Open { ways: sender, what: Arc::clone(&what), stop: Arc::clone(stop) };
        self.turns().insert(ask, open);
        self.say(what.wanted(ask));
        let (peers, stop) = (Arc::clone(self), Arc::clone(stop));
        Some(Arc::new(Turn {
            peers,
            ask,
            what,
            ways: Mutex::new(ways),
            stop,
            waited: AtomicBool::new(false),
            sent: AtomicBool::new(false),
            untold: AtomicBool::new(false),
            ended: Mutex::new(Err(String::new())),
            note: Mutex::default(),
        }))
    }
}

/// What is needed to serve.
pub(crate) struct Keeping {
    pub(crate) state: PathBuf,
    pub(crate) find: FindIdentity,
    pub(crate) uplink: Uplink,
    /// `None`: images are neither given nor taken, and streams go by the controller.
    pub(crate) port: Option<u16>,
    pub(crate) images: Arc<crate::images::Images>,
    /// What takes streams.
    pub(crate) service: Arc<crate::clients::Service>,
    pub(crate) inputs: mpsc::UnboundedSender<Input>,
}

impl Asked {
    fn login(&self) -> MutexGuard<'_, Option<Login>> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, BTreeSet<NodeName>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self, ask: u64) -> FromPeers {
        let (digest, bytes) = (self.digest.clone(), self.bytes.load(Ordering::Relaxed));
        let failed = self.failed().iter().cloned().collect();
        match self.whose {
            Whose::Run(job, attempt) => FromPeers::Wanted { ask, job, attempt, digest, bytes, failed },
            Whose::User(user) => FromPeers::Asked { ask, user, digest, bytes, failed },
        }
    }
}

impl Turn {
    /// Something came of it.
    pub(crate) fn came(&self, bytes: u64) {
        self.what.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The image is there, or cannot be had.
    pub(crate) fn end(&self, how: Result<(), String>) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = how;
    }

    /// What gateways said that did not get it; empty where there are none, or it came.
    pub(crate) fn note(&self) -> String {
        self.note.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The login that came with it, once the controller has said that the image is to come from where it is.
    pub(crate) fn login(&self) -> Option<Login> {
        self.what.login().clone()
    }

    /// Whether this is the manifest of the image.
    fn is_about(&self, digest: &Digest) -> bool {
        self.what.digest == digest.to_string()
    }

    /// A node did not give it; false where that was known.
    fn failed(&self, node: &NodeName) -> bool {
        let new = self.what.failed().insert(node.clone());
        if new {
            self.ask_again();
        }
        new
    }

    /// This node has no way to where the image is: the controller is told so, and says what else there is. False where it was told so before,
    /// or nobody is there to ask.
    pub(crate) fn has_no_way(&self) -> bool {
        if self.is_stopped() || !self.peers.are_there() {
            return false;
        }
        // Before it is said: the answer may be there at once.
        self.untold.store(true, Ordering::Relaxed);
        let new = self.failed(&self.peers.node);
        if !new {
            self.untold.store(false, Ordering::Relaxed);
        }
        new
    }

    /// Whether another node fetched it meanwhile.
    pub(crate) fn has_waited(&self) -> bool {
        self.waited.load(Ordering::Relaxed)
    }

    /// Whether the controller said that the image is to come from where it is from: the login that came with it goes with that word.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Tells the controller that the image is wanted still.
    pub(crate) fn ask_again(&self) {
        self.peers.say(self.what.wanted(self.ask));
    }

    /// Whether the image is not wanted any more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until the controller says where the image is to come from: where it is from, unless it names a node that has not failed yet.
    pub(crate) fn way(&self) -> ImageWay {
        self.way_within(Duration::MAX)
    }

    /// The same for somebody who has a place for the import meanwhile, of which there are few: whom they wait for may wait for such a
    /// place. After so long nobody is waited for with it.
    fn way_within(&self, most: Duration) -> ImageWay {
        let ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        let mut heard = begun;
        loop {
            if begun.elapsed() > most {
                return ImageWay::Source;
            }
            match ways.recv_timeout(LOOK) {
                Ok((ImageWay::Wait, _)) => {
                    heard = Instant::now();
                    self.waited.store(true, Ordering::Relaxed);
                    self.untold.store(false, Ordering::Relaxed);
                }
                // Said before it was heard that this node has no way there. One of an earlier version says nothing else.
                Ok((ImageWay::Source, _))
                    if self.untold.load(Ordering::Relaxed) && begun.elapsed() <= UNHEARD => {}
                // Said before it was heard that the node failed.
                Ok((ImageWay::Peer { node, .. }, _)) if self.what.failed().contains(&node) => {
                    heard = Instant::now()
                }
                Ok((way, note)) => {
                    self.sent.fetch_or(way == ImageWay::Source, Ordering::Relaxed);
                    *self.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
                    return way;
                }
                Err(RecvTimeoutError::Disconnected) => return ImageWay::Source,
                Err(RecvTimeoutError::Timeout) if self.is_stopped() => return ImageWay::Source,
                Err(RecvTimeoutError::Timeout) if heard.elapsed() > UNHEARD => {
                    tracing::info!(
                        "the controller does not say where an image is: it is fetched from its source"
                    );
                    return ImageWay::Source;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.peers.turns().remove(&self.ask);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let there = ended.is_ok();
        // That nobody wants it any more says nothing against this node as a gateway.
        let why = ended.err().filter(|_| !self.is_stopped()).unwrap_or_default();
        self.peers.say(FromPeers::Done { ask: self.ask, there, why });
        self.peers.told.look();
    }
}

/// Takes the port, or another one where somebody has it.
async fn listen(own: Option<IpAddr>, port: u16) -> Option<tokio::net::TcpListener> {
    let hosts: &[&str] = match own {
        Some(IpAddr::V4(_)) => &["0.0.0.0"],
        Some(IpAddr::V6(_)) => &["[::]"],
        None => &["[::]", "0.0.0.0"],
    };
    for port in [port, 0] {
        for host in hosts {
            match tokio::net::TcpListener::bind(format!("{host}:{port}")).await {
                Ok(listener) => return Some(listener),
                Err(e) => tracing::info!("images for other nodes: {host}:{port}: {e}"),
            }
        }
    }
    tracing::warn!("no image is given to other nodes, or taken from them");
    None
}

/// By which host programs of this node, in containers too, reach the controller's machine: the address at which it was `reached`, else the
/// `host` that this node was told. Nothing where that leads to this machine itself, as the end of a tunnel does.
fn host_of_controller(reached: Option<IpAddr>, host: &str) -> Option<String> {
    let leads_there = |ip: &IpAddr| match ip {
        // Which network it is in, each machine numbers for itself.
        IpAddr::V6(ip) if ip.is_unicast_link_local() => false,
        ip => !ip.is_loopback() && !ip.is_unspecified(),
    };
    let host = host.trim_matches(['[', ']']);
    match (reached.map(|ip| ip.to_canonical()), host.parse::<IpAddr>()) {
        (Some(ip), _) => leads_there(&ip).then(|| ip.to_string()),
        (None, Ok(ip)) => leads_there(&ip.to_canonical()).then(|| host.to_string()),
        (None, Err(_)) => (host != "localhost").then(|| host.to_string()),
    }
}

/// The address of this machine from which the controller is reached. Nothing is sent for it.
async fn own_address(controller: String) -> Option<IpAddr> {
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0");
    let address = async {
        let of = tokio::net::lookup_host(&controller).await?.next();
        let of = of.ok_or(std::io::ErrorKind::NotFound)?;
        let socket = if of.is_ipv4() { socket.await? } else { tokio::net::UdpSocket::bind("[::]:0").await? };
        socket.connect(of).await?;
        socket.local_addr()
    };
    let found: std::io::Result<_> = address.await;
    match found {
        Ok(address) => Some(address.ip()),
        Err(e) => {
            tracing::debug!("the address of this node for others: {e}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The login that came with an image is sent to who is told to fetch it from where it is, and to nobody else.
    #[test]
    fn who_gives_up_waiting_by_itself_has_not_been_told_to_fetch_the_image_and_asks_once_more() {
        let peers = Arc::new(Peers::new(NodeName::from("n1"), &Uplink::Local("/nonexistent".into())));
        peers.serves();
        let (inputs, mut said) = mpsc::unbounded_channel();
        let _ = peers.inputs.set(inputs);
        let mut asked = || {
            let next = std::iter::from_fn(|| said.try_recv().ok());
            next.filter(|input| matches!(input, Input::Peers(FromPeers::Asked { .. }))).count()
        };
        let turn = peers.ask(Whose::User(Uid(1)), "sha256:1", &Arc::default()).unwrap();
        assert_eq!(asked(), 1);
        let word = |way: ImageWay| peers.hear(ToPeers::Way { ask: turn.ask, way, note: String::new() });
        word(ImageWay::Wait);
        assert_eq!(turn.way_within(Duration::ZERO), ImageWay::Source);
        assert!(!turn.is_sent() && asked() == 0);
        turn.ask_again();
        assert_eq!(asked(), 1);
        word(ImageWay::Wait);
        word(ImageWay::Source);
        assert_eq!(turn.way(), ImageWay::Source);
        assert!(turn.is_sent());
    }

    #[test]
    fn what_was_said_before_it_was_heard_that_a_node_has_no_way_there_does_not_end_its_wait() {
        let peers = Arc::new(Peers::new(NodeName::from("n1"), &Uplink::Local("/nonexistent".into())));
        peers.serves();
        let (inputs, mut said) = mpsc::unbounded_channel();
        let _ = peers.inputs.set(inputs);
        let turn = peers.ask(Whose::Run(JobId(1), Attempt(0)), "sha256:1", &Arc::default()).unwrap();
        let word = |way: ImageWay| peers.hear(ToPeers::Way { ask: turn.ask, way, note: String::new() });
        word(ImageWay::Source);
        assert_eq!(turn.way(), ImageWay::Source);
        // Answers to what was asked while it was being fetched.
        word(ImageWay::Source);
        word(ImageWay::Source);
        assert!(turn.has_no_way());
        word(ImageWay::Wait);
        let other = ImageWay::Peer {
            node: NodeName::from("n2"),
            address: "10.0.0.2:1".into(),
            key: "k".into(),
            forms: Vec::new(),
        };
        word(other.clone());
        assert_eq!(turn.way(), other);
        let told = std::iter::from_fn(|| said.try_recv().ok());
        let own = |input: Input| matches!(input, Input::Peers(FromPeers::Wanted { failed, .. }) if failed == [NodeName::from("n1")]);
        assert_eq!(told.filter_map(|input| own(input).then_some(())).count(), 1);
        // And once: it is not said again and again that it is so.
        assert!(!turn.has_no_way());
        word(ImageWay::Source);
        assert_eq!(turn.way(), ImageWay::Source);
    }

    #[test]
    fn a_node_without_others_asks_for_what_users_want_for_the_login_that_was_sent_along_alone() {
        let peers = Arc::new(Peers::new(NodeName::from("n1"), &Uplink::Local("/nonexistent".into())));
        let ask = |whose| peers.ask(whose, "sha256:1", &Arc::default());
        let (run, user) = (Whose::Run(JobId(1), Attempt(0)), Whose::User(Uid(1)));
        // There is nobody to ask.
        assert!(ask(user).is_none());
        let (inputs, mut said) = mpsc::unbounded_channel();
        let _ = peers.inputs.set(inputs);
        assert!(ask(run).is_none());
        let turn = ask(user).unwrap();
        assert!(matches!(said.try_recv(), Ok(Input::Peers(FromPeers::Asked { user: Uid(1), .. }))));
        let login = Login { registry: "r.io".into(), secret: "hidden".into() };
        peers.hear(ToPeers::Login { ask: turn.ask, login: Some(login.clone()) });
        peers.hear(ToPeers::Way { ask: turn.ask, way: ImageWay::Source, note: String::new() });
        assert_eq!(turn.way(), ImageWay::Source);
        assert_eq!(turn.login(), Some(login));
        // What has the login still hears that it is over.
        turn.end(Ok(()));
        drop(turn);
        assert!(matches!(said.try_recv(), Ok(Input::Peers(FromPeers::Done { there: true, .. }))));
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_ended_and_nothing_else() {
        let peers = Arc::new(Peers::new(NodeName::from("gw"), &Uplink::Local("/nonexistent".into())));
        peers.address.set(":1".into()).unwrap();
        let stops = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let [one, other] = stops
            .each_ref()
            .map(|stop| peers.ask(Whose::Run(JobId(1), Attempt(0)), "sha256:1", stop).unwrap());
        peers.hear(ToPeers::Unwanted { ask: one.ask });
        assert!(one.is_stopped() && !other.is_stopped());
    }

    #[test]
    fn the_controllers_machine_is_told_by_the_address_at_which_it_was_reached_and_by_no_end_of_a_tunnel() {
        let of = |reached: Option<&str>, host: &str| {
            host_of_controller(reached.map(|ip| ip.parse().unwrap()), host).unwrap_or_default()
        };
        assert_eq!(of(Some("10.0.0.1"), "head"), "10.0.0.1");
        assert_eq!(of(Some("::ffff:10.0.0.1"), "head"), "10.0.0.1");
        assert_eq!(of(Some("fd00::1"), "[fd00::1]"), "fd00::1");
        for tunnel in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1"] {
            assert_eq!(of(Some(tunnel), "head"), "", "{tunnel}");
            assert_eq!(of(None, tunnel), "", "{tunnel}");
        }
        // Not reached yet.
        assert_eq!((of(None, "head"), of(None, "[fd00::1]")), ("head".into(), "fd00::1".into()));
        assert_eq!(of(None, "localhost"), "");
    }
}
