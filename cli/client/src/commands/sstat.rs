//! Shows what steps that run have used so far.
//!
//! Of each job that is named with -j the first of its steps that runs is shown, or all of them and the batch script with -a. Nodes say what
//! their steps use every ten seconds or so. Columns and widths are as in Slurm; a column that is not measured here is refused by
//! name. What steps used in all is on record when they have ended: sacct shows it.

use super::{view, words};
use crate::error::{Failure, Kind, Outcome};
use crate::fmt::sacct::{self, Column, Layout, Row, Style, Units};
use crate::getopt::{Arg, Refused, Spec, opt};
use crate::{Command, Invocation, block_on, out};
use berth_model::StepId;
use berth_model::query::JobQuery;
use berth_model::record::{JobInfo, StepInfo};

crate::doc::about!("sstat.rs");

/// The command.
pub const COMMAND: Command = Command { name: "sstat", run, submits: false, help: || SPEC.help() };

/// Options.
pub const SPEC: Spec = Spec {
    name: "sstat",
    usage: "[OPTION]... -j JOB[.STEP],...",
    about: ABOUT,
    options: &[
        opt("allsteps", Some('a'), Arg::None, "All steps of the jobs, the batch script included"),
        opt("format", Some('o'), Arg::Required("FIELDS"), "Columns: NAME[%[-]WIDTH],..."),
        opt("helpformat", Some('e'), Arg::None, "List the columns"),
        opt("jobs", Some('j'), Arg::Required("IDS"), "These jobs, array tasks or steps, by ids or SLUIDs"),
        opt("noconvert", None, Arg::None, "Sizes as stored"),
        opt("noheader", Some('n'), Arg::None, "No header"),
        opt("parsable", Some('p'), Arg::None, "'|' behind each column"),
        opt("parsable2", Some('P'), Arg::None, "'|' between columns"),
    ],
    refused: &[
        Refused {
            long: "pidformat",
            short: Some('i'),
            instead: "numbers of processes stay on their nodes: 'berth exec JOB.STEP ps' shows them",
        },
        Refused {
            long: "clusters",
            short: Some('M'),
            instead: "name another cluster's state directory with BERTH_STATE",
        },
    ],
};

/// Columns without `-o`.
const DEFAULT: &str = "jobid,alloctres,maxrss,avecpu,ntasks,tresusageinave,tresusageinmax,tresusageintot";

/// Columns that say something of a step that runs.
const FIELDS: &[&str] = &[
    "AllocTRES",
    "AveCPU",
    "AveGPUUtil",
    "GPUTime",
    "JobID",
    "MaxGPUMem",
    "MaxGPUUtil",
    "MaxRSS",
    "NodeList",
    "NTasks",
    "SLUID",
    "TRESUsageInAve",
    "TRESUsageInMax",
    "TRESUsageInTot",
];

fn run(call: &Invocation<'_>) -> Outcome {
    let parsed = SPEC.parse(&call.args)?;
    if let Some(word) = parsed.words.first() {
        let word = word.to_string_lossy();
        return Err(Failure::user(format!("Unknown argument: {word}\njobs are named with -j")));
    }
    if parsed.has("helpformat") {
        let lines = FIELDS.chunks(4).map(|line| {
            let cells: Vec<String> = line.iter().map(|name| format!("{name:<19}")).collect();
            cells.join(" ") + "\n"
        });
        out::print(&lines.collect::<String>())?;
        return Ok(0);
    }
    let columns = columns(&parsed.text("format").unwrap_or_else(|| DEFAULT.to_string()))?;
    let Some(text) = parsed.text("jobs") else {
        return Err(error("You didn't give me any jobs to stat.", Some("name them with -j")));
    };
    let wanted = berth_model::jobid::list(&text)
        .map_err(|e| error(&format!("Bad job/step specified: {text}"), Some(&e.to_string())))?;
    let layout = match (parsed.has("parsable2"), parsed.has("parsable")) {
        (true, _) => Layout::Between("|".to_string()),
        (_, true) => Layout::Ended("|".to_string()),
        _ => Layout::Table,
    };
    let units = if parsed.has("noconvert") { Units::Raw } else { Units::Whole };
    let site = call.site()?;
    block_on(async {
        let client = site.connect().await?;
        let jobs = client.jobs(&JobQuery::of(wanted.iter().map(|(selector, _)| selector))).await?;
        let style = Style { view: view(Some(&client)).await, units, live: true };
        let mut text = if parsed.has("noheader") { String::new() } else { sacct::header(&columns, &layout) };
        let mut complaints = Vec::new();
        for (selector, step) in &wanted {
            let found: Vec<&JobInfo> = jobs.iter().filter(|job| sacct::names(selector, job)).collect();
            if found.is_empty() {
                complaints.push(format!("couldn't get steps for JobId={selector}"));
            }
            for job in found {
                let rows = shown(job, *step, parsed.has("allsteps"));
                if rows.is_empty() {
                    complaints.push(nothing(job, *step));
                }
                let rows = rows.into_iter().map(|step| Row { job, step: Some(step) });
                text.extend(rows.map(|row| sacct::row(&columns, &layout, row, &style)));
            }
        }
        out::print(&text)?;
        complaints.iter().for_each(|line| out::complain(&format!("sstat: error: {line}")));
        Ok(0)
    })
}

