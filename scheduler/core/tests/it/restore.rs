//! Rows that contradict each other are refused by name, and those of a real cluster come back.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::request::{RefusalCode, Request};
use berth_model::spec::{ArraySpec, JobKind, JobSelector};
use berth_sched_core::*;
use std::sync::Arc;

fn world() -> World {
    let mut w = World::small();
    w.batch("one", |s| s.resources.tasks = Some(2));
    w.batch("array", |s| s.array = Some(ArraySpec { ranges: vec![(1, 9, 2)], max_running: Some(1) }));
    w
}

fn restore(stored: Stored) -> Result<Cluster, RestoreError> {
    let config = CoreConfig::new(&Config::default()).unwrap();
    Cluster::restore(config, Term(2), stored, berth_model::Time(0))
}

#[test]
fn when_the_ids_are_used_up_jobs_are_refused_and_what_was_taken_starts() {
    let mut w = World::small();
    w.batch("first", |s| s.hold = true);
    let mut stored = stored(&w.writes);
    stored.meta.as_mut().unwrap().next_job = u32::MAX - 7;
    w.core = restore(stored).unwrap();
    w.node("n1", hardware(4, 1, 4000, 2));
    let array = |last: u32| {
        let mut spec = job(JobKind::Batch, &format!("array {last}"));
        spec.array = Some(ArraySpec { ranges: vec![(0, last, 1)], max_running: None });
        spec.hold = true;
        spec
    };
    let refused = w.submit(array(3)).unwrap_err();
    assert!(refused.message.contains("the ids of jobs are used up"), "{refused}");
    let taken = w.submit(array(2)).unwrap();
    assert_eq!(taken, JobId(u32::MAX - 7));
    assert_eq!(w.submit(job(JobKind::Batch, "one more")).unwrap_err().code, RefusalCode::Unavailable);
    let two = ["a", "b"].map(|name| (job(JobKind::Batch, name), script())).to_vec();
    let two = Request::SubmitHet { components: two, test_only: false };
    assert_eq!(w.request(actor(1000), two).unwrap_err().code, RefusalCode::Unavailable);
    // Each of its tasks has an id.
    w.request(actor(1000), Request::Release(vec![JobSelector::Job(taken)])).unwrap();
    assert_eq!(w.starts().len(), 3);
}

#[test]
fn a_cluster_comes_back_as_it_was() {
    let w = world();
    let back = restore(stored(&w.writes)).unwrap();
    back.audit().unwrap();
    let plain = |c: &Cluster| {
        let snapshot = c.snapshot();
        let jobs = snapshot.jobs().map(|mut j| {
            j.reason = Default::default();
            j
        });
        jobs.collect::<Vec<_>>()
    };
    assert_eq!(plain(&back), plain(&w.core));
}

#[test]
fn nonsense_is_refused_by_name() {
    type Spoil = fn(&mut Stored);
    let cases: [(&str, Spoil); 8] = [
        ("job 1", |s| s.specs.clear()),
        ("job 1", |s| s.jobs[0].version = ROW_VERSION + 1),
        ("job 3", |s| s.meta.as_mut().unwrap().next_job = 3),
        ("job 1", |s| s.nodes.clear()),
        ("job 3", |s| {
            // Two jobs with the same cores.
            let Phase::Running(first) = s.jobs[0].phase.clone() else { panic!() };
            let Phase::Running(last) = &mut s.jobs[2].phase else { panic!() };
            last.allocation = first.allocation;
        }),
        ("job 1", |s| {
            let Phase::Running(run) = &mut s.jobs[0].phase else { panic!() };
            let mut allocation = (*run.allocation).clone();
            allocation.shares[0].cpus.push(99);
            run.allocation = Arc::new(allocation);
        }),
        ("step 1.batch", |s| {
            let part = StepNode { node: "elsewhere".into(), ..s.steps[0].nodes[0].clone() };
            s.steps[0].nodes = vec![part].into();
        }),
        ("node n1", |s| s.nodes[0].hardware.cores.clear()),
    ];
    for (row, spoil) in cases {
        let mut rows = stored(&world().writes);
        spoil(&mut rows);
        let error = restore(rows).err().unwrap_or_else(|| panic!("{row} was accepted"));
        assert!(error.row.contains(row) && !error.why.is_empty(), "{error}");
    }
}
