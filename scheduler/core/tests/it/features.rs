//! Nodes whose agents do not know what a job asks for: an earlier version would run it as if that had not been said.

use crate::common::{World, actor, hardware, job, script, step};
use berth_model::bind::{CpuBind, CpuHow};
use berth_model::feature::Feature;
use berth_model::ids::*;
use berth_model::link::{FromAgent, Highest};
use berth_model::request::{Refusal, Request, Response};
use berth_model::spec::{JobKind, JobSpec, StepSpec};
use berth_model::state::{JobState, Reason};
use berth_model::x11::{X11Nodes, X11Spec};

/// The agent of a node introduces itself, again or for the first time, and knows this.
fn comes_knowing(w: &mut World, name: &str, features: &[Feature]) {
    if !w.sessions.contains_key(&NodeName::from(name)) {
        w.node(name, hardware(4, 1, 4000, 0));
    }
    let hello = FromAgent::Hello {
        node: name.into(),
        boot_id: "boot".into(),
        boot_time: Default::default(),
        agent_start: Default::default(),
        version: "0.0.9".into(),
        hardware: hardware(4, 1, 4000, 0),
        term: Term(0),
        asked: Default::default(),
        steps: vec![],
        jobs: vec![],
        unknown: vec![],
        features: features.iter().map(|feature| feature.name().to_string()).collect(),
        highest: Highest::default(),
        host: None,
    };
    w.tell(name, |_| hello);
}

fn crowded(spec: &mut JobSpec) {
    (spec.resources.overcommit, spec.resources.tasks) = (true, Some(9));
}

#[test]
fn a_job_waits_for_an_agent_that_knows_what_it_asks_for_and_others_do_not() {
    let mut w = World::new(&berth_model::config::Config::default());
    // One that says nothing is an early one, and one that knows something else is no better.
    comes_knowing(&mut w, "n1", &[]);
    comes_knowing(&mut w, "n2", &[Feature::CpuBind]);
    let waits = w.batch("waits", crowded);
    let Reason::ReqNodeNotAvail(why) = w.info(waits).reason else { panic!("{:?}", w.info(waits).reason) };
    assert_eq!(why, "n[1-2] (their agents do not know --overcommit)");
    let plain = w.batch("plain", |_| {});
    assert_eq!(w.state(plain), JobState::Running, "it asks for nothing that they do not know");
    // A node that knows is there: it goes there, however much room others have.
    comes_knowing(&mut w, "n3", &Feature::ALL);
    assert_eq!(w.state(waits), JobState::Running);
    assert_eq!(w.info(waits).layout.nodes, [NodeName::from("n3")]);
    // Others wait for it, until an agent is upgraded.
    let full = |s: &mut JobSpec| {
        crowded(s);
        s.resources.cpus_per_task = Some(4);
    };
    let next = w.batch("next", full);
    assert_eq!(w.info(next).reason, Reason::Resources);
    comes_knowing(&mut w, "n2", &Feature::ALL);
    assert_eq!(w.state(next), JobState::Running);
    assert_eq!(w.info(next).layout.nodes, [NodeName::from("n2")]);
}

#[test]
fn a_step_is_refused_by_name_where_it_would_be_run_as_something_else() {
    let mut w = World::new(&berth_model::config::Config::default());
    comes_knowing(&mut w, "n1", &[]);
    comes_knowing(&mut w, "n2", &Feature::ALL);
    let job = w.batch("job", |s| (s.resources.min_nodes, s.resources.exclusive) = (2, true));
    let create = |w: &mut World, spec: StepSpec| -> Result<Response, Refusal> {
        w.request(actor(1000), Request::CreateStep { job, spec: Box::new(spec) })
    };
    let bound = |name: &str, node: &str| StepSpec {
        cpu_bind: Some(CpuBind { verbose: false, how: CpuHow::Cores }),
        node_list: vec![node.into()],
        nodes: Some(1),
        overlap: true,
        ..step(name)
    };
    let why = create(&mut w, bound("a", "n1")).unwrap_err().message;
    for part in ["n1", "0.0.9", "--cpu-bind", "upgrade"] {
        assert!(why.contains(part), "{why}");
    }
    assert!(create(&mut w, bound("b", "n2")).is_ok());
    assert!(create(&mut w, StepSpec { cpu_bind: None, ..bound("c", "n1") }).is_ok());
    // A display that is reached without help is as it was; one that is carried is not.
    let shown = |name: &str, carried: bool| {
        let x11 = X11Spec { display: ":0".into(), nodes: X11Nodes::All, host: "n2".into(), carried };
        StepSpec { cpu_bind: None, x11: Some(x11), ..bound(name, "n1") }
    };
    assert!(create(&mut w, shown("d", false)).is_ok());
    let why = create(&mut w, shown("e", true)).unwrap_err().message;
    assert!(why.contains("n1") && why.contains("--x11"), "{why}");
}

#[test]
fn a_job_of_components_waits_for_agents_that_know_of_such_jobs() {
    let mut w = World::new(&berth_model::config::Config::default());
    comes_knowing(&mut w, "n1", &[Feature::Fabric]);
    let components = ["a", "a+1"].map(|name| (job(JobKind::Batch, name), script())).to_vec();
    let answer = w.request(actor(1000), Request::SubmitHet { components, test_only: false }).unwrap();
    let Response::Submitted { job: leader, .. } = answer else { panic!("{answer:?}") };
    let Reason::ReqNodeNotAvail(why) = w.info(leader).reason else { panic!("{:?}", w.info(leader).reason) };
    assert_eq!(why, "n1 (their agents do not know jobs of several components)");
    comes_knowing(&mut w, "n2", &Feature::ALL);
    for id in [leader, JobId(leader.0 + 1)] {
        assert_eq!((w.state(id), &w.info(id).layout.nodes), (JobState::Running, &vec![NodeName::from("n2")]));
    }
}

#[test]
fn an_image_that_came_by_its_name_goes_to_agents_that_ask_what_all_have() {
    let mut w = World::new(&berth_model::config::Config::default());
    let all_but: Vec<Feature> = Feature::ALL.into_iter().filter(|f| *f != Feature::Pinned).collect();
    comes_knowing(&mut w, "n1", &all_but);
    let id = w.batch("named", |spec| spec.container = Some(berth_samples::container("debian", None)));
    let Reason::ReqNodeNotAvail(why) = w.info(id).reason else { panic!("{:?}", w.info(id).reason) };
    assert_eq!(why, "n1 (their agents do not know images named inside containers)");
    comes_knowing(&mut w, "n2", &Feature::ALL);
    assert_eq!(w.state(id), JobState::Running);
}

#[test]
fn what_agents_say_they_know_has_names_that_never_change() {
    let known = [
        "cpu-bind",
        "mem-bind",
        "socket-layouts",
        "overcommit",
        "multi-prog",
        "receive",
        "fabric",
        "components",
        "gpu-bind",
        "pmix",
        "mps",
        "pinned-names",
        "srun-prolog",
        "lost-after",
        "x11-carried",
        "say",
        "look-for-ends",
        "resumed",
        "gateway",
        "carry",
        "signalled",
    ];
    assert_eq!(Feature::known(), known);
}
