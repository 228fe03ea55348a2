//! The controller's side: what it does for callers, and the listeners that prove who calls.

use crate::duplex::Duplex;
use crate::machines::{self, MachineListener};
use crate::methods::Shell;
use crate::places::{Place, Places, one_users_part};
use crate::preface::{Preface, Question, Reply};
use crate::saying::Unheard;
use berth_model::config::Config;
use berth_model::direct::StreamWay;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::listing::JobList;
use berth_model::member::{AuditInfo, KeyId, MemberInfo, NewToken, TokenInfo};
use berth_model::query::{AccountingQuery, JobQuery, Status as ClusterStatus};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::request::{Actor, Peer, Refusal, Request, Response};
use berth_model::rights::Rank;
use berth_model::{JobId, NodeName, StepKey, Uid};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Most records in one message of a long answer.
pub const PAGE: usize = 256;
/// Most connections of one user at a time, root excepted.
const CONNECTIONS: usize = 1024;
/// How many at a time are told that there is no place for them; others find the connection closed.
const TOLD: usize = 32;
/// How long one that is told may take.
const TELLING: Duration = Duration::from_secs(1);

/// Who is at the other end, as proven by the kernel, or as vouched for by an agent on the private socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A client.
    Client(Peer),
    /// A client on another machine, for whom that machine speaks.
    Vouched {
        /// Who it is, in that machine's words.
        peer: Peer,
        /// Whether the machine's word is enough for operators and administrators.
        administrators: bool,
        /// That machine.
        by: NodeName,
    },
    /// An agent.
    Agent(NodeName),
    /// Somebody who has too many connections: each call is answered by this, and the connection ends soon.
    NoPlace(String),
}

/// An agent's open link.
#[derive(Debug)]
pub struct AgentConnection {
    /// The node that it speaks for.
    pub node: NodeName,
    /// What it says, and with each its part of what may wait of it; ends when the link does.
    pub incoming: mpsc::Receiver<(FromAgent, Unheard)>,
    /// What it is told. Dropping it ends the link.
    pub outgoing: mpsc::Sender<ToAgent>,
}

/// A stream of results.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Refusal>> + Send + 'static>>;

