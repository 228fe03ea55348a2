//! Starts a task inside the container: environment, streams, terminal, CPUs, working directory, program.

use crate::exec::{ExecError, candidates, diagnose};
use crate::plan::Plan;
use crate::protocol::{SpawnRequest, WireStdio};
use crate::setup;
use crate::sys::exec::{ExecVectors, close_all_from, execve, place_at};
use crate::sys::{Errno, SysResult, share, signals, wait};
use berth_model::ByteStr;
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A task that runs its program.
pub(crate) struct Started {
    pub pid: i32,
    pub master: Option<OwnedFd>,
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
    Cpus,
}

/// Starts a task; returns when its program runs, or with the reason why it cannot.
pub(crate) fn start(plan: &Plan, spawn: SpawnRequest, fds: Vec<OwnedFd>) -> Result<Started, ExecError> {
    let argv: Vec<ByteStr> = if spawn.argv.is_empty() {
        plan.argv.clone()
    } else {
        plan.argv_prefix.iter().chain(&spawn.argv).cloned().collect()
    };
    let command = argv.first().filter(|c| !c.is_empty()).ok_or(ExecError::NoCommand)?.clone();
    let env = environment(plan, &spawn);
    let path = env.get(&b"PATH"[..]).cloned();
    let files = candidates(&command, path.as_deref());
    let terminal = match spawn.stdio {
        WireStdio::Pty(size) => Some(open_pty(size).map_err(|e| other("open a terminal", e))?),
        WireStdio::Fds(_) => None,
    };
    let c_strings = |list: Vec<Vec<u8>>| {
        list.into_iter()
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| other("run a command that holds a zero byte", Errno::INVAL))
    };
    let argv_c = c_strings(argv.iter().map(|a| a.0.clone()).collect())?;
    let files_c = c_strings(files.iter().map(|f| f.0.clone()).collect())?;
    let mut env_list: Vec<Vec<u8>> = Vec::with_capacity(env.len() + 1);
    for (name, value) in &env {
        env_list.push([name.as_slice(), b"=", value.as_slice()].concat());
    }
    let mut vectors = ExecVectors::new(argv_c, c_strings(env_list)?);
    let mut failed = None;
    // The child writes into this memory: it has no other.
    let mut task = || {
        if let Some(name) = &spawn.pid_env
            && let Ok(var) = CString::new(format!("{name}={}", rustix::process::getpid()))
        {
            vectors.add(var);
        }
        let slave = terminal.as_ref().map(|t| t.slave.as_fd());
        failed = Some(child(&spawn, &fds, slave, &files_c, &vectors));
    };
    let (pid, pidfd) = share::run(&mut task).map_err(|e| other("start a process", e))?;
    match failed {
        None => Ok(Started { pid, master: terminal.map(|t| t.master) }),
        Some(failed) => {
            let _ = wait::wait_pidfd(&pidfd);
            let files: Vec<ByteStr> = files.iter().map(|f| as_init_sees(f, &spawn, &fds)).collect();
            Err(explain(plan, &spawn, &command, &files, path.as_deref(), failed))
        }
    }
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
    command: &ByteStr,
    files: &[ByteStr],
    path: Option<&[u8]>,
    (stage, errno, tried): (Stage, Errno, usize),
) -> ExecError {
    match stage {
        Stage::Exec => diagnose(command, spawn.name.as_deref(), files, tried, path, errno),
        Stage::Workdir => {
            let cwd = spawn.cwd.clone().unwrap_or_default();
            let host = plan.root == crate::plan::RootPlan::Host;
            ExecError::Workdir {
                path: cwd.display().into_owned(),
                errno: errno.raw_os_error(),
                hint: setup::workdir_hint(&cwd, &spawn.cwd_origin, host, errno),
            }
        }
        Stage::Cpus => other(&format!("bind the task to the CPUs {:?}", spawn.cpus), errno),
        Stage::Streams => other("connect the task's streams", errno),
    }
}

fn environment(plan: &Plan, spawn: &SpawnRequest) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut env: BTreeMap<Vec<u8>, Vec<u8>> =
        plan.env.iter().map(|v| (v.name.0.clone(), v.value.0.clone())).collect();
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

/// The new process: becomes the task, or returns the stage, the reason, and which file it was.
fn child(
    spawn: &SpawnRequest,
    fds: &[OwnedFd],
    slave: Option<BorrowedFd<'_>>,
    files: &[CString],
    vectors: &ExecVectors,
) -> (Stage, Errno, usize) {
    let mut tried = 0;
    let (stage, errno) = match become_task(spawn, fds, slave) {
        Err(failed) => failed,
        Ok(()) => {
            let mut result = Errno::NOENT;
            for (n, file) in files.iter().enumerate() {
                match execve(file, vectors) {
                    // As execvp(3): look on, but remember that a file was there.
                    Errno::NOENT | Errno::NOTDIR => {
                        if result == Errno::NOENT {
                            tried = n;
                        }
                    }
                    Errno::ACCESS => {
                        (result, tried) = (Errno::ACCESS, n);
                    }
                    e => {
                        (result, tried) = (e, n);
                        break;
                    }
                }
            }
            (Stage::Exec, result)
        }
    };
    (stage, errno, tried)
}

fn become_task(
    spawn: &SpawnRequest,
    fds: &[OwnedFd],
    slave: Option<BorrowedFd<'_>>,
) -> Result<(), (Stage, Errno)> {
    let streams = |e| (Stage::Streams, e);
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
    let mut keep = Vec::new();
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
    rustix::process::umask(Mode::from_raw_mode(spawn.umask.unwrap_or(0o022)));
    if let Some(cwd) = &spawn.cwd {
        setup::enter_directory(cwd).map_err(|e| (Stage::Workdir, e))?;
    }
    close_all_from(3, &keep).map_err(streams)?;
    signals::set_mask(0);
    Ok(())
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
