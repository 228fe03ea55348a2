//! Terms that cannot be written down: nobody is obeyed under them, the controller is told why, and what runs goes on.

use crate::node::*;
use berth_agent_core::*;
use berth_model::ids::*;
use berth_model::link::*;
use berth_model::state::Cause;
use berth_model::time::{Span, Time};

const FULL: &str = "private/agent-term.slots: No space left on device";

fn welcome(n: &mut Node, term: u64, session: u64) {
    let heartbeat = Span::from_secs(10);
    n.say(ToAgent::Welcome { term: Term(term), session: Session(session), heartbeat });
}

/// What the last sign of life says is wrong, and under which registration.
fn wrong(n: &Node) -> (Session, Vec<String>) {
    let beat = n.seen.iter().rev().find_map(|e| match e {
        AgentEffect::Send(FromAgent::Heartbeat { session, troubles, .. }) => {
            assert!(troubles.iter().all(|trouble| trouble.cause == Cause::HealthCheck));
            Some((*session, troubles.iter().map(|trouble| trouble.why.clone()).collect()))
        }
        _ => None,
    });
    beat.unwrap()
}

fn introductions(n: &Node) -> usize {
    n.count(|e| matches!(e, AgentEffect::Send(FromAgent::Hello { .. })))
}

/// One whose step runs, and that hears of a later controller which it cannot write down.
fn in_need() -> Node {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.event(AgentEvent::Disconnected);
    n.no_disk = Some(FULL.into());
    n.event(AgentEvent::Connected);
    n.seen.clear();
    welcome(&mut n, 5, 2);
    n
}

#[test]
fn nothing_is_done_for_a_term_that_is_not_kept_and_the_controller_is_told() {
    let mut n = in_need();
    let (session, why) = wrong(&n);
    assert_eq!((session, why.len()), (Session(2), 1));
    assert!(why[0].contains(FULL) && why[0].contains("term 5") && why[0].contains("tried again"), "{why:?}");
    n.start(start(FIRST, 5));
    n.say(ToAgent::EndJob {
        term: Term(5),
        job: JOB.0,
        attempt: JOB.1,
        kill_wait: WAIT,
        cause: EndCause::Cancelled,
    });
    assert_eq!((n.spawns(), n.phases(FIRST).len()), (0, 0));
    // Nor for an earlier controller, which is superseded.
    n.start(start(FIRST, 3));
    n.say(end_job(EndCause::Cancelled));
    assert_eq!((n.spawns(), n.blows()), (0, vec![]));
    // What runs is told of, to its end.
    n.exits(BATCH, 0);
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    let gone =
        |e: &AgentEffect| matches!(e, AgentEffect::Send(FromAgent::JobGone { session: Session(2), .. }));
    assert_eq!(n.count(gone), 1);
}

#[test]
fn it_is_tried_again_and_then_all_is_said_once_more() {
    let mut n = in_need();
    let tries = |n: &Node| n.count(|e| matches!(e, AgentEffect::RememberTerm(Term(5))));
    assert_eq!(tries(&n), 1);
    n.later(Span::from_secs(11));
    assert_eq!((tries(&n), introductions(&n)), (3, 0));
    n.no_disk = None;
    n.later(Span::from_secs(5));
    assert_eq!((tries(&n), introductions(&n)), (4, 1));
    welcome(&mut n, 5, 3);
    assert_eq!(wrong(&n), (Session(3), vec![]));
    n.start(start(FIRST, 5));
    n.ready(FIRST);
    assert_eq!(n.spawns(), 1);
    n.later(Span::from_secs(20));
    assert_eq!(tries(&n), 4);
}

#[test]
fn what_was_said_while_a_term_was_written_is_done_in_order() {
    let now = Time::from_secs(100);
    let mut core = AgentCore::new(config(), vec![], vec![], now);
    let mut seen = core.handle(AgentEvent::Connected, now);
    let heartbeat = Span::from_secs(10);
    let welcome = ToAgent::Welcome { term: Term(4), session: Session(1), heartbeat };
    for message in [welcome, ToAgent::Start(Box::new(start(BATCH, 4)))] {
        seen.extend(core.handle(AgentEvent::Controller(message), now));
    }
    assert!(seen.iter().any(|e| matches!(e, AgentEffect::RememberTerm(Term(4)))));
    let acts = |e: &AgentEffect| matches!(e, AgentEffect::Registered | AgentEffect::PrepareImage { .. });
    assert!(!seen.iter().any(acts), "{seen:?}");
    let then = core.handle(AgentEvent::TermKept { term: Term(4), result: Ok(()) }, now);
    let order: Vec<bool> =
        then.iter().filter(|e| acts(e)).map(|e| matches!(e, AgentEffect::Registered)).collect();
    assert_eq!(order, [true, false]);
}

#[test]
fn a_term_that_was_left_half_kept_is_written_before_it_is_followed() {
    let half = AgentConfig { unkept: Some(FULL.into()), ..config() };
    let mut n = Node::made(half, vec![], vec![]);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::RememberTerm(Term(3)))), 1);
    n.start(start(BATCH, 3));
    n.ready(BATCH);
    assert_eq!(n.spawns(), 1);
}
