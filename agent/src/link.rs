//! The link to the controller: dialled again for as long as the agent lives.

use berth_model::ids::NodeName;
use berth_model::link::{FromAgent, ToAgent};
use berth_rpc::{AgentLink, Backoff};
use std::path::PathBuf;
use tokio::sync::mpsc;

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

/// Keeps the link up until the task is dropped.
pub async fn keep(socket: PathBuf, node: NodeName, events: mpsc::UnboundedSender<LinkEvent>) {
    let mut backoff = Backoff::new();
    let mut complained = false;
    for connection in 1.. {
        match AgentLink::connect(&socket, &node).await {
            Ok((sender, mut receiver)) => {
                complained = false;
                backoff.reset();
                let (queue, mut outgoing) = mpsc::unbounded_channel::<FromAgent>();
                if events.send(LinkEvent::Up(connection, queue)).is_err() {
                    return;
                }
                let why = loop {
                    tokio::select! {
                        said = receiver.receive() => match said {
                            Ok(Some(message)) => {
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
                tracing::info!("the link to the controller is down: {why}");
                if events.send(LinkEvent::Down(connection)).is_err() {
                    return;
                }
            }
            Err(e) if !complained => {
                complained = true;
                tracing::info!("{e}; trying again until it answers");
            }
            Err(e) => tracing::debug!("{e}"),
        }
        backoff.wait().await;
    }
}
