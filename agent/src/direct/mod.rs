//! Streams of steps on other nodes, for clients on this machine: straight to the node's own port where that is reached within two
//! seconds, through the controller where not. Which it is nobody notices: what goes over the connection is the same.

mod admitted;

pub(crate) use admitted::Admitted;

use crate::dial::COPIED;
use berth_model::direct::StreamWay;
use berth_model::ids::{NodeName, StepKey};
use berth_model::request::Peer;
use berth_rpc::{Duplex, PeerIdentity, Preface, Uplink, splice};
use berth_stream::asynchronous::write_frame;
use berth_stream::{Frame, FrameError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// How long a node that was not reached counts as not to be reached; the same of a controller that tells no ways.
const AWAY: Duration = Duration::from_secs(60);
/// For how long a way is of use: less than the node expects somebody.
const FRESH: Duration = Duration::from_secs(20);
/// How long the controller may take to tell ways.
const ASKING: Duration = Duration::from_secs(3);
/// Connections that are being made at the same time: a handshake takes the time of a processor, and the others wait for their turn.
const AT_ONCE: usize = 64;
/// Nodes that are remembered as not to be reached.
const MOST_AWAY: usize = 16_384;

/// Who this machine is to others, once it is somebody.
pub(crate) type Me = Box<dyn Fn() -> Option<Arc<PeerIdentity>> + Send + Sync>;

/// Whose ways: of a step, for a client.
type Of = (StepKey, u32, bool);

/// The ways to other nodes.
pub(crate) struct Direct {
    uplink: Uplink,
    me: Me,
    /// The host by which this machine reaches the controller's.
    controller: Option<String>,
    told: Mutex<BTreeMap<Of, Arc<tokio::sync::Mutex<Told>>>>,
    away: Mutex<BTreeMap<NodeName, Instant>>,
    making: Semaphore,
    /// When the controller told no ways: it is of a version that knows none, or away.
    silent: Mutex<Option<Instant>>,
}

/// What the controller told of a step's nodes, all at once, when the first of them was asked for.
struct Told {
    at: Instant,
    ways: Option<BTreeMap<NodeName, StreamWay>>,
}

/// Room for as many connections as this machine allows: two for each node of a step. What is forked for jobs was forked before, and has
/// the limits that were there; they are there again when this is dropped, for an agent that becomes another one.
pub(crate) struct Descriptors(Rlimit);

impl Descriptors {
    pub(crate) fn take() -> Descriptors {
        let limit = getrlimit(Resource::Nofile);
        // As it is, then: who finds no descriptor waits.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
        Descriptors(limit)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        let maximum = self.0.maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: self.0.current, maximum });
    }
}

/// The step that a client wants to be connected to.
pub(crate) fn step_of(first: &Frame) -> Option<StepKey> {
    match first {
        Frame::Attach(attach) => Some(attach.key()),
        Frame::Watch(watch) => Some(watch.step.key()),
        _ => None,
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Direct {
    pub(crate) fn new(uplink: Uplink, me: Me) -> Direct {
        let controller = match &uplink {
            Uplink::Local(_) => None,
            Uplink::Remote(_) => uplink.name().rsplit_once(':').map(|(host, _)| host.to_string()),
        };
        let (told, away, silent) = (Mutex::default(), Mutex::default(), Mutex::default());
        Direct { uplink, me, controller, told, away, making: Semaphore::new(AT_ONCE), silent }
    }

    /// Connects a client, whose first frame is read, with another node, until the connection is over.
    ///
    /// # Errors
    /// It broke.
    pub(crate) async fn carry(
        &self,
        mut client: UnixStream,
        peer: Peer,
        to: NodeName,
        first: Frame,
    ) -> Result<(), FrameError> {
        let straight = match step_of(&first) {
            Some(step) => self.straight(peer, step, &to).await,
            None => None,
        };
        let mut wire = match straight {
            Some(wire) => wire,
            None => match self.uplink.open(&Preface::Stream { to, peer }).await {
                Ok(wire) => wire,
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    let text = format!("the controller at {}: {e}", self.uplink.name());
                    return write_frame(&mut client, &Frame::Refused(text)).await;
                }
                Err(e) => {
                    // It passes: who sees a connection that is closed tries again for as long as the step runs.
                    tracing::debug!("no stream: {e}");
                    return Ok(());
                }
            },
        };
        write_frame(&mut wire, &first).await?;
        wire.flush().await?;
        Ok(splice(client, wire, COPIED).await?)
    }

    /// A connection to the node's own port; nothing where the way through the controller is to be taken.
    async fn straight(&self, peer: Peer, step: StepKey, to: &NodeName) -> Option<Duplex> {
        let me = (self.me)()?;
        if lock(&self.away).get(to).is_some_and(|since| since.elapsed() < AWAY) {
            return None;
        }
        let way = self.way(&me, peer, step, to).await?;
        let opened = {
            // It is never closed.
            let _turn = self.making.acquire().await.ok()?;
            me.open_stream(&way, self.controller.as_deref()).await
        };
        match opened {
            Ok(wire) => Some(wire),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                tracing::info!(
                    "{to} does not take a stream of step {step}: {e}; it goes through the controller"
                );
                None
            }
            Err(e) => {
                tracing::info!(
                    "{to} is not reached for streams: {e}; for {} s they go through the controller",
                    AWAY.as_secs()
                );
                let mut away = lock(&self.away);
                away.retain(|_, since| since.elapsed() < AWAY);
                if away.len() < MOST_AWAY {
                    away.insert(to.clone(), Instant::now());
                }
                None
            }
        }
    }

    /// The way to a node, good for one connection.
    async fn way(&self, me: &PeerIdentity, peer: Peer, step: StepKey, to: &NodeName) -> Option<StreamWay> {
        let of = (step, peer.uid.0, peer.job.is_some());
        let slot = {
            let mut told = lock(&self.told);
            told.retain(|_, slot| slot.try_lock().map_or(true, |told| told.at.elapsed() < FRESH));
            let empty = || Arc::new(tokio::sync::Mutex::new(Told { at: Instant::now(), ways: None }));
            Arc::clone(told.entry(of).or_insert_with(empty))
        };
        {
            // One question for all nodes, however many connections wait for its answer.
            let mut told = slot.lock().await;
            if told.ways.is_none() {
                let ways = self.ask(me, peer, step, None).await;
                *told = Told {
                    at: Instant::now(),
                    ways: Some(ways.into_iter().map(|way| (way.node.clone(), way)).collect()),
                };
            }
            let fresh = told.at.elapsed() < FRESH;
            if let Some(way) = told.ways.as_mut().and_then(|ways| ways.remove(to)).filter(|_| fresh) {
                return Some(way);
            }
        }
        // Used, or too old: a connection that broke is made again.
        self.ask(me, peer, step, Some(to.clone())).await.pop()
    }

    async fn ask(
        &self,
        me: &PeerIdentity,
        peer: Peer,
        step: StepKey,
        only: Option<NodeName>,
    ) -> Vec<StreamWay> {
        if lock(&self.silent).is_some_and(|since| since.elapsed() < AWAY) {
            return Vec::new();
        }
        let preface = Preface::Ways { ways: step, peer, only, key: me.key().to_string() };
        let asked = tokio::time::timeout(ASKING, self.uplink.ways(&preface)).await;
        match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(ways) => ways,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                tracing::debug!("no way to the nodes of step {step}: {e}");
                Vec::new()
            }
            Err(e) => {
                tracing::debug!("the controller tells no ways to nodes: {e}");
                *lock(&self.silent) = Some(Instant::now());
                Vec::new()
            }
        }
    }
}
