//! The link to the controller: dialled again for as long as the agent lives.

use crate::full_name::FullName;
use berth_model::carry::Carry;
use berth_model::direct::Admission;
use berth_model::ids::NodeName;
use berth_model::link::{FromAgent, ToAgent};
use berth_rpc::{AgentLink, Backoff, RpcError, Uplink, own_start};
use std::path::PathBuf;
use std::sync::Arc;
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

/// What the controller says that concerns connections of this machine alone, and nothing that is decided.
#[derive(Debug)]
pub enum Aside {
    /// Connect for the stream of this number.
    Dial(u64),
    /// Somebody comes for a stream.
    Admit(Admission),
    /// Hand their Starts to others.
    Carry(Carry),
}

/// Keeps the link up until the task is dropped. `aside` opens and expects the streams for which the controller asks, and carries Starts to
/// others; `connected` is there while it answers. What the machine is called is asked with each connection, for the registration.
pub async fn keep(
    uplink: Uplink,
    (node, full_name): (NodeName, Arc<FullName>),
    events: mpsc::UnboundedSender<LinkEvent>,
    aside: impl Fn(Aside),
    connected: PathBuf,
) {
    let mut backoff = Backoff::new();
    let mut complained = String::new();
    for connection in 1.. {
        match AgentLink::connect(&uplink, &node).await {
            Ok((sender, mut receiver)) => {
                full_name.ask().await;
                let mut refused = None;
                let (queue, mut outgoing) = mpsc::unbounded_channel::<FromAgent>();
                if events.send(LinkEvent::Up(connection, queue)).is_err() {
                    return;
                }
                let why = loop {
                    tokio::select! {
                        said = receiver.receive() => match said {
                            Ok(Some(ToAgent::Dial { number })) => aside(Aside::Dial(number)),
                            Ok(Some(ToAgent::Admit(admission))) => aside(Aside::Admit(*admission)),
                            Ok(Some(ToAgent::Carry(carry))) => match own_start(&carry) {
                                Ok(start) => {
                                    aside(Aside::Carry(*carry));
                                    let start = ToAgent::Start(Box::new(start));
                                    if events.send(LinkEvent::Said(connection, start)).is_err() {
                                        return;
                                    }
                                }
                                // The controller says it once more, otherwise.
                                Err(e) => tracing::warn!("a start that is to be carried to others: {e}"),
                            },
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
