//! Starts a container's init and speaks with it: the supervisor's side.

use crate::around::TaskProgram;
use crate::exec::ExecError;
use crate::hooks::{Alone, Attend, Attended, HookFailure};
use crate::job::{Holder, Prepared};
use crate::join::{ContainerNamespaces, Entered, JoinedNamespaces};
use crate::plan::{Mode, Ns, Plan, RootPlan};
use crate::protocol::{Message, Receiver, Request, SignalTarget, SpawnRequest, WireStdio, send_and_collect};
use crate::setup::{SetupFailure, SetupFds, map_text};
use crate::sys::fork::{CloneOptions, Forked, fork};
use crate::sys::share::Waiting;
use crate::sys::{Errno, userns, wait};
use crate::task::{TaskSpec, TaskStdio};
use berth_model::launch::Usage;
use berth_model::state::ExitStatus;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Why a container did not start, or is lost.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum LaunchError {
    #[error("{0}")]
    Setup(SetupFailure),
    #[error("cannot {action}: {}", crate::setup::errno_text(*.errno))]
    System { action: &'static str, errno: i32 },
    #[error(
        "containers start only from a process with one thread, and this one has more: start it before any \
         thread, or from the step supervisor"
    )]
    Threads,
    #[error("the container is to join its job's namespaces, and nobody says where they are")]
    NoJob,
    #[error("--container-subids: {0}")]
    SubIds(String),
    #[error("cannot make the container: {0}")]
    Hook(HookFailure),
    #[error("the step was ended before its container was made: {0}")]
    GivenUp(String),
    #[error("the container's init ended unexpectedly ({0})")]
    InitLost(String),
}

fn system(action: &'static str) -> impl Fn(Errno) -> LaunchError {
    move |e| LaunchError::System { action, errno: e.raw_os_error() }
}

/// What happened in a container.
#[derive(Debug)]
pub enum Event {
    /// A task's program runs.
    Started {
        /// The task's number.
        task: u32,
        /// Its pid as the container sees it.
        pid: i32,
        /// The master of its terminal, where it asked for one.
        pty: Option<OwnedFd>,
    },
    /// A task's program could not be started.
    ExecFailed {
        /// The task's number.
        task: u32,
        /// Why.
        error: ExecError,
    },
    /// Something that the user should know.
    Note(String),
    /// A task ended.
    Exited {
        /// The task's number.
        task: u32,
        /// How.
        status: ExitStatus,
        /// What it used, with the descendants it waited for.
        usage: Usage,
    },
}

/// How init is started.
#[derive(Debug, Default)]
pub struct StartOptions<'a> {
    /// A cgroup v2 directory in which init starts (no write to `cgroup.procs` is needed).
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A process parked beforehand in cgroups made beforehand (v1): it forks init.
    pub parked: Option<crate::park::Parked>,
    /// What the container takes from its job, where the plan says so; what is absent is made for it.
    pub namespaces: Prepared,
    /// Images of layers that are mounted already: [`crate::MountedImages`].
    pub images: Option<OwnedFd>,
    /// The running container that is entered, where the plan says so.
    pub joined: JoinedNamespaces,
    /// Tasks that start as soon as the container stands, asked for while it is made; their events follow.
    pub tasks: Vec<TaskSpec>,
}

/// Makes the user namespaces of a container of root's making that nobody prepared: the container's own, and the one through
/// which a store's files appear as the user's. Their makers end beside what comes next, and are waited for when dropped.
/// In user mode: the one of a container with subordinate ids, unless it lies within its job's.
fn user_namespaces(plan: &Plan, fds: &mut SetupFds) -> Result<Vec<Waiting>, LaunchError> {
    let mut makers = Vec::new();
    if enters_own(plan) && !plan.namespaces.in_job() {
        let made = crate::subids::namespace(&plan.uid_map, &plan.gid_map);
        fds.user_ns = Some(made.map_err(LaunchError::SubIds)?);
    }
    if plan.mode != Mode::System || plan.root == RootPlan::Host {
        return Ok(makers);
    }
    if fds.user_ns.is_none() {
        let (namespace, maker) = userns::begin(&map_text(&plan.uid_map), &map_text(&plan.gid_map))
            .map_err(clone_failed("make the user namespace"))?;
        fds.user_ns = Some(namespace);
        makers.push(maker);
    }
    if fds.idmap_ns.is_none()
        && let RootPlan::Overlay { owner: Some(owner), .. } = &plan.root
    {
        let id = &plan.identity;
        // In a mount's map the left side is the id on disk, the right side the id it appears as.
        let uid = format!("{} {} 1\n", owner.uid, id.uid);
        let gid = format!("{} {} 1\n", owner.gid, id.gid);
        let (namespace, maker) =
            userns::begin(&uid, &gid).map_err(clone_failed("make the mapping of the store's owner"))?;
        fds.idmap_ns = Some(namespace);
        makers.push(maker);
    }
    Ok(makers)
}

