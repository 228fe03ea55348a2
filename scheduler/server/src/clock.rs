//! Cluster time of the system's clocks: advanced by CLOCK_BOOTTIME, drawn towards the wall clock.

use berth_model::{Span, Time};
use berth_sched_core::{BootClock, Leap, Mark, Pace};
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::path::Path;

/// The kernel's boot id.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// systemd-timesyncd makes it anew in each boot, when it has set the clock by a server's.
const SET: &str = "/run/systemd/timesync/synchronized";
/// So far apart cluster time and the wall clock are told of. They come together by a tenth of the time that passes.
const APART: i64 = 5 * 60;

/// The clock. Its arithmetic is [`Pace`], which the simulator drives with clocks that jump.
#[derive(Debug)]
pub(crate) struct ClusterClock {
    pace: Pace,
    boot: String,
    /// The wall clock, as it was last read.
    wall: Time,
}

fn read(clock: ClockId) -> io::Result<Time> {
    let time = clock_gettime(clock)?;
    Ok(Time(time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000))
}

impl ClusterClock {
    /// Goes on from what is on record; and by how much on the word of the wall clock alone. `idle`: nothing runs that a jump could end.
    pub(crate) fn start(mark: &Mark, idle: bool) -> io::Result<(ClusterClock, Leap)> {
        let shows = read(ClockId::CLOCK_BOOTTIME)?;
        let wall = read(ClockId::CLOCK_REALTIME)?;
        // Without it every start is that of another boot.
        let boot = std::fs::read_to_string(BOOT).unwrap_or_default().trim().to_string();
        let clock = BootClock { boot, shows };
        let (pace, by) = Pace::start(mark, &clock, wall, idle);
        let leap = Leap { at: pace.last(), by, sure: false };
        Ok((ClusterClock { pace, boot: clock.boot, wall }, leap))
    }

    /// Cluster time.
    pub(crate) fn now(&mut self) -> Time {
        match (read(ClockId::CLOCK_BOOTTIME), read(ClockId::CLOCK_REALTIME)) {
            (Ok(boot), Ok(wall)) => {
                self.wall = wall;
                self.pace.read(boot, wall)
            }
            // They worked at the start; a clock that stands still is better than none.
            _ => self.pace.last(),
        }
    }

    /// What is to be on record of it, as it was last read.
    pub(crate) fn mark(&self) -> Mark {
        self.pace.mark(&self.boot)
    }

    /// The kernel's boot id.
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// Whether it shows the time of a server in the network, by which the machine's clock was set in this boot.
    pub(crate) fn is_set(&self) -> bool {
        is_set(Path::new(SET), self.pace.last(), self.wall)
    }

    /// What an administrator is to know of it; `in_doubt`: how far it went on lately by the wall clock's word.
    pub(crate) fn troubles(&self, in_doubt: Span) -> Option<String> {
        troubles(self.pace.last(), self.wall, in_doubt)
    }
}

fn is_set(mark: &Path, now: Time, wall: Time) -> bool {
    wall.since(now).secs() < APART && now.since(wall).secs() < APART && mark.exists()
}

fn troubles(now: Time, wall: Time, in_doubt: Span) -> Option<String> {
    let (behind, ahead) = (wall.since(now), now.since(wall));
    if behind.secs() >= APART {
        return Some(format!(
            "cluster time is {} behind the clock of this machine, and comes up to it by a tenth of the time that passes, so that no job ends by a jump. \
             If the clock is wrong, set it right; if it is right, a controller that is started while no job runs begins at its time",
            roughly(behind)
        ));
    }
    if ahead.secs() >= APART {
        return Some(format!(
            "cluster time is {} ahead of the clock of this machine, and waits for it by a tenth of the time that passes, since it never goes back. If \
             the clock is wrong, set it right",
            roughly(ahead)
        ));
    }
    (in_doubt.secs() >= 60 * 60).then(|| {
        format!(
            "when the controller started, the clock of this machine was {} ahead of the last time on record. If it was off for so long, there is \
             nothing to do; if the clock is wrong, set it right. Until clocks of other machines agree with it, or for a day, records are kept as if that time had not \
             passed; limits of jobs that ran go by the clocks of their nodes",
            roughly(in_doubt)
        )
    })
}

/// In words that do not change from moment to moment.
fn roughly(span: Span) -> String {
    match span.secs() / 60 {
        minutes @ ..120 => format!("{} minutes", minutes / 5 * 5),
        minutes @ ..2880 => format!("{} hours", minutes / 60),
        minutes => format!("{} days", minutes / 60 / 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_when_cluster_time_is_not_that_of_the_machine() {
        let told = |now: i64, wall: i64, in_doubt: i64| {
            let at = |minutes: i64| Time::from_secs(minutes * 60);
            troubles(at(now), at(wall), Span::from_mins(in_doubt)).unwrap_or_default()
        };
        assert_eq!(told(10_000, 10_004, 59), "");
        assert_eq!(told(10_004, 10_000, 0), "");
        assert!(told(10_000, 10_007, 0).contains("is 5 minutes behind"), "{}", told(10_000, 10_007, 0));
        assert!(told(10_000, 10_240, 90).contains("is 4 hours behind"));
        assert!(told(20_000, 10_000, 90).contains("is 6 days ahead"));
        assert!(told(10_000, 10_000, 90).contains("was 90 minutes ahead of the last time on record"));
    }

    #[test]
    fn a_clock_that_was_set_by_others_is_right_where_cluster_time_agrees() {
        let (here, missing) = (Path::new("/proc"), Path::new("/proc/nothing"));
        let at = |minutes: i64| Time::from_secs(minutes * 60);
        assert!(is_set(here, at(100), at(104)) && is_set(here, at(104), at(100)));
        assert!(!is_set(missing, at(100), at(100)));
        assert!(!is_set(here, at(100), at(105)) && !is_set(here, at(105), at(100)));
    }

    #[test]
    fn in_the_same_boot_it_goes_on_from_the_mark() {
        let (clock, leap) = ClusterClock::start(&Mark::default(), true).unwrap();
        assert_eq!(leap.by, Span(0));
        let mark = clock.mark();
        let (now, wall) = (mark.time, clock.wall);
        assert_eq!(now, wall, "of a new cluster");
        // As if the wall clock had gone ahead by a day since.
        let before = Mark { time: Time(now.0 - Span::from_mins(24 * 60).0), ..mark.clone() };
        let (again, leap) = ClusterClock::start(&before, false).unwrap();
        assert_eq!(leap.by, Span(0));
        let passed = again.mark().time.since(before.time);
        let since = again.mark().clock.unwrap().shows.since(mark.clock.unwrap().shows);
        assert!(passed.0 <= since.0 + since.0 / 10 + 1, "{passed:?} {since:?}");
        assert!(again.troubles(Span(0)).unwrap().contains("hours behind"));
        // What runs nothing takes it over.
        let (idle, leap) = ClusterClock::start(&before, true).unwrap();
        assert!(leap.by.secs() > 86_000 && leap.at == idle.mark().time, "{leap:?}");
        assert_eq!(idle.troubles(Span(0)), None);
    }
}
