//! The agent's core, one event at a time.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod common;

use berth_agent_core::*;
use berth_model::hardware::Hardware;
use berth_model::ids::*;
use berth_model::launch::*;
use berth_model::link::*;
use berth_model::spec::{JobKind, ResolvedImage, WarnSignal};
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};
use common::Node;

const JOB: (JobId, Attempt) = (JobId(7), Attempt(0));
const BATCH: StepKey = StepKey { job: JobId(7), attempt: Attempt(0), step: StepId::Batch };
const FIRST: StepKey = StepKey { job: JobId(7), attempt: Attempt(0), step: StepId::Number(0) };
const WAIT: Span = Span::from_secs(30);

fn launch(key: StepKey) -> StepLaunch {
    let launch = berth_samples::launch(key);
    StepLaunch { job: JobFacts { kind: JobKind::Batch, ..launch.job }, kill_wait: WAIT, ..launch }
}

fn start(key: StepKey, term: u64) -> Start {
    Start {
        term: Term(term),
        launch: launch(key),
        job_time_left: None,
        step_time_left: None,
        warn: None,
        login: None,
        lease: None,
    }
}

fn end_job(cause: EndCause) -> ToAgent {
    ToAgent::EndJob { term: Term(3), job: JOB.0, attempt: JOB.1, kill_wait: WAIT, cause }
}

fn exit(signal: u8) -> StepExit {
    StepExit {
        status: ExitStatus { code: 0, signal },
        tasks: vec![],
        oom: false,
        launch_error: None,
        ended_by: None,
        image: None,
        usage: Usage::default(),
        ended: Time(0),
    }
}

/// Steps and runs as a Hello tells them.
type Told = (Vec<(StepKey, StepPhase)>, Vec<(JobId, Attempt)>);

impl Node {
    fn start(&mut self, start: Start) {
        self.say(ToAgent::Start(Box::new(start)));
    }

    fn exits(&mut self, key: StepKey, signal: u8) {
        self.event(AgentEvent::Supervisor { key, event: SupervisorEvent::Exited(exit(signal)) });
    }

    fn ready(&mut self, key: StepKey) {
        self.event(AgentEvent::Image { key, event: ImageEvent::Ready(None) });
        self.event(AgentEvent::Supervisor { key, event: SupervisorEvent::Started });
    }

    fn running(&mut self, key: StepKey) {
        self.start(start(key, 3));
        self.ready(key);
    }

    fn later(&mut self, span: Span) {
        let end = self.now + span;
        while let Some(wake) = self.core.next_wake().filter(|w| *w <= end) {
            self.now = self.now.max(wake);
            self.event(AgentEvent::Tick);
        }
        self.now = end;
    }

    /// Signals and kills, in order, since the last look.
    fn blows(&mut self) -> Vec<i32> {
        let seen = std::mem::take(&mut self.seen);
        seen.iter()
            .filter_map(|e| match e {
                AgentEffect::SignalStep { signal, .. } => Some(*signal),
                AgentEffect::KillStep { .. } => Some(9),
                _ => None,
            })
            .collect()
    }

    fn phases(&self, key: StepKey) -> Vec<StepPhase> {
        self.seen
            .iter()
            .filter_map(|e| match e {
                AgentEffect::Send(FromAgent::Step { key: k, phase, .. }) if *k == key => Some(phase.clone()),
                _ => None,
            })
            .collect()
    }

    /// Steps and runs of the last Hello.
    fn introduced(&self) -> Told {
        let hello = self.seen.iter().rev().find_map(|e| match e {
            AgentEffect::Send(FromAgent::Hello { steps, jobs, .. }) => Some((steps.clone(), jobs.clone())),
            _ => None,
        });
        hello.unwrap()
    }
}

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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
    assert_eq!(n.count(|e| matches!(e, AgentEffect::Send(FromAgent::JobGone { .. }))), 1);
}

