//! A connection between two parts: a unix socket, or TLS between machines.

use rustix::net::sockopt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

/// Silence after which the other machine is asked for a sign of life, and between questions.
const QUIET: Duration = Duration::from_secs(10);
/// Bytes that are not acknowledged for so long mean that the other machine cannot be reached.
const UNHEARD: u32 = 30_000;

/// A connection, of whichever kind. One type for all, because what speaks over it is compiled once for each.
#[derive(Debug)]
pub enum Duplex {
    /// Within a machine: the kernel says who is at the other end.
    Unix(UnixStream),
    /// Between machines.
    Tls(Box<TlsStream<TcpStream>>),
}

impl From<UnixStream> for Duplex {
    fn from(stream: UnixStream) -> Duplex {
        Duplex::Unix(stream)
    }
}

/// Has a connection to a machine that went away noticed within half a minute, whoever was to speak next; small messages
/// leave at once.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, QUIET)?;
    sockopt::set_tcp_keepintvl(stream, QUIET)?;
    sockopt::set_tcp_keepcnt(stream, 2)?;
    sockopt::set_tcp_user_timeout(stream, UNHEARD)?;
    Ok(())
}

impl AsyncRead for Duplex {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Duplex::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Duplex::Tls(stream) => match Pin::new(stream.as_mut()).poll_read(cx, buf) {
                // A machine that was switched off closes nothing; every protocol of ours says by itself when it is over.
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                other => other,
            },
        }
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Duplex::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Duplex::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Duplex::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Duplex::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Duplex::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Duplex::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
