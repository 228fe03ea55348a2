//! What is wrong with the machine: processes that stay, its health, its reboot.

use crate::node::*;
use berth_agent_core::*;
use berth_model::ids::*;
use berth_model::launch::*;
use berth_model::link::*;
use berth_model::time::{Span, Time};

impl Node {
    /// What is wrong with the node, as it was told last.
    fn troubles(&self) -> Vec<String> {
        let told = self.seen.iter().rev().find_map(|e| match e {
            AgentEffect::Send(FromAgent::Heartbeat { troubles, .. }) => Some(troubles.clone()),
            _ => None,
        });
        told.unwrap_or_default().into_iter().map(|trouble| trouble.why).collect()
    }

    fn left(&mut self, processes: Option<&str>) {
        let processes = processes.map(str::to_string);
        self.event(AgentEvent::Left { job: JOB.0, attempt: JOB.1, processes });
    }
}

#[test]
fn processes_that_do_not_end_are_looked_for_in_time_and_told_for_as_long_as_they_are_there() {
    let looks = |n: &Node| n.count(|e| matches!(e, AgentEffect::LookForLeft { .. }));
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.exits(BATCH, 0);
    n.later(Span::from_secs(59));
    assert_eq!(looks(&n), 0);
    n.later(Span::from_secs(2));
    assert_eq!(looks(&n), 1);
    // An epilog takes its time: no process is left.
    n.left(None);
    assert!(n.troubles().is_empty());
    n.later(Span::from_secs(30));
    assert_eq!(looks(&n), 2);
    n.seen.clear();
    n.left(Some("pid 9 (cp), state D"));
    assert_eq!(n.troubles(), ["Kill task failed: job 7: pid 9 (cp), state D"]);
    n.left(Some("pid 9 (cp), state D"));
    assert_eq!(n.count(|e| matches!(e, AgentEffect::Send(FromAgent::Heartbeat { .. }))), 1, "no news");
    // With every sign of life, and to whoever comes to lead.
    n.seen.clear();
    n.later(Span::from_secs(11));
    assert_eq!(n.troubles().len(), 1);
    n.event(AgentEvent::Disconnected);
    n.event(AgentEvent::Connected);
    n.seen.clear();
    n.say(ToAgent::Welcome { term: Term(3), session: Session(2), heartbeat: Span::from_secs(10) });
    assert_eq!(n.troubles().len(), 1);
    n.seen.clear();
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    assert!(matches!(
        &n.seen[..],
        [AgentEffect::Send(FromAgent::JobGone { .. }), AgentEffect::Send(FromAgent::Heartbeat { troubles, .. })] if troubles.is_empty()
    ));
    n.left(Some("late"));
    assert!(n.troubles().is_empty());
}

#[test]
fn a_step_that_does_not_end_is_given_up_and_its_late_word_changes_nothing() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.say(end_job(EndCause::Cancelled));
    n.later(Span::from_secs(89));
    assert_eq!(n.count(|e| matches!(e, AgentEffect::AbandonStep { .. })), 0);
    assert!(n.blows().iter().filter(|b| **b == 9).count() > 3, "it is killed again and again");
    n.later(Span::from_secs(2));
    assert_eq!(n.count(|e| matches!(e, AgentEffect::AbandonStep { .. })), 1);
    n.later(Span::from_secs(1));
    let phases = n.phases(BATCH);
    let Some(StepPhase::Exited(told)) = phases.first() else { panic!("{phases:?}") };
    assert_eq!((told.status.signal, told.ended_by), (9, Some(EndCause::Cancelled)));
    assert!(told.launch_error.as_ref().is_some_and(|why| why.contains("within 60 s")), "{told:?}");
    n.seen.clear();
    n.exits(BATCH, 0);
    n.event(AgentEvent::Supervisor { key: BATCH, event: SupervisorEvent::Gone });
    n.later(Span::from_secs(6));
    for phase in n.phases(BATCH) {
        assert!(matches!(&phase, StepPhase::Exited(exit) if exit.status.signal == 9), "{phase:?}");
    }
}

