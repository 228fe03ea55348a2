//! Shows jobs on record, running and finished, and their steps.
//!
//! Without options: my jobs since midnight (all users' jobs for administrators). With -j, all of the record is
//! searched; -S and -E set the window otherwise. The first line of a job is its allocation, then come its batch
//! script and its steps. Columns, their widths and the variables SACCT_FORMAT and SLURM_TIME_FORMAT are as in Slurm;
//! a column that is not recorded here is refused by name.

use super::{command_line, found, job_state, nodes, now, view, words};
use crate::error::{Failure, Kind, Outcome};
use crate::fmt::sacct::{self, Layout, Row, Style, Units, names};
use crate::fmt::{job, json};
use crate::getopt::{Arg, Parsed, Refused, Spec, opt};
use crate::{Command, Invocation, block_on, out, variables};
use berth_model::query::AccountingQuery;
use berth_model::record::JobInfo;
use berth_model::spec::JobSelector;
use berth_model::stamp::TimeFormat;
use berth_model::state::JobState;
use berth_model::when::Sense;
use berth_model::{JobId, NodeName, StepId, Time, Uid};
use std::io::{self, Write};

crate::doc::about!("sacct.rs");

/// The command.
pub const COMMAND: Command = Command { name: "sacct", run, submits: false, help: || SPEC.help() };

/// Options.
pub const SPEC: Spec = Spec {
    name: "sacct",
    usage: "[OPTION]...",
    about: ABOUT,
    options: &[
        opt("accounts", Some('A'), Arg::Required("NAMES"), "Jobs of these accounts"),
        opt("allocations", Some('X'), Arg::None, "Allocations alone, without steps"),
        opt("allusers", Some('a'), Arg::None, "Jobs of all users"),
        opt("array", None, Arg::None, "A line for each waiting task of an array"),
        opt("brief", Some('b'), Arg::None, "Job, state and exit code alone"),
        opt("delimiter", None, Arg::Required("TEXT"), "Between columns with -p and -P instead of '|'"),
        opt(
            "duplicates",
            Some('D'),
            Arg::None,
            "Also earlier runs of requeued jobs, where they are on record",
        ),
        opt("endtime", Some('E'), Arg::Required("TIME"), "End of the window; now by default"),
        opt("format", Some('o'), Arg::Required("FIELDS"), "Columns: NAME[%[-]WIDTH],..."),
        opt("helpformat", Some('e'), Arg::None, "List the columns"),
        opt("jobs", Some('j'), Arg::Required("IDS"), "These jobs, array tasks or steps, by ids or SLUIDs"),
        opt("json", None, Arg::None, "As JSON"),
        opt("long", Some('l'), Arg::None, "Many columns"),
        opt("name", None, Arg::Required("NAMES"), "Jobs of these names"),
        opt("noconvert", None, Arg::None, "Sizes as stored, in M"),
        opt("nodelist", Some('N'), Arg::Required("NODES"), "Jobs that used one of these nodes"),
        opt("noheader", Some('n'), Arg::None, "No header"),
        opt("parsable", Some('p'), Arg::None, "'|' behind each column"),
        opt("parsable2", Some('P'), Arg::None, "'|' between columns"),
        opt("partition", Some('r'), Arg::Required("NAMES"), "Jobs of these partitions"),
        opt("starttime", Some('S'), Arg::Required("TIME"), "Start of the window; midnight by default"),
        opt("state", Some('s'), Arg::Required("STATES"), "Jobs that were in these states in the window"),
        opt("truncate", Some('T'), Arg::None, "Cut start and end to the window"),
        opt("units", None, Arg::Required("UNIT"), "Sizes in K, M, G, T or P"),
        opt("user", Some('u'), Arg::Required("NAMES"), "Jobs of these users"),
        opt("verbose", Some('v'), Arg::None, "Say which cluster is asked"),
    ],
    refused: &[
        Refused {
            long: "clusters",
            short: Some('M'),
            instead: "name another cluster's state directory with BERTH_STATE",
        },
        Refused { long: "allclusters", short: Some('L'), instead: "a state directory holds one cluster" },
        Refused { long: "federation", short: None, instead: "there are no federations" },
        Refused { long: "local", short: None, instead: "there are no federations, every record is local" },
        Refused {
            long: "batch-script",
            short: Some('B'),
            instead: "the script of a job is kept private; keep a copy of the file you submit",
        },
        Refused { long: "env-vars", short: None, instead: "environments are private to the job" },
        Refused {
            long: "completion",
            short: Some('c'),
            instead: "use -o jobid,uid,jobname,partition,nnodes,nodelist,state,end",
        },
        Refused { long: "qos", short: Some('q'), instead: "there are no QOS; select with -A or -r" },
        Refused { long: "wckeys", short: Some('W'), instead: "there are no workload characterisation keys" },
        Refused { long: "yaml", short: None, instead: "use --json" },
        Refused { long: "uid", short: None, instead: "use --user" },
        Refused { long: "gid", short: Some('g'), instead: "use -o group and filter with awk" },
        Refused { long: "nnodes", short: Some('i'), instead: "use -o nnodes and filter with awk" },
        Refused { long: "ncpus", short: Some('I'), instead: "use -o ncpus and filter with awk" },
        Refused { long: "constraints", short: Some('C'), instead: "nodes have no features" },
        Refused { long: "flags", short: Some('F'), instead: "job flags are not recorded" },
    ],
};

