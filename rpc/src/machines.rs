//! The controller's port for other machines: TLS, whose key it is, and what the connection is for.

use crate::duplex::{Duplex, prepare};
use crate::peers::ROLE;
use crate::places::Places;
use crate::preface::{Preface, Question, Reply};
use crate::serve::{Caller, Proven, Service, vouched_place};
use crate::strangers::{Stranger, Strangers, Unproven};
use berth_model::NodeName;
use berth_model::member::{KeyId, MemberInfo, MemberRole, MemberState};
use berth_model::request::Peer;
use berth_trust::Presented;
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// The port, and what is proven by it.
#[derive(Debug)]
pub struct MachineListener {
    listener: TcpListener,
    authority: Vec<u8>,
    tls: RwLock<Arc<ServerConfig>>,
}

impl MachineListener {
    /// `authority`: its certificate, DER.
    pub fn new(listener: TcpListener, authority: Vec<u8>, tls: Arc<ServerConfig>) -> MachineListener {
        MachineListener { listener, authority, tls: RwLock::new(tls) }
    }

    /// From now on the controller shows another certificate.
    pub fn renew(&self, tls: Arc<ServerConfig>) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket is of no use.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The machine at the other end.
enum Machine {
    Member(MemberInfo),
    /// Has a key, and nothing else yet.
    Stranger(KeyId),
}

impl Machine {
    fn key(&self) -> &KeyId {
        match self {
            Machine::Member(member) => &member.key,
            Machine::Stranger(key) => key,
        }
    }

    /// A member that may do what members do.
    fn approved(&self) -> Result<&MemberInfo, String> {
        match self {
            Machine::Member(member) if member.state == MemberState::Approved => Ok(member),
            Machine::Member(member) => Err(format!(
                "{} waits for an administrator's word: 'berth node approve {}' on the controller",
                member.name, member.name
            )),
            Machine::Stranger(_) => Err("this machine has joined no cluster yet: 'berth join'".into()),
        }
    }