/// What a controller does for its callers. Each call comes with the proven [`Actor`]; methods were checked
/// against the table before.
pub trait Service: Send + Sync + 'static {
    /// Who the peer is: names, groups and roles.
    fn identify(&self, peer: Peer) -> impl Future<Output = Result<Actor, Refusal>> + Send;
    /// Anything that may change something. Answers when the change is durable.
    fn request(
        &self,
        actor: Actor,
        request: Request,
    ) -> impl Future<Output = Result<Response, Refusal>> + Send;
    /// Jobs in memory, in pages of [`PAGE`] records at most, waiting ones apart. `reader`: who asks, and as what.
    fn jobs(
        &self,
        reader: (Uid, Rank),
        query: JobQuery,
    ) -> impl Future<Output = Result<Answers<JobList>, Refusal>> + Send;
    /// All nodes, in pages.
    fn nodes(
        &self,
        reader: (Uid, Rank),
    ) -> impl Future<Output = Result<Answers<Vec<NodeInfo>>, Refusal>> + Send;
    /// All partitions, in pages.
    fn partitions(&self) -> impl Future<Output = Result<Answers<Vec<PartitionInfo>>, Refusal>> + Send;
    /// Jobs on record.
    fn accounting(
        &self,
        reader: (Uid, Rank),
        query: AccountingQuery,
    ) -> impl Future<Output = Result<Answers<Vec<JobInfo>>, Refusal>> + Send;
    /// A job's states, from now on.
    fn watch(&self, job: JobId) -> impl Future<Output = Result<Answers<JobInfo>, Refusal>> + Send;
    /// Takes note that a client drives a job. Dropping the answer means that it is gone.
    fn lease(
        &self,
        actor: Actor,
        job: JobId,
    ) -> impl Future<Output = Result<Box<dyn Send + Sync>, Refusal>> + Send;
    /// The actor has seen the end of its job: what the same user asks next finds it on record.
    fn end_seen(&self, actor: Actor, job: JobId) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// The configuration in force.
    fn config(&self) -> impl Future<Output = Result<Config, Refusal>> + Send;
    /// About the controller.
    fn status(&self) -> impl Future<Output = Result<ClusterStatus, Refusal>> + Send;
    /// Begins to stop.
    fn shutdown(&self, actor: Actor) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Reads the configuration again and puts it in force.
    fn reconfigure(&self, actor: Actor) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Makes a token with a new secret; answers [`Response::TokenCreated`].
    fn create_token(
        &self,
        actor: Actor,
        token: NewToken,
    ) -> impl Future<Output = Result<Response, Refusal>> + Send;
    /// All tokens, in pages.
    fn tokens(&self) -> impl Future<Output = Result<Answers<Vec<TokenInfo>>, Refusal>> + Send;
    /// All members, in pages.
    fn members(&self) -> impl Future<Output = Result<Answers<Vec<MemberInfo>>, Refusal>> + Send;
    /// The last `most` entries of the audit log, or all, oldest first, in pages.
    fn audit(
        &self,
        most: Option<u32>,
    ) -> impl Future<Output = Result<Answers<Vec<AuditInfo>>, Refusal>> + Send;
    /// Takes an agent's link.
    fn agent(&self, connection: AgentConnection) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// The machine that has this key.
    fn member(&self, key: &KeyId) -> Option<MemberInfo>;
    /// A machine of the cluster shows a certificate that is good until then.
    fn shows(&self, _key: &KeyId, _until: SystemTime) {}
    /// The agent of a node has come with a certificate of the cluster's, and with a key that no machine in its books has.
    fn unknown(&self, node: NodeName, key: KeyId, from: SocketAddr);
    /// Resolves, in whichever way, when the key is no member's any more; at most a second later.
    fn until_removed(&self, key: &KeyId) -> oneshot::Receiver<()>;
    /// Whether a machine may speak for this client.
    fn vouched(&self, member: &MemberInfo, peer: Peer) -> Result<(), Refusal>;
    /// The time.
    fn clock(&self) -> Reply;
    /// What a machine asks, by the key that it has proven to have; `member`: as whom.
    fn question(
        &self,
        key: KeyId,
        member: Option<MemberInfo>,
        from: SocketAddr,
        question: Question,
    ) -> impl Future<Output = Result<Reply, Refusal>> + Send;
    /// How nodes of a step are reached without the controller by the machine with this key, for this client, whom it may speak
    /// for: the nodes expect one connection each from then on.
    fn ways(
        &self,
        key: String,
        peer: Peer,
        step: StepKey,
        only: Option<NodeName>,
    ) -> impl Future<Output = Result<Vec<StreamWay>, Refusal>> + Send;
    /// Connects somebody with a node's agent; comes back when the connection is over.
    fn stream(&self, peer: Peer, to: NodeName, wire: Duplex) -> impl Future<Output = ()> + Send;
    /// The connection that this machine's own agent was asked for.
    fn answered_here(&self, number: u64, wire: Duplex);
    /// The connection that a node was asked for.
    fn answered(&self, node: NodeName, number: u64, wire: Duplex, gone: oneshot::Receiver<()>);
    /// A connection that came to nothing, for the log.
    fn turned_away(&self, from: SocketAddr, why: &str);
}

/// The controller's sockets.
#[derive(Debug)]
pub struct Listeners {
    /// Public: everyone may connect and is who the kernel says.
    pub clients: UnixListener,
    /// Private: only root and the controller's own user may connect.
    pub nodes: UnixListener,
    /// For other machines, once there is to be one.
    pub machines: watch::Receiver<Option<Arc<MachineListener>>>,
}

