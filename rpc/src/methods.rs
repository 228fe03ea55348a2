//! The controller's side of each method: the table is asked who may call it, messages become model types and back.

use crate::auth::{Method, Role, allowed};
use crate::error::{malformed, to_status};
use crate::pb;
use crate::raw::{Raw, encoded};
use crate::receiving::{Held, Receiving};
use crate::saying::{LARGEST, Saying, Unheard};
use crate::serve::{AgentConnection, Answers, Caller, Service};
use crate::wire::{Field, Malformed, required};
use berth_model::link::{FromAgent, ToAgent};
use berth_model::record::{JobInfo, NodeInfo};
use berth_model::request::{Actor, Refusal, RefusalCode, Request, Response};
use berth_model::rights::Rank;
use berth_model::spec::JobSelector;
use berth_model::{JobId, NodeName};
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use tonic::body::Body;

/// Messages that may wait for a slow agent before its link is cut; it then comes back and compares notes.
const AGENT_QUEUE: usize = 16_384;

/// What lies between HTTP/2 and the service.
pub(crate) struct Shell<S> {
    pub service: Arc<S>,
    pub receiving: Arc<Receiving>,
    pub saying: Arc<Saying>,
    /// Closed when the server stops.
    pub stopping: watch::Receiver<()>,
}

impl<S> Clone for Shell<S> {
    fn clone(&self) -> Self {
        Shell {
            service: Arc::clone(&self.service),
            receiving: Arc::clone(&self.receiving),
            saying: Arc::clone(&self.saying),
            stopping: self.stopping.clone(),
        }
    }
}

/// The messages of an answer. A short answer is a stream of one, as it is on the wire.
type Outgoing = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send + 'static>>;

fn denied(message: String) -> Status {
    to_status(&Refusal::new(RefusalCode::Denied, message))
}

/// Why a client may not call the method, and who may; `rank`: what it would be on the controller's own machine.
fn refusal(method: Method, role: Role, actor: &Actor, rank: Rank) -> String {
    let name = method.path().rsplit('/').next().unwrap_or_default();
    if role == Role::Inside {
        return format!("{name}: not from inside a job; run it on the host");
    }
    let (whom, needs) = if allowed(method, Role::Operator) {
        ("operators and administrators", Rank::Operator)
    } else {
        ("administrators", Rank::Administrator)
    };
    let user = &actor.identity.user;
    if rank >= needs && actor.rank < needs {
        return format!(
            "{name}: only for {whom} of the cluster, and {user} is none on this machine: its token did not say \
             --administrators; do it on the controller's machine"
        );
    }
    let what = match actor.rank {
        Rank::User => "none",
        Rank::Operator | Rank::Administrator => "an operator",
    };
    format!("{name}: only for {whom} of the cluster, and {user} is {what}")
}

fn one(message: &impl Message) -> Outgoing {
    Box::pin(tokio_stream::once(Ok(encoded(message))))
}

fn answer<T, P>(result: Result<T, Refusal>) -> Result<Outgoing, Status>
where
    T: Field<P>,
    P: Message,
{
    result.map(|value| one(&value.put())).map_err(|refusal| to_status(&refusal))
}

fn done(result: Result<(), Refusal>) -> Result<Outgoing, Status> {
    result.map(|()| one(&pb::Nothing {})).map_err(|refusal| to_status(&refusal))
}

/// Reads a request.
fn read<P: Message + Default>(bytes: Bytes) -> Result<P, Status> {
    P::decode(bytes)
        .map_err(|e| to_status(&Refusal::new(RefusalCode::Invalid, format!("malformed message: {e}"))))
}

