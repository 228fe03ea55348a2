//! Devices that an agent says are faulty: told while jobs run, given to nobody, and given again when they are well.

use crate::common::*;
use berth_model::config::{Config, GresConfig, NodeConfig};
use berth_model::hardware::{GresDevice, Hardware, Vendor};
use berth_model::ids::{Attempt, NodeName};
use berth_model::launch::StepPhase;
use berth_model::link::ToAgent;
use berth_model::request::{NodeStateChange, Request};
use berth_model::state::{ExitStatus, JobState};
use berth_model::tres::GresKey;
use berth_sched_core::Event;

fn two(fault: Option<&str>) -> Hardware {
    let mut hw = hardware(4, 1, 8000, 2);
    for (n, device) in (0..).zip(&mut hw.gres) {
        device.vendor = Vendor::Nvidia;
        device.files = vec![format!("/dev/nvidia{n}").into()];
        device.bus = Some(format!("0000:{n:02x}:00.0"));
    }
    hw.gres[1].fault = fault.map(Into::into);
    hw
}

fn wants(w: &mut World, name: &str, gpus: u64) -> berth_model::JobId {
    w.batch(name, |s| {
        s.resources.tasks = Some(1);
        s.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, gpus);
    })
}

/// The agent starts anew beside a job that runs.
fn again(w: &mut World, job: berth_model::JobId, hw: Hardware) {
    let steps = vec![(batch_key(job, 0), StepPhase::Running)];
    w.hello("n1", "boot", hw, steps, vec![(job, Attempt(0))]);
}

#[test]
fn a_device_is_fenced_while_jobs_run_and_given_again_when_it_is_well() {
    let mut w = World::new(&Config::default());
    w.node("n1", two(None));
    let first = wants(&mut w, "1", 1);
    assert_eq!(w.state(first), JobState::Running);
    again(&mut w, first, two(Some("it fell off the bus")));
    assert_eq!(w.state(first), JobState::Running, "what runs goes on");
    let second = wants(&mut w, "2", 1);
    assert_eq!(w.state(second), JobState::Pending);
    w.exited("n1", batch_key(first, 0), ExitStatus::OK);
    w.gone("n1", first, 0);
    assert_eq!(w.state(second), JobState::Running, "the other one is well");
    let third = wants(&mut w, "3", 1);
    assert_eq!(w.state(third), JobState::Pending);
    again(&mut w, second, two(None));
    assert_eq!(w.state(third), JobState::Running);
}

#[test]
fn the_agent_of_a_fenced_device_is_told_when_its_node_is_put_back_into_service() {
    let mut w = World::new(&Config::default());
    w.node("n1", two(None));
    let mut told = |hw: Hardware, state: NodeStateChange| {
        w.hello("n1", "boot", hw, vec![], vec![]);
        w.sent.clear();
        let reason = Some("why".to_string());
        w.request(actor(0), Request::UpdateNode { nodes: vec!["n1".into()], state, reason }).unwrap();
        w.sent.iter().filter(|m| matches!(m, ToAgent::Resumed { .. })).count()
    };
    let fenced = || two(Some("Xid 119"));
    assert_eq!(told(fenced(), NodeStateChange::Resume), 1);
    assert_eq!(told(fenced(), NodeStateChange::Idle), 1);
    assert_eq!(told(fenced(), NodeStateChange::Drain), 0);
    assert_eq!(told(fenced(), NodeStateChange::Undrain), 0);
    assert_eq!(told(two(None), NodeStateChange::Resume), 0, "there is nothing to say");
}

/// What is fenced, as people see it.
fn shown(w: &World) -> String {
    let node = w.core.snapshot().node(&"n1".into()).unwrap();
    node.hardware.gres.iter().filter_map(|d| d.fault.clone()).collect()
}

