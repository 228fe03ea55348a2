//! Streams from other machines: the controller asks for one, the agent connects to it and serves who is at the other end. So a
//! node needs no open port.

use crate::clients::{Service, serve_remote};
use berth_rpc::Preface;
use std::io;
use std::sync::Arc;
use tokio::net::UnixStream;

/// Opens the stream of that number and serves it.
pub fn answer(service: Arc<Service>, number: u64) {
    tokio::spawn(async move {
        if let Err(e) = serve(&service, number).await {
            tracing::debug!("stream {number} of another machine: {e}");
        }
    });
}

async fn serve(service: &Service, number: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut wire = service.uplink.open(&Preface::Answer { answer: number }).await?;
    let Preface::Client(peer) = Preface::read(&mut wire).await? else {
        return Err("the controller does not say for whom it is".into());
    };
    // A supervisor takes a descriptor of this machine: what comes and goes by TLS is copied.
    let (near, far) = UnixStream::pair()?;
    let copying = async {
        let mut near = near;
        let copied = tokio::io::copy_bidirectional(&mut near, &mut wire).await;
        drop(near);
        copied.map(drop)
    };
    let (served, copied) = tokio::join!(serve_remote(far, peer, service), copying);
    served?;
    match copied {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}
