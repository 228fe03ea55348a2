//! Another configuration in force while jobs run and wait.

use crate::common::*;
use berth_model::config::{Config, NodeConfig, PartitionConfig};
use berth_model::link::ToAgent;
use berth_model::request::*;
use berth_model::spec::JobSpec;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::time::Span;
use berth_sched_core::*;

fn reconfigure(w: &mut World, uid: u32, config: &Config) -> Result<Response, Refusal> {
    let request = RequestId(1_000_000 + w.replies.len() as u64);
    let config = Box::new(CoreConfig::new(config).unwrap());
    w.event(Event::Reconfigure { request, actor: actor(uid), config });
    w.replies.remove(&request.0).unwrap()
}

fn partition(name: &str) -> PartitionConfig {
    PartitionConfig { name: name.into(), default: name == "main", ..PartitionConfig::default() }
}

fn in_partition(name: &'static str) -> impl Fn(&mut JobSpec) {
    move |s| s.partition = Some(name.into())
}

#[test]
fn partitions_come_and_go_and_no_job_is_lost() {
    let mut w = World::small();
    let runs = w.batch("1", |_| {});
    let two = Config {
        partitions: vec![partition("main"), partition("new")],
        unkillable_seconds: 7,
        ..Config::default()
    };
    w.sent.clear();
    reconfigure(&mut w, 0, &two).unwrap();
    // Partitions are no affair of theirs.
    let theirs = Config { unkillable_seconds: 7, ..Config::default() };
    let told = w.sent.iter().filter(|m| matches!(m, ToAgent::Configure(c) if c.config == theirs)).count();
    assert_eq!((told, w.sent.len()), (1, 1), "agents hear of it, and of nothing else");
    assert_eq!(w.state(runs), JobState::Running);
    let there = w.batch("2", in_partition("new"));
    assert_eq!(w.state(there), JobState::Running);
    let waits = w.batch("3", |s| {
        s.partition = Some("new".into());
        s.resources.tasks = Some(4);
    });
    assert_eq!(w.info(waits).reason, Reason::Resources);
    // The partition goes: what runs in it goes on, what waits in it waits.
    let one = Config { partitions: vec![partition("main")], ..Config::default() };
    reconfigure(&mut w, 0, &one).unwrap();
    assert_eq!((w.state(there), w.info(waits).reason), (JobState::Running, Reason::PartitionDown));
    for job in [runs, there] {
        w.exited("n1", batch_key(job, 0), ExitStatus::OK);
        w.gone("n1", job, 0);
    }
    assert_eq!(w.state(waits), JobState::Pending);
    reconfigure(&mut w, 0, &two).unwrap();
    assert_eq!(w.state(waits), JobState::Running);
}

#[test]
fn busy_nodes_change_when_they_are_free() {
    let mut w = World::small();
    let job = w.batch("1", |_| {});
    let config = Config {
        nodes: vec![NodeConfig { name: "ALL".into(), memory_reserved: Some(1000), gres: vec![] }],
        ..Config::default()
    };
    let memory = |w: &World| w.core.snapshot().nodes().next().unwrap().total.mem;
    reconfigure(&mut w, 0, &config).unwrap();
    assert_eq!(memory(&w), 4000, "under a running job");
    w.exited("n1", batch_key(job, 0), ExitStatus::OK);
    w.gone("n1", job, 0);
    assert_eq!(memory(&w), 3000);
    reconfigure(&mut w, 0, &Config::default()).unwrap();
    assert_eq!(memory(&w), 4000, "an idle node at once");
}

#[test]
fn times_that_became_longer_are_waited_for() {
    let mut w = World::small();
    let job = w.batch("1", |_| {});
    w.exited("n1", batch_key(job, 0), ExitStatus::OK);
    w.gone("n1", job, 0);
    let age = |seconds| Config { min_job_age_seconds: seconds, ..Config::default() };
    reconfigure(&mut w, 0, &age(600)).unwrap();
    w.later(Span::from_secs(400));
    assert!(w.core.snapshot().job(job).is_some());
    w.later(Span::from_secs(201));
    assert!(w.core.snapshot().job(job).is_none(), "it is never forgotten");
}

#[test]
fn what_needs_a_restart_and_who_is_no_administrator_is_refused() {
    let mut w = World::small();
    let other = Config { cluster: "other".into(), ..Config::default() };
    let refusal = reconfigure(&mut w, 0, &other).unwrap_err();
    assert!(refusal.message.contains("needs a restart"), "{refusal}");
    let two = Config { partitions: vec![partition("main"), partition("new")], ..Config::default() };
    assert_eq!(reconfigure(&mut w, 1000, &two).unwrap_err().code, RefusalCode::Denied);
    assert_eq!(w.core.snapshot().partitions().count(), 1);
}
