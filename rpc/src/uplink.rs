//! The way from a machine's own parts to the controller: its private socket on the same machine, TLS from another.

use crate::duplex::{Duplex, prepare};
use crate::error::RpcError;
use crate::preface::{Preface, Question, Reply, in_time};
use crate::transport::{Opener, connect};
use berth_model::direct::StreamWay;
use berth_model::request::{Refusal, RefusalCode};
use berth_trust::TrustError;
use rustls::ClientConfig;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

/// How long a controller on another machine may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The way to the controller.
#[derive(Debug, Clone)]
pub enum Uplink {
    /// Its private socket: root and its own user alone may connect.
    Local(PathBuf),
    /// On another machine.
    Remote(Arc<Remote>),
}

/// A controller on another machine, and who we are to it.
#[derive(Debug)]
pub struct Remote {
    address: String,
    tls: RwLock<Arc<ClientConfig>>,
    /// The other end of the last connection that was made.
    reached: RwLock<Option<IpAddr>>,
}

impl Remote {
    /// `address`: `host:port`.
    pub fn new(address: String, tls: Arc<ClientConfig>) -> Remote {
        Remote { address, tls: RwLock::new(tls), reached: RwLock::default() }
    }

    /// From now on connections are made with this: a new key, or a new certificate.
    pub fn renew(&self, tls: Arc<ClientConfig>) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    async fn open(&self) -> io::Result<Duplex> {
        let tls = Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner));
        let work = async {
            let stream = TcpStream::connect(&self.address).await?;
            prepare(&stream)?;
            let other = stream.peer_addr().ok().map(|address| address.ip());
            let stream = TlsConnector::from(tls).connect(berth_trust::server_name(), stream).await?;
            *self.reached.write().unwrap_or_else(PoisonError::into_inner) = other;
            Ok(Duplex::Tls(Box::new(stream.into())))
        };
        tokio::time::timeout(CONNECT, work).await.unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no connection within 10 s; is a firewall in between?",
            ))
        })
    }
}

impl Uplink {
    /// Where it is, for messages.
    pub fn name(&self) -> String {
        match self {
            Uplink::Local(path) => path.display().to_string(),
            Uplink::Remote(remote) => remote.address.clone(),
        }
    }

    /// At which address a controller on another machine was reached last, if it was.
    pub fn reached(&self) -> Option<IpAddr> {
        match self {
            Uplink::Local(_) => None,
            Uplink::Remote(remote) => *remote.reached.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// A connection for what the preface says.
    ///
    /// # Errors
    /// It cannot be made, or the controller refuses it: in its words, as [`io::ErrorKind::PermissionDenied`].
    pub async fn open(&self, preface: &Preface) -> io::Result<Duplex> {
        match self {
            Uplink::Local(path) => {
                let mut stream = UnixStream::connect(path).await?;
                in_time(stream.write_all(&preface.line())).await?;
                Ok(Duplex::Unix(stream))
            }
            Uplink::Remote(remote) => {
                let mut stream = remote.open().await?;
                match say(&mut stream, preface).await? {
                    Reply::Welcome => Ok(stream),
                    Reply::Refused(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
                    _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer that does not fit")),
                }
            }
        }
    }

    /// Asks how the nodes of a step are reached without the controller: [`Preface::Ways`].
    ///
    /// # Errors
    /// The controller cannot be reached, refuses, or is of a version that knows no such ways.
    pub async fn ways(&self, preface: &Preface) -> io::Result<Vec<StreamWay>> {
        let reply = match self {
            Uplink::Local(path) => say(&mut UnixStream::connect(path).await?, preface).await?,
            Uplink::Remote(remote) => say(&mut remote.open().await?, preface).await?,
        };
        match reply {
            Reply::Ways(ways) => Ok(ways),
            Reply::Refused(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer that does not fit")),
        }
    }

    /// Asks a question of a controller on another machine.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    pub async fn ask(&self, question: Question) -> Result<Reply, RpcError> {
        let Uplink::Remote(remote) = self else {
            return Err(self.unreachable(&io::Error::other("on this machine there is nothing to ask it")));
        };
        let asked = async { say(&mut remote.open().await?, &Preface::Question { question }).await };
        match asked.await.map_err(|e| self.unreachable(&e))? {
            Reply::Refused(why) => Err(RpcError::Refused(Refusal::new(RefusalCode::Denied, why))),
            reply => Ok(reply),
        }
    }

    pub(crate) fn unreachable(&self, e: &io::Error) -> RpcError {
        let why = match (self, e.kind()) {
            (_, io::ErrorKind::PermissionDenied) if matches!(self, Uplink::Remote(_)) => {
                return RpcError::Refused(Refusal::new(RefusalCode::Denied, e.to_string()));
            }
            (Uplink::Remote(_), io::ErrorKind::ConnectionRefused) => {
                "nothing listens there: is the controller up, and is this its address? It listens from the first 'berth token \
                 create' on"
                    .to_string()
            }
            // The standard library has no kind for it.
            _ if e.to_string().starts_with("failed to lookup address information") => {
                format!("{e}; check the spelling, and that this machine can resolve names, or write the address")
            }
            // Beneath the words of the TLS library are our own.
            _ => TrustError::within(e).map_or_else(|| e.to_string(), ToString::to_string),
        };
        RpcError::Unreachable { endpoint: self.name(), why }
    }

    pub(crate) async fn channel(&self, preface: &Preface) -> Result<Channel, RpcError> {
        let (to, preface) = (self.clone(), preface.clone());
        let open: Opener = Arc::new(move || {
            let (to, preface) = (to.clone(), preface.clone());
            Box::pin(async move { Ok(to.open(&preface).await?.into()) })
        });
        connect(open, |e| self.unreachable(e)).await
    }
}

async fn say(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), preface: &Preface) -> io::Result<Reply> {
    in_time(async {
        stream.write_all(&preface.line()).await?;
        stream.flush().await
    })
    .await?;
    Reply::read(stream).await
}
