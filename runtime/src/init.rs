//! The container's init, which is pid 1 where the pid namespace is its own: starts tasks, reaps everything,
//! reports, and ends with its supervisor.

use crate::join;
use crate::plan::{Ns, Plan, RootPlan};
use crate::procfs::{children, descendants};
use crate::protocol::{Message, Receiver, Request, SignalTarget, send};
use crate::setup::{self, Made, Refused, SetupFailure, SetupFds};
use crate::start::{After, start, wind_up};
use crate::sys::exec::{close_all_from, place_at};
use crate::sys::fork::{CloneOptions, Forked, exit_now, fork};
use crate::sys::{Errno, SysResult, signals, wait};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The life of init, from the clone to the end. Never returns into the supervisor's copy of the stack.
pub(crate) fn main(plan: &Plan, sock: OwnedFd, fds: SetupFds) -> ! {
    // Nothing may unwind into frames that belong to the parent.
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life(plan, sock, fds)));
    exit_now(code.unwrap_or(70))
}

fn life(plan: &Plan, sock: OwnedFd, fds: SetupFds) -> i32 {
    let prepared = only_own_descriptors(&sock, &fds);
    signals::reset();
    signals::set_mask(u64::MAX);
    // The supervisor's own mask is for its spool; mount targets and /etc are for everyone in the container.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let result = prepared.map_err(|e| failure("close the supervisor's descriptors", e).into());
    let pause = Pause { sock: sock.as_fd() };
    let made = result.and_then(|()| setup::run(plan, &fds, &pause)).and_then(|made| inside(plan, made));
    let Made { notes, root, .. } = match made {
        Ok(made) => made,
        Err(refused) => {
            let message = match refused {
                Refused::Setup(failure) => Message::Failed(failure),
                Refused::Hook(failure) => Message::HookFailed(failure),
            };
            let _ = send(sock.as_fd(), &message, &[]);
            return 1;
        }
    };
    drop(fds);
    let ready = signals::signalfd(signals::bit(libc::SIGCHLD));
    let mut init = match ready {
        Ok(signal_fd) => Init {
            plan,
            sock,
            signal_fd,
            root,
            tasks: BTreeMap::new(),
            swept: None,
            beginning: Vec::new(),
            after: BTreeMap::new(),
            winding_up: BTreeMap::new(),
            last: None,
            over: false,
            full: false,
        },
        Err(e) => {
            let _ = send(sock.as_fd(), &Message::Failed(failure("watch for ended tasks", e)), &[]);
            return 1;
        }
    };
    let open = if join::init_opens(plan) { join::open(plan, "self") } else { Ok(Vec::new()) };
    let told = match open {
        Ok(open) => {
            let fds: Vec<BorrowedFd<'_>> = open.iter().map(|(_, fd)| fd.as_fd()).collect();
            init.tell(&Message::Ready { notes, opened: open.iter().map(|(ns, _)| *ns).collect() }, &fds)
        }
        Err(e) => init.tell(&Message::Failed(failure("keep the container's namespaces at hand", e)), &[]),
    };
    if told.is_err() {
        return 1;
    }
    init.serve();
    if plan.namespaces.pid != Ns::Own {
        kill_descendants();
    }
    0
}

/// Where the making of a container waits for hooks.
pub(crate) struct Pause<'a> {
    sock: BorrowedFd<'a>,
}

impl Pause<'_> {
    /// Says that all is mounted, and waits until the supervisor has run what runs on the node. Returns the own pid, as the
    /// node sees it.
    pub(crate) fn mounted(&self) -> SysResult<i32> {
        send(self.sock, &Message::Mounted, &[])?;
        let mut receiver = Receiver::default();
        loop {
            match receiver.next::<Request>()? {
                Some((Request::Go { pid }, _)) => return Ok(pid),
                Some(_) => return Err(Errno::PROTO),
                None if receiver.ended => return Err(Errno::PIPE),
                None => receiver.fill(self.sock, true)?,
            }
        }
    }
}

/// Runs the hooks that run in the container.
fn inside(plan: &Plan, made: Made) -> Result<Made, Refused> {
    if let Some(hooks) = plan.hooks.as_ref().filter(|hooks| !hooks.hooks.start_container.is_empty()) {
        let pid = made.pid.unwrap_or_else(|| rustix::process::getpid().as_raw_nonzero().get());
        unblocked(|| hooks.inside(pid)).map_err(Refused::Hook)?;
    }
    Ok(made)
}

