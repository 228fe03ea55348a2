//! Further commands in a container that runs on this machine: the process that follows it has its first process start
//! them. Nobody enters namespaces from outside; the socket is the caller's own, and asks who calls.

use super::records::{self, Record};
use super::terminal::Shown;
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::site::StateDir;
use berth_client::step::terminal;
use berth_model::ByteStr;
use berth_model::spec::TermSize;
use berth_runtime::{InitHandle, TaskSpec, TaskStdio};
use berth_step::control::{receive, send};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A command for a container; its three streams come beside it, where it gets no terminal.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    argv: Vec<ByteStr>,
    env: Vec<ByteStr>,
    cwd: Option<ByteStr>,
    terminal: Option<TermSize>,
}

impl Asked {
    /// A command with variables that are set over all others, and a terminal of its own where that is wanted.
    pub fn new(
        command: Vec<OsString>,
        env: Vec<(OsString, OsString)>,
        cwd: Option<OsString>,
        terminal: bool,
    ) -> Asked {
        let pair = |(name, value): (OsString, OsString)| {
            let mut text = name;
            text.push("=");
            text.push(value);
            ByteStr::from(text)
        };
        Asked {
            argv: command.into_iter().map(ByteStr::from).collect(),
            env: env.into_iter().map(pair).collect(),
            cwd: cwd.map(ByteStr::from),
            terminal: terminal.then(|| terminal::size().unwrap_or(TermSize { rows: 24, cols: 80 })),
        }
    }
}

/// What the caller is told.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Its terminal comes beside this.
    Terminal,
    /// How it ended.
    Ended { code: u8, error: Option<String> },
}

/// The side of the process that follows the container.
#[derive(Debug)]
pub struct Entrance {
    listener: OwnedFd,
    path: PathBuf,
    callers: BTreeMap<u32, OwnedFd>,
    last: u32,
}

impl Drop for Entrance {
    fn drop(&mut self) {
        // The record of the container goes, too: nobody looks for a socket without it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A socket's address by its directory's descriptor: paths may be longer than addresses.
fn address(path: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((dir, SocketAddrUnix::new(&short)?))
}

fn socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn place(state: &StateDir, name: &str) -> PathBuf {
    state.0.join("local").join(format!("{name}.sock"))
}

impl Entrance {
    /// Opens it for the container of that name.
    pub fn open(state: &StateDir, name: &str) -> Result<Entrance, Failure> {
        let path = place(state, name);
        let opened = || -> io::Result<OwnedFd> {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let (_dir, address) = address(&path)?;
            let listener = socket(SocketFlags::NONBLOCK)?;
            rustix::net::bind(&listener, &address)?;
            rustix::net::listen(&listener, 16)?;
            Ok(listener)
        };
        let listener =
            opened().map_err(|e| Failure::new(Kind::Internal, format!("{}: {e}", path.display())))?;
        Ok(Entrance { listener, path, callers: BTreeMap::new(), last: 0 })
    }

    /// Readable when somebody calls.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Takes a call, and has the command started. A caller who is no owner of ours, or says nothing that can be
    /// read, is hung up on.
    pub fn answer(&mut self, init: &mut InitHandle, umask: u32) {
        let Ok(caller) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) else { return };
        let peer = sockopt::socket_peercred(&caller);
        if !peer.is_ok_and(|p| p.uid == rustix::process::geteuid() || p.uid.is_root()) {
            return;
        }
        // A caller who does not speak at once must not hold up the container.
        let patience = Some(std::time::Duration::from_secs(2));
        let _ = sockopt::set_socket_timeout(&caller, sockopt::Timeout::Recv, patience);
        let Ok(Some((asked, fds))) = receive::<Asked>(caller.as_fd()) else { return };
        let mut fds = fds.into_iter();
        self.last += 1;
        let stdio = match asked.terminal {
            Some(size) => TaskStdio::Pty(size),
            None => TaskStdio::Fds { stdin: fds.next(), stdout: fds.next(), stderr: fds.next() },
        };
        let task = TaskSpec {
            id: self.last,
            argv: asked.argv,
            env: asked.env,
            cwd: asked.cwd.map(|dir| (dir, "--workdir".to_string())),
            stdio,
            umask: Some(umask),
            ..TaskSpec::default()
        };
        match init.spawn(task) {
            Ok(()) => {
                self.callers.insert(self.last, caller);
            }
            Err(e) => tell(&caller, &Answer::Ended { code: 1, error: Some(e.to_string()) }, &[]),
        }
    }

    /// Hands the caller the terminal of a command that has started.
    pub fn started(&mut self, task: u32, terminal: Option<OwnedFd>) {
        if let (Some(caller), Some(terminal)) = (self.callers.get(&task), terminal) {
            tell(caller, &Answer::Terminal, &[terminal.as_fd()]);
        }
    }

    /// Tells the caller how the command ended.
    pub fn ended(&mut self, task: u32, code: u8, error: Option<String>) {
        if let Some(caller) = self.callers.remove(&task) {
            tell(&caller, &Answer::Ended { code, error }, &[]);
        }
    }
}

fn tell(caller: &OwnedFd, answer: &Answer, fds: &[BorrowedFd<'_>]) {
    // One that is gone wants no answer.
    let _ = send(caller.as_fd(), answer, fds);
}

/// Which container of this machine is meant: by name, or by the pid of its first process or of the one that made it.
pub fn find(state: &StateDir, what: &str) -> Result<Record, Failure> {
    let all = records::list(state)?;
    let number = what.parse::<i32>().ok();
    all.into_iter().find(|r| r.name == what || number.is_some_and(|n| n == r.init || n == r.pid)).ok_or_else(|| {
        Failure::user(format!(
            "no container '{what}' of yours runs on this machine: 'docker ps' and 'enroot list -f' show those that do; \
             into a job goes 'berth exec JOB'"
        ))
    })
}

/// Runs a command in a running container, with our streams or a terminal of its own; the exit code is the command's.
pub fn enter(door: &str, state: &StateDir, record: &Record, asked: &Asked) -> Outcome {
    let name = &record.name;
    let lost = |e: io::Error| {
        Failure::user(format!("the container '{name}' does not answer: {e}; does it still run?"))
    };
    let called = || -> io::Result<OwnedFd> {
        let (_dir, address) = address(&place(state, name))?;
        let socket = socket(SocketFlags::empty())?;
        rustix::net::connect(&socket, &address)?;
        Ok(socket)
    };
    let socket = called().map_err(lost)?;
    let own = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let streams: &[BorrowedFd<'_>] = if asked.terminal.is_some() { &[] } else { &own };
    send(socket.as_fd(), asked, streams).map_err(lost)?;
    let mut shown = None;
    loop {
        match receive::<Answer>(socket.as_fd()) {
            Ok(Some((Answer::Terminal, fds))) => {
                let Some(master) = fds.into_iter().next() else { continue };
                let mut terminal = Shown::new(master)?;
                // Until there is something to be heard.
                terminal.until(socket.as_fd())?;
                shown = Some(terminal);
            }
            Ok(Some((Answer::Ended { code, error }, _))) => {
                if let Some(terminal) = shown.take() {
                    terminal.close();
                }
                if let Some(error) = error {
                    out::complain(&format!("{door}: error: {error}"));
                }
                return Ok(code);
            }
            // It ended, and took its commands with it.
            Ok(None) => return Err(Failure::user(format!("the container '{name}' ended"))),
            Err(e) => return Err(lost(e)),
        }
    }
}