/// Converts the pages of a long answer as the caller reads them.
fn outgoing<T, P, F>(result: Result<Answers<T>, Refusal>, convert: F) -> Result<Outgoing, Status>
where
    T: 'static,
    P: Message,
    F: Fn(T) -> P + Send + 'static,
{
    let answers = result.map_err(|refusal| to_status(&refusal))?;
    Ok(Box::pin(answers.map(move |page| match page {
        Ok(page) => Ok(encoded(&convert(page))),
        Err(refusal) => Err(to_status(&refusal)),
    })))
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
    /// Answers a request of HTTP/2: the path says the method, the connection who calls.
    pub fn carry(
        self,
        request: http::Request<Body>,
    ) -> Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>> {
        Box::pin(async move {
            let path = request.uri().path();
            let Some(method) = Method::ALL.iter().copied().find(|method| method.path() == path) else {
                return Ok(Status::unimplemented(format!("there is no method {path}")).into_http());
            };
            let mut grpc = tonic::server::Grpc::new(Raw)
                .max_decoding_message_size(crate::MAX_MESSAGE)
                .max_encoding_message_size(crate::MAX_MESSAGE);
            Ok(match method {
                Method::NodeSession => {
                    let session = |request: tonic::Request<tonic::Streaming<Bytes>>| {
                        let shell = self.clone();
                        async move {
                            let caller = request.extensions().get::<Caller>().cloned();
                            shell.session(caller, request.into_inner()).await.map(tonic::Response::new)
                        }
                    };
                    let mut grpc = grpc.max_decoding_message_size(LARGEST);
                    grpc.streaming(tower::service_fn(session), request).await
                }
                _ => {
                    let call = |request: tonic::Request<tonic::Streaming<Bytes>>| {
                        let shell = self.clone();
                        async move {
                            let caller = request.extensions().get::<Caller>().cloned();
                            if let Some(Caller::NoPlace(why)) = caller {
                                // Nothing is read of it.
                                return Err(to_status(&Refusal::new(RefusalCode::Unavailable, why)));
                            }
                            let said = &mut request.into_inner();
                            let (body, mut held) = shell.receiving.take(caller.as_ref(), said).await?;
                            if method == Method::ClusterCreateStep {
                                // It may wait for its resources for hours, and nothing of this is kept for that.
                                held = Held::default();
                            }
                            let answer = shell.call(method, caller, body).await;
                            drop(held);
                            answer.map(tonic::Response::new)
                        }
                    };
                    // A stream of one message: it is read when there is room for it.
                    grpc.streaming(tower::service_fn(call), request).await
                }
            })
        })
    }

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
    async fn admit(&self, method: Method, caller: Option<Caller>) -> Result<Actor, Status> {
        let (peer, believed, via) = match caller {
            Some(Caller::Client(peer)) => (peer, true, None),
            Some(Caller::Vouched { peer, administrators, by }) => (peer, administrators, Some(by)),
            Some(Caller::Agent(node)) => {
                return Err(denied(format!("{}: not for agents (node {node})", method.path())));
            }
            Some(Caller::NoPlace(why)) => {
                return Err(to_status(&Refusal::new(RefusalCode::Unavailable, why)));
            }
            None => return Err(denied("a connection without identity".to_string())),
        };
        let mut actor = self.service.identify(peer).await.map_err(|refusal| to_status(&refusal))?;
        actor.via = via;
        let rank = actor.rank;
        // A machine whose word is not enough for that speaks for an ordinary user. Coordinators stay what they are: over their jobs
        // they have no more than the jobs' owners, for whom it could speak, too.
        if !believed {
            actor.rank = Rank::User;
        }
        let role = match (peer.job, actor.rank) {
            (Some(_), _) => {
                actor = Actor { inside: peer.job, ..actor.without_role() };
                Role::Inside
            }
            (None, Rank::Administrator) => Role::Administrator,
            (None, Rank::Operator) => Role::Operator,
            (None, Rank::User) => Role::User,
        };
        if !allowed(method, role) {
            return Err(denied(refusal(method, role, &actor, rank)));
        }
        Ok(actor)
    }

    /// Answers one call.
    async fn call(&self, method: Method, caller: Option<Caller>, body: Bytes) -> Result<Outgoing, Status> {
        // Agents may ask, too.
        if method == Method::ClusterPing
            && matches!(caller, Some(Caller::Agent(_)))
            && allowed(method, Role::Agent)
        {
            return done(Ok(()));
        }
        let actor = self.admit(method, caller).await?;
        let reader = (actor.identity.uid, actor.rank);
        match method {
            Method::ClusterPing => done(Ok(())),
            Method::ClusterStatus => answer::<_, pb::StatusReply>(self.service.status().await),
            Method::ClusterGetConfig => answer::<_, pb::Config>(self.service.config().await),
            Method::ClusterShutdown => done(self.service.shutdown(actor).await),
            Method::ClusterReconfigure => done(self.service.reconfigure(actor).await),
            Method::ClusterSubmit => self.change(actor, read(body).map(submission)?).await,
            Method::ClusterCreateStep => self.change(actor, read(body).map(step)?).await,
            Method::ClusterCancel => {
                let request = Field::get(read::<pb::CancelRequest>(body)?).map(Request::Cancel);
                self.change(actor, request).await
            }
            Method::ClusterHold => self.change(actor, selected(body)?.map(Request::Hold)).await,
            Method::ClusterRelease => self.change(actor, selected(body)?.map(Request::Release)).await,
            Method::ClusterRequeue => self.change(actor, selected(body)?.map(Request::Requeue)).await,
            Method::ClusterUpdateNode => self.change(actor, read(body).map(update)?).await,
            Method::ClusterEndAllocation => self.change(actor, read(body).map(end)?).await,
            Method::ClusterPullImage => self.change(actor, read(body).map(pull)?).await,
            Method::ClusterListJobs => {
                let query = Field::get(read::<pb::JobQuery>(body)?).map_err(|e| malformed(&e))?;
                outgoing(self.service.jobs(reader, query).await, move |mut list| {
                    list.hide(|job| !actor.reads(job));
                    let list: pb::JobList = list.put();
                    list
                })
            }
            Method::ClusterListNodes => {
                let wanted: BTreeSet<String> = read::<pb::NodeQuery>(body)?.names.into_iter().collect();
                let nodes = self.service.nodes(reader).await;
                outgoing(nodes, move |mut nodes: Vec<NodeInfo>| {
                    nodes.retain(|node| wanted.is_empty() || wanted.contains(&node.name.0));
                    pb::NodePage { nodes: nodes.put() }
                })
            }
            Method::ClusterListPartitions => {
                let partitions = self.service.partitions().await;
                outgoing(partitions, |list| pb::PartitionPage { partitions: list.put() })
            }
            Method::ClusterAccounting => {
                let query = Field::get(read::<pb::AccountingQuery>(body)?).map_err(|e| malformed(&e))?;
                outgoing(self.service.accounting(reader, query).await, move |mut jobs| {
                    jobs.iter_mut().filter(|job| !actor.reads(job)).for_each(JobInfo::hide);
                    pb::JobPage { jobs: jobs.put() }
                })
            }
            Method::ClusterWatchJob => {
                let job = JobId(read::<pb::WatchRequest>(body)?.job);
                let states = self.service.watch(job).await.map(|states| self.until_stopped(states));
                outgoing(states, move |mut info: JobInfo| {
                    if !actor.reads(&info) {
                        info.hide();
                    }
                    let info: pb::JobInfo = info.put();
                    info
                })
            }
            Method::ClusterHoldLease => {
                let job = JobId(read::<pb::LeaseRequest>(body)?.job);
                let guard = self.service.lease(actor, job).await.map_err(|refusal| to_status(&refusal))?;
                // The stream says something now and then only so that a dead connection is noticed.
                let beats = ticks(Duration::from_secs(5)).map(move |()| {
                    let _held = &guard;
                    Ok(encoded(&pb::LeaseBeat {}))
                });
                Ok(self.until_stopped(beats))
            }
            Method::ClusterEndSeen => {
                let job = JobId(read::<pb::WatchRequest>(body)?.job);
                done(self.service.end_seen(actor, job).await)
            }
            Method::ClusterCreateToken => {
                let token = Field::get(read::<pb::NewToken>(body)?).map_err(|e| malformed(&e))?;
                answer::<Response, pb::Response>(self.service.create_token(actor, token).await)
            }
            Method::ClusterRevokeToken => {
                let pb::TokenName { id } = read(body)?;
                self.change(actor, Ok(Request::RevokeToken { id })).await
            }
            Method::ClusterListTokens => {
                outgoing(self.service.tokens().await, |tokens| pb::TokenPage { tokens: tokens.put() })
            }
            Method::ClusterListMembers => {
                outgoing(self.service.members().await, |members| pb::MemberPage { members: members.put() })
            }
            Method::ClusterApproveMember => {
                let pb::MemberName { name } = read(body)?;
                self.change(actor, Ok(Request::ApproveMember { name: NodeName(name) })).await
            }
            Method::ClusterRemoveMember => {
                let pb::RemoveRequest { name, force } = read(body)?;
                self.change(actor, Ok(Request::RemoveMember { name: NodeName(name), force })).await
            }
            Method::ClusterAudit => {
                let pb::AuditQuery { most } = read(body)?;
                outgoing(self.service.audit(most).await, |entries| pb::AuditPage { entries: entries.put() })
            }
            // The link has a stream of requests, and is carried by itself.
            Method::NodeSession => Err(denied("the agents' link is for agents".to_string())),
        }
    }

    async fn change(&self, actor: Actor, request: Result<Request, Malformed>) -> Result<Outgoing, Status> {
        let request = request.map_err(|e| malformed(&e))?;
        answer::<Response, pb::Response>(self.service.request(actor, request).await)
    }

    /// Opens an agent's link.
    async fn session(
        &self,
        caller: Option<Caller>,
        said: tonic::Streaming<Bytes>,
    ) -> Result<Outgoing, Status> {
        let node = match caller {
            Some(Caller::Agent(node)) if allowed(Method::NodeSession, Role::Agent) => node,
            _ => return Err(denied("the agents' link is for agents".to_string())),
        };
        let (outgoing, to_agent) = mpsc::channel(AGENT_QUEUE);
        let (from_agent, incoming) = mpsc::channel(256);
        tokio::spawn(forward(said, self.saying.of(&node), from_agent));
        let connection = AgentConnection { node, incoming, outgoing };
        self.service.agent(connection).await.map_err(|refusal| to_status(&refusal))?;
        let messages = ReceiverStream::new(to_agent).map(|message: ToAgent| {
            let message: pb::ToAgent = message.put();
            Ok(encoded(&message))
        });
        Ok(self.until_stopped(messages))
    }
}

