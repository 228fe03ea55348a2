//! What a name means a gateway finds, for a node that a step with it runs on, and for nobody else.

use crate::common::*;
use berth_model::config::Config;
use berth_model::exchange::{FromPeers, ToPeers};
use berth_model::ids::{JobId, StepKey};
use berth_model::link::{FromAgent, ToAgent};
use berth_model::spec::ResolvedImage;
use berth_model::time::Span;

/// A node where jobs run, and two gateways that have no room for them.
fn cluster() -> World {
    let mut config = Config::default();
    config.images.gateways = "gw[1-2]".into();
    config.node_timeout_seconds = 600;
    let mut w = World::new(&config);
    w.node("far", hardware(4, 1, 8000, 0));
    for gateway in ["gw1", "gw2"] {
        w.node(gateway, hardware(1, 1, 100, 0));
    }
    w
}

fn named(w: &mut World, name: &str) -> JobId {
    w.batch(name, |spec| {
        spec.container = Some(berth_samples::container("r.io/x:1", None));
        spec.resources.cpus_per_task = Some(2);
    })
}

fn image(digest: &str) -> ResolvedImage {
    ResolvedImage::Manifest {
        source: "docker://r.io/x".into(),
        digest: digest.into(),
        insecure: false,
        indexes: Vec::new(),
        pin: None,
    }
}

/// What is sent after a node said something: the answers, and the steps of which somebody was asked.
fn says(w: &mut World, node: &str, said: FromPeers) -> (Vec<ToPeers>, Vec<StepKey>) {
    w.sent.clear();
    w.tell(node, |session| FromAgent::Peers { session, said });
    let (mut answers, mut asked) = (Vec::new(), Vec::new());
    for message in w.sent.drain(..) {
        match message {
            ToAgent::Peers(told) => answers.push(told),
            ToAgent::Fetch(start) => {
                let image = &start.launch.container.as_ref().unwrap().image;
                assert_eq!((image.typed.as_str(), &image.resolved), ("r.io/x:1", &None));
                assert_eq!(start.launch.identity.uid, actor(1000).identity.uid);
                asked.push(start.launch.key);
            }
            _ => {}
        }
    }
    (answers, asked)
}

fn asks(w: &mut World, node: &str, ask: u64, key: StepKey) -> (Vec<ToPeers>, Vec<StepKey>) {
    says(w, node, FromPeers::Name { ask, key })
}

fn finds(w: &mut World, node: &str, key: StepKey, found: Result<&str, &str>) -> (Vec<ToPeers>, Vec<StepKey>) {
    let why = found.err().unwrap_or_default().to_string();
    let proof = found.map(proof).unwrap_or_default();
    says(w, node, FromPeers::Named { key, image: found.ok().map(image), why, proof })
}

/// What shows a node that the name means the image of this digest.
fn proof(digest: &str) -> Vec<String> {
    vec![format!("an index that lists {digest}")]
}

fn told(ask: u64, found: Option<&str>, note: &str) -> Vec<ToPeers> {
    // Of what all have it is not asked for, and not kept.
    let proof = found.filter(|_| !note.is_empty()).map(proof).unwrap_or_default();
    vec![ToPeers::Name { ask, image: found.map(image), note: note.into(), proof }]
}

#[test]
fn a_gateway_is_asked_what_a_name_means_and_its_word_is_passed_on() {
    let mut w = cluster();
    let key = batch_key(named(&mut w, "one"), 0);
    assert_eq!(asks(&mut w, "far", 1, key), (vec![], vec![key]));
    // Said again while it is being asked; and a word of somebody who was not.
    assert_eq!(asks(&mut w, "far", 1, key), (vec![], vec![]));
    assert_eq!(finds(&mut w, "gw2", key, Ok("sha256:evil")), (vec![], vec![]));
    assert_eq!(finds(&mut w, "gw1", key, Ok("sha256:1")), (told(1, Some("sha256:1"), "gw1"), vec![]));
    assert_eq!(finds(&mut w, "gw1", key, Ok("sha256:2")), (vec![], vec![]), "it was asked once");
    // What all have by now nobody is asked for.
    w.tell("far", |session| FromAgent::Peers {
        session,
        said: FromPeers::Found { ask: 9, key, image: image("sha256:1") },
    });
    assert_eq!(asks(&mut w, "far", 2, key), (told(2, Some("sha256:1"), ""), vec![]));
}

#[test]
fn what_is_too_large_to_prove_anything_goes_to_no_node() {
    let mut w = cluster();
    let key = batch_key(named(&mut w, "one"), 0);
    assert_eq!(asks(&mut w, "far", 1, key).1, [key]);
    let proof = vec!["x".repeat(200 << 10); 2];
    let said = FromPeers::Named { key, image: Some(image("sha256:1")), why: String::new(), proof };
    let (image, note) = (Some(image("sha256:1")), "gw1".to_string());
    assert_eq!(says(&mut w, "gw1", said).0, [ToPeers::Name { ask: 1, image, note, proof: Vec::new() }]);
}

#[test]
fn where_no_gateway_finds_it_the_node_hears_what_each_said() {
    let mut w = cluster();
    let key = batch_key(named(&mut w, "one"), 0);
    assert_eq!(asks(&mut w, "far", 1, key).1, [key]);
    assert_eq!(finds(&mut w, "gw1", key, Err("login refused")), (vec![], vec![key]), "the next one");
    // The second never answers.
    w.later(Span::from_secs(61));
    let note = "gateway gw1: login refused; gateway gw2: it does not answer";
    assert_eq!(asks(&mut w, "far", 1, key), (told(1, None, note), vec![]));
    assert_eq!(finds(&mut w, "gw2", key, Ok("sha256:1")), (vec![], vec![]), "it is too late");
}

#[test]
fn two_names_are_asked_of_two_gateways() {
    let mut w = cluster();
    let (one, two) = (batch_key(named(&mut w, "one"), 0), batch_key(named(&mut w, "two"), 0));
    assert_eq!(asks(&mut w, "far", 1, one).1, [one]);
    assert_eq!(asks(&mut w, "far", 2, two).1, [two]);
    assert_eq!(finds(&mut w, "gw2", two, Ok("sha256:2")).0, told(2, Some("sha256:2"), "gw2"));
    assert_eq!(finds(&mut w, "gw1", one, Ok("sha256:1")).0, told(1, Some("sha256:1"), "gw1"));
}

#[test]
fn who_has_nothing_to_do_with_a_step_learns_nothing_of_its_image() {
    let mut w = cluster();
    let key = batch_key(named(&mut w, "one"), 0);
    assert_eq!(asks(&mut w, "gw1", 1, key), (told(1, None, ""), vec![]));
    let other = StepKey { job: JobId(77), ..key };
    assert_eq!(asks(&mut w, "far", 2, other), (told(2, None, ""), vec![]));
    let mut w = World::small();
    let key = batch_key(
        w.batch("none", |spec| spec.container = Some(berth_samples::container("r.io/x:1", None))),
        0,
    );
    assert_eq!(asks(&mut w, "n1", 1, key), (told(1, None, ""), vec![]), "there is no gateway");
}
