//! Running hooks: the container's state on standard input, nothing inherited, ended after their time-out.

use super::{HookFailure, HookPlan};
use crate::group::end;
use crate::setup::errno_text;
use crate::sys::Errno;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, OFlags, SeekFrom};
use rustix::process::{Pid, PidfdFlags};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How hooks are run.
#[derive(Clone, Copy, Debug, Default)]
pub struct HookRun<'a> {
    /// What hooks without an environment of their own have.
    pub env: &'a [String],
    /// Their last line of standard error goes into the failure, instead of all of it to this process's.
    pub keep_stderr: bool,
    /// What it writes to its standard output is taken for that, too.
    pub keep_stdout: bool,
    /// For those that give no time-out.
    pub timeout: Option<u32>,
    /// Only programs that nobody can change but root and this user are run.
    pub owner: Option<u32>,
    /// They start in `/`, instead of where this process is.
    pub at_root: bool,
}

/// Who has hooks run, while they run.
pub trait Attend {
    /// One runs as this process.
    fn begun(&mut self, _pid: u32) {}

    /// Waits until one of `fds` is readable or `until` is past, and does meanwhile whatever else there is to do.
    ///
    /// # Errors
    /// The kernel's.
    fn wait(&mut self, fds: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<Attended>;
}

/// What came of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attended {
    /// It goes on.
    On,
    /// What hooks are run for is no longer wanted.
    GivenUp,
}

/// Has nothing else to do.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Attend for Alone {
    fn wait(&mut self, fds: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<Attended> {
        let left = until.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| rustix::time::Timespec::try_from(left).ok());
        let mut set: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut set, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(Attended::On),
            Err(e) => Err(e.into()),
        }
    }
}

/// Runs hooks in order.
///
/// # Errors
/// The first that fails; those behind it are not run.
pub fn run(
    kind: &str,
    hooks: &[HookPlan],
    state: &str,
    how: HookRun<'_>,
    attend: &mut dyn Attend,
) -> Result<(), HookFailure> {
    hooks.iter().try_for_each(|hook| one(kind, hook, state, how, attend))
}

/// Runs hooks in order, all of them.
pub fn run_all(
    kind: &str,
    hooks: &[HookPlan],
    state: &str,
    how: HookRun<'_>,
    attend: &mut dyn Attend,
) -> Vec<HookFailure> {
    hooks.iter().filter_map(|hook| one(kind, hook, state, how, attend).err()).collect()
}

fn one(
    kind: &str,
    hook: &HookPlan,
    state: &str,
    how: HookRun<'_>,
    attend: &mut dyn Attend,
) -> Result<(), HookFailure> {
    let failed = |why: String| HookFailure::of(kind, hook, why);
    let path = match how.owner {
        None => hook.path.clone(),
        Some(owner) => super::trust::unchangeable(&hook.path, owner).map_err(failed)?,
    };
    // A file and not a pipe: a hook that reads nothing holds nothing up.
    let stdin = state_file(state).map_err(|e| failed(format!("its state cannot be written: {}", text(e))))?;
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::from(stdin)).stdout(Stdio::null());
    let mut said = None;
    if how.keep_stderr {
        let mut pipe = || -> io::Result<PipeReader> {
            let (reader, writer) = io::pipe()?;
            if how.keep_stdout {
                command.stdout(writer.try_clone()?);
            }
            command.stderr(writer);
            Ok(reader)
        };
        said = Some(pipe().map_err(|e| failed(format!("its errors cannot be read: {e}")))?);
    } else {
        command.stderr(Stdio::inherit());
    }
    // A group of its own: what it started is ended with it when its time is up.
    command.process_group(0);
    if how.at_root {
        command.current_dir("/");
    }
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.envs(hook.env.as_deref().unwrap_or(how.env).iter().filter_map(|v| v.split_once('=')));
    let mut child = command.spawn().map_err(|e| failed(format!("it cannot be started: {e}")))?;
    // The pipe's other end is the hook's alone.
    drop(command);
    attend.begun(child.id());
    let seconds = hook.timeout.or(how.timeout);
    let mut tail = Tail::of(said).map_err(|e| failed(format!("its errors cannot be read: {e}")))?;
    let ended = wait(&mut child, &mut tail, seconds, attend);
    // Not left behind, whatever became of the wait.
    let ended = ended.inspect_err(|_| end(&mut child)).map_err(|e| failed(format!("it is lost: {e}")))?;
    tail.read();
    let first: Box<str> = tail.first_line().into();
    let failed = |why: String| HookFailure { first: first.clone(), ..failed(why) };
    let last = tail.last_line();
    let last = if last.is_empty() { last } else { format!(": {last}") };
    match ended {
        Ended::GivenUp => Err(HookFailure { given_up: true, ..failed("the step was ended".into()) }),
        Ended::TooLong => {
            Err(failed(format!("it ran longer than its timeout of {} s{last}", seconds.unwrap_or(0))))
        }
        Ended::By(status) if status.success() => Ok(()),
        Ended::By(status) => Err(failed(match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}{last}"),
            (None, signal) => format!("killed by signal {}{last}", signal.unwrap_or(0)),
        })),
    }
}

