//! Nodes by the full names of their machines: in all that people ask, where it is one node's alone and no node's own name.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::request::*;
use berth_model::state::JobState;
use berth_sched_core::*;

/// Four nodes, of which two say the same, and one says what is another's name.
fn cluster() -> World {
    let mut w = World::new(&Config::default());
    for (node, host) in
        [("n1", "n1.example.org"), ("n2", "twice.example.org"), ("n3", "Twice.example.org"), ("n4", "n1")]
    {
        comes(&mut w, node, Some(host));
    }
    w
}

fn comes(w: &mut World, node: &str, host: Option<&str>) {
    w.host = host.map(str::to_string);
    w.node(node, hardware(4, 1, 4000, 2));
}

/// Where a job is that asks for this node.
fn placed(w: &mut World, submission: &str, node: &str) -> Result<Vec<NodeName>, Refusal> {
    let mut spec = job(berth_model::spec::JobKind::Batch, submission);
    spec.resources.node_list = vec![node.into()];
    w.submit(spec).map(|id| w.info(id).layout.nodes.clone())
}

#[test]
fn a_full_name_stands_for_the_node_in_all_that_people_ask() {
    let mut w = cluster();
    assert_eq!(placed(&mut w, "1", "N1.example.org").unwrap(), [NodeName::from("n1")]);
    let id = w.batch("2", |spec| spec.resources.exclude = vec!["n1.example.org".into()]);
    assert_ne!(w.info(id).layout.nodes, [NodeName::from("n1")]);
    // A step of a job that has the node.
    let job = w.batch("3", |spec| spec.resources.node_list = vec![NodeName::from("n1")]);
    let mut spec = step("4");
    spec.node_list = vec!["n1.example.org".into()];
    w.request(actor(1000), Request::CreateStep { job, spec: Box::new(spec) }).unwrap();
    let drain = |nodes: &[&str]| Request::UpdateNode {
        nodes: nodes.iter().map(|name| (*name).into()).collect(),
        state: NodeStateChange::Drain,
        reason: Some("look".into()),
    };
    w.request(actor(0), drain(&["n1.example.org", "n4"])).unwrap();
    let drained = |w: &World, node: &str| w.core.snapshot().node(&node.into()).unwrap().condition.drain;
    assert!(drained(&w, "n1") && drained(&w, "n4") && !drained(&w, "n2"));
    let cancel = CancelRequest { nodes: vec!["n1.example.org".into()], ..CancelRequest::default() };
    w.request(actor(0), Request::Cancel(cancel)).unwrap();
    assert_ne!(w.state(job), JobState::Running);
    assert_eq!(w.state(id), JobState::Running);
}

#[test]
fn a_node_that_is_named_in_both_ways_is_asked_for_once() {
    let mut w = cluster();
    let both = w.batch("1", |spec| spec.resources.node_list = vec!["n1".into(), "n1.example.org".into()]);
    assert_eq!(w.info(both).layout.nodes, [NodeName::from("n1")]);
}

#[test]
fn what_is_two_machines_name_is_nobodys_and_a_nodes_own_name_is_its_own() {
    let mut w = cluster();
    let refused = placed(&mut w, "1", "twice.example.org").unwrap_err();
    assert!(refused.message.contains("twice.example.org is not a node of this cluster"), "{refused:?}");
    // A machine that is called as another node takes nothing from it.
    assert_eq!(placed(&mut w, "2", "n1").unwrap(), [NodeName::from("n1")]);
    // One of both is called otherwise: the name is the other's.
    comes(&mut w, "n3", Some("n3.example.org"));
    assert_eq!(placed(&mut w, "3", "twice.example.org").unwrap(), [NodeName::from("n2")]);
}

#[test]
fn a_name_outlives_a_name_service_that_does_not_answer_and_the_controller() {
    let mut w = cluster();
    // What says nothing of a machine, or is no name, is nothing.
    for host in [None, Some("localhost.localdomain"), Some("a b"), Some("10.77.0.2")] {
        comes(&mut w, "n1", host);
        let told = w.core.snapshot().node(&"n1".into()).unwrap().host_name;
        assert_eq!(told.as_deref(), Some("n1.example.org"), "{host:?}");
    }
    let config = CoreConfig::new(&Config::default()).unwrap();
    let core = Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap();
    let told = core.snapshot().node(&"n1".into()).unwrap().host_name;
    assert_eq!(told.as_deref(), Some("n1.example.org"));
}
