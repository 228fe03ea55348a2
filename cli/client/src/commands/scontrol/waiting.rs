//! `scontrol wait_job` and `scontrol completing`: jobs whose nodes are not there for them yet, and those whose nodes are not free again.

use super::{names, plain, view};
use crate::error::{Failure, Kind, Outcome};
use crate::fmt::{View, hosts, job, time};
use crate::{Invocation, block_on, out, submit};
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::spec::JobSelector;
use berth_model::state::JobState;

/// Waits until the nodes of a job are there for it, its image included; says so unless `quiet`.
pub(super) fn wait_job(call: &Invocation<'_>, word: &str, quiet: bool) -> Outcome {
    let bad = |_| plain(format!("Invalid job id specified for job {word}\nwrite JOB, ARRAY_TASK or a SLUID"));
    let selector: JobSelector = word.parse().map_err(bad)?;
    let problem = |why: &str| plain(format!("scontrol: Problem running job {word}: {why}"));
    let site = call.site()?;
    block_on(async {
        let client = site.connect().await?;
        let query = JobQuery { include_finished: true, ..JobQuery::of([&selector]) };
        let known = client.jobs(&query).await?;
        let Some(job) = known.iter().find(|j| names(&selector, j) && !job::is_spent(j)) else {
            return Err(problem("there is no such job"));
        };
        let mut records = submit::records(&client, job.id).await?;
        loop {
            let state = records.borrow_and_update().as_ref().map(|job| job.state);
            match state.and_then(|state| Some((state, ready(state)?))) {
                Some((_, true)) if quiet => return Ok(0),
                Some((_, true)) => {
                    out::complain(&format!("scontrol: Nodes are ready for job {word}"));
                    return Ok(0);
                }
                Some((state, false)) => return Err(problem(&format!("it is {}", state.name()))),
                None => {}
            }
            if records.changed().await.is_err() {
                let why = "the controller does not tell of the job any more";
                return Err(Failure::new(Kind::Unreachable, why));
            }
        }
    })
}

/// Whether a job in that state has its nodes; `None` while it may still get them.
fn ready(state: JobState) -> Option<bool> {
    match state {
        JobState::Pending | JobState::Configuring => None,
        JobState::Completing => Some(false),
        other => Some(!other.is_terminal()),
    }
}

/// Lists jobs that are over, and whose nodes are being cleared away.
pub(super) fn completing(call: &Invocation<'_>) -> Outcome {
    let site = call.site()?;
    block_on(async {
        let client = site.connect().await?;
        let jobs = client.jobs(&JobQuery::default()).await?;
        let view = view(None).await;
        let lines = jobs.iter().filter(|j| j.state == JobState::Completing).map(|j| line(j, &view));
        out::print(&lines.collect::<String>()).map(|()| 0)
    })
}

fn line(j: &JobInfo, view: &View) -> String {
    let end = j.ended.unwrap_or(view.now);
    format!(
        "JobId={} EndTime={} CompletingTime={} Nodes(COMPLETING)={} \n",
        j.id,
        view.time(end),
        time::long(view.now.since(end)),
        hosts(&j.layout.nodes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::samples;
    use berth_model::Span;

    #[test]
    fn nodes_are_ready_once_the_image_is_there_and_never_for_what_is_over() {
        for (state, expected) in [
            (JobState::Pending, None),
            (JobState::Configuring, None),
            (JobState::Running, Some(true)),
            (JobState::Completing, Some(false)),
            (JobState::Completed, Some(false)),
            (JobState::Cancelled, Some(false)),
        ] {
            assert_eq!(ready(state), expected, "{state:?}");
        }
    }

    #[test]
    fn a_job_that_is_being_cleared_away_is_a_line() {
        let mut j = samples::job(9, "run2");
        j.ended = Some(samples::view(10).now);
        let later = View { now: samples::view(10).now + Span::from_secs(65), ..samples::view(0) };
        assert_eq!(
            line(&j, &later),
            "JobId=9 EndTime=2026-11-20T22:44:16 CompletingTime=00:01:05 Nodes(COMPLETING)=n1 \n"
        );
    }
}
