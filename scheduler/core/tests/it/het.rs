//! Jobs of several components: recorded, started, ended and brought back as one, whatever happens.

use crate::common::*;
use berth_model::config::{Config, PartitionConfig};
use berth_model::het::HetPlace;
use berth_model::ids::*;
use berth_model::launch::{StepLaunch, StepPhase};
use berth_model::link::{EndCause, SignalTarget, ToAgent};
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::time::Span;
use berth_sched_core::{Cluster, CoreConfig};
use proptest::prelude::*;

/// Two nodes, two cores each.
fn pair() -> World {
    let mut w = World::new(&Config::default());
    w.node("n1", hardware(2, 1, 2000, 0));
    w.node("n2", hardware(2, 1, 2000, 1));
    w
}

fn component(kind: JobKind, submission: &str, tasks: u32) -> JobSpec {
    let mut spec = job(kind, submission);
    spec.resources.tasks = Some(tasks);
    spec
}

fn submit(w: &mut World, specs: Vec<JobSpec>) -> Result<Vec<JobId>, Refusal> {
    let count = u32::try_from(specs.len()).unwrap();
    let components = specs.into_iter().map(|spec| (spec, script())).collect();
    match w.request(actor(1000), Request::SubmitHet { components, test_only: false })? {
        Response::Submitted { job, .. } => Ok((job.0..job.0 + count).map(JobId).collect()),
        other => panic!("{other:?}"),
    }
}

/// A batch job of these components: so many tasks each.
fn het(w: &mut World, submission: &str, tasks: &[u32]) -> Vec<JobId> {
    let specs = tasks.iter().map(|n| component(JobKind::Batch, submission, *n)).collect();
    submit(w, specs).unwrap()
}

fn states(w: &World, ids: &[JobId]) -> Vec<JobState> {
    ids.iter().map(|id| w.state(*id)).collect()
}

fn launches(w: &mut World) -> Vec<StepLaunch> {
    let sent = std::mem::take(&mut w.sent);
    sent.into_iter().filter_map(|m| if let ToAgent::Start(s) = m { Some(s.launch) } else { None }).collect()
}

fn clean(w: &mut World, ids: &[JobId]) {
    for id in ids {
        let info = w.info(*id);
        for node in info.layout.nodes {
            w.gone(&node.0, *id, info.attempt.0);
        }
    }
}

#[test]
fn components_start_together_or_not_at_all() {
    let mut w = pair();
    let first = w.batch("plain", |s| s.resources.node_list = vec!["n2".into()]);
    let ids = het(&mut w, "a", &[2, 2]);
    assert_eq!(ids[1].0, ids[0].0 + 1);
    assert_eq!(states(&w, &ids), [JobState::Pending; 2], "one of them would have had room");
    assert!(ids.iter().all(|id| w.info(*id).reason == Reason::Resources));
    let behind = w.batch("behind", |_| {});
    assert_eq!(w.state(behind), JobState::Pending, "what they wait for is theirs");
    w.sent.clear();
    w.exited("n2", batch_key(first, 0), ExitStatus::OK);
    w.gone("n2", first, 0);
    assert_eq!(states(&w, &ids), [JobState::Running; 2]);
    let started = launches(&mut w);
    assert_eq!(started.len(), 1, "the script runs in the first one");
    assert_eq!(started[0].key, batch_key(ids[0], 0));
    let told = started[0].job.het.clone().unwrap();
    assert_eq!((told.leader, told.offset, told.groups.len()), (ids[0], 0, 2));
    assert_eq!(told.groups[1].layout, w.info(ids[1]).layout);
    assert_eq!(w.info(ids[1]).spec.het, Some(HetPlace { leader: ids[0], offset: 1, size: 2 }));
}

#[test]
fn all_end_with_the_script() {
    let mut w = pair();
    let ids = het(&mut w, "a", &[2, 1]);
    w.exited("n1", batch_key(ids[0], 0), ExitStatus { code: 3, signal: 0 });
    assert_eq!(states(&w, &ids), [JobState::Completing; 2]);
    clean(&mut w, &ids);
    assert_eq!(states(&w, &ids), [JobState::Failed; 2]);
    assert!(ids.iter().all(|id| w.info(*id).exit.code == 3));
    w.later(Span::from_secs(301));
    assert!(ids.iter().all(|id| w.core.snapshot().job(*id).is_none()), "an old job stays in memory");
}

