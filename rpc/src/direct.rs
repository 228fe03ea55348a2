//! Streams from one machine to a node at its own port, without the controller in between. The key in the handshake says which machine
//! comes, and a grant of the controller's, one line of JSON, for what.

use crate::carried::Bringer;
use crate::duplex::Duplex;
use crate::peers::{PeerConnection, PeerIdentity, STREAMS};
use crate::preface::{MAX_PREFACE, Reply, in_time, line, read};
use berth_model::direct::StreamWay;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How long it may take until a node has taken a stream; from then on the way by the controller is the better one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Who came to a node's port, and for what.
pub enum Arrival {
    /// For images: another node.
    Images(PeerConnection),
    /// For a stream: a node or a login node.
    Stream(DirectStream),
    /// With a Start: another node.
    Start(Bringer),
}

/// A node's address in full. `controller`: the host by which this machine reaches the controller's, where the node is that one.
pub(crate) fn reached_at(address: &str, controller: Option<&str>) -> io::Result<String> {
    match (address.strip_prefix(':'), controller) {
        (Some(port), Some(host)) => Ok(format!("{host}:{port}")),
        (Some(_), None) => Err(io::Error::new(io::ErrorKind::NotFound, "its host is not known")),
        (None, _) => Ok(address.to_string()),
    }
}

/// A machine that comes for a stream, and has not yet said for which.
pub struct DirectStream {
    wire: Duplex,
    key: String,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Opening {
    grant: String,
}

impl DirectStream {
    pub(crate) fn new(wire: Duplex, key: String) -> DirectStream {
        DirectStream { wire, key }
    }

    /// Digest of the key of the machine.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What it has to show for itself.
    ///
    /// # Errors
    /// It says nothing in time, or something else.
    pub async fn grant(&mut self) -> io::Result<String> {
        read(&mut self.wire, MAX_PREFACE).await.map(|Opening { grant }| grant)
    }

    /// Takes it: what follows are the frames of a stream.
    ///
    /// # Errors
    /// It is gone.
    pub async fn welcome(mut self) -> io::Result<Duplex> {
        Reply::Welcome.write(&mut self.wire).await?;
        Ok(self.wire)
    }

    /// Sends it away.
    pub async fn refuse(mut self, why: &str) {
        // Who does not listen any more needs no reason.
        let _ = Reply::Refused(why.to_string()).write(&mut self.wire).await;
        let _ = in_time(self.wire.shutdown()).await;
    }
}

impl PeerIdentity {
    /// A stream to a node, by a way that the controller told. `controller`: the host by which this machine reaches the controller's,
    /// where the node is that one.
    ///
    /// # Errors
    /// The node cannot be reached within two seconds, or does not take it: in its words.
    pub async fn open_stream(&self, way: &StreamWay, controller: Option<&str>) -> io::Result<Duplex> {
        let address = reached_at(&way.address, controller)?;
        let work = async {
            let mut wire = self.dial(&address, &way.key, STREAMS).await?;
            wire.write_all(&line(&Opening { grant: way.grant.clone() })).await?;
            wire.flush().await?;
            match Reply::read(&mut wire).await? {
                Reply::Welcome => Ok(wire),
                Reply::Refused(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer that does not fit")),
            }
        };
        tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no stream within 2 s; is a firewall in between?"))
        })
    }
}
