//! Nodes that are powered off when nothing is heard of them: once, and what counts as lost was surely on them.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::launch::StepPhase;
use berth_model::state::JobState;
use berth_model::time::{Span, Time};
use berth_sched_core::{Cluster, CoreConfig, Event, Write};

fn config() -> Config {
    let mut config = Config::default();
    config.programs.fence = "/etc/berth/fence".into();
    config.programs.fence_after_seconds = 90;
    config
}

fn world() -> World {
    let mut w = World::new(&config());
    w.node("n1", hardware(4, 1, 4000, 0));
    w
}

/// The one program that was asked for.
fn asked(w: &mut World) -> Time {
    let fences = std::mem::take(&mut w.fences);
    let [(node, asked)] = fences.try_into().unwrap();
    assert_eq!(node, NodeName::from("n1"));
    asked
}

fn ends(w: &mut World, asked: Time, result: Result<(), String>) {
    w.event(Event::Fenced { node: "n1".into(), asked, result });
}

fn audit(w: &World) -> Vec<String> {
    let entry = |write: &Write| match write {
        Write::AddAudit(row) => Some(format!("{}: {}", row.user, row.what)),
        _ => None,
    };
    w.writes.iter().filter_map(entry).collect()
}

#[test]
fn what_was_on_a_node_that_is_off_counts_as_lost() {
    let mut w = world();
    let jobs = [w.batch("again", |s| s.requeue = Some(true)), w.batch("not", |s| s.requeue = Some(false))];
    // Its time, and eight seconds for a second look.
    w.later(Span(98_000_000 - 1));
    assert!(w.fences.is_empty());
    w.later(Span(1));
    let when = asked(&mut w);
    w.later(Span::from_secs(1000));
    assert!(w.fences.is_empty(), "one at a time");
    assert!(jobs.iter().all(|job| w.state(*job) == JobState::Running), "asking is no evidence");
    ends(&mut w, when, Ok(()));
    assert_eq!(jobs.map(|job| w.state(job)), [JobState::Pending, JobState::NodeFail]);
    assert_eq!(audit(&w), ["berth: fenced n1: what ran there counts as lost"]);
    w.later(Span::from_secs(1000));
    assert!(w.fences.is_empty(), "nothing is left there");
    // It is back by itself when it boots.
    w.starts();
    w.hello("n1", "another boot", hardware(4, 1, 4000, 0), vec![], vec![]);
    w.later(Span::from_secs(2));
    assert_eq!(w.starts(), [batch_key(jobs[0], 1)]);
}

#[test]
fn a_controller_that_was_held_up_has_nobody_powered_off() {
    let mut w = world();
    w.node("n2", hardware(4, 1, 4000, 0));
    let jobs = ["n1", "n2"].map(|node| w.batch(node, |s| s.resources.node_list = vec![node.into()]));
    w.later(Span::from_secs(30));
    // What it hears first after an hour is one of many words that wait for it.
    w.now = w.now + Span::from_secs(3600);
    w.heartbeat("n1", Time(0));
    assert!(w.fences.is_empty());
    w.later(Span::from_secs(89));
    assert!(w.fences.is_empty(), "the other nodes are waited for anew");
    assert!(jobs.iter().all(|job| w.state(*job) == JobState::Running));
    // A node that stays silent is off its time later.
    w.later(Span::from_secs(9));
    assert!(!w.fences.is_empty());
}

#[test]
fn a_controller_that_was_held_up_until_a_node_is_due_reads_first_what_has_come() {
    for held in [90, 92, 93] {
        let mut w = world();
        w.node("n2", hardware(4, 1, 4000, 0));
        for node in ["n1", "n2"] {
            w.batch(node, |s| s.resources.node_list = vec![node.into()]);
        }
        // Neither is late enough to tell that it was held up. The word of the other one is the next that it reads.
        w.now = w.now + Span::from_secs(held);
        w.heartbeat("n1", Time(0));
        w.heartbeat("n2", Time(0));
        w.later(Span::from_secs(80));
        assert!(w.fences.is_empty(), "held up for {held} s: {:?}", w.fences);
    }
}

#[test]
fn a_second_look_that_comes_late_powers_nobody_off() {
    let mut w = world();
    w.batch("a", |_| {});
    w.later(Span::from_secs(91));
    w.now = w.now + Span::from_secs(60);
    w.event(Event::Tick);
    w.later(Span::from_secs(97));
    assert!(w.fences.is_empty());
    w.later(Span::from_secs(1));
    asked(&mut w);
}

#[test]
fn a_node_that_is_heard_of_between_two_looks_is_waited_for_anew() {
    let mut w = world();
    w.batch("a", |_| {});
    w.later(Span::from_secs(94));
    w.heartbeat("n1", Time(0));
    w.later(Span(98_000_000 - 1));
    assert!(w.fences.is_empty());
    w.later(Span(1));
    asked(&mut w);
}

