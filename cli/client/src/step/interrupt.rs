//! What repeated Ctrl-C mean: a status first, then SIGINT for the tasks, then the end.

use std::time::{Duration, Instant};

/// What to do about a Ctrl-C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Press {
    /// Tell how the tasks are, and that one more does more.
    Report,
    /// Send SIGINT to the tasks.
    Interrupt,
    /// End the step at once.
    Kill,
}

/// What the first Ctrl-C does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum First {
    /// It asks how the tasks are.
    #[default]
    Reports,
    /// It is for the tasks (`--disable-status`).
    Interrupts,
    /// It ends the step (`--quit-on-interrupt`).
    Kills,
}

/// The presses so far.
#[derive(Debug, Default)]
pub struct Presses {
    first: First,
    last: Option<(Instant, Press)>,
}

/// Presses belong together when this much time lies between them at most.
const TOGETHER: Duration = Duration::from_secs(1);

impl Presses {
    /// None yet.
    pub fn new(first: First) -> Presses {
        Presses { first, last: None }
    }

    /// One more, at `now`.
    pub fn press(&mut self, now: Instant) -> Press {
        let press = match self.last {
            Some((at, before)) if now.duration_since(at) <= TOGETHER => match before {
                Press::Report => Press::Interrupt,
                Press::Interrupt | Press::Kill => Press::Kill,
            },
            _ => match self.first {
                First::Reports => Press::Report,
                First::Interrupts => Press::Interrupt,
                First::Kills => Press::Kill,
            },
        };
        self.last = Some((now, press));
        press
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quick_presses_end_the_step() {
        let (mut presses, start) = (Presses::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(presses.press(at(0)), Press::Report);
        assert_eq!(presses.press(at(400)), Press::Interrupt);
        assert_eq!(presses.press(at(600)), Press::Kill);
    }

    #[test]
    fn the_first_press_does_what_was_asked_for() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut presses = Presses::new(First::Interrupts);
        for (ms, expected) in [(0, Press::Interrupt), (1500, Press::Interrupt), (2000, Press::Kill)] {
            assert_eq!(presses.press(at(ms)), expected, "{ms}");
        }
        assert_eq!(Presses::new(First::Kills).press(at(0)), Press::Kill);
    }

    #[test]
    fn slow_presses_report_each_time() {
        let (mut presses, start) = (Presses::default(), Instant::now());
        assert_eq!(presses.press(start), Press::Report);
        assert_eq!(presses.press(start + Duration::from_millis(1500)), Press::Report);
    }
}
