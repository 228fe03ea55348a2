//! What nodes say that images took: once, added up over nodes, and empty until it is known.

use crate::common::*;
use berth_model::exchange::{FromPeers, ToPeers};
use berth_model::ids::*;
use berth_model::launch::{ImagePull, StepExit, StepPhase};
use berth_model::link::{FromAgent, ToAgent};
use berth_model::record::PullInfo;
use berth_model::request::{Request, Response};
use berth_model::spec::{ArraySpec, ContainerSpec, JobKind, JobSelector, ResolvedImage};
use berth_model::state::ExitStatus;
use berth_model::time::Span;
use berth_model::tres::GresKey;
use berth_sched_core::Write;
use proptest::prelude::*;

fn pull(seconds: i64, bytes: u64, hit: bool) -> ImagePull {
    ImagePull { took: Span::from_secs(seconds), bytes, hit, digest: Some("sha256:1".into()), found: None }
}

#[test]
fn what_images_took_is_added_up_once_all_nodes_have_said_it() {
    let mut w = World::new(&berth_model::config::Config::default());
    for node in ["n1", "n2"] {
        w.node(node, hardware(4, 1, 4000, 2));
    }
    let mut spec = job(JobKind::Run, "two nodes");
    spec.resources.min_nodes = 2;
    spec.resources.tasks = Some(2);
    spec.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, 2);
    let id = w.submit(spec).unwrap();
    let key = w.starts()[0];
    assert_eq!(w.info(id).pull(), None);
    w.tell("n1", |session| FromAgent::Pulled { session, key, pull: pull(3, 70, false) });
    assert_eq!(w.info(id).steps[0].pull, None, "the other node has not said it");
    assert_eq!(w.info(id).digest(), Some("sha256:1"));
    // A second word, and one for a step that is not there, change nothing and write nothing.
    let writes = w.writes.len();
    w.tell("n1", |session| FromAgent::Pulled { session, key, pull: pull(9, 9, true) });
    let other = StepKey { step: StepId::Number(7), ..key };
    w.tell("n1", |session| FromAgent::Pulled { session, key: other, pull: pull(9, 9, true) });
    assert_eq!(w.writes.len(), writes);
    // Of a step that is over soon the exit alone says it.
    let exit = StepExit { image: Some(pull(1, 0, true)), ..exit(ExitStatus::OK) };
    w.phase("n2", key, StepPhase::Exited(exit));
    let both =
        PullInfo { took: Span::from_secs(3), bytes: 70, hit: false, gpu_wait: Span::from_secs(2 * 3 + 2) };
    assert_eq!(w.info(id).steps[0].pull, Some(both));
    assert_eq!(w.info(id).pull(), Some(both));
    assert!(stored(&w.writes).steps[0].nodes.iter().all(|n| n.pull.is_some()), "it is on record");
}

#[test]
fn a_batch_script_holds_all_devices_of_its_job_back() {
    let mut w = World::new(&berth_model::config::Config::default());
    for node in ["n1", "n2"] {
        w.node(node, hardware(4, 1, 4000, 2));
    }
    let id = w.batch("b", |spec| {
        spec.resources.min_nodes = 2;
        spec.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, 2);
    });
    let key = batch_key(id, 0);
    w.tell("n1", |session| FromAgent::Pulled { session, key, pull: pull(5, 1, false) });
    assert_eq!(w.info(id).pull().unwrap().gpu_wait, Span::from_secs(20));
}

/// A word of a node that found an image by its name.
fn found(digest: &str) -> ImagePull {
    let image = ResolvedImage::Manifest {
        source: "docker://docker.io/library/debian".into(),
        digest: digest.into(),
        insecure: false,
        indexes: vec![],
        pin: None,
    };
    ImagePull { digest: Some(digest.into()), found: Some(Box::new(image)), ..pull(1, 1, false) }
}

fn named() -> Option<ContainerSpec> {
    Some(berth_samples::container("debian", None))
}

