//! What srun, sbatch and salloc share: reading their options, telling who submits, sending the submission so that
//! a lost answer does no harm, and waiting for the allocation.

use crate::error::{Failure, Kind, Outcome};
use crate::site::Site;
use crate::{Invocation, out};
use berth_model::limits::{LimitValue, Limits, Resource};
use berth_model::login::{Login, SealedLogin};
use berth_model::options::{
    self, Command, Context, Info, OptionError, Setting, Severity, Source, SubmitOptions, Submitter, Words,
};
use berth_model::record::JobInfo;
use berth_model::request::{Payload, Refusal, RefusalCode, Response};
use berth_model::spec::{JobSpec, StepSpec};
use berth_model::state::JobState;
use berth_model::{ByteStr, JobId, Span, SubmissionId};
use berth_rpc::{Client, JobWatch, RpcError};
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;
use tokio::sync::watch;

/// What one component needs: its variables say nothing of a step in another.
const OF_ONE_COMPONENT: &[&str] = &[
    "cpus-per-gpu",
    "cpus-per-task",
    "distribution",
    "exclusive",
    "gpu-bind",
    "gpus",
    "gpus-per-node",
    "gpus-per-socket",
    "gpus-per-task",
    "gres",
    "mem",
    "mem-per-cpu",
    "mem-per-gpu",
    "nodes",
    "ntasks",
    "ntasks-per-gpu",
    "ntasks-per-node",
    "overcommit",
    "partition",
    "tres-per-task",
];
/// How long a submission is tried again while the controller is away.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// A job that waits longer than this is said to wait.
pub const SOON: Duration = Duration::from_millis(250);

/// A command line, read: what is to be printed instead, or the options and the words behind them.
pub enum Read {
    /// `--help` and its like: done.
    Told,
    /// Settings, and the words that are no options: of each component, one as a rule.
    Parts(Vec<Words>),
}

/// Reads the command line, up to the first word that is no option of its last component.
pub fn parts(command: Command, call: &Invocation<'_>) -> Result<Read, Failure> {
    let args: Vec<ByteStr> = call.args.iter().map(|a| ByteStr::from(a.as_os_str())).collect();
    let parts = options::parse_components(command, &args, Source::CommandLine);
    let parts = parts.map_err(|e| bad_option(command, &e))?;
    let text = match parts.iter().find_map(|part| part.info) {
        None => return Ok(Read::Parts(parts)),
        Some(Info::Help) => options::help(command),
        Some(Info::Usage) => options::usage(command),
        Some(Info::Version) => crate::version_line(),
    };
    out::print(&text)?;
    Ok(Read::Told)
}

/// Joins command line, environment and script.
pub fn resolve(
    command: Command,
    mut settings: Vec<Setting>,
    script: Vec<Setting>,
) -> Result<SubmitOptions, Failure> {
    let environment = options::from_environment(command, |name| std::env::var_os(name).map(ByteStr::from))
        .map_err(|e| bad_option(command, &e))?;
    // Within a job of several components the variables are those of one of them.
    let mixed = command == Command::Srun && std::env::var_os("SLURM_HET_SIZE").is_some();
    let of_one = |setting: &Setting| mixed && OF_ONE_COMPONENT.contains(&setting.row.long);
    settings.extend(environment.into_iter().filter(|setting| !of_one(setting)));
    settings.extend(script);
    let context = Context { now: crate::commands::now(), zone: jiff::tz::TimeZone::system() };
    let mut options = options::resolve(command, settings, &context).map_err(|e| bad_option(command, &e))?;
    if let Some(file) = options.node_file(std::env::var_os("SLURM_HOSTFILE").map(ByteStr::from)) {
        let text = node_list(command, &file)?;
        options.take_node_file(&file, &text).map_err(|e| bad_option(command, &e))?;
    }
    if let Some(file) = options.exclude_file.clone() {
        let text = node_list(command, &file)?;
        options.take_exclude_file(&file, &text).map_err(|e| bad_option(command, &e))?;
    }
    Ok(options)
}

