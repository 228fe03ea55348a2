//! Submits a batch script: it is copied now and runs later, on the first node of its allocation.
//!
//! The script is a file, or standard input, or made of one command by --wrap. Its `#SBATCH` lines are options, too;
//! the environment (SBATCH_*) and the command line go before them. A `:` on the command line, or a line `#SBATCH hetjob`, begins
//! another component of the job: all start together, each with what it asks for, and the script runs in the first one.

use crate::error::{Failure, Outcome};
use crate::explain::Asked;
use crate::submit::{self, Read};
use crate::{Command, Invocation, block_on, het, out};
use berth_model::options::{self, Command as Submit, SubmitOptions};
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::request::{Payload, RefusalCode, Response};
use berth_model::spec::{BatchScript, JobSpec};
use berth_model::state::JobState;
use berth_model::{ByteStr, JobId};
use berth_rpc::{Client, RpcError};
use std::ffi::OsStr;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

/// The command.
pub const COMMAND: Command =
    Command { name: "sbatch", run, submits: true, help: || options::help(Submit::Sbatch) };

/// A script and what it is called.
struct Script {
    text: ByteStr,
    args: Vec<ByteStr>,
    name: String,
    command: ByteStr,
}

fn run(call: &Invocation<'_>) -> Outcome {
    let mut parts = match submit::parts(Submit::Sbatch, call)? {
        Read::Told => return Ok(0),
        Read::Parts(parts) => parts,
    };
    // --wrap decides what the words are; it can stand on the command line and in the environment alone.
    let mut own = parts.first().map(|part| part.settings.clone()).unwrap_or_default();
    let of_all = parts.iter().skip(1).flat_map(|part| &part.settings).filter(|s| s.row.long == "wrap");
    own.extend(of_all.cloned());
    let early = submit::resolve(Submit::Sbatch, own, Vec::new())?;
    let rest = parts.last_mut().map(|part| std::mem::take(&mut part.rest)).unwrap_or_default();
    let script = script(&early, rest)?;
    let bad = |e| submit::bad_option(Submit::Sbatch, &e);
    berth_model::sbatch::check(&script.text.0).map_err(bad)?;
    let directives = berth_model::sbatch::directives(&script.text.0).map_err(bad)?;
    if !early.ignore_pbs && !early.quiet {
        for line in &directives.foreign {
            out::complain(&format!("sbatch: warning: {line}"));
        }
    }
    let written = std::iter::once(directives.settings).chain(directives.components).collect();
    let all = het::resolve(Submit::Sbatch, parts, written)?;
    let by = submit::submitter(call, script.name, script.command)?;
    let components = het::components(Submit::Sbatch, &all, &by, call)?;
    let (Some(options), Some(leader)) = (all.first(), components.first()) else { return Ok(0) };
    submit::warn(Submit::Sbatch, &missing(options, &leader.spec), options.quiet);
    let env = options.environment(&submit::environment(), &by, false);
    let payload =
        Payload { script: Some(BatchScript { text: script.text, args: script.args }), env, login: None };
    let site = call.site()?;
    submit::announce(options, &site);
    block_on(async {
        let client = site.connect_patiently("sbatch").await?;
        if let Some(format) = options.explain {
            het::one_alone(&all, "--explain")?;
            let (job, step) = (Some(&leader.spec), None);
            let command = Submit::Sbatch;
            return Asked { command, call, format, job, step, payload: &payload }.outside(&client).await;
        }
        let components = het::seal(&components, payload, call, &client).await?;
        let response = submit::submit_het(Submit::Sbatch, &client, &components, options.test_only).await;
        let response = response.map_err(|e| failed(e, options.test_only))?;
        if options.test_only {
            return submit::would_start(Submit::Sbatch, &response);
        }
        let Response::Submitted { job, notes, .. } = response else { return Ok(0) };
        submit::warn(Submit::Sbatch, &notes, options.quiet);
        if options.parsable {
            out::print(&format!("{job}\n"))?;
        } else if !options.quiet {
            out::print(&format!("Submitted batch job {job}\n"))?;
        }
        if options.wait { wait(&client, job, options.array.is_some()).await } else { Ok(0) }
    })
}

