//! `berth exec`: a command or a shell in a container that runs on this machine, or in a job of the cluster.

use super::run::shell_command;
use crate::images;
use crate::local::exec::{self, Asked};
use crate::local::{self, records};
use berth_client::enter::{self, Enter};
use berth_client::error::{Failure, Outcome};
use berth_client::site::Site;
use berth_model::spec::JobSelector;
use berth_model::{ByteStr, NodeName, StepId, jobid};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Run a command in a running container or job
///
/// TARGET is the name of a container of yours that 'berth run --name' started on this machine, or a job of the cluster:
/// 12, 12_3 for a task of an array, 12.0 for a step. A job alone means its batch script, or its only step. The command runs in
/// that very container, as a further step of the job: it lists, traces and signals the job's processes, and has the environment,
/// the devices, the cores and the memory of what it enters. It ends with the job. Without a command it is the image's bash where
/// there is one, else its sh. The exit code is the command's.
#[derive(Debug, clap::Args)]
#[command(override_usage = "berth exec [OPTIONS] TARGET [COMMAND] [ARG]...")]
pub struct Args {
    /// Set a variable, over all others; without a value, the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Set the variables of a file with NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory, an absolute path [default: that of what is entered]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// Pass standard input on, also where there is no terminal: it always is
    #[arg(short, long)]
    interactive: bool,
    /// A terminal of its own even where standard input or output is none
    #[arg(short = 't', long, visible_alias = "tty")]
    pty: bool,
    /// The node, where a step has several
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// TARGET is a job, even where a container has that name
    #[arg(long, conflicts_with = "container")]
    job: bool,
    /// TARGET is a container, even where a job has that number
    #[arg(long)]
    container: bool,
    /// Refused: commands run as the user of what they enter
    #[arg(short, long, value_name = "USER", hide = true)]
    user: Option<OsString>,
    /// Refused: a command ends with the client that runs it
    #[arg(short, long, hide = true)]
    detach: bool,
    /// Refused: there is no privilege to add
    #[arg(long, hide = true)]
    privileged: bool,
    /// Container, job or step; then command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "TARGET")]
    words: Vec<OsString>,
}

/// What is entered.
enum Target {
    Container(records::Record),
    Job(JobSelector, Option<StepId>),
}

pub fn run(args: Args, state: Option<&Path>) -> Outcome {
    refuse(&args)?;
    let mut words = args.words.iter();
    let what = words.next().map(|w| w.to_string_lossy().into_owned()).unwrap_or_default();
    let mut command: Vec<OsString> = words.cloned().collect();
    let name = command.first().map_or_else(
        || "shell".to_string(),
        |program| Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned(),
    );
    if command.is_empty() {
        command = shell_command(None);
    }
    let mut env = Vec::new();
    for file in &args.env_file {
        env.extend(local::variables_of("--env-file", file)?);
    }
    for text in &args.env {
        env.extend(local::variable("--env", text)?);
    }
    let terminal = args.pty || local::has_terminal();
    if terminal && !env.iter().any(|(name, _)| name == "TERM") {
        env.extend(local::variable("TERM", "TERM".as_ref())?);
    }
    if args.workdir.as_ref().is_some_and(|dir| !dir.as_bytes().starts_with(b"/")) {
        return Err(Failure::user(format!(
            "--workdir: '{}' is not an absolute path in the container",
            args.workdir.unwrap_or_default().to_string_lossy()
        )));
    }
    match target(&args, &what, state)? {
        Target::Container(record) => {
            if args.node.is_some() {
                return Err(Failure::user(format!(
                    "--node: the container '{what}' runs on this machine: leave it out"
                )));
            }
            let asked = Asked::new(command, env, args.workdir, terminal);
            exec::enter("berth", &images::local_dir(state)?, &record, &asked)
        }
        Target::Job(job, step) => {
            let assignment = |(name, value): (OsString, OsString)| {
                ByteStr([name.as_bytes(), b"=", value.as_bytes()].concat())
            };
            let enter = Enter {
                job,
                step,
                node: args.node.map(NodeName),
                name,
                argv: command.into_iter().map(ByteStr::from).collect(),
                env: env.into_iter().map(assignment).collect(),
                work_dir: args.workdir.map(ByteStr::from),
                terminal,
            };
            enter::run(&Site::find(state)?, &enter)
        }
    }
}

/// What docker's users may say and is not offered: by name, with what to use instead.
fn refuse(args: &Args) -> Result<(), Failure> {
    let refused = |option: &str, instead: &str| Err(Failure::user(format!("{option}: {instead}")));
    if args.user.is_some() {
        return refused(
            "--user",
            "commands run as the user of what they enter: leave it out; root inside is 'berth run --container-remap-root' or \
             'srun --container-remap-root'",
        );
    }
    if args.detach {
        return refused(
            "--detach",
            "a command ends with the client that runs it: put & behind it, or submit it with sbatch",
        );
    }
    if args.privileged {
        return refused("--privileged", "there is no privilege to add: leave it out");
    }
    Ok(())
}

/// What is meant, where a container and a job may go by the same name.
fn target(args: &Args, what: &str, state: Option<&Path>) -> Result<Target, Failure> {
    let job = jobid::with_step(what).ok().filter(|_| !args.container);
    let container = match args.job {
        true => None,
        false => records::list(&images::local_dir(state)?)?.into_iter().find(|r| r.name == what),
    };
    match (container, job) {
        (Some(record), None) => Ok(Target::Container(record)),
        (None, Some((job, step))) => Ok(Target::Job(job, step)),
        (Some(record), Some((job, _))) => {
            // A machine without a cluster has no jobs.
            match Site::find(state).and_then(|site| enter::lives(&site, &job)) {
                Ok(true) => Err(Failure::user(format!(
                    "'{what}' is a container of this machine and a job of the cluster: say which with --container or --job"
                ))),
                Ok(false) | Err(_) => Ok(Target::Container(record)),
            }
        }
        (None, None) if args.job => Err(Failure::user(format!(
            "'{what}' is no job: write its number, as 'squeue --me' shows it: 12, 12_3 or 12.0"
        ))),
        (None, None) => Err(Failure::user(format!(
            "no container '{what}' of yours runs on this machine, and a job is named by its number (12, 12_3, 12.0): \
             'berth run --name {what}' starts one, 'squeue --me' lists your jobs"
        ))),
    }
}