#[test]
fn an_agent_that_is_away_is_told_of_it_when_it_is_back() {
    let fenced = || two(Some("Xid 119"));
    let resume = |w: &mut World| {
        let (connection, _) = w.sessions[&NodeName::from("n1")];
        w.event(Event::AgentLost { node: "n1".into(), connection });
        w.sent.clear();
        let state = NodeStateChange::Resume;
        w.request(actor(0), Request::UpdateNode { nodes: vec!["n1".into()], state, reason: None }).unwrap();
        assert!(w.sent.is_empty(), "{:?}", w.sent);
        // On record: a controller that starts meanwhile tells it, too.
        stored(&w.writes).nodes[0].resumed
    };
    let comes = |w: &mut World, boot: &str, hw: Hardware| {
        w.sent.clear();
        w.hello("n1", boot, hw, vec![], vec![]);
        w.sent.iter().filter(|m| matches!(m, ToAgent::Resumed { .. })).count()
    };
    let mut w = World::new(&Config::default());
    w.node("n1", fenced());
    assert_eq!(shown(&w), "Xid 119");
    assert!(resume(&mut w));
    assert!(shown(&w).contains("RESUME was said"), "{}", shown(&w));
    assert_eq!(comes(&mut w, "boot", fenced()), 1);
    // On a connection that broke before it was heard on.
    assert_eq!(comes(&mut w, "boot", fenced()), 1);
    let asked = w.clock();
    w.heartbeat("n1", asked);
    // What it said may have been on its way when it was told.
    assert_eq!(comes(&mut w, "boot", fenced()), 1);
    for _ in 0..2 {
        assert!(stored(&w.writes).nodes[0].resumed);
        w.heartbeat("n1", asked);
    }
    assert_eq!((comes(&mut w, "boot", fenced()), shown(&w).as_str()), (0, "Xid 119"));
    assert!(!stored(&w.writes).nodes[0].resumed);
    // A boot ends what was seen before it, and what is fenced then is so by what was seen since.
    assert!(resume(&mut w));
    assert_eq!(comes(&mut w, "another", fenced()), 0);
    // Nor is anybody told of what is well by now.
    assert!(resume(&mut w));
    assert_eq!(comes(&mut w, "another", two(None)), 0);
    assert!(!stored(&w.writes).nodes[0].resumed && !resume(&mut w));
}

/// Two devices of the configuration's files.
fn by_file() -> Config {
    let files = vec!["/dev/a".into(), "/dev/link".into()];
    let gres = GresConfig { name: "gpu".into(), files, ..GresConfig::default() };
    let node = NodeConfig { name: "ALL".into(), gres: vec![gres], ..NodeConfig::default() };
    Config { nodes: vec![node], ..Config::default() }
}

/// Of these files a node tells those alone that cannot be given.
fn with(fault: Option<&str>) -> Hardware {
    let link = fault.map(|why| GresDevice {
        name: "gpu".into(),
        files: vec!["/dev/link".into()],
        fault: Some(why.into()),
        ..GresDevice::default()
    });
    Hardware { gres: link.into_iter().collect(), ..hardware(4, 1, 8000, 0) }
}

/// Its devices, and whether they are fenced.
fn seen(w: &World) -> Vec<(String, bool)> {
    let node = w.core.snapshot().node(&"n1".into()).unwrap();
    let devices = node.hardware.gres.iter();
    devices.map(|d| (d.files[0].display().into_owned(), d.fault.is_some())).collect()
}

#[test]
fn a_file_that_its_node_says_cannot_be_given_is_there_once_and_goes_to_nobody() {
    let mut w = World::new(&by_file());
    w.node("n1", with(Some("it is the same device as /dev/a")));
    assert_eq!(seen(&w), [("/dev/link".to_string(), true), ("/dev/a".to_string(), false)]);
    let (first, second) = (wants(&mut w, "1", 1), wants(&mut w, "2", 1));
    assert_eq!((w.state(first), w.state(second)), (JobState::Running, JobState::Pending));
    // By now the link leads elsewhere.
    again(&mut w, first, with(None));
    assert_eq!(w.state(second), JobState::Running);
    for job in [first, second] {
        w.exited("n1", batch_key(job, 0), ExitStatus::OK);
        w.gone("n1", job, 0);
    }
    assert_eq!(seen(&w).len(), 2, "{:?}", seen(&w));
    w.hello("n1", "boot", with(None), vec![], vec![]);
    assert_eq!(seen(&w), [("/dev/a".to_string(), false), ("/dev/link".to_string(), false)]);
}

#[test]
fn a_file_that_was_well_when_its_node_came_is_fenced_while_jobs_run() {
    let mut w = World::new(&by_file());
    w.node("n1", with(None));
    let first = wants(&mut w, "1", 1);
    assert_eq!(w.state(first), JobState::Running);
    let fenced = || with(Some("it is no device of this node"));
    again(&mut w, first, fenced());
    let second = wants(&mut w, "2", 1);
    assert_eq!(w.state(second), JobState::Pending);
    let shown = [("/dev/a".to_string(), false), ("/dev/link".to_string(), true)];
    assert_eq!(seen(&w), shown);
    // It stays so when the same is said again, and when the node has other work.
    again(&mut w, first, fenced());
    w.exited("n1", batch_key(first, 0), ExitStatus::OK);
    w.gone("n1", first, 0);
    let third = wants(&mut w, "3", 1);
    assert_eq!((w.state(second), w.state(third)), (JobState::Running, JobState::Pending));
    assert_eq!(seen(&w), shown);
    again(&mut w, second, with(None));
    assert_eq!(w.state(third), JobState::Running);
}
