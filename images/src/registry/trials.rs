//! How often and when something is asked again that a busy server or a broken connection left without an answer.

use std::time::{Duration, SystemTime};

use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::message;
use super::urls::retry_after;

/// How often one request is tried.
pub(super) const ATTEMPTS: u32 = 5;
/// How often one is tried at a mirror, beside which there is another place to ask.
const MIRROR_ATTEMPTS: u32 = 2;
/// Wait before the second try; doubled each time.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest wait where the server asks for none.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Longest wait that a server may ask for: who wants more is given up, because nobody is asked earlier than they said.
const LONGEST_LEAVE: Duration = Duration::from_secs(120);
/// The same of a mirror.
const MIRROR_LEAVE: Duration = Duration::from_secs(5);

/// The tries of one request.
pub(super) struct Trials {
    left: u32,
    wait: Duration,
    leave: Duration,
}

impl Trials {
    pub(super) fn new(is_mirror: bool) -> Self {
        let (attempts, leave) =
            if is_mirror { (MIRROR_ATTEMPTS, MIRROR_LEAVE) } else { (ATTEMPTS, LONGEST_LEAVE) };
        Self { left: attempts - 1, wait: FIRST_WAIT, leave }
    }

    /// How long to wait before the same is asked again upon this answer; `None` where it is not.
    pub(super) fn after(&mut self, response: &Response<Body>) -> Option<Duration> {
        let status = response.status();
        if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
            return None;
        }
        self.next(retry_after(response.headers(), SystemTime::now()))
    }

    /// The same where no answer came.
    pub(super) fn after_none(&mut self, error: &ureq::Error) -> Option<Duration> {
        if message::may_pass(error) { self.next(None) } else { None }
    }

    /// The next wait, which is what the server asked for if it asked for any.
    fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        match asked {
            Some(asked) => Some(asked).filter(|asked| *asked <= self.leave),
            None => Some(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_what_a_server_asks_for_counts_before_them() {
        let mut trials = Trials::new(false);
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(trials.next(None), Some(FIRST_WAIT));
        assert_eq!(trials.next(None), Some(FIRST_WAIT * 2));
        assert_eq!(trials.next(seconds(120)), seconds(120));
        assert_eq!(trials.next(None), Some(FIRST_WAIT * 8));
        assert_eq!(trials.next(None), None);
        assert_eq!(Trials::new(false).next(seconds(121)), None, "nobody is asked earlier than they said");
        assert_eq!(Trials::new(false).next(seconds(0)), seconds(0));
        let mut mirror = Trials::new(true);
        assert!(mirror.next(None).is_some() && mirror.next(None).is_none());
        assert_eq!(Trials::new(true).next(seconds(6)), None, "there is another place to ask");
    }
}