/// The steps of a job that are shown: those that run.
fn shown(job: &JobInfo, named: Option<StepId>, all: bool) -> Vec<&StepInfo> {
    let run = job.steps.iter().filter(|step| step.ended.is_none());
    match named {
        Some(id) => run.filter(|step| step.id == id).collect(),
        None if all => run.collect(),
        None => run.filter(|step| matches!(step.id, StepId::Number(_))).take(1).collect(),
    }
}

fn nothing(job: &JobInfo, named: Option<StepId>) -> String {
    let id = job.id;
    match (named, shown(job, None, true).first()) {
        (Some(step), _) => format!("No steps running for JobId={id}.{step}"),
        (None, Some(step)) => {
            format!("No steps running for JobId={id} but {id}.{}: sstat -a shows it", step.id)
        }
        (None, None) => format!("No steps running for JobId={id}"),
    }
}

fn columns(format: &str) -> Result<Vec<Column>, Failure> {
    let all = words(format).iter().any(|word| word.eq_ignore_ascii_case("all"));
    let format = if all { FIELDS.join(",") } else { format.to_string() };
    let columns =
        sacct::columns(&format).map_err(|why| error(&why.replace("'sacct -e'", "'sstat -e'"), None))?;
    match columns.iter().find(|column| !FIELDS.contains(&column.field.name)) {
        Some(column) => {
            let name = column.field.name;
            Err(error(
                &format!("Invalid field requested: \"{name}\""),
                Some("'sstat -e' lists what there is"),
            ))
        }
        None => Ok(columns),
    }
}

fn error(what: &str, next: Option<&str>) -> Failure {
    let next = next.map(|next| format!("\nsstat: {next}")).unwrap_or_default();
    Failure::raw(Kind::User, format!("sstat: error: {what}{next}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::samples::{job, step};
    use berth_model::state::ExitStatus;

    #[test]
    fn the_first_step_that_runs_is_shown_or_all_of_them() {
        let mut j = job(7, "train");
        let running = |id| StepInfo { ended: None, ..step(id, "s", ExitStatus::default()) };
        j.steps = vec![
            running(StepId::Batch),
            step(StepId::Number(0), "s", ExitStatus::default()),
            running(StepId::Number(1)),
            running(StepId::Number(2)),
        ];
        j.steps[1].ended = Some(j.submitted);
        let ids = |named, all| shown(&j, named, all).iter().map(|s| s.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(None, false), ["1"]);
        assert_eq!(ids(None, true), ["batch", "1", "2"]);
        assert_eq!(ids(Some(StepId::Batch), false), ["batch"]);
        assert!(ids(Some(StepId::Number(0)), false).is_empty());
        j.steps.truncate(2);
        assert!(nothing(&j, None).ends_with("batch: sstat -a shows it"), "{}", nothing(&j, None));
    }

    #[test]
    fn columns_are_those_that_say_something_of_what_runs() {
        assert_eq!(columns(DEFAULT).unwrap().len(), 8);
        assert_eq!(columns("all").unwrap().len(), FIELDS.len());
        for (format, why) in
            [("bogus", "Invalid field"), ("state", "Invalid field"), ("maxpages", "not recorded")]
        {
            assert!(columns(format).unwrap_err().to_string().contains(why), "{format}");
        }
    }
}
