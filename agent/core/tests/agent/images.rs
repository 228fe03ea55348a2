//! Images: fetched ahead, failed, told, and asked about.

use crate::node::*;
use berth_agent_core::*;
use berth_model::ids::*;
use berth_model::launch::*;
use berth_model::link::*;
use berth_model::spec::ResolvedImage;
use berth_model::time::Span;

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
    n.event(AgentEvent::JobRemoved { job: JOB.0, attempt: JOB.1, epilog: None, faults: vec![] });
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
        lease_known: false,
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
    // Nothing that was not asked.
    node.say(needed(2));
    assert_eq!(answers(&mut node), [(1, Some(vec!["a".to_string()]))]);
    // What comes to be needed meanwhile, until something else is asked.
    node.say(ToAgent::ImagesNeeded { ask: 1, digests: vec!["b".into()] });
    assert_eq!(answers(&mut node), [(1, Some(vec!["b".to_string()]))]);
    ask(&mut node, 2);
    node.say(needed(1));
    assert_eq!(answers(&mut node), []);
    node.say(needed(2));
    assert_eq!(answers(&mut node), [(2, Some(vec!["a".to_string()]))]);
    // The link breaks before the answer, and none is there when it is asked again.
    ask(&mut node, 3);
    node.event(AgentEvent::Disconnected);
    ask(&mut node, 4);
    node.event(AgentEvent::Connected);
    ask(&mut node, 5);
    node.say(needed(3));
    assert_eq!(answers(&mut node), [(3, None), (4, None), (5, None)]);
}

#[test]
fn what_may_go_stays_when_the_controller_is_gone_that_would_tell_of_jobs() {
    let mut node = Node::new(vec![]);
    node.event(AgentEvent::AskNeeded { ask: 1, digests: vec!["a".into()] });
    node.say(ToAgent::ImagesNeeded { ask: 1, digests: vec![] });
    assert_eq!(answers(&mut node), [(1, Some(vec![]))]);
    node.event(AgentEvent::Disconnected);
    assert_eq!(answers(&mut node), [(1, None)]);
    node.event(AgentEvent::Connected);
    assert_eq!(answers(&mut node), []);
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
