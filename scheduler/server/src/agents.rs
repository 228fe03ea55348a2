//! One agent's link: what it says goes to the core, what it is told comes from there, scripts and
//! environments filled in from the store on the way.

use crate::driver::{Input, Outgoing};
use berth_model::link::ToAgent;
use berth_model::request::Payload;
use berth_rpc::AgentConnection;
use berth_sched_core::{PayloadKey, fill_payload};
use berth_store::Reader;
use std::sync::mpsc::Sender;
use tokio::sync::mpsc;

/// Messages that may wait for one agent. An agent that does not keep up is cut off and compares notes when
/// it comes back.
const QUEUE: usize = 16_384;

/// Takes the link over.
pub(crate) fn take(connection: u64, link: AgentConnection, inputs: Sender<Input>, reader: Reader) {
    let (queue, outgoing) = mpsc::channel(QUEUE);
    let AgentConnection { node, mut incoming, outgoing: wire } = link;
    let opened = Input::AgentOpened { node: node.clone(), connection, queue };
    if inputs.send(opened).is_err() {
        return; // stopping
    }
    tracing::info!("{node}: its agent has connected");
    let mut telling = tokio::spawn(tell(outgoing, wire, reader));
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = incoming.recv() => message,
                // Cut off by the core, or by the agent not reading.
                _ = &mut telling => None,
            };
            let Some(message) = message else { break };
            if inputs.send(Input::Agent { node: node.clone(), connection, message }).is_err() {
                return;
            }
        }
        telling.abort();
        tracing::warn!("{node}: its agent is disconnected");
        // An error means that we are stopping.
        let _ = inputs.send(Input::AgentLost { node, connection });
    });
}

async fn tell(mut outgoing: mpsc::Receiver<Outgoing>, wire: mpsc::Sender<ToAgent>, reader: Reader) {
    // The tasks of an array, which follow each other, share one.
    let mut last: Option<(PayloadKey, Payload)> = None;
    while let Some(Outgoing { mut message, payload }) = outgoing.recv().await {
        if let (ToAgent::Start(start), Some(key)) = (&mut message, payload) {
            if let Some((_, payload)) = last.as_ref().filter(|(of, _)| *of == key) {
                fill_payload(&mut start.launch, payload);
                if wire.send(message).await.is_err() {
                    return;
                }
                continue;
            }
            let reader = reader.clone();
            let read = tokio::task::spawn_blocking(move || reader.payload(key)).await;
            match read {
                Ok(Ok(Some(payload))) => {
                    fill_payload(&mut start.launch, &payload);
                    last = matches!(key, PayloadKey::Job(_)).then_some((key, payload));
                }
                Ok(Ok(None)) => {
                    // Ended meanwhile: its end follows in the queue.
                    tracing::debug!("{}: not started, it is over", start.launch.key);
                    continue;
                }
                // The agent comes back and is told again.
                Ok(Err(e)) => {
                    tracing::error!("{}: {e}", start.launch.key);
                    return;
                }
                Err(e) => {
                    tracing::error!("{}: {e}", start.launch.key);
                    return;
                }
            }
        }
        if wire.send(message).await.is_err() {
            return;
        }
    }
}
