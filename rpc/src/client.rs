//! The clients' side: one async method for each thing that can be asked.

use crate::error::RpcError;
use crate::pb;
use crate::pb::cluster_client::ClusterClient;
use crate::retry::Backoff;
use crate::transport::Endpoint;
use crate::wire::{Field, Malformed};
use berth_model::JobId;
use berth_model::config::Config;
use berth_model::listing::JobList;
use berth_model::query::{AccountingQuery, JobQuery, Status};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::request::{CancelRequest, NodeStateChange, Payload, Refusal, RefusalCode, Response};
use berth_model::spec::{JobSelector, JobSpec, StepSpec};
use berth_model::state::ExitStatus;
use berth_model::{NodeName, StepId};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

type Grpc = ClusterClient<Channel>;

/// A connection to the controller. Cheap to clone; clones share the connection, which comes back by itself
/// when the controller does.
#[derive(Debug, Clone)]
pub struct Client {
    grpc: Grpc,
}

/// An answer's content, converted.
fn open<P, T: Field<P>>(answer: Result<tonic::Response<P>, tonic::Status>) -> Result<T, RpcError> {
    match answer {
        Ok(message) => Ok(T::get(message.into_inner())?),
        Err(status) => Err(RpcError::from_status(&status)),
    }
}

fn nothing(answer: Result<tonic::Response<pb::Nothing>, tonic::Status>) -> Result<(), RpcError> {
    answer.map(|_| ()).map_err(|status| RpcError::from_status(&status))
}

/// Refuses here what the other side would not read: on the way, the error would lose its meaning.
fn sized<P: prost::Message>(request: P) -> Result<P, RpcError> {
    match request.encoded_len() {
        n if n <= crate::MAX_MESSAGE => Ok(request),
        n => Err(RpcError::Refused(Refusal::new(
            RefusalCode::Invalid,
            format!(
                "the request is too large: {n} bytes of at most {}; make the script or the environment smaller",
                crate::MAX_MESSAGE
            ),
        ))),
    }
}

/// All pages of a long answer.
async fn collect<P, T>(
    answer: Result<tonic::Response<tonic::Streaming<P>>, tonic::Status>,
    page: impl Fn(P) -> Result<Vec<T>, Malformed>,
) -> Result<Vec<T>, RpcError> {
    let mut pages = answer.map_err(|status| RpcError::from_status(&status))?.into_inner();
    let mut all = Vec::new();
    while let Some(next) = pages.message().await.map_err(|status| RpcError::from_status(&status))? {
        all.append(&mut page(next)?);
    }
    Ok(all)
}

impl Client {
    /// Connects; an error tells what to do.
    pub async fn connect(endpoint: &Endpoint) -> Result<Client, RpcError> {
        let channel = endpoint.channel().await?;
        let grpc = ClusterClient::new(channel)
            .max_decoding_message_size(crate::MAX_MESSAGE)
            .max_encoding_message_size(usize::MAX); // see `sized`
        Ok(Client { grpc })
    }

