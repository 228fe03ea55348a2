//! The standard streams of a step's tasks: files opened as the user, pipes for the client, or nothing.

use super::as_user::as_user;
use super::step::LaunchFailure;
use super::streams::Streams;
use berth_model::ByteStr;
use berth_model::ids::StepId;
use berth_model::launch::StepLaunch;
use berth_model::options::Stream;
use berth_model::pattern::{Place, expand};
use berth_model::spec::OpenMode;
use berth_stream::Kind;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::io;

/// The streams of one task, as it gets them. What is absent is `/dev/null`.
#[derive(Debug, Default)]
pub struct TaskFiles {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
    /// A terminal instead of all three.
    pub terminal: bool,
    /// Its end of the connection to the PMI server.
    pub pmi: Option<OwnedFd>,
    /// What the PMIx server has it find.
    pub env: Vec<ByteStr>,
}

/// Where lines for the user go while no client is attached.
#[derive(Debug, Default)]
pub struct Messages {
    file: Option<OwnedFd>,
    kept: Vec<String>,
}

impl Messages {
    /// Writes a line to the step's error file, or keeps it for the client.
    pub fn write(&mut self, line: String) {
        match &self.file {
            Some(file) => {
                let _ = rustix::io::write(file, format!("{line}\n").as_bytes());
            }
            // A step says a handful of things; more than this means that nobody will ever come.
            None if self.kept.len() < 100 => self.kept.push(line),
            None => {}
        }
    }

    /// Lines kept for the client.
    pub fn take_kept(&mut self) -> Vec<String> {
        std::mem::take(&mut self.kept)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Null,
    Client,
    File(ByteStr),
}

/// Opens or makes the streams of every task on this node, in the order of the layout.
pub fn open(launch: &StepLaunch, streams: &mut Streams) -> Result<(Vec<TaskFiles>, Messages), LaunchFailure> {
    let local = launch.layout.tasks.get(launch.node_index as usize).map(Vec::as_slice).unwrap_or_default();
    let mut opened = Opened { launch, files: BTreeMap::new() };
    let mut all = Vec::with_capacity(local.len());
    let mut messages = Messages::default();
    for task in local {
        if launch.pty.is_some() && *task == 0 {
            all.push(TaskFiles { terminal: true, ..TaskFiles::default() });
            continue;
        }
        let targets = Targets::of(launch, *task);
        let stdin = match &targets.stdin {
            Target::Null => None,
            Target::Client => Some(input(*task, streams)?),
            Target::File(path) => Some(opened.input(path)?),
        };
        let stdout = opened.output(&targets.stdout, "output", *task, Kind::Stdout, streams)?;
        let stderr = opened.output(&targets.stderr, "error", *task, Kind::Stderr, streams)?;
        if let (Target::File(_), None, Some(fd)) = (&targets.stderr, &messages.file, &stderr) {
            messages.file = Some(copy(fd)?);
        }
        all.push(TaskFiles { stdin, stdout, stderr, terminal: false, pmi: None, env: Vec::new() });
    }
    Ok((all, messages))
}

struct Targets {
    stdin: Target,
    stdout: Target,
    stderr: Target,
}

impl Targets {
    fn of(launch: &StepLaunch, task: u32) -> Targets {
        let batch = launch.key.step == StepId::Batch;
        let place = Place::of(launch, task);
        let absent = if launch.attached { Target::Client } else { Target::Null };
        let named = |pattern: &ByteStr| -> Target {
            if !batch {
                // srun's words for streams that are no files.
                match Stream::of(Some(pattern), launch.layout.task_count()) {
                    Stream::None => return Target::Null,
                    Stream::Task(other) if other != task => return Target::Null,
                    Stream::All | Stream::Task(_) => return absent.clone(),
                    Stream::File(_) => {}
                }
            }
            Target::File(below(&launch.work_dir, expand(&pattern.0, &place)))
        };
        let io = &launch.io;
        let output = |pattern: &ByteStr| match launch.attached && io.is_the_clients(pattern, &launch.layout) {
            true => absent.clone(),
            false => named(pattern),
        };
        let stdout = match &io.stdout {
            Some(pattern) => output(pattern),
            None if batch => {
                let default = if launch.job.array.is_some() { "slurm-%A_%a.out" } else { "slurm-%j.out" };
                named(&ByteStr::from(default))
            }
            None => absent.clone(),
        };
        let stderr = match &io.stderr {
            Some(pattern) => output(pattern),
            // Standard error joins a file, and stays apart on its way to a client.
            None if matches!(stdout, Target::File(_)) => stdout.clone(),
            None => absent.clone(),
        };
        let stdin = match &io.stdin {
            Some(pattern) => named(pattern),
            None if batch => Target::Null,
            None => absent.clone(),
        };
        Targets { stdin, stdout, stderr }
    }
}

/// A relative name is below the working directory.
fn below(work_dir: &ByteStr, name: Vec<u8>) -> ByteStr {
    if name.first() == Some(&b'/') {
        return ByteStr(name);
    }
    let mut path = work_dir.0.clone();
    path.push(b'/');
    path.extend_from_slice(&name);
    ByteStr(path)
}

struct Opened<'a> {
    launch: &'a StepLaunch,
    /// A file named by several tasks or streams is opened once: its writers share one position.
    files: BTreeMap<ByteStr, OwnedFd>,
}

