//! What names of images mean that gateways find for this node: asked of the controller, which has the step's name, user and login on record.

use super::{LOOK, Peers, RENEW};
use berth_model::exchange::FromPeers;
use berth_model::ids::StepKey;
use berth_model::spec::ResolvedImage;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For so long an answer is waited for: several gateways may have to wait for a registry one after the other.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a gateway found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) image: ResolvedImage,
    /// Which gateway; empty where all of the job have the image already.
    pub(crate) by: String,
    /// What shows that the digest of an index in the name leads to the image, as the gateway says.
    pub(crate) proof: Vec<String>,
}

/// What is answered: nothing, and what each gateway said, where none finds it.
type Answer = Result<Named, String>;

/// Questions that are open.
#[derive(Default)]
pub(super) struct Names(Mutex<BTreeMap<u64, (StepKey, Sender<Answer>)>>);

impl Names {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, (StepKey, Sender<Answer>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller's word.
    pub(super) fn answer(&self, ask: u64, image: Option<ResolvedImage>, note: String, proof: Vec<String>) {
        if let Some((_, answer)) = self.open().remove(&ask) {
            // Who does not listen any more needs nothing.
            let _ = answer.send(match image {
                Some(image) => Ok(Named { image, by: note, proof }),
                None => Err(note),
            });
        }
    }
}

impl Peers {
    /// Asks for all that is open: of a controller that has just begun to listen.
    pub(super) fn ask_for_names(&self) {
        for (ask, (key, _)) in &*self.names.open() {
            self.say(FromPeers::Name { ask: *ask, key: *key });
        }
    }

    /// What the name of a step's image means.
    ///
    /// # Errors
    /// No gateway finds it: what each said, or nothing where there is none. Nobody is asked any more when `stop` is set.
    pub(crate) fn name(&self, key: StepKey, stop: &Arc<AtomicBool>) -> Result<Named, String> {
        let ask = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, answer) = channel();
        self.names.open().insert(ask, (key, sender));
        let since = Instant::now();
        let mut said: Option<Instant> = None;
        let found = loop {
            if said.is_none_or(|said| said.elapsed() > RENEW) {
                said = Some(Instant::now());
                self.say(FromPeers::Name { ask, key });
            }
            match answer.recv_timeout(LOOK) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                    break Err("it is not wanted any more".into());
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() < PATIENCE => {}
                Err(_) => {
                    break Err(format!(
                        "the controller did not say within {} s what gateways found",
                        PATIENCE.as_secs()
                    ));
                }
            }
        };
        self.names.open().remove(&ask);
        found
    }

    /// A gateway's own word of what a name means.
    pub(crate) fn named(&self, key: StepKey, found: Result<(ResolvedImage, Vec<String>), String>) {
        self.say(match found {
            Ok((image, proof)) => FromPeers::Named { key, image: Some(image), why: String::new(), proof },
            Err(why) => FromPeers::Named { key, image: None, why, proof: Vec::new() },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Input;
    use berth_model::exchange::ToPeers;
    use berth_model::ids::{Attempt, JobId, NodeName, StepId};
    use berth_rpc::Uplink;

    #[test]
    fn the_answer_to_the_question_counts_and_one_that_was_lost_is_asked_again() {
        let peers = Peers::new(NodeName::from("n1"), &Uplink::Local("/nonexistent".into()));
        let (inputs, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let _ = peers.inputs.set(inputs);
        let stop = Arc::new(AtomicBool::new(false));
        let key = StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Batch };
        let image = ResolvedImage::Manifest {
            source: "docker://r.io/x".into(),
            digest: "sha256:1".into(),
            insecure: false,
            indexes: Vec::new(),
            pin: None,
        };
        std::thread::scope(|scope| {
            let mut next = || match asked.blocking_recv() {
                Some(Input::Peers(FromPeers::Name { ask, key: of })) => {
                    assert_eq!(of, key);
                    ask
                }
                _ => panic!("it is not asked"),
            };
            let found = scope.spawn(|| peers.name(key, &stop));
            let first = next();
            peers.registered();
            assert_eq!(next(), first);
            let proof = vec!["an index".to_string()];
            let told = |ask, image, note: &str| ToPeers::Name {
                ask,
                image,
                note: note.into(),
                proof: proof.clone(),
            };
            peers.hear(told(first + 1, None, "of another question"));
            peers.hear(told(first, Some(image.clone()), "gw"));
            let (image, by) = (image.clone(), "gw".to_string());
            assert_eq!(found.join().unwrap(), Ok(Named { image, by, proof: proof.clone() }));
            let none = scope.spawn(|| peers.name(key, &stop));
            let ask = std::iter::repeat_with(&mut next).find(|ask| *ask > first).unwrap();
            peers.hear(told(ask, None, "gateway gw: no"));
            assert_eq!(none.join().unwrap(), Err("gateway gw: no".to_string()));
            let ended = scope.spawn(|| peers.name(key, &stop));
            stop.store(true, Ordering::Relaxed);
            assert!(ended.join().unwrap().unwrap_err().contains("not wanted any more"));
        });
        assert!(peers.names.open().is_empty());
    }
}
