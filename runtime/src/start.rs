//! Starts a task inside the container: environment, streams, terminal, CPUs, working directory, program.

use crate::around::{self, Environment, WireProgram};
use crate::exec::{ExecError, Refused, candidates, diagnose, execute};
use crate::plan::Plan;
use crate::protocol::{SpawnRequest, WireStdio};
use crate::setup;
use crate::sys::exec::{ExecVectors, close_all_from, place_at};
use crate::sys::fork::{CloneOptions, Forked, exit_now, fork};
use crate::sys::schedule::set_memory_policy;
use crate::sys::{Errno, SysResult, share, signals, wait};
use berth_model::ByteStr;
use berth_model::bind::plan::MemoryNodes;
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A task that runs its program, or what runs before it.
pub(crate) struct Started {
    pub pid: i32,
    pub master: Option<OwnedFd>,
    /// Where programs run before it: ends without a word when the task's own runs, and says why it does not run.
    pub outcome: Option<OwnedFd>,
    /// What runs when it has ended.
    pub after: Option<After>,
}

/// Programs that run when a task has ended, with what they have of it.
pub(crate) struct After {
    spawn: SpawnRequest,
    files: Vec<OwnedFd>,
    /// The list of processes of its control group.
    group: Option<OwnedFd>,
    /// Standard output and standard error.
    streams: [Option<OwnedFd>; 2],
}

fn other(action: &str, errno: Errno) -> ExecError {
    ExecError::Other { action: action.into(), errno: errno.raw_os_error() }
}

/// What can fail in the child.
#[derive(Clone, Copy)]
enum Stage {
    Exec,
    Workdir,
    Streams,
    Group,
    Cpus,
    Memory,
}

/// Starts a task; returns when its program runs, or with the reason why it cannot. Where programs run before it, this returns
/// when they begin.
pub(crate) fn start(plan: &Plan, spawn: SpawnRequest, mut fds: Vec<OwnedFd>) -> Result<Started, ExecError> {
    let number = |programs: &[WireProgram]| programs.iter().filter(|program| program.file).count();
    let after_files = fds.split_off(fds.len().saturating_sub(number(&spawn.after)));
    let before_files = fds.split_off(fds.len().saturating_sub(number(&spawn.before)));
    let group = spawn.group.then(|| fds.pop()).flatten();
    let command = command_of(plan, &spawn)?;
    let terminal = match spawn.stdio {
        WireStdio::Pty(size) => Some(open_pty(size).map_err(|e| other("open a terminal", e))?),
        WireStdio::Fds(_) => None,
    };
    let slave = terminal.as_ref().map(|t| t.slave.as_fd());
    let (pid, outcome) = if spawn.before.is_empty() {
        (run_at_once(plan, &spawn, (&fds, group.as_ref()), &command, slave)?, None)
    } else {
        let (pid, outcome) =
            run_prepared(plan, &spawn, (&fds, group.as_ref()), &before_files, &command, slave)
                .map_err(|e| other("start a process", e))?;
        (pid, Some(outcome))
    };
    let (master, slave) = terminal.map_or((None, None), |t| (Some(t.master), Some(t.slave)));
    let after = (!spawn.after.is_empty()).then(|| After {
        streams: output(&spawn.stdio, fds, slave),
        spawn,
        files: after_files,
        group,
    });
    Ok(Started { pid, master, outcome, after })
}

/// What is left of a task's streams for what runs after it.
fn output(stdio: &WireStdio, fds: Vec<OwnedFd>, slave: Option<OwnedFd>) -> [Option<OwnedFd>; 2] {
    match stdio {
        WireStdio::Pty(_) => [slave.as_ref().and_then(|slave| slave.try_clone().ok()), slave],
        WireStdio::Fds(present) => {
            let mut sent = fds.into_iter();
            let [_input, out, err] = present.map(|present| if present { sent.next() } else { None });
            [out, err]
        }
    }
}

/// What a task runs.
fn command_of(plan: &Plan, spawn: &SpawnRequest) -> Result<Vec<ByteStr>, ExecError> {
    let argv: Vec<ByteStr> = if spawn.argv.is_empty() {
        plan.argv.clone()
    } else {
        plan.argv_prefix.iter().chain(&spawn.argv).cloned().collect()
    };
    if argv.first().is_none_or(ByteStr::is_empty) {
        return Err(ExecError::NoCommand);
    }
    Ok(argv)
}

/// What `execve` is given.
struct Ready {
    path: Option<Vec<u8>>,
    files: Vec<ByteStr>,
    files_c: Vec<CString>,
    /// It is one file, and not searched for.
    by_path: bool,
    vectors: ExecVectors,
}

