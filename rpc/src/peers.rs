//! Connections between machines at a node's own port: TLS by the certificates of the cluster, on both sides. A key says who somebody
//! is; whether that may have anything, others say. What is spoken about images blocks, streams do not.

use crate::carried::Bringer;
use crate::direct::{Arrival, DirectStream};
use crate::duplex::{self, Duplex};
use berth_trust::{Identity, PrivateKey, TrustError};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The role of those who speak to each other here.
pub(crate) const ROLE: &str = "compute";
/// The other role of those who come for streams.
const LOGIN: &str = "login";
/// What is spoken where somebody comes for a stream, as the handshake names it (RFC 7301).
pub(crate) const STREAMS: &[u8] = b"berth-streams/1";
/// The same where a node brings a Start.
pub(crate) const STARTS: &[u8] = b"berth-starts/1";
/// What is spoken about images.
const IMAGES: &[u8] = b"http/1.1";
/// How long a node may take to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the other side may take to say anything, or to take anything.
pub const SILENCE: Duration = Duration::from_secs(15);

/// Who this machine is to others.
#[derive(Debug)]
pub struct PeerIdentity {
    key: String,
    certificate: Vec<u8>,
    made: SystemTime,
    authority: Vec<u8>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    streams: Arc<ClientConfig>,
    starts: Arc<ClientConfig>,
}

/// A connection to another node.
pub struct PeerConnection {
    stream: Stream,
    /// Digest of the key of the other side.
    key: String,
    /// The same connection, to cut it.
    socket: TcpStream,
}

