//! What the controller does for its callers.

use crate::ReadConfig;
use crate::agents;
use crate::backup::noted::{self, Entered, Note};
use crate::driver::Input;
use crate::ends::Ends;
use crate::identity::{Identities, controller};
use crate::leases::{Leases, needs_client};
use crate::logins::Logins;
use crate::machines::Machines;
use crate::queries;
use crate::relay::Relay;
use crate::shared::Shared;
use crate::tokens;
use crate::turns::Turns;
use crate::ways;
use berth_model::config::Config;
use berth_model::direct::StreamWay;
use berth_model::listing::JobList;
use berth_model::member::{AuditInfo, KeyId, MemberInfo, NewToken, TokenInfo, hex};
use berth_model::query::{AccountingQuery, AgentStatus, JobQuery, Status};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::request::{Actor, Peer, Refusal, RefusalCode, Request, Response};
use berth_model::rights::{Rank, Roles};
use berth_model::spec::JobKind;
use berth_model::{ByteStr, JobId, NodeName, Span, StepKey, Time, Uid};
use berth_rpc::{AgentConnection, Answers, Duplex, Question, Reply, Service, TurnedAway};
use berth_sched_core::{CoreConfig, RequestId};
use berth_store::Reader;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Semaphore, oneshot, watch};

/// Requests in the core's queue at most; others wait at their sockets.
const QUEUE: usize = 8192;
/// How often it is looked whether backups were made.
const NOTES: Duration = Duration::from_millis(500);
/// How long a stop waits for being written down.
const NOTING: Duration = Duration::from_secs(5);

/// The services' state.
pub(crate) struct Controller {
    config: RwLock<Config>,
    source: Source,
    /// Held by who changes the configuration.
    changing: tokio::sync::Mutex<()>,
    state_dir: PathBuf,
    since: Time,
    identities: Arc<Identities>,
    inputs: Sender<Input>,
    reader: Reader,
    shared: Arc<Shared>,
    logins: Arc<Logins>,
    machines: Arc<Machines>,
    relay: Relay,
    leases: Leases,
    ends: Ends,
    queue: Semaphore,
    turns: Turns,
    turned_away: TurnedAway,
    stop: watch::Sender<bool>,
}

/// Where the configuration comes from.
pub(crate) struct Source {
    /// The file that was named at the start.
    pub(crate) file: Option<PathBuf>,
    /// Whether the controller is root: no file says it.
    pub(crate) system: bool,
    /// What reads and judges it.
    pub(crate) read: ReadConfig,
    /// What is told of the one in force.
    pub(crate) in_force: fn(&Config),
}

/// A request in the core. Dropped without an answer, its client is gone.
struct Outstanding<'a> {
    request: RequestId,
    inputs: &'a Sender<Input>,
    answered: bool,
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        if !self.answered {
            // An error means that we are stopping.
            let _ = self.inputs.send(Input::Abandoned { request: self.request });
        }
    }
}

fn stopping() -> Refusal {
    Refusal::new(RefusalCode::Unavailable, "the controller is stopping; try again when it is back")
}

impl Controller {
    #[allow(clippy::too_many_arguments)] // its parts, each once
    pub(crate) fn new(
        config: Config,
        source: Source,
        state_dir: PathBuf,
        since: Time,
        identities: Identities,
        inputs: Sender<Input>,
        reader: Reader,
        shared: Arc<Shared>,
        logins: Logins,
        machines: Arc<Machines>,
        stop: watch::Sender<bool>,
    ) -> Controller {
        Controller {
            config: RwLock::new(config),
            source,
            changing: tokio::sync::Mutex::new(()),
            state_dir,
            since,
            identities: Arc::new(identities),
            inputs,
            reader,
            shared,
            logins: Arc::new(logins),
            machines,
            relay: Relay::default(),
            leases: Leases::default(),
            ends: Ends::default(),
            queue: Semaphore::new(QUEUE),
            turns: Turns::default(),
            turned_away: TurnedAway::default(),
            stop,
        }
    }