/// Digests with which steps were started since the last look.
fn started(w: &mut World) -> Vec<(StepKey, Option<String>)> {
    let sent = std::mem::take(&mut w.sent);
    let start = |message| match message {
        ToAgent::Start(start) => Some(start.launch),
        _ => None,
    };
    let digest = |c: &ContainerSpec| c.image.digest().map(str::to_owned);
    sent.into_iter().filter_map(start).map(|l| (l.key, l.container.as_ref().and_then(digest))).collect()
}

#[test]
fn what_the_first_node_found_is_the_image_of_all_tasks_steps_and_later_runs() {
    let mut w = World::small();
    let id = w.batch("array", |spec| {
        spec.container = named();
        spec.requeue = Some(true);
        spec.array = Some(ArraySpec { ranges: vec![(1, 3, 1)], max_running: Some(1) });
    });
    let (key, digest) = started(&mut w).remove(0);
    assert_eq!(digest, None, "the node is to find it");
    w.tell("n1", |session| FromAgent::Pulled { session, key, pull: found("sha256:a") });
    let kept = w.writes.iter().filter(|write| matches!(write, Write::PutSpec(_))).count();
    // A second word, and what a later node might find, change nothing.
    let exit = StepExit { image: Some(found("sha256:b")), ..exit(ExitStatus::OK) };
    assert_eq!(w.info(id).digest(), Some("sha256:a"), "of the tasks that wait, too");
    let body = Request::CreateStep { job: key.job, spec: Box::new(step("inside")) };
    w.request(actor(1000), body).unwrap();
    let (inside, digest) = started(&mut w).remove(0);
    assert_eq!(digest.as_deref(), Some("sha256:a"), "a step has its job's");
    w.exited("n1", inside, ExitStatus::OK);
    w.phase("n1", key, StepPhase::Exited(exit));
    w.gone("n1", key.job, 0);
    let (second, digest) = started(&mut w).remove(0);
    assert_ne!(second.job, key.job);
    assert_eq!(digest.as_deref(), Some("sha256:a"), "the next task has it");
    assert_eq!(w.writes.iter().filter(|write| matches!(write, Write::PutSpec(_))).count(), kept);
    let rows = w.writes.iter().filter_map(|w| if let Write::PutStep(row) = w { Some(row) } else { None });
    assert!(rows.flat_map(|row| &row.nodes).all(|n| n.pull.as_ref().is_none_or(|p| p.found.is_none())));
}

#[test]
fn a_step_with_an_image_of_its_own_keeps_that_and_leaves_its_jobs_alone() {
    let mut w = World::small();
    let id = w.batch("b", |spec| spec.container = named());
    w.starts();
    let spec = berth_model::spec::StepSpec { container: named(), ..step("own") };
    w.request(actor(1000), Request::CreateStep { job: id, spec: Box::new(spec) }).unwrap();
    let (key, _) = started(&mut w).remove(0);
    // Told by its end alone, as of a step that is over soon; others than nodes of the step have no say.
    let exit = StepExit { image: Some(found("sha256:own")), ..exit(ExitStatus::OK) };
    w.phase("n1", key, StepPhase::Exited(exit));
    let row = w.writes.iter().rev().find_map(|w| if let Write::PutStep(row) = w { Some(row) } else { None });
    let own = row.unwrap().spec.clone().unwrap();
    assert_eq!(own.container.as_ref().unwrap().image.digest(), Some("sha256:own"));
    let script = batch_key(id, 0);
    w.tell("n1", |session| FromAgent::Pulled { session, key: script, pull: found("sha256:job") });
    assert_eq!(w.info(id).digest(), Some("sha256:job"));
    // A requeue has the image that the job had, whatever the name means by then.
    w.request(actor(1000), Request::Requeue(vec![JobSelector::Job(id)])).unwrap();
    w.exited("n1", script, ExitStatus::OK);
    w.gone("n1", id, 0);
    w.later(Span::from_secs(300));
    let again = started(&mut w);
    assert_eq!(again.last().unwrap().1.as_deref(), Some("sha256:job"), "{again:?}");
}

