//! Running hooks: the container's state on standard input, nothing inherited, ended after their time-out.

use super::error::{Naming, OciError, Result};
use super::plan::HookPlan;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Runs hooks in order; those without an environment of their own with `env`.
///
/// # Errors
/// The first that fails; those behind it are not run.
pub fn run(kind: &str, hooks: &[HookPlan], state: &str, env: &[String]) -> Result<()> {
    hooks.iter().try_for_each(|hook| one(kind, hook, state, env))
}

/// Runs hooks in order, all of them.
pub fn run_all(kind: &str, hooks: &[HookPlan], state: &str) -> Vec<OciError> {
    hooks.iter().filter_map(|hook| one(kind, hook, state, &[]).err()).collect()
}

fn one(kind: &str, hook: &HookPlan, state: &str, env: &[String]) -> Result<()> {
    let failed =
        |why: String| OciError::Hook { kind: kind.into(), path: hook.path.display().to_string(), why };
    // A file and not a pipe: a hook that reads nothing holds nothing up.
    let stdin = rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC).named("make a file for the state")?;
    rustix::io::write(&stdin, state.as_bytes()).named("write the state")?;
    rustix::fs::seek(&stdin, SeekFrom::Start(0)).named("write the state")?;
    let mut command = Command::new(&hook.path);
    command.env_clear().stdin(Stdio::from(stdin)).stdout(Stdio::null()).stderr(Stdio::inherit());
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.envs(hook.env.as_deref().unwrap_or(env).iter().filter_map(|v| v.split_once('=')));
    let mut child = command.spawn().map_err(|e| failed(format!("it cannot be started: {e}")))?;
    let status = wait(&mut child, hook.timeout).named("wait for a hook")?;
    match status {
        None => Err(failed(format!("it ran longer than its timeout of {} s", hook.timeout.unwrap_or(0)))),
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
        })),
    }
}

/// Waits; `None` when it was ended after its time.
fn wait(child: &mut Child, seconds: Option<u32>) -> std::io::Result<Option<ExitStatus>> {
    let Some(seconds) = seconds else { return child.wait().map(Some) };
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let Some(pid) = pid else { return child.wait().map(Some) };
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let end = Instant::now() + Duration::from_secs(u64::from(seconds));
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
        }
    }
}