/// Programs start with the mask of whoever starts them.
pub(crate) fn unblocked<T>(action: impl FnOnce() -> T) -> T {
    signals::set_mask(0);
    let result = action();
    signals::set_mask(u64::MAX);
    result
}

fn failure(action: &str, errno: Errno) -> SetupFailure {
    SetupFailure { action: action.into(), path: None, errno: errno.raw_os_error(), hint: None }
}

/// Keeps the socket and the namespaces; standard streams become `/dev/null`.
fn only_own_descriptors(sock: &OwnedFd, fds: &SetupFds) -> SysResult<()> {
    let mut keep: Vec<RawFd> = vec![sock.as_raw_fd()];
    keep.extend(fds.all().map(AsRawFd::as_raw_fd));
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
    for n in 0..3 {
        if !keep.contains(&n) {
            place_at(null.as_fd(), n)?;
        }
    }
    std::mem::forget(null);
    close_all_from(3, &keep)
}

struct Init<'a> {
    plan: &'a Plan,
    sock: OwnedFd,
    signal_fd: OwnedFd,
    /// The root's mount alone, where its files are to be read.
    root: Option<OwnedFd>,
    /// Task numbers by pid.
    tasks: BTreeMap<i32, u32>,
    /// The last signal that was to end every process, and who got it.
    swept: Option<(i32, BTreeSet<i32>)>,
    /// Tasks before whose programs others run.
    beginning: Vec<Beginning>,
    /// What runs when a task has ended, by its pid.
    after: BTreeMap<i32, After>,
    /// What runs now after a task that has ended, by its own pid.
    winding_up: BTreeMap<i32, (u32, wait::Reaped)>,
    /// The task with which the container ends.
    last: Option<u32>,
    /// It has ended.
    over: bool,
    /// The user was told that the writable layer is full.
    full: bool,
}

/// Signals by which a process ends that makes no arrangement for them, and which are sent for that.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
/// A task before whose program others run.
struct Beginning {
    task: u32,
    pid: i32,
    /// Its terminal, to be told with its start.
    master: Option<OwnedFd>,
    /// Ends when the task's program runs, or is not going to.
    outcome: OwnedFd,
    /// Why it is not going to, as far as that was said.
    said: Vec<u8>,
    /// All was said.
    closed: bool,
}

impl Beginning {
    /// Takes what is there to be read.
    fn listen(&mut self) {
        let mut chunk = [0u8; 4096];
        match rustix::io::read(&self.outcome, &mut chunk) {
            Ok(0) => self.closed = true,
            Ok(n) => self.said.extend_from_slice(&chunk[..n]),
            Err(Errno::INTR) => {}
            Err(_) => self.closed = true,
        }
    }
}

/// Less than this left over is nothing for a program: a filesystem refuses a large write before it is full.
const FULL: u64 = 1 << 20;