/// Serves until `shutdown` completes, then lets calls in progress end for at most a second.
pub async fn serve<S: Service>(
    service: Arc<S>,
    listeners: Listeners,
    own_uid: u32,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (accepted, incoming) = mpsc::channel::<io::Result<Proven>>(64);
    let told = Told::new();
    let clients = tokio::spawn(accept_clients(listeners.clients, told.clone(), accepted.clone()));
    let vouched = Places::default();
    let nodes = tokio::spawn(accept_nodes(
        (listeners.nodes, own_uid),
        Arc::clone(&service),
        (vouched.clone(), told),
        accepted.clone(),
    ));
    let machines = tokio::spawn(accept_machines(listeners.machines, Arc::clone(&service), vouched, accepted));
    let (stopping, stop_seen) = watch::channel(());
    let shell = Shell { service, receiving: Arc::default(), saying: Arc::default(), stopping: stop_seen };
    let dispatch =
        tower::service_fn(move |request: http::Request<tonic::body::Body>| shell.clone().carry(request));
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(2 << 20)
        .max_concurrent_streams(4096);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = server.serve_with_incoming_shutdown(dispatch, ReceiverStream::new(incoming), async {
        // An error means that the sender is gone, which is a stop as well.
        let _ = stopped.await;
    });
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = shutdown => {
            clients.abort();
            nodes.abort();
            machines.abort();
            drop(stop);
            drop(stopping);
            // Calls that wait for something in the cluster would keep us for ever.
            tokio::time::timeout(Duration::from_secs(1), &mut serving).await.unwrap_or(Ok(()))
        }
    };
    served.map_err(io::Error::other)
}

/// A connection and who is at its other end.
pub(crate) struct Proven {
    stream: Duplex,
    caller: Caller,
    /// Its place among its user's connections.
    _place: Option<Place>,
    /// Resolves when the machine at the other end is none of the cluster's any more, or has been told that there is no place.
    gone: Option<oneshot::Receiver<()>>,
}

impl Proven {
    /// One from another machine.
    pub(crate) fn remote(
        stream: Duplex,
        caller: Caller,
        place: Option<Place>,
        gone: oneshot::Receiver<()>,
    ) -> Proven {
        Proven { stream, caller, _place: place, gone: Some(gone) }
    }

    /// Ends the connection of a machine that was removed.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.gone.as_mut().is_some_and(|gone| Pin::new(gone).poll(cx).is_ready()) {
            self.gone = None;
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the machine was removed from the cluster, or there was no place for the connection",
            ));
        }
        Ok(())
    }
}

/// A place for somebody who comes by another machine, or from inside a job: there may be more of these than on the public socket,
/// since each of a user's jobs has a few.
///
/// # Errors
/// What to tell them.
pub(crate) fn vouched_place(of: &Places, uid: Uid) -> Result<Place, String> {
    let most = one_users_part().max(CONNECTIONS);
    place(of, uid, most).ok_or_else(|| too_many(uid, most))
}

fn too_many(uid: Uid, most: usize) -> String {
    format!(
        "uid {uid} has {most} connections to the controller, as many as one user may have: end some first"
    )
}

/// Those for whom there is no place, for as long as it takes to tell them so.
#[derive(Clone)]
struct Told(Arc<Semaphore>);

impl Told {
    fn new() -> Told {
        Told(Arc::new(Semaphore::new(TOLD)))
    }

    /// A connection that hears why and nothing else. None where many do already: it is closed.
    fn why(&self, stream: UnixStream, why: String) -> Option<Proven> {
        let one = Arc::clone(&self.0).try_acquire_owned().ok()?;
        let (end, gone) = oneshot::channel();
        tokio::spawn(async move {
            tokio::time::sleep(TELLING).await;
            drop((end, one));
        });
        Some(Proven { stream: stream.into(), caller: Caller::NoPlace(why), _place: None, gone: Some(gone) })
    }
}

/// Root's connections are not counted out.
fn place(of: &Places, uid: Uid, most: usize) -> Option<Place> {
    of.take(uid, if uid.0 == 0 { usize::MAX } else { most })
}

async fn accept_clients(listener: UnixListener, told: Told, accepted: mpsc::Sender<io::Result<Proven>>) {
    let connections = Places::default();
    loop {
        let Some(stream) = accept(&listener).await else { continue };
        let Ok(cred) = stream.peer_cred() else { continue };
        let uid = Uid(cred.uid());
        // One user must not use up the descriptors of all.
        let proven = match place(&connections, uid, CONNECTIONS) {
            Some(place) => {
                let caller = Caller::Client(Peer { uid, gid: berth_model::Gid(cred.gid()), job: None });
                Some(Proven { stream: stream.into(), caller, _place: Some(place), gone: None })
            }
            None => told.why(stream, too_many(uid, CONNECTIONS)),
        };
        let Some(proven) = proven else { continue };
        if accepted.send(Ok(proven)).await.is_err() {
            return;
        }
    }
}

