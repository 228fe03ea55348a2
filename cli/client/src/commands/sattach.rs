//! Attaches to a step that runs: what its tasks write from now on comes here, beside the srun that started it, and standard
//! input goes to its tasks.
//!
//! The step is named as JOB.STEP (12.0, 12_3.1) and is one's own; root attaches to any. Ctrl-C ends sattach alone, and so does
//! any other signal: the step goes on. Of a step over several components of a job all are heard, whichever is named. When its
//! input ends, that of the tasks does not. The exit code is the highest of the tasks', as srun's. When the connection to another
//! machine breaks, sattach goes on where it was, and nothing is lost. One that does not read for 20 seconds while there is output
//! for it, or is away for that long, is let go, so that it cannot hold the step up.

use crate::error::{Failure, Outcome};
use crate::getopt::{Arg, Parsed, Spec, opt};
use crate::step::{terminal, watch};
use crate::{Command, Invocation, block_on, enter, out};
use berth_model::hostlist;
use berth_model::launch::Layout;
use berth_model::record::{JobInfo, StepInfo};
use berth_model::{JobId, StepId, StepKey};
use berth_stream::ALL_TASKS;
use std::fmt::Write as _;

crate::doc::about!("sattach.rs");

/// The command.
pub const COMMAND: Command = Command { name: "sattach", run, submits: false, help: || SPEC.help() };

/// Options.
pub const SPEC: Spec = Spec {
    name: "sattach",
    usage: "[OPTION]... JOB.STEP",
    about: ABOUT,
    options: &[
        opt("error-filter", None, Arg::Required("TASK"), "Show standard error of this task alone"),
        opt("input-filter", None, Arg::Required("TASK"), "Send standard input to this task alone"),
        opt("label", Some('l'), Arg::None, "Put the number of its task before each line"),
        opt("layout", None, Arg::None, "Show which tasks are on which node, and exit"),
        opt("output-filter", None, Arg::Required("TASK"), "Show standard output of this task alone"),
        opt("pty", None, Arg::None, "Share the terminal of task 0, of a step that has one (srun --pty)"),
        opt("quiet", Some('Q'), Arg::None, "Say nothing of tasks that fail"),
        opt("verbose", Some('v'), Arg::None, "Tell of each node when there is a connection to it"),
    ],
    refused: &[],
};

fn run(call: &Invocation<'_>) -> Outcome {
    let parsed = SPEC.parse(&call.args)?;
    let [word] = parsed.words.as_slice() else {
        return Err(Failure::user("name one step, as JOB.STEP: sattach 12.0"));
    };
    let word = word.to_string_lossy();
    let (job, step) = berth_model::jobid::with_step(&word).map_err(|e| Failure::user(e.to_string()))?;
    let Some(step) = step else {
        return Err(Failure::user(format!(
            "'{word}' names no step: write JOB.STEP, such as {word}.0; 'squeue --steps' lists those that run"
        )));
    };
    let mut pty = parsed.has("pty");
    if pty && ["input-filter", "output-filter", "error-filter"].iter().any(|filter| parsed.has(filter)) {
        return Err(Failure::user("--pty is the terminal of task 0: leave the filters out"));
    }
    if pty && !terminal::is_terminal() {
        out::complain(
            "sattach: error: Not using a pseudo-terminal, disregarding --pty option: standard input is no terminal",
        );
        pty = false;
    }
    let site = call.site()?;
    block_on(async {
        let client = site.connect_patiently("sattach").await?;
        let job = enter::job(&client, &job).await?;
        let step = running(&job, step)?;
        let (key, parts, whole) = whole(job.id, step);
        if parsed.has("layout") {
            out::print(&layout(&whole))?;
            return Ok(0);
        }
        let only = |option| task(&parsed, option, &whole);
        let watched = watch::Watched {
            socket: site.attach.clone(),
            key,
            parts,
            layout: whole.clone(),
            label: parsed.has("label") && !pty,
            pty,
            input: if pty { 0 } else { only("input-filter")?.unwrap_or(ALL_TASKS) },
            stdout: only("output-filter")?,
            stderr: only("error-filter")?,
            quiet: parsed.has("quiet"),
            verbose: parsed.has("verbose"),
            client,
        };
        watch::watch(watched).await
    })
}

/// Which step that is, the part of it that each of its nodes has where it is in several components of a job, and its tasks: those of all parts.
fn whole(job: JobId, step: &StepInfo) -> (StepKey, Vec<StepKey>, Layout) {
    let parts = step.het.as_ref().map(|het| (het.of_nodes(), het));
    match parts.as_ref().and_then(|(parts, het)| Some((*parts.first()?, parts, &het.layout))) {
        Some((first, parts, layout)) => (first, parts.clone(), layout.clone()),
        None => {
            let key = StepKey { job, attempt: step.attempt, step: step.id };
            (key, Vec::new(), step.layout.clone())
        }
    }
}

