//! Many jobs: what a waiting job costs in memory, and that an event does not pay for jobs it is not about.
#![allow(clippy::unwrap_used)] // what fails here fails the test

mod common;

use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::limits::{LimitValue, Limits, Resource};
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::ExitStatus;
use berth_sched_core::*;
use common::*;
use std::time::Instant;

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A submission as `sbatch` makes it.
fn usual(i: u32) -> JobSpec {
    let mut spec = job(JobKind::Batch, &format!("{i:08x}-1234-5678-9abc-def012345678"));
    spec.name = "train-model".into();
    spec.work_dir = "/home/someone/projects/training".into();
    spec.command = "/home/someone/projects/training/job.sh".into();
    spec.submit_line = "sbatch --container-image=debian:12 -c 4 job.sh".into();
    let all = [
        Resource::Core,
        Resource::Data,
        Resource::Fsize,
        Resource::Memlock,
        Resource::Nofile,
        Resource::Nproc,
        Resource::Stack,
    ];
    spec.limits =
        Limits { soft: all.into_iter().map(|r| (r, LimitValue::Unlimited)).collect(), required: vec![] };
    let image = ResolvedImage::Manifest {
        source: "docker://registry-1.docker.io/library/debian".into(),
        digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
        insecure: false,
        indexes: Vec::new(),
        pin: None,
    };
    spec.container = Some(berth_samples::container("debian:12", Some(image)));
    spec
}

fn submit(core: &mut Cluster, now: berth_model::Time, spec: JobSpec, i: u32) {
    let body =
        Request::Submit { spec: Box::new(spec), payload: script(), first_step: None, test_only: false };
    let outcome = core.handle(Event::Client { request: RequestId(i.into()), actor: actor(1000), body }, now);
    assert!(outcome.writes.len() >= 3);
    drop(outcome);
}

#[test]
fn a_waiting_job_takes_a_kibibyte_at_most() {
    let mut w = World::small();
    let held = |i| {
        let mut spec = usual(i);
        spec.resources.tasks = Some(4);
        spec
    };
    for i in 0..1000 {
        submit(&mut w.core, w.now, held(i), i);
    }
    let (before, start) = (resident(), Instant::now());
    let many = 20_000;
    for i in 1000..1000 + many {
        submit(&mut w.core, w.now, held(i), i);
    }
    let each = resident().saturating_sub(before) / u64::from(many);
    println!("{each} bytes a waiting job, {:?} each", start.elapsed() / many);
    assert!(each <= 1024, "{each} bytes for each waiting job");
}

#[test]
fn an_array_of_two_thousand_ends_with_thousands_waiting_behind_it() {
    let mut w = World::new(&Config { max_array_size: 5000, ..Config::default() });
    w.node("n1", hardware(64, 1, 64_000, 0));
    let id =
        w.batch("array", |s| s.array = Some(ArraySpec { ranges: vec![(0, 1999, 1)], max_running: None }));
    for i in 0..5000 {
        submit(&mut w.core, w.now, usual(i), i);
    }
    let start = Instant::now();
    let mut ran = 0u32;
    let mut todo: Vec<StepKey> = w.starts();
    while let Some(key) = todo.pop() {
        if w.core.snapshot().job(key.job).is_some_and(|j| j.array == Some(id)) {
            ran += 1;
        }
        if ran == 2000 {
            break;
        }
        w.quiet_exit("n1", key, ExitStatus::OK);
        todo.splice(0..0, w.starts());
    }
    println!("2000 tasks in {:?}", start.elapsed());
    assert_eq!(ran, 2000);
    w.core.audit().unwrap();
}

#[test]
fn a_thousand_nodes_fill_up() {
    let mut w = World::new(&Config::default());
    for i in 0..1000 {
        w.tell_hello_quietly(&format!("n{i:04}"), hardware(8, 1, 8000, 0));
    }
    let start = Instant::now();
    for i in 0..2000 {
        let mut spec = usual(i);
        spec.resources.tasks = Some(4);
        submit(&mut w.core, w.now, spec, i);
    }
    println!("2000 placements on 1000 nodes in {:?}", start.elapsed());
    let full = w.core.snapshot().nodes().filter(|n| n.allocated.cpu == 8).count();
    assert_eq!(full, 1000, "the tightest node is not filled first");
    w.core.audit().unwrap();
}
