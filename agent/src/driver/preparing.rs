//! A step's image is made ready before the step starts, in a thread of its own, and beside everything else.

use super::{Driver, Input};
use crate::images::{Pulling, Ready};
use crate::stuck::{self, Fetching};
use crate::{enter, threads};
use berth_agent_core::{AgentEvent, ImageEvent};
use berth_model::ids::StepKey;
use berth_model::launch::StepLaunch;
use berth_model::login::Login;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

impl Driver {
    pub(super) fn prepare_image(&mut self, key: StepKey, launch: Box<StepLaunch>, login: Option<Login>) {
        let owner = (launch.identity.uid, launch.identity.gid);
        self.node.registry.prepare(key, owner, launch.job.het.as_ref());
        if launch.container.is_none() && launch.enter.is_none() {
            let event = match self.node.images.host_is_admitted(&launch) {
                Ok(()) => {
                    self.ready.insert(key, Ready::nothing());
                    ImageEvent::Ready(None)
                }
                Err(why) => ImageEvent::Failed(why, None),
            };
            let (drift, inputs) = (self.node.drift.clone(), self.inputs.clone());
            let tell = move || {
                let _ = inputs.send(Input::Core(AgentEvent::Image { key, event }));
            };
            match drift {
                Some(drift) => {
                    let known = drift.knows(&launch.identity);
                    let look = move || drift.look(&launch.identity);
                    if known {
                        look();
                        tell();
                    } else {
                        tokio::task::spawn_blocking(move || {
                            look();
                            tell();
                        });
                    }
                }
                None => tell(),
            }
            return;
        }
        let (node, inputs) = (Arc::clone(&self.node), self.inputs.clone());
        let stop = Arc::new(AtomicBool::new(false));
        self.preparing.insert(key, Arc::clone(&stop));
        let refused = self.inputs.clone();
        let pulling = {
            let inputs = self.inputs.clone();
            Arc::new(Pulling::new(move |percent| {
                let event = ImageEvent::Progress(percent);
                let _ = inputs.send(Input::Core(AgentEvent::Image { key, event }));
            }))
        };
        let fetching = Fetching::default();
        let asked = launch.container.as_ref().map(|container| container.image.typed.clone());
        if let (Some(limit), Some(image)) = (self.node.file_limit, asked) {
            let but = vec![self.node.paths.state().to_path_buf(), self.node.images.place().to_path_buf()];
            let looks = stuck::named(fetching.seen(), but, limit);
            let (inputs, pulling) = (self.inputs.clone(), Arc::clone(&pulling));
            tokio::spawn(async move {
                if let Some(what) = looks.await {
                    let why = stuck::told(&image, &what, limit);
                    let _ = inputs.send(Input::ImageHangs(key, why, pulling.fetched()));
                }
            });
        }
        let started = threads::start("image", move || {
            fetching.begin();
            if let Some(drift) = &node.drift {
                drift.look(&launch.identity);
            }
            let result = match launch.enter {
                None => node.images.prepare(&launch, login.as_ref(), &pulling, &stop),
                Some(step) => {
                    enter::find(&node.paths.spool(), &node.registry, &launch, step).and_then(|entered| {
                        let ready = node.images.prepare(&entered.launch, login.as_ref(), &pulling, &stop)?;
                        Ok(Ready { entered: Some(Box::new(entered)), ..ready })
                    })
                }
            };
            // What is entered has its image.
            let fetched = pulling.fetched().filter(|_| launch.enter.is_none());
            let _ = inputs.send(Input::Image(key, Box::new(result), fetched));
        });
        if let Err(e) = started {
            let why = format!("no thread for its image: {e}");
            let _ = refused.send(Input::Image(key, Box::new(Err(why)), None));
        }
    }
}