#[test]
fn of_a_waiting_job_no_component_is_cancelled_alone_and_of_a_running_one_each_but_the_first() {
    let mut w = pair();
    let cancel = |w: &mut World, selector: JobSelector| {
        let request = CancelRequest { jobs: vec![(selector, None)], ..CancelRequest::default() };
        match w.request(actor(1000), Request::Cancel(request)).unwrap() {
            Response::Acted { refused, .. } => refused,
            other => panic!("{other:?}"),
        }
    };
    let ids = het(&mut w, "a", &[2, 1]);
    let waiting = het(&mut w, "b", &[2, 2]);
    for id in [JobSelector::Component(waiting[0], 1), JobSelector::Job(waiting[1])] {
        let refused = cancel(&mut w, id);
        assert!(
            refused[0].1.message.starts_with("Operation not permitted on individual component"),
            "{refused:?}"
        );
    }
    assert_eq!(states(&w, &waiting), [JobState::Pending; 2]);
    let unknown = cancel(&mut w, JobSelector::Component(waiting[0], 2));
    assert_eq!(unknown[0].1.code, RefusalCode::NotFound);
    assert!(cancel(&mut w, JobSelector::Job(waiting[0])).is_empty());
    assert_eq!(states(&w, &waiting), [JobState::Cancelled; 2]);
    assert!(cancel(&mut w, JobSelector::Component(ids[0], 1)).is_empty());
    assert_eq!(states(&w, &ids), [JobState::Running, JobState::Completing]);
    clean(&mut w, &ids[1..]);
    assert!(cancel(&mut w, JobSelector::Component(ids[0], 0)).is_empty(), "stands for all");
    clean(&mut w, &ids[..1]);
    assert_eq!(states(&w, &ids), [JobState::Cancelled; 2]);
}

#[test]
fn a_signal_to_the_first_reaches_all() {
    let mut w = pair();
    let ids = het(&mut w, "a", &[2, 1]);
    w.sent.clear();
    let jobs = vec![(JobSelector::Job(ids[0]), None)];
    let request = CancelRequest { jobs, signal: Some(10), ..CancelRequest::default() };
    w.request(actor(1000), Request::Cancel(request)).unwrap();
    let told: Vec<JobId> = w
        .sent
        .iter()
        .filter_map(|m| match m {
            ToAgent::Signal { job, target: SignalTarget::Steps, signal: 10, .. } => Some(*job),
            _ => None,
        })
        .collect();
    assert_eq!(told, ids);
}

#[test]
fn a_lost_node_brings_all_back_and_they_start_together_again() {
    let mut w = pair();
    let ids = het(&mut w, "a", &[2, 1]);
    // Another boot of the second one's node.
    w.hello("n2", "later", hardware(2, 1, 2000, 1), vec![], vec![]);
    w.core.audit().unwrap();
    assert_eq!(states(&w, &ids), [JobState::Completing, JobState::Pending]);
    w.later(Span::from_secs(5));
    assert_eq!(
        states(&w, &ids),
        [JobState::Completing, JobState::Pending],
        "half of it is still being cleaned"
    );
    w.gone("n1", ids[0], 0);
    assert_eq!(states(&w, &ids), [JobState::Running; 2]);
    assert!(ids.iter().all(|id| w.info(*id).attempt == Attempt(1)));
}

#[test]
fn a_requeue_brings_back_also_what_was_cancelled() {
    let mut w = pair();
    let ids = het(&mut w, "a", &[2, 1]);
    let jobs = vec![(JobSelector::Component(ids[0], 1), None)];
    w.request(actor(1000), Request::Cancel(CancelRequest { jobs, ..CancelRequest::default() })).unwrap();
    clean(&mut w, &ids[1..]);
    assert_eq!(states(&w, &ids), [JobState::Running, JobState::Cancelled]);
    let alone = w.request(actor(1000), Request::Requeue(vec![JobSelector::Job(ids[1])])).unwrap();
    assert!(matches!(alone, Response::Acted { refused, .. } if refused.len() == 1));
    w.request(actor(1000), Request::Requeue(vec![JobSelector::Job(ids[0])])).unwrap();
    assert_eq!(states(&w, &ids), [JobState::Completing, JobState::Pending]);
    clean(&mut w, &ids[..1]);
    assert_eq!(states(&w, &ids), [JobState::Running; 2]);
}

