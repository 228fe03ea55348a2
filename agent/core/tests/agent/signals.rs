//! Signals: passed on once, and as soon as the step has somebody who hears them.

use crate::node::*;
use berth_agent_core::*;
use berth_model::ids::{StepKey, Term};
use berth_model::link::{FromAgent, SignalTarget, ToAgent};

fn signal(target: SignalTarget, signal: i32, number: Option<u64>) -> ToAgent {
    ToAgent::Signal { term: Term(3), job: JOB.0, attempt: JOB.1, target, signal, number }
}

/// What steps heard since the last look, and which numbers the controller was told of.
fn heard(n: &mut Node) -> (Vec<(StepKey, i32)>, Vec<u64>) {
    let (mut passed, mut told) = (Vec::new(), Vec::new());
    for effect in std::mem::take(&mut n.seen) {
        match effect {
            AgentEffect::SignalStep { key, signal, .. } => passed.push((key, signal)),
            AgentEffect::Send(FromAgent::Signalled { job, attempt, number, .. }) => {
                assert_eq!((job, attempt), JOB);
                told.push(number);
            }
            _ => {}
        }
    }
    (passed, told)
}

#[test]
fn a_signal_with_a_number_is_passed_on_once_and_told_again() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    heard(&mut n);
    n.say(signal(SignalTarget::All, 10, Some(5)));
    assert_eq!(heard(&mut n), (vec![(BATCH, 10)], vec![5]));
    // The word of it was lost.
    n.say(signal(SignalTarget::All, 10, Some(5)));
    assert_eq!(heard(&mut n), (vec![], vec![5]));
    n.say(signal(SignalTarget::All, 10, Some(6)));
    assert_eq!(heard(&mut n), (vec![(BATCH, 10)], vec![6]));
    // A controller of an earlier version numbers nothing.
    for _ in 0..2 {
        n.say(signal(SignalTarget::All, 10, None));
        assert_eq!(heard(&mut n), (vec![(BATCH, 10)], vec![]));
    }
    // Of what is not here nobody is kept waiting.
    let job = berth_model::ids::JobId(8);
    n.say(ToAgent::Signal {
        term: Term(3),
        job,
        attempt: JOB.1,
        target: SignalTarget::All,
        signal: 10,
        number: Some(7),
    });
    let told = |e: &AgentEffect| matches!(e, AgentEffect::Send(FromAgent::Signalled { number: 7, .. }));
    assert_eq!(n.count(told), 1);
}

#[test]
fn a_step_that_is_not_there_yet_hears_it_as_soon_as_it_is() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.start(start(FIRST, 3));
    heard(&mut n);
    n.say(signal(SignalTarget::All, 10, Some(5)));
    assert_eq!(heard(&mut n), (vec![(BATCH, 10)], vec![]), "the other one has not heard it");
    n.say(signal(SignalTarget::Steps, 12, Some(6)));
    n.say(signal(SignalTarget::Steps, 12, Some(6)));
    assert_eq!(heard(&mut n), (vec![], vec![]));
    n.event(AgentEvent::Image { key: FIRST, event: ImageEvent::Ready(None) });
    let spawned = n.seen.iter().position(|e| matches!(e, AgentEffect::Spawn { .. }));
    let signalled = n.seen.iter().position(|e| matches!(e, AgentEffect::SignalStep { .. }));
    assert!(spawned.unwrap() < signalled.unwrap());
    assert_eq!(heard(&mut n), (vec![(FIRST, 10), (FIRST, 12)], vec![5, 6]));
    n.event(AgentEvent::Supervisor { key: FIRST, event: SupervisorEvent::Started });
    assert_eq!(heard(&mut n), (vec![], vec![]));
}

#[test]
fn a_step_that_never_comes_keeps_nobody_waiting() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.start(start(FIRST, 3));
    n.say(signal(SignalTarget::Step(FIRST.step), 10, Some(5)));
    n.event(AgentEvent::Image { key: FIRST, event: ImageEvent::Failed("no image 'x'".into(), None) });
    heard(&mut n);
    n.say(signal(SignalTarget::Step(FIRST.step), 10, Some(5)));
    assert_eq!(heard(&mut n), (vec![], vec![5]));
}
