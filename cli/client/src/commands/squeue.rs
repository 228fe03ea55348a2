//! Shows jobs that wait or run, or the steps of running jobs.
//!
//! Without options: all jobs that are not over, ordered by partition, state and priority. A waiting job shows
//! its reason in parentheses in the last column, a running one its nodes. The waiting tasks of an array share a
//! line. Formats, letters and names of fields, and the variables SQUEUE_FORMAT, SQUEUE_FORMAT2, SQUEUE_SORT,
//! SQUEUE_STATES, SQUEUE_PARTITION, SQUEUE_USERS, SQUEUE_NAMES, SQUEUE_ACCOUNT, SQUEUE_ARRAY and SQUEUE_ALL are as in Slurm.

use super::{command_line, found, job_state, nodes, view, words};
use crate::error::{Failure, Kind, Outcome};
use crate::fmt::cells::{Cell, Format};
use crate::fmt::squeue::{self, Field, StepField};
use crate::fmt::{View, job, json};
use crate::getopt::{Arg, Parsed, Refused, Spec, opt};
use crate::{Command, Invocation, block_on, listing, out, variables};
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::spec::JobSelector;
use berth_model::state::JobState;
use berth_model::{JobId, NodeName, StepId};
use berth_rpc::Client;
use std::io::{self, Write};

crate::doc::about!("squeue.rs");

/// The command.
pub const COMMAND: Command = Command { name: "squeue", run, submits: false, help: || SPEC.help() };

/// Options.
pub const SPEC: Spec = Spec {
    name: "squeue",
    usage: "[OPTION]...",
    about: ABOUT,
    options: &[
        opt("account", Some('A'), Arg::Required("NAMES"), "Jobs of these accounts"),
        opt("all", Some('a'), Arg::None, "Jobs of all partitions (nothing is hidden anyway)"),
        opt("array", Some('r'), Arg::None, "A line for each task of an array"),
        listing::FORMAT,
        listing::FIELDS,
        listing::ITERATE,
        opt(
            "jobs",
            Some('j'),
            Arg::Ids("IDS"),
            "These jobs, arrays or array tasks, by ids or SLUIDs; with -s of these jobs",
        ),
        opt("json", None, Arg::None, "As JSON"),
        listing::LONG,
        opt("me", None, Arg::None, "My jobs"),
        opt("name", Some('n'), Arg::Required("NAMES"), "Jobs of these names"),
        opt("nodelist", Some('w'), Arg::Required("NODES"), "Jobs that use one of these nodes"),
        listing::NOHEADER,
        opt("only-job-state", None, Arg::None, "Ids and states alone"),
        opt("partition", Some('p'), Arg::Required("NAMES"), "Jobs of these partitions"),
        listing::SORT,
        opt("start", None, Arg::None, "Waiting jobs with their expected start, as far as it is known"),
        opt("states", Some('t'), Arg::Required("STATES"), "Jobs in these states, or 'all'"),
        opt("steps", Some('s'), Arg::Ids("IDS"), "Steps instead of jobs"),
        opt("user", Some('u'), Arg::Required("NAMES"), "Jobs of these users"),
        opt("verbose", Some('v'), Arg::None, "Say which cluster is asked"),
    ],
    refused: &[
        Refused {
            long: "clusters",
            short: Some('M'),
            instead: "name another cluster's state directory with BERTH_STATE",
        },
        Refused { long: "federation", short: None, instead: "there are no federations" },
        Refused { long: "local", short: None, instead: "there are no federations, every listing is local" },
        Refused { long: "sibling", short: None, instead: "there are no federations" },
        Refused { long: "licenses", short: Some('L'), instead: "licenses are not counted" },
        Refused { long: "reservation", short: Some('R'), instead: "there are no reservations" },
        Refused {
            long: "qos",
            short: Some('q'),
            instead: "there are no QOS; select with --account or --partition",
        },
        Refused {
            long: "priority",
            short: Some('P'),
            instead: "a job has one partition, so every job has one line",
        },
        Refused { long: "hide", short: None, instead: "no partition is hidden" },
        Refused { long: "yaml", short: None, instead: "use --json" },
        Refused { long: "notme", short: None, instead: "use -o and filter with awk" },
    ],
};