#[test]
fn one_held_component_holds_all_back() {
    let mut w = pair();
    let mut specs = vec![component(JobKind::Batch, "a", 1), component(JobKind::Batch, "a", 1)];
    specs[1].hold = true;
    let ids = submit(&mut w, specs).unwrap();
    assert_eq!(states(&w, &ids), [JobState::Pending; 2]);
    assert_eq!(w.info(ids[0]).reason, Reason::JobHeldUser);
    w.request(actor(1000), Request::Release(vec![JobSelector::Component(ids[0], 1)])).unwrap();
    assert_eq!(states(&w, &ids), [JobState::Running; 2]);
    let ids = het(&mut w, "b", &[2, 2]);
    w.request(actor(1000), Request::Hold(vec![JobSelector::Job(ids[0])])).unwrap();
    assert!(ids.iter().all(|id| w.info(*id).reason == Reason::JobHeldUser));
}

#[test]
fn a_submission_is_whole() {
    let mut w = pair();
    let refused = |w: &mut World, specs: Vec<JobSpec>| {
        let refusal = submit(w, specs).unwrap_err();
        assert!(w.core.snapshot().jobs().next().is_none(), "a part was recorded");
        refusal
    };
    let none = refused(&mut w, vec![component(JobKind::Batch, "a", 1), component(JobKind::Batch, "a", 5)]);
    assert!(none.message.ends_with("(component 1)"), "{none}");
    let never = refused(&mut w, vec![component(JobKind::Batch, "a", 3), component(JobKind::Batch, "a", 3)]);
    assert!(never.message.contains("all of them together do not"), "{never}");
    let mut array = component(JobKind::Batch, "a", 1);
    array.array = Some(ArraySpec { ranges: vec![(0, 3, 1)], max_running: None });
    refused(&mut w, vec![component(JobKind::Batch, "a", 1), array]);
    let mut other = pair();
    let a = het(&mut other, "same", &[1, 1]);
    assert_eq!(het(&mut other, "same", &[1, 1]), a);
    let mut few = World::new(&Config { max_jobs: 2, ..Config::default() });
    few.node("n1", hardware(4, 1, 4000, 0));
    let specs = || (0..3).map(|_| component(JobKind::Batch, "a", 1)).collect::<Vec<_>>();
    assert_eq!(submit(&mut few, specs()).unwrap_err().code, RefusalCode::Unavailable);
    assert_eq!(het(&mut few, "b", &[1, 1]).len(), 2);
}

#[test]
fn the_order_of_the_components_does_not_make_them_impossible() {
    let mut w = pair();
    let mut specs = vec![component(JobKind::Batch, "a", 2), component(JobKind::Batch, "a", 2)];
    // The first one could take the only node that the second one can have.
    specs[1].resources.node_list = vec!["n1".into()];
    let ids = submit(&mut w, specs).unwrap();
    assert_eq!(w.info(ids[1]).layout.nodes, ["n1".into()]);
    assert_eq!(w.info(ids[0]).layout.nodes, ["n2".into()]);
}

#[test]
fn nobody_behind_takes_what_a_component_waits_for_in_another_partition() {
    let part = |name: &str, node: &str, default| PartitionConfig {
        name: name.into(),
        nodes: node.into(),
        default,
        ..PartitionConfig::default()
    };
    let config =
        Config { partitions: vec![part("a", "n1", true), part("b", "n2", false)], ..Config::default() };
    let mut w = World::new(&config);
    w.node("n1", hardware(2, 1, 2000, 0));
    w.node("n2", hardware(2, 1, 2000, 0));
    let first = w.batch("first", |s| s.resources.tasks = Some(2));
    let mut specs = vec![component(JobKind::Batch, "h", 2), component(JobKind::Batch, "h", 2)];
    specs[1].partition = Some("b".into());
    let ids = submit(&mut w, specs).unwrap();
    let behind = w.batch("behind", |s| s.partition = Some("b".into()));
    assert_eq!(w.state(behind), JobState::Pending);
    w.exited("n1", batch_key(first, 0), ExitStatus::OK);
    w.gone("n1", first, 0);
    assert_eq!(states(&w, &ids), [JobState::Running; 2]);
    assert_eq!(w.state(behind), JobState::Pending);
    w.exited("n1", batch_key(ids[0], 0), ExitStatus::OK);
    clean(&mut w, &ids);
    assert_eq!(w.state(behind), JobState::Running);
}

