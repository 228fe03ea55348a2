//! The controller's side: listeners that prove who calls, and the services behind the authorisation table.

use crate::auth::{Method, Role, allowed};
use crate::error::{malformed, to_status};
use crate::pb;
use crate::pb::cluster_server::{Cluster, ClusterServer};
use crate::pb::node_server::{Node, NodeServer};
use crate::transport::Preface;
use crate::wire::{Field, required};
use berth_model::config::Config;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::listing::JobList;
use berth_model::query::{AccountingQuery, JobQuery, Status as ClusterStatus};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::request::{Actor, Peer, Refusal, RefusalCode, Request, Response};
use berth_model::{JobId, NodeName, Uid};
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;
use tower::ServiceExt;

/// Most records in one message of a long answer.
pub const PAGE: usize = 256;
/// Most connections of one user at a time, root excepted.
const CONNECTIONS: usize = 1024;
/// Messages that may wait for a slow agent before its link is cut; it then comes back and compares notes.
const AGENT_QUEUE: usize = 16_384;

/// Who is at the other end, as proven by the kernel, or as vouched for by an agent on the private socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A client.
    Client(Peer),
    /// An agent.
    Agent(NodeName),
}

/// An agent's open link.
#[derive(Debug)]
pub struct AgentConnection {
    /// The node that it speaks for.
    pub node: NodeName,
    /// What it says; ends when the link does.
    pub incoming: mpsc::Receiver<FromAgent>,
    /// What it is told. Dropping it ends the link.
    pub outgoing: mpsc::Sender<ToAgent>,
}

/// A stream of results.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Refusal>> + Send + 'static>>;

/// What a controller does for its callers. Each call comes with the proven [`Actor`]; methods were checked
/// against the table before.
pub trait Service: Send + Sync + 'static {
    /// Who the peer is: names, groups, and whether an administrator.
    fn identify(&self, peer: Peer) -> impl Future<Output = Result<Actor, Refusal>> + Send;
    /// Anything that may change something. Answers when the change is durable.
    fn request(
        &self,
        actor: Actor,
        request: Request,
    ) -> impl Future<Output = Result<Response, Refusal>> + Send;
    /// Jobs in memory, in pages of [`PAGE`] records at most, waiting ones apart. `reader`: who asks.
    fn jobs(
        &self,
        reader: Uid,
        query: JobQuery,
    ) -> impl Future<Output = Result<Answers<JobList>, Refusal>> + Send;
    /// All nodes, in pages.
    fn nodes(&self, reader: Uid) -> impl Future<Output = Result<Answers<Vec<NodeInfo>>, Refusal>> + Send;
    /// All partitions, in pages.
    fn partitions(&self) -> impl Future<Output = Result<Answers<Vec<PartitionInfo>>, Refusal>> + Send;
    /// Jobs on record.
    fn accounting(
        &self,
        reader: Uid,
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
    fn shutdown(&self) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Takes an agent's link.
    fn agent(&self, connection: AgentConnection) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// The controller's sockets.
#[derive(Debug)]
pub struct Listeners {
    /// Public: everyone may connect and is who the kernel says.
    pub clients: UnixListener,
    /// Private: only root and the controller's own user may connect.
    pub nodes: UnixListener,
}

/// Serves until `shutdown` completes, then lets calls in progress end for at most a second.
pub async fn serve<S: Service>(
    service: Arc<S>,
    listeners: Listeners,
    own_uid: u32,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (accepted, incoming) = mpsc::channel::<io::Result<Proven>>(64);
    let clients = tokio::spawn(accept_clients(listeners.clients, accepted.clone()));
    let nodes = tokio::spawn(accept_nodes(listeners.nodes, own_uid, accepted));
    let (stopping, stop_seen) = watch::channel(());
    let shell = Shell { service, stopping: stop_seen };
    let cluster = ClusterServer::new(shell.clone())
        .max_decoding_message_size(crate::MAX_MESSAGE)
        .max_encoding_message_size(crate::MAX_MESSAGE);
    let node = NodeServer::new(shell)
        .max_decoding_message_size(crate::MAX_MESSAGE)
        .max_encoding_message_size(crate::MAX_MESSAGE);
    let dispatch = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let (cluster, node) = (cluster.clone(), node.clone());
        async move {
            if request.uri().path().starts_with("/berth.v1.Node/") {
                node.oneshot(request).await
            } else {
                cluster.oneshot(request).await
            }
        }
    });
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
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
            drop(stop);
            drop(stopping);
            // Calls that wait for something in the cluster would keep us for ever.
            tokio::time::timeout(Duration::from_secs(1), &mut serving).await.unwrap_or(Ok(()))
        }
    };
    served.map_err(io::Error::other)
}

