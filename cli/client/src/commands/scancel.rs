//! Ends or signals jobs, array tasks and steps.
//!
//! Jobs are named by their ids (12, 12_3, 12_[1-5], 12.0, 12.batch) or SLUIDs (sCN1M7XK76CZ00), or chosen by filters,
//! or both: then the filters narrow the ids. Without --signal a job gets SIGCONT and SIGTERM, and SIGKILL after KillWait seconds. With --signal
//! the signal goes to the job's steps; --batch sends it to the batch script alone, --full to script and steps. A job
//! that is over is no error; --verbose says so. An id that is unknown is one, unlike with Slurm: it may be a typing error.
//! SCANCEL_ACCOUNT, SCANCEL_BATCH, SCANCEL_FULL, SCANCEL_INTERACTIVE, SCANCEL_NAME, SCANCEL_PARTITION, SCANCEL_STATE,
//! SCANCEL_USER and SCANCEL_VERBOSE stand for options that are not typed, and choose jobs as those do.

use super::{found, job_state, nodes, words};
use crate::error::{Failure, Outcome};
use crate::fmt::job;
use crate::fmt::sacct::names;
use crate::getopt::{Arg, Parsed, Refused, Spec, opt};
use crate::{Command, Invocation, block_on, out, variables};
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::request::{CancelRequest, RefusalCode, Response};
use berth_model::spec::{ArraySpec, JobSelector};
use berth_model::state::JobState;
use berth_model::{StepId, Uid};
use berth_rpc::Client;
use std::io::BufRead;

crate::doc::about!("scancel.rs");

/// The command.
pub const COMMAND: Command = Command { name: "scancel", run, submits: false, help: || SPEC.help() };

/// Options.
pub const SPEC: Spec = Spec {
    name: "scancel",
    usage: "[OPTION]... [JOB[_TASK][.STEP]]...",
    about: ABOUT,
    options: &[
        opt("account", Some('A'), Arg::Required("NAME"), "Jobs of this account"),
        opt("batch", Some('b'), Arg::None, "Signal the batch script alone"),
        opt("full", Some('f'), Arg::None, "Signal batch script and steps"),
        opt("interactive", Some('i'), Arg::None, "Ask before each job"),
        opt("me", None, Arg::None, "My jobs"),
        opt("name", Some('n'), Arg::Required("NAME"), "Jobs of this name"),
        opt("jobname", None, Arg::Required("NAME"), "As --name"),
        opt("nodelist", Some('w'), Arg::Required("NODES"), "Jobs that use one of these nodes"),
        opt("partition", Some('p'), Arg::Required("NAME"), "Jobs of this partition"),
        opt("quiet", Some('Q'), Arg::None, "Say nothing of jobs that are over"),
        opt("signal", Some('s'), Arg::Required("SIGNAL"), "Send this signal instead of ending the job"),
        opt("state", Some('t'), Arg::Required("STATES"), "Jobs in these states: PENDING, RUNNING, SUSPENDED"),
        opt("user", Some('u'), Arg::Required("NAME"), "Jobs of this user"),
        opt("verbose", Some('v'), Arg::None, "Tell what is done"),
    ],
    refused: &[
        Refused {
            long: "clusters",
            short: Some('M'),
            instead: "name another cluster's state directory with BERTH_STATE",
        },
        Refused { long: "ctld", short: None, instead: "every request goes through the controller" },
        Refused { long: "cron", short: Some('c'), instead: "there are no cron jobs" },
        Refused { long: "hurry", short: Some('H'), instead: "there are no burst buffers to stage out" },
        Refused {
            long: "qos",
            short: Some('q'),
            instead: "there are no QOS; select with --account or --partition",
        },
        Refused { long: "reservation", short: Some('R'), instead: "there are no reservations" },
        Refused { long: "sibling", short: None, instead: "there are no federations" },
        Refused { long: "wckey", short: None, instead: "there are no workload characterisation keys" },
    ],
};