/// What to show, with options and environment put together.
struct Request {
    selectors: Option<Vec<(JobSelector, Option<StepId>)>>,
    states: Option<Vec<JobState>>,
    users: Vec<String>,
    names: Vec<String>,
    partitions: Vec<String>,
    accounts: Vec<String>,
    nodes: Vec<NodeName>,
    start: bool,
}

fn run(call: &Invocation<'_>) -> Outcome {
    let parsed = variables::read(&SPEC, &call.args)?;
    if let Some(extra) = parsed.words.first() {
        return Err(Failure::user(format!(
            "Unrecognized option: {0}\njobs are named with -j: squeue -j {0}",
            extra.to_string_lossy()
        )));
    }
    if parsed.has("only-job-state")
        && let Some(other) =
            ["format", "Format", "json", "long", "start", "steps"].iter().find(|o| parsed.has(o))
    {
        return Err(Failure::user(format!(
            "--only-job-state shows ids and states alone, and --{other} something else: give one of them"
        )));
    }
    let mut request = request(&parsed)?;
    let every = listing::pause(&parsed)?;
    let site = call.site()?;
    if parsed.has("verbose") {
        out::complain(&format!("squeue: asking {}", site.endpoint.path().display()));
    }
    block_on(async {
        let client = site.connect().await?;
        request.nodes = found(&client, std::mem::take(&mut request.nodes)).await?;
        loop {
            show(&client, &request, &parsed, call).await?;
            match every {
                None => return Ok(0),
                Some(pause) => tokio::time::sleep(pause).await,
            }
            out::print("\n")?;
        }
    })
}

fn setting(parsed: &Parsed, option: &str, variable: &str) -> Option<String> {
    parsed.text(option).or_else(|| std::env::var(variable).ok().filter(|v| !v.is_empty()))
}

fn request(parsed: &Parsed) -> Result<Request, Failure> {
    let ids = parsed.text("jobs").or_else(|| parsed.text("steps"));
    let selectors = match ids {
        None => None,
        Some(text) => {
            let bad = |_| {
                Failure::user(format!(
                    "Invalid job id: {text}\nwrite JOB, ARRAY_TASK, ARRAY_[TASKS] or a SLUID"
                ))
            };
            Some(berth_model::jobid::list(&text).map_err(bad)?)
        }
    };
    let states = match setting(parsed, "states", "SQUEUE_STATES") {
        None => None,
        Some(text) if text.eq_ignore_ascii_case("all") => Some(JobState::ALL.to_vec()),
        Some(text) => Some(
            words(&text)
                .iter()
                .map(|w| {
                    job_state(w).ok_or_else(|| {
                        let valid: Vec<String> =
                            JobState::ALL.iter().map(|s| s.name().to_lowercase()).collect();
                        Failure::user(format!(
                            "Invalid job state specified: {w}\nValid job states include: {}",
                            valid.join(",")
                        ))
                    })
                })
                .collect::<Result<_, _>>()?,
        ),
    };
    let mut users = setting(parsed, "user", "SQUEUE_USERS").map(|l| words(&l)).unwrap_or_default();
    if parsed.has("me") {
        users.push(nix::unistd::geteuid().to_string());
    }
    let list = |option: &str, variable: &str| {
        setting(parsed, option, variable).map(|l| words(&l)).unwrap_or_default()
    };
    Ok(Request {
        selectors,
        states,
        users,
        names: list("name", "SQUEUE_NAMES"),
        partitions: list("partition", "SQUEUE_PARTITION"),
        accounts: list("account", "SQUEUE_ACCOUNT"),
        nodes: parsed.text("nodelist").map(|l| nodes(&l)).transpose()?.unwrap_or_default(),
        start: parsed.has("start"),
    })
}

