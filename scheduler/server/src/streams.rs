//! The socket for streams to other machines, where this one has no agent that would pass them on.

use crate::relay::Relay;
use berth_model::request::Peer;
use berth_model::{Gid, Uid};
use berth_stream::asynchronous::{read_frame, write_frame};
use berth_stream::{Frame, FrameError};
use std::io;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// How long a caller may take to say where to.
const FIRST_FRAME: Duration = Duration::from_secs(10);

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: UnixListener, relay: Relay) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let relay = relay.clone();
                tokio::spawn(async move {
                    if let Err(e) = pass(stream, &relay).await {
                        tracing::debug!("a client's connection: {e}");
                    }
                });
            }
            // Out of descriptors, for one: it passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn pass(mut stream: UnixStream, relay: &Relay) -> Result<(), FrameError> {
    let cred = stream.peer_cred()?;
    let peer = Peer { uid: Uid(cred.uid()), gid: Gid(cred.gid()), job: None };
    let first = tokio::time::timeout(FIRST_FRAME, read_frame(&mut stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match first {
        Some(Frame::Node(to)) => {
            if let Err(why) = relay.carry(peer, &to, stream.into()).await {
                tracing::info!("no stream to {to} for uid {}: {why}", peer.uid);
            }
            Ok(())
        }
        Some(_) => {
            let text = "this machine runs no agent: nothing is kept here for jobs".to_string();
            write_frame(&mut stream, &Frame::Refused(text)).await
        }
        None => Ok(()),
    }
}