enum Stream {
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl PeerIdentity {
    /// `authority`: its certificate, DER.
    ///
    /// # Errors
    /// Key and certificate do not fit each other.
    pub fn new(own: &Identity, authority: Vec<u8>) -> Result<PeerIdentity, TrustError> {
        let mut server = Arc::unwrap_or_clone(berth_trust::member_server_config(&authority, own)?);
        server.alpn_protocols = vec![STREAMS.to_vec(), STARTS.to_vec(), IMAGES.to_vec()];
        let client = berth_trust::client_config(own, &authority, ROLE)?;
        let speaking = |protocol: &[u8]| {
            let mut config = ClientConfig::clone(&client);
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        let (streams, starts) = (speaking(STREAMS), speaking(STARTS));
        Ok(PeerIdentity {
            key: own.key.id(),
            certificate: own.certificate.clone(),
            made: SystemTime::now(),
            server: Arc::new(server),
            client,
            streams,
            starts,
            authority,
        })
    }

    /// Of the machine of the controller itself, whose authority is at hand: a key of its own, for this process.
    ///
    /// # Errors
    /// The authority cannot be read, or signs nothing.
    pub fn beside(
        authority: &berth_trust::Authority,
        name: &str,
        days: u32,
    ) -> Result<PeerIdentity, TrustError> {
        let key = PrivateKey::make()?;
        let life = Duration::from_secs(u64::from(days) * 24 * 3600);
        let certificate = authority.issue(&key.public(), name, ROLE, SystemTime::now(), life)?;
        PeerIdentity::new(&Identity { key, certificate }, authority.certificate().to_vec())
    }

    /// Digest of its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether that is what it shows.
    pub fn shows(&self, own: &Identity) -> bool {
        self.certificate == own.certificate && self.key == own.key.id()
    }

    /// Whether it is in use for more than so many days.
    pub fn is_older(&self, days: u32) -> bool {
        self.made.elapsed().is_ok_and(|age| age > Duration::from_secs(u64::from(days) * 24 * 3600))
    }

    /// Takes a connection of another machine.
    ///
    /// # Errors
    /// Who is there is no node of this cluster: a user or a stranger; or a login node, which may come for streams alone.
    pub async fn arrive(&self, socket: tokio::net::TcpStream) -> io::Result<Arrival> {
        duplex::prepare(&socket)?;
        let tls = TlsAcceptor::from(Arc::clone(&self.server)).accept(socket).await?;
        let (_, session) = tls.get_ref();
        if session.alpn_protocol() == Some(STREAMS) {
            let of = |role| self.judge(session.peer_certificates(), role);
            let key = of(ROLE).or_else(|_| of(LOGIN))?;
            return Ok(Arrival::Stream(DirectStream::new(Duplex::Tls(Box::new(tls.into())), key)));
        }
        let key = self.judge(session.peer_certificates(), ROLE)?;
        if session.alpn_protocol() == Some(STARTS) {
            return Ok(Arrival::Start(Bringer::new(
                Duplex::Tls(Box::new(tls.into())),
                self.authority.clone(),
            )));
        }
        // Images are given by a thread for each connection.
        let (socket, session) = tls.into_inner();
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        prepare(&socket)?;
        let wire = socket.try_clone()?;
        let stream = Stream::Server(Box::new(StreamOwned::new(session, wire)));
        Ok(Arrival::Images(PeerConnection { stream, key, socket }))
    }

    /// Connects to the node with this key, to speak so: of streams or of Starts.
    ///
    /// # Errors
    /// It cannot be reached, somebody else is there, or it does not speak so.
    pub(crate) async fn dial(&self, address: &str, key: &str, protocol: &[u8]) -> io::Result<Duplex> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in tokio::net::lookup_host(address).await? {
            match self.dial_to(address, protocol).await {
                Ok((wire, shown)) if shown == key => return Ok(wire),
                Ok(_) => last = io::Error::new(io::ErrorKind::PermissionDenied, "another node answers there"),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn dial_to(&self, address: SocketAddr, protocol: &[u8]) -> io::Result<(Duplex, String)> {
        let socket = tokio::net::TcpStream::connect(address).await?;
        duplex::prepare(&socket)?;
        let config = if protocol == STARTS { &self.starts } else { &self.streams };
        let connector = TlsConnector::from(Arc::clone(config));
        let tls = connector.connect(berth_trust::server_name(), socket).await?;
        let (_, session) = tls.get_ref();
        if session.alpn_protocol() != Some(protocol) {
            let why = format!("{} is not spoken there", String::from_utf8_lossy(protocol));
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let key = self.judge(session.peer_certificates(), ROLE)?;
        Ok((Duplex::Tls(Box::new(tls.into())), key))
    }

    /// Connects to the node with this key.
    ///
    /// # Errors
    /// It cannot be reached, or somebody else is there.
    pub fn connect(&self, address: &str, key: &str) -> io::Result<PeerConnection> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in address.to_socket_addrs()? {
            match self.connect_to(address) {
                Ok(connection) if connection.key == key => return Ok(connection),
                Ok(_) => last = io::Error::new(io::ErrorKind::PermissionDenied, "another node answers there"),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn connect_to(&self, address: SocketAddr) -> io::Result<PeerConnection> {
        let socket = TcpStream::connect_timeout(&address, CONNECT)?;
        prepare(&socket)?;
        let tls = ClientConnection::new(Arc::clone(&self.client), berth_trust::server_name());
        let mut tls = tls.map_err(io::Error::other)?;
        let mut wire = socket.try_clone()?;
        while tls.is_handshaking() {
            tls.complete_io(&mut wire)?;
        }
        let key = self.judge(tls.peer_certificates(), ROLE)?;
        Ok(PeerConnection { stream: Stream::Client(Box::new(StreamOwned::new(tls, wire))), key, socket })
    }

    fn judge(
        &self,
        certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>,
        role: &str,
    ) -> io::Result<String> {
        berth_trust::presented_as(&self.authority, certificates, SystemTime::now(), role)
            .map_err(|e| io::Error::new(io::ErrorKind::PermissionDenied, e.to_string()))
    }
}

impl PeerConnection {
    /// Digest of the key of the other side.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A handle with which the connection is cut, whatever waits for it.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn handle(&self) -> io::Result<TcpStream> {
        self.socket.try_clone()
    }
}

impl Read for PeerConnection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Server(stream) => stream.read(buffer),
            Stream::Client(stream) => stream.read(buffer),
        }
    }
}

impl Write for PeerConnection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Server(stream) => stream.write(bytes),
            Stream::Client(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Server(stream) => stream.flush(),
            Stream::Client(stream) => stream.flush(),
        }
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.set_write_timeout(Some(SILENCE))
}
