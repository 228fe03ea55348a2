//! A login node: it runs no jobs, and speaks to the controller for the users who work on it.
//!
//! Whoever connects to its socket is who the kernel says; the controller hears that from this machine, by a connection with
//! this machine's key, and decides what its word is worth.

use crate::jobs::listen_at;
use crate::paths::Paths;
use crate::start::{AgentError, Shutdown};
use berth_model::ids::{Gid, Uid};
use berth_model::request::Peer;
use berth_rpc::{Preface, Question, Uplink};
use berth_stream::asynchronous::{read_frame, write_frame};
use berth_stream::{Frame, FrameError};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// How long a caller may take to say what it wants.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// How often the controller is asked whether it is there, and how often while it is not.
const ASK: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(2);

/// Serves until `shutdown` is done; calls `ready` once it does.
///
/// # Errors
/// The socket cannot be made.
pub async fn run(
    state_dir: &Path,
    uplink: Uplink,
    shutdown: Shutdown,
    ready: fn(),
) -> Result<(), AgentError> {
    let socket = Paths::new(state_dir).login_socket();
    let listener = listen_at(&socket, 0o666).map_err(|source| AgentError::Io {
        what: format!("cannot listen on {}", socket.display()),
        source,
    })?;
    tracing::info!("login node of the cluster at {}", uplink.name());
    let connected = Paths::new(state_dir).connected();
    ready();
    tokio::select! {
        () = serve(listener, &uplink) => {}
        () = watch(&uplink, &connected) => {}
        () = shutdown => {}
    }
    // What is not there is fine.
    let _ = std::fs::remove_file(&connected);
    if let Err(e) = std::fs::remove_file(&socket) {
        tracing::warn!("{}: {e}", socket.display());
    }
    Ok(())
}

/// Notes whether the controller answers, for as long as it is polled.
async fn watch(uplink: &Uplink, connected: &Path) {
    let mut said = None;
    loop {
        let answer = uplink.ask(Question::Settings).await.map(drop).map_err(|e| e.to_string());
        if said.as_ref() != Some(&answer) {
            let noted = match &answer {
                Ok(()) => std::fs::write(connected, ""),
                Err(why) => {
                    tracing::info!("{why}; trying again until it answers");
                    match std::fs::remove_file(connected) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                        removed => removed,
                    }
                }
            };
            if let Err(e) = noted {
                tracing::warn!("{}: {e}", connected.display());
            }
        }
        let pause = if answer.is_ok() { ASK } else { RETRY };
        said = Some(answer);
        tokio::time::sleep(pause).await;
    }
}

async fn serve(listener: UnixListener, uplink: &Uplink) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let uplink = uplink.clone();
                tokio::spawn(async move {
                    if let Err(e) = pass(stream, &uplink).await {
                        tracing::debug!("a client's connection: {e}");
                    }
                });
            }
            Err(e) => {
                // Out of descriptors, for one: it passes.
                tracing::warn!("cannot accept a client: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn pass(mut stream: UnixStream, uplink: &Uplink) -> Result<(), FrameError> {
    let cred = stream.peer_cred()?;
    let peer = Peer { uid: Uid(cred.uid()), gid: Gid(cred.gid()), job: None };
    let first = tokio::time::timeout(FIRST_FRAME, read_frame(&mut stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let preface = match first {
        Some(Frame::Controller) => Preface::Client(peer),
        Some(Frame::Node(to)) => Preface::Stream { to, peer },
        None => return Ok(()),
        Some(_) => {
            let text = "this is a login node: no jobs run here, and nothing is kept for them".to_string();
            return write_frame(&mut stream, &Frame::Refused(text)).await;
        }
    };
    match uplink.open(&preface).await {
        Ok(mut controller) => {
            tokio::io::copy_bidirectional(&mut stream, &mut controller).await?;
            Ok(())
        }
        Err(e)
            if matches!(preface, Preface::Stream { .. }) && e.kind() != io::ErrorKind::PermissionDenied =>
        {
            // It passes: who sees a connection that is closed tries again for as long as the step runs.
            tracing::debug!("no stream: {e}");
            Ok(())
        }
        Err(e) => {
            let text = format!("the controller at {}: {e}", uplink.name());
            write_frame(&mut stream, &Frame::Refused(text)).await
        }
    }
}
