//! What a group of events writes, without what the same group writes over: a step over very many nodes ends on all of them at about the
//! same time, and its row is as long as they are many.

use berth_sched_core::Write;
use std::collections::BTreeSet;

/// Leaves of each step's and job's row the last one.
pub(crate) fn only_last(writes: &mut Vec<Write>) {
    let (mut jobs, mut steps, mut parts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let keep = writes.iter().rev().map(|write| match write {
        Write::PutJob(row) => jobs.insert(row.job),
        Write::PutStep(row) => steps.insert(row.key),
        Write::PutPart { key, at, .. } => !steps.contains(key) && parts.insert((*key, *at)),
        Write::LeaveNode { job, .. } => !jobs.contains(job),
        // Those are about rows as they were.
        Write::DeleteJob(_) | Write::Retire(_) => {
            jobs.clear();
            steps.clear();
            parts.clear();
            true
        }
        _ => true,
    });
    let mut keep: Vec<bool> = keep.collect();
    writes.retain(|_| keep.pop().unwrap_or(true));
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids::{Attempt, JobId, NodeName, StepId, StepKey};
    use berth_model::time::Time;
    use berth_sched_core::{ROW_VERSION, StepNode, StepRow};
    use std::sync::Arc;

    fn step(job: u32, tasks: u32) -> Write {
        let node = StepNode { node: NodeName::from("n1"), tasks, share: None, pull: None, exit: None };
        Write::PutStep(Arc::new(StepRow {
            version: ROW_VERSION,
            key: StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Batch },
            name: "batch".into(),
            spec: None,
            nodes: vec![node].into(),
            consumes: false,
            started: Time(0),
            time_limit: None,
            ending: None,
            cancelled_by: None,
            result: None,
            distribution: Default::default(),
            login: false,
            het: None,
        }))
    }

    #[test]
    fn what_is_written_over_is_not_written_and_order_stays() {
        let (one, other) = (JobId(1), JobId(2));
        let all = vec![
            step(1, 1),
            step(2, 1),
            step(1, 2),
            Write::DeleteJob(one),
            step(1, 3),
            step(2, 2),
            Write::Retire(other),
            step(2, 3),
            step(1, 4),
            step(2, 4),
        ];
        let mut writes = all.clone();
        only_last(&mut writes);
        let expected = [1, 2, 3, 4, 5, 6, 8, 9].map(|at| all[at].clone());
        assert_eq!(writes, expected);
    }

    #[test]
    fn parts_are_written_unless_a_whole_row_comes_after_them() {
        let Write::PutStep(row) = step(1, 1) else { unreachable!() };
        let part = |at: usize, tasks: u32| {
            let part = StepNode { tasks, ..row.nodes[0].clone() };
            Write::PutPart { key: row.key, at, part: Box::new(part) }
        };
        let left = || Write::LeaveNode { job: JobId(1), node: "n1".into() };
        let all = vec![part(0, 1), step(1, 1), part(0, 2), part(1, 1), left(), part(0, 3)];
        let mut writes = all.clone();
        only_last(&mut writes);
        assert_eq!(writes, [1, 3, 4, 5].map(|at| all[at].clone()));
    }
}