impl Ready {
    fn new(argv: &[ByteStr], env: &Environment) -> Result<Ready, ExecError> {
        let c_strings = |list: Vec<Vec<u8>>| {
            list.into_iter()
                .map(CString::new)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| other("run a command that holds a zero byte", Errno::INVAL))
        };
        let path = env.get(&b"PATH"[..]).cloned();
        let files = argv.first().map(|command| candidates(command, path.as_deref())).unwrap_or_default();
        let files_c = c_strings(files.iter().map(|f| f.0.clone()).collect())?;
        let mut env_list: Vec<Vec<u8>> = Vec::with_capacity(env.len() + 1);
        for (name, value) in env {
            env_list.push([name.as_slice(), b"=", value.as_slice()].concat());
        }
        let vectors =
            ExecVectors::new(c_strings(argv.iter().map(|a| a.0.clone()).collect())?, c_strings(env_list)?);
        let by_path = argv.first().is_some_and(|command| command.0.contains(&b'/'));
        Ok(Ready { path, files, files_c, by_path, vectors })
    }

    /// Replaces the program; returns only with the stage and the reason.
    fn execute(&self) -> (Stage, Refused) {
        (Stage::Exec, execute(&self.files_c, &self.vectors, self.by_path))
    }
}

/// The usual way: the child shares this process's memory until it runs the task's program.
fn run_at_once(
    plan: &Plan,
    spawn: &SpawnRequest,
    (fds, group): (&[OwnedFd], Option<&OwnedFd>),
    argv: &[ByteStr],
    slave: Option<BorrowedFd<'_>>,
) -> Result<i32, ExecError> {
    let mut ready = Ready::new(argv, &environment(plan, spawn))?;
    let mut failed = None;
    // The child writes into this memory: it has no other.
    let mut task = || {
        if let Some(name) = &spawn.pid_env
            && let Ok(var) = CString::new(format!("{name}={}", rustix::process::getpid()))
        {
            ready.vectors.add(var);
        }
        failed = Some(match become_task(spawn, (fds, group), slave, &[]) {
            Err((stage, errno)) => (stage, Refused::of(errno)),
            Ok(()) => ready.execute(),
        });
    };
    let (pid, pidfd) = share::run(&mut task).map_err(|e| other("start a process", e))?;
    match failed {
        None => Ok(pid),
        Some(failed) => {
            let _ = wait::wait_pidfd(&pidfd);
            let files: Vec<ByteStr> = ready.files.iter().map(|f| as_init_sees(f, spawn, fds)).collect();
            Err(explain(plan, spawn, argv, &files, ready.path.as_deref(), failed))
        }
    }
}

/// With programs before the task: a process with memory of its own runs them, and then the task's.
fn run_prepared(
    plan: &Plan,
    spawn: &SpawnRequest,
    (fds, group): (&[OwnedFd], Option<&OwnedFd>),
    files: &[OwnedFd],
    argv: &[ByteStr],
    slave: Option<BorrowedFd<'_>>,
) -> SysResult<(i32, OwnedFd)> {
    let (outcome, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Out of the way of the numbers that the task asked for.
    let away = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, OUT_OF_THE_WAY);
    let files = files.iter().map(away).collect::<SysResult<Vec<_>>>()?;
    let tell = away(&tell)?;
    let keep: Vec<RawFd> = files.iter().chain([&tell]).map(AsRawFd::as_raw_fd).collect();
    match fork(CloneOptions::default())? {
        Forked::Parent { pid, .. } => Ok((pid, outcome)),
        Forked::Child => {
            let prepared = || -> ExecError {
                let explain = |ready: Option<&Ready>, failed| {
                    let (files, path) = ready.map_or((&[][..], None), |r| (&r.files[..], r.path.as_deref()));
                    explain(plan, spawn, argv, files, path, failed)
                };
                if let Err((stage, errno)) = become_task(spawn, (fds, group), slave, &keep) {
                    return explain(None, (stage, Refused::of(errno)));
                }
                let mut env = own_environment(plan, spawn, rustix::process::getpid().as_raw_nonzero().get());
                if let Err(failed) = around::before(&spawn.before, &files, &mut env) {
                    return failed;
                }
                match Ready::new(argv, &env) {
                    Err(failed) => failed,
                    Ok(ready) => explain(Some(&ready), ready.execute()),
                }
            };
            // Nothing may unwind into frames that belong to the parent, nor drop what its copies of them own.
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(prepared));
            let failed =
                failed.unwrap_or_else(|_| other("run the programs before the task", Errno::NOTRECOVERABLE));
            let mut rest = &serde_json::to_vec(&failed).unwrap_or_default()[..];
            while let Ok(n @ 1..) = rustix::io::write(&tell, rest) {
                rest = &rest[n..];
            }
            exit_now(127)
        }
    }
}

