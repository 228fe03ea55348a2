//! Supervisors in waiting: each with a process parked in cgroups that were made beforehand, so that a step's
//! start writes to no `cgroup.procs`. Only the first version of cgroups needs them.

use crate::cgroups::Cgroups;
use crate::zygote::Zygote;
use berth_model::ids::JobId;
use berth_runtime::cgroup::Cgroup;
use berth_step::control::{Begin, StandingBy, receive, send};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How many wait for jobs that are not known yet, on a quiet node.
const READY: usize = 4;
/// How many at most, where jobs start faster than they can be made.
const MOST: usize = 32;
/// From a start until what it used up is made again: the start itself is past by then.
pub const PAUSE: Duration = Duration::from_millis(20);
/// How long processes that were told to end may take.
const REMOVAL: Duration = Duration::from_secs(2);

/// A supervisor that waits for its step. It ends when this is dropped.
pub struct Standby {
    socket: OwnedFd,
    pidfd: OwnedFd,
}

impl Standby {
    /// Has one forked, and its parked process put into `group`. Takes tens of milliseconds.
    fn new(zygote: &Zygote, system: bool, group: &Cgroup) -> io::Result<Standby> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let pidfd = zygote.stand_by(system, theirs.as_fd())?;
        drop(theirs);
        let (word, _) = receive::<StandingBy>(ours.as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
        group.join(word.parked).map_err(io::Error::other)?;
        Ok(Standby { socket: ours, pidfd })
    }

    /// Gives it its step; a descriptor of its process. The error gives back nothing: another supervisor can be
    /// had from the zygote.
    pub fn begin(self, begin: &Begin, fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
        let mut set = [PollFd::new(&self.pidfd, PollFlags::IN)];
        if poll(&mut set, Some(&rustix::time::Timespec::default()))? > 0 {
            return Err(io::Error::other("the supervisor that stood by is gone"));
        }
        send(self.socket.as_fd(), begin, fds)?;
        Ok(self.pidfd)
    }
}

struct Slot {
    name: String,
    group: Cgroup,
    standby: Standby,
}

/// Those that wait, each in a job's cgroup without a job.
pub struct Slots {
    cgroups: Arc<Cgroups>,
    zygote: Arc<Zygote>,
    system: bool,
    state: Mutex<State>,
    /// Held while one is made.
    making: Mutex<()>,
    /// Told when one was taken.
    taken: Notify,
    wanted: AtomicBool,
}

struct State {
    ready: VecDeque<Slot>,
    /// How many are to wait.
    wanted: usize,
    next: u64,
    closed: bool,
}

impl State {
    fn are_few(&self) -> bool {
        self.ready.len() <= self.wanted / 4
    }
}

impl Slots {
    /// Without any yet: see [`Slots::fill`].
    pub fn new(cgroups: Arc<Cgroups>, zygote: Arc<Zygote>, system: bool) -> Slots {
        Slots {
            cgroups,
            zygote,
            system,
            state: Mutex::new(State { ready: VecDeque::new(), wanted: READY, next: 0, closed: false }),
            making: Mutex::default(),
            taken: Notify::new(),
            wanted: AtomicBool::new(false),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether some are about to be made: jobs start, or did so a moment ago.
    pub fn are_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Keeps as many waiting as are to, until the task is dropped. What starts used up is made again when no more follow.
    /// Where few are left before that, twice as many are made from then on: the first write to `cgroup.procs` after a pause
    /// takes some ten milliseconds, in which no group of the whole machine is made, renamed or removed, so many share one.
    pub async fn keep(self: Arc<Self>) {
        while self.cgroups.parks() {
            let slots = Arc::clone(&self);
            if let Err(e) = tokio::task::spawn_blocking(move || slots.fill()).await {
                tracing::error!("no supervisors stand by any more: {e}");
                return self.wanted.store(false, Ordering::Relaxed);
            }
            self.wanted.store(false, Ordering::Relaxed);
            self.taken.notified().await;
            self.wanted.store(true, Ordering::Relaxed);
            let mut quiet = false;
            while !quiet && !self.state().are_few() {
                quiet = tokio::time::timeout(PAUSE, self.taken.notified()).await.is_err();
            }
            let mut state = self.state();
            state.wanted = if quiet { READY } else { (state.wanted * 2).min(MOST) };
        }
    }

    /// Makes as many as are to wait. Takes long: not on anything's path.
    fn fill(&self) {
        while self.add() {}
    }

    /// Makes one; whether another is to be made.
    fn add(&self) -> bool {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let name = {
            let mut state = self.state();
            if state.closed || state.ready.len() >= state.wanted {
                return false;
            }
            state.next += 1;
            format!("slot_{}", state.next)
        };
        match self.make(&name) {
            Ok(Some(slot)) => {
                self.state().ready.push_back(slot);
                true
            }
            Ok(None) => false,
            Err(e) => {
                // Steps start without, only later.
                tracing::warn!("no supervisor can stand by: {e}");
                self.cgroups.drop_group(&name);
                false
            }
        }
    }

    fn make(&self, name: &str) -> io::Result<Option<Slot>> {
        let made = self.cgroups.next_step(name).map_err(io::Error::other)?;
        let Some((group, leaf)) = made else { return Ok(None) };
        let standby = Standby::new(&self.zygote, self.system, &leaf)?;
        Ok(Some(Slot { name: name.to_string(), group, standby }))
    }

    /// The cgroups of a slot become the job's; its supervisor waits for the job's next step.
    pub fn take(&self, job: JobId) -> Option<Standby> {
        self.taken.notify_one();
        let slot = self.state().ready.pop_front()?;
        let Slot { name, mut group, standby } = slot;
        match self.cgroups.give(&mut group, job) {
            Ok(()) => Some(standby),
            Err(e) => {
                tracing::warn!("job {job} is started without what stood by: {e}");
                drop(standby);
                self.cgroups.drop_group(&name);
                None
            }
        }
    }

    /// One for the next step of a job that has its cgroups. Takes tens of milliseconds.
    pub fn next_step(&self, job: JobId) -> io::Result<Option<Standby>> {
        let made = self.cgroups.next_step(&format!("job_{job}")).map_err(io::Error::other)?;
        made.map(|(_, leaf)| Standby::new(&self.zygote, self.system, &leaf)).transpose()
    }

    /// Ends those that wait.
    pub fn close(&self) {
        self.state().closed = true;
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = std::mem::take(&mut self.state().ready);
        for Slot { group, standby, .. } in slots {
            drop(standby);
            if let Err(e) = group.kill_and_remove(REMOVAL) {
                tracing::debug!("{e}");
            }
        }
    }
}
