//! A job's namespaces on a node, and their holder: pid 1 of the job's processes, which outlives its steps.
//!
//! The holder is forked before its job is known and waits. Told to begin, it makes what the job's containers
//! share: a user namespace (in user mode it was born in one), an idmapping of the store, and `/dev/shm` in a
//! mount namespace that holds nothing else. From then on it sleeps: its children reap themselves, and
//! its end is the end of every process of the job.

use crate::launch::LaunchError;
use crate::plan::{IdMap, Mode, Plan};
use crate::protocol::{Receiver, send};
use crate::request::StoreOwner;
use crate::setup::{SetupFailure, SetupFds, map_text};
use crate::subids::SubIds;
use crate::sys::exec::{close_all_from, place_at};
use crate::sys::fork::{self, CloneOptions, Forked, exit_now, fork};
use crate::sys::{Errno, signals, userns};
use berth_model::spec::Identity;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal};
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Numbers under which the holder keeps what has no process: the job's user namespace (system mode) and the
/// mapping of the store's owner.
const USER_FD: RawFd = 3;
const IDMAP_FD: RawFd = 4;
/// Everything else it opens gets a number from here on, or goes soon.
const OUT_OF_THE_WAY: RawFd = 16;

/// How long processes that were killed may take to go before they are left to whoever removes the job.
const PATIENCE: Duration = Duration::from_secs(2);

/// A job's namespaces, by the process that holds them. Names that process for ever: pids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobNamespaces {
    /// Its pid on the node.
    pub pid: i32,
    /// When it started, in the kernel's ticks since boot.
    pub start_ticks: u64,
}

/// What a job's containers share, to be made by the holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRequest {
    uid_map: Vec<IdMap>,
    gid_map: Vec<IdMap>,
    /// On-disk owner of the store's files and the ids as which they appear.
    owner: Option<(StoreOwner, u32, u32)>,
    shm_size: Option<u64>,
    /// The maps are written by whoever asks: an ordinary user maps one id without help.
    #[serde(default)]
    mapped: bool,
}

impl JobRequest {
    /// For a job of this user. `owner`: the store's identity, where that is not the user's (system mode).
    /// `shm_size`: bytes for `/dev/shm`; absent means the kernel's default. `subids`: in user mode, those of the job's
    /// containers; in system mode a container with such ids has a namespace beside the job's.
    pub fn new(
        who: &Identity,
        mode: Mode,
        owner: Option<StoreOwner>,
        shm_size: Option<u64>,
        subids: Option<&SubIds>,
    ) -> JobRequest {
        let subids = subids.filter(|_| mode == Mode::User);
        let (uid_map, gid_map) = crate::plan::job_maps(who, mode, subids);
        let owner = owner.filter(|_| mode == Mode::System).map(|o| (o, who.uid.0, who.gid.0));
        JobRequest { uid_map, gid_map, owner, shm_size, mapped: subids.is_some() }
    }
}

#[derive(Serialize, Deserialize)]
enum Order {
    /// Make what the job needs; answered.
    Begin(JobRequest),
    /// Live on without whoever speaks.
    Stay,
}

/// The side of whoever asked for the holder. Until [`HolderLink::stay`] the holder ends when this is dropped.
#[derive(Debug)]
pub struct HolderLink {
    sock: OwnedFd,
    receiver: Receiver,
}

impl HolderLink {
    /// `sock`: the other end of the one that [`fork_holder`] got.
    pub fn new(sock: OwnedFd) -> HolderLink {
        HolderLink { sock, receiver: Receiver::default() }
    }

    /// Asks for what the job needs; [`HolderLink::ready`] waits for it.
    ///
    /// `pid`: the holder's on the node.
    ///
    /// # Errors
    /// The holder is gone, or the user's ids cannot be mapped.
    pub fn begin(&mut self, pid: i32, request: JobRequest) -> Result<(), LaunchError> {
        if request.mapped {
            crate::subids::map(pid, &request.uid_map, &request.gid_map).map_err(LaunchError::SubIds)?;
        }
        send(self.sock.as_fd(), &Order::Begin(request), &[])
            .map_err(system("speak to the job's first process"))
    }

    /// Waits until everything is there.
    ///
    /// # Errors
    /// What the holder could not make, and why.
    pub fn ready(&mut self) -> Result<(), LaunchError> {
        loop {
            let next = self.receiver.next::<Option<SetupFailure>>();
            match next.map_err(system("understand the job's first process"))? {
                Some((None, _)) => return Ok(()),
                Some((Some(failure), _)) => return Err(LaunchError::Setup(failure)),
                None if self.receiver.ended => {
                    return Err(LaunchError::InitLost("the job's first process is gone".into()));
                }
                None => self
                    .receiver
                    .fill(&self.sock, true)
                    .map_err(system("hear from the job's first process"))?,
            }
        }
    }

    /// From now on the holder lives until [`JobNamespaces::end`].
    ///
    /// # Errors
    /// The holder is gone.
    pub fn stay(self) -> Result<(), LaunchError> {
        send(self.sock.as_fd(), &Order::Stay, &[]).map_err(system("speak to the job's first process"))
    }
}

