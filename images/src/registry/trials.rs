//! How often and when something is asked again that a busy server or a broken connection left without an answer: not by all at the same
//! moment who met the same trouble at one.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime};

use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::message;
use super::urls::retry_after;

/// How often one request is tried.
pub(super) const ATTEMPTS: u32 = 5;
/// How often one is tried at a mirror, beside which there is another place to ask.
const MIRROR_ATTEMPTS: u32 = 2;
/// How often a registry is tried again that refuses connections and has answered before: it may be about to begin anew. With waits that grow
/// as those between other tries, this is about 25 s.
const REFUSALS: u32 = 7;
/// Wait before the second try, more or less; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest wait where the server asks for none.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Longest wait that a server may ask for: who wants more is given up, because nobody is asked earlier than they said.
const LONGEST_LEAVE: Duration = Duration::from_secs(120);
/// The same of a mirror.
const MIRROR_LEAVE: Duration = Duration::from_secs(5);

/// Numbers that follow from a seed (SplitMix64).
struct Spread(u64);

impl Spread {
    /// Another one in each process, and for each value.
    fn by_chance() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    /// Anything up to `most`.
    fn up_to(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(mixed % most.saturating_add(1))
    }

    /// About `wait`: from half of it to half as much again.
    fn about(&mut self, wait: Duration) -> Duration {
        wait / 2 + self.up_to(wait)
    }
}

/// The wait before something goes on that was broken off, and went on so many times before without getting on.
pub(super) fn a_moment(before: u32) -> Duration {
    Spread::by_chance().about(doubled(before))
}

/// The wait after so many others.
fn doubled(before: u32) -> Duration {
    FIRST_WAIT.saturating_mul(2u32.saturating_pow(before)).min(LONGEST_WAIT)
}

/// The tries of one request.
pub(super) struct Trials {
    left: u32,
    /// Refused connections that may still come.
    refusals: u32,
    wait: Duration,
    leave: Duration,
    spread: Spread,
}

impl Trials {
    pub(super) fn new(is_mirror: bool) -> Self {
        Self::spread_by(is_mirror, Spread::by_chance())
    }

    fn spread_by(is_mirror: bool, spread: Spread) -> Self {
        let (attempts, refusals, leave) = match is_mirror {
            true => (MIRROR_ATTEMPTS, 0, MIRROR_LEAVE),
            false => (ATTEMPTS, REFUSALS, LONGEST_LEAVE),
        };
        Self { left: attempts - 1, refusals, wait: FIRST_WAIT, leave, spread }
    }

    /// How long to wait before the same is asked again upon this answer; `None` where it is not.
    pub(super) fn after(&mut self, response: &Response<Body>) -> Option<Duration> {
        let status = response.status();
        if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
            return None;
        }
        self.next(retry_after(response.headers(), SystemTime::now()))
    }

    /// The same where no answer came, of one that has answered before or not: where nothing ever listened, nothing is waited for.
    pub(super) fn after_none(&mut self, error: &ureq::Error, has_answered: bool) -> Option<Duration> {
        if message::is_refused(error) {
            self.refusals = self.refusals.checked_sub(1).filter(|_| has_answered)?;
            return Some(self.spread.about(doubled(REFUSALS - 1 - self.refusals)));
        }
        if message::may_pass(error) { self.next(None) } else { None }
    }

    /// The next wait, which is what the server asked for if it asked for any, and a little more: it said the same to others.
    fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        match asked {
            Some(asked) if asked > self.leave => None,
            Some(asked) => Some(asked + self.spread.up_to(wait.max(asked / 4))),
            None => Some(self.spread.about(wait)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trials(is_mirror: bool, seed: u64) -> Trials {
        Trials::spread_by(is_mirror, Spread(seed))
    }

    fn about(wait: Option<Duration>, of: Duration) {
        assert!(wait.is_some_and(|wait| wait >= of / 2 && wait <= of * 3 / 2), "{wait:?} for {of:?}");
    }

    #[test]
    fn one_that_has_answered_before_may_begin_anew() {
        let refused = ureq::Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        for seed in 0..100 {
            let mut trials = trials(false, seed);
            for before in 0..REFUSALS {
                about(trials.after_none(&refused, true), FIRST_WAIT * 2u32.pow(before));
            }
            assert_eq!(trials.after_none(&refused, true), None);
            about(trials.next(None), FIRST_WAIT);
        }
        assert_eq!(trials(false, 0).after_none(&refused, false), None, "nothing ever listened there");
        assert_eq!(trials(true, 0).after_none(&refused, true), None, "there is another place to ask");
        for before in 0..9 {
            about(Some(a_moment(before)), (FIRST_WAIT * 2u32.pow(before)).min(LONGEST_WAIT));
        }
    }

    #[test]
    fn waits_grow_and_what_a_server_asks_for_counts_before_them() {
        let asked = |wait: Option<Duration>, of: u64, more: Duration| {
            let of = Duration::from_secs(of);
            assert!(wait.is_some_and(|wait| wait >= of && wait <= of + more), "{wait:?} for {of:?}");
        };
        let seconds = |n| Some(Duration::from_secs(n));
        for seed in 0..100 {
            let mut trials = trials(false, seed);
            about(trials.next(None), FIRST_WAIT);
            about(trials.next(None), FIRST_WAIT * 2);
            asked(trials.next(seconds(120)), 120, Duration::from_secs(30));
            about(trials.next(None), FIRST_WAIT * 8);
            assert_eq!(trials.next(None), None);
            asked(self::trials(false, seed).next(seconds(0)), 0, FIRST_WAIT);
        }
        assert_eq!(trials(false, 0).next(seconds(121)), None, "nobody is asked earlier than they said");
        let mut mirror = trials(true, 0);
        assert!(mirror.next(None).is_some() && mirror.next(None).is_none());
        assert_eq!(trials(true, 0).next(seconds(6)), None, "there is another place to ask");
    }

    #[test]
    fn those_who_met_the_same_trouble_do_not_come_back_at_the_same_moment() {
        for said in [None, Some(Duration::ZERO), Some(Duration::from_secs(30))] {
            let waits: Vec<Duration> = (0..100).map(|seed| trials(false, seed).next(said).unwrap()).collect();
            // A tenth of the time that they have.
            let moment = FIRST_WAIT.max(said.unwrap_or_default() / 4) / 10;
            let most = waits.iter().map(|from| {
                let together = |wait: &&Duration| **wait >= *from && **wait < *from + moment;
                waits.iter().filter(together).count()
            });
            assert!(most.max().unwrap() <= 25, "{said:?}: {waits:?}");
            let again: Vec<Duration> = (0..100).map(|seed| trials(false, seed).next(said).unwrap()).collect();
            assert_eq!(waits, again, "the seed says all");
        }
        assert_ne!(Spread::by_chance().0, Spread::by_chance().0);
    }
}
