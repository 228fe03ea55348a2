//! Reboots by an administrator's wish: when a node is free, once, with what is to become of it, and a word where it stays away.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::request::*;
use berth_model::state::{ExitStatus, JobState, NextState, NodeCondition};
use berth_model::time::{Span, Time};
use berth_sched_core::{Cluster, CoreConfig};

fn reboot(w: &mut World, asap: bool, next: NextState) {
    let (nodes, reason) = (vec![NodeName::from("n1")], None);
    w.request(actor(0), Request::RebootNodes { nodes, asap, next, reason }).unwrap();
}

fn set(w: &mut World, state: NodeStateChange) -> Result<Response, Refusal> {
    let reason = Some("why".to_string());
    w.request(actor(0), Request::UpdateNode { nodes: vec!["n1".into()], state, reason })
}

fn condition(w: &World) -> NodeCondition {
    w.core.snapshot().node(&NodeName::from("n1")).unwrap().condition
}

fn told(w: &mut World) -> usize {
    let sent = std::mem::take(&mut w.sent);
    sent.iter().filter(|m| matches!(m, ToAgent::Reboot { .. })).count()
}

fn boots(w: &mut World, id: &str) {
    w.hello("n1", id, hardware(4, 1, 4000, 2), vec![], vec![]);
    w.core.audit().unwrap();
}

fn ends(w: &mut World, job: JobId) {
    w.exited("n1", batch_key(job, 0), ExitStatus::OK);
    w.gone("n1", job, 0);
}

#[test]
fn a_node_that_is_free_is_told_at_once_and_takes_work_when_it_is_back() {
    let mut w = World::small();
    reboot(&mut w, false, NextState::Before);
    assert_eq!(told(&mut w), 1);
    assert!(condition(&w).reboot.unwrap().issued.is_some());
    let job = w.batch("a", |_| {});
    assert_eq!(w.state(job), JobState::Pending);
    // Wished for once more it is the same wish, which is told again: what is told may be lost.
    reboot(&mut w, true, NextState::Down);
    assert_eq!(told(&mut w), 0);
    for _ in 0..3 {
        w.later(Span::from_secs(10));
        assert_eq!(told(&mut w), 1);
    }
    boots(&mut w, "boot");
    assert_eq!(told(&mut w), 1);
    assert_eq!(w.state(job), JobState::Pending);
    boots(&mut w, "another");
    assert_eq!(condition(&w), NodeCondition::default());
    assert_eq!(w.state(job), JobState::Running);
}

#[test]
fn one_with_work_is_told_when_that_is_over_and_asap_lets_nothing_new_in() {
    for asap in [false, true] {
        let mut w = World::small();
        let first = w.batch("a", |_| {});
        reboot(&mut w, asap, NextState::Before);
        assert_eq!(told(&mut w), 0);
        let c = condition(&w);
        assert_eq!((c.drain, c.reason.as_deref()), (asap, asap.then_some("Reboot ASAP")));
        let second = w.batch("b", |_| {});
        assert_eq!(w.state(second), if asap { JobState::Pending } else { JobState::Running });
        ends(&mut w, first);
        if !asap {
            assert_eq!(told(&mut w), 0);
            // What waits does not come before it once the node is free.
            let third = w.batch("c", |spec| spec.resources.tasks = Some(4));
            ends(&mut w, second);
            assert_eq!((told(&mut w), w.state(third)), (1, JobState::Pending));
        } else {
            assert_eq!(told(&mut w), 1);
        }
        boots(&mut w, "another");
        assert!(!condition(&w).drain);
    }
}

#[test]
fn what_becomes_of_it_is_what_was_wished_for() {
    for (next, before, down, drain) in [
        (NextState::Before, Some(NodeStateChange::Drain), false, true),
        (NextState::Before, None, false, false),
        (NextState::Resume, Some(NodeStateChange::Drain), false, false),
        (NextState::Resume, Some(NodeStateChange::Down), false, false),
        (NextState::Down, None, true, false),
    ] {
        let mut w = World::small();
        if let Some(before) = before {
            set(&mut w, before).unwrap();
        }
        reboot(&mut w, false, next);
        assert_eq!(told(&mut w), 1);
        boots(&mut w, "another");
        let c = condition(&w);
        assert_eq!((c.down, c.drain, c.reboot), (down, drain, None), "{next:?} {before:?}");
        assert_eq!(c.reason.is_some(), down || drain);
    }
}