/// Runs what comes after a task that had this pid, in a process of its own, whose pid is returned.
pub(crate) fn wind_up(plan: &Plan, after: &After, task: i32) -> SysResult<i32> {
    let After { spawn, files, group, streams } = after;
    match fork(CloneOptions::default())? {
        Forked::Parent { pid, .. } => Ok(pid),
        Forked::Child => {
            let run = || -> SysResult<()> {
                group.as_ref().map_or(Ok(()), enter_group)?;
                rustix::process::setsid()?;
                // What is absent stays init's own `/dev/null`.
                for (stream, number) in streams.iter().zip(1..) {
                    if let Some(stream) = stream {
                        place_at(stream.as_fd(), number)?;
                    }
                }
                if !spawn.cpus.is_empty() {
                    bind_cpus(&spawn.cpus)?;
                }
                rustix::process::umask(Mode::from_raw_mode(spawn.umask.unwrap_or(0o022)));
                if let Some(cwd) = &spawn.cwd
                    && setup::enter_directory(cwd).is_err()
                {
                    // The task may have removed it.
                    setup::enter_directory(&ByteStr::from("/"))?;
                }
                close_all_from(3, &files.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>())?;
                signals::set_mask(0);
                around::after(&spawn.after, files, &own_environment(plan, spawn, task));
                Ok(())
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            exit_now(i32::from(!matches!(result, Ok(Ok(())))))
        }
    }
}

fn own_environment(plan: &Plan, spawn: &SpawnRequest, pid: i32) -> Environment {
    let mut env = environment(plan, spawn);
    if let Some(name) = &spawn.pid_env {
        env.insert(name.as_bytes().to_vec(), pid.to_string().into_bytes());
    }
    env
}

/// A program given as a descriptor (`/proc/self/fd/9`) has another number here.
fn as_init_sees(file: &ByteStr, spawn: &SpawnRequest, fds: &[OwnedFd]) -> ByteStr {
    let number =
        file.0.strip_prefix(b"/proc/self/fd/").and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
    let extra = &fds[fds.len().saturating_sub(spawn.extra.len())..];
    let sent = spawn.extra.iter().zip(extra).find(|(n, _)| Some(**n) == number);
    sent.map_or_else(|| file.clone(), |(_, fd)| format!("/proc/self/fd/{}", fd.as_raw_fd()).into())
}

fn explain(
    plan: &Plan,
    spawn: &SpawnRequest,
    argv: &[ByteStr],
    files: &[ByteStr],
    path: Option<&[u8]>,
    (stage, refused): (Stage, Refused),
) -> ExecError {
    let errno = refused.errno;
    match stage {
        Stage::Exec => {
            diagnose(argv.first().unwrap_or(&ByteStr::default()), spawn.name.as_deref(), files, path, refused)
        }
        Stage::Workdir => {
            let cwd = spawn.cwd.clone().unwrap_or_default();
            let host = plan.root == crate::plan::RootPlan::Host;
            ExecError::Workdir {
                path: cwd.display().into_owned(),
                errno: errno.raw_os_error(),
                hint: setup::workdir_hint(&cwd, &spawn.cwd_origin, host, errno),
            }
        }
        Stage::Group => other("keep the GPUs of other tasks from the task (--gpu-bind)", errno),
        Stage::Cpus => other(&format!("bind the task to the CPUs {:?}", spawn.cpus), errno),
        Stage::Memory => {
            let nodes = spawn.memory.as_ref().map(|memory| memory.nodes.as_slice()).unwrap_or_default();
            other(&format!("bind the task's memory to the NUMA nodes {nodes:?} (--mem-bind)"), errno)
        }
        Stage::Streams => other("connect the task's streams", errno),
    }
}

fn environment(plan: &Plan, spawn: &SpawnRequest) -> Environment {
    let mut env: Environment = plan.env.iter().map(|v| (v.name.0.clone(), v.value.0.clone())).collect();
    for text in &spawn.env {
        if let Some(at) = text.0.iter().position(|b| *b == b'=').filter(|at| *at > 0) {
            env.insert(text.0[..at].to_vec(), text.0[at + 1..].to_vec());
        }
    }
    if let Some(name) = &spawn.pid_env {
        env.remove(name.as_bytes());
    }
    env
}

struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

fn open_pty(size: berth_model::spec::TermSize) -> SysResult<Terminal> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = match rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()) {
        // The node's own devpts keeps its ptmx closed and offers /dev/ptmx.
        Err(Errno::ACCESS | Errno::NOENT) => rustix::fs::open("/dev/ptmx", flags, Mode::empty())?,
        other => other?,
    };
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size)?;
    Ok(Terminal { master, slave })
}

