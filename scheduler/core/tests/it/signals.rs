//! Signals: a node that is not connected hears them when it is back, once, and as long as there is what they were for.

use crate::common::*;
use berth_model::config::Config;
use berth_model::feature::{Feature, SIGNALLED};
use berth_model::ids::*;
use berth_model::launch::StepPhase;
use berth_model::link::{FromAgent, SignalTarget, ToAgent};
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState};
use berth_model::time::Span;
use berth_sched_core::{Cluster, CoreConfig, Event};

/// A step that runs on n1 and n2.
fn pair() -> (World, StepKey) {
    let mut w = World::new(&Config::default());
    for (at, name) in (1..).zip(["n1", "n2"]) {
        w.node(name, hardware(2, 1, 2000 + at, 0));
    }
    let mut spec = job(JobKind::Run, "two");
    (spec.resources.min_nodes, spec.resources.max_nodes, spec.resources.tasks) = (2, Some(2), Some(2));
    let key = StepKey { job: w.submit(spec).unwrap(), attempt: Attempt(0), step: StepId::Number(0) };
    for name in ["n1", "n2"] {
        w.phase(name, key, StepPhase::Running);
    }
    w.sent.clear();
    (w, key)
}

fn lose(w: &mut World, name: &str) {
    let node = NodeName::from(name);
    let (connection, _) = w.sessions[&node];
    w.event(Event::AgentLost { node, connection });
}

/// The agent of n2 comes with the step, by another connection.
fn comes_back(w: &mut World, key: StepKey) {
    w.hello(
        "n2",
        "boot",
        hardware(2, 1, 2002, 0),
        vec![(key, StepPhase::Running)],
        vec![(key.job, key.attempt)],
    );
}

