//! Names of images that only the nodes find: each asks the controller what all of the job have, as the agent's shell does, and goes
//! on with that.

use crate::agents::READY;
use crate::world::{Happening, World};
use berth_agent_core::{AgentEvent, Fetched, ImageEvent};
use berth_model::exchange::FromPeers;
use berth_model::ids::{JobId, NodeName, StepKey};
use berth_model::launch::StepLaunch;
use berth_model::spec::ResolvedImage;
use berth_model::time::{Span, Time};

/// How often an agent asks again, and for how long.
const RENEW: Span = Span::from_secs(5);
const PATIENCE: Span = Span::from_secs(120);

/// A question that a node has.
pub(crate) struct Finding {
    key: StepKey,
    of: JobId,
    found: ResolvedImage,
    until: Time,
}

/// Those of whom all have one image: the array's tasks, or the job.
pub(crate) fn sharing(launch: &StepLaunch) -> JobId {
    launch.job.array.map_or(launch.key.job, |array| array.array)
}

impl World {
    /// After a while a node knows what a name means there: each time another image.
    pub(crate) fn find_image(&mut self, node: &NodeName, life: u64, launch: &StepLaunch, after: Span) {
        let found = ResolvedImage::Manifest {
            source: "docker://docker.io/library/debian".into(),
            digest: format!("sha256:{}", self.rng.below(1_000_000)),
            insecure: false,
            indexes: Vec::new(),
            pin: None,
        };
        let until = self.now + after + PATIENCE;
        let finding = Finding { key: launch.key, of: sharing(launch), found, until };
        let Some(m) = self.machines.get_mut(node) else { return };
        m.asks += 1;
        let ask = m.asks;
        m.finding.insert(ask, finding);
        self.plan(after, Happening::Finds { node: node.clone(), life, ask });
    }

    /// It asks, and will again.
    pub(crate) fn finds(&mut self, node: &NodeName, life: u64, ask: u64) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node).filter(|m| m.agent_life == life) else { return Ok(()) };
        let Some(Finding { key, found, until, .. }) = m.finding.get(&ask) else { return Ok(()) };
        let (key, image) = (*key, found.clone());
        if *until <= now {
            m.finding.remove(&ask);
            self.count("names of images of which the controller did not say what they mean");
            let event = ImageEvent::Failed("the controller does not say what it means".into(), None);
            return self.agent(node, AgentEvent::Image { key, event });
        }
        self.plan(RENEW, Happening::Finds { node: node.clone(), life, ask });
        self.agent(node, AgentEvent::Peers(FromPeers::Found { ask, key, image }))
    }

    /// The controller's word of what a name means. It came to somebody before, or to nobody.
    pub(crate) fn pinned(&mut self, node: &NodeName, ask: u64, image: ResolvedImage) -> Result<(), String> {
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        let life = m.agent_life;
        let Some(Finding { key, of, found, .. }) = m.finding.remove(&ask) else { return Ok(()) };
        if image != found {
            self.count("names of images that another node had found before");
        }
        if let ResolvedImage::Manifest { digest, .. } = &image {
            self.one_image(key, of, digest.clone())?;
        }
        let fetched = Fetched { bytes: 1000, hit: false, digest: None, found: Some(Box::new(image)) };
        let event = ImageEvent::Ready(Some(fetched));
        let after = self.span(READY.0, READY.1);
        self.plan(after, Happening::Image { node: node.clone(), life, key, event });
        Ok(())
    }

    /// A step has an image that came by its name: what all of its job have, and its array.
    pub(crate) fn one_image(&mut self, key: StepKey, of: JobId, digest: String) -> Result<(), String> {
        // Of a job that no backup has, whose id may be another's by now.
        if self.is_forgotten(key) && self.restores.close {
            return Ok(());
        }
        let kept = self.truth.images.entry(of).or_insert_with(|| digest.clone());
        if *kept != digest {
            return Err(format!("step {key} has the image {digest}, its job has {kept}"));
        }
        Ok(())
    }

    /// Nobody waits for the image of a step any more.
    pub(crate) fn image_unwanted(&mut self, node: &NodeName, key: StepKey) {
        if let Some(m) = self.machines.get_mut(node) {
            m.finding.retain(|_, finding| finding.key != key);
        }
    }
}
