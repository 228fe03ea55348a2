//! Cluster time: never decreasing, advanced by CLOCK_BOOTTIME, drawn towards the wall clock.

use berth_model::Time;
use nix::time::{ClockId, clock_gettime};
use std::io;

/// Largest deviation of its pace from that of CLOCK_BOOTTIME, as a fraction: a tenth. A wall clock that
/// jumps is followed slowly, so that no time limit is reached by a jump.
const SLEW: i64 = 10;

/// The clock. Its arithmetic is apart from the system's clocks, so that tests can stand in for them.
#[derive(Debug)]
pub(crate) struct ClusterClock {
    pace: Pace,
}

#[derive(Debug)]
struct Pace {
    now: i64,
    boot: i64,
}

impl Pace {
    /// After a restart, time goes on from the mark, or from the wall clock where that is ahead.
    fn start(mark: i64, boot: i64, wall: i64) -> Pace {
        Pace { now: mark.max(wall), boot }
    }

    fn read(&mut self, boot: i64, wall: i64) -> i64 {
        let passed = (boot - self.boot).max(0);
        self.boot = self.boot.max(boot);
        let plain = self.now.saturating_add(passed);
        let most = passed / SLEW;
        self.now = plain.saturating_add((wall.saturating_sub(plain)).clamp(-most, most));
        self.now
    }
}

fn micros(clock: ClockId) -> io::Result<i64> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000)
}

impl ClusterClock {
    /// Starts at the wall clock, or at `mark` if that is later.
    pub(crate) fn start(mark: Time) -> io::Result<ClusterClock> {
        let boot = micros(ClockId::CLOCK_BOOTTIME)?;
        let wall = micros(ClockId::CLOCK_REALTIME)?;
        Ok(ClusterClock { pace: Pace::start(mark.0, boot, wall) })
    }

    /// Cluster time.
    pub(crate) fn now(&mut self) -> Time {
        match (micros(ClockId::CLOCK_BOOTTIME), micros(ClockId::CLOCK_REALTIME)) {
            (Ok(boot), Ok(wall)) => Time(self.pace.read(boot, wall)),
            // They worked at the start; a clock that stands still is better than none.
            _ => Time(self.pace.now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const S: i64 = 1_000_000;

    #[test]
    fn never_goes_back_and_never_jumps() {
        let mut pace = Pace::start(1_000 * S, 5 * S, 400 * S);
        assert_eq!(pace.now, 1_000 * S, "not before the mark");
        let mut last = pace.now;
        // The wall clock is far behind, then far ahead, then right.
        for (i, wall) in [401, 402, 9_000, 9_001, 1_005, 1_006].into_iter().enumerate() {
            let boot = (6 + i64::try_from(i).unwrap()) * S;
            let now = pace.read(boot, wall * S);
            let passed = now - last;
            assert!((S * 9 / 10..=S * 11 / 10).contains(&passed), "{passed}");
            last = now;
        }
        assert_eq!(pace.read(3 * S, 0), last, "a boot clock that goes back is not believed");
    }

    #[test]
    fn comes_to_agree_with_the_wall_clock() {
        let mut pace = Pace::start(100 * S, 0, 90 * S);
        for i in 1..=200 {
            pace.read(i * S, (90 + i) * S);
        }
        assert_eq!(pace.now, 290 * S);
    }
}