fn run(call: &Invocation<'_>) -> Outcome {
    let parsed = variables::read(&SPEC, &call.args)?;
    if !parsed.words.is_empty() {
        let words: Vec<_> = parsed.words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
        return Err(Failure::user(format!(
            "Unknown arguments:\n {}\njobs are named with -j",
            words.join(" ")
        )));
    }
    if parsed.has("helpformat") {
        out::print(&field_list())?;
        return Ok(0);
    }
    let columns = sacct::columns(&format(&parsed)).map_err(Failure::user)?;
    let layout = layout(&parsed);
    let units = units(&parsed)?;
    let window = Window::read(&parsed)?;
    let steps = ids(&parsed)?;
    let states = states(&parsed)?;
    let mut filter = Filter::read(&parsed)?;
    let site = call.site()?;
    if parsed.has("verbose") {
        out::complain(&format!("sacct: asking {}", site.endpoint.path().display()));
    }
    block_on(async {
        let client = site.connect().await?;
        filter.nodes = found(&client, std::mem::take(&mut filter.nodes)).await?;
        let view = view(Some(&client)).await;
        let mut jobs = client.accounting(&filter.query(&steps, &window)).await?;
        jobs.retain(|j| !job::is_spent(j) && filter.takes(j) && selected(&steps, j));
        if !states.is_empty() {
            jobs.retain(|j| sacct::in_state(j, &states, window.from, window.to));
        }
        if !parsed.has("duplicates") {
            latest_runs(&mut jobs);
        }
        if parsed.has("truncate") {
            jobs.iter_mut().for_each(|j| window.cut(j));
        }
        if parsed.has("array") {
            jobs = jobs.iter().flat_map(job::split).collect();
        }
        if parsed.has("json") {
            let command = command_line("sacct", &call.args);
            let mut out = io::stdout().lock();
            let written = json::write(
                &mut out,
                "jobs",
                &jobs,
                |j| json::account(j, &view).into(),
                (&command, &view.cluster),
            );
            return written.and_then(|()| out.flush()).map(|()| 0).map_err(|e| out::failed(&e));
        }
        let style = Style { view, units, live: false };
        let mut text = if parsed.has("noheader") { String::new() } else { sacct::header(&columns, &layout) };
        for job in &jobs {
            if whole(&steps, job) {
                text.push_str(&sacct::row(&columns, &layout, Row { job, step: None }, &style));
            }
            if parsed.has("allocations") {
                continue;
            }
            for step in job.steps.iter().filter(|s| wants_step(&steps, job, s.id)) {
                text.push_str(&sacct::row(&columns, &layout, Row { job, step: Some(step) }, &style));
            }
        }
        out::print(&text)?;
        Ok(0)
    })
}

fn format(parsed: &Parsed) -> String {
    parsed.text("format").unwrap_or_else(|| match (parsed.has("long"), parsed.has("brief")) {
        (true, _) => sacct::LONG.to_string(),
        (_, true) => sacct::BRIEF.to_string(),
        _ => std::env::var("SACCT_FORMAT").unwrap_or_else(|_| sacct::DEFAULT.to_string()),
    })
}

fn layout(parsed: &Parsed) -> Layout {
    let delimiter = parsed.text("delimiter").unwrap_or_else(|| "|".to_string());
    match (parsed.has("parsable2"), parsed.has("parsable")) {
        (true, _) => Layout::Between(delimiter),
        (_, true) => Layout::Ended(delimiter),
        _ => Layout::Table,
    }
}

fn units(parsed: &Parsed) -> Result<Units, Failure> {
    match parsed.text("units").as_deref() {
        _ if parsed.has("noconvert") => Ok(Units::Raw),
        None => Ok(Units::Whole),
        Some(text) => match text.to_ascii_uppercase().as_str() {
            unit @ ("K" | "M" | "G" | "T" | "P") => Ok(Units::In(unit.chars().next().unwrap_or('M'))),
            _ => Err(Failure::user(format!("--units={text}: expected K, M, G, T or P"))),
        },
    }
}

fn field_list() -> String {
    let mut text = String::new();
    for line in sacct::all().chunks(4) {
        let cells: Vec<String> = line.iter().map(|f| format!("{:<19}", f.name)).collect();
        text.push_str(&cells.join(" "));
        text.push('\n');
    }
    text
}

fn states(parsed: &Parsed) -> Result<Vec<JobState>, Failure> {
    let text = parsed.text("state").unwrap_or_default();
    words(&text)
        .iter()
        .map(|w| {
            job_state(w).ok_or_else(|| {
                let all: Vec<&str> = JobState::ALL.iter().map(|s| s.name()).collect();
                fatal(
                    &format!("unrecognized job state value '{w}'"),
                    &format!("states are {}", all.join(", ")),
                )
            })
        })
        .collect()
}

