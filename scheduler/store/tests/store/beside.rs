//! What is written beside rows that stay as they were: parts of steps, and nodes that jobs have left.

use super::{ended, run, spec, step};
use berth_model::launch::NodeShare;
use berth_model::query::AccountingQuery;
use berth_model::{Attempt, JobId, NodeName};
use berth_sched_core::{Allocation, JobRow, Phase, StepNode, StepRow, Write, commit};
use berth_store::SqliteStore;
use std::sync::Arc;

#[test]
fn a_part_beside_its_step_counts_until_the_step_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    let Write::PutStep(whole) = step(1) else { unreachable!() };
    let exit = whole.nodes[0].exit.clone();
    let open = |name: &str| StepNode { node: name.into(), exit: None, ..whole.nodes[0].clone() };
    let begun =
        StepRow { nodes: ["n1", "n2", "n3"].map(open).to_vec().into(), result: None, ..(*whole).clone() };
    let names = || ["n1", "n2", "n3"].map(NodeName::from);
    let mut run = run();
    run.allocation = Arc::new(Allocation {
        nodes: names().to_vec(),
        shares: vec![NodeShare::default(); 3],
        tasks: vec![1; 3],
    });
    let Write::PutJob(mut job) = ended(1, 70) else { unreachable!() };
    let Phase::Ended { result, .. } = job.phase.clone() else { unreachable!() };
    job.phase = Phase::Ending { run, result, left: names().into_iter().collect(), requeue: false };
    let part = |at: usize| {
        let part = StepNode { exit: exit.clone(), ..open(&format!("n{}", at + 1)) };
        Write::PutPart { key: whole.key, at, part: Box::new(part) }
    };
    let left = |name: &str| Write::LeaveNode { job: JobId(1), node: name.into() };
    commit(&mut store, &[spec(1), Write::PutStep(Arc::new(begun.clone())), Write::PutJob(job.clone())])
        .unwrap();
    commit(&mut store, &[part(2), left("n3"), part(0), left("n1")]).unwrap();
    drop(store);

    let mut store = SqliteStore::open(dir.path()).unwrap();
    let stored = store.load().unwrap();
    let ended: Vec<bool> = stored.steps[0].nodes.iter().map(|part| part.exit.is_some()).collect();
    assert_eq!((ended, stored.steps[0].nodes.open()), (vec![true, false, true], 1));
    let Phase::Ending { left: still, .. } = &stored.jobs[0].phase else { unreachable!() };
    assert_eq!(still.iter().collect::<Vec<_>>(), [&NodeName::from("n2")]);
    let mut rss = Vec::new();
    let all = AccountingQuery { ids: vec![JobId(1)], ..Default::default() };
    let usage = |page: Vec<berth_model::record::JobInfo>| {
        rss.extend(page.iter().flat_map(|job| job.steps.iter().map(|s| s.usage.max_rss)));
        Ok(())
    };
    store.reader().accounting(&all, 10, usage).unwrap();
    assert_eq!(rss, [9], "of what has ended");
    // As they are written whole, nothing beside them counts any more.
    commit(&mut store, &[Write::PutStep(Arc::new(begun)), Write::PutJob(job)]).unwrap();
    let stored = store.load().unwrap();
    assert_eq!(stored.steps[0].nodes.open(), 3);
    assert!(matches!(&stored.jobs[0].phase, Phase::Ending { left, .. } if left.len() == 3));
}

#[test]
fn what_an_earlier_run_left_is_nothing_of_a_later_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path()).unwrap();
    let on = |names: &[&str]| {
        let mut run = run();
        run.allocation = Arc::new(Allocation {
            nodes: names.iter().map(|name| NodeName::from(*name)).collect(),
            shares: vec![NodeShare::default(); names.len()],
            tasks: vec![1; names.len()],
        });
        run
    };
    let Write::PutJob(job) = ended(1, 70) else { unreachable!() };
    let Phase::Ended { result, .. } = job.phase.clone() else { unreachable!() };
    let row = |attempt, phase| {
        Write::PutJob(Box::new(JobRow { attempt: Attempt(attempt), phase, ..(*job).clone() }))
    };
    let ending = |names: &[&str]| Phase::Ending {
        run: on(names),
        result: result.clone(),
        left: on(names).allocation.nodes.iter().cloned().collect(),
        requeue: true,
    };
    let left = Write::LeaveNode { job: JobId(1), node: "n1".into() };
    commit(&mut store, &[spec(1), row(0, ending(&["n1", "n2"]))]).unwrap();
    commit(&mut store, std::slice::from_ref(&left)).unwrap();
    // It waits, and runs again on one node, of which nothing was written while it waited.
    let left_of = |store: &mut SqliteStore| {
        let stored = store.load().unwrap();
        let Phase::Ending { left, .. } = &stored.jobs[0].phase else { unreachable!() };
        left.iter().cloned().collect::<Vec<_>>()
    };
    commit(&mut store, &[row(1, ending(&["n1"]))]).unwrap();
    assert_eq!(left_of(&mut store), [NodeName::from("n1")]);
    // And so with a database in which an earlier version left it.
    commit(&mut store, &[left]).unwrap();
    assert_eq!(left_of(&mut store), [NodeName::from("n1")]);
}
