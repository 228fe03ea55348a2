//! Other machines: the cluster's authority, the port, who is let in, and whose word counts for what.

use crate::certificates::Certificates;
use crate::driver::Input;
use crate::identity::controller;
use crate::shared::Shared;
use berth_model::config::Config;
use berth_model::member::{KeyId, MemberInfo, MemberRole};
use berth_model::request::{Peer, Refusal, RefusalCode, Request, Response};
use berth_model::{Span, Time};
use berth_rpc::{Hex, MachineListener, Question, Reply};
use berth_sched_core::Snapshot;
use berth_trust::{Authority, Identity, JoinToken, PrivateKey, TrustError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// How old the controller's own certificate may get. One that is not good for thrice as long is made anew in a third of its life.
const OWN: Duration = Duration::from_secs(24 * 3600);
/// How often its age is looked at, at least: by the time of day, since machines sleep.
const AGE: Duration = Duration::from_secs(60);
/// For how long a certificate that was given to a new key is given to it again, at least: its answer may have been lost.
const AGAIN: i64 = 600;
/// How often a port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether machines were removed.
const LOOK: Duration = Duration::from_millis(500);

/// How often it is looked which certificates are about to end, at least.
const EVERY: Duration = Duration::from_secs(10);
/// Most machines that are named for it.
const NAMED: usize = 20;
/// The alarm about them.
const ENDS: &str = "certificates";
/// The alarm about a port that cannot be had.
const PORT: &str = "port";

/// The controller's role in certificates.
pub(crate) const ROLE: &str = "controller";

/// What the controller has to do with other machines.
pub(crate) struct Machines {
    private: PathBuf,
    cluster: String,
    listen: String,
    /// Seconds for which certificates are good.
    life: AtomicU32,
    port: watch::Sender<Option<Arc<MachineListener>>>,
    authority: Mutex<Option<Arc<Authority>>>,
    /// The controller's own key and certificate, once there are machines that know them.
    identity: Mutex<Option<Arc<Identity>>>,
    opening: tokio::sync::Mutex<()>,
    watched: Mutex<Vec<(KeyId, oneshot::Sender<()>)>>,
    certificates: Certificates,
}

fn internal(e: &TrustError) -> Refusal {
    Refusal::new(RefusalCode::Internal, e.to_string())
}

fn denied(text: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::Denied, text)
}

impl Machines {
    /// Nothing is made or opened yet. `private`: the directory that is the controller's alone.
    pub(crate) fn new(private: PathBuf, config: &Config) -> Machines {
        Machines {
            private,
            cluster: config.cluster.clone(),
            listen: config.listen.clone(),
            life: AtomicU32::new(config.certificate_seconds),
            port: watch::Sender::new(None),
            authority: Mutex::new(None),
            identity: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
            watched: Mutex::default(),
            certificates: Certificates::default(),
        }
    }

    /// Certificates are good for so many seconds from now on; those that are there stay as they are.
    pub(crate) fn set_life(&self, seconds: u32) {
        self.life.store(seconds, Ordering::Relaxed);
    }

    fn life(&self) -> Duration {
        Duration::from_secs(self.life.load(Ordering::Relaxed).into())
    }

    /// Says when the port is open.
    pub(crate) fn port(&self) -> watch::Receiver<Option<Arc<MachineListener>>> {
        self.port.subscribe()
    }

    /// The cluster's authority; made when it is first needed.
    fn authority(&self) -> Result<Arc<Authority>, TrustError> {
        let mut kept = self.authority.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(authority) = kept.as_ref() {
            return Ok(Arc::clone(authority));
        }
        let made = Arc::new(Authority::open_or_make(
            &self.private.join("authority"),
            &self.cluster,
            SystemTime::now(),
        )?);
        *kept = Some(Arc::clone(&made));
        Ok(made)
    }

    fn own(&self, authority: &Authority) -> Result<Arc<rustls::ServerConfig>, TrustError> {
        let path = self.private.join("controller.key");
        let key = match PrivateKey::read(&path)? {
            Some(key) => key,
            None => {
                let key = PrivateKey::make()?;
                key.write(&path)?;
                key
            }
        };
        let certificate = authority.issue(&key.public(), ROLE, ROLE, SystemTime::now(), self.life())?;
        let own = Arc::new(Identity { key, certificate });
        let tls = berth_trust::server_config(authority, &own)?;
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
        Ok(tls)
    }

