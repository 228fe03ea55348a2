//! Prolog and epilog around a run.

use crate::node::*;
use berth_agent_core::*;
use berth_model::hardware::{GresDevice, Hardware};
use berth_model::ids::{Session, Term};
use berth_model::launch::*;
use berth_model::link::*;
use berth_model::time::Span;

/// A node whose configuration names a prolog.
fn with_prolog(jobs: Vec<AdoptedJob>, adopted: Vec<Adopted>) -> Node {
    Node::made(AgentConfig { prolog: true, ..config() }, jobs, adopted)
}

fn prologs(n: &Node) -> usize {
    n.count(|e| matches!(e, AgentEffect::RunProlog { .. }))
}

fn prolog(n: &mut Node, result: Result<(), String>) {
    n.event(AgentEvent::Prolog { job: JOB.0, attempt: JOB.1, result });
}

#[test]
fn nothing_of_a_job_starts_before_its_prolog_ended_which_runs_once() {
    let mut n = with_prolog(vec![], vec![]);
    n.start(start(BATCH, 3));
    n.event(AgentEvent::Image { key: BATCH, event: ImageEvent::Ready(None) });
    assert_eq!((prologs(&n), n.spawns()), (1, 0), "its image does not wait, its start does");
    n.start(start(FIRST, 3));
    prolog(&mut n, Ok(()));
    assert_eq!((prologs(&n), n.spawns()), (1, 1), "the other one's image is not there");
    n.event(AgentEvent::Image { key: FIRST, event: ImageEvent::Ready(None) });
    assert_eq!((prologs(&n), n.spawns()), (1, 2));
    prolog(&mut n, Ok(()));
    assert_eq!(n.spawns(), 2);
}

#[test]
fn a_prolog_that_ended_is_not_run_again_by_the_next_agent_and_another_is() {
    for done in [true, false] {
        let job = AdoptedJob { job: JOB.0, attempt: JOB.1, prolog_done: done, until: None };
        let mut n = with_prolog(vec![job], vec![]);
        n.start(start(BATCH, 3));
        n.event(AgentEvent::Image { key: BATCH, event: ImageEvent::Ready(None) });
        assert_eq!((prologs(&n), n.spawns()), if done { (0, 1) } else { (1, 0) });
    }
    // What runs shows that it ended, whatever the record says.
    let adopted = Adopted {
        launch: launch(BATCH),
        timers: StepTimers::default(),
        phase: AdoptedPhase::Running,
        pull: None,
        lease_known: false,
    };
    let job = AdoptedJob { job: JOB.0, attempt: JOB.1, prolog_done: false, until: None };
    let mut n = with_prolog(vec![job], vec![adopted]);
    n.running(FIRST);
    assert_eq!((prologs(&n), n.spawns()), (0, 1));
}

#[test]
fn a_prolog_that_failed_is_told_until_the_run_is_ended_and_nothing_started() {
    let mut n = with_prolog(vec![], vec![]);
    n.start(start(BATCH, 3));
    n.event(AgentEvent::Image { key: BATCH, event: ImageEvent::Ready(None) });
    prolog(&mut n, Err("prolog /p failed: exit code 3: no disk".into()));
    let told = |n: &Node| {
        n.count(|e| matches!(e, AgentEffect::Send(FromAgent::PrologFailed { why, .. }) if why.ends_with("no disk")))
    };
    assert_eq!(told(&n), 1);
    n.later(Span::from_secs(6));
    assert_eq!((told(&n), n.spawns()), (2, 0), "the message may be lost");
    n.seen.clear();
    n.say(end_job(EndCause::Requeued));
    n.later(Span::from_secs(20));
    assert_eq!((told(&n), n.spawns()), (0, 0));
    assert_eq!(n.count(|e| matches!(e, AgentEffect::RemoveJob { .. })), 1);
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    let exits = n.seen.iter().find_map(|e| match e {
        AgentEffect::Send(FromAgent::JobGone { steps, .. }) => Some(steps.clone()),
        _ => None,
    });
    let Some([(BATCH, StepPhase::Exited(exit))]) = exits.as_deref() else { panic!("{exits:?}") };
    assert!(exit.launch_error.as_ref().is_some_and(|why| why.ends_with("no disk")), "for the client");
}

