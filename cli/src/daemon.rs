//! Controller and agent as processes of their own: where they tell their pid, how they are started and ended.

use crate::log;
use berth_client::error::{Failure, Kind};
use berth_client::site::StateDir;
use berth_model::{ByteStr, NodeName};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Which daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `berth controller`.
    Controller,
    /// `berth agent`.
    Agent,
}

impl Part {
    /// Its name: of its command, its pid file and its log.
    pub fn name(self) -> &'static str {
        match self {
            Part::Controller => "controller",
            Part::Agent => "agent",
        }
    }
}

/// The pid that a daemon wrote down, if a process of that pid lives.
pub fn pid_file(dir: &StateDir, part: Part) -> Option<i32> {
    written(dir, part).map(|(pid, _)| pid)
}

/// The pid that a daemon wrote down and all else that it did, if a process of that pid lives.
fn written(dir: &StateDir, part: Part) -> Option<(i32, serde_json::Value)> {
    let text = std::fs::read(dir.run().join(format!("{}.json", part.name()))).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let pid = i32::try_from(value.get("pid")?.as_i64()?).ok()?;
    is_ours(pid, part).then_some((pid, value))
}

/// The pid of the agent that runs there, and its node, which agents of earlier versions do not tell.
pub fn agent(dir: &StateDir) -> Option<(i32, Option<NodeName>)> {
    let (pid, value) = written(dir, Part::Agent)?;
    Some((pid, value.get("node").and_then(|name| name.as_str()).map(NodeName::from)))
}

/// Where the agent that runs there keeps images.
pub fn images(dir: &StateDir) -> Option<PathBuf> {
    let (_, value) = written(dir, Part::Agent)?;
    let place: ByteStr = serde_json::from_value(value.get("images")?.clone()).ok()?;
    Some(place.as_path().to_path_buf())
}

/// Whether the process is that daemon: pids are given again to others.
fn is_ours(pid: i32, part: Part) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|b| *b == 0).any(|word| word == part.name().as_bytes())
}

/// A state directory that cannot be one.
fn no_place(path: &Path, e: &std::io::Error) -> Failure {
    let text = format!("state directory {}: {e}; name another with --state or BERTH_STATE", path.display());
    Failure::new(Kind::Configuration, text)
}

/// Whether the state directory is there, or may come to be.
pub fn check_place(dir: &StateDir) -> Result<(), Failure> {
    match std::fs::metadata(&dir.0) {
        Ok(found) if !found.is_dir() => Err(no_place(&dir.0, &std::io::ErrorKind::NotADirectory.into())),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(no_place(&dir.0, &e)),
        _ => Ok(()),
    }
}

/// Makes the state directory and what clients need of it.
pub fn make_state(dir: &StateDir) -> Result<(), Failure> {
    let failed = |path: &Path, e: std::io::Error| no_place(path, &e);
    for path in [dir.0.clone(), dir.run(), dir.log()] {
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(|e| failed(&path, e))?;
            // Whatever the umask: clients of other users must reach the sockets.
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
                .map_err(|e| failed(&path, e))?;
        }
    }
    Ok(())
}

/// With less than this on its disk no part of a cluster starts.
const NO_ROOM: u64 = 256 << 10;

/// That the state directory's disk is full, if it is, and what to do.
pub fn full_disk(dir: &StateDir) -> Option<String> {
    let disk = nix::sys::statvfs::statvfs(&dir.0).ok()?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    // Some filesystems count no files.
    let files = disk.files() > 0 && disk.files_available() == 0;
    let left = match (free < NO_ROOM, files) {
        (true, _) => format!("{} KiB free", free / 1024),
        (false, true) => "no files left".to_owned(),
        (false, false) => return None,
    };
    Some(format!(
        "the disk of {} is full ({left}): make room there and run 'berth up' again; nothing that is recorded is lost",
        dir.0.display()
    ))
}

/// Starts a daemon with its output in its log.
pub fn start(dir: &StateDir, part: Part, config: Option<&Path>) -> Result<Child, Failure> {
    let path = log::path(dir, part);
    let failed = |what: String, e: std::io::Error| {
        let full = full_disk(dir).map(|why| format!("; {why}")).unwrap_or_default();
        Failure::new(Kind::Internal, format!("{what}: {e}{full}"))
    };
    let open = || -> std::io::Result<(File, File)> {
        let file = log::open(&path)?;
        let again = file.try_clone()?;
        Ok((file, again))
    };
    let (out, err) = open().map_err(|e| failed(path.display().to_string(), e))?;
    let mut command = Command::new(crate::own_path()?);
    command.arg("--state").arg(&dir.0).arg(part.name()).arg("--background");
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command
        .current_dir("/")
        // Who waits for that is told by the one that it started.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|e| failed(format!("cannot start the {}", part.name()), e))
}

/// How long the lock of a daemon that was killed may take to be free: until the last of its threads is gone.
const DYING: Duration = Duration::from_secs(5);

/// A daemon's pid for `berth status` and `berth down`; gone with it. Two that start at the same moment have one file: the lock
/// tells which of them it is about.
pub struct PidFile {
    path: PathBuf,
    _lock: Flock<File>,
}

