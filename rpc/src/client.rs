//! The clients' side: one async method for each thing that can be asked.

use crate::auth::Method;
use crate::error::RpcError;
use crate::pb;
use crate::raw::{Raw, encoded};
use crate::retry::Backoff;
use crate::transport::Endpoint;
use crate::wire::{Field, Malformed};
use berth_model::JobId;
use berth_model::config::Config;
use berth_model::listing::JobList;
use berth_model::login::SealedLogin;
use berth_model::member::{AuditInfo, MemberInfo, NewToken, TokenInfo};
use berth_model::query::{AccountingQuery, JobQuery, Status};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::request::{CancelRequest, NodeStateChange, Payload, Refusal, RefusalCode, Response};
use berth_model::spec::{JobSelector, JobSpec, ResolvedImage, StepSpec};
use berth_model::state::{ExitStatus, NextState};
use berth_model::{NodeName, StepId};
use bytes::Bytes;
use prost::Message;
use std::pin::Pin;
use std::time::{Duration, Instant};
use tonic::Streaming;
use tonic::transport::Channel;

/// A call under way. It is boxed here, so that what lies beneath it is compiled in this package alone and not once more
/// in each one that awaits it.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, RpcError>> + Send + 'a>>;

/// A connection to the controller. Cheap to clone; clones share the connection, which comes back by itself
/// when the controller does.
#[derive(Debug, Clone)]
pub struct Client {
    grpc: tonic::client::Grpc<Channel>,
}

/// The request's bytes. Refuses here what the other side would not read: on the way, the error would lose its meaning.
fn sized(request: &impl Message) -> Result<Bytes, RpcError> {
    match request.encoded_len() {
        n if n <= crate::MAX_MESSAGE => Ok(encoded(request)),
        n => Err(RpcError::Refused(Refusal::new(
            RefusalCode::Invalid,
            format!(
                "the request is too large: {n} bytes of at most {}; make the script or the environment smaller",
                crate::MAX_MESSAGE
            ),
        ))),
    }
}

/// The next message of a long answer; `None` at its end.
pub(crate) async fn message<P: Message + Default>(
    from: &mut Streaming<Bytes>,
) -> Result<Option<P>, RpcError> {
    let next = from.message().await.map_err(|status| RpcError::from_status(&status))?;
    Ok(next.map(P::decode).transpose()?)
}

