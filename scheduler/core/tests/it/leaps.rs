//! A controller that begins at the time of a wall clock which is far ahead: nothing ends by that, and nothing becomes old.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::launch::StepPhase;
use berth_model::link::{EndCause, ToAgent};
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::JobState;
use berth_model::time::{Span, Time};
use berth_sched_core::*;

const DAY: Span = Span::from_mins(24 * 60);

fn minutes(s: &mut JobSpec) {
    s.time_limit = Some(TimeLimit::Minutes(10));
}

/// The next controller, which begins so much later. What it is told of that it is told twice, as one whose core is built anew.
fn begins(writes: &[Write], at: Time, by: Span) -> World {
    let config = CoreConfig::new(&Config::default()).unwrap();
    let mut w = World::new(&Config::default());
    w.core = Cluster::restore(config, Term(2), stored(writes), at).unwrap();
    w.now = at;
    for _ in 0..2 {
        w.core.has_leapt(Leap { at, by, sure: false }, "controller");
    }
    w
}

/// A job of ten minutes that has run for one of them, as its controller's time went on by a day at a start.
fn a_day_later() -> (World, World, JobId) {
    let mut w = World::small();
    let job = w.batch("1", minutes);
    w.phase("n1", batch_key(job, 0), StepPhase::Running);
    w.later(Span::from_secs(60));
    let mut next = begins(&w.writes, w.now + DAY, DAY);
    comes(&mut next, job);
    (w, next, job)
}

/// The node tells what it has.
fn comes(w: &mut World, job: JobId) {
    let steps = vec![(batch_key(job, 0), StepPhase::Running)];
    w.hello("n1", "boot", hardware(4, 1, 4000, 2), steps, vec![(job, Attempt(0))]);
}

fn ended(w: &World, job: JobId) -> bool {
    let at_limit =
        |m: &ToAgent| matches!(m, ToAgent::EndJob { job: id, cause: EndCause::TimeLimit, .. } if *id == job);
    w.sent.iter().any(at_limit)
}

#[test]
fn a_limit_is_not_reached_by_the_step() {
    let (w, mut next, job) = a_day_later();
    next.later(Span(Span::from_secs(540).0 - 1));
    assert!(!ended(&next, job));
    assert_eq!(next.state(job), JobState::Running);
    // It is on record: so it is for who begins after that, and again by so much.
    let writes = [&w.writes[..], &next.writes[..]].concat();
    for by in [Span(0), DAY] {
        let mut third = begins(&writes, next.now + by, by);
        comes(&mut third, job);
        assert!(!ended(&third, job), "{by:?}");
        third.later(Span(1));
        assert!(ended(&third, job), "{by:?}");
    }
    next.later(Span(1));
    assert!(ended(&next, job));
}

#[test]
fn nodes_are_told_what_is_left_without_the_step() {
    let (_, mut next, job) = a_day_later();
    next.request(actor(1000), Request::CreateStep { job, spec: Box::new(step("1")) }).unwrap();
    let told = next.sent.iter().find_map(|m| match m {
        ToAgent::Start(start) => Some((start.job_time_left, start.launch.job.end)),
        _ => None,
    });
    let left = Span::from_secs(540);
    assert_eq!(
        told,
        Some((Some(left), Some(next.now + left))),
        "and SLURM_JOB_END_TIME is when that is over"
    );
}

#[test]
fn users_are_told_when_the_limit_is_reached() {
    let (_, next, job) = a_day_later();
    let (end, snapshot) = (next.now + Span::from_secs(540), next.core.snapshot());
    let brief = JobQuery { brief: true, ..JobQuery::default() };
    let listed =
        |query: &JobQuery| -> Vec<JobInfo> { snapshot.list(query).flat_map(|page| page.jobs).collect() };
    let all = [vec![snapshot.job(job).unwrap()], listed(&JobQuery::default()), listed(&brief)].concat();
    assert_eq!(all.len(), 3);
    for info in all {
        assert_eq!(info.started.unwrap() + Span::from_mins(10) + info.leapt, end);
    }
}

