//! Obtains an allocation, runs a command or a shell here with it, and gives it back.
//!
//! The command runs on this machine, not in the allocation; srun in it makes steps of the allocation. Without a
//! command it is the user's shell, and with --no-shell nothing: then the allocation stays until its time limit or scancel ends
//! it, and has steps by srun --jobid. The exit code is the command's. A `:` between options begins another component of the
//! allocation: all are obtained together, each with what it asks for.

mod remote;

use crate::error::{Failure, Kind, Outcome};
use crate::explain::Asked;
use crate::submit::{self, Granted, Read};
use crate::{Command, Invocation, block_on, fmt, het, login, out, users, x11};
use berth_model::options::{self, Command as Submit};
use berth_model::record::JobInfo;
use berth_model::request::{Payload, RefusalCode, Response};
use berth_model::spec::MemoryRequest;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::{ByteStr, JobId};
use berth_rpc::{Client, RpcError};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whoever waited longer than this may look elsewhere, and is rung.
const LONG: Duration = Duration::from_secs(10);

/// The command.
pub const COMMAND: Command =
    Command { name: "salloc", run, submits: true, help: || options::help(Submit::Salloc) };

fn run(call: &Invocation<'_>) -> Outcome {
    let mut parts = match submit::parts(Submit::Salloc, call)? {
        Read::Told => return Ok(0),
        Read::Parts(parts) => parts,
    };
    let rest = parts.last_mut().map(|part| std::mem::take(&mut part.rest)).unwrap_or_default();
    let all = het::resolve(Submit::Salloc, parts, Vec::new())?;
    let none = all.first().is_some_and(|options| options.no_shell);
    if none && !rest.is_empty() {
        return Err(Failure::user(
            "--no-shell runs no command: leave out the command, or --no-shell, and start steps with srun --jobid",
        ));
    }
    if none && all.first().is_some_and(|options| options.typed("get-user-env")) {
        return Err(Failure::user(
            "--get-user-env is for the command of salloc, and --no-shell runs none: leave one of them out",
        ));
    }
    let argv = if rest.is_empty() { vec![shell()] } else { rest };
    let command = if none { ByteStr::default() } else { argv.first().cloned().unwrap_or_default() };
    let by = submit::submitter(call, "interactive".to_string(), command)?;
    let components = het::components(Submit::Salloc, &all, &by, call)?;
    let (Some(options), Some(leader)) = (all.first(), components.first()) else { return Ok(0) };
    let ends = ends(options.kill_command)?;
    if let Some(nodes) = options.x11 {
        // Each step asks anew; what is missing is better known before anything is allocated.
        x11::forward(nodes)?;
    }
    let site = call.site()?;
    submit::announce(options, &site);
    let quiet = options.quiet;
    let tell = |line: String| {
        if !quiet {
            out::complain(&line);
        }
    };
    block_on(async {
        let client = site.connect_patiently("salloc").await?;
        if let Some(format) = options.explain {
            het::one_alone(&all, "--explain")?;
            let env = options.environment(&submit::environment(), &by, false);
            let payload = Payload { env, ..Payload::default() };
            let (job, step) = (Some(&leader.spec), None);
            let command = Submit::Salloc;
            return Asked { command, call, format, job, step, payload: &payload }.outside(&client).await;
        }
        // What is missing is better known before anything is allocated.
        let at_login = match options.get_user_env && !options.no_shell {
            true => at_login().await?,
            false => Vec::new(),
        };
        let submitted = het::seal(&components, Payload::default(), call, &client).await?;
        let response = submit::submit_het(Submit::Salloc, &client, &submitted, false).await;
        let response = response.map_err(|e| submit::refused(Submit::Salloc.failed(), e))?;
        let Response::Submitted { job, notes, .. } = response else {
            return Err(Failure::new(Kind::Internal, "unexpected answer from the controller"));
        };
        submit::warn(Submit::Salloc, &notes, quiet);
        let lease = client.lease(job).await.ok(); // a job that is over already has none
        let mut records = submit::records(&client, job).await?;
        let (mut waited, since) = (false, Instant::now());
        let mut stop = Stop::new()?;
        let granted = tokio::select! {
            granted = submit::granted(&mut records, || {
                waited = options.immediate.is_none();
                if waited {
                    tell(format!("salloc: Pending job allocation {job}"));
                    tell(format!("salloc: job {job} queued and waiting for resources"));
                }
            }) => granted?,
            _ = stop.next() => {
                end(&client, job, ExitStatus::default()).await;
                tell(format!("salloc: Job allocation {job} has been revoked."));
                return Err(Failure::raw(Kind::User, "salloc: Job aborted due to signal"));
            }
        };
        let info = match granted {
            Granted::Yes(info) => info,
            Granted::No(info) if submit::patience_is_over(&info, options.immediate) => {
                return Err(submit::busy());
            }
            Granted::No(info) => {
                let why = match info.state {
                    JobState::Cancelled => {
                        tell("salloc: Job has been cancelled".to_string());
                        "Job/step already completing or completed".to_string()
                    }
                    state => format!("the job ended as {} ({})", state.name(), fmt::job::reason(&info)),
                };
                tell(format!("salloc: Job allocation {job} has been revoked."));
                return Err(Failure::user(format!("{}: {why}", Submit::Salloc.failed())));
            }
        };
        if waited {
            tell(format!("salloc: job {job} has been allocated resources"));
        }
        tell(format!("salloc: Granted job allocation {job}"));
        if options.bell.unwrap_or(since.elapsed() > LONG) && std::io::stdout().is_terminal() {
            let _ = out::print("\x07"); // who is gone hears nothing
        }
        let groups = het::groups(&client, &info).await?;
        let nodes: Vec<_> = match groups.as_slice() {
            [] => info.layout.nodes.clone(),
            groups => groups.iter().flat_map(|group| group.layout.nodes.clone()).collect(),
        };
        tell(format!("salloc: Nodes {} are ready for job", fmt::hosts(&nodes)));
        if options.no_shell {
            if info.spec.clientless {
                return Ok(0);
            }
            let version = client.status().await.map(|status| status.version);
            end(&client, job, ExitStatus { code: 1, signal: 0 }).await;
            tell(format!("salloc: Relinquishing job allocation {job}"));
            return Err(Failure::user(not_kept(&version.unwrap_or_else(|_| "unknown".to_string()))));
        }
        let cluster = client.config().await.map(|c| c.cluster).unwrap_or_default();
        let mut submitted = options.environment(&submit::environment(), &by, false);
        let nodes = remote::File::of(&info.layout);
        remote::tell(&mut submitted, nodes.as_ref());
        let mut env = allocation(&info, &cluster);
        env.extend(het::variables(&info, groups));
        if let Some(nodes) = options.x11 {
            env.push((berth_model::x11::WANTED.to_string(), nodes.to_string()));
        }
        if let Some(dir) = &site.state {
            env.push(("BERTH_STATE".to_string(), dir.0.display().to_string()));
        }
        let spawned = tokio::process::Command::new(argv[0].as_os())
            .args(argv[1..].iter().map(ByteStr::as_os))
            .env_clear()
            .envs(at_login.iter().filter_map(variable))
            .envs(submitted.iter().filter_map(variable))
            .envs(env)
            .current_dir(leader.spec.work_dir.as_path())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) => {
                end(&client, job, ExitStatus { code: 1, signal: 0 }).await;
                out::complain(&format!(
                    "salloc: error: Unable to find command \"{}\": {e} (in {})",
                    argv[0].display(),
                    leader.spec.work_dir.display()
                ));
                tell(format!("salloc: Relinquishing job allocation {job}"));
                return Ok(1);
            }
        };
        let (status, revoked) = hold(&mut child, &mut records, &mut stop, (job, &ends)).await?;
        drop(lease);
        if revoked {
            return Ok(if status.success() { 0 } else { shell_code(status) });
        }
        tell(format!("salloc: Relinquishing job allocation {job}"));
        end(&client, job, status).await;
        Ok(shell_code(status))
    })
}