fn selected(body: Bytes) -> Result<Result<Vec<JobSelector>, Malformed>, Status> {
    Ok(Field::get(read::<pb::Selection>(body)?.jobs))
}

fn submission(r: pb::SubmitRequest) -> Result<Request, Malformed> {
    if !r.components.is_empty() {
        if r.first_step.is_some() {
            return Err(Malformed::new("several components, and a first step"));
        }
        let mut components = vec![(Field::get(r.spec)?, required(r.payload)?)];
        components.extend(r.components.into_iter().map(Field::get).collect::<Result<Vec<_>, Malformed>>()?);
        return Ok(Request::SubmitHet { components, test_only: r.test_only });
    }
    Ok(Request::Submit {
        spec: Field::get(r.spec)?,
        payload: required(r.payload)?,
        first_step: r.first_step.map(|s| Field::get(s).map(Box::new)).transpose()?,
        test_only: r.test_only,
    })
}

fn step(r: pb::CreateStepRequest) -> Result<Request, Malformed> {
    if !r.others.is_empty() {
        let mut parts = vec![(Field::get(r.job)?, required(r.spec)?)];
        parts.extend(r.others.into_iter().map(Field::get).collect::<Result<Vec<_>, Malformed>>()?);
        return Ok(Request::CreateHetStep { parts });
    }
    Ok(Request::CreateStep { job: Field::get(r.job)?, spec: Field::get(r.spec)? })
}