#[test]
fn a_wish_can_be_taken_back_until_it_is_fulfilled() {
    let mut w = World::small();
    let job = w.batch("a", |_| {});
    reboot(&mut w, true, NextState::Before);
    set(&mut w, NodeStateChange::CancelReboot).unwrap();
    ends(&mut w, job);
    assert_eq!((told(&mut w), condition(&w)), (0, NodeCondition::default()));
    reboot(&mut w, false, NextState::Before);
    let refused = set(&mut w, NodeStateChange::CancelReboot).unwrap_err();
    assert!(refused.message.contains("cannot be cancelled"), "{refused:?}");
    set(&mut w, NodeStateChange::Resume).unwrap();
    assert_eq!(condition(&w), NodeCondition::default());
    let user = w.request(
        actor(1000),
        Request::RebootNodes { nodes: vec!["n1".into()], asap: false, next: NextState::Before, reason: None },
    );
    assert_eq!(user.unwrap_err().code, RefusalCode::Denied);
    let nobody = vec!["n9".into()];
    let nobody = w.request(
        actor(0),
        Request::RebootNodes { nodes: nobody, asap: false, next: NextState::Before, reason: None },
    );
    assert_eq!(nobody.unwrap_err().code, RefusalCode::NotFound);
}

#[test]
fn one_that_fails_or_stays_away_is_named() {
    let mut config = Config::default();
    config.programs.reboot_timeout_seconds = 100;
    let mut w = World::new(&config);
    w.node("n1", hardware(4, 1, 4000, 2));
    reboot(&mut w, false, NextState::Before);
    let since = condition(&w).reboot.unwrap().since;
    let fails = |w: &mut World, since: Time| {
        let why = "/sbin/reboot: exit code 1".to_string();
        w.tell("n1", |session| FromAgent::RebootFailed { session, since, why });
    };
    fails(&mut w, Time(since.0 - 1));
    assert!(condition(&w).reboot.is_some(), "that was another wish");
    fails(&mut w, since);
    fails(&mut w, since);
    let c = condition(&w);
    assert!(c.drain && c.reboot.is_none(), "{c:?}");
    assert_eq!(c.reason.as_deref(), Some("reboot failed: /sbin/reboot: exit code 1"));
    set(&mut w, NodeStateChange::Resume).unwrap();
    reboot(&mut w, false, NextState::Before);
    w.later(Span::from_secs(99));
    assert_eq!(condition(&w).reason.as_deref(), Some("Not responding"));
    w.later(Span::from_secs(2));
    let c = condition(&w);
    assert_eq!(c.reason.as_deref(), Some("reboot: not back within 100 s"));
    assert!(c.drain);
    // It comes after all, and nobody has to do anything.
    boots(&mut w, "another");
    assert_eq!(condition(&w), NodeCondition::default());
}

#[test]
fn one_that_stays_away_is_named_beside_any_reason() {
    let mut config = Config::default();
    config.programs.reboot_timeout_seconds = 100;
    let overdue = "reboot: not back within 100 s";
    for reason in [None, Some("new kernel")] {
        let mut w = World::new(&config);
        w.node("n1", hardware(4, 1, 4000, 2));
        let wish = |next| Request::RebootNodes {
            nodes: vec!["n1".into()],
            asap: true,
            next,
            reason: reason.map(String::from),
        };
        w.request(actor(0), wish(NextState::Resume)).unwrap();
        let given = reason.unwrap_or("Reboot ASAP");
        assert_eq!(condition(&w).reason.as_deref(), Some(given));
        w.later(Span::from_secs(101));
        assert_eq!(condition(&w).reason, Some(format!("{given}; {overdue}")));
        boots(&mut w, "another");
        assert_eq!(condition(&w), NodeCondition::default());
        // An administrator had drained it before, and it stays so.
        set(&mut w, NodeStateChange::Drain).unwrap();
        w.request(actor(0), wish(NextState::Before)).unwrap();
        w.later(Span::from_secs(101));
        assert_eq!(condition(&w).reason, Some(format!("why; {overdue}")));
        boots(&mut w, "a third");
        let c = condition(&w);
        assert_eq!((c.drain, c.reason.as_deref()), (true, Some("why")));
    }
}

#[test]
fn a_cluster_of_one_users_refuses_what_its_agent_cannot_do() {
    let world = |reboot: &str| {
        let mut config = Config::default();
        config.programs.reboot = reboot.into();
        let mut w = World::new(&config);
        w.core = Cluster::new(CoreConfig::new(&config).unwrap().in_user_mode(true), Term(1));
        w.node("n1", hardware(4, 1, 4000, 2));
        w
    };
    for nodes in [vec![NodeName::from("n1")], vec![]] {
        let mut w = world("/sbin/reboot");
        let body = Request::RebootNodes { nodes, asap: true, next: NextState::Before, reason: None };
        let refusal = w.request(actor(0), body).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Invalid);
        assert!(
            refusal.message.starts_with("n1 cannot") && refusal.message.contains("user mode"),
            "{refusal}"
        );
        assert_eq!((told(&mut w), condition(&w)), (0, NodeCondition::default()));
    }
    let mut w = world("/home/me/reboot");
    reboot(&mut w, false, NextState::Before);
    assert_eq!(told(&mut w), 1, "it may do it");
}
