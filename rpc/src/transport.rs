//! Unix sockets beneath gRPC: who is at the other end, and the bytes that come before HTTP/2.

use crate::error::RpcError;
use berth_model::NodeName;
use berth_model::request::Peer;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::Channel;

/// Longest preface line on the agents' socket.
const MAX_PREFACE: usize = 1024;
/// How long the other side may take for what comes before HTTP/2.
pub(crate) const PREFACE_PATIENCE: Duration = Duration::from_secs(5);
/// A frame of the agents' stream protocol (type u8, task u32, length u32) that asks for the controller.
const CONTROLLER_FRAME: [u8; 9] = [2, 0, 0, 0, 0, 0, 0, 0, 0];
/// The type of its refusal. An HTTP/2 server begins with a frame whose first byte is 0.
const REFUSED_FRAME: u8 = 4;

/// Where a controller is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The controller's public socket.
    Unix(PathBuf),
    /// An agent's socket (`agent.sock`, or `job.sock` in a container), which passes us on to the controller.
    Job(PathBuf),
}

impl Endpoint {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        match self {
            Endpoint::Unix(path) | Endpoint::Job(path) => path,
        }
    }

    fn unreachable(&self, e: &io::Error) -> RpcError {
        let why = match (e.kind(), self) {
            (io::ErrorKind::NotFound, Endpoint::Unix(_)) => {
                "there is no such socket; start the cluster with 'berth up', or name its state directory with \
                 --state or BERTH_STATE"
                    .to_string()
            }
            (io::ErrorKind::ConnectionRefused, Endpoint::Unix(_)) => {
                "nothing listens there, the controller was stopped or killed; start it again with 'berth up'"
                    .to_string()
            }
            (io::ErrorKind::ConnectionRefused, Endpoint::Job(_)) => {
                "nothing listens there, the node's agent was stopped or killed; it is restarted with 'berth up' \
                 on the node"
                    .to_string()
            }
            (io::ErrorKind::PermissionDenied, _) => {
                "permission denied; check that its directories may be entered".to_string()
            }
            _ => e.to_string(),
        };
        RpcError::Unreachable { endpoint: self.path().display().to_string(), why }
    }

    pub(crate) async fn channel(&self) -> Result<Channel, RpcError> {
        let to = self.clone();
        let open: Opener = Arc::new(move || {
            let to = to.clone();
            Box::pin(async move { to.open().await })
        });
        connect(self, open).await
    }

    async fn open(&self) -> io::Result<Prefixed> {
        let mut stream = UnixStream::connect(self.path()).await?;
        let Endpoint::Job(_) = self else { return Ok(Prefixed { first: None, stream }) };
        let exchange = async {
            stream.write_all(&CONTROLLER_FRAME).await?;
            let first = stream.read_u8().await.map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the node's agent closed the connection; the controller may be restarting",
                ),
                _ => e,
            })?;
            if first != REFUSED_FRAME {
                return Ok(first);
            }
            let _task = stream.read_u32_le().await?;
            let length = stream.read_u32_le().await?.min(64 << 10);
            let mut text = Vec::new();
            (&mut stream).take(u64::from(length)).read_to_end(&mut text).await?;
            Err(io::Error::other(String::from_utf8_lossy(&text).into_owned()))
        };
        let first = in_time(exchange).await?;
        Ok(Prefixed { first: Some(first), stream })
    }
}

/// The line of JSON with which each connection to the private socket begins: for whom the agent speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Preface {
    /// For itself.
    Node {
        /// The node's name.
        node: NodeName,
    },
    /// For a client that came through a job's listener.
    Client(Peer),
}

impl Preface {
    /// The line, line feed included.
    pub fn line(&self) -> Vec<u8> {
        // A map of strings and numbers always serialises.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Reads the line and not a byte more.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Preface> {
        let read = async {
            let mut line = Vec::with_capacity(64);
            loop {
                match stream.read_u8().await? {
                    b'\n' => break,
                    _ if line.len() == MAX_PREFACE => {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "the preface is too long"));
                    }
                    byte => line.push(byte),
                }
            }
            serde_json::from_slice(&line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
        };
        in_time(read).await
    }
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PREFACE_PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s")))
}

/// Connects to the private socket and says for whom.
pub(crate) async fn private_channel(socket: &Path, preface: &Preface) -> Result<Channel, RpcError> {
    let (path, line) = (socket.to_path_buf(), preface.line());
    let open: Opener = Arc::new(move || {
        let (path, line) = (path.clone(), line.clone());
        Box::pin(async move {
            let mut stream = UnixStream::connect(&path).await?;
            in_time(stream.write_all(&line)).await?;
            Ok(Prefixed { first: None, stream })
        })
    });
    connect(&Endpoint::Unix(socket.to_path_buf()), open).await
}

/// Opens a connection, and opens it again after it was lost. One type for both sockets, because HTTP/2 beneath a channel
/// is compiled once for each.
type Opener = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Prefixed>> + Send>> + Send + Sync>;

async fn connect(to: &Endpoint, open: Opener) -> Result<Channel, RpcError> {
    // Never resolved: the connector knows where to go.
    let endpoint = tonic::transport::Endpoint::from_static("http://berth.invalid")
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = open();
        async move { stream.await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|e| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&e);
        while let Some(c) = cause {
            if let Some(io) = c.downcast_ref::<io::Error>() {
                return to.unreachable(io);
            }
            cause = c.source();
        }
        to.unreachable(&io::Error::other(e.to_string()))
    })
}

/// A stream of which one byte was read already.
pub(crate) struct Prefixed {
    first: Option<u8>,
    stream: UnixStream,
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Prefixed {
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
