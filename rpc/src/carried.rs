//! Starts on their way from one node to another, at the other's own port: the opening that the controller signed, behind its length, and then
//! what it promises. Nothing is answered, and whoever comes is a node of the cluster; believed is the controller alone.

use crate::branch::{Expected, MAX_OPENING, Unbelieved};
use crate::duplex::Duplex;
use crate::peers::{PeerIdentity, STARTS};
use berth_model::NodeName;
use berth_model::carry::{Carried, Carry, Hand};
use std::io;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long it may take to hand one node its Start: later the controller has sent it itself.
const HANDED: Duration = Duration::from_secs(1);

/// Another node that brings a Start.
pub struct Bringer {
    wire: Duplex,
    authority: Vec<u8>,
}

impl Bringer {
    pub(crate) fn new(wire: Duplex, authority: Vec<u8>) -> Bringer {
        Bringer { wire, authority }
    }

    /// Takes what it brings, if the controller signed it for this node.
    ///
    /// # Errors
    /// It did not, or it does not come whole.
    pub async fn take(mut self, node: &NodeName) -> Result<Carried, Unbelieved> {
        let size = usize::try_from(self.wire.read_u32().await?).unwrap_or(usize::MAX);
        if size > MAX_OPENING {
            return Err(Unbelieved::Malformed("its opening is too long".to_string()));
        }
        let opening = self.bytes(size).await?;
        let expected = Expected::open(&self.authority, node, &opening, SystemTime::now())?;
        // From here on it is as long as the controller says.
        let (common, part) = expected.sizes();
        let (common, part) = (self.bytes(common).await?, self.bytes(part).await?);
        expected.read(node, &common, &part)
    }

    async fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.wire.read_exact(&mut bytes).await?;
        Ok(bytes)
    }
}

impl PeerIdentity {
    /// Hands a node what of this is for it. `controller`: as for [`PeerIdentity::open_stream`].
    ///
    /// # Errors
    /// It cannot be reached within a second, or takes nothing.
    pub async fn hand_over(&self, carry: &Carry, to: &Hand, controller: Option<&str>) -> io::Result<()> {
        let work = async {
            let address = crate::direct::reached_at(&to.address, controller)?;
            let mut wire = self.dial(&address, &to.key, STARTS).await?;
            let size = u32::try_from(carry.opening.0.len()).map_err(io::Error::other)?;
            wire.write_u32(size).await?;
            for bytes in [&carry.opening, &carry.common, &to.part] {
                wire.write_all(&bytes.0).await?;
            }
            wire.flush().await?;
            wire.shutdown().await
        };
        let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "it was not reached within 1 s"));
        tokio::time::timeout(HANDED, work).await.unwrap_or_else(late)
    }
}