#[test]
fn a_word_between_two_looks_counts_also_where_they_are_further_apart_than_the_time() {
    let mut config = config();
    config.node_timeout_seconds = 5;
    config.programs.fence_after_seconds = 5;
    assert!(config.check().is_empty());
    let mut w = World::new(&config);
    w.node("n1", hardware(4, 1, 4000, 0));
    w.batch("a", |_| {});
    // Looked at after 5 s, and once more after 13.
    w.later(Span::from_secs(6));
    w.heartbeat("n1", Time(0));
    w.later(Span(13_000_000 - 1));
    assert!(w.fences.is_empty());
    w.later(Span(1));
    asked(&mut w);
}

#[test]
fn a_program_that_fails_says_nothing_and_is_tried_again() {
    let mut w = world();
    let job = w.batch("a", |_| {});
    w.later(Span::from_secs(98));
    let first = asked(&mut w);
    ends(&mut w, first, Err("no outlet".into()));
    assert_eq!(w.state(job), JobState::Running);
    assert_eq!(audit(&w), ["berth: could not fence n1: no outlet"]);
    w.later(Span(98_000_000 - 1));
    assert!(w.fences.is_empty());
    w.later(Span(1));
    let second = asked(&mut w);
    // An answer to another one, and one that comes twice.
    ends(&mut w, first, Ok(()));
    assert_eq!(w.state(job), JobState::Running);
    ends(&mut w, second, Err("no outlet".into()));
    ends(&mut w, second, Ok(()));
    assert_eq!(w.state(job), JobState::Running);
    // The same reason is said once for as long as nothing is heard of the node.
    let fails = |w: &mut World, why: &str| {
        w.later(Span::from_secs(98));
        let when = asked(w);
        ends(w, when, Err(why.into()));
        audit(w).len()
    };
    assert_eq!(
        ["no outlet", "no network", "no network", "no outlet"].map(|why| fails(&mut w, why)),
        [1, 2, 2, 3]
    );
    w.heartbeat("n1", Time(0));
    assert_eq!(["no outlet", "no outlet"].map(|why| fails(&mut w, why)), [4, 4]);
}

#[test]
fn a_node_that_speaks_meanwhile_has_lost_nothing() {
    let mut w = world();
    let job = w.batch("a", |_| {});
    w.later(Span::from_secs(98));
    let when = asked(&mut w);
    w.later(Span::from_secs(10));
    w.heartbeat("n1", Time(0));
    ends(&mut w, when, Ok(()));
    assert_eq!(w.state(job), JobState::Running);
    assert!(audit(&w)[0].contains("heard meanwhile"), "{:?}", audit(&w));
    // Also when it has fallen silent once more: what counts is a program that began after that.
    w.later(Span::from_secs(98));
    let when = asked(&mut w);
    ends(&mut w, when, Ok(()));
    assert_ne!(w.state(job), JobState::Running);
}

#[test]
fn a_node_without_work_is_left_on_and_so_are_all_where_nobody_asked() {
    let mut w = world();
    w.later(Span::from_secs(10_000));
    assert!(w.fences.is_empty());
    let mut w = World::small();
    w.batch("a", |_| {});
    w.later(Span::from_secs(10_000));
    assert!(w.fences.is_empty());
}

#[test]
fn a_controller_that_starts_waits_anew_and_takes_no_earlier_ones_word() {
    let mut w = world();
    let job = w.batch("a", |_| {});
    w.phase("n1", batch_key(job, 0), StepPhase::Running);
    w.later(Span::from_secs(98));
    let before = asked(&mut w);
    let config = CoreConfig::new(&config()).unwrap();
    w.core = Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap();
    ends(&mut w, before, Ok(()));
    w.later(Span::from_secs(97));
    assert!(w.fences.is_empty());
    assert_eq!(w.state(job), JobState::Running);
    w.later(Span::from_secs(2));
    let when = asked(&mut w);
    ends(&mut w, before, Ok(()));
    assert_eq!(w.state(job), JobState::Running);
    ends(&mut w, when, Ok(()));
    assert_ne!(w.state(job), JobState::Running);
}

#[test]
fn a_fence_needs_a_program_and_a_time_that_is_long_enough() {
    let problems = |change: fn(&mut Config)| {
        let mut config = config();
        change(&mut config);
        config.check().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(problems(|_| {}), "");
    assert!(problems(|c| c.programs.fence_after_seconds = 59).contains("programs.fence_after_seconds"));
    assert!(problems(|c| c.programs.fence_after_seconds = 0).contains("programs.fence_after_seconds"));
    assert!(problems(|c| c.programs.fence = "".into()).contains("programs.fence"));
    assert!(problems(|c| c.programs.fence = "fence".into()).contains("absolute"));
    assert!(problems(|c| c.programs.fence_seconds = 0).contains("programs.fence_seconds"));
}
