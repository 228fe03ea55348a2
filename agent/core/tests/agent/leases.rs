//! Steps with a deadline out of touch: what a late Start, a late renewal and a stopped supervisor come to.

use crate::node::Node;
use berth_agent_core::*;
use berth_model::ids::*;
use berth_model::launch::StepPhase;
use berth_model::link::{EndCause, FromAgent, Start, ToAgent};
use berth_model::time::Time;

const KEY: StepKey = StepKey { job: JobId(7), attempt: Attempt(0), step: StepId::Batch };

impl Node {
    fn leased(&mut self, seconds: i64) {
        self.say(ToAgent::Start(Box::new(Start {
            term: Term(3),
            launch: berth_samples::launch(KEY),
            job_time_left: None,
            step_time_left: None,
            warn: None,
            login: None,
            lease: Some(Time::from_secs(seconds)),
        })));
    }

    fn renew(&mut self, seconds: i64) -> usize {
        let runs = vec![(KEY.job, KEY.attempt, Time::from_secs(seconds))];
        self.seen.clear();
        self.say(ToAgent::Renew { term: Term(3), runs });
        self.count(|e| matches!(e, AgentEffect::Renew { until, .. } if *until == Time::from_secs(seconds)))
    }

    fn fetched(&mut self) {
        self.event(AgentEvent::Image { key: KEY, event: ImageEvent::Ready(None) });
    }

    fn until(&mut self, seconds: i64) {
        let end = Time::from_secs(seconds);
        let mut wakes = 0;
        while let Some(wake) = self.core.next_wake().filter(|w| *w <= end) {
            self.now = self.now.max(wake);
            self.event(AgentEvent::Tick);
            wakes += 1;
            assert!(wakes < 1000, "it wakes for ever");
        }
        self.now = end;
    }

    fn kills(&self) -> usize {
        self.count(|e| matches!(e, AgentEffect::KillStep { .. }))
    }
}

#[test]
fn nothing_starts_after_its_deadline() {
    // Its Start was under way for so long.
    let mut n = Node::new(vec![]);
    n.leased(100);
    n.fetched();
    assert_eq!(n.spawns(), 0);
    // Its image took so long, out of touch.
    let mut n = Node::new(vec![]);
    n.leased(110);
    n.until(111);
    assert_eq!(n.renew(200), 0, "that comes too late");
    n.fetched();
    assert_eq!(n.spawns(), 0);
    n.until(200);
    let told = n.seen.iter().any(|e| {
        let AgentEffect::Send(FromAgent::Step { phase: StepPhase::Exited(exit), .. }) = e else {
            return false;
        };
        exit.ended_by == Some(EndCause::OutOfTouch)
    });
    assert!(told, "{:?}", n.seen);
    // Its image took long, and the controller was heard of.
    let mut n = Node::new(vec![]);
    n.leased(110);
    n.until(109);
    n.renew(120);
    n.until(115);
    n.fetched();
    assert_eq!(n.spawns(), 1);
}

#[test]
fn renewals_reach_the_supervisor_and_one_that_is_stopped_keeps_nothing_alive() {
    let mut n = Node::new(vec![]);
    n.leased(110);
    n.fetched();
    n.event(AgentEvent::Supervisor { key: KEY, event: SupervisorEvent::Started });
    assert_eq!(n.renew(130), 1);
    n.until(130);
    // The supervisor is left a second for it.
    assert_eq!(n.kills(), 0);
    assert_eq!(n.renew(200), 0, "that comes too late");
    n.until(132);
    assert_eq!(n.kills(), 1);
    n.until(150);
    assert!(n.kills() > 1, "again and again");
    n.until(300);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::AbandonStep { .. })), 1);
}

/// What each renewal came to is written down: a supervisor that is stopped when the agent starts again is not waited for.
#[test]
fn an_agent_that_starts_knows_what_was_written_down_and_ends_what_a_stopped_supervisor_does_not() {
    let timers = StepTimers { lease: Some(Time::from_secs(110)), ..StepTimers::default() };
    let launch = berth_samples::launch(KEY);
    let found = Adopted { launch, timers, phase: AdoptedPhase::Running, pull: None, lease_known: true };
    let mut n = Node::new(vec![found]);
    n.event(AgentEvent::Disconnected);
    n.until(110);
    assert_eq!(n.kills(), 0);
    n.until(112);
    assert_eq!(n.kills(), 1);
}

