//! The link to the controller: dialled again for as long as the agent lives.

use berth_model::direct::Admission;
use berth_model::ids::NodeName;
use berth_model::link::{FromAgent, ToAgent};
use berth_rpc::{AgentLink, Backoff, RpcError, Uplink};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long to wait before a controller that refuses is asked again.
const REFUSED: Duration = Duration::from_secs(2);

/// What the link tells the agent. Connections are numbered: what an old one still had to say is told apart.
#[derive(Debug)]
pub enum LinkEvent {
    /// A connection is up; what is sent here goes through it.
    Up(u64, mpsc::UnboundedSender<FromAgent>),
    /// The controller said something.
    Said(u64, ToAgent),
    /// The connection is gone.
    Down(u64),
}

/// What the controller says about streams, which concerns nothing else.
#[derive(Debug)]
pub enum Streams {
    /// Connect for the one of this number.
    Dial(u64),
    /// Somebody comes.
    Admit(Admission),
}

/// Keeps the link up until the task is dropped. `streams` opens and expects the streams for which the controller asks;
/// `connected` is there while it answers.
pub async fn keep(
    uplink: Uplink,
    node: NodeName,
    events: mpsc::UnboundedSender<LinkEvent>,
    streams: impl Fn(Streams),
    connected: PathBuf,
) {
    let mut backoff = Backoff::new();
    let mut complained = String::new();
    for connection in 1.. {
        match AgentLink::connect(&uplink, &node).await {
            Ok((sender, mut receiver)) => {
                let mut refused = None;
                let (queue, mut outgoing) = mpsc::unbounded_channel::<FromAgent>();
                if events.send(LinkEvent::Up(connection, queue)).is_err() {
                    return;
                }
                let why = loop {
                    tokio::select! {
                        said = receiver.receive() => match said {
                            Ok(Some(ToAgent::Dial { number })) => streams(Streams::Dial(number)),
                            Ok(Some(ToAgent::Admit(admission))) => streams(Streams::Admit(*admission)),
                            Ok(Some(message)) => {
                                match &message {
                                    ToAgent::Welcome { .. } => {
                                        complained.clear();
                                        backoff.reset();
                                        if let Err(e) = std::fs::write(&connected, "") {
                                            tracing::warn!("{}: {e}", connected.display());
                                        }
                                    }
                                    ToAgent::Refused(why) => refused = Some(why.clone()),
                                    _ => {}
                                }
                                if events.send(LinkEvent::Said(connection, message)).is_err() {
                                    return;
                                }
                            }
                            Ok(None) => break "the controller closed it".to_string(),
                            Err(e) => break e.to_string(),
                        },
                        Some(message) = outgoing.recv() => {
                            if let Err(e) = sender.send(&message).await {
                                break e.to_string();
                            }
                        }
                    }
                };
                // What is not there any more is fine.
                let _ = std::fs::remove_file(&connected);
                match refused.map(|why| format!("the controller does not take this node: {why}")) {
                    None => tracing::info!("the link to the controller is down: {why}"),
                    Some(text) if text == complained => tracing::debug!("{text}"),
                    Some(text) => {
                        tracing::warn!("{text}; trying again until it does");
                        complained = text;
                    }
                }
                if events.send(LinkEvent::Down(connection)).is_err() {
                    return;
                }
            }
            Err(e) => {
                let text = e.to_string();
                if text == complained {
                    tracing::debug!("{text}");
                } else {
                    tracing::info!("{text}; trying again until it answers");
                    complained = text;
                }
                if matches!(e, RpcError::Refused(_)) {
                    // Somebody has to do something first.
                    tokio::time::sleep(REFUSED).await;
                }
            }
        }
        backoff.wait().await;
    }
}
