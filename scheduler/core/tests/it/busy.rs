//! Steps that wait for others: those whose ends are on their way are waited for without a word, and nobody is refused for them.

use crate::common::*;
use berth_model::ids::*;
use berth_model::link::ToAgent;
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::ExitStatus;
use berth_model::time::Span;
use berth_sched_core::{Event, Write};

/// A job with all of two nodes, and a step on each.
fn world() -> (World, JobId, [StepKey; 2]) {
    let mut w = World::small();
    w.node("n2", hardware(4, 1, 4000, 0));
    let id = w.batch("job", |s| {
        (s.resources.min_nodes, s.resources.exclusive) = (2, true);
    });
    let steps = ["n1", "n2"].map(|node| {
        let spec = StepSpec { node_list: vec![node.into()], ..on_one(node) };
        match w.request(actor(1000), Request::CreateStep { job: id, spec: Box::new(spec) }) {
            Ok(Response::StepCreated { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    });
    w.sent.clear();
    (w, id, steps)
}

fn on_one(name: &str) -> StepSpec {
    StepSpec { nodes: Some(1), tasks: Some(1), ..step(name) }
}

/// A step that is not to wait for others.
fn ask(w: &mut World, job: JobId, name: &str) -> u64 {
    let spec = StepSpec { immediate: Some(Span(0)), ..on_one(name) };
    w.request_later(actor(1000), Request::CreateStep { job, spec: Box::new(spec) })
}

/// Questions since the last look: their numbers, and about what.
fn questions(w: &mut World) -> Vec<(u64, Vec<StepKey>)> {
    let asked =
        |m: ToAgent| if let ToAgent::LookForEnds { ask, keys } = m { Some((ask, keys)) } else { None };
    std::mem::take(&mut w.sent).into_iter().filter_map(asked).collect()
}

fn refused(w: &mut World, request: u64) -> bool {
    match w.replies.remove(&request) {
        None => false,
        Some(Err(refusal)) if refusal.code == RefusalCode::Busy => true,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_step_is_refused_when_agents_say_that_the_others_run() {
    let (mut w, id, steps) = world();
    // One that shares what the job has is not waited for.
    let shares = StepSpec { overlap: true, ..on_one("shares") };
    assert!(w.request(actor(1000), Request::CreateStep { job: id, spec: Box::new(shares) }).is_ok());
    let waits = ask(&mut w, id, "third");
    let asked = questions(&mut w);
    let number = asked[0].0;
    assert_eq!(asked, [(number, vec![steps[0]]), (number, vec![steps[1]])]);
    w.not_ended("n1", number, vec![steps[0]]);
    assert!(!refused(&mut w, waits), "n2 has not answered");
    w.not_ended("n2", number + 1, vec![steps[1]]);
    assert!(!refused(&mut w, waits), "that is the answer to another question");
    w.not_ended("n2", number, vec![steps[1]]);
    assert!(refused(&mut w, waits));
}

#[test]
fn a_step_waits_for_an_end_that_is_on_its_way() {
    let (mut w, id, steps) = world();
    let waits = ask(&mut w, id, "third");
    let number = questions(&mut w)[0].0;
    w.not_ended("n1", number, vec![]);
    w.not_ended("n2", number, vec![steps[1]]);
    assert!(!refused(&mut w, waits), "n1 has an exit to tell");
    w.later(Span::from_secs(19));
    w.exited("n1", steps[0], ExitStatus::OK);
    let Some(Ok(Response::StepCreated { layout, .. })) = w.replies.remove(&waits) else { panic!() };
    assert_eq!(layout.nodes, [NodeName::from("n1")]);
    // For one that takes both nodes the end on one of them is not enough.
    let both = StepSpec { nodes: Some(2), tasks: Some(2), immediate: Some(Span(0)), ..step("both") };
    let waits = w.request_later(actor(1000), Request::CreateStep { job: id, spec: Box::new(both) });
    let asked = questions(&mut w);
    w.not_ended("n1", asked[0].0, asked[0].1.clone());
    w.not_ended("n2", asked[0].0, vec![]);
    assert!(refused(&mut w, waits));
}

#[test]
fn patience_that_is_over_is_over_for_steps_that_run_alone() {
    let (mut w, id, steps) = world();
    let spec = StepSpec { immediate: Some(Span::from_secs(2)), ..on_one("third") };
    let waits = w.request_later(actor(1000), Request::CreateStep { job: id, spec: Box::new(spec) });
    assert!(questions(&mut w).is_empty(), "nobody is asked before");
    w.later(Span::from_secs(2));
    let number = questions(&mut w)[0].0;
    w.not_ended("n1", number, vec![]);
    w.not_ended("n2", number, vec![]);
    assert!(!refused(&mut w, waits));
    w.exited("n2", steps[1], ExitStatus::OK);
    assert!(matches!(w.replies.remove(&waits), Some(Ok(Response::StepCreated { .. }))));
}

#[test]
fn an_agent_that_cannot_say_it_is_not_waited_for() {
    // One that is gone as it is asked, and one that goes then.
    let (mut w, id, _) = world();
    let waits = ask(&mut w, id, "third");
    assert_eq!(questions(&mut w).len(), 2);
    for node in ["n1", "n2"] {
        let (connection, _) = w.sessions[&NodeName::from(node)];
        assert!(!w.replies.contains_key(&waits));
        w.event(Event::AgentLost { node: node.into(), connection });
    }
    assert!(refused(&mut w, waits));
    let waits = ask(&mut w, id, "fourth");
    assert!(questions(&mut w).is_empty() && refused(&mut w, waits));
    // One that says nothing; and an end that does not come.
    for answers in [false, true] {
        let (mut w, id, _) = world();
        let waits = ask(&mut w, id, "third");
        let number = questions(&mut w)[0].0;
        for node in ["n1", "n2"].into_iter().filter(|_| answers) {
            w.not_ended(node, number, vec![]);
        }
        w.later(Span::from_secs(19));
        assert!(!refused(&mut w, waits), "answers: {answers}");
        w.later(Span::from_secs(1));
        assert!(refused(&mut w, waits), "answers: {answers}");
    }
}

/// However many wait, there is one question at a time for each node, and nobody is refused by an answer to an earlier one.
#[test]
fn those_who_wait_share_questions() {
    let (mut w, id, steps) = world();
    let first = ask(&mut w, id, "first");
    let number = questions(&mut w)[0].0;
    let later: Vec<u64> = (0..20).map(|n| ask(&mut w, id, &format!("later{n}"))).collect();
    assert!(questions(&mut w).is_empty(), "the first question is open");
    w.not_ended("n1", number, vec![steps[0]]);
    w.not_ended("n2", number, vec![steps[1]]);
    assert!(refused(&mut w, first));
    let next = questions(&mut w);
    assert_eq!(next.len(), 2);
    assert!(later.iter().all(|request| !w.replies.contains_key(request)));
    w.not_ended("n1", next[0].0, vec![steps[0]]);
    w.not_ended("n2", next[0].0, vec![steps[1]]);
    assert!(later.iter().all(|request| refused(&mut w, *request)));
    assert!(questions(&mut w).is_empty());
}

/// What began after agents were asked is in use, although they say nothing of it; also what began at the same time, as the driver hands on
/// much at once.
#[test]
fn what_another_step_takes_meanwhile_is_in_use() {
    for later in [Span(0), Span::from_secs(1)] {
        let (mut w, id, steps) = world();
        let body = Request::CreateStep { job: id, spec: Box::new(on_one("ahead")) };
        let ahead = w.request_later(actor(1000), body);
        let waits = ask(&mut w, id, "third");
        let number = questions(&mut w)[0].0;
        w.not_ended("n1", number, vec![]);
        w.later(later);
        w.exited("n1", steps[0], ExitStatus::OK);
        assert!(matches!(w.replies.remove(&ahead), Some(Ok(Response::StepCreated { .. }))));
        assert!(!refused(&mut w, waits), "n2 has not answered");
        w.not_ended("n2", number, vec![steps[1]]);
        assert!(refused(&mut w, waits), "{later:?}");
    }
}

/// A client that asks again is answered under its last request, with its last patience.
#[test]
fn a_client_that_waits_may_ask_for_what_it_waits() {
    let (mut w, id, steps) = world();
    let body = |immediate| {
        let spec = Box::new(StepSpec { immediate, ..on_one("third") });
        Request::CreateStep { job: id, spec }
    };
    let first = w.request_later(actor(1000), body(None));
    w.later(Span::from_secs(60));
    assert!(questions(&mut w).is_empty());
    let second = w.request_later(actor(1000), body(Some(Span(0))));
    w.event(Event::Abandoned { request: berth_sched_core::RequestId(first) });
    let number = questions(&mut w)[0].0;
    w.not_ended("n1", number, vec![steps[0]]);
    w.not_ended("n2", number, vec![steps[1]]);
    assert!(refused(&mut w, second));
    let third = w.request_later(actor(1000), body(None));
    w.later(Span::from_secs(60));
    w.exited("n2", steps[1], ExitStatus::OK);
    assert!(matches!(w.replies.remove(&third), Some(Ok(Response::StepCreated { .. }))));
    assert!(!w.replies.contains_key(&first));
}

/// A client that is told for what it waits asks again, to wait on: meanwhile nobody has its place, nor the room that came free.
#[test]
fn a_step_whose_client_asks_for_what_it_waits_keeps_its_place() {
    for then in ["asks again", "leaves", "its job ends"] {
        let (mut w, id, steps) = world();
        let body = |name: &str, immediate| {
            let spec = Box::new(StepSpec { immediate, ..on_one(name) });
            Request::CreateStep { job: id, spec }
        };
        w.request_later(actor(1000), body("third", None));
        let fourth = w.request_later(actor(1000), body("fourth", None));
        w.later(Span::from_secs(60));
        let known = w.request_later(actor(1000), body("third", Some(Span(0))));
        let number = questions(&mut w)[0].0;
        w.not_ended("n1", number, vec![steps[0]]);
        w.not_ended("n2", number, vec![steps[1]]);
        assert!(refused(&mut w, known));
        // The request was answered, and is not any more whatever comes.
        w.event(Event::Abandoned { request: berth_sched_core::RequestId(known) });
        w.exited("n1", steps[0], ExitStatus::OK);
        let fifth = w.request_later(actor(1000), body("fifth", None));
        assert!(!w.replies.contains_key(&fourth) && !w.replies.contains_key(&fifth));
        if then == "its job ends" {
            // It was answered: it is not once more.
            w.exited("n1", batch_key(id, 0), ExitStatus::OK);
            assert_eq!(w.replies.remove(&fourth).unwrap().unwrap_err().code, RefusalCode::WrongState);
            w.later(Span::from_secs(5));
            assert!(!w.replies.contains_key(&known));
            continue;
        }
        if then == "asks again" {
            let third = w.request_later(actor(1000), body("third", None));
            let Some(Ok(Response::StepCreated { layout, waited, .. })) = w.replies.remove(&third) else {
                panic!("{:?}", w.replies)
            };
            assert_eq!(layout.nodes, [NodeName::from("n1")]);
            assert_eq!(waited, Span::from_secs(60));
            w.exited("n2", steps[1], ExitStatus::OK);
        } else {
            w.later(Span::from_secs(4));
            assert!(!w.replies.contains_key(&fourth));
            w.later(Span::from_secs(1));
        }
        assert!(matches!(w.replies.remove(&fourth), Some(Ok(Response::StepCreated { .. }))));
        assert!(!w.replies.contains_key(&fifth));
    }
}

/// Whoever makes a step in somebody else's job is in the log once, when there is a step, however often they asked.
#[test]
fn a_step_in_the_job_of_another_is_noted_when_it_is_made() {
    let (mut w, id, steps) = world();
    let body = |immediate| {
        let spec = Box::new(StepSpec { immediate, ..on_one("third") });
        Request::CreateStep { job: id, spec }
    };
    let noted = |w: &World| {
        let made =
            |write: &&Write| matches!(write, Write::AddAudit(row) if row.what.starts_with("made a step in"));
        w.writes.iter().filter(made).count()
    };
    w.request_later(actor(0), body(None));
    let known = w.request_later(actor(0), body(Some(Span(0))));
    let number = questions(&mut w)[0].0;
    w.not_ended("n1", number, vec![steps[0]]);
    w.not_ended("n2", number, vec![steps[1]]);
    assert!(refused(&mut w, known));
    let made = w.request_later(actor(0), body(None));
    assert_eq!(noted(&w), 0, "there is no step");
    w.exited("n2", steps[1], ExitStatus::OK);
    assert!(matches!(w.replies.remove(&made), Some(Ok(Response::StepCreated { .. }))));
    assert_eq!(noted(&w), 1);
    let again = w.request_later(actor(0), body(None));
    assert!(matches!(w.replies.remove(&again), Some(Ok(Response::StepCreated { .. }))));
    assert_eq!(noted(&w), 1, "that one was made before");
}

/// The job ends while agents are asked: who waits is told so, and an answer that comes late is none.
#[test]
fn the_end_of_the_job_ends_the_question() {
    let (mut w, id, steps) = world();
    let waits = ask(&mut w, id, "third");
    let number = questions(&mut w)[0].0;
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    assert_eq!(w.replies.remove(&waits).unwrap().unwrap_err().code, RefusalCode::WrongState);
    w.not_ended("n1", number, vec![steps[0]]);
    w.later(Span::from_secs(20));
}