/// Directories that the options name and that are not here. They may be made before the job starts, or be its node's.
fn missing(options: &SubmitOptions, spec: &JobSpec) -> Vec<String> {
    let work_dir = spec.work_dir.as_path();
    let of_file = |long: &'static str, name: &Option<ByteStr>| {
        let directory = work_dir.join(name.as_ref()?.as_path()).parent()?.to_path_buf();
        // What a pattern stands for is not known yet.
        let known = !directory.as_os_str().as_encoded_bytes().contains(&b'%');
        known.then_some((long, directory))
    };
    // In a container the script begins elsewhere, and its outputs are below this directory all the same.
    let relative = |name: &ByteStr| !name.0.starts_with(b"/");
    let used = spec.container.is_none()
        || options.output.as_ref().is_none_or(relative)
        || options.error.as_ref().is_some_and(relative);
    let own = (options.source("chdir").is_some() && used).then(|| ("chdir", work_dir.to_path_buf()));
    let named = [own, of_file("output", &options.output), of_file("error", &options.error)];
    let mut gone: Vec<_> = named.into_iter().flatten().filter(|(_, directory)| !directory.is_dir()).collect();
    gone.dedup_by(|a, b| a.1 == b.1);
    gone.into_iter()
        .map(|(long, directory)| {
            format!(
                "--{long}: there is no directory {} here; the job fails unless its node has it when it starts",
                directory.display()
            )
        })
        .collect()
}

fn failed(e: RpcError, test_only: bool) -> Failure {
    match e {
        RpcError::Refused(refusal) if test_only => submit::not_even_then(&refusal),
        e => submit::refused(Submit::Sbatch.failed(), e),
    }
}

fn script(options: &SubmitOptions, words: Vec<ByteStr>) -> Result<Script, Failure> {
    if let Some(command) = &options.wrap {
        if !words.is_empty() {
            return Err(Failure::user(
                "Script arguments not permitted with --wrap option\nwrite the whole command as --wrap's value",
            ));
        }
        let text = berth_model::sbatch::wrap(command);
        return Ok(Script { text, args: Vec::new(), name: "wrap".to_string(), command: "wrap".into() });
    }
    let mut words = words.into_iter();
    let Some(file) = words.next() else {
        let mut text = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut text)
            .map_err(|e| Failure::user(format!("cannot read the script from standard input: {e}")))?;
        let script = Script {
            text: ByteStr(text),
            args: Vec::new(),
            name: "sbatch".into(),
            command: ByteStr::default(),
        };
        return Ok(script);
    };
    let path = file.as_path();
    let unable = |why: String| Failure::user(format!("Unable to open file {}: {why}", file.display()));
    let kind = std::fs::metadata(path).map_err(|e| unable(crate::error::io_text(&e)))?;
    if kind.is_dir() {
        return Err(unable("it is a directory; name the script in it".to_string()));
    }
    let text = std::fs::read(path).map_err(|e| unable(crate::error::io_text(&e)))?;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    Ok(Script {
        text: ByteStr(text),
        args: words.collect(),
        name: name_of(path),
        command: ByteStr::from(absolute.as_path()),
    })
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(OsStr::new("sbatch")).to_string_lossy().into_owned()
}

/// `--wait`: until the job, or every task of the array, is over; then the highest exit code.
async fn wait(client: &Client, job: JobId, array: bool) -> Outcome {
    if !array {
        let mut records = submit::records(client, job).await?;
        loop {
            let now = records.borrow_and_update().clone();
            if let Some(info) = now.filter(|i| i.state.is_terminal()) {
                tell(&info);
                return Ok(code(&info));
            }
            if records.changed().await.is_err() {
                break;
            }
        }
    }
    let query = JobQuery { ids: vec![job], include_finished: true, ..JobQuery::default() };
    let mut pause = Duration::from_millis(100);
    loop {
        let query = &query;
        let jobs = client.persist(None, |client| async move { client.jobs(query).await }).await;
        // Without its tasks the record of an array says nothing.
        match jobs.map(|jobs| jobs.into_iter().filter(|j| !crate::fmt::job::is_spent(j)).collect::<Vec<_>>())
        {
            Ok(jobs) if jobs.is_empty() => {
                return Err(Failure::user(format!("job {job} is not known any more; see sacct -j {job}")));
            }
            Ok(jobs) if jobs.iter().all(|j| j.state.is_terminal()) => {
                jobs.iter().for_each(tell);
                return Ok(jobs.iter().map(code).max().unwrap_or(0));
            }
            Err(RpcError::Refused(r)) if r.code == RefusalCode::NotFound => return Err(r.into()),
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Says what kept a job from starting: there is no output that could.
fn tell(job: &JobInfo) {
    if let Some(why) = crate::fmt::job::failure(job) {
        out::complain(&format!("sbatch: error: job {}: {why}", job.id));
    }
}

/// The job's exit code; 1 for one that a signal ended or that did not come so far.
fn code(job: &JobInfo) -> u8 {
    match (job.exit.signal, job.exit.code) {
        (0, 0) if job.state == JobState::Completed => 0,
        (0, 0) => 1,
        (0, code) => code,
        _ => 1,
    }
}
