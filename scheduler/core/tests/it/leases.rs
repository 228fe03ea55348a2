//! `lost_after_seconds` and `--lost-after`: how long a run goes on is counted from its node's question, and what counts as lost has
//! surely ended.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::launch::StepPhase;
use berth_model::link::{EndCause, ToAgent};
use berth_model::spec::JobKind;
use berth_model::state::{ExitStatus, JobState};
use berth_model::time::{Span, Time};
use berth_sched_core::{Cluster, CoreConfig};

const SPAN: Span = Span::from_secs(100);
/// What the controller waits for: a fifth and 5 seconds more.
const SURE: Span = Span::from_secs(125);

fn config() -> Config {
    Config { lost_after_seconds: 100, ..Config::default() }
}

fn world() -> World {
    let mut w = World::new(&config());
    w.node("n1", hardware(4, 1, 4000, 0));
    w
}

fn deadline(w: &mut World) -> Option<Time> {
    let sent = std::mem::take(&mut w.sent);
    let start =
        sent.iter().find_map(|m| if let ToAgent::Start(start) = m { Some(start.lease) } else { None });
    start.unwrap()
}

fn renewals(w: &mut World) -> Vec<(JobId, Attempt, Time)> {
    let sent = std::mem::take(&mut w.sent);
    sent.into_iter()
        .filter_map(|m| if let ToAgent::Renew { runs, .. } = m { Some(runs) } else { None })
        .flatten()
        .collect()
}

#[test]
fn deadlines_are_by_the_nodes_own_clock_and_never_go_back() {
    let mut w = world();
    let clock = w.clock();
    let job = w.batch("a", |_| {});
    assert_eq!(deadline(&mut w), Some(clock + SPAN));
    w.later(Span::from_secs(30));
    w.heartbeat("n1", clock + Span::from_secs(29));
    assert_eq!(renewals(&mut w), [(job, Attempt(0), clock + Span::from_secs(129))]);
    // One that was overtaken.
    w.heartbeat("n1", clock + Span::from_secs(12));
    assert!(renewals(&mut w).is_empty());
    // Without a job nothing is said, and one that starts counts from the last question.
    w.exited("n1", batch_key(job, 0), ExitStatus::OK);
    w.gone("n1", job, 0);
    w.later(Span::from_secs(10));
    w.heartbeat("n1", clock + Span::from_secs(39));
    assert!(renewals(&mut w).is_empty());
    w.later(Span::from_secs(5));
    w.batch("b", |_| {});
    assert_eq!(deadline(&mut w), Some(clock + Span::from_secs(139)));
}

#[test]
fn a_run_counts_as_lost_when_it_has_surely_ended_and_no_sooner() {
    let mut w = world();
    let jobs = [
        w.batch("again", |spec| spec.requeue = Some(true)),
        w.batch("not", |spec| spec.requeue = Some(false)),
    ];
    let allocation = w.submit(berth_samples::job(JobKind::Alloc, "c")).unwrap();
    w.later(Span::from_secs(20));
    let asked = w.clock();
    w.heartbeat("n1", asked);
    w.later(Span(SURE.0 - 1));
    for job in jobs.into_iter().chain([allocation]) {
        assert_eq!(w.state(job), JobState::Running);
    }
    w.later(Span(1));
    assert_eq!((w.state(jobs[0]), w.state(jobs[1])), (JobState::Pending, JobState::NodeFail));
    assert_eq!(w.state(allocation), JobState::NodeFail);
    w.starts();
    // What is left of it on the node keeps everything new away, until it is gone.
    let steps = jobs.map(|job| (batch_key(job, 0), StepPhase::Running));
    w.hello(
        "n1",
        "boot",
        hardware(4, 1, 4000, 0),
        steps.to_vec(),
        jobs.map(|job| (job, Attempt(0))).to_vec(),
    );
    w.later(Span::from_secs(2));
    assert!(w.starts().is_empty());
    for job in jobs {
        w.gone("n1", job, 0);
    }
    w.later(Span::from_secs(2));
    assert_eq!(w.starts(), [batch_key(jobs[0], 1)]);
}

#[test]
fn a_run_that_ended_itself_runs_again_when_its_node_says_so() {
    let mut w = world();
    let jobs = [
        w.batch("again", |spec| spec.requeue = Some(true)),
        w.batch("not", |spec| spec.requeue = Some(false)),
    ];
    for job in jobs {
        let mut ended = exit(ExitStatus { code: 0, signal: 9 });
        ended.ended_by = Some(EndCause::OutOfTouch);
        w.phase("n1", batch_key(job, 0), StepPhase::Exited(ended));
        w.gone("n1", job, 0);
    }
    assert_eq!(w.state(jobs[1]), JobState::NodeFail);
    w.later(Span::from_secs(2));
    assert_eq!(w.info(jobs[0]).attempt, Attempt(1));
    assert_ne!(w.state(jobs[0]), JobState::NodeFail);
}