/// The login environment. The connection to the controller lives on while the shell is waited for.
async fn at_login() -> Result<Vec<ByteStr>, Failure> {
    let own = users::own_identity()?;
    match tokio::task::spawn_blocking(move || login::environment(&own)).await {
        Ok(answer) => answer.map_err(Failure::user),
        Err(e) => Err(Failure::new(Kind::Internal, format!("cannot ask the login shell: {e}"))),
    }
}

/// Why an allocation is given back that was to stay: its record does not say so, as at a controller that does not know of it.
fn not_kept(version: &str) -> String {
    format!(
        "--no-shell: the controller (version {version}) does not know it and would end the allocation half a minute after this salloc (version {}): \
         update the controller, or have a command hold the allocation ('salloc ... sleep infinity' in the background)",
        env!("CARGO_PKG_VERSION")
    )
}

/// Name and value of `NAME=VALUE`.
fn variable(text: &ByteStr) -> Option<(&OsStr, &OsStr)> {
    let at = text.0.iter().position(|b| *b == b'=')?;
    Some((OsStr::from_bytes(&text.0[..at]), OsStr::from_bytes(&text.0[at + 1..])))
}

fn shell() -> ByteStr {
    std::env::var_os("SHELL").filter(|s| !s.is_empty()).map_or_else(|| "/bin/sh".into(), ByteStr::from)
}