/// The text of a file that lists nodes.
fn node_list(command: Command, file: &ByteStr) -> Result<String, Failure> {
    std::fs::read_to_string(file.as_path()).map_err(|e| {
        Failure::raw(
            Kind::Options(255),
            format!("{}: error: cannot read the list of nodes {}: {e}", command.name(), file.display()),
        )
    })
}

/// The failure that options which cannot be followed make.
pub fn bad_option(command: Command, e: &OptionError) -> Failure {
    if e.severity == Severity::Help {
        return match out::print(&format!("{}\n", e.lines.join("\n"))) {
            Ok(()) => Failure::exit(0),
            Err(failure) => failure,
        };
    }
    Failure::raw(Kind::Options(u8::try_from(e.exit_code).unwrap_or(1)), e.render(command.name()))
}

/// An id that no other submission has.
pub fn submission_id() -> Result<SubmissionId, Failure> {
    by_chance().map(SubmissionId)
}

/// Hexadecimal digits of 128 bits that nobody can guess.
pub fn by_chance() -> Result<String, Failure> {
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| Failure::new(Kind::Internal, format!("/dev/urandom: {e}")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Who submits, and from where.
pub fn submitter(
    call: &Invocation<'_>,
    default_name: String,
    command: ByteStr,
) -> Result<Submitter, Failure> {
    let cwd = std::env::current_dir().map_err(|e| {
        Failure::user(format!(
            "the current directory is gone or cannot be read ({e}); change to another, or use --chdir"
        ))
    })?;
    let mut line = call.name.as_bytes().to_vec();
    for arg in &call.args {
        line.push(b' ');
        line.extend_from_slice(&arg.clone().into_vec());
    }
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    let host = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
    let sid = nix::unistd::getsid(None).map_or(0, |s| u32::try_from(s.as_raw()).unwrap_or(0));
    Ok(Submitter {
        submission: submission_id()?,
        default_name,
        cwd: ByteStr::from(cwd.as_path()),
        umask: umask.bits(),
        nice: rustix::process::getpriority_process(None).unwrap_or(0),
        limits: limits(),
        // Only the node sets this: salloc's own command has the job's other variables and a login's limits.
        in_job: std::env::var_os("SLURM_TASK_PID").is_some(),
        host,
        sid,
        command,
        submit_line: ByteStr(line),
    })
}

/// The caller's soft limits.
fn limits() -> Limits {
    use rustix::process::{Resource as R, getrlimit};
    const ALL: &[(Resource, R)] = &[
        (Resource::As, R::As),
        (Resource::Core, R::Core),
        (Resource::Cpu, R::Cpu),
        (Resource::Data, R::Data),
        (Resource::Fsize, R::Fsize),
        (Resource::Locks, R::Locks),
        (Resource::Memlock, R::Memlock),
        (Resource::Msgqueue, R::Msgqueue),
        (Resource::Nice, R::Nice),
        (Resource::Nofile, R::Nofile),
        (Resource::Nproc, R::Nproc),
        (Resource::Rss, R::Rss),
        (Resource::Rtprio, R::Rtprio),
        (Resource::Rttime, R::Rttime),
        (Resource::Sigpending, R::Sigpending),
        (Resource::Stack, R::Stack),
    ];
    let value = |r: R| getrlimit(r).current.map_or(LimitValue::Unlimited, LimitValue::At);
    Limits { soft: ALL.iter().map(|(name, r)| (*name, value(*r))).collect(), required: Vec::new() }
}

/// The environment as pairs.
pub fn environment() -> Vec<(ByteStr, ByteStr)> {
    std::env::vars_os().map(|(k, v)| (ByteStr::from(k), ByteStr::from(v))).collect()
}

/// Seals a login to the cluster, to travel with what is submitted.
pub async fn seal(
    login: Option<&Login>,
    call: &Invocation<'_>,
    client: &Client,
) -> Result<Option<SealedLogin>, Failure> {
    let (Some(login), Some(resolver)) = (login, call.resolver) else { return Ok(None) };
    let status = client.persist(Some(PATIENCE), |client| async move { client.status().await }).await?;
    if status.login_key.is_empty() {
        return Ok(None); // a controller of an earlier version
    }
    resolver.seal(&status.login_key, login).map(Some).map_err(Failure::user)
}

/// With `--verbose`, where no greater source says `--quiet`: whom the command asks.
pub fn announce(options: &SubmitOptions, site: &Site) {
    if options.verbose > 0 && options.source("quiet") < options.source("verbose") {
        out::complain(&format!("{}: asking {}", options.command.name(), site.endpoint.path().display()));
    }
}

/// Tells notes as warnings.
pub fn warn(command: Command, notes: &[String], quiet: bool) {
    if !quiet {
        for note in notes {
            out::complain(&format!("{}: warning: {note}", command.name()));
        }
    }
}

/// Submits, and submits again under the same id while it is unknown whether an answer was lost, or while the
/// controller takes no jobs; says so when that takes longer than a moment.
pub async fn submit_het(
    command: Command,
    client: &Client,
    components: &[(JobSpec, Payload)],
    test_only: bool,
) -> Result<Response, RpcError> {
    if let [(spec, payload)] = components {
        return submit(command, client, spec, payload, None, test_only).await;
    }
    client
        .persist_telling(
            Some(PATIENCE),
            |client| async move { client.submit_het(components, test_only).await },
            |why| tell_again(command, &why.to_string()),
        )
        .await
}

fn tell_again(command: Command, why: &str) {
    out::complain(&format!("{}: {why}; trying again for {} s", command.name(), PATIENCE.as_secs()));
}

/// Submits a job with its first step, as [`submit_het`] does those of one or several components.
pub async fn submit(
    command: Command,
    client: &Client,
    spec: &JobSpec,
    payload: &Payload,
    first_step: Option<&StepSpec>,
    test_only: bool,
) -> Result<Response, RpcError> {
    client
        .persist_telling(
            Some(PATIENCE),
            |client| async move { client.submit(spec, payload, first_step, test_only).await },
            |why| tell_again(command, &why.to_string()),
        )
        .await
}

/// What `--test-only` prints.
pub fn would_start(command: Command, response: &Response) -> Outcome {
    let Response::WouldStart { job, at, cpus, nodes, partition, .. } = response else { return Ok(0) };
    let zone = jiff::tz::TimeZone::system();
    let at = berth_model::stamp::TimeFormat::Iso.print(*at, crate::commands::now(), &zone);
    out::complain(&format!(
        "{}: Job {job} to start at {at} a using {cpus} processors on nodes {} in partition {partition}",
        command.name(),
        crate::fmt::hosts(nodes)
    ));
    Ok(0)
}

/// The refusal as the command words it: `WHAT: reason`. With `--immediate` the exit code can be set by
/// `SLURM_EXIT_IMMEDIATE`, otherwise by `SLURM_EXIT_ERROR`.
pub fn refused(what: &str, e: RpcError) -> Failure {
    let code = |refusal: &Refusal| {
        let variable = match refusal.code {
            RefusalCode::Busy => "SLURM_EXIT_IMMEDIATE",
            _ => "SLURM_EXIT_ERROR",
        };
        std::env::var(variable).ok().and_then(|v| v.parse::<u8>().ok())
    };
    match e {
        RpcError::Refused(refusal) => Failure {
            kind: code(&refusal).map_or(Kind::Refused(refusal.code), Kind::Options),
            text: worded(what, &refusal.message),
            raw: false,
        },
        other => Failure::from(other).while_trying(what),
    }
}

/// `WHAT: reason`. Of several lines, those before the last say what the reason is about and stand alone.
fn worded(what: &str, message: &str) -> String {
    let (lead, reason) = message.rsplit_once('\n').map_or(("", message), |(lead, reason)| (lead, reason));
    let reason = match reason.starts_with(what) {
        true => reason.to_string(),
        false => format!("{what}: {reason}"),
    };
    if lead.is_empty() { reason } else { format!("{lead}\n{reason}") }
}

/// The resources were not there within `--immediate`.
pub fn busy() -> Failure {
    let refusal = Refusal::new(RefusalCode::Busy, "Requested nodes are busy");
    refused(Command::Srun.failed(), RpcError::Refused(refusal))
}

/// Whether a job that never ran ended because its `--immediate` was over, and not because somebody cancelled it.
pub fn patience_is_over(job: &JobInfo, immediate: Option<Span>) -> bool {
    immediate.is_some() && job.state == JobState::Cancelled && job.cancelled_by.is_none()
}

/// The refusal of `--test-only`, as all commands word it.
pub fn not_even_then(refusal: &Refusal) -> Failure {
    let reason = refusal.message.rsplit('\n').next().unwrap_or_default();
    Failure::raw(Kind::Refused(refusal.code), format!("allocation failure: {reason}"))
}

/// A job's record, as it changes.
pub type Records = watch::Receiver<Option<JobInfo>>;

/// Follows a job's record from now on. The last value stays when nothing more will happen.
pub async fn records(client: &Client, job: JobId) -> Result<Records, Failure> {
    let watched = client.watch_job(job).await?;
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(keep_telling(watched, sender));
    Ok(receiver)
}

/// As [`records`], beginning after a while, for what is over in less as a rule.
pub fn records_after(client: &Client, job: JobId, wait: Duration) -> Records {
    let watched = client.watch_job_later(job);
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        keep_telling(watched, sender).await;
    });
    receiver
}