fn run(call: &Invocation<'_>) -> Outcome {
    let parsed = variables::read(&SPEC, &call.args)?;
    let mut ids = Vec::new();
    for word in &parsed.words {
        let word = word.to_string_lossy();
        ids.extend(berth_model::jobid::list(&word).map_err(|_| {
            Failure::user(format!("Invalid job id {word}\nwrite JOB, ARRAY_TASK, JOB.STEP or a SLUID"))
        })?);
    }
    let mut request = filters(&parsed)?;
    let filtered = request != CancelRequest::default();
    request.jobs = ids;
    if request.jobs.is_empty() && !filtered {
        return Err(Failure::user(
            "No job identification provided\nname jobs by id, or choose them with -u, -n, -p or -t",
        ));
    }
    request.signal = match parsed.text("signal") {
        None => None,
        Some(text) => Some(
            berth_model::signal::parse(&text)
                .map_err(|_| Failure::raw(crate::error::Kind::User, format!("Unknown job signal: {text}")))?,
        ),
    };
    request.batch = parsed.has("batch");
    request.full = parsed.has("full");
    let site = call.site()?;
    block_on(async {
        let client = site.connect_patiently("scancel").await?;
        if let Some(user) = parsed.text("user") {
            request.user = Some(owner(&client, &user).await?);
        }
        if parsed.has("interactive") {
            request.nodes = found(&client, std::mem::take(&mut request.nodes)).await?;
            request.jobs = confirmed(&client, &request).await?;
            if request.jobs.is_empty() {
                return Ok(0);
            }
        }
        let verbose = parsed.has("verbose");
        if verbose {
            for (selector, step) in &request.jobs {
                let what = if request.signal.is_some() { "Signaling" } else { "Terminating" };
                match step {
                    Some(step) => out::complain(&format!("scancel: {what} step {selector}.{step}")),
                    None => out::complain(&format!("scancel: {what} job {selector}")),
                }
            }
        }
        let Response::Acted { jobs, refused, later } = client.cancel(&request).await? else { return Ok(0) };
        if !later.is_empty() {
            let names: Vec<&str> = later.iter().map(|node| node.0.as_str()).collect();
            let (is, it) = if names.len() == 1 { ("is", "it passes") } else { ("are", "they pass") };
            out::complain(&format!(
                "scancel: {} {is} not connected to the controller: {it} the signal on once back",
                berth_model::hostlist::compress(&names)
            ));
        }
        if verbose && request.jobs.is_empty() {
            for job in jobs {
                out::complain(&format!("scancel: Terminating job {job}"));
            }
        }
        let mut code = 0;
        for (selector, refusal) in refused {
            let about_step = selector.contains('.');
            let harmless = refusal.code == RefusalCode::WrongState && request.signal.is_none() && !about_step;
            if !harmless || verbose {
                let what = if about_step { "job step id" } else { "job id" };
                out::complain(&format!(
                    "scancel: error: Kill job error on {what} {selector}: {}",
                    refusal.message
                ));
            }
            if !harmless {
                code = 1;
            }
        }
        Ok(code)
    })
}

fn filters(parsed: &Parsed) -> Result<CancelRequest, Failure> {
    let states = match parsed.text("state") {
        None => Vec::new(),
        Some(text) => words(&text)
            .iter()
            .map(|w| match job_state(w) {
                Some(s @ (JobState::Pending | JobState::Running | JobState::Suspended)) => Ok(s),
                _ => {
                    let what = match parsed.variable("state") {
                        Some(variable) => format!("Unrecognized {variable} value: {w}"),
                        None => format!("Invalid job state specified: {w}"),
                    };
                    Err(Failure::raw(
                        crate::error::Kind::User,
                        format!("{what}\nValid job states are PENDING, RUNNING, and SUSPENDED"),
                    ))
                }
            })
            .collect::<Result<_, _>>()?,
    };
    Ok(CancelRequest {
        // A name is looked up once the cluster can be asked.
        user: match (parsed.has("me"), parsed.has("user")) {
            (true, _) | (_, true) => Some(Uid(nix::unistd::geteuid().as_raw())),
            _ => None,
        },
        name: parsed.text("name").or_else(|| parsed.text("jobname")),
        partition: parsed.text("partition"),
        account: parsed.text("account"),
        states,
        nodes: parsed.text("nodelist").map(|l| nodes(&l)).transpose()?.unwrap_or_default(),
        ..CancelRequest::default()
    })
}

/// The uid of a user: by the name service here, or by the jobs that the cluster knows.
async fn owner(client: &Client, user: &str) -> Result<Uid, Failure> {
    if let Some(uid) = crate::users::uid(user) {
        return Ok(Uid(uid));
    }
    let jobs = client.jobs(&JobQuery { include_finished: true, ..JobQuery::default() }).await?;
    jobs.iter()
        .find(|j| j.identity.user == user)
        .map(|j| j.identity.uid)
        .ok_or_else(|| Failure::user(format!("Invalid user name: {user}")))
}