/// What the command is sent when the allocation is gone; one that is stopped goes on, to hear it.
fn ends(kill_command: Option<i32>) -> Result<Vec<Signal>, Failure> {
    let Some(number) = kill_command else {
        return Ok(vec![Signal::SIGHUP, Signal::SIGCONT, Signal::SIGTERM]);
    };
    let signal = Signal::try_from(number).map_err(|_| {
        Failure::usage(format!("--kill-command={number}: it sends no real-time signals: name one up to 31"))
    })?;
    Ok(vec![signal, Signal::SIGCONT])
}

fn shell_code(status: ExitStatus) -> u8 {
    u8::try_from(status.shell_code()).unwrap_or(u8::MAX)
}

/// Waits for the command, and ends it when the allocation is gone. Also tells whether it was.
async fn hold(
    child: &mut Child,
    records: &mut watch::Receiver<Option<JobInfo>>,
    stop: &mut Stop,
    (job, ends): (JobId, &[Signal]),
) -> Result<(ExitStatus, bool), Failure> {
    let mut revoked = false;
    let mut watched = true;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(|e| Failure::new(Kind::Internal, format!("cannot wait for the command: {e}")))?;
                let byte = |n: i32| u8::try_from(n & 0xff).unwrap_or(u8::MAX);
                let status = ExitStatus {
                    code: status.code().map_or(0, byte),
                    signal: status.signal().map_or(0, byte),
                };
                return Ok((status, revoked));
            }
            changed = records.changed(), if watched => {
                watched = changed.is_ok();
                let over = records.borrow_and_update().clone().filter(|j| j.state.is_terminal());
                if let Some(info) = over.filter(|_| !revoked) {
                    revoked = true;
                    match info.reason {
                        Reason::TimeLimit => out::complain(&format!(
                            "salloc: Job {job} has exceeded its time limit and its allocation has been revoked."
                        )),
                        _ => out::complain(&format!("salloc: Job allocation {job} has been revoked.")),
                    }
                    for number in ends {
                        send(child, *number);
                    }
                }
            }
            number = stop.next() => {
                // Ctrl-C on a terminal reaches the command by itself; what is sent to salloc alone is passed on.
                if number != Signal::SIGINT {
                    send(child, number);
                }
            }
        }
    }
}

fn send(child: &Child, number: Signal) {
    if let Some(pid) = child.id().and_then(|p| i32::try_from(p).ok()) {
        // It may have ended a moment ago.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), number);
    }
}

/// Gives the allocation back. It may be gone already, and without a controller its lease runs out.
async fn end(client: &Client, job: JobId, status: ExitStatus) {
    match client.end_allocation(job, status).await {
        Ok(_) => {}
        Err(RpcError::Refused(r)) if matches!(r.code, RefusalCode::WrongState | RefusalCode::NotFound) => {}
        Err(e) => out::complain(&format!(
            "salloc: error: job {job} is not given back yet: {e}; it ends without its client"
        )),
    }
}

/// Signals that end salloc or its command.
struct Stop {
    all: Vec<(Signal, tokio::signal::unix::Signal)>,
}

