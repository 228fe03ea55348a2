//! Streams from other machines by the controller: it asks for one, the agent connects to it and serves who is at the other end. So a
//! node needs no open port for them.

use crate::clients::{Service, serve_remote};
use berth_model::StepKey;
use berth_model::request::Peer;
use berth_rpc::{Duplex, Preface, splice};
use std::sync::Arc;
use tokio::net::UnixStream;

/// Bytes that are copied at once: a frame.
pub(crate) const COPIED: usize = 64 << 10;
/// The same of requests to the controller, and its answers: few are longer.
pub(crate) const ASKED: usize = 8 << 10;

/// What went wrong with a stream; it is told to nobody but the log.
pub(crate) type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Opens the stream of that number and serves it.
pub fn answer(service: Arc<Service>, number: u64) {
    tokio::spawn(async move {
        if let Err(e) = serve(&service, number).await {
            tracing::debug!("stream {number} of another machine: {e}");
        }
    });
}

async fn serve(service: &Service, number: u64) -> Result<(), Failed> {
    let mut wire = service.uplink.open(&Preface::Answer { answer: number }).await?;
    let Preface::Client(peer) = Preface::read(&mut wire).await? else {
        return Err("the controller does not say for whom it is".into());
    };
    carry(wire, peer, None, service).await
}

/// Serves who is at the other end of a connection. `only`: the one step that is meant, where it is one.
pub(crate) async fn carry(
    wire: Duplex,
    peer: Peer,
    only: Option<StepKey>,
    service: &Service,
) -> Result<(), Failed> {
    // A supervisor takes a descriptor of this machine: what comes and goes by TLS is copied.
    let (near, far) = UnixStream::pair()?;
    let (served, copied) = tokio::join!(serve_remote(far, peer, only, service), splice(near, wire, COPIED));
    served?;
    Ok(copied?)
}