#[test]
fn a_job_whose_prolog_failed_waits_for_no_image() {
    let mut n = with_prolog(vec![], vec![]);
    n.start(start(BATCH, 3));
    prolog(&mut n, Err("prolog /p failed: exit code 3".into()));
    n.say(end_job(EndCause::JobEnded));
    assert_eq!(n.count(|e| matches!(e, AgentEffect::CancelImage { .. })), 1, "it is still fetched");
    assert_eq!(n.count(|e| matches!(e, AgentEffect::RemoveJob { .. })), 1);
}

#[test]
fn nothing_of_a_run_starts_whose_gpus_do_not_work_whatever_its_prolog_says() {
    for there in [false, true] {
        let device = GresDevice { name: "gpu".into(), index: 1, ..GresDevice::default() };
        let hardware = Hardware { gres: vec![device], ..Hardware::default() };
        let mut n = Node::made(AgentConfig { prolog: there, hardware, ..config() }, vec![], vec![]);
        n.start(start(BATCH, 3));
        let fault = GpuFault { index: 1, why: "it fell off the bus".into() };
        let (job, attempt) = JOB;
        let faults = vec![fault.clone()];
        n.event(AgentEvent::Unfit { job, attempt, why: "GPU 1 does not work any more".into(), faults });
        prolog(&mut n, Ok(()));
        n.event(AgentEvent::Image { key: BATCH, event: ImageEvent::Ready(None) });
        let told = |n: &Node| {
            n.count(|e| {
                matches!(e, AgentEffect::Send(FromAgent::PrologFailed { why, faults, .. })
                    if why.starts_with("GPU 1") && *faults == [fault.clone()])
            })
        };
        assert_eq!((told(&n), n.spawns()), (1, 0));
        // The message may be lost, and so may the connection.
        n.later(Span::from_secs(6));
        n.event(AgentEvent::Disconnected);
        n.event(AgentEvent::Connected);
        let says = |e: &AgentEffect| {
            matches!(e, AgentEffect::Send(FromAgent::Hello { hardware, .. })
                if hardware.gres.iter().any(|d| d.fault.as_deref() == Some("it fell off the bus")))
        };
        assert_eq!(n.count(says), 1, "the next Hello says it, too");
        n.say(ToAgent::Welcome { term: Term(3), session: Session(2), heartbeat: Span::from_secs(10) });
        n.later(Span::from_secs(6));
        assert_eq!((told(&n), n.spawns()), (3, 0));
        n.say(end_job(EndCause::Requeued));
        n.later(Span::from_secs(20));
        assert_eq!((told(&n), n.spawns()), (3, 0));
        assert_eq!(n.count(|e| matches!(e, AgentEffect::RemoveJob { .. })), 1);
        n.event(AgentEvent::JobRemoved { job, attempt, epilog: None, faults: vec![] });
        let exits = n.seen.iter().find_map(|e| match e {
            AgentEffect::Send(FromAgent::JobGone { steps, .. }) => Some(steps.clone()),
            _ => None,
        });
        let Some([(BATCH, StepPhase::Exited(exit))]) = exits.as_deref() else { panic!("{exits:?}") };
        assert!(exit.launch_error.as_ref().is_some_and(|why| why.starts_with("GPU 1")), "for the client");
    }
}

#[test]
fn a_job_that_is_cancelled_during_its_prolog_goes_at_once() {
    let mut n = with_prolog(vec![], vec![]);
    n.start(start(BATCH, 3));
    n.event(AgentEvent::Image { key: BATCH, event: ImageEvent::Ready(None) });
    n.say(end_job(EndCause::Cancelled));
    assert_eq!(n.count(|e| matches!(e, AgentEffect::RemoveJob { .. })), 1, "which ends the prolog");
    prolog(&mut n, Ok(()));
    assert_eq!(n.spawns(), 0);
}

#[test]
fn what_an_epilog_failed_of_is_told_with_the_end_each_time() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.say(end_job(EndCause::Cancelled));
    n.exits(BATCH, 15);
    n.event(AgentEvent::JobRemoved {
        job: JOB.0,
        attempt: JOB.1,
        epilog: Some("why".into()),
        faults: vec![],
    });
    n.say(end_job(EndCause::Cancelled));
    let told = |e: &AgentEffect| matches!(e, AgentEffect::Send(FromAgent::JobGone { epilog: Some(why), .. }) if why == "why");
    assert_eq!(n.count(told), 2);
}