/// A connection and who is at its other end.
struct Proven {
    stream: UnixStream,
    caller: Caller,
    /// Its place among its user's connections.
    _place: Option<Place>,
}

/// Open connections of each user on the public socket.
type Connections = Arc<Mutex<HashMap<u32, usize>>>;

/// One of them; given back when the connection ends.
struct Place {
    uid: u32,
    of: Connections,
}

impl Place {
    /// `None` when the user has as many as one may have.
    fn take(of: &Connections, uid: u32) -> Option<Place> {
        let mut table = of.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(uid).or_default();
        if *count >= CONNECTIONS && uid != 0 {
            return None;
        }
        *count += 1;
        Some(Place { uid, of: Arc::clone(of) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.remove(&self.uid);
            }
        }
    }
}

async fn accept_clients(listener: UnixListener, accepted: mpsc::Sender<io::Result<Proven>>) {
    let connections = Connections::default();
    loop {
        let Some(stream) = accept(&listener).await else { continue };
        let Ok(cred) = stream.peer_cred() else { continue };
        // One user must not use up the descriptors of all; closing tells the client at once.
        let Some(place) = Place::take(&connections, cred.uid()) else { continue };
        let caller =
            Caller::Client(Peer { uid: Uid(cred.uid()), gid: berth_model::Gid(cred.gid()), job: None });
        if accepted.send(Ok(Proven { stream, caller, _place: Some(place) })).await.is_err() {
            return;
        }
    }
}