    /// Connects, and tries again until `patience` is over if the controller is away.
    pub async fn connect_patiently(endpoint: &Endpoint, patience: Duration) -> Result<Client, RpcError> {
        let begun = Instant::now();
        let mut backoff = Backoff::new();
        loop {
            match Client::connect(endpoint).await {
                Err(e) if e.is_transient() && begun.elapsed() < patience => backoff.wait().await,
                done => return done,
            }
        }
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

    /// Is anyone there?
    pub async fn ping(&self) -> Result<(), RpcError> {
        nothing(self.grpc.clone().ping(pb::Nothing {}).await)
    }

    /// The controller and its agents.
    pub async fn status(&self) -> Result<Status, RpcError> {
        open(self.grpc.clone().status(pb::Nothing {}).await)
    }

    /// The configuration in force.
    pub async fn config(&self) -> Result<Config, RpcError> {
        open(self.grpc.clone().get_config(pb::Nothing {}).await)
    }

    /// Stops the controller; steps run on. For administrators.
    pub async fn shutdown(&self) -> Result<(), RpcError> {
        nothing(self.grpc.clone().shutdown(pb::Nothing {}).await)
    }

    /// Submits a job, with its first step where one commit should hold both. Answers
    /// [`Response::Submitted`], or [`Response::WouldStart`] for `test_only`.
    pub async fn submit(
        &self,
        spec: &JobSpec,
        payload: &Payload,
        first_step: Option<&StepSpec>,
        test_only: bool,
    ) -> Result<Response, RpcError> {
        let request = pb::SubmitRequest {
            spec: Some(spec.put()),
            payload: Some(payload.put()),
            first_step: first_step.map(Field::put),
            test_only,
        };
        open(self.grpc.clone().submit(sized(request)?).await)
    }

    /// Makes a step in an allocation; answers [`Response::StepCreated`] when it has its resources.
    pub async fn create_step(&self, job: JobId, spec: &StepSpec) -> Result<Response, RpcError> {
        let request = pb::CreateStepRequest { job: job.put(), spec: Some(spec.put()) };
        open(self.grpc.clone().create_step(sized(request)?).await)
    }

    /// Ends or signals jobs; answers [`Response::Acted`].
    pub async fn cancel(&self, request: &CancelRequest) -> Result<Response, RpcError> {
        let request: pb::CancelRequest = request.put();
        open(self.grpc.clone().cancel(sized(request)?).await)
    }

    /// Ends one job or one step of it.
    pub async fn cancel_one(&self, job: JobId, step: Option<StepId>) -> Result<Response, RpcError> {
        let jobs = vec![(JobSelector::Job(job), step)];
        self.cancel(&CancelRequest { jobs, ..CancelRequest::default() }).await
    }

    /// Holds waiting jobs; answers [`Response::Acted`].
    pub async fn hold(&self, jobs: &[JobSelector]) -> Result<Response, RpcError> {
        open(self.grpc.clone().hold(sized(selection(jobs))?).await)
    }

    /// Releases held jobs; answers [`Response::Acted`].
    pub async fn release(&self, jobs: &[JobSelector]) -> Result<Response, RpcError> {
        open(self.grpc.clone().release(sized(selection(jobs))?).await)
    }

    /// Puts running or finished batch jobs back into the queue; answers [`Response::Acted`].
    pub async fn requeue(&self, jobs: &[JobSelector]) -> Result<Response, RpcError> {
        open(self.grpc.clone().requeue(sized(selection(jobs))?).await)
    }

    /// Changes what nodes do. For administrators.
    pub async fn update_node(
        &self,
        nodes: &[NodeName],
        state: NodeStateChange,
        reason: Option<&str>,
    ) -> Result<Response, RpcError> {
        let request = pb::UpdateNodeRequest {
            nodes: nodes.iter().map(Field::put).collect(),
            state: state.put(),
            reason: reason.map(str::to_string),
        };
        open(self.grpc.clone().update_node(sized(request)?).await)
    }

    /// Gives an allocation back.
    pub async fn end_allocation(&self, job: JobId, status: ExitStatus) -> Result<Response, RpcError> {
        let request = pb::EndAllocationRequest { job: job.put(), status: Some(status.put()) };
        open(self.grpc.clone().end_allocation(request).await)
    }

    /// Jobs in the controller's memory, in the order of their ids.
    pub async fn jobs(&self, query: &JobQuery) -> Result<Vec<JobInfo>, RpcError> {
        let query: pb::JobQuery = query.put();
        let page = |wire: pb::JobList| {
            let list: JobList = Field::get(wire)?;
            list.records().ok_or(Malformed::new("a list of jobs whose columns contradict each other"))
        };
        let mut jobs = collect(self.grpc.clone().list_jobs(sized(query)?).await, page).await?;
        if !jobs.is_sorted_by_key(|job| job.id) {
            jobs.sort_unstable_by_key(|job| job.id);
        }
        Ok(jobs)
    }

    /// All nodes.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, RpcError> {
        collect(self.grpc.clone().list_nodes(pb::Nothing {}).await, |p| Field::get(p.nodes)).await
    }

