//! Which messages of agents are the same, whatever registration they came with: those over which the core failed are known again, and not kept for it.

use berth_model::link::FromAgent;
use berth_model::{NodeName, Session};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};

/// Most characters that are shown of a message.
const SHOWN: usize = 2000;

/// A message that was given to the core.
pub(crate) struct Trace {
    /// Whose, and which.
    pub(crate) of: (NodeName, u64),
    /// What it says; of those alone that may have to be shown.
    pub(crate) text: String,
}

struct Hashing(DefaultHasher);

impl Write for Hashing {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// By what a message is known again.
pub(crate) fn mark(message: &mut FromAgent) -> u64 {
    let own = session(message).map(|session| std::mem::replace(session, Session(0)));
    let mut hashing = Hashing(DefaultHasher::new());
    // Nothing is refused there.
    let _ = write!(hashing, "{message:?}");
    if let (Some(own), Some(session)) = (own, session(message)) {
        *session = own;
    }
    hashing.0.finish()
}

/// The beginning of what it says.
pub(crate) fn shown(message: &FromAgent) -> String {
    format!("{message:?}").chars().take(SHOWN).collect()
}

/// The registration that it came with.
fn session(message: &mut FromAgent) -> Option<&mut Session> {
    match message {
        FromAgent::Hello { .. } => None,
        FromAgent::Step { session, .. }
        | FromAgent::Pulled { session, .. }
        | FromAgent::JobGone { session, .. }
        | FromAgent::PrologFailed { session, .. }
        | FromAgent::RebootFailed { session, .. }
        | FromAgent::ImagesHeld { session, .. }
        | FromAgent::Peers { session, .. }
        | FromAgent::NotEnded { session, .. }
        | FromAgent::Signalled { session, .. }
        | FromAgent::Heartbeat { session, .. } => Some(session),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::StepKey;

    #[test]
    fn a_message_is_known_again_under_another_registration_and_no_other_is_taken_for_it() {
        let said = |session, ask| FromAgent::NotEnded {
            session: Session(session),
            ask,
            keys: Vec::<StepKey>::new(),
        };
        let mut first = said(1, 7);
        let known = mark(&mut first);
        assert_eq!(first, said(1, 7), "it is given to the core as it was");
        assert_eq!(mark(&mut said(2, 7)), known);
        assert_ne!(mark(&mut said(1, 8)), known);
        let long = FromAgent::NotEnded { session: Session(1), ask: 1, keys: vec![] };
        assert!(shown(&long).contains("NotEnded") && shown(&long).len() <= SHOWN);
    }
}
