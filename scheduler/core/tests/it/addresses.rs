//! Addresses of machines, as steps are told them.

use super::members::{empty, enrol, key, ready, token_with};
use crate::common::*;
use berth_model::ids::*;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::request::*;
use berth_model::spec::StepSpec;

/// A machine that joins from this address.
fn from(name: &str, of: u8, address: &str) -> Request {
    match enrol(0, of, name) {
        Request::Enrol { token, hash, key, name, .. } => {
            Request::Enrol { token, hash, key, name, from: address.into() }
        }
        other => other,
    }
}

#[test]
fn tasks_that_ask_are_told_by_which_address_their_first_node_is_found() {
    let mut w = empty();
    w.root(token_with(0, |token| token.uses = 3)).unwrap();
    // n1 is on the controller's machine, and so is n3, which joined as others do.
    w.joined(from("n2", 2, "10.0.0.2"));
    w.joined(from("n3", 3, "127.0.0.1"));
    w.joined(from("n4", 4, "fe80::4"));
    for name in ["n1", "n2", "n3", "n4"] {
        w.node(name, hardware(2, 1, 4000, 0));
    }
    let job = w.batch("a", |spec| {
        spec.resources.min_nodes = 4;
        spec.resources.exclusive = true;
    });
    let mut steps = 0;
    let mut told = |w: &mut World, first: &str, pytorch: bool| {
        steps += 1;
        let spec = StepSpec {
            pytorch,
            overlap: true,
            nodes: Some(1),
            tasks: Some(1),
            node_list: vec![first.into()],
            ..step(&format!("step {steps}"))
        };
        w.sent.clear();
        w.request(actor(1000), Request::CreateStep { job, spec: Box::new(spec) }).unwrap();
        let start = w.sent.iter().find_map(|m| if let ToAgent::Start(s) = m { Some(s) } else { None });
        start.unwrap().launch.master.clone()
    };
    assert_eq!(told(&mut w, "n2", false), None, "nobody asked");
    let some = |address: &str| Some(address.to_string());
    assert_eq!(told(&mut w, "n1", true), some(""));
    assert_eq!(told(&mut w, "n2", true), some("10.0.0.2"));
    assert_eq!(told(&mut w, "n3", true), some(""));
    assert_eq!(told(&mut w, "n4", true), None, "it means another one on each machine");
    // What a node says itself is newer; what is no address does not get into anybody's environment.
    for (address, expected) in [
        ("10.0.0.9:7818", "10.0.0.9"),
        ("[fd00::9]:7818", "fd00::9"),
        ("a\nB=1:7818", "10.0.0.2"),
        // All addresses of a machine are none, and neither is one that means another machine on each.
        ("0.0.0.0:7818", "10.0.0.2"),
        ("[::]:7818", "10.0.0.2"),
        ("[fe80::9]:7818", "10.0.0.2"),
        ("127.0.0.1:7818", "10.0.0.2"),
    ] {
        let said = ready(address, key(2));
        w.tell("n2", |session| FromAgent::Peers { session, said });
        assert_eq!(told(&mut w, "n2", true), some(expected), "{address}");
    }
    let said = ready(":7818", key(1));
    w.tell("n1", |session| FromAgent::Peers { session, said });
    assert_eq!(told(&mut w, "n1", true), some(""));
}

#[test]
fn a_step_is_told_the_address_of_its_clients_machine_as_the_controller_knows_it() {
    let mut w = empty();
    w.root(token_with(0, |token| token.uses = 3)).unwrap();
    w.joined(from("n2", 2, "10.0.0.2"));
    w.joined(from("front", 3, "10.0.0.3"));
    w.joined(from("far", 4, "fe80::4"));
    w.node("n1", hardware(2, 1, 4000, 0));
    let job = w.batch("a", |spec| spec.resources.exclusive = true);
    let mut steps = 0;
    let mut told = |machine: Option<&str>, attached: bool| {
        steps += 1;
        // What a client says of itself counts for nothing.
        let client_address = Some("192.0.2.1".to_string());
        let spec = StepSpec { overlap: true, attached, client_address, ..step(&format!("step {steps}")) };
        w.sent.clear();
        let client = Actor { via: machine.map(NodeName::from), ..actor(1000) };
        w.request(client, Request::CreateStep { job, spec: Box::new(spec) }).unwrap();
        let start = w.sent.iter().find_map(|m| if let ToAgent::Start(s) = m { Some(s) } else { None });
        start.unwrap().launch.client_address.clone()
    };
    let some = |address: &str| Some(address.to_string());
    assert_eq!(told(None, true), some(""), "the controller's own machine");
    assert_eq!(told(Some("n2"), true), some("10.0.0.2"));
    assert_eq!(told(Some("front"), true), some("10.0.0.3"), "a login node");
    assert_eq!(told(Some("far"), true), None, "it means another one on each machine");
    assert_eq!(told(Some("n2"), false), None, "it has no client");
}