fn system(action: &'static str) -> impl Fn(Errno) -> LaunchError {
    move |e| LaunchError::System { action, errno: e.raw_os_error() }
}

/// Forks a holder, as a child of the caller, which must have one thread. It waits for orders on `sock`.
///
/// # Errors
/// The kernel's, or [`LaunchError::Threads`].
pub fn fork_holder(mode: Mode, sock: OwnedFd) -> Result<(i32, OwnedFd), LaunchError> {
    let mut namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
    if mode == Mode::User {
        namespaces |= libc::CLONE_NEWUSER;
    }
    let options =
        CloneOptions { namespaces: u64::from(namespaces.cast_unsigned()), ..CloneOptions::default() };
    match fork(options) {
        Ok(Forked::Child) => {
            // Nothing may unwind into frames that belong to the parent.
            let life = std::panic::AssertUnwindSafe(|| life(mode, sock));
            exit_now(std::panic::catch_unwind(life).unwrap_or(70))
        }
        Ok(Forked::Parent { pid, pidfd }) => Ok((pid, pidfd)),
        Err(Errno::BUSY) if !fork::single_threaded() => Err(LaunchError::Threads),
        Err(e) => Err(system("make the job's namespaces")(e)),
    }
}

/// The life of a holder.
fn life(mode: Mode, sock: OwnedFd) -> i32 {
    let Ok(sock) = own_descriptors(sock) else { return 1 };
    signals::reset();
    signals::set_mask(u64::MAX);
    // Orphans of the job come here; nobody waits for them.
    signals::ignore(libc::SIGCHLD);
    let _ = rustix::thread::set_name(c"berth-job");
    let mut receiver = Receiver::default();
    loop {
        match receiver.next::<Order>() {
            Ok(Some((Order::Begin(request), _))) => {
                let failure = make(mode, &request).err();
                if send(sock.as_fd(), &failure, &[]).is_err() || failure.is_some() {
                    return 1;
                }
            }
            Ok(Some((Order::Stay, _))) => break,
            Ok(None) if !receiver.ended => {
                if receiver.fill(&sock, true).is_err() {
                    return 1;
                }
            }
            _ => return 0,
        }
    }
    drop(sock);
    loop {
        let _ = poll(&mut [], None);
    }
}

/// Keeps the socket alone, above the numbers that the namespaces will have.
fn own_descriptors(sock: OwnedFd) -> Result<OwnedFd, Errno> {
    let moved = rustix::io::fcntl_dupfd_cloexec(&sock, OUT_OF_THE_WAY)?;
    // Closed below with everything else.
    std::mem::forget(sock);
    let sock = moved;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, FileMode::empty())?;
    for n in 0..3 {
        place_at(null.as_fd(), n)?;
    }
    std::mem::forget(null);
    close_all_from(3, &[sock.as_raw_fd()])?;
    Ok(sock)
}

fn make(mode: Mode, request: &JobRequest) -> Result<(), SetupFailure> {
    let failed = |action: &'static str| {
        move |e: Errno| SetupFailure {
            action: action.into(),
            path: None,
            errno: e.raw_os_error(),
            hint: None,
        }
    };
    if mode == Mode::User {
        if !request.mapped {
            let proc = crate::setup::open_procfs()?;
            crate::setup::map_own_ids(&proc, &request.uid_map, &request.gid_map)?;
        }
    } else {
        let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
        let user = (map_text(&request.uid_map), map_text(&request.gid_map));
        keep(USER_FD, &user).map_err(failed("make the job's user namespace"))?;
        if let Some((owner, uid, gid)) = &request.owner {
            // In a mount's map the left side is the id on disk, the right side the id it appears as.
            let store = (format!("{} {uid} 1\n", owner.uid), format!("{} {gid} 1\n", owner.gid));
            keep(IDMAP_FD, &store).map_err(failed("make the mapping of the store's owner"))?;
        }
        // Nobody but root has anything to look for here. In user mode the job's processes have no capability
        // over the namespace in which the holder has all, which keeps them off as well, and the user's own
        // supervisors must be able to enter.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(failed("protect the job's first process"))?;
    }
    crate::setup::hold_shm(request.shm_size)
}

/// Makes a user namespace and keeps it under a number at which it is found.
fn keep(number: RawFd, (uid_map, gid_map): &(String, String)) -> Result<(), Errno> {
    let ns = userns::create_seen_from_above(uid_map, gid_map)?;
    // It may have been given the very number.
    let away = rustix::io::fcntl_dupfd_cloexec(&ns, OUT_OF_THE_WAY)?;
    drop(ns);
    place_at(away.as_fd(), number)
}

/// Which namespaces of the holder are entered by name; the mount namespace is entered for a moment only.
fn joined(mode: Mode, ipc: bool) -> ThreadNameSpaceType {
    let mut types = ThreadNameSpaceType::PROCESS_ID;
    if ipc {
        types |= ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    }
    if mode == Mode::User {
        types |= ThreadNameSpaceType::USER;
    }
    types
}

