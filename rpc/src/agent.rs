//! The agents' side of their link to the controller.

use crate::auth::Method;
use crate::client::{Call, message, path, ready};
use crate::error::RpcError;
use crate::pb;
use crate::preface::Preface;
use crate::raw::{Raw, encoded};
use crate::uplink::Uplink;
use crate::wire::Field;
use berth_model::NodeName;
use berth_model::link::{FromAgent, ToAgent};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Messages that may wait for the connection: a Hello and reports of many steps at once.
const QUEUE: usize = 1024;

/// An agent's link to the controller. Made anew after each loss; [`crate::Backoff`] paces the attempts.
#[derive(Debug)]
pub struct AgentLink;

/// Sends to the controller.
#[derive(Debug, Clone)]
pub struct AgentSender {
    queue: mpsc::Sender<Bytes>,
}

/// Receives from the controller.
#[derive(Debug)]
pub struct AgentReceiver {
    stream: Streaming<Bytes>,
}

impl AgentLink {
    /// Connects to the controller as the agent of `node`. The first message to send is the Hello.
    pub fn connect<'a>(uplink: &'a Uplink, node: &'a NodeName) -> Call<'a, (AgentSender, AgentReceiver)> {
        Box::pin(async move {
            let channel = uplink.channel(&Preface::Node { node: node.clone() }).await?;
            let mut grpc = tonic::client::Grpc::new(channel)
                .max_decoding_message_size(crate::MAX_MESSAGE)
                .max_encoding_message_size(crate::MAX_MESSAGE);
            ready(&mut grpc).await?;
            let (queue, outgoing) = mpsc::channel(QUEUE);
            let request = tonic::Request::new(ReceiverStream::new(outgoing));
            let answer = grpc.streaming(request, path(Method::NodeSession), Raw).await;
            let stream = answer.map_err(|status| RpcError::from_status(&status))?.into_inner();
            Ok((AgentSender { queue }, AgentReceiver { stream }))
        })
    }
}

impl AgentSender {
    /// Sends a message; an error means that the link is gone.
    pub async fn send(&self, message: &FromAgent) -> Result<(), RpcError> {
        let message: pb::FromAgent = message.put();
        self.queue
            .send(encoded(&message))
            .await
            .map_err(|_| RpcError::Lost("the link to the controller is closed".to_string()))
    }
}

impl AgentReceiver {
    /// The next message that this version knows: a newer controller may have others to say. `None` when the controller
    /// closed the link.
    pub fn receive(&mut self) -> Call<'_, Option<ToAgent>> {
        Box::pin(async {
            loop {
                match message::<pb::ToAgent>(&mut self.stream).await? {
                    Some(pb::ToAgent {
                        kind: None | Some(pb::to_agent::Kind::Peers(pb::ToPeers { kind: None })),
                    }) => {}
                    wire => return Ok(wire.map(ToAgent::get).transpose()?),
                }
            }
        })
    }
}
