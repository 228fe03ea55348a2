//! The pace of cluster time: advanced by a clock that never jumps, drawn towards the wall clock, never going back.

use berth_model::time::{Span, Time};

/// Largest deviation of the pace from that of the clock since boot, as a fraction: a tenth. A wall clock that jumps is followed
/// slowly, so that no time limit is reached by a jump.
const SLEW: i64 = 10;

/// A clock since boot: of which boot, and what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootClock {
    /// The kernel's boot id; empty where nobody knows it.
    pub boot: String,
    /// What it shows.
    pub shows: Time,
}

/// What is on record of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The highest cluster time; zero in a new store.
    pub time: Time,
    /// By what it was read; absent where a version before wrote it.
    pub clock: Option<BootClock>,
}

/// Cluster time, made of two clocks that its owner reads.
#[derive(Clone, Debug)]
pub struct Pace {
    now: i64,
    boot: i64,
}

impl Pace {
    /// After a restart; and how far time goes on by it on the word of the wall clock alone. In the same boot it goes on as if nobody had been away.
    /// After another boot, which took nobody knows how long, the wall clock says it where it is ahead. So it does in the same boot for whoever is `idle`, and runs
    /// nothing that a jump could end: the clock may have been wrong before, and be right now.
    pub fn start(mark: &Mark, clock: &BootClock, wall: Time, idle: bool) -> (Pace, Span) {
        // One that shows less than before is another clock, whatever it calls itself.
        let same = |before: &&BootClock| {
            !before.boot.is_empty() && before.boot == clock.boot && before.shows <= clock.shows
        };
        let before = mark.clock.as_ref().filter(same);
        let mut pace = Pace { now: mark.time.0, boot: before.map_or(clock.shows, |before| before.shows).0 };
        let sure = pace.read(clock.shows, wall);
        if before.is_none() || idle {
            pace.now = sure.0.max(wall.0);
        }
        let leapt = if mark.time == Time::default() { Span(0) } else { pace.last().since(sure) };
        (pace, leapt)
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

    /// What is to be on record of it, in the boot of that id.
    pub fn mark(&self, boot: &str) -> Mark {
        Mark { time: self.last(), clock: Some(BootClock { boot: boot.to_string(), shows: Time(self.boot) }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_secs(seconds)
    }

    fn clock(boot: &str, seconds: i64) -> BootClock {
        BootClock { boot: boot.to_string(), shows: at(seconds) }
    }

    /// Time was this when the clock of the boot showed that.
    fn mark(time: i64, boot: &str, shows: i64) -> Mark {
        Mark { time: at(time), clock: Some(clock(boot, shows)) }
    }

    #[test]
    fn never_goes_back_and_never_jumps() {
        let (mut pace, leapt) = Pace::start(&mark(1_000, "a", 900), &clock("b", 5), at(400), true);
        assert_eq!((pace.last(), leapt), (at(1_000), Span(0)), "not before the mark");
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
        let (mut pace, _) = Pace::start(&mark(100, "a", 0), &clock("b", 0), at(90), false);
        for i in 1..=200 {
            pace.read(at(i), at(90 + i));
        }
        assert_eq!(pace.last(), at(290));
    }

    #[test]
    fn in_the_same_boot_a_restart_is_no_jump() {
        let begins = |wall: i64, idle: bool| {
            let (pace, leapt) = Pace::start(&mark(5_000, "a", 100), &clock("a", 160), at(wall), idle);
            (pace.last().secs(), leapt.secs())
        };
        assert_eq!(begins(5_060, false), (5_060, 0));
        assert_eq!(begins(5_060 + 86_400, false), (5_066, 0), "a tenth of the minute that has passed");
        assert_eq!(begins(100, false), (5_054, 0));
        assert_eq!(begins(100, true), (5_054, 0), "never back");
        // What runs nothing loses nothing by it.
        assert_eq!(begins(5_060 + 86_400, true), (5_060 + 86_400, 86_394));
    }

    #[test]
    fn after_another_boot_the_wall_clock_says_how_long_it_took() {
        let begins = |before: Mark, now: BootClock| {
            let (pace, leapt) = Pace::start(&before, &now, at(9_000), false);
            (pace.last().secs(), leapt.secs())
        };
        assert_eq!(begins(mark(5_000, "a", 100), clock("b", 160)), (9_000, 4_000));
        // The same name, and another clock.
        assert_eq!(begins(mark(5_000, "a", 100), clock("a", 60)), (9_000, 4_000));
        assert_eq!(begins(mark(5_000, "", 100), clock("", 160)), (9_000, 4_000));
        // Of a version before, and of nobody.
        assert_eq!(begins(Mark { time: at(5_000), clock: None }, clock("b", 60)), (9_000, 4_000));
        assert_eq!(begins(Mark::default(), clock("b", 60)), (9_000, 0));
        // What is on record begins the next time.
        let (pace, _) = Pace::start(&mark(5_000, "a", 100), &clock("b", 160), at(9_000), false);
        assert_eq!(pace.mark("b"), mark(9_000, "b", 160));
    }
}
