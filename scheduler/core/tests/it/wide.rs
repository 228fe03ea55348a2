//! A step over many nodes ends on one after the other: what is written and sent for each does not grow with their number.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::launch::{StepExit, StepPhase};
use berth_model::link::{FromAgent, ToAgent};
use berth_model::spec::JobKind;
use berth_model::state::{ExitStatus, JobState};
use berth_sched_core::*;

const FAILED: ExitStatus = ExitStatus { code: 3, signal: 0 };

fn name(at: usize) -> String {
    format!("n{at}")
}

/// A job of `srun` over so many nodes, that runs.
fn started(count: usize) -> (World, StepKey) {
    let mut w = World::new(&Config::default());
    for at in 0..count {
        w.tell_hello_quietly(&name(at), hardware(2, 1, 4000, 0));
    }
    let mut spec = job(JobKind::Run, "wide");
    let nodes = u32::try_from(count).unwrap();
    (spec.resources.min_nodes, spec.resources.max_nodes, spec.resources.tasks) =
        (nodes, Some(nodes), Some(nodes));
    w.submit(spec).unwrap();
    let starts = w.starts();
    assert_eq!(starts.len(), count);
    (w, starts[0])
}

fn tell(w: &mut World, at: usize, message: impl FnOnce(Session) -> FromAgent) {
    let node = NodeName(name(at));
    let (connection, session) = w.sessions[&node];
    w.quiet_event(Event::Agent { node, connection, message: message(session) });
}

fn exits(w: &mut World, at: usize, key: StepKey, exit: StepExit) {
    tell(w, at, |session| FromAgent::Step { session, key, phase: StepPhase::Exited(exit) });
}

fn goes(w: &mut World, at: usize, key: StepKey) {
    tell(w, at, |session| FromAgent::JobGone {
        session,
        job: key.job,
        attempt: key.attempt,
        steps: vec![],
        epilog: None,
        faults: vec![],
    });
}

/// Characters of all that was written since the `from`-th write, as a measure of it.
fn written(w: &World, from: usize) -> usize {
    w.writes[from..].iter().map(|write| format!("{write:?}").len()).sum()
}

/// What an end on so many nodes writes, for each node.
fn written_by_an_end(count: usize) -> usize {
    let (mut w, key) = started(count);
    let before = w.writes.len();
    for at in 0..count {
        exits(&mut w, at, key, exit(ExitStatus::OK));
    }
    assert_eq!(w.state(key.job), JobState::Completing);
    for at in 0..count {
        goes(&mut w, at, key);
    }
    assert_eq!(w.state(key.job), JobState::Completed);
    w.core.audit().unwrap();
    // Of what is whole, the step and the job are written as they end, and the job once more when all nodes have left it.
    let whole = w.writes[before..].iter().filter(|w| matches!(w, Write::PutStep(_) | Write::PutJob(_)));
    assert_eq!(whole.count(), 3);
    written(&w, before) / count
}

#[test]
fn the_end_on_each_of_many_nodes_writes_no_more_than_on_each_of_few() {
    let (few, many) = (written_by_an_end(50), written_by_an_end(1000));
    assert!(many < few + few / 4, "{few} characters for each of 50 nodes, {many} for each of 1000");
}

#[test]
fn what_is_written_of_parts_is_what_a_later_controller_finds() {
    let (mut w, key) = started(5);
    let back = |w: &World| {
        let config = CoreConfig::new(&Config::default()).unwrap();
        Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap()
    };
    let same = |w: &World| {
        let (here, there) = (w.info(key.job), back(w).snapshot().job(key.job).unwrap());
        assert_eq!(format!("{here:?}"), format!("{there:?}"));
        back(w).audit().unwrap();
    };
    for at in [3, 1, 0, 4] {
        let usage = berth_model::launch::Usage { user_us: 5, system_us: 7, max_rss: 1, ..Default::default() };
        exits(&mut w, at, key, StepExit { usage, ..exit(FAILED) });
        same(&w);
    }
    exits(&mut w, 2, key, exit(ExitStatus::OK));
    assert_eq!(w.info(key.job).steps[0].exit, FAILED);
    same(&w);
    for at in [4, 0, 2] {
        goes(&mut w, at, key);
        same(&w);
        assert!(matches!(w.writes.last(), Some(Write::LeaveNode { .. })));
    }
    // What a node that has left holds is free, also for the later controller.
    let mut spec = job(JobKind::Run, "next");
    (spec.resources.min_nodes, spec.resources.tasks, spec.resources.exclusive) = (3, Some(3), true);
    let next = w.submit(spec).unwrap();
    assert_eq!(
        (w.state(next), back(&w).snapshot().state(next)),
        (JobState::Running, Some(JobState::Running))
    );
    [1, 3].into_iter().for_each(|at| goes(&mut w, at, key));
    same(&w);
    assert_eq!(w.state(key.job), JobState::Failed);
}

#[test]
fn when_it_starts_on_none_of_many_nodes_each_is_told_once_to_end_it() {
    const COUNT: usize = 200;
    let (mut w, key) = started(COUNT);
    for at in 0..COUNT {
        exits(&mut w, at, key, StepExit { launch_error: Some("no such program".into()), ..exit(FAILED) });
    }
    let told = w.sent.iter().filter(|m| matches!(m, ToAgent::Terminate { .. })).count();
    assert_eq!(told, COUNT - 1);
    assert_eq!(w.info(key.job).steps[0].message.as_deref(), Some("n0: no such program"));
}
