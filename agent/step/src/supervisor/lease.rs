//! Until when a step goes on without hearing of the controller. On the clock that also counts while the machine sleeps, by a timer that
//! wakes with it: the step may count as lost elsewhere from a moment on, and must not be alive then.

use crate::deadlines::boot_clock as now;
use berth_model::time::Time;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;

#[derive(Debug)]
pub struct Lease {
    timer: OwnedFd,
    until: Time,
    over: bool,
}

impl Lease {
    /// # Errors
    /// The kernel gives no timer.
    pub fn until(until: Time) -> io::Result<Lease> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let lease = Lease { timer: timerfd_create(TimerfdClockId::Boottime, flags)?, until, over: false };
        lease.arm()?;
        Ok(lease)
    }

    fn arm(&self) -> io::Result<()> {
        // 0 would stop it.
        let micros = self.until.0.max(1);
        let at = Timespec { tv_sec: micros / 1_000_000, tv_nsec: micros % 1_000_000 * 1000 };
        let value = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &value)?;
        Ok(())
    }

    /// Another time counts, unless it comes too late.
    pub fn renew(&mut self, until: Time) -> io::Result<()> {
        if self.over || self.is_due() || until <= self.until {
            return Ok(());
        }
        self.until = until;
        self.arm()
    }

    /// Whether the time has come.
    pub fn is_due(&self) -> bool {
        now() >= self.until
    }

    /// It is acted on.
    pub fn end(&mut self) {
        self.over = true;
    }

    /// Whether it was.
    pub fn over(&self) -> bool {
        self.over
    }

    /// Can be read when the time has come.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn waits(lease: &Lease, millis: i64) -> bool {
        let timeout = Timespec { tv_sec: millis / 1000, tv_nsec: millis % 1000 * 1_000_000 };
        poll(&mut [PollFd::from_borrowed_fd(lease.fd(), PollFlags::IN)], Some(&timeout)).unwrap() == 0
    }

    #[test]
    fn it_ends_in_time_and_no_renewal_that_comes_later_helps() {
        let mut lease = Lease::until(now() + berth_model::time::Span(100_000)).unwrap();
        lease.renew(now() + berth_model::time::Span(500_000)).unwrap();
        assert!(waits(&lease, 200), "the renewal does not count");
        assert!(!waits(&lease, 20_000) && lease.is_due());
        lease.renew(now() + berth_model::time::Span::from_secs(60)).unwrap();
        assert!(lease.is_due(), "it was over");
        // One that is over before it begins.
        let late = Lease::until(Time(0)).unwrap();
        assert!(late.is_due() && !waits(&late, 20_000));
    }
}