fn part(submission: &str, tasks: u32) -> StepSpec {
    StepSpec { tasks: Some(tasks), ..step(submission) }
}

fn number(ids: &[JobId], at: usize, step: u32) -> StepKey {
    StepKey { job: ids[at], attempt: Attempt(0), step: StepId::Number(step) }
}

#[test]
fn a_step_over_components_is_one_step() {
    let mut w = pair();
    let ids = het(&mut w, "a", &[2, 2]);
    w.sent.clear();
    let parts = vec![(ids[0], part("s", 2)), (ids[1], part("t", 2))];
    let answer = w.request(actor(1000), Request::CreateHetStep { parts: parts.clone() }).unwrap();
    let Response::HetStepCreated { parts: made, layout, .. } = answer.clone() else { panic!("{answer:?}") };
    assert_eq!(made, [(number(&ids, 0, 0), 0), (number(&ids, 1, 0), 1)]);
    assert_eq!(layout.tasks, [vec![0, 1], vec![2, 3]]);
    let started = launches(&mut w);
    assert_eq!(started.iter().map(|l| (l.key, l.node_index)).collect::<Vec<_>>(), made);
    assert!(started.iter().all(|l| *l.layout == layout));
    assert!(started.iter().all(|l| l.job.het.as_ref().unwrap().leader == ids[0]));
    // Whoever comes to one of the parts is told of all.
    let told = |w: &World, id: JobId| {
        w.core
            .snapshot()
            .job(id)
            .unwrap()
            .steps
            .iter()
            .find(|s| s.id == StepId::Number(0))
            .unwrap()
            .het
            .clone()
    };
    for (id, first_node) in ids.iter().zip(0..) {
        let het = told(&w, *id).unwrap();
        assert_eq!((het.of_nodes(), het.first_node), (vec![made[0].0, made[1].0], first_node));
        assert_eq!(het.layout, layout);
    }
    // The client that did not hear the answer asks again.
    let again = w.request(actor(1000), Request::CreateHetStep { parts }).unwrap();
    assert_eq!(again, answer);
    assert!(launches(&mut w).is_empty());
    // Another one waits until both have room for it.
    let parts = vec![(ids[0], part("u", 2)), (ids[1], part("v", 2))];
    let later = w.request_later(actor(1000), Request::CreateHetStep { parts });
    w.exited("n1", number(&ids, 0, 0), ExitStatus::OK);
    assert!(!w.replies.contains_key(&later));
    w.exited("n2", number(&ids, 1, 0), ExitStatus::OK);
    assert!(told(&w, ids[0]).is_none(), "it is over");
    let Some(Ok(Response::HetStepCreated { parts, .. })) = w.replies.remove(&later) else { panic!() };
    assert_eq!(parts[1].0, number(&ids, 1, 1));
}

/// A step that waits is told that another one runs, and keeps its place in the job: for the last question about what has ended the agents say that
/// `busy` has not.
fn told_what_it_waits_for(w: &mut World, body: Request, node: &str, busy: StepKey) {
    w.sent.clear();
    let known = w.request_later(actor(1000), body);
    let ask = |m: &ToAgent| if let ToAgent::LookForEnds { ask, .. } = m { Some(*ask) } else { None };
    let asked = w.sent.iter().find_map(ask).unwrap();
    w.not_ended(node, asked, vec![busy]);
    assert_eq!(w.replies.remove(&known).unwrap().unwrap_err().code, RefusalCode::Busy);
}