    /// Who the controller is to machines: what it signs for them is signed with that.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens the port, unless it is open.
    ///
    /// # Errors
    /// It cannot be had, with what to do.
    pub(crate) async fn open(self: &Arc<Self>) -> Result<SocketAddr, Refusal> {
        let _one = self.opening.lock().await;
        let trouble = |e: std::io::Error| {
            let text = format!(
                "the port for other machines, {}: {e}; end what has it, or write another one as 'listen' into \
                 berth.toml and start the controller again",
                self.listen
            );
            Refusal::new(RefusalCode::Internal, text)
        };
        if let Some(port) = self.port.borrow().as_ref() {
            return port.address().map_err(trouble);
        }
        let authority = self.authority().map_err(|e| internal(&e))?;
        let tls = self.own(&authority).map_err(|e| internal(&e))?;
        let listener = TcpListener::bind(&self.listen).await.map_err(trouble)?;
        let port = Arc::new(MachineListener::new(listener, authority.certificate().to_vec(), tls));
        let address = port.address().map_err(trouble)?;
        tracing::info!("other machines are served at {address}");
        self.port.send_replace(Some(Arc::clone(&port)));
        let machines = Arc::clone(self);
        tokio::spawn(async move {
            let mut made = SystemTime::now();
            loop {
                let most = OWN.min(machines.life() / 3);
                tokio::time::sleep(AGE.min(most)).await;
                // A clock that was set back is no age.
                if made.elapsed().is_ok_and(|age| age < most) {
                    continue;
                }
                match machines.own(&authority) {
                    Ok(tls) => {
                        port.renew(tls);
                        made = SystemTime::now();
                    }
                    Err(e) => tracing::error!("the controller's certificate cannot be made anew: {e}"),
                }
            }
        });
        Ok(address)
    }

