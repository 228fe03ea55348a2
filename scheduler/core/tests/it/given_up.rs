//! Nodes that an administrator gives up: at once where nobody else can say what runs there, and with the node's own word where it can.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::launch::StepPhase;
use berth_model::link::{EndCause, ToAgent};
use berth_model::request::*;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::time::Span;
use berth_sched_core::{Cluster, CoreConfig, Event};

/// A message that is lost, SIGTERM, SIGKILL, and what does not end by that: 10, 30 and 60 seconds.
const PATIENCE: Span = Span::from_secs(100);

/// Two nodes, and a job that runs on the first of them.
fn world() -> (World, JobId) {
    let mut w = World::small();
    let job = w.batch("1", |s| s.requeue = Some(true));
    assert_eq!(w.starts(), [batch_key(job, 0)]);
    w.phase("n1", batch_key(job, 0), StepPhase::Running);
    w.node("n2", hardware(4, 1, 4000, 2));
    (w, job)
}

fn set(w: &mut World, state: NodeStateChange) {
    let reason = (state == NodeStateChange::Down).then(|| "given up".to_string());
    w.request(actor(0), Request::UpdateNode { nodes: vec!["n1".into()], state, reason }).unwrap();
}

fn link_lost(w: &mut World) {
    let (connection, _) = w.sessions[&NodeName::from("n1")];
    w.event(Event::AgentLost { node: "n1".into(), connection });
}

/// Time goes by, and the other node is heard of.
fn wait(w: &mut World, span: Span) {
    w.later(span);
    let asked = w.clock();
    w.heartbeat("n2", asked);
}

/// What has changed nothing yet: the job has one run, and that is being ended.
fn still_ending(w: &mut World, job: JobId) {
    assert_eq!((w.state(job), w.starts()), (JobState::Completing, vec![]));
}

/// The job runs as its next attempt, on the other node.
fn runs_elsewhere(w: &mut World, job: JobId) {
    assert_eq!(w.starts(), [batch_key(job, 1)]);
    assert_eq!(w.info(job).layout.nodes, [NodeName::from("n2")]);
}

#[test]
fn what_runs_on_a_connected_node_is_gone_before_it_runs_elsewhere() {
    let (mut w, job) = world();
    set(&mut w, NodeStateChange::Down);
    let ends =
        |m: &ToAgent| matches!(m, ToAgent::EndJob { job: id, cause: EndCause::NodeFailed, .. } if *id == job);
    assert!(w.sent.iter().any(ends), "{:?}", w.sent);
    still_ending(&mut w, job);
    w.exited("n1", batch_key(job, 0), ExitStatus { code: 0, signal: 15 });
    still_ending(&mut w, job);
    w.gone("n1", job, 0);
    runs_elsewhere(&mut w, job);
    w.phase("n2", batch_key(job, 1), StepPhase::Running);
    // The timers that are left find nothing, and neither does the end of the connection.
    w.later(PATIENCE);
    link_lost(&mut w);
    assert_eq!((w.state(job), w.starts()), (JobState::Running, vec![]));
}

#[test]
fn a_job_that_does_not_run_again_has_failed_by_its_node() {
    let mut w = World::small();
    let job = w.batch("1", |s| s.requeue = Some(false));
    set(&mut w, NodeStateChange::Down);
    assert_eq!(w.state(job), JobState::Completing);
    w.exited("n1", batch_key(job, 0), ExitStatus { code: 0, signal: 15 });
    w.gone("n1", job, 0);
    assert_eq!((w.state(job), w.info(job).reason), (JobState::NodeFail, Reason::NodeDown));
}

#[test]
fn the_word_stands_at_once_where_no_link_is() {
    let (mut w, job) = world();
    link_lost(&mut w);
    assert_eq!((w.state(job), w.starts()), (JobState::Running, vec![]));
    set(&mut w, NodeStateChange::Down);
    runs_elsewhere(&mut w, job);
}

#[test]
fn a_link_that_is_lost_says_nothing_of_what_runs_and_the_word_stands_when_the_time_is_over() {
    for back in [false, true] {
        let (mut w, job) = world();
        set(&mut w, NodeStateChange::Down);
        if back {
            set(&mut w, NodeStateChange::Resume);
        }
        // An agent begins anew for a configuration or an upgrade, too.
        link_lost(&mut w);
        still_ending(&mut w, job);
        wait(&mut w, Span(PATIENCE.0 / 2));
        wait(&mut w, Span(PATIENCE.0 / 2 - 1));
        still_ending(&mut w, job);
        w.later(Span(1));
        if back {
            still_ending(&mut w, job);
        } else {
            runs_elsewhere(&mut w, job);
        }
    }
}

#[test]
fn the_word_stands_when_an_end_has_taken_its_time() {
    let (mut w, job) = world();
    set(&mut w, NodeStateChange::Down);
    wait(&mut w, Span(PATIENCE.0 / 2));
    wait(&mut w, Span(PATIENCE.0 / 2 - 1));
    still_ending(&mut w, job);
    w.later(Span(1));
    runs_elsewhere(&mut w, job);
    // Until it says that it has ended it, the node takes nothing new.
    set(&mut w, NodeStateChange::Resume);
    let other = w.batch("2", |s| s.resources.node_list = vec!["n1".into()]);
    assert_eq!(w.state(other), JobState::Pending);
    w.gone("n1", job, 0);
    assert_eq!(w.state(other), JobState::Running);
}

#[test]
fn a_new_boot_says_the_same() {
    let (mut w, job) = world();
    set(&mut w, NodeStateChange::Down);
    still_ending(&mut w, job);
    w.hello("n1", "another", hardware(4, 1, 4000, 2), vec![], vec![]);
    runs_elsewhere(&mut w, job);
}

#[test]
fn a_controller_that_starts_hears_the_node_first() {
    for comes in [true, false] {
        let (mut w, job) = world();
        set(&mut w, NodeStateChange::Down);
        let config = CoreConfig::new(&Config::default()).unwrap();
        w.core = Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap();
        w.sent.clear();
        w.node("n2", hardware(4, 1, 4000, 2));
        wait(&mut w, Span(PATIENCE.0 / 2));
        still_ending(&mut w, job);
        if comes {
            let steps = vec![(batch_key(job, 0), StepPhase::Running)];
            w.hello("n1", "boot", hardware(4, 1, 4000, 2), steps, vec![(job, Attempt(0))]);
            still_ending(&mut w, job);
            w.gone("n1", job, 0);
        } else {
            wait(&mut w, Span(PATIENCE.0 / 2));
        }
        runs_elsewhere(&mut w, job);
    }
}

#[test]
fn what_a_restored_cluster_does_not_know_is_gone_before_its_node_is_not_awaited_any_more() {
    let mut w = World::small();
    let backup = w.writes.len();
    let lost = w.batch("1", |_| {});
    let mut back = w.of_backup(backup);
    let waits = back.batch("2", |_| {});
    back.node("n2", hardware(4, 1, 4000, 2));
    let steps = vec![(batch_key(lost, 0), StepPhase::Running)];
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), steps, vec![(lost, Attempt(0))]);
    set(&mut back, NodeStateChange::Down);
    assert_eq!((back.core.awaited().count(), back.starts()), (1, vec![]));
    back.gone("n1", lost, 0);
    assert_eq!(back.core.awaited().count(), 0);
    assert_eq!(back.starts(), [batch_key(waits, 0)]);
}
