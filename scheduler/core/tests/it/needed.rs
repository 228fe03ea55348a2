//! Which images of a node's store jobs need: those that wait, are held or run; nothing of what is over.

use crate::common::*;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::request::{CancelRequest, Payload, Request};
use berth_model::spec::{ContainerSpec, JobKind, JobSelector, JobSpec, ResolvedImage, StepSpec};
use berth_model::state::ExitStatus;

fn digest(n: u32) -> String {
    format!("sha256:{n:064x}")
}

fn container(n: u32) -> ContainerSpec {
    let source = "docker://x".to_string();
    let resolved = ResolvedImage::Manifest {
        source,
        digest: digest(n),
        insecure: false,
        indexes: Vec::new(),
        pin: None,
    };
    berth_samples::container("x", Some(resolved))
}

/// The numbers of the images that are needed, of 0 to 9.
fn needed(w: &mut World) -> Vec<u32> {
    let digests: Vec<String> = (0..10).map(digest).collect();
    w.tell("n1", |session| FromAgent::ImagesHeld { session, ask: 7, digests: digests.clone() });
    let Some(ToAgent::ImagesNeeded { ask: 7, digests: answer }) = w.sent.pop() else { panic!("no answer") };
    answer.iter().map(|d| u32::try_from(digests.iter().position(|x| x == d).unwrap()).unwrap()).collect()
}

fn of_image(n: u32) -> impl FnOnce(&mut JobSpec) {
    move |spec| spec.container = Some(container(n))
}

#[test]
fn what_waits_is_held_or_runs_is_needed_and_what_is_over_is_not() {
    let mut w = World::small();
    assert!(needed(&mut w).is_empty());
    let runs = w.batch("runs", of_image(1));
    let held = w.batch("held", |spec| {
        of_image(2)(spec);
        spec.hold = true;
    });
    // It waits for more than there is.
    w.batch("waits", |spec| {
        of_image(3)(spec);
        spec.resources.exclusive = true;
    });
    w.batch("again", of_image(1));
    assert_eq!(needed(&mut w), [1, 2, 3]);
    let key = batch_key(runs, 0);
    w.exited("n1", key, ExitStatus::OK);
    w.gone("n1", runs, 0);
    assert_eq!(needed(&mut w), [1, 2, 3], "another job has the same image");
    let cancel = CancelRequest { jobs: vec![(JobSelector::Job(held), None)], ..Default::default() };
    w.request(actor(1000), Request::Cancel(cancel)).unwrap();
    assert_eq!(needed(&mut w), [1, 3]);
}

/// The images of which the node is told that they stay, since the last call.
fn kept(w: &mut World) -> Vec<(u64, Vec<String>)> {
    let sent = std::mem::take(&mut w.sent);
    let word = |message| match message {
        ToAgent::ImagesNeeded { ask, digests } => Some((ask, digests)),
        _ => None,
    };
    sent.into_iter().filter_map(word).collect()
}

#[test]
fn what_comes_to_be_needed_while_it_may_be_going_is_told_to_the_node_once() {
    let mut w = World::small();
    let over = w.batch("over", of_image(5));
    w.exited("n1", batch_key(over, 0), ExitStatus::OK);
    w.gone("n1", over, 0);
    let holds = |w: &mut World, ask: u64, digests: Vec<String>| {
        w.tell("n1", |session| FromAgent::ImagesHeld { session, ask, digests });
    };
    let all: Vec<String> = (1..10).map(digest).collect();
    holds(&mut w, 7, all.clone());
    assert_eq!(kept(&mut w), [(7, vec![])]);
    let stays = |n: u32| [(7_u64, vec![digest(n)])];
    // A job, a step, the first step of a job, and a job that is over and comes again.
    let held = |n: u32| {
        move |spec: &mut JobSpec| {
            spec.container = Some(container(n));
            spec.hold = true;
        }
    };
    w.batch("new", held(1));
    assert_eq!(kept(&mut w), stays(1));
    w.batch("another", held(1));
    w.batch("plain", |spec| spec.hold = true);
    assert_eq!(kept(&mut w), []);
    let alloc = w.submit(JobSpec { container: None, ..job(JobKind::Alloc, "alloc") }).unwrap();
    let own = StepSpec { container: Some(container(2)), ..step("own") };
    w.request(actor(1000), Request::CreateStep { job: alloc, spec: Box::new(own) }).unwrap();
    assert_eq!(kept(&mut w), stays(2));
    let mut first = step("first");
    first.container = Some(container(3));
    let spec = JobSpec { container: None, hold: true, ..job(JobKind::Run, "run") };
    let (payload, first_step) = (Payload::default(), Some(Box::new(first)));
    let body = Request::Submit { spec: Box::new(spec), payload, first_step, test_only: false };
    w.request(actor(1000), body).unwrap();
    assert_eq!(kept(&mut w), stays(3));
    w.request(actor(1000), Request::Requeue(vec![JobSelector::Job(over)])).unwrap();
    assert_eq!(kept(&mut w), stays(5));
    // Nothing goes any more.
    holds(&mut w, 8, Vec::new());
    assert_eq!(kept(&mut w), [(8, vec![])]);
    w.batch("late", held(6));
    assert_eq!(kept(&mut w), []);
    holds(&mut w, 9, all);
    let (ask, needed) = kept(&mut w).remove(0);
    assert_eq!((ask, needed.len()), (9, 5), "{needed:?}");
}

#[test]
fn a_step_and_the_first_step_of_a_waiting_job_count() {
    let mut w = World::small();
    let mut spec = job(JobKind::Run, "first");
    spec.container = None;
    let mut first = step("first");
    first.container = Some(container(4));
    spec.hold = true;
    let body = Request::Submit {
        spec: Box::new(spec),
        payload: Default::default(),
        first_step: Some(Box::new(first)),
        test_only: false,
    };
    w.request(actor(1000), body).unwrap();
    assert_eq!(needed(&mut w), [4]);
}
