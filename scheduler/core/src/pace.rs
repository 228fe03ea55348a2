//! The pace of cluster time: advanced by a clock that never jumps, drawn towards the wall clock, never going back.

use berth_model::time::Time;

/// Largest deviation of the pace from that of the clock since boot, as a fraction: a tenth. A wall clock that jumps is followed
/// slowly, so that no time limit is reached by a jump.
const SLEW: i64 = 10;

/// Cluster time, made of two clocks that its owner reads.
#[derive(Clone, Debug)]
pub struct Pace {
    now: i64,
    boot: i64,
}

impl Pace {
    /// After a restart, time goes on from `mark`, the highest time on record, or from the wall clock where that is ahead.
    pub fn start(mark: Time, boot: Time, wall: Time) -> Pace {
        Pace { now: mark.0.max(wall.0), boot: boot.0 }
    }

    /// Cluster time when the clock since boot and the wall clock show this.
    pub fn read(&mut self, boot: Time, wall: Time) -> Time {
        let passed = (boot.0 - self.boot).max(0);
        self.boot = self.boot.max(boot.0);
        let plain = self.now.saturating_add(passed);
        let most = passed / SLEW;
        self.now = plain.saturating_add((wall.0.saturating_sub(plain)).clamp(-most, most));
        Time(self.now)
    }

    /// Cluster time as it was last read.
    pub fn last(&self) -> Time {
        Time(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn never_goes_back_and_never_jumps() {
        let mut pace = Pace::start(at(1_000), at(5), at(400));
        assert_eq!(pace.last(), at(1_000), "not before the mark");
        let mut last = pace.last();
        // The wall clock is far behind, then far ahead, then right.
        for (i, wall) in [401, 402, 9_000, 9_001, 1_005, 1_006].into_iter().enumerate() {
            let boot = 6 + i64::try_from(i).unwrap();
            let now = pace.read(at(boot), at(wall));
            let passed = now.since(last).0;
            assert!((900_000..=1_100_000).contains(&passed), "{passed}");
            last = now;
        }
        assert_eq!(pace.read(at(3), at(0)), last, "a boot clock that goes back is not believed");
    }

    #[test]
    fn comes_to_agree_with_the_wall_clock() {
        let mut pace = Pace::start(at(100), at(0), at(90));
        for i in 1..=200 {
            pace.read(at(i), at(90 + i));
        }
        assert_eq!(pace.last(), at(290));
    }
}
