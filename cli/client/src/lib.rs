//! The commands that speak to a cluster: srun, sbatch, salloc, sattach, sbcast, squeue, sinfo, scancel, scontrol, sacct, sstat.
//!
//! One file per command; its doc comment is its help. Nothing here needs a TLS stack or more of the name service
//! than a static C library has, so that `berth-step` can be the same commands inside a container: images are
//! resolved by an [`ImageResolver`] that the program lends, or by the node.
#![forbid(unsafe_code)]

pub mod agent;
pub mod bcast;
pub mod commands;
mod doc;
pub mod enter;
pub mod error;
pub mod explain;
pub mod fmt;
pub mod getopt;
mod het;
mod image;
pub mod kept;
mod listing;
mod local_names;
pub mod login;
pub mod out;
mod rsh;
pub mod site;
pub mod step;
pub mod submit;
pub mod users;
mod variables;
mod x11;

use berth_model::config::ImagesConfig;
use berth_model::login::{Login, SealedLogin};
use berth_model::spec::ResolvedImage;
use berth_model::{ByteStr, mpirun};
pub use commands::now;
use error::{Failure, Kind, Outcome};
use site::Site;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the full program does for the commands and a client inside a container cannot.
pub trait ImageResolver {
    /// Whether a job of this account may have what an image reference as typed names, as far as the name says where it comes
    /// from; nobody is asked. The refusal names the rule, and says what to do.
    fn admits(&self, typed: &str, rules: &ImagesConfig, account: Option<&str>) -> Result<(), String>;

    /// What an image reference as typed means now, with the caller's own credentials: the pinned image, or one line that names the
    /// reference, the reason and the next step. And the login with which its registry was asked, where it wanted one. Registries are
    /// reached as `config` says, where it is known; no image where that names gateways, and these are to ask for this machine: then the
    /// login is the one that they need.
    fn resolve(
        &self,
        typed: &str,
        config: Option<&ImagesConfig>,
    ) -> Result<(Option<ResolvedImage>, Option<Login>), String>;

    /// Seals the caller's login to the cluster's public key.
    fn seal(&self, key: &ByteStr, login: &Login) -> Result<SealedLogin, String>;

    /// Plans a step as its node would, and prints the plan: see [`explain`].
    fn explain(
        &self,
        step: &explain::Explained,
        format: berth_model::options::Explain,
    ) -> Result<String, Failure>;
}

/// What a command is told besides its arguments.
pub struct Invocation<'a> {
    /// The command's name.
    pub name: &'static str,
    /// Arguments after the name.
    pub args: Vec<OsString>,
    /// The state directory named before the command (`berth --state DIR squeue`).
    pub state: Option<PathBuf>,
    /// Resolves images; absent inside containers.
    pub resolver: Option<&'a dyn ImageResolver>,
}

impl Invocation<'_> {
    /// Finds the cluster.
    pub fn site(&self) -> Result<Site, Failure> {
        Site::find(self.state.as_deref())
    }
}

/// A command of this package.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(&Invocation<'_>) -> Outcome,
    /// Whether it submits work: malformed options exit with 255.
    pub submits: bool,
    /// Its help, complete.
    pub help: fn() -> String,
}

/// All commands.
pub const COMMANDS: &[Command] = &[
    commands::squeue::COMMAND,
    commands::sinfo::COMMAND,
    commands::scancel::COMMAND,
    commands::scontrol::COMMAND,
    commands::sacct::COMMAND,
    commands::sstat::COMMAND,
    commands::srun::COMMAND,
    commands::sbatch::COMMAND,
    commands::salloc::COMMAND,
    commands::sattach::COMMAND,
    commands::sbcast::COMMAND,
];

/// The command of that name.
pub fn command(name: &OsStr) -> Option<&'static Command> {
    COMMANDS.iter().find(|c| OsStr::new(c.name) == name)
}

/// What `--version` prints.
pub fn version_line() -> String {
    format!("berth {VERSION}\n")
}

/// Runs the command that `argv[0]` names, whatever directory stands before it.
pub fn main_by_name(argv: Vec<OsString>, resolver: Option<&dyn ImageResolver>) -> ExitCode {
    run(argv, None, resolver)
}

/// As [`main_by_name`], with the state directory named.
pub fn run(argv: Vec<OsString>, state: Option<PathBuf>, resolver: Option<&dyn ImageResolver>) -> ExitCode {
    let mut args = argv.into_iter();
    let first = PathBuf::from(args.next().unwrap_or_default());
    let name = first.file_name().unwrap_or_default();
    if name == mpirun::PROGRAM {
        return match rsh::to_srun(args.collect(), std::env::var_os("SLURM_JOB_ID").is_some()) {
            Ok(words) => run(words, state, resolver),
            Err(why) => {
                out::complain(&format!("{}: error: {why}", mpirun::PROGRAM));
                // As ssh ends where it does not come to the command.
                ExitCode::from(255)
            }
        };
    }
    let Some(command) = command(name) else {
        let known: Vec<&str> = COMMANDS.iter().map(|c| c.name).collect();
        out::complain(&format!(
            "berth: error: '{}' is no command; these are: {}",
            name.to_string_lossy(),
            known.join(", ")
        ));
        return ExitCode::from(1);
    };
    let invocation = Invocation { name: command.name, args: args.collect(), state, resolver };
    finish(command.name, command.submits, (command.run)(&invocation))
}

/// Prints a failure and gives the exit code.
pub fn finish(name: &str, submits: bool, outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let text = failure.report(name);
            if !text.is_empty() {
                out::complain(text.trim_end_matches('\n'));
            }
            ExitCode::from(failure.exit_code(submits))
        }
    }
}

/// Runs a command's asynchronous part on this thread.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut outcome = None;
    drive(Box::pin(async { outcome = Some(work.await) }))?;
    outcome.unwrap_or_else(|| Err(Failure::new(Kind::Internal, "ended without an outcome")))
}

/// Whatever the work is, tokio's part of running it is compiled once.
fn drive(work: Pin<Box<dyn Future<Output = ()> + '_>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot start: {e}")))?;
    runtime.block_on(work);
    // Nothing that still waits on the network matters after the answer.
    runtime.shutdown_background();
    Ok(())
}
