//! Starts that come to no end: given up in time, with what they waited for.

use crate::node::*;
use berth_agent_core::*;
use berth_model::ids::*;
use berth_model::launch::*;
use berth_model::link::*;
use berth_model::time::Span;

/// A step whose supervisor was given out, and that does not run.
fn begun() -> Node {
    let mut n = Node::new(vec![]);
    n.start(start(FIRST, 3));
    n.event(AgentEvent::Image { key: FIRST, event: ImageEvent::Ready(None) });
    assert_eq!(n.spawns(), 1);
    n.seen.clear();
    n
}

fn kills(n: &Node) -> usize {
    n.count(|e| matches!(e, AgentEffect::KillStep { key: FIRST }))
}

fn ended(n: &Node) -> StepExit {
    match n.phases(FIRST).pop() {
        Some(StepPhase::Exited(exit)) => exit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_start_that_comes_to_no_end_is_given_up_with_what_it_waited_for() {
    let mut n = begun();
    n.later(Span::from_secs(119));
    assert_eq!(kills(&n), 0);
    n.later(Span::from_secs(2));
    assert_eq!(kills(&n), 1);
    let what = "pid 9 (berth-step), state D, waits in request_wait_answer on /data (fuse.sshfs)";
    n.event(AgentEvent::Supervisor { key: FIRST, event: SupervisorEvent::Waits(what.into()) });
    // What its supervisor says is what came of being killed.
    let said = StepExit { launch_error: Some("the container's first process was lost".into()), ..exit(9) };
    n.event(AgentEvent::Supervisor { key: FIRST, event: SupervisorEvent::Exited(said) });
    let exit = ended(&n);
    let why = exit.launch_error.unwrap();
    assert!(why.contains("step 7.0 did not start within 120 s (start_timeout_seconds)"), "{why}");
    assert!(why.ends_with(what), "{why}");
    assert_eq!(exit.ended_by, None, "it failed, and nobody ended it");
    assert_eq!(n.count(|e| matches!(e, AgentEffect::SignalStep { .. } | AgentEffect::Note { .. })), 0);
}

#[test]
fn one_that_does_not_even_end_when_it_is_killed_is_over_for_its_job_all_the_same() {
    let mut n = begun();
    n.later(Span::from_secs(121));
    n.later(Span::from_secs(58));
    assert!(kills(&n) > 1, "again and again");
    assert_eq!(n.count(|e| matches!(e, AgentEffect::AbandonStep { .. })), 0);
    n.later(Span::from_secs(2));
    assert_eq!(n.count(|e| matches!(e, AgentEffect::AbandonStep { key: FIRST })), 1);
    let why = ended(&n).launch_error.unwrap();
    for part in
        ["start_timeout_seconds", "what it waited for is not known", "did not end within 60 s after SIGKILL"]
    {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
}

#[test]
fn neither_image_nor_prolog_count_and_what_runs_has_no_such_time() {
    let mut n = Node::made(AgentConfig { prolog: true, ..config() }, vec![], vec![]);
    n.start(start(FIRST, 3));
    n.later(Span::from_secs(1000));
    n.event(AgentEvent::Image { key: FIRST, event: ImageEvent::Ready(None) });
    n.later(Span::from_secs(1000));
    n.event(AgentEvent::Prolog { job: JOB.0, attempt: JOB.1, result: Ok(()) });
    assert_eq!(n.spawns(), 1);
    n.later(Span::from_secs(119));
    n.event(AgentEvent::Supervisor { key: FIRST, event: SupervisorEvent::Started });
    n.later(Span::from_secs(1000));
    assert_eq!(kills(&n), 0);
}

#[test]
fn what_srun_runs_before_the_tasks_has_a_time_of_its_own() {
    let mut n = Node::new(vec![]);
    let mut waits = start(FIRST, 3);
    waits.launch.told_within = Some(Span::from_secs(90));
    n.start(waits);
    n.event(AgentEvent::Image { key: FIRST, event: ImageEvent::Ready(None) });
    n.seen.clear();
    n.later(Span::from_secs(209));
    assert_eq!(kills(&n), 0);
    n.later(Span::from_secs(2));
    assert_eq!(kills(&n), 1);
    n.event(AgentEvent::Supervisor { key: FIRST, event: SupervisorEvent::Exited(exit(9)) });
    let why = ended(&n).launch_error.unwrap();
    assert!(why.contains("did not start within 210 s (start_timeout_seconds)"), "{why}");
}

#[test]
fn what_users_have_run_before_their_tasks_has_time_of_its_own() {
    let with_one = |within: fn(AgentCore) -> AgentCore| {
        let Node { core, now, seen, no_disk } = Node::new(vec![]);
        let mut n = Node { core: within(core), now, seen, no_disk };
        let mut begins = start(FIRST, 3);
        begins.launch.task_prolog = "./slow".into();
        n.start(begins);
        n.event(AgentEvent::Image { key: FIRST, event: ImageEvent::Ready(None) });
        assert_eq!(n.spawns(), 1);
        n.seen.clear();
        n
    };
    let longer = |core: AgentCore| core.task_prologs_within(Span::from_secs(600));
    // The minute that such a program has is added to the two of the start: it fails by itself, and is named by its task.
    for (mut n, seconds) in [(with_one(|core| core), 180), (with_one(longer), 720)] {
        n.later(Span::from_secs(seconds - 1));
        assert_eq!(kills(&n), 0);
        n.later(Span::from_secs(2));
        assert_eq!(kills(&n), 1);
        n.exits(FIRST, 9);
        let why = ended(&n).launch_error.unwrap();
        assert!(why.contains(&format!("did not start within {seconds} s")), "{why}");
    }
}

#[test]
fn who_ends_a_step_that_starts_has_ended_it() {
    let mut n = begun();
    n.later(Span::from_secs(100));
    let (term, cause) = (Term(3), EndCause::Cancelled);
    n.say(ToAgent::Terminate { term, key: FIRST, kill_wait: WAIT, cause });
    n.later(Span::from_secs(29));
    assert_eq!(kills(&n), 0, "it has its time to end, whatever the start has");
    n.later(Span::from_secs(2));
    assert_eq!(kills(&n), 1);
    n.exits(FIRST, 9);
    let exit = ended(&n);
    assert_eq!((exit.ended_by, exit.launch_error), (Some(EndCause::Cancelled), None));
}

#[test]
fn an_agent_that_stood_still_or_is_new_gives_the_time_anew() {
    // The machine slept: the supervisor had no more of that time than the agent.
    let mut n = begun();
    n.now = n.now + Span::from_secs(3600);
    n.event(AgentEvent::Tick);
    n.later(Span::from_secs(119));
    assert_eq!(kills(&n), 0);
    n.later(Span::from_secs(2));
    assert_eq!(kills(&n), 1);
    let found = Adopted {
        launch: launch(FIRST),
        timers: StepTimers::default(),
        phase: AdoptedPhase::Starting,
        pull: None,
        lease_known: false,
    };
    let mut n = Node::new(vec![found]);
    n.later(Span::from_secs(119));
    assert_eq!(kills(&n), 0);
    n.later(Span::from_secs(2));
    assert_eq!(kills(&n), 1);
}

#[test]
fn the_time_is_the_sites_and_may_be_without_end() {
    let within = |limit: Option<Span>| {
        let Node { core, now, seen, no_disk } = begun();
        Node { core: core.starting_within(limit), now, seen, no_disk }
    };
    let mut n = within(Some(Span::from_secs(7)));
    n.later(Span::from_secs(8));
    assert_eq!(kills(&n), 1);
    n.exits(FIRST, 9);
    assert!(ended(&n).launch_error.unwrap().contains("within 7 s"));
    let mut n = within(None);
    n.later(Span::from_secs(100_000));
    assert_eq!(kills(&n), 0);
}