impl PidFile {
    /// Writes it, with the node's name, and the place of its image store where it has one. Another daemon of the kind that lives is an error.
    pub fn write(
        dir: &StateDir,
        part: Part,
        node: &NodeName,
        images: Option<&Path>,
    ) -> Result<PidFile, Failure> {
        let lock = PidFile::lock(dir, part)?;
        // One of an earlier version holds no lock; one that started itself again is the same process.
        if let Some(pid) = pid_file(dir, part).filter(|pid| u32::try_from(*pid) != Ok(std::process::id())) {
            return Err(runs_already(dir, part, Some(pid)));
        }
        let path = dir.run().join(format!("{}.json", part.name()));
        let fresh = path.with_extension("new");
        let mut value = serde_json::json!({
            "pid": std::process::id(), "version": berth_client::VERSION, "node": node,
        });
        if let Some(place) = images {
            value["images"] = serde_json::json!(ByteStr::from(place));
        }
        let text = value.to_string();
        std::fs::write(&fresh, text + "\n")
            .and_then(|()| std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o644)))
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|e| Failure::new(Kind::Internal, format!("{}: {e}", path.display())))?;
        Ok(PidFile { path, _lock: lock })
    }

    fn lock(dir: &StateDir, part: Part) -> Result<Flock<File>, Failure> {
        let path = dir.run().join(format!("{}.lock", part.name()));
        let failed =
            |e: std::io::Error| Failure::new(Kind::Internal, format!("cannot lock {}: {e}", path.display()));
        // Nobody else's to lock.
        let mut open = File::options();
        let mut file =
            open.create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
        let begun = Instant::now();
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((file, Errno::EWOULDBLOCK)) if begun.elapsed() < DYING => file,
                Err((_, Errno::EWOULDBLOCK)) => return Err(runs_already(dir, part, pid_file(dir, part))),
                Err((_, e)) => return Err(failed(e.into())),
            };
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn runs_already(dir: &StateDir, part: Part, pid: Option<i32>) -> Failure {
    let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let (part, dir) = (part.name(), dir.0.display());
    Failure::user(format!("an {part} runs already in {dir}{pid}; 'berth down' ends it"))
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // The next daemon writes it anew; one that is left names a pid that is no daemon of ours.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// How long threads that are still at work when a daemon has ended may take.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(5);

/// Runs a daemon's asynchronous part.
pub fn serve(work: Pin<Box<dyn Future<Output = Result<(), Failure>>>>) -> berth_client::error::Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot start: {e}")))?;
    let result = runtime.block_on(async {
        log::reopen_on_signals()?;
        work.await
    });
    // A thread may wait for what never comes: for the end of a process that hangs in the kernel, or for a file server.
    runtime.shutdown_timeout(LAST_WORDS);
    result.map(|()| 0)
}

/// Resolves when the daemon is asked to end.
pub fn ended_by_signal() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let fault = |e: std::io::Error| Failure::new(Kind::Internal, format!("cannot handle signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The `berth-step` program: beside this one, or in `../libexec/berth`.
pub fn step_program() -> Result<PathBuf, Failure> {
    let own = crate::own_path()?;
    let dir = own.parent().unwrap_or(Path::new("/"));
    let places = [dir.join("berth-step"), dir.join("../libexec/berth/berth-step")];
    match places.iter().find(|p| p.is_file()) {
        Some(found) => Ok(found.clone()),
        None => Err(Failure::new(
            Kind::Configuration,
            format!("berth-step is not in {}; install it beside berth", dir.display()),
        )),
    }
}

/// What a daemon begins with: its state directory, and its log. One in the background leaves the caller's session: what happens to a terminal is
/// no affair of it.
pub fn enter(options: &log::Options, state: Option<&Path>, part: Part) -> Result<StateDir, Failure> {
    if options.background {
        // It fails only for the leader of a group, who has no terminal to lose or was started so on purpose.
        let _ = nix::unistd::setsid();
    }
    let dir = StateDir::named_or_own(state)?;
    make_state(&dir)?;
    log::begin(options, &dir, part)?;
    Ok(dir)
}

/// The last lines of a log, for a message.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Whether we may end a daemon.
pub fn may_stop(pid: i32, part: Part) -> Result<(), Failure> {
    match kill(Pid::from_raw(pid), None) {
        Err(e @ Errno::EPERM) => Err(not_ours(pid, part, e)),
        _ => Ok(()),
    }
}

fn not_ours(pid: i32, part: Part, e: nix::errno::Errno) -> Failure {
    Failure::user(format!(
        "cannot end the {} (pid {pid}): {}; do it as the user who started the cluster, or as root",
        part.name(),
        e.desc()
    ))
}

/// Asks a process to end and waits until it is gone; without regard after `patience`.
pub fn stop(pid: i32, part: Part, patience: Duration) -> Result<(), Failure> {
    let target = Pid::from_raw(pid);
    match kill(target, Signal::SIGTERM) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(()),
        Err(e) => return Err(not_ours(pid, part, e)),
    }
    let deadline = Instant::now() + patience;
    let mut forced = false;
    loop {
        if !is_ours(pid, part) {
            return Ok(());
        }
        if Instant::now() > deadline {
            if forced {
                return Err(Failure::new(
                    Kind::Internal,
                    format!("the {} (pid {pid}) does not end; see 'ps -o stat,wchan {pid}'", part.name()),
                ));
            }
            forced = true;
            // It may have ended a moment ago.
            let _ = kill(target, Signal::SIGKILL);
            std::thread::sleep(Duration::from_millis(500));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
