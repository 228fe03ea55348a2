//! Streams between machines: whoever wants one to a node is connected with a connection that the node's agent makes when it is
//! asked. So nodes need no open port, and everything goes by the controller.

use berth_model::NodeName;
use berth_model::link::ToAgent;
use berth_model::request::Peer;
use berth_rpc::{Duplex, Preface, splice};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};

/// How long an agent may take to connect.
const DIALLING: Duration = Duration::from_secs(10);
/// Bytes that are copied at once: a record of TLS.
const COPIED: usize = 16 << 10;

/// A connection that a node made, and a sign for when the node is none of the cluster's any more.
type Made = (Duplex, Option<oneshot::Receiver<()>>);

/// The agents' links, and who waits for a connection of theirs. Cheap to clone; every clone is the same.
#[derive(Clone, Default)]
pub(crate) struct Relay {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Where nodes take streams themselves, and by which key: as they said on their present links.
    ports: HashMap<NodeName, (u64, String, String)>,
    links: HashMap<NodeName, (u64, mpsc::Sender<ToAgent>)>,
    waiting: HashMap<u64, (NodeName, oneshot::Sender<Made>)>,
    last: u64,
}

impl Relay {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's agent has connected.
    pub(crate) fn up(&self, node: NodeName, connection: u64, link: mpsc::Sender<ToAgent>) {
        let mut inner = self.lock();
        // What an earlier link was asked for may never have arrived.
        inner.waiting.retain(|_, (of, _)| *of != node);
        inner.links.insert(node, (connection, link));
    }

    /// That connection is gone.
    pub(crate) fn down(&self, node: &NodeName, connection: u64) {
        let mut inner = self.lock();
        if inner.links.get(node).is_some_and(|(now, _)| *now == connection) {
            inner.links.remove(node);
            inner.ports.remove(node);
            // Whoever waits for it asks again.
            inner.waiting.retain(|_, (of, _)| of != node);
        }
    }

    /// A node takes streams at this address, by this key; or none any more.
    pub(crate) fn port(&self, node: &NodeName, connection: u64, at: Option<(String, String)>) {
        let mut inner = self.lock();
        match at {
            Some((address, key)) => {
                inner.ports.insert(node.clone(), (connection, address, key));
            }
            None => {
                inner.ports.remove(node);
            }
        }
    }

    /// Where a node takes streams, by which key, and its link.
    pub(crate) fn reach(&self, node: &NodeName) -> Option<(String, String, mpsc::Sender<ToAgent>)> {
        let inner = self.lock();
        let (connection, link) = inner.links.get(node)?;
        let (of, address, key) = inner.ports.get(node)?;
        (of == connection).then(|| (address.clone(), key.clone(), link.clone()))
    }

    /// Connects somebody with a node's agent; comes back when the connection is over.
    ///
    /// # Errors
    /// The node cannot be asked, or does not connect. Nothing was sent to whoever asked.
    pub(crate) async fn carry(&self, peer: Peer, to: &NodeName, near: Duplex) -> Result<(), String> {
        let (made, number, link) = {
            let mut inner = self.lock();
            let link = match inner.links.get(to) {
                Some((_, link)) => link.clone(),
                None => return Err(format!("the agent of {to} is not connected")),
            };
            inner.last += 1;
            let number = inner.last;
            let (sender, made) = oneshot::channel();
            inner.waiting.insert(number, (to.clone(), sender));
            (made, number, link)
        };
        let dialled = async {
            link.send(ToAgent::Dial { number }).await.map_err(|_| format!("the agent of {to} left"))?;
            made.await.map_err(|_| format!("the agent of {to} does not connect"))
        };
        let dialled = tokio::time::timeout(DIALLING, dialled).await;
        self.lock().waiting.remove(&number);
        let (mut far, gone) = dialled
            .map_err(|_| format!("the agent of {to} did not connect within {} s", DIALLING.as_secs()))??;
        let spliced = async {
            far.write_all(&Preface::Client(peer).line()).await?;
            splice(near, far, COPIED).await
        };
        let removed = async {
            match gone {
                // However it ends.
                Some(gone) => drop(gone.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // An end in the middle is seen at both ends.
            _ = spliced => {}
            () = removed => {}
        }
        Ok(())
    }

    /// The connection that an agent was asked for; `node`: whose it proved to be, absent for this machine's own.
    pub(crate) fn made(
        &self,
        node: Option<&NodeName>,
        number: u64,
        wire: Duplex,
        gone: Option<oneshot::Receiver<()>>,
    ) {
        let mut inner = self.lock();
        // A number is one node's: another one that guessed it gets nothing, and takes nothing away.
        if inner.waiting.get(&number).is_some_and(|(of, _)| node.is_none_or(|node| node == of))
            && let Some((_, sender)) = inner.waiting.remove(&number)
        {
            // Nobody waits any more: the connection is closed.
            let _ = sender.send((wire, gone));
        }
    }
}
