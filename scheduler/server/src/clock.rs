//! Cluster time of the system's clocks: advanced by CLOCK_BOOTTIME, drawn towards the wall clock.

use berth_model::Time;
use berth_sched_core::Pace;
use nix::time::{ClockId, clock_gettime};
use std::io;

/// The clock. Its arithmetic is [`Pace`], which the simulator drives with clocks that jump.
#[derive(Debug)]
pub(crate) struct ClusterClock {
    pace: Pace,
}

fn read(clock: ClockId) -> io::Result<Time> {
    let time = clock_gettime(clock)?;
    Ok(Time(time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000))
}

impl ClusterClock {
    /// Starts at the wall clock, or at `mark` if that is later.
    pub(crate) fn start(mark: Time) -> io::Result<ClusterClock> {
        let boot = read(ClockId::CLOCK_BOOTTIME)?;
        let wall = read(ClockId::CLOCK_REALTIME)?;
        Ok(ClusterClock { pace: Pace::start(mark, boot, wall) })
    }

    /// Cluster time.
    pub(crate) fn now(&mut self) -> Time {
        match (read(ClockId::CLOCK_BOOTTIME), read(ClockId::CLOCK_REALTIME)) {
            (Ok(boot), Ok(wall)) => self.pace.read(boot, wall),
            // They worked at the start; a clock that stands still is better than none.
            _ => self.pace.last(),
        }
    }
}