#[test]
fn what_waits_is_told_to_start_when_what_runs_is_over() {
    let (_, mut next, _) = a_day_later();
    let mut spec = berth_samples::job(JobKind::Batch, "2");
    spec.resources.tasks = Some(4);
    let body = Request::Submit { spec: Box::new(spec), payload: script(), first_step: None, test_only: true };
    let Response::WouldStart { at, .. } = next.request(actor(1000), body).unwrap() else { panic!() };
    assert_eq!(at, next.now + Span::from_secs(540), "not now");
}

#[test]
fn what_begins_after_the_step_has_no_more_than_its_own() {
    let (_, mut next, old) = a_day_later();
    let job = next.batch("2", minutes);
    assert_eq!(next.state(job), JobState::Running);
    next.later(Span(Span::from_mins(10).0 - 1));
    assert!(ended(&next, old) && !ended(&next, job));
    next.later(Span(1));
    assert!(ended(&next, job));
}

#[test]
fn a_day_later_the_clock_is_believed() {
    let (w, mut next, job) = a_day_later();
    assert_eq!(next.core.in_doubt(), DAY);
    let logged = |w: &World| {
        let about =
            |write: &&Write| matches!(write, Write::AddAudit(row) if row.what.contains("1440 minutes ahead"));
        w.writes.iter().filter(about).count()
    };
    assert_eq!(logged(&next), 1);
    next.later(Span(DAY.0 - 1));
    assert_eq!(next.core.in_doubt(), DAY);
    next.later(Span(1));
    assert_eq!(next.core.in_doubt(), Span(0));
    // Nothing has a limit from before: it is forgotten with the next start.
    next.gone("n1", job, 0);
    let writes = [&w.writes[..], &next.writes[..]].concat();
    let mut third = begins(&writes, next.now, Span(0));
    third.core.note_time();
    third.event(Event::Tick);
    assert_eq!(stored(&third.writes).meta.unwrap().leaps, []);
    // A moment is nothing.
    third.core.has_leapt(Leap { at: third.now, by: Span(999_999), sure: false }, "controller");
    assert_eq!(third.core.in_doubt(), Span(0));
}

/// A node comes, of a machine in this boot, whose clock is so many minutes from cluster time.
fn shows(w: &mut World, node: &str, boot: &str, apart: i64) {
    w.booted = Time(w.now.0 - w.clock().0 + apart * 60_000_000);
    w.hello(node, boot, hardware(4, 1, 4000, 2), vec![], vec![]);
}

#[test]
fn the_clocks_of_other_machines_say_that_it_was_right() {
    let mut w = World::new(&Config::default());
    ["n1", "n2", "n3"].into_iter().for_each(|name| w.node(name, hardware(4, 1, 4000, 2)));
    let mut next = begins(&w.writes, w.now + DAY, DAY);
    // The controller's own machine has the clock that is in doubt, and one machine may be wrong, too.
    shows(&mut next, "n1", "controller", 0);
    shows(&mut next, "n2", "b2", 4);
    assert_eq!(next.core.in_doubt(), DAY);
    for apart in [-24 * 60, -5, 5] {
        shows(&mut next, "n3", "b3", apart);
        assert_eq!(next.core.in_doubt(), DAY, "{apart}");
    }
    shows(&mut next, "n3", "b3", -4);
    assert_eq!(next.core.in_doubt(), Span(0));
    let told = |write: &&Write| matches!(write, Write::AddAudit(row) if row.what.contains("and that was right: the clocks of 2"));
    assert_eq!(next.writes.iter().filter(told).count(), 1);
    // It is on record, and limits of what ran go by the nodes' clocks as before.
    let writes = [&w.writes[..], &next.writes[..]].concat();
    assert_eq!(stored(&writes).meta.unwrap().leaps.len(), 1);
    assert_eq!(begins(&writes, next.now, Span(0)).core.in_doubt(), Span(0));
}

#[test]
fn of_one_other_machine_its_word_is_enough_where_its_clock_can_tell() {
    let w = World::small();
    for (by, left) in [(9, 9), (60, 0)] {
        let by = Span::from_mins(by);
        let mut next = begins(&w.writes, w.now + by, by);
        shows(&mut next, "n1", "boot", 0);
        assert_eq!(next.core.in_doubt(), Span::from_mins(left));
    }
}
