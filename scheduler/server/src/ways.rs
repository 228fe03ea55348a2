//! Ways to nodes that do not lead through the controller: it tells a machine how the nodes of a step are reached, and each node who
//! comes. What a machine says of its client counts as it counts for streams through the controller; the way is then one step's, for one
//! connection, for a short time, and for who has the key of the machine that asked.

use crate::relay::Relay;
use crate::shared::Shared;
use berth_model::direct::{Admission, StreamWay};
use berth_model::link::ToAgent;
use berth_model::member::hex;
use berth_model::request::{Peer, Refusal, RefusalCode};
use berth_model::{NodeName, Span, StepKey};
use ring::rand::{SecureRandom, SystemRandom};

/// For how long a node expects somebody.
const TIME: Span = Span::from_secs(30);
/// Ways in one answer; what is left over goes through the controller.
const MOST: usize = 2048;

/// The ways of a step's nodes for a machine's key and its client, or of the one that is meant.
///
/// # Errors
/// The step is not the client's, or is none.
pub(crate) fn told(
    shared: &Shared,
    relay: &Relay,
    (key, peer): (String, Peer),
    step: StepKey,
    only: Option<NodeName>,
) -> Result<Vec<StreamWay>, Refusal> {
    let none = || Refusal::new(RefusalCode::NotFound, format!("step {step} is none that runs"));
    let job = shared.snapshot().job(step.job).ok_or_else(none)?;
    let its_own = job.identity.uid == peer.uid || peer.uid.0 == 0;
    // Of another component of the job in which the client is, too.
    let beside = |own| job.spec.het.is_some_and(|het| het.members().any(|member| member == own));
    if !its_own || peer.job.is_some_and(|own| own != step.job && !beside(own)) {
        let text = format!("step {step} belongs to {}, and you are uid {}", job.identity.user, peer.uid);
        return Err(Refusal::new(RefusalCode::Denied, text));
    }
    let known = job.steps.iter().find(|known| known.id == step.step && known.attempt == step.attempt);
    let mut nodes = known.ok_or_else(none)?.layout.nodes.clone();
    if let Some(only) = only {
        nodes.retain(|node| *node == only);
    }
    if key.is_empty() {
        return Ok(Vec::new());
    }
    let random = SystemRandom::new();
    let mut ways = Vec::new();
    for node in nodes {
        let Some((address, of, link)) = relay.reach(&node) else { continue };
        let mut grant = [0; 16];
        if of == key || ways.len() >= MOST || random.fill(&mut grant).is_err() {
            continue;
        }
        let grant = hex(&grant);
        let admission = Admission { grant: grant.clone(), key: key.clone(), peer, step, time: TIME };
        // A link that is full has other troubles.
        if link.try_send(ToAgent::Admit(Box::new(admission))).is_ok() {
            ways.push(StreamWay { node, address, key: of, grant });
        }
    }
    Ok(ways)
}
