//! Programs around a task, which run as its user, where it runs and with its environment: those before it may change that, by
//! what they say on their standard output; those after it clear up. None of them has more time than it was given.

use crate::exec::{ExecError, candidates};
use crate::group::end;
use crate::setup::errno_text;
use crate::sys::Errno;
use berth_model::ByteStr;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, OFlags};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// An environment by name.
pub(crate) type Environment = BTreeMap<Vec<u8>, Vec<u8>>;

/// A program before or after a task.
#[derive(Debug)]
pub struct TaskProgram {
    /// What messages call it: `task prolog`.
    pub name: String,
    /// Its path as messages show it; without [`TaskProgram::file`] also where it is, for the task: a name without a slash
    /// is looked for in PATH.
    pub path: ByteStr,
    /// The program itself, where the task does not see it by its path.
    pub file: Option<OwnedFd>,
    /// Seconds until it is killed and has failed.
    pub seconds: u32,
}

/// [`TaskProgram`], without its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireProgram {
    pub name: String,
    pub path: ByteStr,
    pub file: bool,
    pub seconds: u32,
}

impl TaskProgram {
    pub(crate) fn wire(&self) -> WireProgram {
        let TaskProgram { name, path, file, seconds } = self;
        WireProgram { name: name.clone(), path: path.clone(), file: file.is_some(), seconds: *seconds }
    }
}

/// Most that a program before a task may say: far more than an environment can be long.
const MOST_SAID: usize = 1 << 20;

/// Runs programs before a task, in order, and does to its environment what they say. `files` are those of programs that have
/// one.
///
/// # Errors
/// The first that fails: the task does not start then, as Slurm has it.
pub(crate) fn before(
    programs: &[WireProgram],
    files: &[OwnedFd],
    env: &mut Environment,
) -> Result<(), ExecError> {
    each(programs, files, |program, file| {
        let (code, why) = match run(program, file, env, true) {
            Ok(said) => {
                apply(&said, env, &mut |text| {
                    let mut out = io::stdout();
                    // Whoever does not listen to the task does not listen to this.
                    let _ = out.write_all(text).and_then(|()| out.flush());
                });
                return Ok(());
            }
            Err(failed) => failed,
        };
        let program = format!("{} {}", program.name, program.path.display());
        Err(ExecError::Around { program, why, code })
    })
}

/// Runs programs after a task, in order, all of them. What is wrong with one is told on standard error.
pub(crate) fn after(programs: &[WireProgram], files: &[OwnedFd], env: &Environment) {
    let result: Result<(), ()> = each(programs, files, |program, file| {
        if let Err((_, why)) = run(program, file, env, false) {
            let WireProgram { name, path, .. } = program;
            let _ = writeln!(io::stderr(), "slurmstepd: error: {name} {} failed: {why}", path.display());
        }
        Ok(())
    });
    debug_assert!(result.is_ok());
}

fn each<E>(
    programs: &[WireProgram],
    files: &[OwnedFd],
    mut action: impl FnMut(&WireProgram, Option<&OwnedFd>) -> Result<(), E>,
) -> Result<(), E> {
    let mut files = files.iter();
    programs.iter().try_for_each(|program| action(program, if program.file { files.next() } else { None }))
}

/// Runs a program to its end; what it said, or the exit code that it stands for and what is wrong.
fn run(
    program: &WireProgram,
    file: Option<&OwnedFd>,
    env: &Environment,
    heard: bool,
) -> Result<Vec<u8>, (u8, String)> {
    let cannot = |why: String| (1, format!("it cannot be run: {why}"));
    let text = |e: Errno| errno_text(e.raw_os_error());
    let path = match file {
        Some(file) => {
            // A script's interpreter opens it by this number.
            rustix::io::fcntl_setfd(file, FdFlags::empty()).map_err(|e| cannot(text(e)))?;
            ByteStr::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
        }
        None => {
            let found = candidates(&program.path, env.get(&b"PATH"[..]).map(Vec::as_slice));
            let runs = |file: &&ByteStr| rustix::fs::access(file.as_path(), Access::EXEC_OK).is_ok();
            let there = || found.iter().filter(|file| file.as_path().is_file());
            // As execvp(3): one that may not be run is looked past, and named where there is no other.
            let there = there().find(runs).or_else(|| there().next());
            there.ok_or_else(|| cannot("there is no such program where the task runs".into()))?.clone()
        }
    };
    let mut command = Command::new(path.as_path());
    command.env_clear().stdin(Stdio::null()).arg0(program.path.as_path());
    command.envs(env.iter().map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))));
    if heard {
        command.stdout(Stdio::piped());
    }
    // What it started is ended with it when its time is up.
    command.process_group(0);
    let spawned = command.spawn();
    if let Some(file) = file {
        let _ = rustix::io::fcntl_setfd(file, FdFlags::CLOEXEC);
    }
    let mut child = spawned.map_err(|e| match (e.raw_os_error(), file) {
        (Some(libc::ENOENT), Some(_)) => cannot("its interpreter is not there where the task runs".into()),
        (Some(code), _) => cannot(errno_text(code)),
        (None, _) => cannot(e.to_string()),
    })?;
    let out = child.stdout.take();
    let ended = attend(&mut child, out, Duration::from_secs(program.seconds.into()));
    match ended {
        Ok((Some(status), said)) => match (status.code(), status.signal()) {
            (Some(0), _) => Ok(said),
            (Some(code), _) => Err((u8::try_from(code).unwrap_or(1), format!("exit code {code}"))),
            (None, signal) => Err((1, format!("killed by signal {}", signal.unwrap_or(0)))),
        },
        Ok((None, _)) => {
            end(&mut child);
            Err((1, format!("it ran longer than its {} s and was killed", program.seconds)))
        }
        Err(why) => {
            end(&mut child);
            Err((1, why))
        }
    }
}