impl Client {
    /// Connects; an error tells what to do.
    pub fn connect(endpoint: &Endpoint) -> Call<'_, Client> {
        Box::pin(async {
            let grpc = tonic::client::Grpc::new(endpoint.channel().await?)
                .max_decoding_message_size(crate::MAX_MESSAGE)
                .max_encoding_message_size(usize::MAX); // see `sized`
            Ok(Client { grpc })
        })
    }

    /// Connects, and tries again until `patience` is over if the controller is away.
    pub fn connect_patiently(endpoint: &Endpoint, patience: Duration) -> Call<'_, Client> {
        Box::pin(async move {
            let begun = Instant::now();
            let mut backoff = Backoff::new();
            loop {
                match Client::connect(endpoint).await {
                    Err(e) if e.is_transient() && begun.elapsed() < patience => backoff.wait().await,
                    done => return done,
                }
            }
        })
    }

    /// Repeats a call until it gets an answer, for as long as the controller is away and `patience` lasts
    /// (`None`: for ever). Only for calls that may run twice: reads, and submissions, which carry their id.
    pub async fn persist<T, F, Fut>(&self, patience: Option<Duration>, call: F) -> Result<T, RpcError>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, RpcError>>,
    {
        self.persist_telling(patience, call, |_| {}).await
    }

    /// As [`Client::persist`]; `waits` hears why, once, when it takes longer than a second.
    pub async fn persist_telling<T, F, Fut>(
        &self,
        patience: Option<Duration>,
        call: F,
        waits: impl Fn(&RpcError),
    ) -> Result<T, RpcError>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, RpcError>>,
    {
        let begun = Instant::now();
        let mut backoff = Backoff::new();
        let mut told = false;
        loop {
            match call(self.clone()).await {
                Err(e) if e.is_transient() && patience.is_none_or(|p| begun.elapsed() < p) => {
                    if !told && begun.elapsed() > Duration::from_secs(1) {
                        told = true;
                        waits(&e);
                    }
                    backoff.wait().await;
                }
                done => return done,
            }
        }
    }

    /// Opens a call. Short answers are streams of one message.
    async fn open(&self, method: Method, request: Bytes) -> Result<Streaming<Bytes>, RpcError> {
        let mut grpc = self.grpc.clone();
        ready(&mut grpc).await?;
        let answer = grpc.server_streaming(tonic::Request::new(request), path(method), Raw).await;
        answer.map(tonic::Response::into_inner).map_err(|status| RpcError::from_status(&status))
    }

    /// A call with a short answer, as it came.
    async fn short(&self, method: Method, request: Bytes) -> Result<Bytes, RpcError> {
        let mut grpc = self.grpc.clone();
        ready(&mut grpc).await?;
        let answer = grpc.unary(tonic::Request::new(request), path(method), Raw).await;
        answer.map(tonic::Response::into_inner).map_err(|status| RpcError::from_status(&status))
    }

    /// A call with a short answer.
    fn ask<P, T>(&self, method: Method, request: &impl Message) -> Call<'_, T>
    where
        P: Message + Default,
        T: Field<P>,
    {
        let request = sized(request);
        Box::pin(async move { Ok(T::get(P::decode(self.short(method, request?).await?)?)?) })
    }

    /// A call whose answer is that it was done.
    fn tell(&self, method: Method, request: &impl Message) -> Call<'_, ()> {
        let request = sized(request);
        Box::pin(async move { self.short(method, request?).await.map(drop) })
    }

    /// All pages of a long answer.
    fn collect<P, T>(
        &self,
        method: Method,
        request: &impl Message,
        page: fn(P) -> Result<Vec<T>, Malformed>,
    ) -> Call<'_, Vec<T>>
    where
        P: Message + Default + 'static,
        T: Send + 'static,
    {
        let request = sized(request);
        Box::pin(async move {
            let mut pages = self.open(method, request?).await?;
            let mut all = Vec::new();
            while let Some(next) = message(&mut pages).await? {
                all.append(&mut page(next)?);
            }
            Ok(all)
        })
    }

    /// Is anyone there?
    pub fn ping(&self) -> Call<'_, ()> {
        self.tell(Method::ClusterPing, &pb::Nothing {})
    }

    /// The controller and its agents.
    pub fn status(&self) -> Call<'_, Status> {
        self.ask::<pb::StatusReply, _>(Method::ClusterStatus, &pb::Nothing {})
    }

    /// The configuration in force.
    pub fn config(&self) -> Call<'_, Config> {
        self.ask::<pb::Config, _>(Method::ClusterGetConfig, &pb::Nothing {})
    }

    /// Stops the controller; steps run on. For administrators.
    pub fn shutdown(&self) -> Call<'_, ()> {
        self.tell(Method::ClusterShutdown, &pb::Nothing {})
    }

    /// Has the controller read its configuration again and put it in force. For administrators.
    pub fn reconfigure(&self) -> Call<'_, ()> {
        self.tell(Method::ClusterReconfigure, &pb::Nothing {})
    }

    /// Submits a job, with its first step where one commit should hold both. Answers
    /// [`Response::Submitted`], or [`Response::WouldStart`] for `test_only`.
    pub fn submit(
        &self,
        spec: &JobSpec,
        payload: &Payload,
        first_step: Option<&StepSpec>,
        test_only: bool,
    ) -> Call<'_, Response> {
        let request = pb::SubmitRequest {
            spec: Some(spec.put()),
            payload: Some(payload.put()),
            first_step: first_step.map(Field::put),
            test_only,
            components: Vec::new(),
        };
        self.change(Method::ClusterSubmit, &request)
    }

    /// Submits a job of several components, the first of which is the leader; answered as [`Client::submit`] is.
    pub fn submit_het(&self, components: &[(JobSpec, Payload)], test_only: bool) -> Call<'_, Response> {
        let mut all = components.iter();
        let first = all.next();
        let request = pb::SubmitRequest {
            spec: first.map(|(spec, _)| spec.put()),
            payload: first.map(|(_, payload)| payload.put()),
            first_step: None,
            test_only,
            components: all.map(Field::put).collect(),
        };
        self.change(Method::ClusterSubmit, &request)
    }

    /// Makes one step in several components of a job; answers [`Response::HetStepCreated`] when all of them have the
    /// resources. There are at least two.
    pub fn create_het_step(&self, parts: &[(JobId, StepSpec)]) -> Call<'_, Response> {
        let mut all = parts.iter();
        let first = all.next();
        let request = pb::CreateStepRequest {
            job: first.map(|(job, _)| job.put()).unwrap_or_default(),
            spec: first.map(|(_, spec)| spec.put()),
            others: all.map(Field::put).collect(),
        };
        self.change(Method::ClusterCreateStep, &request)
    }

    /// Makes a step in an allocation; answers [`Response::StepCreated`] when it has its resources.
    pub fn create_step(&self, job: JobId, spec: &StepSpec) -> Call<'_, Response> {
        let request = pb::CreateStepRequest { job: job.put(), spec: Some(spec.put()), others: Vec::new() };
        self.change(Method::ClusterCreateStep, &request)
    }

    /// Ends or signals jobs; answers [`Response::Acted`].
    pub fn cancel(&self, request: &CancelRequest) -> Call<'_, Response> {
        let request: pb::CancelRequest = request.put();
        self.change(Method::ClusterCancel, &request)
    }

    /// Ends one job or one step of it.
    pub fn cancel_one(&self, job: JobId, step: Option<StepId>) -> Call<'_, Response> {
        let jobs = vec![(JobSelector::Job(job), step)];
        self.cancel(&CancelRequest { jobs, ..CancelRequest::default() })
    }

    /// Holds waiting jobs; answers [`Response::Acted`].
    pub fn hold(&self, jobs: &[JobSelector]) -> Call<'_, Response> {
        self.change(Method::ClusterHold, &selection(jobs))
    }

    /// Releases held jobs; answers [`Response::Acted`].
    pub fn release(&self, jobs: &[JobSelector]) -> Call<'_, Response> {
        self.change(Method::ClusterRelease, &selection(jobs))
    }

    /// Puts running or finished batch jobs back into the queue; answers [`Response::Acted`].
    pub fn requeue(&self, jobs: &[JobSelector]) -> Call<'_, Response> {
        self.change(Method::ClusterRequeue, &selection(jobs))
    }

    /// Changes what nodes do. For operators and administrators.
    pub fn update_node(
        &self,
        nodes: &[NodeName],
        state: NodeStateChange,
        reason: Option<&str>,
    ) -> Call<'_, Response> {
        let request = pb::UpdateNodeRequest {
            nodes: nodes.iter().map(Field::put).collect(),
            state: state.put(),
            reason: reason.map(str::to_string),
            reboot: None,
        };
        self.change(Method::ClusterUpdateNode, &request)
    }

    /// Has nodes rebooted, none meaning all, when nothing of a job is left on them. For operators and administrators.
    pub fn reboot_nodes(
        &self,
        nodes: &[NodeName],
        asap: bool,
        next: NextState,
        reason: Option<&str>,
    ) -> Call<'_, Response> {
        let request = pb::UpdateNodeRequest {
            nodes: nodes.iter().map(Field::put).collect(),
            state: 0,
            reason: reason.map(str::to_string),
            reboot: Some(pb::RebootRequest { asap, next: next.put() }),
        };
        self.change(Method::ClusterUpdateNode, &request)
    }

    /// The caller will have nodes fetch an image: one of them gets it from where it is, with the login where there is one, and gives it to
    /// the others.
    pub fn pull_image(
        &self,
        image: &ResolvedImage,
        nodes: &[NodeName],
        login: Option<&SealedLogin>,
    ) -> Call<'_, Response> {
        let nodes = nodes.iter().map(Field::put).collect();
        let request =
            pb::PullImageRequest { image: Some(image.put()), nodes, login: login.map(|login| login.put()) };
        self.change(Method::ClusterPullImage, &request)
    }

    /// Gives an allocation back.
    pub fn end_allocation(&self, job: JobId, status: ExitStatus) -> Call<'_, Response> {
        let request = pb::EndAllocationRequest { job: job.put(), status: Some(status.put()) };
        self.change(Method::ClusterEndAllocation, &request)
    }

    /// Makes a token with which machines join; answers [`Response::TokenCreated`]. For administrators.
    pub fn create_token(&self, token: &NewToken) -> Call<'_, Response> {
        let token: pb::NewToken = token.put();
        self.change(Method::ClusterCreateToken, &token)
    }

    /// Makes a token good for nothing. For administrators.
    pub fn revoke_token(&self, id: &str) -> Call<'_, Response> {
        self.change(Method::ClusterRevokeToken, &pb::TokenName { id: id.to_string() })
    }

    /// All tokens that are good for something, by id. For administrators.
    pub fn tokens(&self) -> Call<'_, Vec<TokenInfo>> {
        self.collect(Method::ClusterListTokens, &pb::Nothing {}, |p: pb::TokenPage| Field::get(p.tokens))
    }

    /// All machines that joined, by name.
    pub fn members(&self) -> Call<'_, Vec<MemberInfo>> {
        self.collect(Method::ClusterListMembers, &pb::Nothing {}, |p: pb::MemberPage| Field::get(p.members))
    }

    /// Lets a machine in that waits for it. For administrators.
    pub fn approve_member(&self, name: &NodeName) -> Call<'_, Response> {
        self.change(Method::ClusterApproveMember, &pb::MemberName { name: name.put() })
    }

    /// Removes a machine; with `force` also while jobs have something on it. For administrators.
    pub fn remove_member(&self, name: &NodeName, force: bool) -> Call<'_, Response> {
        self.change(Method::ClusterRemoveMember, &pb::RemoveRequest { name: name.put(), force })
    }

    /// The last `most` entries of the audit log, or all, oldest first. For administrators.
    pub fn audit(&self, most: Option<u32>) -> Call<'_, Vec<AuditInfo>> {
        self.collect(Method::ClusterAudit, &pb::AuditQuery { most }, |p: pb::AuditPage| Field::get(p.entries))
    }

    fn change(&self, method: Method, request: &impl Message) -> Call<'_, Response> {
        self.ask::<pb::Response, _>(method, request)
    }

    /// Jobs in the controller's memory, in the order of their ids.
    pub fn jobs(&self, query: &JobQuery) -> Call<'_, Vec<JobInfo>> {
        let query: pb::JobQuery = query.put();
        let pages = self.collect(Method::ClusterListJobs, &query, |wire: pb::JobList| {
            let list: JobList = Field::get(wire)?;
            list.records().ok_or(Malformed::new("a list of jobs whose columns contradict each other"))
        });
        Box::pin(async move {
            let mut jobs = pages.await?;
            if !jobs.is_sorted_by_key(|job| job.id) {
                jobs.sort_unstable_by_key(|job| job.id);
            }
            Ok(jobs)
        })
    }

    /// All nodes.
    pub fn nodes(&self) -> Call<'_, Vec<NodeInfo>> {
        self.nodes_of(&[])
    }

    /// The nodes of these names; of none: all. A controller of an earlier version tells of all in any case.
    pub fn nodes_of(&self, names: &[NodeName]) -> Call<'_, Vec<NodeInfo>> {
        let query = pb::NodeQuery { names: names.iter().map(|name| name.0.clone()).collect() };
        self.collect(Method::ClusterListNodes, &query, |p: pb::NodePage| Field::get(p.nodes))
    }

    /// All partitions.
    pub fn partitions(&self) -> Call<'_, Vec<PartitionInfo>> {
        self.collect(Method::ClusterListPartitions, &pb::Nothing {}, |p: pb::PartitionPage| {
            Field::get(p.partitions)
        })
    }

    /// Jobs on record, live and finished, in the order of their ids.
    pub fn accounting(&self, query: &AccountingQuery) -> Call<'_, Vec<JobInfo>> {
        let query: pb::AccountingQuery = query.put();
        self.collect(Method::ClusterAccounting, &query, |p: pb::JobPage| Field::get(p.jobs))
    }

    /// The job as it is now, then after every change. A refusal (no such job) comes at once.
    pub fn watch_job(&self, job: JobId) -> Call<'_, JobWatch> {
        Box::pin(async move {
            let stream = self.open_watch(job).await?;
            Ok(JobWatch { client: self.clone(), job, stream: Some(stream), last: None })
        })
    }

    /// As [`Client::watch_job`], asking when the first state is waited for.
    pub fn watch_job_later(&self, job: JobId) -> JobWatch {
        JobWatch { client: self.clone(), job, stream: None, last: None }
    }

    async fn open_watch(&self, job: JobId) -> Result<Streaming<Bytes>, RpcError> {
        self.open(Method::ClusterWatchJob, encoded(&pb::WatchRequest { job: job.put() })).await
    }

    /// Shows the controller that this client is there; without it, an allocation ends after 30 s. The guard
    /// renews itself over restarts of the controller, until it is dropped or the job is over.
    pub fn lease(&self, job: JobId) -> Call<'_, LeaseGuard> {
        Box::pin(async move {
            let stream = self.open_lease(job).await?;
            let client = self.clone();
            let task = tokio::spawn(async move { client.keep_lease(job, Some(stream)).await });
            Ok(LeaseGuard { task })
        })
    }

    /// As [`Client::lease`], beginning after a while: a job that is over by then needs none.
    pub fn lease_after(&self, job: JobId, wait: Duration) -> LeaseGuard {
        let client = self.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            client.keep_lease(job, None).await;
        });
        LeaseGuard { task }
    }

    /// Says that this client has seen the job's end. What the same user asks from now on finds it on record, or waits
    /// a moment for that.
    pub fn end_seen(&self, job: JobId) -> Call<'_, ()> {
        self.tell(Method::ClusterEndSeen, &pb::WatchRequest { job: job.put() })
    }

    async fn open_lease(&self, job: JobId) -> Result<Streaming<Bytes>, RpcError> {
        self.open(Method::ClusterHoldLease, encoded(&pb::LeaseRequest { job: job.put() })).await
    }

    async fn keep_lease(&self, job: JobId, mut held: Option<Streaming<Bytes>>) {
        let mut backoff = Backoff::new();
        loop {
            if let Some(mut stream) = held.take() {
                while let Ok(Some(pb::LeaseBeat {})) = message(&mut stream).await {
                    backoff.reset();
                }
                backoff.wait().await;
            }
            match self.open_lease(job).await {
                Ok(stream) => held = Some(stream),
                Err(e) if e.is_transient() => backoff.wait().await,
                Err(_) => return, // the job is over, or not ours: nothing left to hold
            }
        }
    }
}