    /// Opens the port, or keeps trying until it can be had, by the task that comes back: an address may come late, and somebody else
    /// may have the port for a moment. Until then machines stay away, which is an alarm, and all else goes on.
    pub(crate) async fn open_in_time(self: &Arc<Self>, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
        if self.try_to_open(shared).await {
            return None;
        }
        let (machines, shared) = (Arc::clone(self), Arc::clone(shared));
        Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY).await;
                if machines.try_to_open(&shared).await {
                    return;
                }
            }
        }))
    }

    async fn try_to_open(self: &Arc<Self>, shared: &Shared) -> bool {
        match self.open().await {
            Ok(_) => {
                shared.all_clear(PORT);
                true
            }
            Err(refusal) => {
                let text = format!("no other machine can connect; tried every second: {}", refusal.message);
                shared.alarm(PORT, text);
                false
            }
        }
    }

    /// The token's text, which a machine joins with.
    pub(crate) fn token(&self, id: &str, secret: [u8; 32]) -> Result<String, Refusal> {
        let fingerprint = self.authority().map_err(|e| internal(&e))?.fingerprint();
        Ok(JoinToken { id: id.to_string(), secret, fingerprint }.to_string())
    }

    fn certificate(&self, public: &[u8], member: &MemberInfo) -> Result<Reply, Refusal> {
        let authority = self.authority().map_err(|e| internal(&e))?;
        let role = role_name(member.role);
        let certificate = authority
            .issue(public, &member.name.0, role, SystemTime::now(), self.life())
            .map_err(|e| Refusal::new(RefusalCode::Invalid, e.to_string()))?;
        if let Ok((_, until)) = berth_trust::validity(&certificate) {
            self.certificates.given(&member.key, until, SystemTime::now());
        }
        Ok(Reply::Enrolled {
            certificate: Hex(certificate),
            cluster: self.cluster.clone(),
            role: member.role,
            state: member.state,
        })
    }

    /// Answers what a machine asks.
    pub(crate) async fn answer(
        &self,
        shared: &Shared,
        inputs: &Sender<Input>,
        by: (KeyId, Option<MemberInfo>),
        from: SocketAddr,
        question: Question,
    ) -> Result<Reply, Refusal> {
        let (key, member) = by;
        match question {
            Question::Enrol { token, secret, name, public } => {
                if berth_trust::key_id(&public.0) != key.0 {
                    return Err(denied("the public key is not that of this connection"));
                }
                // What is no secret of ours has no row either: the core's answer is the same for both.
                let hash = match <[u8; 32]>::try_from(secret.0.as_slice()) {
                    Ok(secret) => JoinToken { id: token.clone(), secret, fingerprint: [0; 32] }.secret_hash(),
                    Err(_) => String::new(),
                };
                let request = Request::Enrol { token, hash, key, name, from: from.ip().to_string() };
                let member = enrolled(ask_core(shared, inputs, request).await?)?;
                tracing::info!("{} joined from {from} as a {} node", member.name, role_name(member.role));
                self.certificate(&public.0, &member)
            }
            Question::Renew { public } => {
                let bytes = public.0;
                let new = KeyId(berth_trust::key_id(&bytes));
                let now = shared.snapshot().member_by_key(&new);
                match (member, now) {
                    // A certificate for the key that it has, or an answer that was lost when the key changed.
                    (Some(member), Some(now)) if member.name == now.name => self.certificate(&bytes, &now),
                    (None, Some(now)) if new == key && self.is_owed(&now, shared.time()) => {
                        self.certificate(&bytes, &now)
                    }
                    (Some(member), None) => {
                        let request = Request::Renew { name: member.name, old: key, new };
                        let member = enrolled(ask_core(shared, inputs, request).await?)?;
                        tracing::info!("{} has a new key", member.name);
                        self.certificate(&bytes, &member)
                    }
                    (Some(_), Some(_)) => Err(denied("this key is another machine's")),
                    (None, None) => {
                        Ok(Reply::Nobody("this key is not (any more) one of the cluster's".into()))
                    }
                    (None, Some(now)) if new == key => Ok(Reply::Nobody(format!(
                        "this key of {}'s was given its certificate too long ago to be given it again",
                        now.name
                    ))),
                    (None, Some(_)) => Err(denied("this machine has joined no cluster yet: 'berth join'")),
                }
            }
            Question::Leave => {
                let Some(MemberInfo { name, .. }) = member else {
                    return Err(denied("this machine has joined no cluster yet: 'berth join'"));
                };
                match ask_core(shared, inputs, Request::Leave { name: name.clone(), key }).await {
                    Ok(_) => {
                        tracing::info!("{name} left the cluster: it said so from {from}");
                        Ok(Reply::Left)
                    }
                    Err(refusal) if refusal.code == RefusalCode::WrongState => {
                        Ok(Reply::Stays(refusal.message))
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            // Answered before.
            Question::Clock | Question::Settings => Err(denied("not for a machine that has not joined")),
        }
    }

    /// By cluster time, as that is what is on record of the key: the machine's clock may be set, or be far from it.
    fn is_owed(&self, member: &MemberInfo, now: Time) -> bool {
        is_owed(member.renewed, now, self.life.load(Ordering::Relaxed))
    }

    /// Whether a machine may speak for this client.
    pub(crate) fn vouched(shared: &Shared, member: &MemberInfo, peer: Peer) -> Result<(), Refusal> {
        match (member.role, peer.job) {
            (MemberRole::Compute, Some(id)) => {
                let info = shared.snapshot().job(id);
                let here = info.filter(|info| {
                    info.identity.uid == peer.uid
                        && !info.state.is_terminal()
                        && info.layout.nodes.contains(&member.name)
                });
                match here {
                    Some(_) => Ok(()),
                    None => Err(denied(format!(
                        "{} speaks for the jobs that run on it, and job {id} of uid {} is none of them",
                        member.name, peer.uid
                    ))),
                }
            }
            (MemberRole::Compute, None) => {
                Err(denied(format!("{} is a compute node: it speaks for its jobs alone", member.name)))
            }
            (MemberRole::Login, Some(_)) => {
                Err(denied(format!("{} is a login node: no jobs run there", member.name)))
            }
            (MemberRole::Login, None) if peer.uid.0 == 0 => Err(denied(format!(
                "root of the login node {} is nobody here: use an ordinary user, or the controller's machine",
                member.name
            ))),
            (MemberRole::Login, None) => Ok(()),
        }
    }

    /// A machine shows a certificate that is good until then.
    pub(crate) fn shows(&self, key: &KeyId, until: SystemTime) {
        self.certificates.shown(key, until, SystemTime::now(), self.life());
    }

    /// When a machine's certificate ends, as far as is known.
    pub(crate) fn ends(&self, key: &KeyId) -> Option<Time> {
        self.certificates.ends(key)
    }

    /// Tells of certificates that are not renewed in time.
    fn tell_of_ends(&self, shared: &Shared, snapshot: &Snapshot) {
        self.certificates.retain(|key| snapshot.member_by_key(key).is_some());
        let ending = self.certificates.ending(SystemTime::now(), self.life());
        let member = |key: &KeyId| Some(snapshot.member_by_key(key)?.name.0);
        let mut names: Vec<String> = ending.iter().filter_map(member).collect();
        if names.is_empty() {
            return shared.all_clear(ENDS);
        }
        names.sort();
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let text = format!(
            "the certificates of these machines were not renewed, and when they end the machines must join again: {}{more}; look at \
             their agents' logs and disks ('berth node ls' says when that is)",
            names.join(", ")
        );
        shared.alarm(ENDS, text);
    }

    /// Resolves when the key is no member's any more.
    pub(crate) fn until_removed(&self, key: &KeyId) -> oneshot::Receiver<()> {
        let (sender, removed) = oneshot::channel();
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).push((key.clone(), sender));
        removed
    }

    /// Cuts off machines that were removed, and tells of certificates that are about to end, for as long as the controller lives.
    pub(crate) async fn watch(self: Arc<Self>, shared: Arc<Shared>) {
        let mut looked: Option<Instant> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let snapshot = shared.snapshot();
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            // Dropping the sender tells.
            watched.retain(|(key, sender)| !sender.is_closed() && snapshot.member_by_key(key).is_some());
            drop(watched);
            if looked.is_none_or(|at| at.elapsed() >= EVERY.min(self.life() / 30)) {
                looked = Some(Instant::now());
                self.tell_of_ends(&shared, &snapshot);
            }
        }
    }
}

