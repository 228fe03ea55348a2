//! Images between nodes: what a node may want, and for whom. A node gets from others what a run of a job needs that it has, or
//! was told to fetch for, and nothing else: to know a digest is not to have the image.

use super::Cluster;
use crate::exchange::Want;
use berth_model::exchange::{FromPeers, ImageWay, ToPeers};
use berth_model::ids::{Attempt, JobId, NodeName};
use berth_model::link::ToAgent;
use berth_model::spec::{ContainerSpec, ResolvedImage};

/// Longest address and key that a node may name.
const MOST_TEXT: usize = 300;
/// Most images of one message.
const MOST_HELD: usize = 10_000;

impl Cluster {
    pub(super) fn peers(&mut self, node: &NodeName, said: FromPeers) {
        let now = self.clock;
        let told = match said {
            FromPeers::Ready { address, key } => {
                if address.len() > MOST_TEXT || key.len() > MOST_TEXT {
                    return;
                }
                self.exchange.ready(node, address, key)
            }
            FromPeers::Wanted { ask, job, attempt, digest, bytes, failed } => {
                match self.image_wanted(node, job, attempt, &digest) {
                    Some(want) => self.exchange.wanted((node.clone(), ask), want, (bytes, failed), now),
                    None => vec![(node.clone(), ToPeers::Way { ask, way: ImageWay::Source })],
                }
            }
            FromPeers::Holds { all, images, gone } => {
                let fits = |digest: &String| digest.len() <= MOST_TEXT;
                let images = images.into_iter().filter(|image| fits(&image.digest)).take(MOST_HELD);
                let images = images.map(|image| (image.digest, image.users)).collect();
                return self.exchange.holds(node, all, images, &gone);
            }
            FromPeers::Done { ask, there } => self.exchange.over(&(node.clone(), ask), there, now),
        };
        self.tell_peers(told);
    }

    pub(super) fn tell_peers(&mut self, told: Vec<(NodeName, ToPeers)>) {
        for (to, said) in told {
            self.send(&to, ToAgent::Peers(said));
        }
    }

    /// The image with this digest that a run has, whose own word counts for where it is from; nothing where the node has nothing to do with
    /// the run, or the run with the image.
    fn image_wanted(&self, node: &NodeName, id: JobId, attempt: Attempt, digest: &str) -> Option<Want> {
        let job = self.job(id)?;
        let held = self.nodes.get(node)?.held.contains_key(&(id, attempt));
        if !held && !self.ahead.contains(&(node.clone(), id, attempt)) {
            return None;
        }
        let first = job.spec.first_step.as_ref().and_then(|step| step.container.as_ref());
        let steps = job.steps.values().filter_map(|step| step.spec.as_ref()?.container.as_ref());
        let mut all = job.spec.spec.container.iter().chain(first).chain(steps);
        let source = all.find_map(|container| source_of(container, digest))?;
        Some(Want { digest: digest.to_string(), source: source.to_string(), user: job.spec.identity.uid })
    }
}

/// Where a container's image is from, if it is this one, and from a registry: files are where nodes see them anyway.
fn source_of<'a>(container: &'a ContainerSpec, wanted: &str) -> Option<&'a str> {
    match container.image.resolved.as_ref()? {
        ResolvedImage::Manifest { source, digest, .. } if digest == wanted => {
            Some(source.as_str()).filter(|source| source.starts_with("docker://"))
        }
        _ => None,
    }
}
