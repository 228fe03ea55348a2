//! Names of images that nobody had looked up before: what this node found is told to the controller, and what the node found that was
//! first is used. So all tasks, nodes and runs of a job have one image, however often its name changes its meaning meanwhile.

use super::{LOOK, Peers, RENEW};
use berth_model::exchange::FromPeers;
use berth_model::ids::StepKey;
use berth_model::spec::ResolvedImage;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For so long a controller may be away that does not say what all have.
const PATIENCE: Duration = Duration::from_secs(120);

/// A question that is open.
struct Open {
    key: StepKey,
    found: ResolvedImage,
    answer: Sender<ResolvedImage>,
}

/// Those that are.
#[derive(Default)]
pub(super) struct Pins(Mutex<BTreeMap<u64, Open>>);

impl Pins {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller's word.
    pub(super) fn answer(&self, ask: u64, image: ResolvedImage) {
        if let Some(open) = self.open().remove(&ask) {
            // Who does not listen any more needs nothing.
            let _ = open.answer.send(image);
        }
    }
}

impl Peers {
    /// Asks for all that is open: of a controller that has just begun to listen.
    pub(super) fn ask_for_pins(&self) {
        for (ask, Open { key, found, .. }) in &*self.pins.open() {
            self.say(FromPeers::Found { ask: *ask, key: *key, image: found.clone() });
        }
    }

    /// What the name of a step's image means for all of its job, where this node found that it means `found`.
    ///
    /// # Errors
    /// The controller does not say it, or nobody waits for it any more; or it is of another place than this node found: a tag moves, a place
    /// does not, and a node that lies sends nobody there.
    pub(crate) fn pin(
        &self,
        key: StepKey,
        name: &str,
        found: ResolvedImage,
        stop: &Arc<AtomicBool>,
    ) -> Result<ResolvedImage, String> {
        let ResolvedImage::Manifest { source, insecure, .. } = &found else { return Ok(found) };
        let own = (source.clone(), *insecure);
        let ask = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, answer) = channel();
        let question = FromPeers::Found { ask, key, image: found.clone() };
        self.pins.open().insert(ask, Open { key, found, answer: sender });
        let since = Instant::now();
        let mut said: Option<Instant> = None;
        let pinned = loop {
            if said.is_none_or(|said| said.elapsed() > RENEW) {
                said = Some(Instant::now());
                self.say(question.clone());
            }
            match answer.recv_timeout(LOOK) {
                Ok(image) => break Ok(image),
                Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                    break Err(format!("{name}: it is not wanted any more"));
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() < PATIENCE => {}
                Err(_) => {
                    break Err(format!(
                        "{name}: this node found what it means, and the controller did not say within {} s whether another node \
                         found something else before: requeue the job when the controller is there, or name the image by its digest",
                        PATIENCE.as_secs()
                    ));
                }
            }
        };
        self.pins.open().remove(&ask);
        let pinned = pinned?;
        match &pinned {
            ResolvedImage::Manifest { source, insecure, .. } if *source != own.0 || (*insecure && !own.1) => {
                let how = if *insecure { " without TLS" } else { "" };
                Err(format!(
                    "{name}: another node said first that it is of {source}{how}, and here it is of {}: name the image by its digest, and \
                     see what the nodes' agents say of it",
                    own.0
                ))
            }
            _ => Ok(pinned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Input;
    use berth_model::ids::{Attempt, JobId, NodeName, StepId};
    use berth_rpc::Uplink;

    fn image(digest: &str) -> ResolvedImage {
        ResolvedImage::Manifest {
            source: "docker://r.io/x".into(),
            digest: digest.into(),
            insecure: false,
            indexes: Vec::new(),
            pin: None,
        }
    }

    fn key() -> StepKey {
        StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Batch }
    }

    #[test]
    fn what_the_controller_says_counts_and_it_is_asked_again_when_it_is_there_again() {
        let peers = Peers::new(NodeName::from("n1"), &Uplink::Local("/nonexistent".into()));
        let (inputs, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let _ = peers.inputs.set(inputs);
        let stop = Arc::new(AtomicBool::new(false));
        assert_eq!(peers.pin(key(), "host:", ResolvedImage::Host, &stop), Ok(ResolvedImage::Host));
        std::thread::scope(|scope| {
            let pinned = scope.spawn(|| peers.pin(key(), "debian", image("sha256:mine"), &stop));
            let next = |asked: &mut tokio::sync::mpsc::UnboundedReceiver<Input>| match asked.blocking_recv() {
                Some(Input::Peers(FromPeers::Found { ask, image: of, .. })) => {
                    assert_eq!(of, image("sha256:mine"));
                    ask
                }
                _ => panic!("it is not asked"),
            };
            let first = next(&mut asked);
            // The word did not come, and the connection is another one.
            peers.registered();
            let again = std::iter::repeat_with(|| asked.blocking_recv())
                .find_map(|input| match input {
                    Some(Input::Peers(FromPeers::Found { ask, .. })) => Some(ask),
                    _ => None,
                })
                .unwrap();
            assert_eq!(again, first);
            peers.hear(berth_model::exchange::ToPeers::Pinned {
                ask: first + 1,
                image: image("sha256:other"),
            });
            peers.hear(berth_model::exchange::ToPeers::Pinned { ask: first, image: image("sha256:first") });
            assert_eq!(pinned.join().unwrap(), Ok(image("sha256:first")));
            let elsewhere = scope.spawn(|| peers.pin(key(), "debian", image("sha256:mine"), &stop));
            let ask = std::iter::repeat_with(|| next(&mut asked)).find(|ask| *ask > first).unwrap();
            let lie = ResolvedImage::Manifest {
                source: "docker://evil.io/x".into(),
                digest: "sha256:mine".into(),
                insecure: false,
                indexes: Vec::new(),
                pin: None,
            };
            peers.hear(berth_model::exchange::ToPeers::Pinned { ask, image: lie });
            let why = elsewhere.join().unwrap().unwrap_err();
            assert!(why.contains("docker://evil.io/x") && why.contains("docker://r.io/x"), "{why}");
            let ended = scope.spawn(|| peers.pin(key(), "debian", image("sha256:mine"), &stop));
            stop.store(true, Ordering::Relaxed);
            assert!(ended.join().unwrap().unwrap_err().contains("not wanted any more"));
        });
        assert!(peers.pins.open().is_empty());
    }
}
