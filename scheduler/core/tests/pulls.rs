//! What nodes say that images took: once, added up over nodes, and empty until it is known.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod common;

use berth_model::ids::*;
use berth_model::launch::{ImagePull, StepExit, StepPhase};
use berth_model::link::FromAgent;
use berth_model::record::PullInfo;
use berth_model::spec::JobKind;
use berth_model::state::ExitStatus;
use berth_model::time::Span;
use berth_model::tres::GresKey;
use berth_sched_core::Write;
use common::*;

fn pull(seconds: i64, bytes: u64, hit: bool) -> ImagePull {
    ImagePull { took: Span::from_secs(seconds), bytes, hit, digest: Some("sha256:1".into()) }
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
    let row = w.writes.iter().rev().find_map(|w| if let Write::PutStep(row) = w { Some(row) } else { None });
    assert!(row.unwrap().nodes.iter().all(|n| n.pull.is_some()), "it is in the row");
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
