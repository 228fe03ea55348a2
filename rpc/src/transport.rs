//! What lies beneath gRPC for clients: the sockets, and the bytes that come before HTTP/2.

use crate::duplex::Duplex;
use crate::error::RpcError;
use crate::preface::in_time;
use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::Channel;

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
            (io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, Endpoint::Job(_)) => {
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
        connect(open, |e| self.unreachable(e)).await
    }

    async fn open(&self) -> io::Result<Prefixed> {
        let mut stream = UnixStream::connect(self.path()).await?;
        let Endpoint::Job(_) = self else { return Ok(Duplex::Unix(stream).into()) };
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
        Ok(Prefixed { first: Some(first), stream: Duplex::Unix(stream) })
    }
}

/// Opens a connection, and opens it again after it was lost. One type for all ways, because HTTP/2 beneath a channel
/// is compiled once for each.
pub(crate) type Opener =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Prefixed>> + Send>> + Send + Sync>;

/// A channel over what `open` gives; `unreachable` puts into words why it gave nothing.
pub(crate) async fn connect(
    open: Opener,
    unreachable: impl Fn(&io::Error) -> RpcError,
) -> Result<Channel, RpcError> {
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
                return unreachable(io);
            }
            cause = c.source();
        }
        unreachable(&io::Error::other(e.to_string()))
    })
}

/// A stream of which one byte was read already.
pub(crate) struct Prefixed {
    first: Option<u8>,
    stream: Duplex,
}

impl From<Duplex> for Prefixed {
    fn from(stream: Duplex) -> Prefixed {
        Prefixed { first: None, stream }
    }
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