    /// All partitions.
    pub async fn partitions(&self) -> Result<Vec<PartitionInfo>, RpcError> {
        collect(self.grpc.clone().list_partitions(pb::Nothing {}).await, |p| Field::get(p.partitions)).await
    }

    /// Jobs on record, live and finished, in the order of their ids.
    pub async fn accounting(&self, query: &AccountingQuery) -> Result<Vec<JobInfo>, RpcError> {
        let query: pb::AccountingQuery = query.put();
        collect(self.grpc.clone().accounting(sized(query)?).await, |p| Field::get(p.jobs)).await
    }

    /// The job as it is now, then after every change. A refusal (no such job) comes at once.
    pub async fn watch_job(&self, job: JobId) -> Result<JobWatch, RpcError> {
        let stream = self.open_watch(job).await?;
        Ok(JobWatch { client: self.clone(), job, stream: Some(stream), last: None })
    }

    /// As [`Client::watch_job`], asking when the first state is waited for.
    pub fn watch_job_later(&self, job: JobId) -> JobWatch {
        JobWatch { client: self.clone(), job, stream: None, last: None }
    }

    async fn open_watch(&self, job: JobId) -> Result<tonic::Streaming<pb::JobInfo>, RpcError> {
        let answer = self.grpc.clone().watch_job(pb::WatchRequest { job: job.put() }).await;
        answer.map(tonic::Response::into_inner).map_err(|status| RpcError::from_status(&status))
    }

    /// Shows the controller that this client is there; without it, an allocation ends after 30 s. The guard
    /// renews itself over restarts of the controller, until it is dropped or the job is over.
    pub async fn lease(&self, job: JobId) -> Result<LeaseGuard, RpcError> {
        let stream = self.open_lease(job).await?;
        let client = self.clone();
        let task = tokio::spawn(async move { client.keep_lease(job, Some(stream)).await });
        Ok(LeaseGuard { task })
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
    pub async fn end_seen(&self, job: JobId) -> Result<(), RpcError> {
        nothing(self.grpc.clone().end_seen(pb::WatchRequest { job: job.put() }).await)
    }

    async fn open_lease(&self, job: JobId) -> Result<tonic::Streaming<pb::LeaseBeat>, RpcError> {
        let answer = self.grpc.clone().hold_lease(pb::LeaseRequest { job: job.put() }).await;
        answer.map(tonic::Response::into_inner).map_err(|status| RpcError::from_status(&status))
    }

    async fn keep_lease(&self, job: JobId, mut held: Option<tonic::Streaming<pb::LeaseBeat>>) {
        let mut backoff = Backoff::new();
        loop {
            if let Some(mut stream) = held.take() {
                while let Ok(Some(pb::LeaseBeat {})) = stream.message().await {
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

fn selection(jobs: &[JobSelector]) -> pb::Selection {
    pb::Selection { jobs: jobs.iter().map(Field::put).collect() }
}

/// A job under observation. Survives restarts of the controller.
#[derive(Debug)]
pub struct JobWatch {
    client: Client,
    job: JobId,
    stream: Option<tonic::Streaming<pb::JobInfo>>,
    last: Option<JobInfo>,
}

impl JobWatch {
    /// The job's next state: the current one first, then each change. Waits as long as the controller is
    /// away. `None` after a state in which nothing more will happen was seen.
    pub async fn next(&mut self) -> Result<Option<JobInfo>, RpcError> {
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
            match stream.message().await {
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
                Err(status) => match RpcError::from_status(&status) {
                    e if e.is_transient() => self.stream = None,
                    e => return Err(e),
                },
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