/// Whether init is forked by a process that has entered, or made, a user namespace with subordinate ids (user mode): init
/// itself cannot map them.
pub(crate) fn enters_own(plan: &Plan) -> bool {
    plan.mode == Mode::User && plan.subids && plan.root != RootPlan::Joined
}

fn clone_failed(action: &'static str) -> impl Fn(Errno) -> LaunchError {
    move |e| match e {
        Errno::BUSY => LaunchError::Threads,
        e => LaunchError::System { action, errno: e.raw_os_error() },
    }
}

/// What has to be done for the container's processes to end.
#[derive(Debug)]
enum EndOfInit {
    /// They end with init, which is pid 1.
    Namespace,
    /// Init is killed, and its orphans come to the job's holder.
    Orphans(Holder),
    /// Init ends its descendants.
    Descendants,
}

/// A running container. Dropping it ends the container.
#[derive(Debug)]
pub struct InitHandle {
    pid: i32,
    pidfd: OwnedFd,
    sock: OwnedFd,
    receiver: Receiver,
    end: EndOfInit,
    ended: bool,
    notes: Vec<String>,
    open: crate::join::Open,
}

/// Makes the container and waits until it stands. No task runs yet.
///
/// The calling process must have one thread: the child is a fork that goes on in this program.
///
/// # Errors
/// [`LaunchError`] names the step that failed, the file, the reason and what to do.
pub fn start_init(plan: &Plan, options: StartOptions<'_>) -> Result<InitHandle, LaunchError> {
    start_attended(plan, options, &mut Alone)
}