/// Waits for the end and listens; no status when its time is up.
fn attend(
    child: &mut Child,
    mut out: Option<ChildStdout>,
    time: Duration,
) -> Result<(Option<ExitStatus>, Vec<u8>), String> {
    let lost = |e: io::Error| format!("it is lost: {e}");
    if let Some(out) = &out {
        let quiet = |e: Errno| lost(e.into());
        let flags = rustix::fs::fcntl_getfl(out).map_err(quiet)? | OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(out, flags).map_err(quiet)?;
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| lost(io::ErrorKind::InvalidData.into()))?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| lost(e.into()))?;
    let until = Instant::now() + time;
    let mut said = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            rustix::time::Timespec::try_from(left).map_err(|_| lost(io::ErrorKind::InvalidInput.into()))?;
        let fds = [Some(pidfd.as_fd()), out.as_ref().map(AsFd::as_fd)];
        let mut set: Vec<_> =
            fds.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut set, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(lost(e.into())),
        }
        // Something that it left behind may hold the pipe open: the end is the process's, not the pipe's.
        let status = child.try_wait().map_err(lost)?;
        listen(&mut out, &mut said)?;
        if status.is_some() || left.is_zero() {
            return Ok((status, said));
        }
    }
}

fn listen(out: &mut Option<ChildStdout>, said: &mut Vec<u8>) -> Result<(), String> {
    let mut chunk = [0u8; 4096];
    while let Some(pipe) = out {
        match pipe.read(&mut chunk) {
            Ok(0) => *out = None,
            Ok(n) if said.len() + n > MOST_SAID => {
                return Err(format!("it says more than {} KiB", MOST_SAID >> 10));
            }
            Ok(n) => said.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(_) => *out = None,
        }
    }
    Ok(())
}

/// What Slurm has a task prolog say (`export NAME=value`, `unset NAME`, `print text`); every other line says nothing.
fn apply(said: &[u8], env: &mut Environment, print: &mut dyn FnMut(&[u8])) {
    for line in said.split(|b| *b == b'\n') {
        if let Some(text) = line.strip_prefix(b"print ") {
            print(&[text.trim_ascii_start(), b"\n"].concat());
        } else if let Some(pair) = line.strip_prefix(b"export ") {
            let pair = pair.trim_ascii_start();
            if let Some(at) = pair.iter().position(|b| *b == b'=').filter(|at| *at > 0) {
                env.insert(pair[..at].to_vec(), pair[at + 1..].to_vec());
            }
        } else if let Some(name) = line.strip_prefix(b"unset ") {
            env.remove(name.trim_ascii());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Environment, apply};

    #[test]
    fn lines_of_a_prolog_do_as_in_slurm() {
        let mut env: Environment =
            [("OLD", "1"), ("KEPT", "2")].map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).into();
        let mut printed = Vec::new();
        let said =
            b"export A=b c=d\nexport  B=\nexport =x\nexport NONE\nunset OLD \nunset\nprint   hello  world\n\
                     printed\nexporting C=1\n export D=1\nexport A=again\nexport LAST=\"quoted\"";
        apply(said, &mut env, &mut |text| printed.extend_from_slice(text));
        let env: Vec<String> = env
            .iter()
            .map(|(n, v)| format!("{}={}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
            .collect();
        assert_eq!(env, ["A=again", "B=", "KEPT=2", "LAST=\"quoted\""]);
        assert_eq!(printed, b"hello  world\n");
    }
}
