//! What names of images mean, for nodes that ask no registry: a gateway is asked, as the step's user and with the login that came with
//! it. A node names a step that runs there and nothing else: name, user and login are what is on record of that.

use super::Cluster;
use super::exchange::start_of;
use super::images::may_be_kept;
use berth_model::exchange::ToPeers;
use berth_model::ids::{NodeName, StepKey};
use berth_model::spec::ResolvedImage;
use berth_model::time::{Span, Time};
use std::collections::BTreeMap;

/// A gateway that says nothing for so long is not waited for any more: it may be waiting for the registry itself.
const SILENT: Span = Span::from_secs(60);

/// Most bytes of what proves a gateway's word, as the images' `MOST_PROOF`: of more nothing is passed on.
const MOST_PROOF: usize = 256 << 10;
/// Of all that is told at once to the nodes that asked.
const MOST_PROOFS: usize = 16 << 20;

/// Questions that are open. Nothing of it is stored: nodes ask again until they are answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(BTreeMap<StepKey, Question>);

#[derive(Clone, Debug, Default)]
struct Question {
    /// Who waits for the answer, with the number of their question.
    askers: BTreeMap<NodeName, u64>,
    /// The gateway that was asked, and when.
    asked: Option<(NodeName, Time)>,
    /// Gateways that did not find it, and what they said.
    tried: BTreeMap<NodeName, String>,
}

impl Question {
    fn is_at(&self, gateway: &NodeName) -> bool {
        self.asked.as_ref().is_some_and(|(at, _)| at == gateway)
    }

    /// What gateways said that did not find it.
    fn note(&self) -> String {
        let all: Vec<String> =
            self.tried.iter().map(|(node, why)| format!("gateway {node}: {why}")).collect();
        all.join("; ")
    }

    fn answers(self, image: Option<ResolvedImage>, note: &str, proof: &[String]) -> Vec<(NodeName, ToPeers)> {
        let answer = |(node, ask)| {
            let (image, note, proof) = (image.clone(), note.to_string(), proof.to_vec());
            (node, ToPeers::Name { ask, image, note, proof })
        };
        self.askers.into_iter().map(answer).collect()
    }
}

impl Cluster {
    /// A node asks what the name of a step's image means, or still does.
    pub(super) fn name_asked(&mut self, node: &NodeName, ask: u64, key: StepKey) -> Vec<(NodeName, ToPeers)> {
        let answer = |image| {
            vec![(node.clone(), ToPeers::Name { ask, image, note: String::new(), proof: Vec::new() })]
        };
        let runs_there = |part: &crate::rows::StepNode| part.node == *node && part.exit.is_none();
        // A gateway asks registries itself, and whoever has nothing to do with the step is told nothing of it.
        let theirs = self.step(key).is_some_and(|step| step.nodes.iter().any(runs_there));
        if !theirs || self.config.gateways.contains(node) {
            return answer(None);
        }
        if let Some(known) = self.image_of(key.job, key.step).and_then(|image| image.resolved.clone()) {
            return answer(Some(known));
        }
        let over = |key: &StepKey| self.step(*key).is_none_or(|step| step.result.is_some());
        let ended: Vec<StepKey> = self.names.0.keys().copied().filter(over).collect();
        for key in ended {
            self.names.0.remove(&key);
        }
        self.names.0.entry(key).or_default().askers.insert(node.clone(), ask);
        self.go_on_asking(key)
    }

    /// A gateway says what a name means, with what proves it to nodes, or why it does not know.
    pub(super) fn name_found(
        &mut self,
        gateway: &NodeName,
        key: StepKey,
        found: Option<(ResolvedImage, Vec<String>)>,
        why: String,
    ) -> Vec<(NodeName, ToPeers)> {
        let Some(question) = self.names.0.get_mut(&key).filter(|question| question.is_at(gateway)) else {
            return Vec::new();
        };
        if let Some((image, mut proof)) = found.filter(|(image, _)| may_be_kept(image)) {
            if proof.iter().map(String::len).sum::<usize>() > MOST_PROOF {
                proof.clear();
            }
            let question = std::mem::take(question);
            self.names.0.remove(&key);
            let all = proof.iter().map(String::len).sum::<usize>() * question.askers.len();
            if all > MOST_PROOFS {
                let why =
                    "the index is too large to be shown to so many nodes: name the image by its own digest";
                return question.answers(None, why, &[]);
            }
            return question.answers(Some(image), &gateway.0, &proof);
        }
        let why = if why.is_empty() { "it found nothing that is an image".to_string() } else { why };
        question.asked = None;
        question.tried.insert(gateway.clone(), why);
        self.go_on_asking(key)
    }

    /// Asks the next gateway, where none is being asked that may still answer; without one whoever waits is told what all said.
    fn go_on_asking(&mut self, key: StepKey) -> Vec<(NodeName, ToPeers)> {
        let now = self.clock;
        let Some(question) = self.names.0.get_mut(&key) else { return Vec::new() };
        if let Some((gateway, since)) = &question.asked {
            let up = self.nodes.get(gateway).is_some_and(|n| n.link.is_some());
            if up && now.since(*since) <= SILENT {
                return Vec::new();
            }
            let why = if up { "it does not answer" } else { "its connection to the controller broke" };
            question.tried.insert(gateway.clone(), why.to_string());
            question.asked = None;
        }
        let knows = |gateway: &NodeName| self.nodes.get(gateway).is_some_and(|n| n.answers_as_gateway());
        let untried = |gateway: &&NodeName| knows(gateway) && !question.tried.contains_key(*gateway);
        let all: Vec<NodeName> = self.config.gateways.iter().filter(untried).cloned().collect();
        // The one that has least to do; of equals the first by name.
        let busy = |gateway: &NodeName| {
            let asked = self.names.0.values().filter(|question| question.is_at(gateway)).count();
            asked + self.exchange.fetches_of(gateway)
        };
        let next = all.into_iter().min_by_key(busy);
        let told = next.as_ref().and_then(|_| {
            let job = self.job(key.job)?;
            start_of(&self.common_of_others(), job, self.step(key)?)
        });
        if let (Some(gateway), Some(told)) = (next, told) {
            self.tell_fetch(&gateway, told);
            if let Some(question) = self.names.0.get_mut(&key) {
                question.asked = Some((gateway, now));
            }
            return Vec::new();
        }
        let Some(question) = self.names.0.remove(&key) else { return Vec::new() };
        let note = question.note();
        question.answers(None, &note, &[])
    }
}