async fn accept_nodes(listener: UnixListener, own_uid: u32, accepted: mpsc::Sender<io::Result<Proven>>) {
    loop {
        let Some(mut stream) = accept(&listener).await else { continue };
        let Ok(cred) = stream.peer_cred() else { continue };
        if cred.uid() != 0 && cred.uid() != own_uid {
            continue; // the directory is private; whoever got here anyway learns nothing
        }
        let accepted = accepted.clone();
        tokio::spawn(async move {
            let caller = match Preface::read(&mut stream).await {
                Ok(Preface::Node { node }) => Caller::Agent(node),
                Ok(Preface::Client(peer)) if peer.job.is_some() => Caller::Client(peer),
                // An agent vouches for clients of jobs only; anything else is not the protocol.
                Ok(Preface::Client(_)) | Err(_) => return,
            };
            // An error means that we are stopping.
            let _ = accepted.send(Ok(Proven { stream, caller, _place: None })).await;
        });
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

struct Shell<S> {
    service: Arc<S>,
    /// Closed when the server stops.
    stopping: watch::Receiver<()>,
}

impl<S> Clone for Shell<S> {
    fn clone(&self) -> Self {
        Shell { service: Arc::clone(&self.service), stopping: self.stopping.clone() }
    }
}

type Answer<T> = Result<tonic::Response<T>, tonic::Status>;
type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send + 'static>>;

fn denied(message: String) -> tonic::Status {
    to_status(&Refusal::new(RefusalCode::Denied, message))
}

fn answer<T, P>(result: Result<T, Refusal>) -> Answer<P>
where
    T: Field<P>,
{
    result.map(|value| tonic::Response::new(value.put())).map_err(|refusal| to_status(&refusal))
}

/// Whether all of a job's record is for the caller.
fn owns(actor: &Actor, job: &JobInfo) -> bool {
    actor.administrator || job.identity.uid == actor.identity.uid
}

/// Converts the pages of a long answer as the caller reads them.
fn outgoing<T, P, F>(result: Result<Answers<T>, Refusal>, convert: F) -> Answer<Outgoing<P>>
where
    T: 'static,
    P: Send + 'static,
    F: Fn(T) -> P + Send + 'static,
{
    let answers = result.map_err(|refusal| to_status(&refusal))?;
    let pages = answers.map(move |page| match page {
        Ok(page) => Ok(convert(page)),
        Err(refusal) => Err(to_status(&refusal)),
    });
    Ok(tonic::Response::new(Box::pin(pages)))
}

/// A stream that ends when the server stops, so that its other end looks for the next server.
struct Until<S> {
    stream: S,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<S: Stream + Unpin> Stream for Until<S> {
    type Item = S::Item;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.stream).poll_next(cx)
    }
}

impl<S: Service> Shell<S> {
    fn until_stopped<T: 'static>(
        &self,
        stream: impl Stream<Item = T> + Send + Unpin + 'static,
    ) -> Pin<Box<dyn Stream<Item = T> + Send + 'static>> {
        let mut stopping = self.stopping.clone();
        // Nothing is ever sent: the channel only closes.
        let stopped = Box::pin(async move { while stopping.changed().await.is_ok() {} });
        Box::pin(Until { stream, stopped })
    }

    /// The only way to an [`Actor`]: proves who calls and asks the table.
    async fn admit<T>(&self, method: Method, request: &tonic::Request<T>) -> Result<Actor, tonic::Status> {
        let peer = match request.extensions().get::<Caller>() {
            Some(Caller::Client(peer)) => *peer,
            Some(Caller::Agent(node)) => {
                return Err(denied(format!("{}: not for agents (node {node})", method.path())));
            }
            None => return Err(denied("a connection without identity".to_string())),
        };
        let mut actor = self.service.identify(peer).await.map_err(|refusal| to_status(&refusal))?;
        let role = if peer.job.is_some() {
            actor.administrator = false;
            actor.inside = peer.job;
            Role::Inside
        } else if actor.administrator {
            Role::Administrator
        } else {
            Role::User
        };
        if !allowed(method, role) {
            let name = method.path().rsplit('/').next().unwrap_or_default();
            return Err(denied(match role {
                Role::Inside => format!("{name}: not from inside a job; run it on the host"),
                _ => format!(
                    "{name}: only for administrators of the cluster, and {} is none",
                    actor.identity.user
                ),
            }));
        }
        Ok(actor)
    }

    async fn change<T, P>(
        &self,
        method: Method,
        request: tonic::Request<T>,
        convert: impl FnOnce(T) -> Result<Request, crate::wire::Malformed>,
    ) -> Answer<P>
    where
        Response: Field<P>,
    {
        let actor = self.admit(method, &request).await?;
        let body = convert(request.into_inner()).map_err(|e| malformed(&e))?;
        answer(self.service.request(actor, body).await)
    }
}

#[tonic::async_trait]
impl<S: Service> Cluster for Shell<S> {
    async fn ping(&self, request: tonic::Request<pb::Nothing>) -> Answer<pb::Nothing> {
        // Agents may ask, too.
        if let Some(Caller::Agent(_)) = request.extensions().get::<Caller>()
            && allowed(Method::ClusterPing, Role::Agent)
        {
            return Ok(tonic::Response::new(pb::Nothing {}));
        }
        self.admit(Method::ClusterPing, &request).await?;
        Ok(tonic::Response::new(pb::Nothing {}))
    }

    async fn status(&self, request: tonic::Request<pb::Nothing>) -> Answer<pb::StatusReply> {
        self.admit(Method::ClusterStatus, &request).await?;
        answer(self.service.status().await)
    }

    async fn get_config(&self, request: tonic::Request<pb::Nothing>) -> Answer<pb::Config> {
        self.admit(Method::ClusterGetConfig, &request).await?;
        answer(self.service.config().await)
    }

    async fn shutdown(&self, request: tonic::Request<pb::Nothing>) -> Answer<pb::Nothing> {
        self.admit(Method::ClusterShutdown, &request).await?;
        self.service.shutdown().await.map_err(|refusal| to_status(&refusal))?;
        Ok(tonic::Response::new(pb::Nothing {}))
    }