type Ids = Option<Vec<(JobSelector, Option<StepId>)>>;

fn ids(parsed: &Parsed) -> Result<Ids, Failure> {
    let Some(text) = parsed.text("jobs") else { return Ok(None) };
    berth_model::jobid::list(&text)
        .map(Some)
        .map_err(|e| fatal(&format!("Bad job/step specified: {text}"), &e.to_string()))
}

/// What is wrong, as Slurm introduces it, and what to do.
fn fatal(what: &str, next: &str) -> Failure {
    Failure::raw(Kind::User, format!("sacct: fatal: {what}\nsacct: {next}"))
}

fn selected(ids: &Ids, job: &JobInfo) -> bool {
    ids.as_ref().is_none_or(|list| list.iter().any(|(s, _)| names(s, job)))
}

/// Whether the allocation's own line is wanted: not when steps of it alone were named.
fn whole(ids: &Ids, job: &JobInfo) -> bool {
    ids.as_ref().is_none_or(|list| list.iter().any(|(s, step)| step.is_none() && names(s, job)))
}

fn wants_step(ids: &Ids, job: &JobInfo, id: StepId) -> bool {
    ids.as_ref().is_none_or(|list| list.iter().any(|(s, step)| names(s, job) && step.is_none_or(|w| w == id)))
}

/// Leaves the last run of each job: of a requeued one the record may hold several.
fn latest_runs(jobs: &mut Vec<JobInfo>) {
    let last: std::collections::BTreeMap<JobId, u32> =
        jobs.iter().fold(std::collections::BTreeMap::new(), |mut map, j| {
            let newest = map.entry(j.id).or_insert(0);
            *newest = (*newest).max(j.attempt.0);
            map
        });
    jobs.retain(|j| last.get(&j.id) == Some(&j.attempt.0));
}

/// The window of time asked about.
struct Window {
    from: Time,
    to: Time,
    given: bool,
}

impl Window {
    fn read(parsed: &Parsed) -> Result<Window, Failure> {
        let now = now();
        let zone = jiff::tz::TimeZone::system();
        let point = |name: &str| -> Result<Option<Time>, Failure> {
            let Some(text) = parsed.text(name) else { return Ok(None) };
            berth_model::when::parse(&text, now, &zone, Sense::Past).map(Some).map_err(|e| {
                Failure::raw(Kind::User, format!("Invalid time specification (pos=0): {text}\n{e}"))
            })
        };
        let (start, end) = (point("starttime")?, point("endtime")?);
        let midnight = berth_model::when::parse("today", now, &zone, Sense::Past).unwrap_or(now);
        let from = start.unwrap_or_else(|| match (parsed.has("jobs"), parsed.has("state")) {
            (true, _) => Time(0),
            (false, true) if end.is_none() => now,
            _ => midnight,
        });
        let to = end.unwrap_or(now);
        if from > to {
            let show = |t| TimeFormat::Iso.print(t, now, &zone);
            return Err(Failure::user(format!(
                "Start time ({}) requested is after end time ({}).",
                show(from),
                show(to)
            )));
        }
        Ok(Window { from, to, given: start.is_some() || end.is_some() || !parsed.has("jobs") })
    }

    /// Cuts a job's start and end to the window.
    fn cut(&self, job: &mut JobInfo) {
        job.started = job.started.map(|t| t.max(self.from));
        job.ended = job.ended.map(|t| t.min(self.to));
    }
}

/// Filters besides ids and states.
struct Filter {
    users: Vec<Uid>,
    names: Vec<String>,
    partitions: Vec<String>,
    accounts: Vec<String>,
    nodes: Vec<NodeName>,
}

impl Filter {
    fn read(parsed: &Parsed) -> Result<Filter, Failure> {
        let list = |name: &str| parsed.text(name).map(|l| words(&l)).unwrap_or_default();
        let mut users = Vec::new();
        for user in list("user") {
            let uid =
                crate::users::uid(&user).ok_or_else(|| Failure::user(format!("Invalid user id: {user}")))?;
            users.push(Uid(uid));
        }
        let me = nix::unistd::geteuid();
        if users.is_empty() && !me.is_root() && !parsed.has("allusers") && !parsed.has("jobs") {
            users.push(Uid(me.as_raw()));
        }
        Ok(Filter {
            users,
            names: list("name"),
            partitions: list("partition"),
            accounts: list("accounts"),
            nodes: parsed.text("nodelist").map(|l| nodes(&l)).transpose()?.unwrap_or_default(),
        })
    }

    fn query(&self, ids: &Ids, window: &Window) -> AccountingQuery {
        AccountingQuery {
            users: self.users.clone(),
            from: window.given.then_some(window.from),
            until: window.given.then_some(window.to),
            names: self.names.clone(),
            partitions: self.partitions.clone(),
            accounts: self.accounts.clone(),
            ..AccountingQuery::of(ids.iter().flatten().map(|(selector, _)| selector))
        }
    }

    fn takes(&self, job: &JobInfo) -> bool {
        self.nodes.is_empty() || job.layout.nodes.iter().any(|n| self.nodes.contains(n))
    }
}