/// [`start_init`] by someone who has more to attend to while hooks run.
///
/// # Errors
/// As there, and [`LaunchError::GivenUp`].
pub fn start_attended(
    plan: &Plan,
    options: StartOptions<'_>,
    attend: &mut dyn Attend,
) -> Result<InitHandle, LaunchError> {
    let layer = crate::layer::make(plan)?;
    let Prepared { holder, user, idmap } = options.namespaces;
    let own_user = plan.namespaces.user != Ns::Job;
    let mut fds = SetupFds {
        user_ns: user.filter(|_| !own_user),
        idmap_ns: idmap,
        layer,
        images: options.images.filter(|_| plan.mode == Mode::System),
        holder: None,
        loops: crate::setup::image::by_loop(plan).map_err(LaunchError::Setup)?,
        join: options.joined.0,
    };
    if plan.root == RootPlan::Joined && plan.mode == Mode::System && own_user {
        let at = fds.join.iter().position(|(ns, _)| *ns == Entered::User);
        fds.user_ns = at.map(|at| fds.join.remove(at).1);
        if fds.user_ns.is_none() {
            return Err(LaunchError::NoJob);
        }
    }
    let mut parked = options.parked;
    let end = match (plan.namespaces.pid, holder) {
        (Ns::Own, _) => EndOfInit::Namespace,
        (Ns::Node, _) => EndOfInit::Descendants,
        (Ns::Job, None) => return Err(LaunchError::NoJob),
        (Ns::Job, Some(holder)) => {
            let copy = rustix::io::fcntl_dupfd_cloexec(holder.as_fd(), 3);
            fds.holder = Some(copy.map_err(system("hold the job's namespaces"))?);
            if parked.is_none() {
                // Whoever enters them does not come back: not this process.
                parked = Some(crate::park::Parked::new()?);
            }
            EndOfInit::Orphans(holder)
        }
    };
    if enters_own(plan) && parked.is_none() {
        parked = Some(crate::park::Parked::new()?);
    }
    let makers = user_namespaces(plan, &mut fds)?;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(system("make a socket"))?;
    let (pid, pidfd) = match parked {
        Some(parked) => parked.launch(plan, theirs, fds, options.cgroup)?,
        None => fork_init(plan, theirs, fds, options.cgroup, false)?,
    };
    let mut handle = InitHandle {
        pid,
        pidfd,
        sock: ours,
        receiver: Receiver::default(),
        end,
        ended: false,
        notes: Vec::new(),
        open: Vec::new(),
    };
    // With hooks init waits for a word before it reads of tasks.
    let (tasks, later) =
        if plan.hooks.is_some() { (Vec::new(), options.tasks) } else { (options.tasks, Vec::new()) };
    for task in tasks {
        if handle.spawn(task).is_err() {
            // Init is gone, and what it said of that is read below.
            break;
        }
    }
    drop(makers);
    let mut said = handle.message(true)?;
    if let (Some((Message::Mounted, _)), Some(hooks)) = (&said, &plan.hooks) {
        hooks.made(pid, attend).map_err(|failure| match failure.given_up {
            true => LaunchError::GivenUp(failure.to_string()),
            false => LaunchError::Hook(failure),
        })?;
        send_and_collect(handle.sock.as_fd(), &Request::Go { pid }, &[], &mut handle.receiver)
            .map_err(system("tell init that hooks have run"))?;
        said = handle.message_of_hooks(attend)?;
    }
    match said {
        Some((Message::Ready { notes, opened }, fds)) => {
            handle.notes = notes;
            handle.open = opened.into_iter().zip(fds).collect();
            if plan.joinable && !crate::join::init_opens(plan) {
                handle.open = match crate::join::open(plan, &pid.to_string()) {
                    // Its tasks run already, and may have ended it: then nobody joins it.
                    Err(Errno::NOENT | Errno::SRCH) => Vec::new(),
                    open => open.map_err(system("keep the container's namespaces at hand"))?,
                };
            }
            for task in later {
                handle.spawn(task)?;
            }
            Ok(handle)
        }
        Some((Message::Failed(failure), _)) => Err(LaunchError::Setup(failure)),
        Some((Message::HookFailed(failure), _)) => Err(LaunchError::Hook(failure)),
        Some(_) => Err(LaunchError::InitLost("it answered out of turn".into())),
        None => Err(handle.lost()),
    }
}

/// `CLONE_NEW*` bits of a plan. The cgroup namespace is made later, in the cgroup.
fn clone_flags(plan: &Plan) -> u64 {
    let ns = plan.namespaces;
    if plan.root == RootPlan::Joined {
        // All that it has is there.
        return 0;
    }
    // Within the job's, one of the container's own is made last; one with subordinate ids was entered before.
    let user = ns.user == Ns::Own && plan.mode == Mode::User && !ns.in_job() && !plan.subids;
    let bits = [
        (user, libc::CLONE_NEWUSER),
        (ns.mount, libc::CLONE_NEWNS),
        (ns.pid == Ns::Own, libc::CLONE_NEWPID),
        (ns.ipc == Ns::Own, libc::CLONE_NEWIPC),
        (ns.uts, libc::CLONE_NEWUTS),
        (ns.net, libc::CLONE_NEWNET),
    ];
    bits.iter().filter(|(on, _)| *on).fold(0, |flags, (_, bit)| flags | u64::from(bit.cast_unsigned()))
}

pub(crate) fn fork_init(
    plan: &Plan,
    sock: OwnedFd,
    fds: SetupFds,
    cgroup: Option<BorrowedFd<'_>>,
    sibling: bool,
) -> Result<(i32, OwnedFd), LaunchError> {
    let options = CloneOptions { namespaces: clone_flags(plan), cgroup, sibling };
    match fork(options) {
        Ok(Forked::Child) => crate::init::main(plan, sock, fds),
        Ok(Forked::Parent { pid, pidfd }) => Ok((pid, pidfd)),
        Err(Errno::BUSY) if !crate::sys::fork::single_threaded() => Err(LaunchError::Threads),
        Err(e) => Err(LaunchError::Setup(namespace_failure(plan, e))),
    }
}