    async fn submit(&self, request: tonic::Request<pb::SubmitRequest>) -> Answer<pb::Response> {
        self.change(Method::ClusterSubmit, request, |r| {
            Ok(Request::Submit {
                spec: Field::get(r.spec)?,
                payload: required(r.payload)?,
                first_step: r.first_step.map(|s| Field::get(s).map(Box::new)).transpose()?,
                test_only: r.test_only,
            })
        })
        .await
    }

    async fn create_step(&self, request: tonic::Request<pb::CreateStepRequest>) -> Answer<pb::Response> {
        self.change(Method::ClusterCreateStep, request, |r| {
            Ok(Request::CreateStep { job: Field::get(r.job)?, spec: Field::get(r.spec)? })
        })
        .await
    }

    async fn cancel(&self, request: tonic::Request<pb::CancelRequest>) -> Answer<pb::Response> {
        self.change(Method::ClusterCancel, request, |r| Field::get(r).map(Request::Cancel)).await
    }

    async fn hold(&self, request: tonic::Request<pb::Selection>) -> Answer<pb::Response> {
        self.change(Method::ClusterHold, request, |r| Field::get(r.jobs).map(Request::Hold)).await
    }

    async fn release(&self, request: tonic::Request<pb::Selection>) -> Answer<pb::Response> {
        self.change(Method::ClusterRelease, request, |r| Field::get(r.jobs).map(Request::Release)).await
    }

    async fn requeue(&self, request: tonic::Request<pb::Selection>) -> Answer<pb::Response> {
        self.change(Method::ClusterRequeue, request, |r| Field::get(r.jobs).map(Request::Requeue)).await
    }

    async fn update_node(&self, request: tonic::Request<pb::UpdateNodeRequest>) -> Answer<pb::Response> {
        self.change(Method::ClusterUpdateNode, request, |r| {
            Ok(Request::UpdateNode {
                nodes: Field::get(r.nodes)?,
                state: Field::get(r.state)?,
                reason: r.reason,
            })
        })
        .await
    }

    async fn end_allocation(
        &self,
        request: tonic::Request<pb::EndAllocationRequest>,
    ) -> Answer<pb::Response> {
        self.change(Method::ClusterEndAllocation, request, |r| {
            Ok(Request::EndAllocation { job: Field::get(r.job)?, status: required(r.status)? })
        })
        .await
    }

    type ListJobsStream = Outgoing<pb::JobList>;
    async fn list_jobs(&self, request: tonic::Request<pb::JobQuery>) -> Answer<Self::ListJobsStream> {
        let actor = self.admit(Method::ClusterListJobs, &request).await?;
        let query = Field::get(request.into_inner()).map_err(|e| malformed(&e))?;
        outgoing(self.service.jobs(actor.identity.uid, query).await, move |mut list| {
            list.hide(|job| !owns(&actor, job));
            list.put()
        })
    }

    type ListNodesStream = Outgoing<pb::NodePage>;
    async fn list_nodes(&self, request: tonic::Request<pb::Nothing>) -> Answer<Self::ListNodesStream> {
        let reader = self.admit(Method::ClusterListNodes, &request).await?.identity.uid;
        outgoing(self.service.nodes(reader).await, |nodes| pb::NodePage { nodes: nodes.put() })
    }

    type ListPartitionsStream = Outgoing<pb::PartitionPage>;
    async fn list_partitions(
        &self,
        request: tonic::Request<pb::Nothing>,
    ) -> Answer<Self::ListPartitionsStream> {
        self.admit(Method::ClusterListPartitions, &request).await?;
        outgoing(self.service.partitions().await, |list| pb::PartitionPage { partitions: list.put() })
    }

    type AccountingStream = Outgoing<pb::JobPage>;
    async fn accounting(
        &self,
        request: tonic::Request<pb::AccountingQuery>,
    ) -> Answer<Self::AccountingStream> {
        let actor = self.admit(Method::ClusterAccounting, &request).await?;
        let query = Field::get(request.into_inner()).map_err(|e| malformed(&e))?;
        outgoing(self.service.accounting(actor.identity.uid, query).await, move |mut jobs| {
            jobs.iter_mut().filter(|job| !owns(&actor, job)).for_each(JobInfo::hide);
            pb::JobPage { jobs: jobs.put() }
        })
    }