fn pull(r: pb::PullImageRequest) -> Result<Request, Malformed> {
    let (image, nodes) = (Box::new(required(r.image)?), Field::get(r.nodes)?);
    Ok(Request::PullImage { image, nodes, login: Field::get(r.login)? })
}

fn update(r: pb::UpdateNodeRequest) -> Result<Request, Malformed> {
    let nodes = Field::get(r.nodes)?;
    if let Some(pb::RebootRequest { asap, next }) = r.reboot {
        return Ok(Request::RebootNodes { nodes, asap, next: Field::get(next)?, reason: r.reason });
    }
    Ok(Request::UpdateNode { nodes, state: Field::get(r.state)?, reason: r.reason })
}

fn end(r: pb::EndAllocationRequest) -> Result<Request, Malformed> {
    Ok(Request::EndAllocation { job: Field::get(r.job)?, status: required(r.status)? })
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

/// Whether it is a word about images that this version does not know: a newer agent may have more to say of them.
fn is_unknown(message: &pb::FromAgent) -> bool {
    let Some(pb::from_agent::Kind::Peers(peers)) = &message.kind else { return false };
    peers.said.as_ref().is_some_and(|said| said.kind.is_none())
}

/// Converts what an agent says until its link ends or makes no sense; nothing for which there is no room.
async fn forward(
    mut wire: tonic::Streaming<Bytes>,
    room: Arc<Semaphore>,
    to: mpsc::Sender<(FromAgent, Unheard)>,
) {
    while let Ok(Some(message)) = wire.message().await {
        let unheard = Unheard::take(&room, message.len()).await;
        let Ok(message) = pb::FromAgent::decode(message) else { return };
        if is_unknown(&message) {
            continue;
        }
        let Ok(message) = FromAgent::get(message) else { return };
        if to.send((message, unheard)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_message_are_refused_as_invalid() {
        let status = read::<pb::JobQuery>(Bytes::from_static(b"\x0a\xff")).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().starts_with("malformed message: "), "{status}");
    }
}
