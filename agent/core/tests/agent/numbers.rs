//! What an agent knows of numbers that were given out, and what it says of those that are given out once more.

use crate::node::*;
use berth_agent_core::*;
use berth_model::ids::*;
use berth_model::launch::*;
use berth_model::link::*;
use berth_model::time::Span;

fn key(job: u32, attempt: u32, step: u32) -> StepKey {
    StepKey { job: JobId(job), attempt: Attempt(attempt), step: StepId::Number(step) }
}

/// The numbers of the last Hello.
fn told(n: &Node) -> Highest {
    let hello = n.seen.iter().rev().find_map(|e| match e {
        AgentEffect::Send(FromAgent::Hello { highest, .. }) => Some(*highest),
        _ => None,
    });
    hello.unwrap()
}

/// What is kept for the next agent, and how often it was written down.
fn kept(n: &Node) -> (Highest, usize) {
    let kept = n.seen.iter().filter_map(|e| match e {
        AgentEffect::RememberHighest(highest) => Some(*highest),
        _ => None,
    });
    let kept: Vec<Highest> = kept.collect();
    (kept.last().copied().unwrap_or_default(), kept.len())
}

fn again(n: &mut Node) -> Highest {
    n.event(AgentEvent::Disconnected);
    n.event(AgentEvent::Connected);
    told(n)
}

#[test]
fn the_highest_numbers_are_told_when_what_had_them_is_over_and_by_the_next_agent() {
    let mut n = Node::new(vec![]);
    assert_eq!(told(&n), Highest::default());
    let ran = key(70, 2, 5);
    n.running(ran);
    n.exits(ran, 0);
    n.say(ToAgent::ExitRecorded { key: ran });
    let end = ToAgent::EndJob {
        term: Term(3),
        job: ran.job,
        attempt: ran.attempt,
        kill_wait: WAIT,
        cause: EndCause::JobEnded,
    };
    n.say(end);
    n.event(AgentEvent::JobRemoved { job: ran.job, attempt: ran.attempt, epilog: None, faults: vec![] });
    n.running(key(9, 0, 0));
    let highest = Highest { job: ran.job, attempt: ran.attempt, step: 5, lost: false };
    assert_eq!(again(&mut n), highest);
    // Not each start costs a write, and what is kept is not less than what was given out.
    for job in 71..=127 {
        n.running(key(job, 0, 0));
    }
    let (file, writes) = kept(&n);
    assert_eq!((file.and(again(&mut n)), writes), (file, 1));
    n.running(key(128, 0, 0));
    assert_eq!(kept(&n).1, 2);
    // The next agent has it from there, and one that has nothing from what it finds.
    let n = Node::made(AgentConfig { highest: file, ..config() }, vec![], vec![]);
    assert_eq!(told(&n), file);
    let found = AdoptedJob { job: JobId(12), attempt: Attempt(1), prolog_done: false, until: None };
    let n = Node::made(config(), vec![found], vec![]);
    assert_eq!(told(&n), Highest { job: JobId(12), attempt: Attempt(1), step: 0, lost: false });
}

#[test]
fn a_run_that_was_only_ended_here_has_a_number_too() {
    let mut n = Node::new(vec![]);
    n.say(end_job(EndCause::NodeFailed));
    assert_eq!(again(&mut n).job, JOB.0);
}

#[test]
fn a_start_of_what_is_over_is_answered() {
    let mut n = Node::new(vec![]);
    n.running(BATCH);
    n.running(FIRST);
    n.exits(FIRST, 0);
    n.say(ToAgent::ExitRecorded { key: FIRST });
    n.seen.clear();
    // Of a step of a run that goes on.
    n.start(start(FIRST, 3));
    let [StepPhase::Exited(exit)] = &n.phases(FIRST)[..] else { panic!("{:?}", n.seen) };
    assert_eq!(exit.ended_by, Some(EndCause::NodeFailed));
    assert!(exit.launch_error.as_ref().unwrap().contains("7.0"), "{exit:?}");
    n.exits(BATCH, 0);
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
    n.say(ToAgent::ExitRecorded { key: BATCH });
    n.later(Span::from_secs(1));
    n.seen.clear();
    // Of the run: a controller that was made of a backup waits for a word.
    n.start(start(BATCH, 3));
    assert!(
        matches!(&n.seen[..], [AgentEffect::Send(FromAgent::JobGone { job, steps, .. })] if *job == JOB.0 && steps.is_empty()),
        "{:?}",
        n.seen
    );
    assert_eq!(n.spawns(), 0);
}