/// How a hook ended.
enum Ended {
    By(ExitStatus),
    TooLong,
    GivenUp,
}

fn text(errno: Errno) -> String {
    errno_text(errno.raw_os_error())
}

fn state_file(state: &str) -> Result<OwnedFd, Errno> {
    let file = rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?;
    let mut rest = state.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

/// Waits for the end, and keeps the last of what it says.
fn wait(
    child: &mut Child,
    tail: &mut Tail,
    seconds: Option<u32>,
    attend: &mut dyn Attend,
) -> io::Result<Ended> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(u64::from(seconds)));
    loop {
        let fds: Vec<_> = [pidfd.as_fd()].into_iter().chain(tail.pipe.as_ref().map(AsFd::as_fd)).collect();
        let attended = attend.wait(&fds, until)?;
        // Something that it left behind may hold the pipe open: the end is the process's, not the pipe's.
        if let Some(status) = child.try_wait()? {
            return Ok(Ended::By(status));
        }
        tail.read();
        if attended == Attended::GivenUp || until.is_some_and(|until| until <= Instant::now()) {
            end(child);
            return Ok(if attended == Attended::GivenUp { Ended::GivenUp } else { Ended::TooLong });
        }
    }
}

/// The end of what a hook says.
struct Tail {
    pipe: Option<PipeReader>,
    /// The beginning, as long as a line may be.
    head: Vec<u8>,
    kept: Vec<u8>,
}

/// Longest last line that is told.
const LONGEST: usize = 512;

impl Tail {
    fn of(pipe: Option<PipeReader>) -> io::Result<Tail> {
        if let Some(pipe) = &pipe {
            rustix::fs::fcntl_setfl(pipe, rustix::fs::fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        Ok(Tail { pipe, head: Vec::new(), kept: Vec::new() })
    }

    /// Takes what is there, but no more than a pipe holds: who writes without end is heard again later.
    fn read(&mut self) {
        let mut chunk = [0u8; 4096];
        for _ in 0..16 {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    let wanted = (2 * LONGEST).saturating_sub(self.head.len()).min(n);
                    self.head.extend_from_slice(&chunk[..wanted]);
                    self.kept.extend_from_slice(&chunk[..n]);
                    let surplus = self.kept.len().saturating_sub(2 * LONGEST);
                    self.kept.drain(..surplus);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        printable(text.lines().rev().map(str::trim).find(|line| !line.is_empty()))
    }

    fn first_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.head);
        printable(text.lines().map(str::trim).find(|line| !line.is_empty()))
    }
}

/// For a terminal: without anything that would steer it.
fn printable(line: Option<&str>) -> String {
    line.unwrap_or_default().chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}
