//! Sees to it that what may count as lost does not run on: a process of the node's own, beside the agent and all supervisors.
//!
//! A run of a job that goes on only while it is renewed (`lost_after_seconds`, `--lost-after`) is ended by its supervisors. One that is stopped (a
//! signal, a debugger) ends nothing; the agent sees to that, and where there is no agent either, or it is stopped itself, this does. So it
//! does with logins of the job's user, which have no supervisor. It reads what the agent wrote down before anybody was told of a
//! renewal, and kills a run's control group some time after all others would have.
//!
//! While its agent lives it waits; without one it looks around, and ends when there is nothing more to see to, or another agent, which has one
//! of its own.

use crate::log::say;
use crate::spool::{boot_id, read_json, write_json};
use berth_model::time::{Span, Time};
use berth_runtime::cgroup::Cgroup;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// After the deadline, supervisors and then the agent are left this long. The controller waits for longer.
pub const AFTER: Span = Span(2_000_000);
/// How often what has been killed is killed again: somebody may have logged in since.
const AGAIN: Span = Span(10_000_000);
/// How often it is looked, without an agent, whether there is another one or nothing more to see to.
const LOOK: Span = Span(500_000);
/// An agent that was killed holds its lock until the last of its threads is gone, and is not another one.
const DYING: Span = Span(5_000_000);

/// `deadline.json` in a job's directory: until when its run goes on without another renewal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The boot that the time is of.
    pub boot_id: String,
    /// By the clock since boot.
    pub until: Time,
    /// All that the job has on the node.
    pub group: Cgroup,
}

impl Deadline {
    /// In which file it is, by the directory of its job.
    pub fn file(job: &Path) -> PathBuf {
        job.join("deadline.json")
    }

    /// That of a job by its directory; absent where it goes on for ever.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn of(job: &Path) -> io::Result<Option<Deadline>> {
        match read_json(&Deadline::file(job)) {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes it down.
    ///
    /// # Errors
    /// Nobody may be told of it then.
    pub fn keep(&self, job: &Path) -> io::Result<()> {
        write_json(&Deadline::file(job), self)
    }

    /// Whether it is past.
    pub fn is_over(&self, now: Time) -> bool {
        self.until <= now
    }
}

/// Time since boot, in which the machine slept as well.
pub fn boot_clock() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Time(now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000))
}

/// Keeps deadlines until nobody needs it any more. `agent`: what the agent writes a byte to when a job has a deadline for the first time,
/// and closes with its end. `jobs`: the jobs' directories. `lock`: what an agent holds.
///
/// # Errors
/// The kernel gives no timer, or does not say which boot this is.
pub fn keep(agent: OwnedFd, jobs: &Path, lock: &Path) -> io::Result<()> {
    let boot = boot_id()?;
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let mut agent = Some(agent);
    let mut alone: Option<Time> = None;
    loop {
        let now = boot_clock();
        let next = look(jobs, &boot, now);
        if agent.is_none() {
            let since = *alone.get_or_insert(now);
            if next.is_none() || (since + DYING <= now && is_held(lock)) {
                return Ok(());
            }
        }
        let soon = agent.is_none().then_some(now + LOOK);
        arm(timer.as_fd(), next.into_iter().chain(soon).min())?;
        let mut set = vec![PollFd::new(&timer, PollFlags::IN)];
        set.extend(agent.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut set, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut scratch = [0u8; 64];
        let _ = rustix::io::read(&timer, &mut scratch[..8]);
        if set.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            drop(set);
            agent = agent.filter(|fd| !matches!(rustix::io::read(fd, &mut scratch), Ok(0)));
        }
    }
}

/// Ends what is past its time, and says when to look again; never, where there is nothing to see to.
fn look(jobs: &Path, boot: &str, now: Time) -> Option<Time> {
    let mut next = None;
    for entry in std::fs::read_dir(jobs).into_iter().flatten().flatten() {
        // One that is half gone has nothing alive.
        let Ok(Some(deadline)) = Deadline::of(&entry.path()) else { continue };
        if deadline.boot_id != boot {
            continue;
        }
        let mut at = deadline.until + AFTER;
        if at <= now {
            at = now + AGAIN;
            if deadline.group.is_populated() {
                let job = entry.file_name();
                say(&format!(
                    "job {}: it was out of touch for too long, and is ended here since nobody else did",
                    job.display()
                ));
                if let Err(e) = deadline.group.kill() {
                    say(&format!("job {}: {e}", job.display()));
                }
            }
        }
        next = Some(next.map_or(at, |earlier: Time| earlier.min(at)));
    }
    next
}

/// Whether an agent holds its lock. Not told where that cannot be seen: then this stays.
fn is_held(lock: &Path) -> bool {
    let Ok(file) = std::fs::File::open(lock) else { return false };
    matches!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

fn arm(timer: BorrowedFd<'_>, at: Option<Time>) -> io::Result<()> {
    // 0 stops it.
    let micros = at.map_or(0, |at| at.0.max(1));
    let at = Timespec { tv_sec: micros / 1_000_000, tv_nsec: micros % 1_000_000 * 1000 };
    let value = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &value)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_runtime::cgroup::CgroupFacts;

    fn put(jobs: &Path, job: &str, boot_id: &str, until: Time) {
        let dir = jobs.join(job);
        std::fs::create_dir_all(&dir).unwrap();
        let group = Cgroup::named(&CgroupFacts::default(), job);
        Deadline { boot_id: boot_id.into(), until, group }.keep(&dir).unwrap();
    }

    #[test]
    fn it_looks_again_when_the_next_is_due_and_after_a_while_at_what_was_due() {
        let jobs = tempfile::tempdir().unwrap();
        let now = Time(100_000_000);
        assert_eq!(look(jobs.path(), "now", now), None);
        std::fs::create_dir(jobs.path().join("1")).unwrap();
        put(jobs.path(), "2", "earlier", Time(1));
        assert_eq!(look(jobs.path(), "now", now), None, "one has none, the other is of another boot");
        put(jobs.path(), "3", "now", now + Span::from_secs(60));
        assert_eq!(look(jobs.path(), "now", now), Some(now + Span::from_secs(62)));
        put(jobs.path(), "4", "now", now - AFTER);
        assert_eq!(look(jobs.path(), "now", now), Some(now + AGAIN));
    }

    #[test]
    fn without_an_agent_it_ends_when_nothing_is_left_or_another_agent_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (jobs, lock) = (dir.path().join("jobs"), dir.path().join("lock"));
        std::fs::create_dir(&jobs).unwrap();
        let agent = std::fs::File::create(&lock).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(writer);
        keep(reader.into(), &jobs, &lock).unwrap();
        put(&jobs, "1", &boot_id().unwrap(), boot_clock() + Span::from_secs(3600));
        rustix::fs::flock(&agent, FlockOperation::LockExclusive).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(writer);
        keep(reader.into(), &jobs, &lock).unwrap();
    }
}