fn namespace_failure(plan: &Plan, errno: Errno) -> SetupFailure {
    let hint = match (plan.mode, errno) {
        (Mode::User, Errno::PERM | Errno::NOSPC | Errno::USERS | Errno::ACCESS) => {
            Some("user namespaces are restricted here: `berth doctor` says how to allow them".to_string())
        }
        _ => None,
    };
    SetupFailure {
        action: "make the container's namespaces".into(),
        path: None,
        errno: errno.raw_os_error(),
        hint,
    }
}

impl InitHandle {
    /// Readable when something happened: then call [`InitHandle::next_event`] until it says `None`, because
    /// one read may bring several events. Where tasks were given to [`start_init`], also before the first wait.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.sock.as_fd()
    }

    /// Init's pid as the caller sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Init's pidfd: readable when init has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Where this process keeps the container's namespaces for other steps, where the plan says so.
    pub fn namespaces(&self) -> Option<ContainerNamespaces> {
        if self.open.is_empty() { None } else { crate::join::held(&self.open) }
    }

    /// What was done otherwise than asked, such as a clamped limit.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Asks for a task; [`Event::Started`] or [`Event::ExecFailed`] answers.
    ///
    /// # Errors
    /// Init is gone, or the task's argument list is beyond all measure.
    pub fn spawn(&mut self, task: TaskSpec) -> Result<(), LaunchError> {
        let mut fds: Vec<OwnedFd> = Vec::new();
        let stdio = match task.stdio {
            TaskStdio::Null => WireStdio::Fds([false; 3]),
            TaskStdio::Fds { stdin, stdout, stderr } => {
                let present = [stdin.is_some(), stdout.is_some(), stderr.is_some()];
                fds.extend([stdin, stdout, stderr].into_iter().flatten());
                WireStdio::Fds(present)
            }
            TaskStdio::Pty(size) => WireStdio::Pty(size),
        };
        let (cwd, cwd_origin) = match task.cwd {
            Some((path, origin)) => (Some(path), origin),
            None => (None, String::new()),
        };
        let extra = task.extra_fds.iter().map(|(n, _)| *n).collect();
        fds.extend(task.extra_fds.into_iter().map(|(_, fd)| fd));
        let group = task.group.is_some();
        fds.extend(task.group);
        let before = task.before.iter().map(TaskProgram::wire).collect();
        let after = task.after.iter().map(TaskProgram::wire).collect();
        fds.extend(task.before.into_iter().chain(task.after).filter_map(|program| program.file));
        let request = Request::Spawn(Box::new(SpawnRequest {
            task: task.id,
            argv: task.argv,
            env: task.env,
            cwd,
            cwd_origin,
            stdio,
            cpus: task.cpus,
            memory: task.memory,
            says: task.says,
            umask: task.umask,
            pid_env: task.pid_env,
            name: task.name,
            extra,
            group,
            before,
            after,
            last: task.last,
        }));
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        send_and_collect(self.sock.as_fd(), &request, &borrowed, &mut self.receiver)
            .map_err(system("ask init for a task"))
    }

    /// Has the root's files, without what is mounted in it, given to `out` as a POSIX archive; what goes wrong is told to
    /// `unread`. Both are closed at the end.
    ///
    /// # Errors
    /// Init is gone.
    pub fn export(&mut self, out: OwnedFd, unread: OwnedFd) -> Result<(), LaunchError> {
        send_and_collect(
            self.sock.as_fd(),
            &Request::Export,
            &[out.as_fd(), unread.as_fd()],
            &mut self.receiver,
        )
        .map_err(system("ask init for the container's files"))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Init is gone.
    pub fn signal(&mut self, target: SignalTarget, signal: i32) -> Result<(), LaunchError> {
        send_and_collect(self.sock.as_fd(), &Request::Signal { target, signal }, &[], &mut self.receiver)
            .map_err(system("ask init for a signal"))
    }

    /// The next event; with `wait`, waits for one. `Ok(None)` without `wait`: nothing happened yet.
    ///
    /// # Errors
    /// [`LaunchError::InitLost`] when init ended.
    pub fn next_event(&mut self, wait: bool) -> Result<Option<Event>, LaunchError> {
        match self.message(wait)? {
            Some((message, mut fds)) => Ok(Some(match message {
                Message::Started { task, pid, pty } => {
                    Event::Started { task, pid, pty: if pty { fds.pop() } else { None } }
                }
                Message::ExecFailed { task, error } => Event::ExecFailed { task, error },
                Message::Note(text) => Event::Note(text),
                Message::Exited { task, status, user_us, system_us, max_rss_kib } => Event::Exited {
                    task,
                    status: exit_status(status),
                    usage: Usage {
                        user_us,
                        system_us,
                        max_rss: max_rss_kib.saturating_mul(1024),
                        ..Usage::default()
                    },
                },
                Message::Ready { .. } | Message::Failed(_) | Message::Mounted | Message::HookFailed(_) => {
                    return Err(LaunchError::InitLost("it answered out of turn".into()));
                }
            })),
            None if self.receiver.ended => Err(self.lost()),
            None => Ok(None),
        }
    }

    /// The next message; `None` at the end of the stream, and when nothing is there and `wait` is off.
    fn message(&mut self, wait: bool) -> Result<Option<(Message, Vec<OwnedFd>)>, LaunchError> {
        loop {
            if let Some(found) = self.receiver.next().map_err(system("understand init"))? {
                return Ok(Some(found));
            }
            if self.receiver.ended {
                return Ok(None);
            }
            self.receiver.fill(&self.sock, wait).map_err(system("hear from init"))?;
            if !wait {
                return self.receiver.next().map_err(system("understand init"));
            }
        }
    }

    /// The next message, which comes when init has run its hooks. Where they are not waited for, they end with init.
    fn message_of_hooks(
        &mut self,
        attend: &mut dyn Attend,
    ) -> Result<Option<(Message, Vec<OwnedFd>)>, LaunchError> {
        loop {
            let said = self.message(false)?;
            if said.is_some() || self.receiver.ended {
                return Ok(said);
            }
            match attend.wait(&[self.sock.as_fd()], None) {
                Ok(Attended::On) => {}
                Ok(Attended::GivenUp) => {
                    return Err(LaunchError::GivenUp("its hooks in the container were ended with it".into()));
                }
                Err(e) => {
                    let errno = e.raw_os_error().unwrap_or(libc::EIO);
                    return Err(LaunchError::System { action: "wait for init", errno });
                }
            }
        }
    }

    fn lost(&mut self) -> LaunchError {
        let how = match wait::wait_pidfd(&self.pidfd) {
            Ok(code) => {
                self.gone();
                format!("exit code {code}")
            }
            Err(e) => e.to_string(),
        };
        LaunchError::InitLost(how)
    }

    /// Ends the container: every process of it, and its mounts with them. Waits until they are gone.
    ///
    /// In a job's pid namespace only this container's processes end. Without a pid namespace (`host:` in user
    /// mode) init ends its descendants first; one that changed to another user can only be ended through its
    /// cgroup.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(mut self) -> Result<(), LaunchError> {
        self.end().map_err(system("end the container"))
    }

    /// Init has ended; what it leaves ends too.
    fn gone(&mut self) {
        self.ended = true;
        if let EndOfInit::Orphans(holder) = &self.end {
            holder.end_orphans();
        }
    }

    fn end(&mut self) -> Result<(), Errno> {
        if self.ended {
            return Ok(());
        }
        if matches!(self.end, EndOfInit::Descendants) {
            let _ = rustix::net::shutdown(&self.sock, rustix::net::Shutdown::Both);
        } else {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        wait::wait_pidfd(&self.pidfd)?;
        self.gone();
        Ok(())
    }
}

impl Drop for InitHandle {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Reads a raw wait status.
fn exit_status(status: i32) -> ExitStatus {
    let [low, code, ..] = status.to_le_bytes();
    match low & 0x7f {
        0 => ExitStatus { code, signal: 0 },
        signal => ExitStatus { code: 0, signal },
    }
}