/// The jobs that the caller says yes to; a question that gets no answer counts as no.
async fn confirmed(
    client: &Client,
    request: &CancelRequest,
) -> Result<Vec<(JobSelector, Option<StepId>)>, Failure> {
    let jobs = client.jobs(&JobQuery::default()).await?;
    let mut input = std::io::stdin().lock();
    let mut chosen = Vec::new();
    for info in jobs.iter().filter(|j| !job::is_spent(j) && matches(request, j)) {
        let parts: Vec<(JobSelector, Option<StepId>)> = if request.jobs.is_empty() {
            part(None, info).map(|part| (part, None)).into_iter().collect()
        } else {
            let words = request.jobs.iter();
            words.filter_map(|(word, step)| Some((part(Some(word), info)?, *step))).collect()
        };
        for (part, step) in parts {
            let id = match &part {
                JobSelector::Job(_) | JobSelector::Sluid(_) => job::id(info),
                some => some.to_string(),
            };
            let what = step.map_or(format!("job_id={id}"), |s| format!("step_id={id}.{s}"));
            let question =
                format!("Cancel {what} name={} partition={} [y/n]? ", info.spec.name, info.partition);
            if ask(&question, &mut input)? {
                chosen.push((part, step));
            }
        }
    }
    Ok(chosen)
}

/// What of a record is asked about and ended: all of it, or of tasks that wait together those that the word names. `None` where it
/// names none. The record of waiting tasks has the id of their array, which means all of its tasks.
fn part(word: Option<&JobSelector>, job: &JobInfo) -> Option<JobSelector> {
    let whole = match &job.waiting {
        Some(_) => job.sluid.map_or(JobSelector::Job(job.id), JobSelector::Sluid),
        None => JobSelector::Job(job.id),
    };
    match (word, &job.waiting) {
        (Some(JobSelector::Tasks(array, set)), Some(waiting)) if job.array == Some(*array) => {
            let named = ArraySpec::from_indices(waiting.iter().filter(|task| set.contains(*task)), None);
            (!named.is_empty()).then_some(JobSelector::Tasks(*array, named))
        }
        (Some(JobSelector::Task(array, task)), Some(waiting)) => {
            let named = job.array == Some(*array) && waiting.contains(*task);
            named.then_some(JobSelector::Task(*array, *task))
        }
        (Some(word), _) => names(word, job).then_some(whole),
        (None, _) => Some(whole),
    }
}

fn ask(question: &str, input: &mut impl BufRead) -> Result<bool, Failure> {
    loop {
        out::print(question)?;
        let mut answer = String::new();
        match input.read_line(&mut answer) {
            Ok(0) | Err(_) => return Ok(false),
            Ok(_) => match answer.trim().chars().next().map(|c| c.to_ascii_lowercase()) {
                Some('y') => return Ok(true),
                Some('n') => return Ok(false),
                _ => {}
            },
        }
    }
}

/// Whether the filters choose it.
fn matches(request: &CancelRequest, job: &JobInfo) -> bool {
    request.user.is_none_or(|u| u == job.identity.uid)
        && request.name.as_ref().is_none_or(|n| *n == job.spec.name)
        && request.partition.as_ref().is_none_or(|p| *p == job.partition)
        && request.account.as_ref().is_none_or(|a| Some(a) == job.spec.account.as_ref())
        && (request.states.is_empty() || request.states.contains(&job.state))
        && (request.nodes.is_empty() || job.layout.nodes.iter().any(|n| request.nodes.contains(n)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::samples;

    #[test]
    fn of_tasks_that_wait_together_those_alone_are_meant_that_are_named() {
        // Tasks 2 to 9 wait, and task 1 runs.
        let waiting = samples::array(11);
        let running = JobInfo { array: Some(waiting.id), task: Some(1), ..samples::job(12, "arrjob") };
        let meant = |word: &str, job: &JobInfo| {
            let (word, _) = berth_model::jobid::list(word).unwrap().remove(0);
            part(Some(&word), job).map(|part| part.to_string())
        };
        let of_waiting = waiting.sluid.map(|sluid| sluid.to_string());
        assert_eq!(part(None, &waiting).map(|part| part.to_string()), of_waiting);
        assert_eq!(meant("11", &waiting), of_waiting);
        assert_eq!(meant("11_3", &waiting).as_deref(), Some("11_3"));
        assert_eq!(meant("11_[1-3]", &waiting).as_deref(), Some("11_[2-3]"));
        for word in ["11_1", "11_[0-1]", "12_3", "12_[2-3]", "12"] {
            assert_eq!(meant(word, &waiting), None, "{word}");
        }
        for word in ["11", "11_1", "11_[1-3]", "12"] {
            assert_eq!(meant(word, &running).as_deref(), Some("12"), "{word}");
        }
        assert_eq!(meant("11_2", &running), None);
        // Who has no SLUID goes by the id alone.
        let unnamed = JobInfo { sluid: None, ..waiting };
        assert_eq!(part(None, &unnamed).map(|part| part.to_string()).as_deref(), Some("11"));
    }
}
