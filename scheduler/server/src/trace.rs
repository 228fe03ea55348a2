//! Which messages of agents are the same, whatever registration they came with and whenever they were sent: those over which the core failed are known
//! again, and not kept for it.

use berth_model::link::FromAgent;
use berth_model::{Session, Time};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Most characters that are shown of a message.
const SHOWN: usize = 2000;

/// By what a message is known again. It costs as much as to write the message: nothing for every message.
pub(crate) fn mark(message: &FromAgent) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{:?}", without_occasion(message.clone())).hash(&mut hasher);
    hasher.finish()
}

/// The beginning of what it says.
pub(crate) fn shown(message: &FromAgent) -> String {
    format!("{message:?}").chars().take(SHOWN).collect()
}

/// Without what is another when the same is said again.
fn without_occasion(mut message: FromAgent) -> FromAgent {
    match &mut message {
        FromAgent::Hello { asked, .. } => *asked = Time(0),
        FromAgent::Heartbeat { session, asked, .. } => (*session, *asked) = (Session(0), Time(0)),
        FromAgent::Step { session, .. }
        | FromAgent::Pulled { session, .. }
        | FromAgent::JobGone { session, .. }
        | FromAgent::PrologFailed { session, .. }
        | FromAgent::RebootFailed { session, .. }
        | FromAgent::ImagesHeld { session, .. }
        | FromAgent::Peers { session, .. }
        | FromAgent::NotEnded { session, .. }
        | FromAgent::Signalled { session, .. } => *session = Session(0),
    }
    message
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
        let known = mark(&said(1, 7));
        assert_eq!(mark(&said(2, 7)), known);
        assert_ne!(mark(&said(1, 8)), known);
    }

    #[test]
    fn a_sign_of_life_is_known_again_whenever_it_was_sent_and_no_more_is_shown_than_fits_a_line() {
        let beat = |session, asked, drift: &str| FromAgent::Heartbeat {
            session: Session(session),
            load: 1,
            free_memory: 2,
            drift: vec![drift.to_string()],
            troubles: vec![],
            asked: Time(asked),
            used: vec![],
            gpus: vec![],
        };
        assert_eq!(mark(&beat(1, 10, "a")), mark(&beat(2, 20, "a")));
        assert_ne!(mark(&beat(1, 10, "a")), mark(&beat(1, 10, "b")));
        let text = shown(&beat(1, 10, &"x".repeat(2 * SHOWN)));
        assert!(text.starts_with("Heartbeat") && text.len() == SHOWN, "{text}");
    }
}