/// Room that comes free for a step over components whose client asks again in a moment is kept in all of them.
#[test]
fn room_is_kept_for_a_step_in_each_of_its_components() {
    for then in ["asks again", "leaves"] {
        let mut w = pair();
        let ids = het(&mut w, "a", &[2, 2]);
        let in_second = |name: &str| Request::CreateStep { job: ids[1], spec: Box::new(part(name, 2)) };
        w.request(actor(1000), in_second("busy")).unwrap();
        let both = |immediate: Option<Span>| {
            let first = StepSpec { immediate, ..part("both", 2) };
            Request::CreateHetStep { parts: vec![(ids[0], first), (ids[1], part("both", 2))] }
        };
        w.request_later(actor(1000), both(None));
        w.later(Span::from_secs(1));
        let behind = w.request_later(actor(1000), in_second("behind"));
        told_what_it_waits_for(&mut w, both(Some(Span(0))), "n2", number(&ids, 1, 0));
        w.exited("n2", number(&ids, 1, 0), ExitStatus::OK);
        let new = w.request_later(actor(1000), in_second("new"));
        assert!(!w.replies.contains_key(&behind) && !w.replies.contains_key(&new), "{then}");
        let next = if then == "asks again" {
            let again = w.request_later(actor(1000), both(None));
            let Some(Ok(Response::HetStepCreated { parts, .. })) = w.replies.remove(&again) else { panic!() };
            for ((key, _), node) in parts.iter().zip(["n1", "n2"]) {
                w.exited(node, *key, ExitStatus::OK);
            }
            w.replies.remove(&behind)
        } else {
            w.later(Span::from_secs(5));
            w.replies.remove(&behind)
        };
        assert!(matches!(next, Some(Ok(Response::StepCreated { .. }))), "{then}");
        assert!(!w.replies.contains_key(&new));
    }
}

/// And a step over components takes none that is kept in one of them.
#[test]
fn a_step_over_components_takes_no_room_that_is_kept_in_one_of_them() {
    let mut w = pair();
    let ids = het(&mut w, "a", &[2, 2]);
    let in_second = |name: &str, immediate: Option<Span>| {
        let spec = Box::new(StepSpec { immediate, ..part(name, 2) });
        Request::CreateStep { job: ids[1], spec }
    };
    w.request(actor(1000), in_second("busy", None)).unwrap();
    w.request_later(actor(1000), in_second("next", None));
    told_what_it_waits_for(&mut w, in_second("next", Some(Span(0))), "n2", number(&ids, 1, 0));
    w.later(Span::from_secs(1));
    let parts = vec![(ids[0], part("both", 2)), (ids[1], part("both", 2))];
    let both = w.request_later(actor(1000), Request::CreateHetStep { parts });
    w.exited("n2", number(&ids, 1, 0), ExitStatus::OK);
    assert!(!w.replies.contains_key(&both));
    let again = w.request_later(actor(1000), in_second("next", None));
    let Some(Ok(Response::StepCreated { key, .. })) = w.replies.remove(&again) else { panic!() };
    assert!(!w.replies.contains_key(&both));
    w.exited("n2", key, ExitStatus::OK);
    assert!(matches!(w.replies.remove(&both), Some(Ok(Response::HetStepCreated { .. }))));
}

#[test]
fn a_step_over_components_ends_as_one() {
    let mut w = pair();
    let ids = het(&mut w, "a", &[2, 2]);
    let parts = |s: &str| vec![(ids[0], part(s, 2)), (ids[1], part("t", 2))];
    w.request(actor(1000), Request::CreateHetStep { parts: parts("s") }).unwrap();
    w.sent.clear();
    let mut failed = exit(ExitStatus { code: 1, signal: 0 });
    failed.launch_error = Some("no such image".into());
    w.phase("n2", number(&ids, 1, 0), StepPhase::Exited(failed));
    let ended = |w: &World, key: StepKey| {
        w.sent
            .iter()
            .any(|m| matches!(m, ToAgent::Terminate { key: k, cause: EndCause::JobEnded, .. } if *k == key))
    };
    assert!(ended(&w, number(&ids, 0, 0)), "what could not start in one is of no use in the others");
    w.exited("n1", number(&ids, 0, 0), ExitStatus { code: 0, signal: 15 });
    w.request(actor(1000), Request::CreateHetStep { parts: parts("u") }).unwrap();
    w.sent.clear();
    let jobs = vec![(JobSelector::Component(ids[0], 1), Some(StepId::Number(1)))];
    w.request(actor(1000), Request::Cancel(CancelRequest { jobs, ..CancelRequest::default() })).unwrap();
    let told =
        w.sent.iter().filter(|m| matches!(m, ToAgent::Terminate { cause: EndCause::Cancelled, .. })).count();
    assert_eq!(told, 2);
}

