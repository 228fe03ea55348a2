//! Steps and runs: started once, ended in order, told until it is on record.

use crate::node::*;
use berth_agent_core::*;
use berth_model::ids::*;
use berth_model::launch::*;
use berth_model::link::*;
use berth_model::spec::WarnSignal;
use berth_model::time::{Span, Time};

#[test]
fn a_start_runs_once_however_often_it_comes() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.start(start(BATCH, 3));
    assert_eq!(n.spawns(), 1);
    n.exits(BATCH, 0);
    n.start(start(BATCH, 3));
    n.say(ToAgent::ExitRecorded { key: BATCH });
    n.running(BATCH);
    n.say(end_job(EndCause::JobEnded));
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    n.running(BATCH);
    assert_eq!(n.spawns(), 1);
    n.seen.clear();
    n.say(end_job(EndCause::JobEnded));
    assert!(matches!(n.seen[..], [AgentEffect::Send(FromAgent::JobGone { .. })]), "the answer was lost once");
}

#[test]
fn an_older_leader_is_not_obeyed_and_a_newer_one_is_remembered() {
    let mut n = Node::new(vec![]);
    n.start(start(BATCH, 2));
    assert!(n.phases(BATCH).is_empty());
    n.start(start(BATCH, 5));
    assert_eq!(n.count(|e| matches!(e, AgentEffect::RememberTerm(Term(5)))), 1);
    n.start(start(FIRST, 3));
    assert!(n.phases(FIRST).is_empty());
}

#[test]
fn an_end_that_overtakes_its_start_prevents_it() {
    let mut n = Node::new(vec![]);
    n.say(end_job(EndCause::Cancelled));
    n.running(BATCH);
    assert_eq!(n.spawns(), 0);
}

#[test]
fn a_step_is_asked_to_end_before_it_is_killed() {
    let mut n = Node::new(vec![]);
    n.running(FIRST);
    n.blows();
    for _ in 0..2 {
        let (term, cause) = (Term(3), EndCause::Cancelled);
        n.say(ToAgent::Terminate { term, key: FIRST, kill_wait: WAIT, cause });
    }
    assert_eq!(n.blows(), [18, 15]);
    n.later(Span::from_secs(29));
    assert!(n.blows().is_empty());
    n.later(Span::from_secs(2));
    assert_eq!(n.blows(), [9]);
    n.exits(FIRST, 9);
    let [StepPhase::Exited(e)] = &n.phases(FIRST)[..] else { panic!() };
    assert_eq!(e.ended_by, Some(EndCause::Cancelled));
}

#[test]
fn limits_hold_without_a_controller_and_the_exit_waits_for_one() {
    let mut n = Node::new(vec![]);
    let mut s = start(BATCH, 3);
    s.job_time_left = Some(Span::from_secs(60));
    s.warn = Some(WarnSignal { signal: 10, before: Span::from_secs(20), batch_only: true });
    n.start(s);
    n.ready(BATCH);
    n.event(AgentEvent::Disconnected);
    n.later(Span::from_secs(41));
    assert_eq!(n.blows(), [10]);
    n.later(Span::from_secs(20));
    assert_eq!(n.blows(), [18, 15]);
    n.exits(BATCH, 15);
    assert!(n.phases(BATCH).is_empty(), "nobody is there to be told");
    n.event(AgentEvent::Connected);
    let [(BATCH, StepPhase::Exited(e))] = &n.introduced().0[..] else { panic!() };
    assert_eq!(e.ended_by, Some(EndCause::TimeLimit));
    n.say(ToAgent::Welcome { term: Term(3), session: Session(2), heartbeat: Span::from_secs(10) });
    n.seen.clear();
    n.later(Span::from_secs(11));
    assert!(n.phases(BATCH).len() >= 2, "an exit that was not acknowledged is not repeated");
    n.say(ToAgent::ExitRecorded { key: BATCH });
    n.seen.clear();
    n.later(Span::from_secs(60));
    assert!(n.phases(BATCH).is_empty());
}

#[test]
fn a_batch_job_goes_with_its_script_and_tells_the_exit_once() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.seen.clear();
    n.exits(BATCH, 0);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::RemoveJob { .. })), 1, "its end needs no order");
    assert!(n.phases(BATCH).is_empty(), "the exit waits for the end of the run");
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    let told = |n: &Node| {
        n.seen.iter().find_map(|e| match e {
            AgentEffect::Send(FromAgent::JobGone { steps, .. }) => Some(steps.clone()),
            _ => None,
        })
    };
    assert!(matches!(told(&n).unwrap()[..], [(BATCH, StepPhase::Exited(_))]));
    assert!(n.core.awaits_acknowledgement());
    n.later(Span::from_secs(1));
    assert!(n.phases(BATCH).is_empty(), "it was told");
    n.later(Span::from_secs(5));
    assert!(!n.phases(BATCH).is_empty(), "what is not recorded is told again");
    n.say(ToAgent::ExitRecorded { key: BATCH });
    assert!(!n.core.awaits_acknowledgement());
    n.running(BATCH);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::Spawn { .. })), 0, "a late Start runs it again");
}

