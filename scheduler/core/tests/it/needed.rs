//! Which images of a node's store jobs need: those that wait, are held or run; nothing of what is over.

use crate::common::*;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::request::{CancelRequest, Request};
use berth_model::spec::{ContainerSpec, JobKind, JobSelector, JobSpec, ResolvedImage};
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
