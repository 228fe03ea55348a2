//! Connections between nodes, for images: TLS by the certificates of the cluster, on both sides. A key says who somebody is;
//! whether that may have anything, others say. Everything here blocks.

use berth_trust::{Identity, PrivateKey, TrustError};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The role of those who speak to each other here.
const ROLE: &str = "compute";
/// How long a node may take to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the other side may take to say anything, or to take anything.
pub const SILENCE: Duration = Duration::from_secs(15);

/// Who this node is to other nodes.
#[derive(Debug)]
pub struct PeerIdentity {
    key: String,
    certificate: Vec<u8>,
    made: SystemTime,
    authority: Vec<u8>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
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
        Ok(PeerIdentity {
            key: own.key.id(),
            certificate: own.certificate.clone(),
            made: SystemTime::now(),
            server: berth_trust::member_server_config(&authority, own)?,
            client: berth_trust::client_config(own, &authority, ROLE)?,
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

    /// Takes a connection of another node.
    ///
    /// # Errors
    /// Who is there is no node of this cluster: a login node, a user or a stranger.
    pub fn accept(&self, socket: TcpStream) -> io::Result<PeerConnection> {
        prepare(&socket)?;
        let mut tls = ServerConnection::new(Arc::clone(&self.server)).map_err(io::Error::other)?;
        let mut wire = socket.try_clone()?;
        while tls.is_handshaking() {
            tls.complete_io(&mut wire)?;
        }
        let key = self.judge(tls.peer_certificates())?;
        Ok(PeerConnection { stream: Stream::Server(Box::new(StreamOwned::new(tls, wire))), key, socket })
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
        let key = self.judge(tls.peer_certificates())?;
        Ok(PeerConnection { stream: Stream::Client(Box::new(StreamOwned::new(tls, wire))), key, socket })
    }

    fn judge(&self, certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>) -> io::Result<String> {
        berth_trust::presented_as(&self.authority, certificates, SystemTime::now(), ROLE)
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
