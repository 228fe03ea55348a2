//! Which nodes are told to fetch images before jobs start: those on which the first waiting jobs will probably run.

use crate::common::*;
use berth_model::config::{Config, ImagesConfig};
use berth_model::ids::{Attempt, JobId, NodeName};
use berth_model::launch::Program;
use berth_model::link::ToAgent;
use berth_model::request::{CancelRequest, Request, Response};
use berth_model::spec::*;
use berth_model::state::{ExitStatus, Reason};
use berth_model::time::Span;
use proptest::prelude::*;

fn container(n: u32) -> ContainerSpec {
    let (source, digest) = ("docker://x".to_string(), format!("sha256:{n:064x}"));
    let resolved =
        ResolvedImage::Manifest { source, digest, insecure: false, indexes: Vec::new(), pin: None };
    berth_samples::container("x", Some(resolved))
}

/// A job that takes a whole node of [`World::small`] for so many minutes.
fn whole(image: u32, minutes: u32) -> impl FnOnce(&mut JobSpec) {
    move |spec| {
        spec.container = Some(container(image));
        spec.resources.exclusive = true;
        spec.time_limit = Some(TimeLimit::Minutes(minutes));
    }
}

/// What nodes were told of jobs ahead since the last call: begun, and given up.
fn told(w: &mut World) -> (Vec<(JobId, String)>, Vec<JobId>) {
    let (mut begun, mut over) = (vec![], vec![]);
    for message in std::mem::take(&mut w.sent) {
        match message {
            ToAgent::Prefetch(start) => {
                let launch = start.launch;
                w.core.audit_prefetch(launch.key.job, &launch.node).unwrap();
                assert_eq!(launch.program, Program::Argv(vec![]), "no script has to travel");
                begun.push((launch.key.job, launch.node.to_string()));
            }
            ToAgent::EndPrefetch { job, attempt: Attempt(0), .. } => over.push(job),
            _ => {}
        }
    }
    (begun, over)
}

fn looked(w: &mut World) -> (Vec<(JobId, String)>, Vec<JobId>) {
    w.later(Span::from_secs(2));
    told(w)
}

fn on(job: JobId, node: &str) -> (JobId, String) {
    (job, node.to_string())
}

fn cancel(w: &mut World, job: JobId) {
    let cancel = CancelRequest { jobs: vec![(JobSelector::Job(job), None)], ..Default::default() };
    w.request(actor(1000), Request::Cancel(cancel)).unwrap();
}

#[test]
fn the_first_waiting_jobs_are_told_once_and_no_more_than_the_bound() {
    let mut w = World::small();
    let runs = w.batch("runs", whole(1, 10));
    let waits: Vec<JobId> = (2..6).map(|n| w.batch(&format!("w{n}"), whole(n, 10))).collect();
    // Two for each node, which is the default.
    assert_eq!(looked(&mut w), (vec![on(waits[0], "n1"), on(waits[1], "n1")], vec![]));
    assert_eq!(w.info(waits[0]).reason, Reason::Resources);
    assert_eq!(w.info(waits[1]).reason, Reason::Priority);
    // Nothing is said twice, whatever happens elsewhere.
    w.batch("w9", whole(9, 10));
    assert_eq!(looked(&mut w), (vec![], vec![]));
    // The first one starts: what was begun for it goes on, and the next one moves up.
    w.exited("n1", batch_key(runs, 0), ExitStatus::OK);
    w.gone("n1", runs, 0);
    assert_eq!(looked(&mut w), (vec![on(waits[2], "n1")], vec![]));
    // One that is cancelled is given up.
    cancel(&mut w, waits[1]);
    assert_eq!(looked(&mut w), (vec![on(waits[3], "n1")], vec![waits[1]]));
}

#[test]
fn jobs_that_cannot_start_and_images_that_are_used_are_left_alone() {
    let mut w = World::small();
    w.batch("runs", whole(1, 10));
    w.batch("held", |spec| {
        whole(2, 10)(spec);
        spec.hold = true;
    });
    let begin = w.now + Span::from_mins(60);
    w.batch("later", |spec| {
        whole(3, 10)(spec);
        spec.begin = Some(begin);
    });
    w.batch("same", whole(1, 10));
    w.batch("host", |spec| {
        whole(4, 10)(spec);
        spec.container.as_mut().unwrap().image.resolved = Some(ResolvedImage::Host);
    });
    assert_eq!(looked(&mut w), (vec![], vec![]));
    // Behind those the queue goes on.
    let waits = w.batch("waits", whole(5, 10));
    let again = w.batch("again", whole(5, 10));
    assert_eq!(looked(&mut w), (vec![on(waits, "n1")], vec![]));
    // The other one has that image from then on.
    cancel(&mut w, waits);
    assert_eq!(looked(&mut w), (vec![on(again, "n1")], vec![waits]));
    // Held while it waits.
    w.request(actor(1000), Request::Hold(vec![JobSelector::Job(again)])).unwrap();
    assert_eq!(looked(&mut w), (vec![], vec![again]));
}