    /// A job that is the actor's to drive.
    fn own_job(&self, actor: &Actor, job: JobId) -> Result<JobInfo, Refusal> {
        let Some(info) = self.shared.snapshot().job(job) else {
            return Err(Refusal::new(RefusalCode::NotFound, format!("Invalid job id specified: {job}")));
        };
        if info.identity.uid != actor.identity.uid && !actor.is_administrator() {
            let text = format!(
                "Access/permission denied: job {job} belongs to {}, who alone drives it, and administrators",
                info.identity.user
            );
            return Err(Refusal::new(RefusalCode::Denied, text));
        }
        Ok(info)
    }

    pub(crate) fn leases(&self) -> Leases {
        self.leases.clone()
    }

    pub(crate) fn relay(&self) -> Relay {
        self.relay.clone()
    }

    /// Enters backups into the audit log that were noted in this directory, for as long as it is polled.
    pub(crate) async fn enter_backups(self: Arc<Self>, private: PathBuf) {
        let mut entered = Entered::default();
        loop {
            tokio::time::sleep(NOTES).await;
            let at = private.clone();
            let Ok(notes) = tokio::task::spawn_blocking(move || noted::left(&at)).await else { continue };
            for (path, Note { user, file, time }) in entered.open(notes, noted::remove) {
                let ago = Span(wall_clock().0.saturating_sub(time.0));
                let body = Request::BackedUp { by: user, file, ago };
                match self.request(controller(), body).await {
                    Ok(_) => entered.forget(path, noted::remove),
                    // A later look finds it again.
                    Err(refusal) => tracing::debug!("a backup is not on record yet: {refusal}"),
                }
            }
        }
    }
}

impl Service for Controller {
    async fn identify(&self, peer: Peer) -> Result<Actor, Refusal> {
        self.identities.find(peer).await
    }