#[test]
fn health_is_checked_one_at_a_time_when_the_node_does_what_it_is_to_do() {
    let checks = |n: &Node| n.count(|e| matches!(e, AgentEffect::CheckHealth));
    let mut n = Node::checked(Some(false), None);
    assert_eq!(checks(&n), 1);
    n.later(Span::from_secs(3600));
    assert_eq!(checks(&n), 1, "the first has not ended");
    n.event(AgentEvent::HealthChecked(Err("no GPU".into())));
    assert_eq!(n.troubles(), ["no GPU"]);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::RememberHealth(Some(why)) if why == "no GPU")), 1);
    n.running(BATCH);
    n.later(Span::from_secs(3600));
    assert_eq!(checks(&n), 1, "the node is busy");
    assert_eq!(n.troubles(), ["no GPU"]);
    n.say(end_job(EndCause::JobEnded));
    n.exits(BATCH, 0);
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    n.later(Span::from_secs(61));
    assert_eq!(checks(&n), 2);
    n.event(AgentEvent::HealthChecked(Ok(())));
    assert!(n.troubles().is_empty());
    n.seen.clear();
    n.later(Span::from_secs(59));
    assert_eq!(checks(&n), 0);
    n.later(Span::from_secs(2));
    assert_eq!(checks(&n), 1);
}

#[test]
fn what_a_check_found_holds_until_the_next_one_says_otherwise() {
    let n = Node::checked(None, Some("no GPU"));
    assert_eq!(n.troubles(), ["no GPU"]);
    let n = Node::new(vec![]);
    assert!(n.troubles().is_empty());
}

#[test]
fn a_node_that_is_unfit_says_so_with_each_sign_of_life() {
    let why = "driver and library are of different versions";
    let mut n = Node::made(AgentConfig { unfit: Some(why.to_string()), ..config() }, vec![], vec![]);
    assert_eq!(n.troubles(), [why]);
    n.seen.clear();
    n.later(Span::from_secs(11));
    assert_eq!(n.troubles(), [why]);
}

impl Node {
    fn checked(busy: Option<bool>, unhealthy: Option<&str>) -> Node {
        let config = AgentConfig {
            health: Some(HealthPlan { interval: Span::from_secs(60), busy }),
            unhealthy: unhealthy.map(str::to_string),
            ..config()
        };
        Node::made(config, vec![], vec![])
    }
}

#[test]
fn a_leader_alone_says_that_the_node_is_well() {
    let told = |n: &Node| n.count(|e| matches!(e, AgentEffect::Resumed));
    let mut n = Node::new(vec![]);
    n.say(ToAgent::Resumed { term: Term(2) });
    assert_eq!(told(&n), 0, "of an older leader");
    n.say(ToAgent::Resumed { term: Term(3) });
    assert_eq!(told(&n), 1);
}

#[test]
fn a_machine_is_rebooted_once_for_each_wish_and_not_under_a_job() {
    let reboots = |n: &Node| n.count(|e| matches!(e, AgentEffect::Reboot));
    let fails = |n: &Node| {
        let failed = |e: &AgentEffect| matches!(e, AgentEffect::Send(FromAgent::RebootFailed { since, why, .. }) if why == "no" && since.0 == 7);
        n.count(failed)
    };
    let wish = |n: &mut Node, term, since| n.say(ToAgent::Reboot { term: Term(term), since: Time(since) });
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    wish(&mut n, 2, 7);
    n.exits(BATCH, 0);
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    n.say(ToAgent::ExitRecorded { key: BATCH });
    assert_eq!(reboots(&n), 0, "of an older leader");
    wish(&mut n, 3, 7);
    wish(&mut n, 3, 7);
    assert_eq!(reboots(&n), 1);
    // The answer to one may be lost: it is asked for again, and nothing is done again.
    n.event(AgentEvent::Rebooted(Err("no".into())));
    assert_eq!(fails(&n), 1);
    wish(&mut n, 3, 7);
    assert_eq!((reboots(&n), fails(&n)), (1, 2));
    wish(&mut n, 3, 8);
    assert_eq!(reboots(&n), 2);
    n.event(AgentEvent::Rebooted(Ok(())));
    wish(&mut n, 3, 8);
    assert_eq!((reboots(&n), fails(&n)), (2, 2), "the machine is on its way");
}

#[test]
fn a_wish_for_a_reboot_waits_for_the_last_job_and_not_for_another() {
    let reboots = |n: &Node| n.count(|e| matches!(e, AgentEffect::Reboot));
    for another in [false, true] {
        let mut n = Node::new(vec![]);
        n.running(BATCH);
        n.say(ToAgent::Reboot { term: Term(3), since: Time(7) });
        if another {
            // The wish was given up: the controller has work again.
            n.running(FIRST);
            n.exits(FIRST, 0);
            n.say(ToAgent::ExitRecorded { key: FIRST });
        }
        n.exits(BATCH, 0);
        n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
        assert_eq!(reboots(&n), 0, "its exit is not on record yet");
        n.say(ToAgent::ExitRecorded { key: BATCH });
        assert_eq!(reboots(&n), usize::from(!another));
    }
}