async fn keep_telling(mut watched: JobWatch, told: watch::Sender<Option<JobInfo>>) {
    while let Ok(Some(info)) = watched.next_state().await {
        if told.send(Some(info)).is_err() {
            return;
        }
    }
}

/// How waiting for an allocation ended.
pub enum Granted {
    /// The job has its nodes.
    Yes(Box<JobInfo>),
    /// It is over before it began.
    No(Box<JobInfo>),
}

/// Waits until the job has its nodes or is over; `waits` is called once when that takes a while.
pub async fn granted(
    records: &mut watch::Receiver<Option<JobInfo>>,
    mut waits: impl FnMut(),
) -> Result<Granted, Failure> {
    let mut told = false;
    loop {
        let now = records.borrow_and_update().clone();
        if let Some(job) = now {
            if job.state.is_terminal() {
                return Ok(Granted::No(Box::new(job)));
            }
            if job.state != JobState::Pending {
                return Ok(Granted::Yes(Box::new(job)));
            }
        }
        let changed = async {
            match told {
                true => Some(records.changed().await),
                false => tokio::time::timeout(SOON, records.changed()).await.ok(),
            }
        };
        match changed.await {
            None => {
                told = true;
                waits();
            }
            Some(Ok(())) => {}
            Some(Err(_)) => {
                return Err(Failure::new(
                    Kind::Unreachable,
                    "the controller does not tell of the job any more",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_somebody_cancelled_did_not_find_nodes_busy() {
        let mut job = crate::fmt::samples::job(1, "x");
        job.state = JobState::Cancelled;
        let patience = Some(Span::from_secs(10));
        assert!(patience_is_over(&job, patience) && !patience_is_over(&job, None));
        job.cancelled_by = Some(berth_model::Uid(0));
        assert!(!patience_is_over(&job, patience));
        (job.cancelled_by, job.state) = (None, JobState::Failed);
        assert!(!patience_is_over(&job, patience));
    }

    #[test]
    fn a_refusal_says_first_what_it_is_about() {
        let message =
            "Memory specification can not be satisfied\nRequested node configuration is not available: why";
        let failure = refused(
            "Batch job submission failed",
            RpcError::Refused(Refusal::new(RefusalCode::Impossible, message)),
        );
        assert_eq!(
            failure.report("sbatch"),
            "sbatch: error: Memory specification can not be satisfied\n\
             sbatch: error: Batch job submission failed: Requested node configuration is not available: why\n"
        );
        let only = not_even_then(&Refusal::new(RefusalCode::Impossible, message));
        assert_eq!(
            only.report("sbatch"),
            "allocation failure: Requested node configuration is not available: why\n"
        );
        assert_eq!(
            busy().report("srun"),
            "srun: error: Unable to allocate resources: Requested nodes are busy\n"
        );
    }
}