/// What a node is answered that found an image by its name.
fn asks(w: &mut World, node: &str, key: StepKey, digest: &str) -> Option<String> {
    w.sent.clear();
    let image = *found(digest).found.unwrap();
    w.tell(node, |session| FromAgent::Peers { session, said: FromPeers::Found { ask: 7, key, image } });
    let sent = std::mem::take(&mut w.sent);
    let answers: Vec<ResolvedImage> = sent
        .into_iter()
        .filter_map(|message| match message {
            ToAgent::Peers(ToPeers::Pinned { ask: 7, image }) => Some(image),
            _ => None,
        })
        .collect();
    match &answers[..] {
        [ResolvedImage::Manifest { digest, .. }] => Some(digest.clone()),
        [] => None,
        other => panic!("{other:?}"),
    }
}

proptest! {
    /// Whichever node of whichever task of whichever run asks first, and however often any asks: all are told what the first found, what
    /// starts later has it, and it is on record before anybody hears it.
    #[test]
    fn all_tasks_and_nodes_are_told_what_the_first_node_found(
        order in prop::collection::vec((0usize..4, 0usize..2, 0u32..5), 1..20),
    ) {
        let mut w = World::new(&berth_model::config::Config::default());
        for node in ["n1", "n2"] {
            w.node(node, hardware(8, 1, 8000, 0));
        }
        w.batch("array", |spec| {
            spec.container = named();
            spec.requeue = Some(true);
            spec.resources.min_nodes = 1;
            spec.array = Some(ArraySpec { ranges: vec![(1, 4, 1)], max_running: None });
        });
        let keys: Vec<StepKey> = started(&mut w).into_iter().map(|(key, _)| key).collect();
        let keys: Vec<(StepKey, NodeName)> =
            keys.into_iter().map(|key| (key, w.info(key.job).layout.nodes[0].clone())).collect();
        prop_assert_eq!(keys.len(), 4);
        let mut first = None;
        for (task, other, digest) in order {
            let (key, node) = &keys[task];
            let digest = format!("sha256:{digest}");
            if other == 1 {
                // A node that has nothing to do with it hears nothing, and changes nothing.
                let stranger = if node.0 == "n1" { "n2" } else { "n1" };
                prop_assert_eq!(asks(&mut w, stranger, *key, "sha256:alien"), None);
                continue;
            }
            let writes = w.writes.iter().filter(|write| matches!(write, Write::PutSpec(_))).count();
            let told = asks(&mut w, &node.0, *key, &digest);
            let written = w.writes.iter().filter(|write| matches!(write, Write::PutSpec(_))).count() - writes;
            prop_assert_eq!(written, usize::from(first.is_none()));
            let first = first.get_or_insert(digest);
            prop_assert_eq!(told.as_ref(), Some(&*first));
        }
        if let Some(first) = first {
            for (key, _) in keys {
                let info = w.info(key.job);
                prop_assert_eq!(info.digest(), Some(first.as_str()));
            }
        }
    }
}

#[test]
fn components_that_name_the_same_image_have_the_same() {
    let mut w = World::small();
    let part = |name: &str, image: &str| {
        let mut spec = job(JobKind::Batch, name);
        spec.container = Some(berth_samples::container(image, None));
        (spec, script())
    };
    let components = vec![part("a", "debian"), part("a+1", "debian"), part("a+2", "alpine")];
    let answer = w.request(actor(1000), Request::SubmitHet { components, test_only: false }).unwrap();
    let Response::Submitted { job: leader, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(asks(&mut w, "n1", batch_key(leader, 0), "sha256:a").as_deref(), Some("sha256:a"));
    let digests = [0, 1, 2].map(|n| w.info(JobId(leader.0 + n)).digest().map(str::to_owned));
    assert_eq!(digests, [Some("sha256:a".to_string()), Some("sha256:a".to_string()), None]);
}