#[test]
fn steps_are_for_components_of_one_job_and_for_its_owner() {
    let mut w = pair();
    let (a, b) = (het(&mut w, "a", &[1, 1]), het(&mut w, "b", &[1, 1]));
    let ask = |w: &mut World, who: Actor, parts: Vec<(JobId, StepSpec)>| {
        w.request(who, Request::CreateHetStep { parts }).unwrap_err().code
    };
    let both = |x: JobId, y: JobId| vec![(x, part("s", 1)), (y, part("t", 1))];
    assert_eq!(ask(&mut w, actor(1000), both(a[0], b[1])), RefusalCode::Invalid);
    assert_eq!(ask(&mut w, actor(1000), both(a[0], a[0])), RefusalCode::Invalid);
    assert_eq!(ask(&mut w, actor(1001), both(a[0], a[1])), RefusalCode::Denied);
    assert_eq!(ask(&mut w, actor(1000), vec![]), RefusalCode::Invalid);
    let never = vec![(a[0], part("s", 1)), (a[1], part("t", 7))];
    assert_eq!(ask(&mut w, actor(1000), never), RefusalCode::Impossible);
    assert!(
        w.core.snapshot().job(a[0]).unwrap().steps.iter().all(|s| s.id == StepId::Batch),
        "half a step was made"
    );
    // From inside one component the others are one's own; another job is not.
    let inside = |job| Actor { inside: Some(job), ..actor(1000) };
    assert_eq!(ask(&mut w, inside(b[0]), both(a[0], a[1])), RefusalCode::Denied);
    w.request(inside(a[1]), Request::CreateHetStep { parts: both(a[0], a[1]) }).unwrap();
}

fn again(w: &World) -> Cluster {
    let config = CoreConfig::new(&Config::default()).unwrap();
    let core = Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap();
    core.audit().unwrap();
    core
}

#[test]
fn a_restart_keeps_all_of_it() {
    let mut w = pair();
    let running = het(&mut w, "a", &[2, 1]);
    let waiting = het(&mut w, "b", &[2, 2]);
    let parts = vec![(running[0], part("s", 2)), (running[1], part("t", 1))];
    w.request(actor(1000), Request::CreateHetStep { parts: parts.clone() }).unwrap();
    w.core = again(&w);
    assert_eq!(states(&w, &running), [JobState::Running; 2]);
    assert_eq!(states(&w, &waiting), [JobState::Pending; 2]);
    w.sent.clear();
    w.node("n1", hardware(2, 1, 2000, 0));
    w.node("n2", hardware(2, 1, 2000, 1));
    let started = launches(&mut w);
    let step: Vec<&StepLaunch> = started.iter().filter(|l| l.key.step == StepId::Number(0)).collect();
    assert_eq!(step.len(), 2, "they are sent again, with what they had");
    assert!(step.iter().all(|l| l.layout.tasks == [vec![0, 1], vec![2]] && l.job.het.is_some()));
    let Ok(Response::HetStepCreated { .. }) = w.request(actor(1000), Request::CreateHetStep { parts }) else {
        panic!("it is known to whoever asks again")
    };
    w.exited("n1", batch_key(running[0], 0), ExitStatus::OK);
    clean(&mut w, &running);
    assert_eq!(states(&w, &waiting), [JobState::Running; 2]);
}