#[test]
fn a_job_is_planned_where_room_comes_first_and_again_when_that_changes() {
    let mut w = World::small();
    w.node("n2", hardware(4, 1, 4000, 2));
    let long = w.batch("long", whole(1, 100));
    let short = w.batch("short", whole(1, 10));
    let waits = w.batch("waits", whole(2, 10));
    assert_eq!(w.info(short).layout.nodes, [NodeName::from("n2")]);
    assert_eq!(looked(&mut w), (vec![on(waits, "n2")], vec![]));
    // A node that registers anew knows nothing of it.
    w.hello("n2", "boot", hardware(4, 1, 4000, 2), vec![], vec![(short, Attempt(0))]);
    assert_eq!(looked(&mut w), (vec![on(waits, "n2")], vec![]));
    // The long one ends sooner than it might have: the job starts there.
    w.exited("n1", batch_key(long, 0), ExitStatus::OK);
    w.gone("n1", long, 0);
    assert_eq!(w.info(waits).layout.nodes, [NodeName::from("n1")]);
    assert_eq!(looked(&mut w), (vec![], vec![waits]));
}

/// Of each component its own image, where that component will be, and those behind the job see what all of it takes.
#[test]
fn every_component_of_a_waiting_job_has_its_image_brought_to_its_own_nodes() {
    let mut w = World::small();
    w.node("n2", hardware(4, 1, 4000, 2));
    let one = w.batch("one", whole(1, 10));
    w.batch("two", whole(1, 20));
    let part = |image: u32, node: &str| {
        let mut spec = job(JobKind::Batch, "parts");
        whole(image, 30)(&mut spec);
        spec.resources.node_list = vec![node.into()];
        (spec, script())
    };
    let components = vec![part(2, "n2"), part(3, "n1")];
    let request = Request::SubmitHet { components, test_only: false };
    let Response::Submitted { job: first, .. } = w.request(actor(1000), request).unwrap() else { panic!() };
    let second = JobId(first.0 + 1);
    assert_eq!(looked(&mut w), (vec![on(second, "n1"), on(first, "n2")], vec![]));
    let behind = w.batch("behind", whole(4, 10));
    let (begun, over) = looked(&mut w);
    assert!(begun.len() == 1 && begun[0].0 == behind && over.is_empty(), "{begun:?} {over:?}");
    // Half of its room does not start it, and what was begun goes on.
    w.exited("n1", batch_key(one, 0), ExitStatus::OK);
    w.gone("n1", one, 0);
    assert_eq!(w.info(second).reason, Reason::Resources);
    let (begun, over) = looked(&mut w);
    assert!(begun.is_empty() && over.iter().all(|job| *job == behind), "{begun:?} {over:?}");
    // All of it is given up with it.
    cancel(&mut w, first);
    let (_, over) = looked(&mut w);
    assert!(over.contains(&first) && over.contains(&second), "{over:?}");
}

#[test]
fn it_can_be_switched_off() {
    let images = ImagesConfig { prefetch: 0, ..ImagesConfig::default() };
    let mut w = World::new(&Config { images, ..Config::default() });
    w.node("n1", hardware(4, 1, 4000, 2));
    w.batch("runs", whole(1, 10));
    w.batch("waits", whole(2, 10));
    assert_eq!(looked(&mut w), (vec![], vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is submitted, held, cancelled and ended: never a job that cannot start, never more than the bound on a node
    /// (`audit_prefetch`), never twice, and nothing that was not begun is given up.
    #[test]
    fn nodes_are_told_only_what_may_start(
        acts in proptest::collection::vec((0u32..6, 1u32..5, 1u32..30), 1..40),
        bound in 1u32..4,
    ) {
        let images = ImagesConfig { prefetch: bound, ..ImagesConfig::default() };
        let mut w = World::new(&Config { images, ..Config::default() });
        for node in ["n1", "n2", "n3"] {
            w.node(node, hardware(4, 1, 4000, 2));
        }
        let mut jobs: Vec<JobId> = vec![];
        let mut open: Vec<(JobId, String)> = vec![];
        for (n, (act, image, minutes)) in acts.into_iter().enumerate() {
            let some = jobs.get(n * 7 % jobs.len().max(1)).copied();
            match (act, some) {
                (0, Some(job)) => drop(w.request(actor(1000), Request::Hold(vec![JobSelector::Job(job)]))),
                (1, Some(job)) => drop(w.request(actor(1000), Request::Release(vec![JobSelector::Job(job)]))),
                (2, Some(job)) => drop(w.request(actor(1000), Request::Cancel(CancelRequest {
                    jobs: vec![(JobSelector::Job(job), None)],
                    ..Default::default()
                }))),
                (3, _) => w.later(Span::from_mins(i64::from(minutes))),
                _ => jobs.push(w.batch(&format!("j{n}"), whole(image, minutes))),
            }
            let (begun, over) = looked(&mut w);
            for job in over {
                let at = open.iter().position(|(other, _)| *other == job);
                prop_assert!(at.is_some(), "job {} is given up, which was not begun", job);
                open.swap_remove(at.unwrap());
            }
            for told in begun {
                prop_assert!(!open.contains(&told), "{told:?} twice");
                open.push(told);
            }
        }
    }
}