pub(crate) async fn ready(grpc: &mut tonic::client::Grpc<Channel>) -> Result<(), RpcError> {
    grpc.ready().await.map_err(|e| RpcError::Lost(format!("the connection is not ready: {e}")))
}

pub(crate) fn path(method: Method) -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static(method.path())
}

fn selection(jobs: &[JobSelector]) -> pb::Selection {
    pb::Selection { jobs: jobs.iter().map(Field::put).collect() }
}

/// A job under observation. Survives restarts of the controller.
#[derive(Debug)]
pub struct JobWatch {
    client: Client,
    job: JobId,
    stream: Option<Streaming<Bytes>>,
    last: Option<JobInfo>,
}

impl JobWatch {
    /// The job's next state: the current one first, then each change. Waits as long as the controller is
    /// away. `None` after a state in which nothing more will happen was seen.
    pub fn next_state(&mut self) -> Call<'_, Option<JobInfo>> {
        Box::pin(self.follow())
    }

    async fn follow(&mut self) -> Result<Option<JobInfo>, RpcError> {
        let mut backoff = Backoff::new();
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => match self.client.open_watch(self.job).await {
                    Ok(stream) => self.stream.insert(stream),
                    Err(e) if e.is_transient() => {
                        backoff.wait().await;
                        continue;
                    }
                    Err(e) => return Err(e),
                },
            };
            match message::<pb::JobInfo>(stream).await {
                Ok(Some(wire)) => {
                    let info = JobInfo::get(wire)?;
                    if self.last.as_ref() == Some(&info) {
                        continue; // told again after a reconnection
                    }
                    self.last = Some(info.clone());
                    return Ok(Some(info));
                }
                Ok(None) if self.last.as_ref().is_some_and(|info| info.state.is_terminal()) => {
                    return Ok(None);
                }
                Ok(None) => self.stream = None,
                Err(e) if e.is_transient() => self.stream = None,
                Err(e) => return Err(e),
            }
            backoff.wait().await;
        }
    }
}

/// Holds a lease until dropped.
#[derive(Debug)]
pub struct LeaseGuard {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.task.abort();
    }
}