async fn accept_nodes<S: Service>(
    (listener, own_uid): (UnixListener, u32),
    service: Arc<S>,
    (vouched, told): (Places, Told),
    accepted: mpsc::Sender<io::Result<Proven>>,
) {
    loop {
        let Some(mut stream) = accept(&listener).await else { continue };
        let Ok(cred) = stream.peer_cred() else { continue };
        if cred.uid() != 0 && cred.uid() != own_uid {
            continue; // the directory is private; whoever got here anyway learns nothing
        }
        let (service, vouched, accepted) = (Arc::clone(&service), vouched.clone(), accepted.clone());
        let told = told.clone();
        tokio::spawn(async move {
            let mut place = None;
            let caller = match Preface::read(&mut stream).await {
                Ok(Preface::Node { node }) => Caller::Agent(node),
                Ok(Preface::Client(peer)) if peer.job.is_some() => {
                    match vouched_place(&vouched, peer.uid) {
                        Ok(taken) => place = Some(taken),
                        Err(why) => {
                            if let Some(proven) = told.why(stream, why) {
                                // An error means that we are stopping.
                                let _ = accepted.send(Ok(proven)).await;
                            }
                            return;
                        }
                    }
                    Caller::Client(peer)
                }
                // Everything on this machine that may connect here is the cluster's own.
                Ok(Preface::Stream { to, peer }) => return service.stream(peer, to, stream.into()).await,
                Ok(Preface::Ways { ways, peer, only, key }) => {
                    let reply = match service.ways(key, peer, ways, only).await {
                        Ok(ways) => Reply::Ways(ways),
                        Err(refusal) => Reply::Refused(refusal.message),
                    };
                    // Who does not listen any more needs nothing.
                    let _ = reply.write(&mut stream).await;
                    return;
                }
                Ok(Preface::Answer { answer }) => {
                    return service.answered_here(answer, stream.into());
                }
                // An agent vouches for clients of jobs only; anything else is not the protocol.
                Ok(Preface::Client(_) | Preface::Question { .. }) | Err(_) => return,
            };
            // An error means that we are stopping.
            let _ =
                accepted.send(Ok(Proven { stream: stream.into(), caller, _place: place, gone: None })).await;
        });
    }
}

/// Waits until there is a port for machines, and takes their connections.
async fn accept_machines<S: Service>(
    mut port: watch::Receiver<Option<Arc<MachineListener>>>,
    service: Arc<S>,
    vouched: Places,
    accepted: mpsc::Sender<io::Result<Proven>>,
) {
    let port = match port.wait_for(Option::is_some).await {
        Ok(port) => port.clone(),
        Err(_) => return, // there will be none
    };
    if let Some(port) = port {
        machines::accept(port, service, vouched, accepted).await;
    }
}

async fn accept(listener: &UnixListener) -> Option<UnixStream> {
    match listener.accept().await {
        Ok((stream, _)) => Some(stream),
        Err(_) => {
            // Out of descriptors or memory: connections wait in the backlog until some are closed.
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

impl Connected for Proven {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Proven {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Proven {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_a_bounded_number_of_connections_and_root_has_not() {
        let places = Places::default();
        let take = |uid| place(&places, Uid(uid), CONNECTIONS);
        let all: Vec<Place> = (0..CONNECTIONS).map(|_| take(1000).unwrap()).collect();
        assert!(take(1000).is_none());
        let roots: Vec<Option<Place>> = (0..=CONNECTIONS).map(|_| take(0)).collect();
        assert!(roots.iter().all(Option::is_some));
        assert!(vouched_place(&places, Uid(1001)).is_ok(), "who comes by others has as many, or more");
        drop(all);
        assert!(take(1000).is_some());
    }
}
