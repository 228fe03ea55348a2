//! IMEX channels: one for each job that has GPUs where there are such channels, and none for two.

use crate::common::*;
use berth_model::config::Config;
use berth_model::hardware::{Hardware, Vendor};
use berth_model::ids::JobId;
use berth_model::link::ToAgent;
use berth_model::spec::JobKind;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::tres::GresKey;
use berth_sched_core::Phase;

fn four(channels: u32) -> Hardware {
    let mut hw = hardware(4, 1, 8000, 4);
    hw.gres.iter_mut().for_each(|device| device.vendor = Vendor::Nvidia);
    Hardware { imex_channels: channels, ..hw }
}

fn wants(w: &mut World, name: &str, nodes: u32, gpus: u64) -> JobId {
    w.batch(name, |s| {
        s.resources.min_nodes = nodes;
        s.resources.tasks = Some(nodes);
        s.resources.memory = berth_model::spec::MemoryRequest::PerNode(100);
        s.resources.cpus_per_task = Some(1);
        if gpus > 0 {
            s.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, gpus);
        }
    })
}

/// What the Starts of a job said of its channel, one for each.
fn channels(w: &World, id: JobId) -> Vec<Option<u32>> {
    let starts = w.sent.iter().filter_map(|message| match message {
        ToAgent::Start(start) if start.launch.key.job == id => Some(start.launch.job.imex_channel),
        _ => None,
    });
    starts.collect()
}

/// What a job's row says.
fn kept(w: &World, id: JobId) -> Option<u32> {
    let stored = stored(&w.writes);
    match &stored.jobs.iter().find(|row| row.job == id).unwrap().phase {
        Phase::Running(run) => run.imex_channel,
        other => panic!("{other:?}"),
    }
}

fn over(w: &mut World, node: &str, id: JobId) {
    w.exited(node, batch_key(id, 0), ExitStatus::OK);
    w.gone(node, id, 0);
}

#[test]
fn each_job_with_gpus_has_a_channel_that_no_other_has_on_whatever_node() {
    let mut w = World::new(&Config::default());
    for name in ["n1", "n2"] {
        w.node(name, four(8));
    }
    let (first, both) = (wants(&mut w, "1", 1, 1), wants(&mut w, "2", 2, 2));
    let (plain, last) = (wants(&mut w, "3", 1, 0), wants(&mut w, "4", 1, 1));
    let of = |w: &World, id| channels(w, id)[0];
    // The first one is the driver's own.
    assert_eq!([first, both, last].map(|id| of(&w, id)), [Some(1), Some(2), Some(3)]);
    assert_eq!(of(&w, plain), None, "without a GPU");
    over(&mut w, "n1", first);
    let next = wants(&mut w, "5", 1, 1);
    assert_eq!(of(&w, next), Some(1), "the lowest that is free");
}

#[test]
fn a_job_waits_for_a_channel_where_all_are_in_use() {
    let mut w = World::new(&Config::default());
    w.node("n1", four(2));
    let (first, second) = (wants(&mut w, "1", 1, 1), wants(&mut w, "2", 1, 1));
    assert_eq!((w.state(first), w.state(second)), (JobState::Running, JobState::Pending));
    assert_eq!(w.info(second).reason, Reason::Resources);
    w.exited("n1", batch_key(first, 0), ExitStatus::OK);
    assert_eq!(w.state(second), JobState::Pending, "something of it may be left");
    w.gone("n1", first, 0);
    assert_eq!((w.state(second), channels(&w, second)), (JobState::Running, vec![Some(1)]));
    // A node whose driver knows one alone has that one.
    let mut w = World::new(&Config::default());
    w.node("n1", four(1));
    let only = wants(&mut w, "1", 1, 1);
    assert_eq!(channels(&w, only), [Some(0)]);
}

#[test]
fn nodes_without_channels_have_none_and_a_restart_forgets_no_channel() {
    let mut w = World::new(&Config::default());
    w.node("n1", four(0));
    let none = wants(&mut w, "1", 1, 1);
    assert_eq!(channels(&w, none), [None]);
    w.node("n2", four(8));
    let there = w.batch("2", |s| {
        s.resources.node_list = vec!["n2".into()];
        s.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, 1);
    });
    assert_eq!(channels(&w, there), [Some(1)]);
    assert_eq!(kept(&w, there), Some(1));
}

#[test]
fn the_components_of_a_job_have_one_channel_together() {
    let mut w = World::new(&Config::default());
    for name in ["n1", "n2"] {
        w.node(name, four(8));
    }
    let other = wants(&mut w, "other", 1, 1);
    let part = |name: &str| {
        let mut spec = job(JobKind::Alloc, name);
        spec.resources.tasks = Some(1);
        spec.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, 1);
        spec
    };
    let components = vec![(part("het"), script()), (part("het+"), script())];
    let request = berth_model::request::Request::SubmitHet { components, test_only: false };
    w.request(actor(1000), request).unwrap();
    let of = |id| kept(&w, JobId(id));
    assert_eq!([of(other.0), of(other.0 + 1), of(other.0 + 2)], [Some(1), Some(2), Some(2)]);
}