#[test]
fn logins_of_a_run_that_may_count_as_lost_are_ended_with_and_without_a_step_of_it() {
    let evictions = |n: &Node| n.count(|e| matches!(e, AgentEffect::EndLogins { job } if *job == KEY.job));
    let mut n = Node::new(vec![]);
    n.leased(110);
    n.fetched();
    n.event(AgentEvent::Supervisor { key: KEY, event: SupervisorEvent::Started });
    n.renew(130);
    n.until(129);
    assert_eq!(evictions(&n), 0);
    n.until(131);
    assert_eq!(evictions(&n), 1);
    n.until(151);
    assert!(evictions(&n) > 1, "who comes later does not stay either");
    // Its only step is over, and the run is not.
    let mut n = Node::new(vec![]);
    n.leased(110);
    n.event(AgentEvent::Image { key: KEY, event: ImageEvent::Failed("no".into(), None) });
    n.say(ToAgent::ExitRecorded { key: KEY });
    n.renew(130);
    n.until(129);
    assert_eq!(evictions(&n), 0);
    n.until(131);
    assert_eq!(evictions(&n), 1);
}

#[test]
fn a_runs_deadline_is_written_down_before_anything_goes_by_it_and_known_to_the_next_agent() {
    let written = |n: &Node| {
        let until = |e: &AgentEffect| match e {
            AgentEffect::Deadline { until, .. } => Some(*until),
            _ => None,
        };
        n.seen.iter().filter_map(until).collect::<Vec<Time>>()
    };
    let at = |n: &Node, what: fn(&AgentEffect) -> bool| n.seen.iter().position(what).unwrap();
    let mut n = Node::new(vec![]);
    n.leased(110);
    n.fetched();
    n.event(AgentEvent::Supervisor { key: KEY, event: SupervisorEvent::Started });
    assert_eq!(written(&n), [Time::from_secs(110)]);
    let deadline = at(&n, |e| matches!(e, AgentEffect::Deadline { .. }));
    assert!(at(&n, |e| matches!(e, AgentEffect::MakeJob { .. })) < deadline);
    assert!(deadline < at(&n, |e| matches!(e, AgentEffect::Spawn { .. })));
    n.renew(130);
    assert_eq!(written(&n), [Time::from_secs(130)]);
    assert!(
        at(&n, |e| matches!(e, AgentEffect::Deadline { .. }))
            < at(&n, |e| matches!(e, AgentEffect::Renew { .. }))
    );
    n.renew(120);
    assert!(written(&n).is_empty(), "it never comes earlier");
    n.until(131);
    n.renew(200);
    assert!(written(&n).is_empty(), "that comes too late");
    // The next one finds the run without a step.
    let job = |until| AdoptedJob { job: KEY.job, attempt: KEY.attempt, prolog_done: true, until };
    let mut n = Node::made(crate::node::config(), vec![job(Some(Time::from_secs(110)))], vec![]);
    n.renew(130);
    assert_eq!(written(&n), [Time::from_secs(130)]);
    n.until(131);
    assert_eq!(n.count(|e| matches!(e, AgentEffect::EndLogins { .. })), 1);
    let mut n = Node::made(crate::node::config(), vec![job(None)], vec![]);
    n.renew(130);
    assert!(written(&n).is_empty());
}

#[test]
fn an_agent_that_starts_does_not_know_how_far_steps_were_renewed() {
    let timers = StepTimers { lease: Some(Time::from_secs(90)), ..StepTimers::default() };
    let found = Adopted {
        launch: berth_samples::launch(KEY),
        timers,
        phase: AdoptedPhase::Running,
        pull: None,
        lease_known: false,
    };
    let mut n = Node::new(vec![found]);
    n.until(120);
    assert_eq!(n.kills(), 0);
    assert_eq!(n.renew(130), 1);
    n.until(132);
    assert_eq!(n.kills(), 1);
}

/// Of a run that may count as lost nothing is left to go on, whatever was written down of its steps. So it is with a deadline that cannot be read.
#[test]
fn an_agent_that_finds_a_run_past_its_deadline_ends_its_steps() {
    let timers = StepTimers { lease: Some(Time::from_secs(300)), ..StepTimers::default() };
    for (until, ends) in [(Time(0), true), (Time::from_secs(100), true), (Time::from_secs(300), false)] {
        let launch = berth_samples::launch(KEY);
        let found = Adopted { launch, timers, phase: AdoptedPhase::Running, pull: None, lease_known: true };
        let job = AdoptedJob { job: KEY.job, attempt: KEY.attempt, prolog_done: true, until: Some(until) };
        let mut n = Node::made(crate::node::config(), vec![job], vec![found]);
        n.until(102);
        assert_eq!(n.kills() > 0, ends, "{until:?}");
        assert_eq!(n.renew(400) > 0, !ends, "{until:?}");
        assert_eq!(n.count(|e| matches!(e, AgentEffect::Deadline { .. })) > 0, !ends, "{until:?}");
    }
}