/// Prints the list.
async fn show(
    client: &Client,
    request: &Request,
    parsed: &Parsed,
    call: &Invocation<'_>,
) -> Result<(), Failure> {
    let json = parsed.has("json");
    let by_name = parsed.text("Format").or_else(|| std::env::var("SQUEUE_FORMAT2").ok());
    let names_cluster = json
        || by_name.as_ref().is_some_and(|names| {
            let names = names.to_ascii_lowercase();
            names.contains("cluster") || names.trim() == "all"
        });
    let view = view(names_cluster.then_some(client)).await;
    let whole = json || parsed.has("steps");
    let states_alone = parsed.has("only-job-state");
    let cells = match (whole, states_alone) {
        (true, _) => Vec::new(),
        (_, true) => squeue::by_letters(squeue::STATES).cells,
        _ => columns(parsed, by_name, request.start),
    };
    let default_sort = match (request.start, states_alone) {
        (true, _) => "S,P,-p",
        (_, true) => "t,-i",
        _ => "P,t,-p",
    };
    let sort = match parsed.text("sort") {
        Some(text) => text,
        None => std::env::var("SQUEUE_SORT").unwrap_or_else(|_| default_sort.to_string()),
    };
    let keys = squeue::sort_keys(&sort).map_err(|k| {
        Failure::user(format!("Invalid sort specification: {k}\nkeys are letters of -o, such as P,t,-p"))
    })?;
    let shown = cells.iter().filter_map(|cell| cell.field).chain(keys.iter().map(|(field, _)| *field));
    let brief = !whole && shown.into_iter().all(squeue::Field::is_brief);
    let include_finished =
        request.selectors.is_some() || request.states.is_some() || !request.users.is_empty();
    let named = request.selectors.iter().flatten().map(|(selector, _)| selector);
    let query = JobQuery { include_finished, brief, ..JobQuery::of(named) };
    let all = client.jobs(&query).await?;
    check(client, request, &all).await?;
    let mut jobs: Vec<JobInfo> = all.into_iter().filter(|j| wanted(request, j)).collect();
    if parsed.has("array") || std::env::var_os("SQUEUE_ARRAY").is_some() {
        jobs = jobs.iter().flat_map(job::split).filter(|j| selected(request, j)).collect();
    }
    squeue::sort(&mut jobs, &keys, &view);
    if states_alone {
        jobs.iter_mut().for_each(squeue::without_throttle);
    }
    if json {
        let command = command_line("squeue", &call.args);
        let mut out = io::stdout().lock();
        let written =
            json::write(&mut out, "jobs", &jobs, |j| json::job(j, &view), (&command, &view.cluster));
        return written.and_then(|()| out.flush()).map_err(|e| out::failed(&e));
    }
    let header = !parsed.has("noheader");
    let mut text = String::new();
    if parsed.has("long") && header {
        text.push_str(&view.banner());
        text.push('\n');
    }
    if parsed.has("steps") {
        text.push_str(&steps(&jobs, request, parsed, &view, header));
        return out::print(&text);
    }
    if header {
        text.push_str(&squeue::header(&cells));
    }
    for job in &jobs {
        text.push_str(&squeue::row(&cells, job, &view));
    }
    out::print(&text)
}

/// A single id that names nothing, an unknown user and an unknown node are told.
async fn check(client: &Client, request: &Request, all: &[JobInfo]) -> Result<(), Failure> {
    if request.selectors.as_ref().is_some_and(|s| s.len() == 1) && all.is_empty() {
        return Err(Failure::raw(Kind::User, "slurm_load_jobs error: Invalid job id specified"));
    }
    for user in &request.users {
        if crate::users::uid(user).is_none() && !all.iter().any(|j| j.identity.user == *user) {
            out::complain(&format!("squeue: error: Invalid user: {user}"));
        }
    }
    if !request.nodes.is_empty() {
        let known = client.nodes().await?;
        if let Some(unknown) = request.nodes.iter().find(|n| !known.iter().any(|k| k.name == **n)) {
            return Err(Failure::user(format!("Invalid node name {unknown}\n'sinfo -N' lists the nodes")));
        }
    }
    Ok(())
}