    type WatchJobStream = Outgoing<pb::JobInfo>;
    async fn watch_job(&self, request: tonic::Request<pb::WatchRequest>) -> Answer<Self::WatchJobStream> {
        let actor = self.admit(Method::ClusterWatchJob, &request).await?;
        let job = JobId(request.into_inner().job);
        let states = self.service.watch(job).await.map(|states| self.until_stopped(states));
        outgoing(states, move |mut info: JobInfo| {
            if !owns(&actor, &info) {
                info.hide();
            }
            info.put()
        })
    }

    type HoldLeaseStream = Outgoing<pb::LeaseBeat>;
    async fn hold_lease(&self, request: tonic::Request<pb::LeaseRequest>) -> Answer<Self::HoldLeaseStream> {
        let actor = self.admit(Method::ClusterHoldLease, &request).await?;
        let job = JobId(request.into_inner().job);
        let guard = self.service.lease(actor, job).await.map_err(|refusal| to_status(&refusal))?;
        // The stream says something now and then only so that a dead connection is noticed.
        let beats = ticks(Duration::from_secs(5)).map(move |()| {
            let _held = &guard;
            Ok(pb::LeaseBeat {})
        });
        Ok(tonic::Response::new(self.until_stopped(beats)))
    }

    async fn end_seen(&self, request: tonic::Request<pb::WatchRequest>) -> Answer<pb::Nothing> {
        let actor = self.admit(Method::ClusterEndSeen, &request).await?;
        let job = JobId(request.into_inner().job);
        self.service.end_seen(actor, job).await.map_err(|refusal| to_status(&refusal))?;
        Ok(tonic::Response::new(pb::Nothing {}))
    }
}

/// Ticks at once and then at every period.
fn ticks(period: Duration) -> impl Stream<Item = ()> + Send {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    Ticks { interval }
}

struct Ticks {
    interval: tokio::time::Interval,
}

impl Stream for Ticks {
    type Item = ();
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<()>> {
        self.interval.poll_tick(cx).map(|_| Some(()))
    }
}

#[tonic::async_trait]
impl<S: Service> Node for Shell<S> {
    type SessionStream = Outgoing<pb::ToAgent>;
    async fn session(
        &self,
        request: tonic::Request<tonic::Streaming<pb::FromAgent>>,
    ) -> Answer<Self::SessionStream> {
        let node = match request.extensions().get::<Caller>() {
            Some(Caller::Agent(node)) if allowed(Method::NodeSession, Role::Agent) => node.clone(),
            _ => return Err(denied("the agents' link is for agents".to_string())),
        };
        let (outgoing, to_agent) = mpsc::channel(AGENT_QUEUE);
        let (from_agent, incoming) = mpsc::channel(256);
        tokio::spawn(forward(request.into_inner(), from_agent));
        let connection = AgentConnection { node, incoming, outgoing };
        self.service.agent(connection).await.map_err(|refusal| to_status(&refusal))?;
        let messages = ReceiverStream::new(to_agent).map(|message: ToAgent| Ok(message.put()));
        Ok(tonic::Response::new(self.until_stopped(messages)))
    }
}

/// Converts what an agent says until its link ends or makes no sense.
async fn forward(mut wire: tonic::Streaming<pb::FromAgent>, to: mpsc::Sender<FromAgent>) {
    while let Ok(Some(message)) = wire.message().await {
        let Ok(message) = FromAgent::get(message) else { return };
        if to.send(message).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_a_bounded_number_of_connections() {
        let table = Connections::default();
        let mut places: Vec<Place> = (0..CONNECTIONS).map(|_| Place::take(&table, 1000).unwrap()).collect();
        assert!(Place::take(&table, 1000).is_none());
        assert!(Place::take(&table, 1001).is_some(), "others are not concerned");
        places.pop();
        assert!(Place::take(&table, 1000).is_some());
        places.clear();
        assert!(table.lock().unwrap().is_empty());
    }
}