#[derive(Clone, Debug)]
enum Act {
    Het(Vec<u32>),
    Plain(u32),
    Script(usize),
    Gone(usize),
    Cancel(usize),
    Requeue(usize),
    Hold(usize),
    Release(usize),
    Boot(bool),
    Step(usize),
    Crash,
    Time(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => proptest::collection::vec(1u32..3, 2..4).prop_map(Act::Het),
        2 => (1u32..3).prop_map(Act::Plain),
        4 => any::<usize>().prop_map(Act::Script),
        6 => any::<usize>().prop_map(Act::Gone),
        2 => any::<usize>().prop_map(Act::Cancel),
        1 => any::<usize>().prop_map(Act::Requeue),
        1 => any::<usize>().prop_map(Act::Hold),
        1 => any::<usize>().prop_map(Act::Release),
        1 => any::<bool>().prop_map(Act::Boot),
        2 => any::<usize>().prop_map(Act::Step),
        2 => Just(Act::Crash),
        1 => any::<u8>().prop_map(Act::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// After every event the audit holds: never do some components run while others wait, whatever was lost, cancelled,
    /// held or brought back, and also for a controller that begins anew from what was committed.
    #[test]
    fn components_are_never_torn_apart(acts in proptest::collection::vec(act(), 1..60)) {
        let mut w = pair();
        let mut boots = ["boot".to_string(), "boot".to_string()];
        for (at, act) in acts.into_iter().enumerate() {
            let known: Vec<JobId> = w.core.snapshot().jobs().map(|job| job.id).collect();
            let pick = |i: usize| (!known.is_empty()).then(|| known[i % known.len()]);
            let ask = |w: &mut World, body: Request| drop(w.request(actor(1000), body));
            match act {
                Act::Het(tasks) => {
                    let name = format!("{at}");
                    let specs = tasks.iter().map(|n| component(JobKind::Batch, &name, *n)).collect();
                    let _ = submit(&mut w, specs); // more than there is at once is refused
                }
                Act::Plain(tasks) => drop(w.batch(&format!("{at}"), |s| s.resources.tasks = Some(tasks))),
                Act::Script(i) => {
                    let Some(info) = pick(i).map(|id| w.info(id)) else { continue };
                    if info.state == JobState::Running
                        && info.steps.iter().any(|s| s.id == StepId::Batch && s.ended.is_none())
                    {
                        let node = info.layout.nodes[0].0.clone();
                        w.exited(&node, batch_key(info.id, info.attempt.0), ExitStatus::OK);
                    }
                }
                Act::Gone(i) => {
                    let Some(info) = pick(i).map(|id| w.info(id)) else { continue };
                    if info.state == JobState::Completing {
                        for node in &info.layout.nodes {
                            w.gone(&node.0, info.id, info.attempt.0);
                        }
                    }
                }
                Act::Cancel(i) => {
                    let Some(id) = pick(i) else { continue };
                    let jobs = vec![(JobSelector::Job(id), None)];
                    ask(&mut w, Request::Cancel(CancelRequest { jobs, ..CancelRequest::default() }));
                }
                Act::Requeue(i) => {
                    if let Some(id) = pick(i) {
                        ask(&mut w, Request::Requeue(vec![JobSelector::Job(id)]));
                    }
                }
                Act::Hold(i) => {
                    if let Some(id) = pick(i) {
                        ask(&mut w, Request::Hold(vec![JobSelector::Job(id)]));
                    }
                }
                Act::Release(i) => {
                    if let Some(id) = pick(i) {
                        ask(&mut w, Request::Release(vec![JobSelector::Job(id)]));
                    }
                }
                Act::Boot(first) => {
                    let (name, gpus) = if first { ("n1", 0) } else { ("n2", 1) };
                    boots[usize::from(!first)] = format!("boot {at}");
                    w.hello(name, &format!("boot {at}"), hardware(2, 1, 2000, gpus), vec![], vec![]);
                    w.core.audit().unwrap();
                }
                Act::Step(i) => {
                    let Some(info) = pick(i).map(|id| w.info(id)) else { continue };
                    let Some(het) = info.spec.het.filter(|_| info.state == JobState::Running) else { continue };
                    let parts: Vec<_> =
                        het.members().map(|id| (id, part(&format!("{at}-{id}"), 1))).collect();
                    w.request_later(actor(1000), Request::CreateHetStep { parts });
                }
                Act::Crash => {
                    w.core = again(&w);
                    let held = |w: &World, node: &str| -> Vec<(JobId, Attempt)> {
                        let holds = |job: &berth_model::record::JobInfo| {
                            matches!(job.state, JobState::Running | JobState::Completing)
                                && job.layout.nodes.iter().any(|n| n.0 == node)
                        };
                        let jobs = w.core.snapshot();
                        jobs.jobs().filter(holds).map(|job| (job.id, job.attempt)).collect()
                    };
                    for (name, gpus, boot) in [("n1", 0, &boots[0]), ("n2", 1, &boots[1])] {
                        let jobs = held(&w, name);
                        w.hello(name, boot, hardware(2, 1, 2000, gpus), vec![], jobs);
                        w.core.audit().unwrap();
                    }
                }
                Act::Time(seconds) => w.later(Span::from_secs(i64::from(seconds))),
            }
        }
    }
}