/// Whether a key that counts since then may still ask by itself for the certificate that it was given: for as long as that would be good, if
/// it had arrived. So a machine that was cut off in the middle of an exchange can come back, and none that has let a certificate expire.
fn is_owed(since: Time, now: Time, life: u32) -> bool {
    now.since(since) < Span::from_secs(i64::from(life).max(AGAIN))
}

fn role_name(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Compute => "compute",
        MemberRole::Login => "login",
    }
}

fn enrolled(response: Response) -> Result<MemberInfo, Refusal> {
    match response {
        Response::Enrolled { member } => Ok(member),
        _ => Err(Refusal::new(RefusalCode::Internal, "an answer that does not fit")),
    }
}

/// Asks the core on the controller's own behalf.
async fn ask_core(shared: &Shared, inputs: &Sender<Input>, body: Request) -> Result<Response, Refusal> {
    let stopping =
        || Refusal::new(RefusalCode::Unavailable, "the controller is stopping; try again when it is back");
    let (reply, answer) = oneshot::channel();
    let request = shared.next_request();
    inputs.send(Input::Client { request, actor: controller(), body, reply }).map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_owed_its_certificate_for_as_long_as_that_would_be_good() {
        let (month, at) = (30 * 24 * 3600, Time::from_secs);
        let days = |n: i64| at(n * 24 * 3600);
        assert!(is_owed(days(100), days(100), month) && is_owed(days(100), days(130) - Span(1), month));
        assert!(!is_owed(days(100), days(130), month));
        // Short lives leave time for an answer that was lost.
        assert!(is_owed(at(0), at(AGAIN - 1), 15) && !is_owed(at(0), at(AGAIN), 15));
    }
}
