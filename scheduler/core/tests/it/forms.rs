//! Read-only images of layers go from node to node only where so many made them alike, whoever says what.

use crate::common::*;
use berth_model::config::Config;
use berth_model::exchange::{FromPeers, HeldImage, ImageWay, MadeForm, ToPeers};
use berth_model::ids::{NodeName, Term, Uid};
use berth_model::link::{FromAgent, ToAgent};
use berth_model::request::{Request, Response};
use berth_model::spec::ResolvedImage;
use berth_sched_core::{Cluster, CoreConfig, Event, Write};

const DIGEST: &str = "sha256:1";

fn config(agreed: u32) -> Config {
    let mut config = Config::default();
    config.images.forms_agreed = agreed;
    config
}

/// A cluster of so many nodes that give images to each other.
fn cluster(count: usize, agreed: u32) -> World {
    let mut w = World::new(&config(agreed));
    (1..=count).for_each(|n| registers(&mut w, &format!("n{n}")));
    w
}

fn registers(w: &mut World, name: &str) {
    w.node(name, hardware(2, 1, 8000, 0));
    let (address, key) = (format!("{name}:1"), format!("key of {name}"));
    says(w, name, FromPeers::Ready { address, key, streams: true, connected: Vec::new() });
}

fn says(w: &mut World, node: &str, said: FromPeers) -> Vec<ToPeers> {
    w.sent.clear();
    w.tell(node, |session| FromAgent::Peers { session, said });
    let told = w.sent.drain(..).filter_map(|message| match message {
        ToAgent::Peers(told) => Some(told),
        _ => None,
    });
    told.collect()
}

fn form(digest: &str) -> MadeForm {
    MadeForm { layer: "sha256:layer".into(), writer: "erofs 1".into(), digest: digest.into(), size: 4096 }
}

/// A node says that it has the image, and what it made of its layer.
fn holds(w: &mut World, node: &str, all: bool, made: &[&str]) {
    let made = made.iter().map(|digest| form(digest)).collect();
    let images = vec![HeldImage { digest: DIGEST.into(), users: vec![Uid(1000)], made }];
    says(w, node, FromPeers::Holds { all, images, gone: Vec::new() });
}

/// What a node is told of forms that a user has fetch the image.
fn told(w: &mut World, node: &str) -> Vec<MadeForm> {
    let image = ResolvedImage::Manifest {
        source: "docker://r.io/x".into(),
        digest: DIGEST.into(),
        insecure: false,
        indexes: Vec::new(),
        pin: None,
    };
    let nodes = vec![NodeName::from(node)];
    let pull = Request::PullImage { image: Box::new(image), nodes, login: None };
    assert_eq!(w.request(actor(1000), pull), Ok(Response::Done));
    let asked = |ask| FromPeers::Asked {
        ask,
        user: Uid(1000),
        digest: DIGEST.to_string(),
        bytes: 0,
        failed: Vec::new(),
    };
    let said = says(w, node, asked(1));
    says(w, node, FromPeers::Done { ask: 1, there: false, why: "a test".into() });
    let way = said.into_iter().find_map(|said| match said {
        ToPeers::Way { way: ImageWay::Peer { forms, .. }, .. } => Some(forms),
        _ => None,
    });
    way.unwrap_or_else(|| panic!("{node} is sent to no other node"))
}

/// The connection of a node's agent breaks.
fn lost(w: &mut World, node: &str) {
    let node = NodeName::from(node);
    let (connection, _) = w.sessions[&node];
    w.event(Event::AgentLost { node, connection });
}

/// A node is taken out of the cluster.
fn remove(w: &mut World, node: &str) {
    let remove = Request::RemoveMember { name: NodeName::from(node), force: true };
    w.request(actor(0), remove).unwrap();
}

fn alarms(w: &World) -> Vec<String> {
    let entry = |write: &Write| match write {
        Write::AddAudit(row) if row.what.starts_with("ALARM: ") => {
            Some(format!("{}: {}", row.user, row.what))
        }
        _ => None,
    };
    w.writes.iter().filter_map(entry).collect()
}