#[test]
fn steps_of_the_spool_are_taken_up_again() {
    let timers = StepTimers { job_limit: Some(Time::from_secs(200)), ..StepTimers::default() };
    let mut n = Node::new(vec![
        Adopted { launch: launch(BATCH), timers, phase: AdoptedPhase::Running, pull: None },
        Adopted { launch: launch(FIRST), timers, phase: AdoptedPhase::Gone, pull: None },
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
fn a_failed_image_is_the_end_of_its_step_alone() {
    let mut n = Node::new(vec![]);
    n.start(start(BATCH, 3));
    n.start(start(FIRST, 3));
    n.event(AgentEvent::Image { key: FIRST, event: ImageEvent::Failed("no image 'x'".into(), None) });
    n.event(AgentEvent::Image { key: BATCH, event: ImageEvent::Ready(None) });
    let Some(StepPhase::Exited(e)) = n.phases(FIRST).pop() else { panic!() };
    assert_eq!(e.launch_error.as_deref(), Some("no image 'x'"));
    assert_eq!(n.spawns(), 1);
    // One that is ended while its image is fetched never starts.
    let mut n = Node::new(vec![]);
    n.start(start(BATCH, 3));
    n.say(ToAgent::Terminate { term: Term(3), key: BATCH, kill_wait: WAIT, cause: EndCause::Cancelled });
    n.event(AgentEvent::Image { key: BATCH, event: ImageEvent::Ready(None) });
    assert_eq!(n.spawns(), 0);
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
    let Some(AgentEffect::Send(FromAgent::JobGone { steps, .. })) = n.seen.last() else { panic!() };
    assert!(matches!(steps[..], [(BATCH, StepPhase::Exited(_))]));
}

#[test]
fn what_an_image_took_is_told_with_progress_with_the_exit_and_after_a_restart() {
    let pulls = |n: &Node| -> Vec<ImagePull> {
        let told = n.seen.iter().filter_map(|e| match e {
            AgentEffect::Send(FromAgent::Pulled { pull, .. }) => Some(pull.clone()),
            _ => None,
        });
        told.collect()
    };
    // What the node found by a name travels with it.
    let found = Some(Box::new(ResolvedImage::Manifest {
        source: "docker://docker.io/library/debian".into(),
        digest: "sha256:1".into(),
        insecure: false,
        indexes: vec![],
        pin: None,
    }));
    let digest = Some("sha256:1".to_owned());
    let fetched = Fetched { bytes: 70, hit: false, digest: digest.clone(), found: found.clone() };
    let took = ImagePull { took: Span::from_secs(3), bytes: 70, hit: false, digest, found };
    let mut n = Node::new(vec![]);
    n.start(start(BATCH, 3));
    n.later(Span::from_secs(3));
    assert!(pulls(&n).is_empty(), "nothing is known yet");
    n.event(AgentEvent::Image { key: BATCH, event: ImageEvent::Ready(Some(fetched.clone())) });
    let kept = n.seen.iter().find_map(|e| match e {
        AgentEffect::Spawn { pull, .. } => pull.clone(),
        _ => None,
    });
    assert_eq!(kept, Some(took.clone()));
    n.event(AgentEvent::Supervisor { key: BATCH, event: SupervisorEvent::Started });
    n.later(Span::from_secs(1));
    assert_eq!(pulls(&n), std::slice::from_ref(&took));
    n.exits(BATCH, 0);
    n.later(Span::from_secs(1));
    let Some(StepPhase::Exited(exit)) = n.phases(BATCH).pop() else { panic!("no exit was told") };
    assert_eq!(exit.image, Some(took.clone()));
    // A later agent has it from the spool, and tells it when it is welcome.
    let again = Adopted {
        launch: launch(BATCH),
        timers: StepTimers::default(),
        phase: AdoptedPhase::Running,
        pull: kept,
    };
    let mut n = Node::new(vec![again]);
    assert_eq!(pulls(&n), std::slice::from_ref(&took));
    n.exits(BATCH, 0);
    n.later(Span::from_secs(1));
    let Some(StepPhase::Exited(exit)) = n.phases(BATCH).pop() else { panic!("no exit was told") };
    assert_eq!(exit.image, Some(took.clone()));
    // A failure took time, too.
    let mut n = Node::new(vec![]);
    n.start(start(FIRST, 3));
    n.later(Span::from_secs(3));
    n.event(AgentEvent::Image { key: FIRST, event: ImageEvent::Failed("gone".into(), Some(fetched)) });
    let Some(StepPhase::Exited(exit)) = n.phases(FIRST).pop() else { panic!("no exit was told") };
    assert_eq!(exit.image, Some(took));
}

/// Answers to questions about images, since the last call.
fn answers(node: &mut Node) -> Vec<(u64, Option<Vec<String>>)> {
    let seen = std::mem::take(&mut node.seen);
    let answer = |effect| match effect {
        AgentEffect::ImagesNeeded { ask, digests } => Some((ask, digests)),
        _ => None,
    };
    seen.into_iter().filter_map(answer).collect()
}

#[test]
fn what_jobs_need_is_known_only_while_the_controller_answers() {
    let mut node = Node::new(vec![]);
    let ask = |node: &mut Node, ask| {
        node.event(AgentEvent::AskNeeded { ask, digests: vec!["a".into(), "b".into()] })
    };
    ask(&mut node, 1);
    assert!(node.seen.iter().any(|e| matches!(
        e,
        AgentEffect::Send(FromAgent::ImagesHeld { session: Session(1), ask: 1, digests }) if digests.len() == 2
    )));
    assert_eq!(answers(&mut node), []);
    let needed = |ask| ToAgent::ImagesNeeded { ask, digests: vec!["a".into()] };
    node.say(needed(1));
    // Once, and nothing that was not asked.
    node.say(needed(1));
    node.say(needed(2));
    assert_eq!(answers(&mut node), [(1, Some(vec!["a".to_string()]))]);
    // The link breaks before the answer, and none is there when it is asked again.
    ask(&mut node, 3);
    node.event(AgentEvent::Disconnected);
    ask(&mut node, 4);
    node.event(AgentEvent::Connected);
    ask(&mut node, 5);
    node.say(needed(3));
    assert_eq!(answers(&mut node), [(3, None), (4, None), (5, None)]);
}

/// What is begun ahead, and what is given up, since the last call.
fn ahead(node: &mut Node) -> (usize, usize) {
    let seen = std::mem::take(&mut node.seen);
    let begun =
        seen.iter().filter(|e| matches!(e, AgentEffect::Prefetch { job, .. } if *job == JOB.0)).count();
    let over =
        seen.iter().filter(|e| matches!(e, AgentEffect::CancelPrefetch { job, .. } if *job == JOB.0)).count();
    (begun, over)
}

#[test]
fn an_image_is_fetched_ahead_once_and_given_up_once() {
    let mut node = Node::new(vec![]);
    let fetch = |node: &mut Node, term| node.say(ToAgent::Prefetch(Box::new(start(BATCH, term))));
    let over = ToAgent::EndPrefetch { term: Term(3), job: JOB.0, attempt: JOB.1 };
    fetch(&mut node, 2);
    assert_eq!(ahead(&mut node), (0, 0), "of a controller that leads no more");
    fetch(&mut node, 3);
    fetch(&mut node, 3);
    assert_eq!(ahead(&mut node), (1, 0));
    node.say(over.clone());
    node.say(over.clone());
    assert_eq!(ahead(&mut node), (0, 1));
    // Another connection: the controller says anew what it wants.
    fetch(&mut node, 3);
    node.event(AgentEvent::Disconnected);
    node.event(AgentEvent::Connected);
    assert_eq!(ahead(&mut node), (1, 1));
    node.say(ToAgent::Welcome { term: Term(3), session: Session(2), heartbeat: Span::from_secs(10) });
    fetch(&mut node, 3);
    assert_eq!(ahead(&mut node), (1, 0));
    // The job comes: what was begun is its own, and a late word changes nothing.
    node.start(start(BATCH, 3));
    node.say(over);
    fetch(&mut node, 3);
    assert_eq!(ahead(&mut node), (0, 0));
}

/// A node whose configuration names a prolog.
fn with_prolog(jobs: Vec<AdoptedJob>, adopted: Vec<Adopted>) -> Node {
    let mut node = Node::new(vec![]);
    let config = AgentConfig {
        node: "n1".into(),
        boot_id: "b".into(),
        boot_time: Time(0),
        agent_start: Time(0),
        version: "1".into(),
        hardware: Hardware::default(),
        term: Term(3),
        prolog: true,
        unkillable: Span::from_secs(60),
        health: None,
        unhealthy: None,
        unknown: vec![],
    };
    node.core = AgentCore::new(config, adopted, jobs, node.now);
    node.seen.clear();
    node.event(AgentEvent::Connected);
    node.say(ToAgent::Welcome { term: Term(3), session: Session(1), heartbeat: Span::from_secs(10) });
    node
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
        let job = AdoptedJob { job: JOB.0, attempt: JOB.1, prolog_done: done };
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
    };
    let job = AdoptedJob { job: JOB.0, attempt: JOB.1, prolog_done: false };
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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
    let exits = n.seen.iter().find_map(|e| match e {
        AgentEffect::Send(FromAgent::JobGone { steps, .. }) => Some(steps.clone()),
        _ => None,
    });
    let Some([(BATCH, StepPhase::Exited(exit))]) = exits.as_deref() else { panic!("{exits:?}") };
    assert!(exit.launch_error.as_ref().is_some_and(|why| why.ends_with("no disk")), "for the client");
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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: Some("why".into()) });
    n.say(end_job(EndCause::Cancelled));
    let told = |e: &AgentEffect| matches!(e, AgentEffect::Send(FromAgent::JobGone { epilog: Some(why), .. }) if why == "why");
    assert_eq!(n.count(told), 2);
}

