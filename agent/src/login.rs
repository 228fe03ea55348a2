//! A login node: it runs no jobs, and speaks to the controller for the users who work on it.
//!
//! Whoever connects to its socket is who the kernel says; the controller hears that from this machine, by a connection with
//! this machine's key, and decides what its word is worth.

use crate::clients::opening;
use crate::dial::ASKED;
use crate::direct::{Descriptors, Direct};
use crate::jobs::listen_at;
use crate::paths::Paths;
use crate::peers::FindIdentity;
use crate::places::Connections;
use crate::start::{AgentError, Shutdown};
use berth_model::ids::{Gid, NodeName, Uid};
use berth_model::request::Peer;
use berth_rpc::{PeerIdentity, Preface, Question, Reply, Uplink, splice};
use berth_stream::asynchronous::write_frame;
use berth_stream::{Frame, FrameError};
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// How often the controller is asked for the configuration, and thereby whether it is there; and how often while it is not.
const ASK: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// How often it is looked whether this machine has another key or certificate.
const LOOK: Duration = Duration::from_secs(2);

/// Takes the configuration, as the controller has it, each time that it is told.
pub type Told = Box<dyn FnMut(serde_json::Value) + Send>;

/// Serves until `shutdown` is done; calls `ready` once it does. `find` tells who this machine is to nodes. What the controller configures is
/// `told` while everything goes on: a new start would cut the connections of those who work here.
///
/// # Errors
/// The socket cannot be made.
pub async fn run(
    (state_dir, node, find): (&Path, NodeName, FindIdentity),
    uplink: Uplink,
    told: Told,
    shutdown: Shutdown,
    ready: fn(),
) -> Result<(), AgentError> {
    let socket = Paths::new(state_dir).login_socket();
    let listener = listen_at(&socket, 0o666).map_err(|source| AgentError::Io {
        what: format!("cannot listen on {}", socket.display()),
        source,
    })?;
    tracing::info!("login node of the cluster at {}", uplink.name());
    let connected = Paths::new(state_dir).connected();
    let _descriptors = Descriptors::take();
    let me = Arc::new(Me::default());
    let shown = Arc::clone(&me);
    let direct = Arc::new(Direct::new(uplink.clone(), Box::new(move || shown.get())));
    ready();
    tokio::select! {
        () = serve(listener, &uplink, direct) => {}
        () = me.keep(state_dir, node, find) => {}
        () = watch(&uplink, &connected, told) => {}
        () = shutdown => {}
    }
    // What is not there is fine.
    let _ = std::fs::remove_file(&connected);
    if let Err(e) = std::fs::remove_file(&socket) {
        tracing::warn!("{}: {e}", socket.display());
    }
    Ok(())
}

/// Notes whether the controller answers, and passes on what it configures, for as long as it is polled.
async fn watch(uplink: &Uplink, connected: &Path, mut told: Told) {
    let mut said = None;
    loop {
        let answer = match uplink.ask(Question::Settings).await {
            Ok(Reply::Settings(settings)) => {
                told(settings);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(e) => Err(e.to_string()),
        };
        if said.as_ref() != Some(&answer) {
            let noted = match &answer {
                Ok(()) => std::fs::write(connected, ""),
                Err(why) => {
                    tracing::info!("{why}; trying again until it answers");
                    match std::fs::remove_file(connected) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                        removed => removed,
                    }
                }
            };
            if let Err(e) = noted {
                tracing::warn!("{}: {e}", connected.display());
            }
        }
        let pause = if answer.is_ok() { ASK } else { RETRY };
        said = Some(answer);
        tokio::time::sleep(pause).await;
    }
}

/// Who this machine is to nodes.
#[derive(Default)]
struct Me(RwLock<Option<Arc<PeerIdentity>>>);

impl Me {
    fn get(&self) -> Option<Arc<PeerIdentity>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows what there is to show, for as long as it is polled.
    async fn keep(&self, state: &Path, node: NodeName, find: FindIdentity) {
        loop {
            let (state, node, before) = (state.to_path_buf(), node.clone(), self.get());
            let found = tokio::task::spawn_blocking(move || find(&state, &node, before.as_deref())).await;
            if let Ok(Some(found)) = found {
                *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(found));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn serve(listener: UnixListener, uplink: &Uplink, direct: Arc<Direct>) {
    let connections = Connections::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Some((stream, place)) = connections.admit(stream) else { continue };
                let (uplink, direct) = (uplink.clone(), Arc::clone(&direct));
                let connections = connections.clone();
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(e) = pass(stream, &uplink, &direct, &connections).await {
                        tracing::debug!("a client's connection: {e}");
                    }
                });
            }
            Err(e) => {
                // Out of descriptors, for one: it passes.
                tracing::warn!("cannot accept a client: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn pass(
    mut stream: UnixStream,
    uplink: &Uplink,
    direct: &Direct,
    connections: &Connections,
) -> Result<(), FrameError> {
    let cred = stream.peer_cred()?;
    let peer = Peer { uid: Uid(cred.uid()), gid: Gid(cred.gid()), job: None };
    match opening(&mut stream).await? {
        Some(Frame::Controller) => {}
        Some(Frame::Node(to)) => {
            let Some(first) = opening(&mut stream).await? else { return Ok(()) };
            return direct.carry(stream, peer, to, first).await;
        }
        Some(Frame::Places(None)) => return write_frame(&mut stream, &connections.most(peer.uid)).await,
        None => return Ok(()),
        Some(_) => {
            let text = "this is a login node: no jobs run here, and nothing is kept for them".to_string();
            return write_frame(&mut stream, &Frame::Refused(text)).await;
        }
    }
    match uplink.open(&Preface::Client(peer)).await {
        Ok(controller) => Ok(splice(stream, controller, ASKED).await?),
        Err(e) => {
            let text = format!("the controller at {}: {e}", uplink.name());
            write_frame(&mut stream, &Frame::Refused(text)).await
        }
    }
}