/// Whose word it is says the connection: no message has a place for another node's name.
#[test]
fn one_nodes_word_is_not_enough_however_often_it_is_said_and_by_how_many_connections() {
    let mut w = cluster(4, 2);
    for _ in 0..3 {
        holds(&mut w, "n1", true, &["sha256:a"]);
        holds(&mut w, "n1", false, &["sha256:a"]);
    }
    assert_eq!(told(&mut w, "n4"), []);
    // One that has it from another node says that it has the image, and made nothing.
    holds(&mut w, "n2", true, &[]);
    assert_eq!(told(&mut w, "n4"), []);
    // By its own connection it is itself, whatever it knows of another's.
    let (connection, _) = w.sessions[&NodeName::from("n1")];
    let (_, session) = w.sessions[&NodeName::from("n3")];
    let images =
        vec![HeldImage { digest: DIGEST.into(), users: vec![Uid(1000)], made: vec![form("sha256:a")] }];
    let said = FromPeers::Holds { all: false, images, gone: Vec::new() };
    let message = FromAgent::Peers { session, said };
    w.event(Event::Agent { node: NodeName::from("n1"), connection, message });
    assert_eq!(told(&mut w, "n4"), []);
    holds(&mut w, "n3", true, &["sha256:a"]);
    assert_eq!(told(&mut w, "n4"), [form("sha256:a")]);
    assert_eq!(alarms(&w), Vec::<String>::new());
}

#[test]
fn a_node_that_says_something_else_is_an_alarm_and_nobody_takes_any_of_it_until_it_is_removed() {
    let mut w = cluster(5, 2);
    for node in ["n1", "n2"] {
        holds(&mut w, node, true, &["sha256:a"]);
    }
    assert_eq!(told(&mut w, "n5"), [form("sha256:a")]);
    for _ in 0..3 {
        holds(&mut w, "n3", true, &["sha256:evil"]);
        assert_eq!(told(&mut w, "n5"), []);
    }
    let all = alarms(&w);
    assert!(!all.is_empty() && all.len() <= 3, "{all:?}");
    for words in ["berth: ", "sha256:layer", "n1, n2 made sha256:a", "n3 made sha256:evil"] {
        assert!(all[0].contains(words), "{words}: {all:?}");
    }
    // That it is out of reach is no agreement.
    lost(&mut w, "n3");
    assert_eq!(told(&mut w, "n5"), []);
    remove(&mut w, "n3");
    assert_eq!(told(&mut w, "n5"), [form("sha256:a")]);
    // What one said that is out of reach counts still; of one that is removed it does not.
    lost(&mut w, "n2");
    assert_eq!(told(&mut w, "n5"), [form("sha256:a")]);
    remove(&mut w, "n2");
    assert_eq!(told(&mut w, "n5"), []);
}

#[test]
fn where_none_are_to_agree_none_travels_and_where_all_are_trusted_one_is_enough() {
    for (agreed, expected) in [(0, vec![]), (1, vec![form("sha256:a")])] {
        let mut w = cluster(2, agreed);
        holds(&mut w, "n1", true, &["sha256:a"]);
        assert_eq!(told(&mut w, "n2"), expected);
    }
}

/// Nothing of it is in the records: it is known anew from what nodes say with their registrations.
#[test]
fn a_controller_that_starts_believes_nothing_before_nodes_have_said_it_again() {
    let mut w = cluster(3, 2);
    for node in ["n1", "n2"] {
        holds(&mut w, node, true, &["sha256:a"]);
    }
    assert_eq!(told(&mut w, "n3"), [form("sha256:a")]);
    let config = CoreConfig::new(&config(2)).unwrap();
    w.core = Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap();
    ["n1", "n2", "n3"].iter().for_each(|node| registers(&mut w, node));
    holds(&mut w, "n1", true, &["sha256:a"]);
    assert_eq!(told(&mut w, "n3"), []);
    holds(&mut w, "n2", true, &["sha256:a"]);
    assert_eq!(told(&mut w, "n3"), [form("sha256:a")]);
}

#[test]
fn who_registers_anew_and_has_nothing_any_more_counts_no_more() {
    let mut w = cluster(3, 2);
    for node in ["n1", "n2"] {
        holds(&mut w, node, true, &["sha256:a"]);
    }
    assert_eq!(told(&mut w, "n3"), [form("sha256:a")]);
    says(&mut w, "n2", FromPeers::Holds { all: true, images: Vec::new(), gone: Vec::new() });
    assert_eq!(told(&mut w, "n3"), []);
}