    async fn request(&self, actor: Actor, body: Request) -> Result<Response, Refusal> {
        self.logins.check(actor.identity.uid, &body)?;
        let driven = match &body {
            Request::Submit { spec, .. } => needs_client(spec),
            // The leader's client drives all components.
            Request::SubmitHet { components, .. } => {
                components.first().is_some_and(|(spec, _)| needs_client(spec))
            }
            _ => false,
        };
        // A step may wait for its resources for hours, and a removal until jobs are gone: they hold no place in the queue.
        let place = match body {
            Request::CreateStep { .. }
            | Request::CreateHetStep { .. }
            | Request::RemoveMember { force: true, .. } => None,
            _ => Some(self.queue.acquire().await.map_err(|_| stopping())?),
        };
        let request = self.shared.next_request();
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Client { request, actor, body, reply }).map_err(|_| stopping())?;
        let mut outstanding = Outstanding { request, inputs: &self.inputs, answered: false };
        let answer = answer.await;
        outstanding.answered = true;
        drop(place);
        let response = answer.map_err(|_| stopping())??;
        if let (true, Response::Submitted { job, .. }) = (driven, &response) {
            self.leases.begin([*job]);
        }
        Ok(response)
    }

    async fn jobs(&self, reader: (Uid, Rank), query: JobQuery) -> Result<Answers<JobList>, Refusal> {
        self.ends.recorded(&self.shared, reader.0).await;
        Ok(queries::jobs(self.turns.take(reader).await, &self.shared, query))
    }

    async fn nodes(&self, reader: (Uid, Rank)) -> Result<Answers<Vec<NodeInfo>>, Refusal> {
        self.ends.recorded(&self.shared, reader.0).await;
        Ok(queries::nodes(self.turns.take(reader).await, &self.shared))
    }

    async fn partitions(&self) -> Result<Answers<Vec<PartitionInfo>>, Refusal> {
        Ok(queries::partitions(&self.shared))
    }

    async fn accounting(
        &self,
        reader: (Uid, Rank),
        query: AccountingQuery,
    ) -> Result<Answers<Vec<JobInfo>>, Refusal> {
        self.ends.recorded(&self.shared, reader.0).await;
        Ok(queries::accounting(self.turns.take(reader).await, self.reader.clone(), query))
    }

    async fn watch(&self, job: JobId) -> Result<Answers<JobInfo>, Refusal> {
        queries::watch(Arc::clone(&self.shared), self.reader.clone(), job).await
    }

    async fn lease(&self, actor: Actor, job: JobId) -> Result<Box<dyn Send + Sync>, Refusal> {
        let info = self.own_job(&actor, job)?;
        if info.state.is_terminal() {
            return Err(Refusal::new(RefusalCode::WrongState, format!("job {job} is over")));
        }
        if info.spec.kind == JobKind::Batch {
            let text = format!("job {job} is a batch job: it needs no client");
            return Err(Refusal::new(RefusalCode::WrongState, text));
        }
        if !needs_client(&info.spec) {
            let text = format!("job {job} was made to go on without its client (--no-shell)");
            return Err(Refusal::new(RefusalCode::WrongState, text));
        }
        Ok(Box::new(self.leases.hold(job)))
    }

    async fn end_seen(&self, actor: Actor, job: JobId) -> Result<(), Refusal> {
        self.own_job(&actor, job)?;
        self.ends.seen(&self.shared, actor.identity.uid, job, Instant::now());
        Ok(())
    }

    async fn config(&self) -> Result<Config, Refusal> {
        Ok(self.config.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn reconfigure(&self, actor: Actor) -> Result<(), Refusal> {
        let invalid = |why: String| Refusal::new(RefusalCode::Invalid, format!("{why}; nothing was changed"));
        let _one_at_a_time = self.changing.lock().await;
        let (read, dir, file) = (self.source.read, self.state_dir.clone(), self.source.file.clone());
        let config = tokio::task::spawn_blocking(move || read(&dir, file.as_deref()))
            .await
            .map_err(|e| Refusal::new(RefusalCode::Internal, e.to_string()))?
            .map_err(invalid)?;
        let listens = self.config().await?.listen;
        if config.listen != listens {
            return Err(invalid(format!(
                "berth.toml: listen: '{}' instead of '{listens}' needs a restart: 'berth down --keep-jobs', then 'berth up'",
                config.listen
            )));
        }
        let core = CoreConfig::new(&config).map_err(|e| invalid(e.to_string()))?;
        let core = core.in_user_mode(!self.source.system);
        let request = self.shared.next_request();
        let (reply, answer) = oneshot::channel();
        let keep_records_days = config.keep_records_days;
        let input = Input::Reconfigure { request, actor, config: Box::new(core), keep_records_days, reply };
        self.inputs.send(input).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())??;
        self.identities.set_roles(Roles::of(&config));
        self.machines.set_life(config.certificate_seconds);
        (self.source.in_force)(&config);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        tracing::info!("the configuration was read again and is in force");
        Ok(())
    }

    async fn status(&self) -> Result<Status, Refusal> {
        let agents = self
            .shared
            .snapshot()
            .nodes()
            .map(|node| AgentStatus {
                connected: !node.condition.not_responding,
                node: node.name,
                version: node.version,
                started: node.agent_start,
            })
            .collect();
        Ok(Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            state_dir: ByteStr::from(self.state_dir.as_path()),
            since: self.since,
            accepting: self.shared.accepting(),
            alarms: self.shared.alarms(),
            agents,
            login_key: self.logins.public().into(),
        })
    }

    async fn shutdown(&self, actor: Actor) -> Result<(), Refusal> {
        // A controller that can write nothing down must be stopped all the same.
        match tokio::time::timeout(NOTING, self.request(actor, Request::Shutdown)).await {
            Ok(Ok(_)) => {}
            Ok(Err(refusal)) => tracing::warn!("stopping is not in the audit log: {refusal}"),
            Err(_) => tracing::warn!("stopping is not in the audit log: that took too long"),
        }
        self.stop.send_replace(true);
        Ok(())
    }

    async fn create_token(&self, actor: Actor, token: NewToken) -> Result<Response, Refusal> {
        let NewToken { role, ttl, uses, approval, administrators } = token;
        let tokens::Made { id, secret, hash } = tokens::make()?;
        // A token is of no use where nobody listens.
        self.machines.open().await?;
        let request =
            Request::CreateToken { id: id.clone(), hash, role, ttl, uses, approval, administrators };
        self.request(actor, request).await?;
        // What was acknowledged is published.
        let Some(made) = self.shared.snapshot().token(&id) else {
            let text = format!("token {id} was revoked as soon as it was made");
            return Err(Refusal::new(RefusalCode::WrongState, text));
        };
        let text = self.machines.token(&id, secret)?;
        Ok(Response::TokenCreated { id, secret: hex(&secret), expires: made.expires, text })
    }

    async fn tokens(&self) -> Result<Answers<Vec<TokenInfo>>, Refusal> {
        Ok(queries::tokens(&self.shared))
    }

    async fn members(&self) -> Result<Answers<Vec<MemberInfo>>, Refusal> {
        Ok(queries::members(&self.shared, |key| self.machines.ends(key)))
    }

    async fn audit(&self, most: Option<u32>) -> Result<Answers<Vec<AuditInfo>>, Refusal> {
        // Administrators alone read it: they wait for nobody.
        Ok(queries::audit(self.turns.take((Uid(0), Rank::Administrator)).await, self.reader.clone(), most))
    }

    async fn agent(&self, connection: AgentConnection) -> Result<(), Refusal> {
        let number = self.shared.next_connection();
        let store = agents::Filling {
            reader: self.reader.clone(),
            logins: Arc::clone(&self.logins),
            machines: Arc::clone(&self.machines),
            shared: Arc::clone(&self.shared),
            inputs: self.inputs.clone(),
        };
        agents::take(number, connection, store, self.relay.clone());
        Ok(())
    }

    fn member(&self, key: &KeyId) -> Option<MemberInfo> {
        self.shared.snapshot().member_by_key(key)
    }

    fn shows(&self, key: &KeyId, until: SystemTime) {
        self.machines.shows(key, until);
    }

    fn unknown(&self, node: NodeName, key: KeyId, from: SocketAddr) {
        // An error means that we are stopping.
        let _ = self.inputs.send(Input::Unknown { node, key, from: from.ip().to_string() });
    }

    fn until_removed(&self, key: &KeyId) -> oneshot::Receiver<()> {
        self.machines.until_removed(key)
    }

    fn vouched(&self, member: &MemberInfo, peer: Peer) -> Result<(), Refusal> {
        Machines::vouched(&self.shared, member, peer)
    }

    fn clock(&self) -> Reply {
        Reply::Clock(wall_clock())
    }

    async fn question(
        &self,
        key: KeyId,
        member: Option<MemberInfo>,
        from: SocketAddr,
        question: Question,
    ) -> Result<Reply, Refusal> {
        if matches!(question, Question::Settings) && member.is_some() {
            return Ok(Reply::Settings(self.config().await?.for_agents().told()));
        }
        self.machines.answer(&self.shared, &self.inputs, (key, member), from, question).await
    }

    async fn ways(
        &self,
        key: String,
        peer: Peer,
        step: StepKey,
        only: Option<NodeName>,
    ) -> Result<Vec<StreamWay>, Refusal> {
        ways::told(&self.shared, &self.relay, (key, peer), step, only)
    }

    async fn stream(&self, peer: Peer, to: NodeName, wire: Duplex) {
        if let Err(why) = self.relay.carry(peer, &to, wire).await {
            // Whoever asked sees a connection that is closed, and tries again for as long as the step runs.
            tracing::info!("no stream to {to} for uid {}: {why}", peer.uid);
        }
    }

    fn answered_here(&self, number: u64, wire: Duplex) {
        self.relay.made(None, number, wire, None);
    }

    fn answered(&self, node: NodeName, number: u64, wire: Duplex, gone: oneshot::Receiver<()>) {
        self.relay.made(Some(&node), number, wire, Some(gone));
    }

    fn turned_away(&self, from: SocketAddr, why: &str) {
        if let Some(words) = self.turned_away.words(from, why, Instant::now()) {
            tracing::info!("{from}: turned away: {words}");
        }
    }
}

/// The time of day, as machines compare it; cluster time only ever goes on.
fn wall_clock() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
