//! The controller's term: nobody is obeyed under one that is not on the disk, since an earlier controller would be obeyed again after a crash.
//!
//! Where it cannot be kept, the node says so to the controller that it does not obey, which gives it nothing new; what runs goes on, and it is
//! tried again. Once it is kept, the agent introduces itself anew, so that all it was told meanwhile is said once more.

use super::{AgentCore, REPEAT};
use crate::event::AgentEffect;
use berth_model::ids::Term;
use berth_model::link::{ToAgent, Trouble};
use berth_model::state::Cause;
use berth_model::time::Time;

/// What is known of a term that is not on the disk.
#[derive(Debug, Default)]
pub(super) struct Unkept {
    /// Whether the shell is at it.
    asked: bool,
    /// What the controller said meanwhile, in order.
    waits: Vec<ToAgent>,
    /// Why it could not be kept, once that was tried.
    why: Option<String>,
    /// When it is tried again.
    pub(super) again: Option<Time>,
}

impl Unkept {
    /// It could not be kept, and is tried again then.
    pub(super) fn failed(why: String, again: Time) -> Unkept {
        Unkept { why: Some(why), again: Some(again), ..Unkept::default() }
    }
}

/// Who leads, as a command says it.
fn term_of(message: &ToAgent) -> Option<Term> {
    match message {
        ToAgent::Welcome { term, .. }
        | ToAgent::Signal { term, .. }
        | ToAgent::Terminate { term, .. }
        | ToAgent::EndJob { term, .. }
        | ToAgent::EndPrefetch { term, .. }
        | ToAgent::Reboot { term, .. }
        | ToAgent::Renew { term, .. }
        | ToAgent::Resumed { term } => Some(*term),
        ToAgent::Start(start) | ToAgent::Prefetch(start) | ToAgent::Fetch(start) => Some(start.term),
        ToAgent::Refused(_)
        | ToAgent::ImagesNeeded { .. }
        | ToAgent::Configure(_)
        | ToAgent::Peers(_)
        | ToAgent::Say { .. }
        | ToAgent::LookForEnds { .. }
        | ToAgent::ExitRecorded { .. }
        | ToAgent::Admit(_)
        | ToAgent::Dial { .. }
        | ToAgent::Carry(_) => None,
    }
}

impl AgentCore {
    /// The controller says something. The first word of a later one has its term kept, and waits for that, as all behind it does.
    pub(super) fn hear(&mut self, message: ToAgent, now: Time) {
        if let Some(Unkept { asked: true, waits, .. }) = &mut self.unkept {
            waits.push(message);
            return;
        }
        match term_of(&message) {
            Some(term) if term > self.term => {
                self.term = term;
                self.keep_term(vec![message]);
            }
            _ => self.command(message, now),
        }
    }

    fn keep_term(&mut self, waits: Vec<ToAgent>) {
        let why = self.unkept.take().and_then(|unkept| unkept.why);
        self.unkept = Some(Unkept { asked: true, waits, why, again: None });
        self.out.push(AgentEffect::RememberTerm(self.term));
    }

    /// Tries it again, where its time has come.
    pub(super) fn keep_term_again(&mut self, now: Time) {
        if self.unkept.as_ref().and_then(|unkept| unkept.again).is_some_and(|at| at <= now) {
            self.keep_term(Vec::new());
        }
    }

    /// The term is on the disk, or cannot be kept.
    pub(super) fn term_kept(&mut self, term: Term, result: Result<(), String>, now: Time) {
        let Some(unkept) = self.unkept.take_if(|unkept| unkept.asked && term == self.term) else { return };
        match result {
            Ok(()) => {
                if unkept.why.is_some() && self.connected {
                    self.session = None;
                    self.hello(now);
                }
            }
            Err(why) => {
                let news = unkept.why.as_ref() != Some(&why);
                self.unkept = Some(Unkept::failed(why, now + REPEAT));
                if news {
                    self.heartbeat(now);
                }
            }
        }
        for message in unkept.waits {
            self.hear(message, now);
        }
    }

    /// Whether orders of this term are followed.
    pub(super) fn follows(&self, term: Term) -> bool {
        self.hears(term) && self.unkept.is_none()
    }

    /// Whether it is the latest controller that says this, be it followed or not: it may be told what is here, and that what runs goes on
    /// takes nothing from an earlier one.
    pub(super) fn hears(&self, term: Term) -> bool {
        term == self.term
    }

    /// Why orders are not followed, for the controller.
    pub(super) fn unkept_trouble(&self) -> Option<Trouble> {
        let why = self.unkept.as_ref()?.why.as_ref()?;
        let why = format!(
            "Term not kept: its agent cannot write down the controller's term {} ({why}), and begins and ends nothing before it can; what runs goes on. See \
             to the disk of its state directory: it is tried again every {} s",
            self.term,
            REPEAT.secs()
        );
        Some(Trouble { cause: Cause::HealthCheck, run: None, why })
    }
}