#[test]
fn progress_is_told_of_steps_that_take_longer_than_a_moment() {
    let mut n = Node::new(vec![]);
    n.running(FIRST);
    assert!(n.phases(FIRST).is_empty());
    n.later(Span::from_secs(1));
    assert_eq!(n.phases(FIRST), [StepPhase::Running], "the last one is told, and once");
    n.start(start(BATCH, 3));
    n.later(Span::from_secs(1));
    assert_eq!(n.phases(BATCH), [StepPhase::Preparing(None)]);
}

#[test]
fn a_run_that_does_not_go_holds_its_exit_back_only_for_a_moment() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.exits(BATCH, 0);
    n.seen.clear();
    n.later(Span(60_000));
    assert_eq!(n.phases(BATCH).len(), 1);
    n.seen.clear();
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    let [AgentEffect::Send(FromAgent::JobGone { steps, .. })] = &n.seen[..] else { panic!() };
    assert_eq!(steps.len(), 1, "what was told may not have arrived");
}

#[test]
fn a_batch_job_stays_while_a_step_of_it_lives() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.running(FIRST);
    n.seen.clear();
    n.exits(BATCH, 0);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::RemoveJob { .. })), 0);
    assert_eq!(n.phases(BATCH).len(), 1);
}

#[test]
fn a_job_goes_when_its_last_step_is_over() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.running(FIRST);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::MakeJob { .. })), 1);
    n.say(end_job(EndCause::JobEnded));
    for key in [BATCH, FIRST] {
        assert_eq!(n.count(|e| matches!(e, AgentEffect::RemoveJob { .. })), 0);
        n.exits(key, 15);
    }
    assert_eq!(n.count(|e| matches!(e, AgentEffect::RemoveJob { .. })), 1);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::Send(FromAgent::JobGone { .. }))), 0);
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    assert_eq!(n.count(|e| matches!(e, AgentEffect::Send(FromAgent::JobGone { .. }))), 1);
}

#[test]
fn steps_of_the_spool_are_taken_up_again() {
    let timers = StepTimers { job_limit: Some(Time::from_secs(200)), ..StepTimers::default() };
    let mut n = Node::new(vec![
        Adopted {
            launch: launch(BATCH),
            timers,
            phase: AdoptedPhase::Running,
            pull: None,
            lease_known: false,
        },
        Adopted { launch: launch(FIRST), timers, phase: AdoptedPhase::Gone, pull: None, lease_known: false },
    ]);
    let (steps, jobs) = n.introduced();
    assert_eq!(jobs, vec![JOB]);
    assert_eq!(steps[0], (BATCH, StepPhase::Running));
    let StepPhase::Exited(lost) = &steps[1].1 else { panic!() };
    assert!(lost.launch_error.as_ref().unwrap().contains("7.0"));
    n.start(start(BATCH, 3));
    assert_eq!(n.spawns(), 0);
    n.later(Span::from_secs(101));
    assert_eq!(n.blows(), [18, 15], "the limit was forgotten");
}

#[test]
fn a_run_that_was_found_without_steps_keeps_its_limit_when_a_step_comes() {
    // The agent ended after it had made the job's parts, and before it started anything.
    let found = AdoptedJob { job: JOB.0, attempt: JOB.1, prolog_done: false, until: None };
    let mut n = Node::made(config(), vec![found], vec![]);
    n.start(Start { job_time_left: Some(Span::from_secs(60)), ..start(BATCH, 3) });
    n.ready(BATCH);
    let limit = n.now + Span::from_secs(60);
    let kept =
        |e: &AgentEffect| matches!(e, AgentEffect::Spawn { timers, .. } if timers.job_limit == Some(limit));
    assert_eq!(n.count(kept), 1);
    // No controller is needed for it.
    n.event(AgentEvent::Disconnected);
    n.blows();
    n.later(Span::from_secs(61));
    assert_eq!(n.blows(), [18, 15]);
}

#[test]
fn of_steps_that_have_not_told_their_end_it_is_looked_up_when_somebody_asks() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.running(FIRST);
    n.exits(FIRST, 0);
    n.seen.clear();
    let unknown = StepKey { step: StepId::Number(9), ..FIRST };
    let question = || ToAgent::LookForEnds { ask: 5, keys: vec![BATCH, FIRST, unknown] };
    n.say(question());
    let [AgentEffect::LookForEnds { ask: 5, keys }] = &n.seen[..] else { panic!("{:?}", n.seen) };
    assert_eq!(keys, &[BATCH]);
    n.seen.clear();
    n.event(AgentEvent::NotEnded { ask: 5, keys: vec![BATCH] });
    let [AgentEffect::Send(FromAgent::NotEnded { ask: 5, keys, .. })] = &n.seen[..] else {
        panic!("{:?}", n.seen)
    };
    assert_eq!(keys, &[BATCH]);
    // The connection is gone on which it was asked: nobody waits for the answer.
    n.event(AgentEvent::Disconnected);
    n.seen.clear();
    n.event(AgentEvent::NotEnded { ask: 5, keys: vec![BATCH] });
    assert!(n.seen.is_empty(), "{:?}", n.seen);
}
