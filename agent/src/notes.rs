//! The lines that tell a user why a step is being ended.

use berth_model::ids::{NodeName, StepId, StepKey};
use berth_model::link::EndCause;

/// The line without its prefix; `None` where nothing needs to be said. `at`: the node's wall clock.
pub fn ending(key: StepKey, node: &NodeName, cause: EndCause, whole_job: bool, at: &str) -> Option<String> {
    let what = match whole_job && key.step == StepId::Batch {
        true => format!("JOB {}", key.job),
        false => format!("STEP {key}"),
    };
    let why = match cause {
        EndCause::Cancelled => " DUE to SIGNAL Terminated",
        EndCause::TimeLimit => " DUE TO TIME LIMIT",
        EndCause::Requeued => " DUE TO JOB REQUEUE",
        EndCause::NodeFailed => " DUE TO NODE FAILURE, SEE THE CONTROLLER'S LOG FOR DETAILS",
        EndCause::OutOfTouch => " DUE TO SILENCE OF THE CONTROLLER",
        EndCause::JobEnded => return None,
    };
    Some(format!("*** {what} ON {node} CANCELLED AT {at}{why} ***"))
}

/// Now, as Slurm prints it.
pub fn now() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids::{Attempt, JobId};

    #[test]
    fn lines_are_those_that_scripts_look_for() {
        let line = |step, cause, job| {
            let key = StepKey { job: JobId(12), attempt: Attempt(0), step };
            ending(key, &"n1".into(), cause, job, "2026-01-02T03:04:05")
        };
        assert_eq!(
            line(StepId::Batch, EndCause::TimeLimit, true).unwrap(),
            "*** JOB 12 ON n1 CANCELLED AT 2026-01-02T03:04:05 DUE TO TIME LIMIT ***"
        );
        for whole_job in [true, false] {
            assert_eq!(
                line(StepId::Number(3), EndCause::Cancelled, whole_job).unwrap(),
                "*** STEP 12.3 ON n1 CANCELLED AT 2026-01-02T03:04:05 DUE to SIGNAL Terminated ***"
            );
        }
        assert_eq!(line(StepId::Batch, EndCause::JobEnded, true), None);
        assert_eq!(now().len(), 19);
    }
}