    fn node(&self) -> Result<&MemberInfo, String> {
        let member = self.approved()?;
        match member.role {
            MemberRole::Compute => Ok(member),
            MemberRole::Login => {
                Err(format!("{} joined as a login node: it runs no jobs and has no streams", member.name))
            }
        }
    }
}

/// What comes of a connection.
enum Plan {
    Answer(Reply),
    Carry(Caller),
    Stream(Peer, NodeName),
    Answered(NodeName, u64),
}

/// Takes machines' connections until the task is dropped.
pub(crate) async fn accept<S: Service>(
    port: Arc<MachineListener>,
    service: Arc<S>,
    vouched: Places,
    accepted: mpsc::Sender<io::Result<Proven>>,
) {
    let strangers = Strangers::new();
    loop {
        strangers.room().await;
        let (stream, from) = match port.listener.accept().await {
            Ok(connection) => connection,
            Err(_) => {
                // Out of descriptors or memory: connections wait in the backlog until some are closed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let stranger = strangers.admit(from.ip());
        let (port, service) = (Arc::clone(&port), Arc::clone(&service));
        let (vouched, accepted) = (vouched.clone(), accepted.clone());
        tokio::spawn(async move {
            if let Err(why) = meet(&port, (stream, from), stranger, &service, (vouched, accepted)).await {
                service.turned_away(from, &why.to_string());
            }
        });
    }
}

/// Hears who is there, and does what may be done for it.
async fn meet<S: Service>(
    port: &MachineListener,
    (stream, from): (TcpStream, SocketAddr),
    mut stranger: Stranger,
    service: &Arc<S>,
    ways: (Places, mpsc::Sender<io::Result<Proven>>),
) -> Result<(), Unproven> {
    stranger.speaks(&stream).await?;
    let known = stranger.attend(introduce(port, stream, from, &**service)).await?;
    match known {
        Ok((wire, machine @ Machine::Member(_), preface)) => {
            drop(stranger);
            receive(wire, (machine, preface), from, Arc::clone(service), ways).await;
        }
        // A key that it made itself proves nothing: it keeps its place until it has its answer.
        Ok((wire, machine @ Machine::Stranger(_), preface)) => {
            stranger.begin_anew();
            stranger.attend(receive(wire, (machine, preface), from, Arc::clone(service), ways)).await?;
        }
        Err(why) => service.turned_away(from, &why),
    }
    Ok(())
}

/// The handshake, and the first line.
async fn introduce<S: Service>(
    port: &MachineListener,
    stream: TcpStream,
    from: SocketAddr,
    service: &S,
) -> Result<(Duplex, Machine, Preface), String> {
    let words = |e: io::Error| e.to_string();
    prepare(&stream).map_err(words)?;
    let tls = Arc::clone(&port.tls.read().unwrap_or_else(PoisonError::into_inner));
    let stream = TlsAcceptor::from(tls).accept(stream).await.map_err(words)?;
    let certificates = stream.get_ref().1.peer_certificates();
    let presented = berth_trust::presented(&port.authority, certificates, SystemTime::now());
    let shown = certificates.and_then(<[_]>::first).cloned();
    let mut wire = Duplex::Tls(Box::new(stream.into()));
    let mut unknown = None;
    let machine = match presented {
        // Whatever a certificate says, a key that the cluster does not have is nobody's.
        Ok(Presented::Member { key }) => match service.member(&KeyId(key.clone())) {
            Some(member) => {
                if let Some(Ok((_, until))) = shown.as_ref().map(|shown| berth_trust::validity(shown)) {
                    service.shows(&member.key, until);
                }
                Ok(Machine::Member(member))
            }
            None => {
                unknown = Some(KeyId(key));
                Err("this machine's key is not (any more) one of the cluster's: join again with a new token"
                    .into())
            }
        },
        Ok(Presented::Stranger { key }) => Ok(Machine::Stranger(KeyId(key))),
        Ok(Presented::Nobody) => Err("it shows no certificate".to_string()),
        Err(e) => Err(e.to_string()),
    };
    match machine {
        Ok(machine) => {
            let preface = Preface::read(&mut wire).await.map_err(|e| format!("its first line: {e}"))?;
            Ok((wire, machine, preface))
        }
        Err(why) => {
            let mut reply = Reply::Refused(why.clone());
            if let (Some(key), Some(shown)) = (unknown, &shown) {
                match Preface::read(&mut wire).await {
                    // After a restore it may have joined since the backup, and run jobs: an administrator is asked.
                    Ok(Preface::Node { node }) if berth_trust::is_of(shown, &node.0, ROLE) => {
                        service.unknown(node, key, from);
                    }
                    Ok(Preface::Question { question: Question::Renew { .. } }) => {
                        reply = Reply::Nobody(why.clone());
                    }
                    _ => {}
                }
            }
            last_word(&mut wire, &reply).await;
            Err(why)
        }
    }
}

async fn refuse(wire: &mut Duplex, why: String) {
    last_word(wire, &Reply::Refused(why)).await;
}

async fn last_word(wire: &mut Duplex, reply: &Reply) {
    // It may be gone already.
    let _ = reply.write(wire).await;
    let _ = wire.shutdown().await;
}

async fn receive<S: Service>(
    mut wire: Duplex,
    (machine, preface): (Machine, Preface),
    from: SocketAddr,
    service: Arc<S>,
    (vouched, accepted): (Places, mpsc::Sender<io::Result<Proven>>),
) {
    let plan = match plan(&machine, preface, from, &*service).await {
        Ok(plan) => plan,
        Err(why) => {
            service.turned_away(from, &why);
            return refuse(&mut wire, why).await;
        }
    };
    if let Plan::Answer(reply) = plan {
        return last_word(&mut wire, &reply).await;
    }
    // One user must not use up the descriptors of all.
    let place = match &plan {
        Plan::Carry(Caller::Vouched { peer, .. }) => match vouched_place(&vouched, peer.uid) {
            Ok(place) => Some(place),
            Err(why) => return refuse(&mut wire, why).await,
        },
        _ => None,
    };
    if Reply::Welcome.write(&mut wire).await.is_err() {
        return;
    }
    let gone = service.until_removed(machine.key());
    match plan {
        Plan::Answer(_) => {}
        Plan::Carry(caller) => {
            // An error means that we are stopping.
            let _ = accepted.send(Ok(Proven::remote(wire, caller, place, gone))).await;
        }
        Plan::Stream(peer, to) => {
            tokio::select! {
                () = service.stream(peer, to, wire) => {}
                _ = gone => {}
            }
        }
        Plan::Answered(node, number) => service.answered(node, number, wire, gone),
    }
}

/// What a machine may do: the one place where that is decided.
async fn plan<S: Service>(
    machine: &Machine,
    preface: Preface,
    from: SocketAddr,
    service: &S,
) -> Result<Plan, String> {
    match preface {
        Preface::Question { question: Question::Clock } => Ok(Plan::Answer(service.clock())),
        Preface::Question { question } => {
            let member = match machine {
                Machine::Member(member) => Some(member.clone()),
                Machine::Stranger(_) => None,
            };
            if member.is_some() && matches!(question, Question::Settings) {
                machine.approved()?;
            }
            let answer = service.question(machine.key().clone(), member, from, question).await;
            answer.map(Plan::Answer).map_err(|refusal| refusal.message)
        }
        Preface::Node { node } => {
            let member = machine.node()?;
            if member.name != node {
                return Err(format!("this key is {}'s, and speaks for no other node ({node})", member.name));
            }
            Ok(Plan::Carry(Caller::Agent(node)))
        }
        Preface::Client(peer) => {
            let member = machine.approved()?;
            service.vouched(member, peer).map_err(|refusal| refusal.message)?;
            let (administrators, by) = (member.administrators, member.name.clone());
            Ok(Plan::Carry(Caller::Vouched { peer, administrators, by }))
        }
        Preface::Stream { to, peer } => {
            let member = machine.approved()?;
            service.vouched(member, peer).map_err(|refusal| refusal.message)?;
            Ok(Plan::Stream(peer, to))
        }
        Preface::Ways { ways, peer, only, key: _ } => {
            let member = machine.approved()?;
            service.vouched(member, peer).map_err(|refusal| refusal.message)?;
            // What it says of its key counts for nothing: this connection shows it.
            let ways = service.ways(machine.key().0.clone(), peer, ways, only).await;
            ways.map(|ways| Plan::Answer(Reply::Ways(ways))).map_err(|refusal| refusal.message)
        }
        Preface::Answer { answer } => Ok(Plan::Answered(machine.node()?.name.clone(), answer)),
    }
}
