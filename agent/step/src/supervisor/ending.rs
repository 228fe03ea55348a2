//! When a step is to be ended: the deadlines that end it, kept apart from what ending does.

use std::time::{Duration, Instant};

/// Deadlines of a step.
#[derive(Debug, Default)]
pub struct Deadlines {
    /// SIGKILL for everything.
    kill: Option<Instant>,
    /// End the step because its first task ended long ago (`--wait`).
    after_first_exit: Option<Instant>,
    /// End the step, or give up telling its exit, because no client came.
    client: Option<Instant>,
}

/// What a deadline asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// SIGKILL for everything.
    Kill,
    /// The first task ended long ago.
    AfterFirstExit,
    /// No client came.
    NoClient,
}

impl Deadlines {
    /// SIGKILL this long from now; an earlier one stands.
    pub fn kill_in(&mut self, now: Instant, wait: Duration) {
        let at = now + wait;
        self.kill = Some(self.kill.map_or(at, |earlier| earlier.min(at)));
    }

    /// Whether SIGKILL is on its way.
    pub fn ending(&self) -> bool {
        self.kill.is_some()
    }

    /// The step is to end this long from now, unless that was set before.
    pub fn end_in(&mut self, now: Instant, wait: Duration) {
        self.after_first_exit.get_or_insert(now + wait);
    }

    /// A client is to come by then.
    pub fn client_in(&mut self, now: Instant, wait: Duration) {
        self.client = Some(now + wait);
    }

    /// A client came.
    pub fn client_came(&mut self) {
        self.client = None;
    }

    /// Time until the next deadline.
    pub fn until(&self, now: Instant) -> Option<Duration> {
        let next = [self.kill, self.after_first_exit, self.client].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    /// What is due; each is told once.
    pub fn due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        let mut check = |slot: &mut Option<Instant>, what: Due| {
            if slot.is_some_and(|at| at <= now) {
                *slot = None;
                due.push(what);
            }
        };
        // A process that SIGKILL does not end at once gets it again: the deadline stays.
        if self.kill.is_some_and(|at| at <= now) {
            self.kill = Some(now + Duration::from_secs(1));
            check(&mut Some(now), Due::Kill);
        }
        check(&mut self.after_first_exit, Due::AfterFirstExit);
        check(&mut self.client, Due::NoClient);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_kill_stands_and_is_repeated_until_it_worked() {
        let (mut deadlines, now) = (Deadlines::default(), Instant::now());
        deadlines.kill_in(now, Duration::from_secs(2));
        deadlines.kill_in(now, Duration::from_secs(30));
        assert_eq!(deadlines.until(now), Some(Duration::from_secs(2)));
        assert_eq!(deadlines.due(now), []);
        let later = now + Duration::from_secs(2);
        assert_eq!(deadlines.due(later), [Due::Kill]);
        assert_eq!(deadlines.due(later + Duration::from_secs(1)), [Due::Kill]);
    }

    #[test]
    fn the_first_exit_starts_the_wait_and_later_ones_do_not_extend_it() {
        let (mut deadlines, now) = (Deadlines::default(), Instant::now());
        deadlines.end_in(now, Duration::from_secs(5));
        deadlines.end_in(now + Duration::from_secs(4), Duration::from_secs(5));
        assert_eq!(deadlines.due(now + Duration::from_secs(5)), [Due::AfterFirstExit]);
        assert_eq!(deadlines.until(now), None);
    }
}