impl Init<'_> {
    fn tell(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> SysResult<()> {
        send(self.sock.as_fd(), message, fds)
    }

    fn serve(&mut self) {
        let mut receiver = Receiver::default();
        loop {
            let mut polled =
                vec![PollFd::new(&self.sock, PollFlags::IN), PollFd::new(&self.signal_fd, PollFlags::IN)];
            let listened: Vec<i32> = self.beginning.iter().filter(|b| !b.closed).map(|b| b.pid).collect();
            polled.extend(
                self.beginning.iter().filter(|b| !b.closed).map(|b| PollFd::new(&b.outcome, PollFlags::IN)),
            );
            match poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let heard: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            let (talk, child) = (heard[0], heard[1]);
            for (pid, _) in listened.iter().zip(&heard[2..]).filter(|(_, heard)| **heard) {
                if self.begun(*pid).is_err() {
                    return;
                }
            }
            if child && (self.reap().is_err() || self.over) {
                return;
            }
            if talk {
                if receiver.fill(&self.sock, false).is_err() {
                    return;
                }
                loop {
                    match receiver.next::<Request>() {
                        Ok(Some((request, fds))) => {
                            if self.handle(request, fds).is_err() {
                                return;
                            }
                        }
                        Ok(None) => break,
                        Err(_) => return,
                    }
                }
                if receiver.ended {
                    return;
                }
            }
        }
    }

    /// Only a lost supervisor is an error here.
    fn handle(&mut self, request: Request, fds: Vec<OwnedFd>) -> SysResult<()> {
        match request {
            Request::Signal { target, signal } => {
                self.signal(target, signal);
                Ok(())
            }
            // Told once, while the container was made.
            Request::Go { .. } => Ok(()),
            Request::Export => {
                self.swept = None;
                self.export(&fds);
                Ok(())
            }
            Request::Spawn(spawn) => {
                let task = spawn.task;
                if spawn.last {
                    self.last = Some(task);
                }
                match start(self.plan, *spawn, fds) {
                    Ok(started) => {
                        self.tasks.insert(started.pid, task);
                        let (pid, master) = (started.pid, started.master);
                        if let Some(after) = started.after {
                            self.after.insert(pid, after);
                        }
                        match started.outcome {
                            None => self.started(task, pid, master),
                            Some(outcome) => {
                                let said = Vec::new();
                                self.beginning.push(Beginning {
                                    task,
                                    pid,
                                    master,
                                    outcome,
                                    said,
                                    closed: false,
                                });
                                Ok(())
                            }
                        }
                    }
                    Err(error) => self.tell(&Message::ExecFailed { task, error }, &[]),
                }
            }
        }
    }

    fn started(&self, task: u32, pid: i32, master: Option<OwnedFd>) -> SysResult<()> {
        let fds: Vec<BorrowedFd<'_>> = master.iter().map(AsFd::as_fd).collect();
        self.tell(&Message::Started { task, pid, pty: master.is_some() }, &fds)
    }

    /// Hears a process that is about to become a task. What went wrong is told when it has ended.
    fn begun(&mut self, pid: i32) -> SysResult<()> {
        let Some(at) = self.beginning.iter().position(|b| b.pid == pid) else { return Ok(()) };
        self.beginning[at].listen();
        if !self.beginning[at].closed || !self.beginning[at].said.is_empty() {
            return Ok(());
        }
        let Beginning { task, pid, master, .. } = self.beginning.swap_remove(at);
        self.started(task, pid, master)
    }

    /// One that was about to become a task has ended: whether as a task.
    fn ended_before(&mut self, pid: i32) -> SysResult<bool> {
        let Some(at) = self.beginning.iter().position(|b| b.pid == pid) else { return Ok(true) };
        let mut begun = self.beginning.swap_remove(at);
        while !begun.closed {
            // It is gone, and nobody else has the other end.
            begun.listen();
        }
        match serde_json::from_slice(&begun.said) {
            Ok(error) => {
                self.tell(&Message::ExecFailed { task: begun.task, error }, &[])?;
                Ok(false)
            }
            // Killed, or so quick that its end is heard first.
            Err(_) => {
                self.started(begun.task, pid, begun.master)?;
                Ok(true)
            }
        }
    }

    /// Has a process of the container's write its files. What goes wrong is told by its end of the second descriptor.
    fn export(&self, fds: &[OwnedFd]) {
        let [out, unread] = fds else { return };
        let tell = |failure: &SetupFailure| {
            // Whoever does not listen is gone.
            let _ = rustix::io::write(unread, failure.to_string().as_bytes());
        };
        let Some(root) = &self.root else {
            return tell(&failure("read the container's files", Errno::NOENT));
        };
        match fork(CloneOptions::default()) {
            Ok(Forked::Child) => {
                signals::set_mask(0);
                // The supervisor notices init's end by its socket, which nobody else may hold.
                let keep = [root.as_raw_fd(), out.as_raw_fd(), unread.as_raw_fd()];
                if let Err(e) = close_all_from(3, &keep) {
                    tell(&failure("close init's descriptors", e));
                    exit_now(1);
                }
                let result = crate::export::write(root.as_fd(), out.as_fd(), self.plan.subids);
                if let Err(failure) = &result {
                    tell(failure);
                }
                exit_now(i32::from(result.is_err()))
            }
            Ok(Forked::Parent { .. }) => {}
            Err(e) => tell(&failure("start a process", e)),
        }
    }

    fn signal(&mut self, target: SignalTarget, signal: i32) {
        // A process that ended meanwhile is no error.
        let send = |pid: i32| {
            let _ = signals::kill(pid, signal);
        };
        let wanted = |task: u32| self.tasks.iter().filter(move |(_, t)| **t == task).map(|(p, _)| *p);
        match target {
            SignalTarget::Process(task) => wanted(task).for_each(send),
            SignalTarget::Task(task) => wanted(task).for_each(|pid| send(-pid)),
            SignalTarget::AllTasks => self.tasks.keys().for_each(|pid| send(-pid)),
            SignalTarget::Everything if self.plan.namespaces.pid == Ns::Own => send(-1),
            // Other steps live in the same pid namespace. Where `/proc` was taken away the tasks are known.
            SignalTarget::Everything => {
                let found = descendants();
                let missed: Vec<i32> = self.tasks.keys().copied().filter(|t| !found.contains(t)).collect();
                let all: BTreeSet<i32> = found.into_iter().chain(missed).collect();
                all.iter().copied().for_each(send);
                self.swept = ENDING.contains(&signal).then_some((signal, all));
            }
        }
    }

    /// Passes the last signal on to orphans that were born while it went round: a shell that was just starting a
    /// command ends by it, and the command would be left. What a process that lives on starts is its own business.
    fn sweep_orphans(&mut self) {
        let Some((signal, reached)) = &mut self.swept else { return };
        let me = rustix::process::getpid().as_raw_nonzero().get();
        for orphan in children(me) {
            // Nor what is to run when a task has ended.
            let own = self.tasks.contains_key(&orphan) || self.winding_up.contains_key(&orphan);
            if !own && reached.insert(orphan) {
                // It may have ended meanwhile.
                let _ = signals::kill(orphan, *signal);
            }
        }
    }

    fn reap(&mut self) -> SysResult<()> {
        let mut scratch = [0u8; 128];
        // The signals merge: one read clears the level, then everything that ended is collected.
        let _ = rustix::io::read(&self.signal_fd, &mut scratch);
        while let Ok(Some(r)) = wait::reap_any() {
            if let Some((task, ended)) = self.winding_up.remove(&r.pid) {
                self.ended(task, &ended)?;
            }
            let Some(task) = self.tasks.remove(&r.pid) else { continue };
            let after = self.after.remove(&r.pid);
            if !self.ended_before(r.pid)? {
                continue;
            }
            let winds_up = after.and_then(|after| wind_up(self.plan, &after, r.pid).ok());
            match winds_up {
                Some(pid) => {
                    self.winding_up.insert(pid, (task, r));
                }
                None => self.ended(task, &r)?,
            }
        }
        self.sweep_orphans();
        Ok(())
    }

    fn ended(&mut self, task: u32, r: &wait::Reaped) -> SysResult<()> {
        self.over |= self.last == Some(task);
        if r.status != 0
            && !self.full
            && let Some(note) = full_layer(self.plan)
        {
            self.full = true;
            self.tell(&Message::Note(note), &[])?;
        }
        let wait::Reaped { status, user_us, system_us, max_rss_kib, .. } = *r;
        self.tell(&Message::Exited { task, status, user_us, system_us, max_rss_kib }, &[])
    }
}

/// Why a task may have failed: what it may write is used up.
fn full_layer(plan: &Plan) -> Option<String> {
    let RootPlan::Overlay { size: Some(size), .. } = &plan.root else { return None };
    let space = rustix::fs::statvfs("/").ok()?;
    (space.f_bavail.saturating_mul(space.f_frsize) < FULL.min(*size / 8)).then(|| {
        format!(
            "the container's writable layer is full: {} MiB (--container-writable-layer); ask for more, or write to a \
             directory of --container-mounts",
            size >> 20
        )
    })
}

/// Ends every descendant of init, which adopts all orphans (it has no pid namespace of its own to do that by
/// ending).
fn kill_descendants() {
    // Each round's orphans come to init; processes that are not ours to signal end the loop.
    for _ in 0..1000 {
        let alive = descendants();
        let reached = alive.iter().filter(|pid| signals::kill(**pid, libc::SIGKILL).is_ok()).count();
        if reached == 0 {
            return;
        }
        while let Ok(Some(_)) = wait::reap_any() {}
        let pause = rustix::time::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let _ = poll(&mut [], Some(&pause));
    }
}