impl Stop {
    fn new() -> Result<Stop, Failure> {
        let kinds = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
        let all = kinds.into_iter().map(|s| Ok((s, signal(SignalKind::from_raw(s as i32))?)));
        let all = all.collect::<std::io::Result<_>>();
        Ok(Stop {
            all: all.map_err(|e| Failure::new(Kind::Internal, format!("cannot handle signals: {e}")))?,
        })
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (number, stream) in &mut self.all {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// The variables by which commands know the allocation. The directory of the submission, which need not be text, stands in what was submitted.
fn allocation(job: &JobInfo, cluster: &str) -> Vec<(String, String)> {
    let resources = &job.spec.resources;
    let nodes = fmt::hosts(&job.layout.nodes);
    let count = job.layout.nodes.len().to_string();
    let tasks: Vec<u32> =
        job.layout.tasks.iter().map(|t| u32::try_from(t.len()).unwrap_or(u32::MAX)).collect();
    let total = fmt::job::task_count(job).to_string();
    let mut env: Vec<(&str, String)> = vec![
        ("SLURM_JOB_ID", job.id.to_string()),
        ("SLURM_JOBID", job.id.to_string()),
        ("SLURM_JOB_NAME", job.spec.name.clone()),
        ("SLURM_JOB_PARTITION", job.partition.clone()),
        ("SLURM_JOB_QOS", berth_model::env::QOS.to_string()),
        ("SLURM_JOB_NODELIST", nodes.clone()),
        ("SLURM_NODELIST", nodes),
        ("SLURM_JOB_NUM_NODES", count.clone()),
        ("SLURM_NNODES", count),
        ("SLURM_JOB_CPUS_PER_NODE", berth_model::runs::print(&job.layout.cpus)),
        ("SLURM_TASKS_PER_NODE", berth_model::runs::print(&tasks)),
        ("SLURM_CLUSTER_NAME", cluster.to_string()),
        ("SLURM_SUBMIT_HOST", job.spec.submit_host.clone()),
        ("SLURM_JOB_UID", job.identity.uid.to_string()),
        ("SLURM_JOB_GID", job.identity.gid.to_string()),
        ("SLURM_JOB_USER", job.identity.user.clone()),
    ];
    if resources.tasks.is_some() || resources.tasks_per_node.is_some() {
        env.push(("SLURM_NTASKS", total.clone()));
        env.push(("SLURM_NPROCS", total));
    }
    if let Some(n) = resources.tasks_per_node {
        env.push(("SLURM_NTASKS_PER_NODE", n.to_string()));
    }
    if let Some(n) = resources.cpus_per_task {
        env.push(("SLURM_CPUS_PER_TASK", n.to_string()));
    }
    match resources.memory {
        MemoryRequest::PerCpu(m) => env.push(("SLURM_MEM_PER_CPU", m.to_string())),
        MemoryRequest::PerGpu(m) => env.push(("SLURM_MEM_PER_GPU", m.to_string())),
        MemoryRequest::PerNode(m) => env.push(("SLURM_MEM_PER_NODE", m.to_string())),
        MemoryRequest::Default => {}
    }
    if let Some(sluid) = job.sluid {
        env.push(("SLURM_JOB_SLUID", sluid.to_string()));
    }
    if let Some(account) = &job.spec.account {
        env.push(("SLURM_JOB_ACCOUNT", account.clone()));
    }
    if let Some(start) = job.started {
        env.push(("SLURM_JOB_START_TIME", start.secs().to_string()));
    }
    if let Some(end) = fmt::job::end(job) {
        env.push(("SLURM_JOB_END_TIME", end.secs().to_string()));
    }
    env.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::samples;

    #[test]
    fn who_does_not_keep_an_allocation_is_named() {
        let why = not_kept("0.1.2");
        assert!(
            why.contains("--no-shell") && why.contains("0.1.2") && why.contains("update the controller"),
            "{why}"
        );
    }

    #[test]
    fn the_allocation_is_told() {
        let mut job = samples::job(12, "interactive");
        job.spec.resources.tasks = Some(3);
        job.layout = samples::layout(&["n1"], 3);
        let env = allocation(&job, "berth");
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("SLURM_JOB_ID"), Some("12"));
        assert_eq!(get("SLURM_JOB_SLUID"), Some("sCN1M7XJ371Y00"));
        assert_eq!(get("SLURM_TASKS_PER_NODE"), Some("3"));
        assert_eq!(get("SLURM_NTASKS"), Some("3"));
        assert_eq!(get("SLURM_MEM_PER_CPU"), Some("500"));
        assert_eq!(get("SLURM_JOB_END_TIME"), Some("1795216446"));
        assert_eq!(get("SLURM_CPUS_PER_TASK"), None);
        assert_eq!(get("SLURM_SUBMIT_DIR"), None, "here it could only be text");
    }
}
