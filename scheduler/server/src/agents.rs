//! One agent's link: what it says goes to the core, what it is told comes from there, scripts and
//! environments filled in from the store on the way.

use crate::driver::{Input, Outgoing};
use crate::logins::Logins;
use crate::machines::Machines;
use crate::relay::Relay;
use crate::shared::Shared;
use berth_model::carry::CarriedTo;
use berth_model::exchange::{FromPeers, ToPeers};
use berth_model::link::{FromAgent, Start, ToAgent};
use berth_model::request::Payload;
use berth_rpc::AgentConnection;
use berth_sched_core::{LoginOf, PayloadKey, fill_payload};
use berth_store::Reader;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use tokio::sync::mpsc;

/// Messages that may wait for one agent. An agent that does not keep up is cut off and compares notes when
/// it comes back.
const QUEUE: usize = 16_384;

/// Takes the link over.
pub(crate) fn take(connection: u64, link: AgentConnection, filling: Filling, relay: Relay) {
    let (queue, outgoing) = mpsc::channel(QUEUE);
    let inputs = filling.inputs.clone();
    let AgentConnection { node, mut incoming, outgoing: wire } = link;
    let opened = Input::AgentOpened { node: node.clone(), connection, queue };
    if inputs.send(opened).is_err() {
        return; // stopping
    }
    tracing::info!("{node}: its agent has connected");
    relay.up(node.clone(), connection, wire.clone());
    let mut telling = tokio::spawn(tell(outgoing, wire, filling));
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = incoming.recv() => message,
                // Cut off by the core, or by the agent not reading.
                _ = &mut telling => None,
            };
            let Some((message, unheard)) = message else { break };
            if let FromAgent::Peers { said: FromPeers::Ready { address, key, streams, .. }, .. } = &message {
                relay.port(&node, connection, streams.then(|| (address.clone(), key.clone())));
            }
            if inputs.send(Input::Agent { node: node.clone(), connection, message, unheard }).is_err() {
                return;
            }
        }
        telling.abort();
        relay.down(&node, connection);
        tracing::warn!("{node}: its agent is disconnected");
        // An error means that we are stopping.
        let _ = inputs.send(Input::AgentLost { node, connection });
    });
}

/// What a Start is filled in from.
#[derive(Clone)]
pub(crate) struct Filling {
    pub(crate) reader: Reader,
    pub(crate) logins: Arc<Logins>,
    /// Who signs what one node carries to others.
    pub(crate) machines: Arc<Machines>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) inputs: Sender<Input>,
}

impl Filling {
    /// The payload that the store has.
    async fn read(&self, key: PayloadKey) -> Result<Option<Payload>, String> {
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || reader.payload(key)).await;
        read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }

    /// What belongs to a Start was read.
    fn was_read(&self, start: &Start) {
        if self.shared.unreadable.read(start.launch.key, &start.launch.node) {
            self.tell_of_unreadable();
        }
    }

    /// It cannot be read. Whether the link lives on without it: the first time it is cut, so that the agent comes back and is told again, as that may pass.
    /// What does not pass would cost the node its link for as long as the job is there. `runs`: it was to run, and its end is the core's.
    fn goes_on_without(&self, start: &Start, runs: bool, why: &str) -> bool {
        let (key, node) = (start.launch.key, &start.launch.node);
        tracing::error!("{key}: {why}");
        let again = self.shared.unreadable.again(key, node, why);
        if again {
            self.tell_of_unreadable();
        }
        if again && runs {
            // An error means that we are stopping.
            let _ = self.inputs.send(Input::CannotStart { node: node.clone(), key, why: why.to_string() });
        }
        again
    }

    fn tell_of_unreadable(&self) {
        match self.shared.unreadable.alarm() {
            Some(text) => self.shared.alarm("payload", text),
            None => self.shared.all_clear("payload"),
        }
    }

    /// Opens the login that came with the job, for its owner.
    async fn login(&self, start: &mut Start, key: PayloadKey) -> Result<(), String> {
        let Some(sealed) = self.read(key).await?.and_then(|payload| payload.login) else { return Ok(()) };
        start.login = self.logins.unseal(start.launch.identity.uid, &sealed);
        if start.login.is_none() {
            tracing::warn!(
                "{}: the login for registry {} that came with it was sealed to another key: it is fetched without",
                start.launch.key,
                sealed.registry
            );
        }
        Ok(())
    }
}

/// What the node of a Start is told that carries those of others, in one message. Where that cannot be, it is told its own: the core sees to
/// the others.
fn with_others(start: Box<Start>, to: Vec<CarriedTo>, machines: &Machines) -> ToAgent {
    let (key, node, others) = (start.launch.key, start.launch.node.clone(), to.len());
    let Some(own) = machines.identity() else { return ToAgent::Start(start) };
    match berth_rpc::seal(&own, &start, to) {
        Ok(Some(carry)) => {
            tracing::info!("step {key}: {node} carries its start to {others} others");
            ToAgent::Carry(Box::new(carry))
        }
        Ok(None) => {
            tracing::info!("step {key}: its start is too large to be carried: each node is told by itself");
            ToAgent::Start(start)
        }
        Err(e) => {
            tracing::warn!("step {key}: its start cannot be signed, and each node is told by itself: {e}");
            ToAgent::Start(start)
        }
    }
}

/// Sends what is queued, until the link ends.
pub(crate) async fn tell(
    mut outgoing: mpsc::Receiver<Outgoing>,
    wire: mpsc::Sender<ToAgent>,
    filling: Filling,
) {
    // The tasks of an array, which follow each other, share one.
    let mut last: Option<(PayloadKey, Payload)> = None;
    while let Some(Outgoing { mut message, payload, login, to }) = outgoing.recv().await {
        let runs = matches!(message, ToAgent::Start(_));
        let reads = payload.is_some() || matches!(login, Some(LoginOf::Stored(_)));
        if let (ToAgent::Start(start) | ToAgent::Prefetch(start) | ToAgent::Fetch(start), Some(key)) =
            (&mut message, payload)
        {
            if let Some((_, payload)) = last.as_ref().filter(|(of, _)| *of == key) {
                fill_payload(&mut start.launch, payload);
            } else {
                match filling.read(key).await {
                    Ok(Some(payload)) => {
                        fill_payload(&mut start.launch, &payload);
                        last = matches!(key, PayloadKey::Job(_)).then_some((key, payload));
                    }
                    Ok(None) => {
                        // Ended meanwhile: its end follows in the queue.
                        tracing::debug!("{}: not started, it is over", start.launch.key);
                        continue;
                    }
                    Err(e) if filling.goes_on_without(start, runs, &e) => continue,
                    Err(_) => return,
                }
            }
        }
        match (&mut message, login) {
            (
                ToAgent::Start(start) | ToAgent::Prefetch(start) | ToAgent::Fetch(start),
                Some(LoginOf::Stored(key)),
            ) => match filling.login(start, key).await {
                Ok(()) => {}
                Err(e) if filling.goes_on_without(start, runs, &e) => continue,
                Err(_) => return,
            },
            (ToAgent::Peers(ToPeers::Login { login, .. }), Some(LoginOf::Kept(of, sealed))) => {
                *login = filling.logins.unseal(of, &sealed);
            }
            _ => {}
        }
        if let ToAgent::Start(start) | ToAgent::Prefetch(start) | ToAgent::Fetch(start) = &message
            && reads
        {
            filling.was_read(start);
        }
        let message = match message {
            ToAgent::Start(start) if !to.is_empty() => with_others(start, to, &filling.machines),
            message => message,
        };
        if wire.send(message).await.is_err() {
            return;
        }
    }
}