/// Enters what a plan takes from its job: processes forked from now on are the job's.
pub(crate) fn enter(plan: &Plan, fds: &SetupFds) -> Result<(), SetupFailure> {
    let Some(holder) = fds.holder.as_ref().filter(|_| plan.namespaces.in_job()) else { return Ok(()) };
    let types = joined(plan.mode, plan.namespaces.ipc == crate::plan::Ns::Job);
    rustix::thread::move_into_thread_name_spaces(holder.as_fd(), types).map_err(|e| SetupFailure {
        action: "enter the job's namespaces".into(),
        path: None,
        errno: e.raw_os_error(),
        hint: (e == Errno::SRCH).then(|| "the process that held them is gone, and the job with it".into()),
    })
}

/// What a container takes from its job.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The holder: its pid and ipc namespaces, and in user mode its user namespace.
    pub holder: Option<Holder>,
    /// The job's user namespace, owned by root (system mode).
    pub user: Option<OwnedFd>,
    /// The user namespace through which a store's files appear as the user's (system mode).
    pub idmap: Option<OwnedFd>,
}

/// A holder that is held by a descriptor, so that its pid can be nobody else's.
#[derive(Debug)]
pub struct Holder {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl JobNamespaces {
    /// Names a process that has just been forked and not been reaped.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of(pid: i32) -> Result<JobNamespaces, LaunchError> {
        match crate::procfs::start_ticks(pid) {
            Some(start_ticks) => Ok(JobNamespaces { pid, start_ticks }),
            None => Err(LaunchError::InitLost("the job's first process is gone".into())),
        }
    }

    /// The holder, while it lives.
    pub fn holder(&self) -> Option<Holder> {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Only now that the descriptor is held can the pid not become another's.
        let same = crate::procfs::start_ticks(self.pid) == Some(self.start_ticks);
        let holder = Holder { pid: self.pid, pidfd };
        (same && !holder.ended(Duration::ZERO)).then_some(holder)
    }

    /// Opens what containers of the job take from it.
    ///
    /// # Errors
    /// The holder is gone, or the kernel's.
    pub fn open(&self, mode: Mode) -> Result<Prepared, LaunchError> {
        let gone = || LaunchError::InitLost("the process that held the job's namespaces is gone".into());
        let holder = self.holder().ok_or_else(gone)?;
        let kept = |n: RawFd| {
            let path = format!("/proc/{}/fd/{n}", self.pid);
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty())
        };
        let (mut user, mut idmap) = (None, None);
        if mode == Mode::System {
            user = Some(kept(USER_FD).map_err(system("open the job's user namespace"))?);
            idmap = match kept(IDMAP_FD) {
                Ok(ns) => Some(ns),
                Err(Errno::NOENT) => None,
                Err(e) => return Err(system("open the mapping of the store's owner")(e)),
            };
        }
        Ok(Prepared { holder: Some(holder), user, idmap })
    }

    /// Ends the holder, and with it every process of the job. Waits until they are gone, for at most
    /// `patience`; whether they are.
    pub fn end(&self, patience: Duration) -> bool {
        let Some(holder) = self.holder() else { return true };
        let _ = rustix::process::pidfd_send_signal(&holder.pidfd, Signal::KILL);
        holder.ended(patience)
    }

    /// Whether the process that holds them lives. Without it they are gone, or go with the last step.
    pub fn are_held(&self) -> bool {
        self.holder().is_some()
    }

    /// Processes in its pid namespace that are left, but for the one that holds it; as this process sees them.
    pub fn processes(&self) -> Vec<i32> {
        self.holder().map(|holder| crate::procfs::below(holder.pid)).unwrap_or_default()
    }

    /// Whether a process, as this one sees it, is in its pid namespace.
    pub fn have(&self, pid: i32) -> bool {
        let of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let Some(holder) = self.holder() else { return false };
        of(holder.pid).is_some_and(|own| of(pid) == Some(own))
    }

    /// Ends what steps left whose init is gone; see [`Holder::end_orphans`].
    pub fn end_orphans(&self) {
        if let Some(holder) = self.holder() {
            holder.end_orphans();
        }
    }
}

impl Holder {
    fn ended(&self, patience: Duration) -> bool {
        let mut set = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let wait = rustix::time::Timespec::try_from(patience).unwrap_or_default();
        !matches!(poll(&mut set, Some(&wait)), Ok(0))
    }

    /// Ends every process that came to the holder as an orphan. A step's init adopts the orphans of its own
    /// step, and is itself no child of the holder: so what is here was left by an init that is gone, and
    /// belongs to no step that lives.
    pub(crate) fn end_orphans(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(100);
        loop {
            let orphans = crate::procfs::children(self.pid);
            if orphans.is_empty() || self.ended(Duration::ZERO) || Instant::now() > deadline {
                return;
            }
            for pid in orphans {
                let Some(pid) = Pid::from_raw(pid) else { continue };
                let Ok(held) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
                // The list may be older than the process that has the number now.
                if crate::procfs::children(self.pid).contains(&pid.as_raw_nonzero().get()) {
                    let _ = rustix::process::pidfd_send_signal(&held, Signal::KILL);
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
