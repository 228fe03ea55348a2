//! Waiting between attempts, for callers that must survive a restart of the controller.

use std::time::Duration;

/// Delays that double from a tenth of a second to five seconds. A restart takes well under a second, so the
/// first attempts come quickly; many clients of one controller spread out by their process ids.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    spread: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// Starts at the shortest delay.
    pub fn new() -> Backoff {
        Backoff { next: Self::FIRST, spread: std::process::id() % 32 }
    }

    /// The delay before the next attempt.
    pub fn delay(&mut self) -> Duration {
        let delay = self.next + self.next * self.spread / 128;
        self.next = (self.next * 2).min(Self::LONGEST);
        delay
    }

    /// After a success: the next outage begins with the shortest delay again.
    pub fn reset(&mut self) {
        self.next = Self::FIRST;
    }

    /// Sleeps for the delay.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.delay()).await;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_over() {
        let mut b = Backoff::new();
        let delays: Vec<Duration> = (0..10).map(|_| b.delay()).collect();
        assert!(delays.windows(2).all(|w| w[0] <= w[1]));
        assert!(delays[0] < Duration::from_millis(130));
        assert!(delays[9] >= Duration::from_secs(5) && delays[9] < Duration::from_millis(6300));
        b.reset();
        assert_eq!(b.delay(), delays[0]);
    }
}