fn wanted(request: &Request, job: &JobInfo) -> bool {
    let state = match &request.states {
        Some(states) => states.contains(&job.state),
        None => squeue::active(job.state) && (!request.start || job.state == JobState::Pending),
    };
    let listed = |list: &[String], value: &str| list.is_empty() || list.iter().any(|w| w == value);
    state
        && !job::is_spent(job)
        && selected(request, job)
        && (request.users.is_empty()
            || request.users.iter().any(|u| *u == job.identity.user || *u == job.identity.uid.to_string()))
        && listed(&request.names, &job.spec.name)
        && listed(&request.partitions, &job.partition)
        && listed(&request.accounts, job.spec.account.as_deref().unwrap_or(""))
        && (request.nodes.is_empty() || job.layout.nodes.iter().any(|n| request.nodes.contains(n)))
}

/// Whether one of the ids names the job, or one of the tasks that its line stands for.
fn selected(request: &Request, job: &JobInfo) -> bool {
    let Some(selectors) = &request.selectors else { return true };
    let in_array = |array: JobId| job.array == Some(array);
    let has = |index: u32| job.task == Some(index) || job.waiting.as_ref().is_some_and(|w| w.contains(index));
    selectors.iter().any(|(selector, _)| match selector {
        JobSelector::Job(id) => {
            job.id == *id || in_array(*id) || job.spec.het.is_some_and(|het| het.leader == *id)
        }
        JobSelector::Component(leader, offset) => {
            job.spec.het.is_some_and(|het| het.leader == *leader && het.offset == *offset)
        }
        JobSelector::Task(array, index) => in_array(*array) && has(*index),
        JobSelector::Tasks(array, set) => in_array(*array) && set.iter().any(has),
        JobSelector::Sluid(sluid) => job.sluid == Some(*sluid),
    })
}

fn warn<F>(format: &Format<F>) {
    for letter in &format.unknown {
        out::complain(&format!("squeue: error: Invalid job format specification: {letter}"));
    }
}

fn columns(parsed: &Parsed, by_name: Option<String>, start: bool) -> Vec<Cell<&'static Field>> {
    let default = match (start, parsed.has("long")) {
        (true, _) => squeue::START,
        (_, true) => squeue::LONG,
        _ => squeue::DEFAULT,
    };
    let own = parsed.text("format").or_else(|| std::env::var("SQUEUE_FORMAT").ok());
    let format = match (by_name, own) {
        (Some(names), None) => squeue::by_names(&names),
        (Some(names), Some(_)) if parsed.has("Format") => squeue::by_names(&names),
        (_, Some(letters)) => squeue::by_letters(&letters),
        (None, None) => squeue::by_letters(default),
    };
    warn(&format);
    format.cells
}

fn steps(jobs: &[JobInfo], request: &Request, parsed: &Parsed, view: &View, header: bool) -> String {
    let format = match (parsed.text("Format"), parsed.text("format")) {
        (Some(names), _) => squeue::steps_by_names(&names),
        (None, letters) => squeue::steps_by_letters(letters.as_deref().unwrap_or(squeue::STEPS)),
    };
    warn(&format);
    let cells: Vec<Cell<&'static StepField>> = format.cells;
    let mut text = if header { squeue::step_header(&cells) } else { String::new() };
    for job in jobs {
        let named = |id: StepId| {
            request
                .selectors
                .as_ref()
                .is_none_or(|list| list.iter().any(|(_, step)| step.is_none_or(|s| s == id)))
        };
        let mut steps: Vec<_> = job.steps.iter().filter(|s| s.ended.is_none() && named(s.id)).collect();
        // Numbered steps first.
        steps.sort_by_key(|s| (!matches!(s.id, StepId::Number(_)), s.id));
        for step in steps {
            text.push_str(&squeue::step_row(&cells, job, step, view));
        }
    }
    text
}