#[test]
fn a_controller_that_starts_counts_from_its_start() {
    let mut w = world();
    let job = w.batch("a", |_| {});
    // It was away for long: whatever an earlier one granted, it granted before now.
    w.now = w.now + Span::from_secs(3000);
    let config = CoreConfig::new(&config()).unwrap();
    w.core = Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap();
    w.later(Span(SURE.0 - 1));
    assert_eq!(w.state(job), JobState::Running);
    w.later(Span(1));
    assert_ne!(w.state(job), JobState::Running);
}

#[test]
fn an_agent_of_an_earlier_version_is_left_alone_and_so_is_a_site_that_did_not_ask() {
    for (old, seconds) in [(true, 100), (false, 0)] {
        let mut w = World::new(&Config { lost_after_seconds: seconds, ..config() });
        w.ask = !old;
        w.node("n1", hardware(4, 1, 4000, 0));
        let job = w.batch("a", |_| {});
        assert_eq!(deadline(&mut w), None);
        w.later(Span::from_secs(10_000));
        assert_eq!(w.state(job), JobState::Running);
    }
    let problems = Config { lost_after_seconds: 10, ..Config::default() }.check();
    assert!(problems.iter().any(|p| p.to_string().contains("lost_after_seconds")), "{problems:?}");
}

#[test]
fn a_job_asks_for_its_own_deadline_where_the_site_has_none_or_a_longer_one() {
    for (site, own, given) in
        [(0, Some(80), Some(80)), (100, Some(80), Some(80)), (100, None, Some(100)), (0, None, None)]
    {
        let mut w = World::new(&Config { lost_after_seconds: site, ..config() });
        w.node("n1", hardware(4, 1, 4000, 0));
        let clock = w.clock();
        let own = own.map(Span::from_secs);
        w.batch("a", |spec| spec.lost_after = own);
        assert_eq!(deadline(&mut w), given.map(|seconds| clock + Span::from_secs(seconds)), "{site} {own:?}");
    }
    // Beside others, each has its own.
    let mut w = World::new(&Config { lost_after_seconds: 0, ..config() });
    w.node("n1", hardware(4, 1, 4000, 0));
    let asks_for = |seconds: Option<i64>| {
        move |spec: &mut berth_model::spec::JobSpec| spec.lost_after = seconds.map(Span::from_secs)
    };
    let [short, long, stays] = [("a", Some(60)), ("b", Some(100)), ("c", None)]
        .map(|(name, seconds)| w.batch(name, asks_for(seconds)));
    w.later(Span::from_secs(20));
    let asked = w.clock();
    w.sent.clear();
    w.heartbeat("n1", asked);
    let until = |job, seconds| (job, Attempt(0), asked + Span::from_secs(seconds));
    assert_eq!(renewals(&mut w), [until(short, 60), until(long, 100)]);
    // A fifth and 5 seconds more.
    w.later(Span(Span::from_secs(77).0 - 1));
    assert_eq!(w.state(short), JobState::Running);
    w.later(Span(1));
    assert_ne!(w.state(short), JobState::Running);
    assert_eq!(w.state(long), JobState::Running);
    w.later(Span::from_secs(125 - 77));
    assert_ne!(w.state(long), JobState::Running);
    w.later(Span::from_secs(10_000));
    assert_eq!(w.state(stays), JobState::Running);
}

#[test]
fn a_deadline_that_cannot_be_is_refused_with_what_can() {
    let refused = |site: u32, own: i64| {
        let mut w = World::new(&Config { lost_after_seconds: site, ..config() });
        w.node("n1", hardware(4, 1, 4000, 0));
        let mut spec = berth_samples::job(JobKind::Batch, "a");
        spec.lost_after = Some(Span(own));
        w.submit(spec).unwrap_err().message
    };
    // As the site itself may say no less than node_timeout_seconds.
    for own in [i64::MIN, 0, Span::from_secs(59).0, i64::MAX] {
        let why = refused(0, own);
        assert!(why.contains("--lost-after") && why.contains("60 at least"), "{why}");
    }
    let why = refused(100, Span::from_secs(101).0);
    assert!(why.contains("101 seconds") && why.contains("100 seconds (lost_after_seconds)"), "{why}");
}
