//! Who hears a step: its client, which comes, goes and comes back, and watchers beside it.

use super::{CLIENT_COMES, Step};
use crate::supervisor::client::{Client, ClientEvent};
use crate::supervisor::display::Display;
use crate::supervisor::pmi::Pmi;
use crate::supervisor::pmix::Pmix;
use crate::supervisor::resuming::Arrival;
use crate::supervisor::step::LaunchFailure;
use crate::supervisor::watchers::Admitted;
use berth_model::launch::StepPhase;
use berth_model::options::Stream;
use berth_stream::{Frame, Resume};
use rustix::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

impl Step {
    /// Has the display of another machine here before anything of the step is made, where the client carries it.
    pub(super) fn have_display_carried(&mut self) -> Result<(), LaunchFailure> {
        if let Some((display, carried)) = Display::of(&self.file)? {
            self.state.display = Some(carried.clone());
            Rc::make_mut(&mut self.file).node.display = Some(carried);
            self.display = Some(display);
        }
        Ok(())
    }

    pub(super) fn tell_of_display(&mut self, frames: Option<Vec<Frame>>) {
        for frame in frames.into_iter().flatten() {
            self.streams.tell(&frame);
        }
    }

    fn forget_display(&mut self) {
        if let Some(display) = &mut self.display {
            display.forget();
        }
    }

    pub(super) fn attach(&mut self, fd: OwnedFd, how: Arrival) {
        if !self.launch().attached {
            return refuse(fd, "the step writes to files and takes no client");
        }
        match self.streams.attach(fd, how) {
            // It is told what it has not heard, and that is all that there is to tell.
            Ok(true) => self.deadlines.client_came(),
            Ok(false) => {
                self.deadlines.client_came();
                self.forget_display();
                if self.state.phase == StepPhase::Running {
                    self.streams.tell(&Frame::Started);
                }
                for text in self.messages.take_kept() {
                    self.streams.tell(&Frame::Message(text));
                }
                let told = self.pmi.iter_mut().flat_map(Pmi::attached);
                for frame in told.chain(self.pmix.iter_mut().flat_map(Pmix::attached)) {
                    self.streams.tell(&frame);
                }
                if let Some(code) = self.aborted {
                    self.streams.tell(&Frame::Aborted(code));
                }
                for (task, status) in &self.tasks {
                    if let Some(status) = status {
                        self.streams.tell(&Frame::TaskExit { task: *task, status: *status });
                    }
                }
            }
            Err((fd, why)) => refuse(fd, &why),
        }
    }

    /// Lets somebody hear the step beside its client, from now on or from where they were.
    pub(super) fn watch(
        &mut self,
        fd: OwnedFd,
        wanted: (Option<u32>, Option<u32>),
        terminal: bool,
        resume: Option<Resume>,
    ) {
        let launch = &self.file.launch;
        if !launch.attached {
            return refuse(fd, "the step writes to files and takes no client");
        }
        if terminal && launch.pty.is_none() {
            return refuse(fd, "none of its tasks has a terminal: leave --pty out");
        }
        let id = match self.streams.watchers().admit(fd, wanted, resume) {
            Ok(Admitted::New(id)) => id,
            // It is told what it has not heard, and that is all that there is to tell.
            Ok(Admitted::Again) => return,
            Err((fd, why)) => return refuse(fd, &why),
        };
        let mut frames = Vec::new();
        if self.state.phase == StepPhase::Running {
            frames.push(Frame::Started);
        }
        // Nobody waits for output that goes elsewhere.
        for (what, name) in [("output", &launch.io.stdout), ("error", &launch.io.stderr)] {
            let file = Stream::of(name.as_ref(), launch.layout.task_count()).file();
            let file = file.filter(|file| !launch.io.is_the_clients(file, &launch.layout));
            if let (Some(file), 0) = (file, launch.node_index) {
                let file = file.display();
                frames.push(Frame::Message(format!(
                    "slurmstepd: info: standard {what} of the step goes to {file}, and is not heard here"
                )));
            }
        }
        let ended = self.tasks.iter().filter_map(|(task, status)| Some((*task, (*status)?)));
        frames.extend(ended.map(|(task, status)| Frame::TaskExit { task, status }));
        for frame in frames {
            self.streams.watchers().tell_one(id, &frame);
        }
    }

    pub(super) fn hear_client(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Signal(signal) => self.signal(signal, false),
            ClientEvent::Winch(size) => {
                if let Some(processes) = &self.processes {
                    processes.resize(size);
                }
            }
            ClientEvent::Fence { number, last, data } => {
                // Where both are served it is that one's at whose fence the tasks are.
                let mut events = self.pmi.as_mut().map(|p| p.hear(number, last, &data)).unwrap_or_default();
                events.extend(self.pmix.iter_mut().flat_map(|p| p.hear(number, last, &data)));
                self.act_on_pmi(events);
            }
            ClientEvent::Peer { node, last, data } => {
                let events = self.pmix.as_mut().map(|pmix| pmix.hear_peer(node, last, &data));
                self.act_on_pmi(events.unwrap_or_default());
            }
            ClientEvent::Aborted(code) => self.abort(code),
            ClientEvent::Begin => self.told = true,
            ClientEvent::Display(frame) => {
                let frames = self.display.as_mut().map(|display| display.hear(frame));
                self.tell_of_display(frames);
            }
            ClientEvent::Detached => {
                self.streams.give_up_client();
                self.forget_display();
            }
            ClientEvent::Lost(_) if self.has_more_for_the_client() && self.streams.lose_client() => {
                self.deadlines.client_in(Instant::now(), CLIENT_COMES);
            }
            ClientEvent::Lost(why) => {
                self.streams.give_up_client();
                self.forget_display();
                if self.exited().is_none() {
                    crate::log::say(&format!("{}: {why}: ending the step", self.launch().key));
                    self.terminate(self.launch().kill_wait);
                }
            }
        }
    }

    /// Whether a client that is lost misses something: one that has heard the end leaves.
    fn has_more_for_the_client(&self) -> bool {
        self.exited().is_none() || !self.streams.ended() || self.streams.unheard()
    }
}

fn refuse(fd: OwnedFd, why: &str) {
    let mut client = Client::new(fd);
    client.push(&Frame::Refused(why.to_string()));
}