impl Opened<'_> {
    fn input(&self, path: &ByteStr) -> Result<OwnedFd, LaunchFailure> {
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        self.as_user(|| rustix::fs::open(path.as_path(), flags, Mode::empty()))?
            .map_err(|e| failed("input", path, e, "name a file that exists and that you may read (--input)"))
    }

    fn output(
        &mut self,
        target: &Target,
        what: &str,
        task: u32,
        kind: Kind,
        streams: &mut Streams,
    ) -> Result<Option<OwnedFd>, LaunchFailure> {
        match target {
            Target::Null => Ok(None),
            Target::Client => {
                let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(no_pipe)?;
                nonblocking(&ours)?;
                streams.add_output(task, kind, ours);
                Ok(Some(theirs))
            }
            Target::File(path) => {
                if let Some(fd) = self.files.get(path) {
                    return copy(fd).map(Some);
                }
                let again = self.launch.job.restarts > 0;
                let mode = self.launch.io.open_mode.unwrap_or(match again {
                    true => OpenMode::Append,
                    false => OpenMode::Truncate,
                });
                let mut flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOCTTY | OFlags::CLOEXEC;
                if mode == OpenMode::Truncate {
                    flags |= OFlags::TRUNC;
                }
                let mode = Mode::from_raw_mode(0o666);
                let fd = self.as_user(|| rustix::fs::open(path.as_path(), flags, mode))?.map_err(|e| {
                    let option = if what == "error" { "--error" } else { "--output" };
                    failed(
                        what,
                        path,
                        e,
                        &format!("make its directory first, or name a file that you may write ({option})"),
                    )
                })?;
                let given = copy(&fd)?;
                self.files.insert(path.clone(), fd);
                Ok(Some(given))
            }
        }
    }

    fn as_user<T>(&self, action: impl FnOnce() -> T) -> Result<T, LaunchFailure> {
        as_user(&self.launch.identity, self.launch.umask, action)
            .map_err(|e| LaunchFailure::new(format!("cannot act as user {}: {e}", self.launch.identity.user)))
    }
}

fn failed(what: &str, path: &ByteStr, errno: Errno, hint: &str) -> LaunchFailure {
    LaunchFailure::new(format!(
        "could not open {what} file {}: {}: {hint}",
        path.display(),
        errno_text(errno)
    ))
}

/// The kernel's text without Rust's number behind it.
pub fn errno_text(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}

fn input(task: u32, streams: &mut Streams) -> Result<OwnedFd, LaunchFailure> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(no_pipe)?;
    nonblocking(&ours)?;
    streams.add_input(task, ours);
    Ok(theirs)
}

/// Only our end of a pipe must not block: the flag belongs to the end, and the task knows nothing of it.
pub fn nonblocking(fd: impl AsFd) -> Result<(), LaunchFailure> {
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(no_pipe)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(no_pipe)
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, LaunchFailure> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(no_pipe)
}

fn no_pipe(errno: Errno) -> LaunchFailure {
    LaunchFailure::new(format!("cannot make the streams of a task: {}", errno_text(errno)))
}
