//! Starts that another node brings: they count once, for the registration to which they were said, and for nothing that is over.

use crate::node::*;
use berth_agent_core::*;
use berth_model::carry::{Carried, Registration};
use berth_model::ids::*;
use berth_model::launch::*;
use berth_model::link::*;
use berth_model::time::{Span, Time};

/// What the controller signed for the node of these tests, as it is registered.
fn carried(n: &Node, key: StepKey) -> Carried {
    let to = Registration { session: Session(1), asked: n.now, boot_id: "b".into() };
    Carried { to, start: start(key, 3) }
}

fn comes(n: &mut Node, carried: &Carried) {
    n.event(AgentEvent::Carried(Box::new(carried.clone())));
}

fn prepares(n: &Node, key: StepKey) -> usize {
    n.count(|e| matches!(e, AgentEffect::PrepareImage { key: of, .. } if *of == key))
}

#[test]
fn what_is_carried_starts_once_whichever_way_it_comes_first() {
    let mut n = Node::new(vec![]);
    let of = carried(&n, FIRST);
    comes(&mut n, &of);
    comes(&mut n, &of);
    n.start(start(FIRST, 3));
    assert_eq!(prepares(&n, FIRST), 1);
    let second = StepKey { step: StepId::Number(1), ..FIRST };
    n.start(start(second, 3));
    let of = carried(&n, second);
    comes(&mut n, &of);
    assert_eq!(prepares(&n, second), 1);
    // It is confirmed as any other is.
    n.later(Span::from_secs(1));
    assert_eq!(n.phases(second), [StepPhase::Preparing(None)]);
    n.ready(FIRST);
    assert_eq!(n.spawns(), 1);
}

#[test]
fn what_is_for_others_or_for_another_time_starts_nothing() {
    let mut n = Node::new(vec![]);
    let good = carried(&n, FIRST);
    let mut other_node = good.clone();
    other_node.start.launch.node = "n2".into();
    let earlier = Carried { start: start(FIRST, 2), ..good.clone() };
    // Nobody follows a later controller because another node says so.
    let later = Carried { start: start(FIRST, 4), ..good.clone() };
    let to = |change: fn(&mut Registration)| {
        let mut changed = good.clone();
        change(&mut changed.to);
        changed
    };
    let other_session = to(|to| to.session = Session(2));
    let before_any = to(|to| to.session = Session(0));
    // With the same number, but before this connection was made; and of another boot, in which the clock may show anything.
    let earlier_connection = to(|to| to.asked.0 -= 1);
    let other_boot = to(|to| to.boot_id = "before".into());
    let from_the_future = to(|to| to.asked.0 += 1);
    let mut out_of_touch = good.clone();
    out_of_touch.start.lease = Some(n.now);
    let others = [other_session, before_any, earlier_connection, other_boot, from_the_future];
    for bad in [other_node, earlier, later, out_of_touch].into_iter().chain(others) {
        n.seen.clear();
        comes(&mut n, &bad);
        assert!(n.seen.is_empty(), "{bad:?}: {:?}", n.seen);
    }
    // Somebody held it back: two heartbeats and ten seconds are over.
    n.later(Span(30_000_001));
    n.seen.clear();
    comes(&mut n, &good);
    assert!(n.seen.is_empty(), "{:?}", n.seen);
    let good = carried(&n, FIRST);
    // Who is not registered takes nothing: what there is to do it hears when it is.
    n.event(AgentEvent::Disconnected);
    comes(&mut n, &good);
    n.event(AgentEvent::Connected);
    comes(&mut n, &good);
    n.say(ToAgent::Welcome { term: Term(3), session: Session(7), heartbeat: Span::from_secs(10) });
    comes(&mut n, &good);
    assert_eq!(prepares(&n, FIRST), 0);
    let mut new = carried(&n, FIRST);
    new.to.session = Session(7);
    comes(&mut n, &new);
    assert_eq!(prepares(&n, FIRST), 1);
}

#[test]
fn what_is_over_does_not_begin_again_however_late_it_is_brought() {
    let mut n = Node::new(vec![]);
    let of = carried(&n, FIRST);
    comes(&mut n, &of);
    n.ready(FIRST);
    n.exits(FIRST, 0);
    n.say(ToAgent::ExitRecorded { key: FIRST });
    let replayed = |n: &mut Node, when: &str| {
        n.seen.clear();
        comes(n, &of);
        // Nor is the controller told of it, as often as somebody likes.
        assert!(n.seen.is_empty(), "{when}: {:?}", n.seen);
    };
    replayed(&mut n, "it has ended, and its job goes on");
    n.say(end_job(EndCause::JobEnded));
    replayed(&mut n, "its job ends");
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    replayed(&mut n, "its job is gone");
    // The word that it is over may be here first.
    let mut n = Node::new(vec![]);
    let of = carried(&n, FIRST);
    n.say(end_job(EndCause::Cancelled));
    comes(&mut n, &of);
    assert_eq!(prepares(&n, FIRST), 0);
}

#[test]
fn what_may_be_older_than_all_that_is_remembered_starts_nothing() {
    let mut n = Node::new(vec![]);
    let old = carried(&n, FIRST);
    n.say(end_job(EndCause::Cancelled));
    // More runs than are remembered.
    for job in 100..=10_100 {
        let (job, attempt) = (JobId(job), Attempt(0));
        let kill_wait = Span::from_secs(30);
        n.now = Time(n.now.0 + 1);
        n.say(ToAgent::EndJob { term: Term(3), job, attempt, kill_wait, cause: EndCause::Cancelled });
    }
    n.seen.clear();
    comes(&mut n, &old);
    assert_eq!(prepares(&n, FIRST), 0, "a replay of what is forgotten");
    let other = StepKey { job: JobId(8), ..FIRST };
    let new = carried(&n, other);
    comes(&mut n, &new);
    assert_eq!(prepares(&n, other), 1, "what is new starts");
}

#[test]
fn a_replay_neither_reports_nor_keeps_the_machine_from_its_reboot() {
    let mut n = Node::new(vec![]);
    let of = carried(&n, FIRST);
    comes(&mut n, &of);
    n.ready(FIRST);
    n.later(Span::from_secs(1));
    n.say(ToAgent::Reboot { term: Term(3), since: Time(5) });
    n.seen.clear();
    comes(&mut n, &of);
    assert!(n.seen.is_empty(), "{:?}", n.seen);
    n.exits(FIRST, 0);
    n.say(ToAgent::ExitRecorded { key: FIRST });
    n.say(end_job(EndCause::JobEnded));
    comes(&mut n, &of);
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    comes(&mut n, &of);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::Reboot)), 1);
}