#[test]
fn a_run_that_was_found_without_steps_keeps_its_limit_when_a_step_comes() {
    // The agent ended after it had made the job's parts, and before it started anything.
    let mut n = Node::new(vec![]);
    let config = AgentConfig {
        node: "n1".into(),
        boot_id: "b".into(),
        boot_time: Time(0),
        agent_start: Time(0),
        version: "1".into(),
        hardware: Hardware::default(),
        term: Term(3),
        prolog: false,
        unkillable: Span::from_secs(60),
        health: None,
        unhealthy: None,
        unknown: vec![],
    };
    let found = AdoptedJob { job: JOB.0, attempt: JOB.1, prolog_done: false };
    n.core = AgentCore::new(config, vec![], vec![found], n.now);
    n.event(AgentEvent::Connected);
    n.say(ToAgent::Welcome { term: Term(3), session: Session(1), heartbeat: Span::from_secs(10) });
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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
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

impl Node {
    fn checked(busy: Option<bool>, unhealthy: Option<&str>) -> Node {
        let config = AgentConfig {
            node: "n1".into(),
            boot_id: "b".into(),
            boot_time: Time(0),
            agent_start: Time(0),
            version: "1".into(),
            hardware: Hardware::default(),
            term: Term(3),
            prolog: false,
            unkillable: Span::from_secs(60),
            health: Some(HealthPlan { interval: Span::from_secs(60), busy }),
            unhealthy: unhealthy.map(str::to_string),
            unknown: vec![],
        };
        let now = Time::from_secs(100);
        let mut node = Node { core: AgentCore::new(config, vec![], vec![], now), now, seen: vec![] };
        node.event(AgentEvent::Connected);
        node.say(ToAgent::Welcome { term: Term(3), session: Session(1), heartbeat: Span::from_secs(10) });
        node
    }
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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
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
        n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None });
        assert_eq!(reboots(&n), 0, "its exit is not on record yet");
        n.say(ToAgent::ExitRecorded { key: BATCH });
        assert_eq!(reboots(&n), usize::from(!another));
    }
}
