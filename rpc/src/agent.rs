//! The agents' side of their link to the controller.

use crate::error::RpcError;
use crate::pb;
use crate::pb::node_client::NodeClient;
use crate::transport::{Preface, private_channel};
use crate::wire::Field;
use berth_model::NodeName;
use berth_model::link::{FromAgent, ToAgent};
use std::path::Path;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Messages that may wait for the connection: a Hello and reports of many steps at once.
const QUEUE: usize = 1024;

/// An agent's link to the controller. Made anew after each loss; [`crate::Backoff`] paces the attempts.
#[derive(Debug)]
pub struct AgentLink;

/// Sends to the controller.
#[derive(Debug, Clone)]
pub struct AgentSender {
    queue: mpsc::Sender<pb::FromAgent>,
}

/// Receives from the controller.
#[derive(Debug)]
pub struct AgentReceiver {
    stream: tonic::Streaming<pb::ToAgent>,
}

impl AgentLink {
    /// Connects to the controller's private socket as the agent of `node`. The first message to send is the
    /// Hello.
    pub async fn connect(socket: &Path, node: &NodeName) -> Result<(AgentSender, AgentReceiver), RpcError> {
        let channel = private_channel(socket, &Preface::Node { node: node.clone() }).await?;
        let mut grpc = NodeClient::new(channel)
            .max_decoding_message_size(crate::MAX_MESSAGE)
            .max_encoding_message_size(crate::MAX_MESSAGE);
        let (queue, outgoing) = mpsc::channel(QUEUE);
        let answer = grpc.session(ReceiverStream::new(outgoing)).await;
        let stream = answer.map_err(|status| RpcError::from_status(&status))?.into_inner();
        Ok((AgentSender { queue }, AgentReceiver { stream }))
    }
}

impl AgentSender {
    /// Sends a message; an error means that the link is gone.
    pub async fn send(&self, message: &FromAgent) -> Result<(), RpcError> {
        self.queue
            .send(message.put())
            .await
            .map_err(|_| RpcError::Lost("the link to the controller is closed".to_string()))
    }
}

impl AgentReceiver {
    /// The next message; `None` when the controller closed the link.
    pub async fn next(&mut self) -> Result<Option<ToAgent>, RpcError> {
        match self.stream.next().await {
            None => Ok(None),
            Some(Ok(wire)) => Ok(Some(ToAgent::get(wire)?)),
            Some(Err(status)) => Err(RpcError::from_status(&status)),
        }
    }
}