/// The step, if it runs.
fn running(job: &JobInfo, id: StepId) -> Result<&StepInfo, Failure> {
    let ours = || job.steps.iter().filter(|s| s.attempt == job.attempt);
    match ours().find(|s| s.id == id) {
        Some(step) if step.ended.is_none() => Ok(step),
        Some(step) => Err(Failure::user(format!(
            "step {}.{id} is over ({}): only a step that runs can be attached to",
            job.id,
            step.state.name()
        ))),
        None => {
            let there: Vec<String> = ours().filter(|s| s.ended.is_none()).map(|s| s.id.to_string()).collect();
            let there = if there.is_empty() { "none".to_string() } else { there.join(", ") };
            Err(Failure::user(format!("job {} has no step {id}; of its steps these run: {there}", job.id)))
        }
    }
}

/// The task that a filter names.
fn task(parsed: &Parsed, option: &str, layout: &Layout) -> Result<Option<u32>, Failure> {
    let Some(text) = parsed.text(option) else { return Ok(None) };
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
    let tasks: Vec<u32> = layout.tasks.iter().flatten().copied().collect();
    match number.filter(|n| tasks.contains(n)) {
        Some(number) => Ok(Some(number)),
        None => Err(Failure::user(format!(
            "--{option}={text}: the step has the tasks 0 to {}: name one of them",
            tasks.iter().max().copied().unwrap_or_default()
        ))),
    }
}

/// As Slurm shows it.
fn layout(layout: &Layout) -> String {
    let names: Vec<&str> = layout.nodes.iter().map(|n| n.0.as_str()).collect();
    let tasks: usize = layout.tasks.iter().map(Vec::len).sum();
    let mut text = format!(
        "Job step layout:\n\t{tasks} tasks, {} nodes ({})\n\n",
        names.len(),
        hostlist::compress(&names)
    );
    for (at, (name, tasks)) in names.iter().zip(&layout.tasks).enumerate() {
        let list: String = tasks.iter().map(|task| format!("{task} ")).collect();
        let _ = writeln!(text, "\tNode {at} ({name}), {} task(s): {list}", tasks.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::samples;
    use berth_model::Attempt;
    use berth_model::het::HetStep;
    use berth_model::state::{ExitStatus, JobState};
    use std::ffi::OsString;

    fn two() -> Layout {
        Layout { nodes: vec!["n1".into(), "n2".into()], tasks: vec![vec![0, 2], vec![1]], cpus: vec![2, 1] }
    }

    #[test]
    fn the_layout_is_shown_as_slurm_shows_it() {
        assert_eq!(
            layout(&two()),
            "Job step layout:\n\t3 tasks, 2 nodes (n[1-2])\n\n\tNode 0 (n1), 2 task(s): 0 2 \n\tNode 1 (n2), 1 task(s): 1 \n"
        );
    }

    #[test]
    fn a_step_over_components_has_the_tasks_of_all_of_them() {
        let key = |job| StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Number(1) };
        let mut step = samples::step(StepId::Number(1), "s", ExitStatus::OK);
        assert_eq!(whole(JobId(8), &step), (key(8), Vec::new(), step.layout.clone()));
        let parts = vec![key(7), key(8)];
        step.het = Some(HetStep { parts, layout: two(), first_node: 1, begins: vec![0, 1] });
        assert_eq!(whole(JobId(8), &step), (key(7), vec![key(7), key(8)], two()));
    }

    #[test]
    fn a_filter_names_a_task_of_the_step() {
        let read = |word: &str| SPEC.parse(&[OsString::from(word), OsString::from("1.0")]).ok().unwrap();
        let only = |word: &str| task(&read(word), "output-filter", &two());
        assert_eq!(only("--output-filter=2"), Ok(Some(2)));
        assert_eq!(only("--label"), Ok(None));
        for word in ["3", "-1", "x", "", "99999999999"] {
            let why = only(&format!("--output-filter={word}")).unwrap_err().text;
            assert!(why.contains("the step has the tasks 0 to 2"), "{why}");
        }
    }

    #[test]
    fn a_step_that_does_not_run_is_named() {
        let mut job = samples::job(7, "x");
        let step = |id| samples::step(id, "s", ExitStatus::OK);
        job.steps = vec![step(StepId::Number(0)), StepInfo { ended: None, ..step(StepId::Number(1)) }];
        assert!(running(&job, StepId::Number(0)).unwrap_err().text.contains("step 7.0 is over"));
        assert!(running(&job, StepId::Number(5)).unwrap_err().text.contains("of its steps these run: 1"));
        assert_eq!(running(&job, StepId::Number(1)).unwrap().id, StepId::Number(1));
        job.state = JobState::Running;
    }
}