/// First number to which descriptors are moved out of the way of those that a task asked for.
const OUT_OF_THE_WAY: RawFd = 512;

/// The new process becomes the task, but for its program; it keeps `also`.
fn become_task(
    spawn: &SpawnRequest,
    (fds, group): (&[OwnedFd], Option<&OwnedFd>),
    slave: Option<BorrowedFd<'_>>,
    also: &[RawFd],
) -> Result<(), (Stage, Errno)> {
    let streams = |e| (Stage::Streams, e);
    group.map_or(Ok(()), enter_group).map_err(|e| (Stage::Group, e))?;
    // A session of its own: signals of the terminal and to the group reach this task alone.
    rustix::process::setsid().map_err(streams)?;
    let mut sent = fds.iter();
    match &spawn.stdio {
        WireStdio::Pty(_) => {
            let slave = slave.ok_or((Stage::Streams, Errno::NOTTY))?;
            rustix::process::ioctl_tiocsctty(slave).map_err(streams)?;
            for n in 0..3 {
                place_at(slave, n).map_err(streams)?;
            }
        }
        WireStdio::Fds(present) => {
            // What was not sent stays init's own `/dev/null`.
            for (n, _) in (0..3).zip(present).filter(|(_, p)| **p) {
                let fd = sent.next().ok_or((Stage::Streams, Errno::BADF))?;
                place_at(fd.as_fd(), n).map_err(streams)?;
            }
        }
    }
    let mut keep = also.to_vec();
    if !spawn.extra.is_empty() {
        let away = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, OUT_OF_THE_WAY).map_err(streams);
        let moved = sent.map(away).collect::<Result<Vec<_>, _>>()?;
        if spawn.extra.iter().any(|n| !(3..OUT_OF_THE_WAY).contains(n)) || moved.len() != spawn.extra.len() {
            return Err((Stage::Streams, Errno::BADF));
        }
        for (fd, number) in moved.iter().zip(&spawn.extra) {
            place_at(fd.as_fd(), *number).map_err(streams)?;
            keep.push(*number);
        }
    }
    if !spawn.cpus.is_empty() {
        bind_cpus(&spawn.cpus).map_err(|e| (Stage::Cpus, e))?;
    }
    if let Some(memory) = &spawn.memory {
        bind_memory(memory).map_err(|e| (Stage::Memory, e))?;
    }
    for [before, behind] in &spawn.says {
        let line = format!("{before}{}{behind}\n", rustix::process::getpid());
        // Whoever closed the stream does not want to read it.
        let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
    }
    rustix::process::umask(Mode::from_raw_mode(spawn.umask.unwrap_or(0o022)));
    if let Some(cwd) = &spawn.cwd {
        setup::enter_directory(cwd).map_err(|e| (Stage::Workdir, e))?;
    }
    close_all_from(3, &keep).map_err(streams)?;
    signals::set_mask(0);
    Ok(())
}

/// Whoever opened the list has the right to it, and this process needs none.
fn enter_group(list: &OwnedFd) -> SysResult<()> {
    rustix::io::write(list, b"0").map(drop)
}

fn bind_cpus(cpus: &[u32]) -> SysResult<()> {
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus {
        let cpu = usize::try_from(*cpu).map_err(|_| Errno::INVAL)?;
        if cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(Errno::INVAL);
        }
        set.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &set)
}

/// `MPOL_PREFERRED` and `MPOL_BIND` of set_mempolicy(2).
const MPOL_PREFERRED: u32 = 1;
const MPOL_BIND: u32 = 2;

fn bind_memory(memory: &MemoryNodes) -> SysResult<()> {
    let largest = memory.nodes.iter().max().ok_or(Errno::INVAL)?;
    let mut words = vec![0_u64; *largest as usize / 64 + 1];
    for node in &memory.nodes {
        words[*node as usize / 64] |= 1 << (node % 64);
    }
    set_memory_policy(if memory.prefer { MPOL_PREFERRED } else { MPOL_BIND }, &words)
}