/// `scancel -s`; nodes that are told later.
fn signal(w: &mut World, key: StepKey, step: bool, signal: i32) -> Vec<String> {
    let jobs = vec![(JobSelector::Job(key.job), step.then_some(key.step))];
    let request = CancelRequest { jobs, signal: Some(signal), ..CancelRequest::default() };
    match w.request(actor(1000), Request::Cancel(request)).unwrap() {
        Response::Acted { refused, later, .. } if refused.is_empty() => {
            later.into_iter().map(|n| n.0).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Numbers of the signals that were sent since the last look, with what they are.
fn signals(w: &mut World) -> Vec<(u64, i32)> {
    let sent = std::mem::take(&mut w.sent);
    let signals = sent.into_iter().filter_map(|m| match m {
        ToAgent::Signal { number, signal, .. } => Some((number.unwrap(), signal)),
        _ => None,
    });
    signals.collect()
}

fn passed_on(w: &mut World, name: &str, key: StepKey, number: u64) {
    let (job, attempt) = (key.job, key.attempt);
    w.tell(name, |session| FromAgent::Signalled { session, job, attempt, number });
}

#[test]
fn a_node_without_a_connection_hears_a_signal_when_it_is_back() {
    for step in [false, true] {
        let (mut w, key) = pair();
        lose(&mut w, "n2");
        assert_eq!(signal(&mut w, key, step, 10), ["n2"]);
        let [(first, 10)] = signals(&mut w)[..] else { panic!("n1 alone is told at once") };
        assert_eq!(signal(&mut w, key, step, 12), ["n2"]);
        let [(second, 12)] = signals(&mut w)[..] else { panic!("n1 alone is told at once") };
        comes_back(&mut w, key);
        assert!(matches!(w.sent[0], ToAgent::Welcome { .. }), "{:?}", w.sent);
        assert_eq!(signals(&mut w), [(first, 10), (second, 12)], "in the order in which they were sent");
        // It has heard one, and is gone before it has said so of the other.
        passed_on(&mut w, "n2", key, first);
        lose(&mut w, "n2");
        comes_back(&mut w, key);
        assert_eq!(signals(&mut w), [(second, 12)]);
        passed_on(&mut w, "n2", key, second);
        lose(&mut w, "n2");
        comes_back(&mut w, key);
        assert!(signals(&mut w).is_empty());
        assert_eq!(w.state(key.job), JobState::Running);
    }
}

#[test]
fn of_a_kind_a_node_that_is_away_hears_one() {
    let (mut w, key) = pair();
    lose(&mut w, "n2");
    for _ in 0..3 {
        signal(&mut w, key, true, 10);
    }
    let last = signals(&mut w).last().copied().unwrap();
    comes_back(&mut w, key);
    assert_eq!(signals(&mut w), [last]);
}

#[test]
fn a_signal_that_is_lost_with_its_connection_is_sent_again() {
    let (mut w, key) = pair();
    assert!(signal(&mut w, key, true, 10).is_empty());
    let sent = signals(&mut w);
    assert_eq!(sent.len(), 2);
    lose(&mut w, "n2");
    comes_back(&mut w, key);
    assert_eq!(signals(&mut w), [sent[1]]);
}

/// Agents read past what is no later than what they have heard.
#[test]
fn a_core_that_is_built_anew_goes_on_with_the_numbers() {
    let (mut w, key) = pair();
    for signo in [10, 12, 10] {
        signal(&mut w, key, true, signo);
    }
    let before = signals(&mut w).last().copied().unwrap();
    w.later(Span(10_000));
    let config = CoreConfig::new(&Config::default()).unwrap();
    w.core = Cluster::restore(config, Term(1), stored(&w.writes), w.now).unwrap();
    comes_back(&mut w, key);
    assert!(signals(&mut w).is_empty(), "what was owed is not stored");
    assert_eq!(signal(&mut w, key, true, 10), ["n1"]);
    let after = signals(&mut w);
    assert!(after.len() == 1 && after[0].0 > before.0, "{after:?} {before:?}");
}

#[test]
fn what_ran_ahead_of_the_clock_is_not_given_out_again_by_the_next_core() {
    let (mut w, key) = pair();
    for _ in 0..50 {
        signal(&mut w, key, true, 10);
    }
    let before = signals(&mut w).last().copied().unwrap();
    let last = w.core.last_signal();
    let config = CoreConfig::new(&Config::default()).unwrap();
    w.core = Cluster::restore(config, Term(1), stored(&w.writes), w.now).unwrap();
    w.core.signals_above(last);
    comes_back(&mut w, key);
    signal(&mut w, key, true, 10);
    let after = signals(&mut w);
    assert!(after.len() == 1 && after[0].0 > before.0, "{after:?} {before:?}");
}

#[test]
fn an_agent_of_an_earlier_version_hears_it_once_and_is_not_asked() {
    let (mut w, key) = pair();
    lose(&mut w, "n2");
    signal(&mut w, key, true, 10);
    let told = signals(&mut w);
    comes_back(&mut w, key);
    assert_eq!(signals(&mut w), told);
    let early: Vec<String> = Feature::known().into_iter().filter(|known| known != SIGNALLED).collect();
    w.hello_knowing("n2", hardware(2, 1, 2002, 0), early.clone());
    assert_eq!(signals(&mut w), told);
    // From then on it counts as told, and so does what is sent to it while it is there.
    signal(&mut w, key, true, 12);
    assert_eq!(signals(&mut w).len(), 2);
    w.hello_knowing("n2", hardware(2, 1, 2002, 0), early);
    assert!(signals(&mut w).is_empty());
}

#[test]
fn what_is_over_hears_nothing_any_more() {
    let (mut w, key) = pair();
    lose(&mut w, "n2");
    signal(&mut w, key, true, 10);
    signals(&mut w);
    // The step has ended there meanwhile.
    let ended = StepPhase::Exited(exit(ExitStatus::OK));
    w.hello("n2", "boot", hardware(2, 1, 2002, 0), vec![(key, ended)], vec![(key.job, key.attempt)]);
    assert!(signals(&mut w).is_empty());
    let (mut w, key) = pair();
    lose(&mut w, "n2");
    signal(&mut w, key, false, 10);
    let cancel = CancelRequest { jobs: vec![(JobSelector::Job(key.job), None)], ..CancelRequest::default() };
    w.request(actor(1000), Request::Cancel(cancel)).unwrap();
    signals(&mut w);
    comes_back(&mut w, key);
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::EndJob { .. })), "{:?}", w.sent);
    assert!(signals(&mut w).is_empty());
}

#[test]
fn a_signal_says_which_of_a_jobs_steps_it_is_for() {
    let (mut w, key) = pair();
    signal(&mut w, key, true, 10);
    let step = SignalTarget::Step(key.step);
    assert!(
        w.sent.iter().all(|m| matches!(m, ToAgent::Signal { target, .. } if *target == step)),
        "{:?}",
        w.sent
    );
    w.sent.clear();
    signal(&mut w, key, false, 10);
    assert!(
        w.sent.iter().all(|m| matches!(m, ToAgent::Signal { target: SignalTarget::Steps, .. })),
        "{:?}",
        w.sent
    );
}
