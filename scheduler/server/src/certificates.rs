//! Until when machines' certificates are good, as far as is known here. One that cannot keep a new one, as on a full disk, must join again when the one that it has
//! ends, and its open link says nothing of that before.

use berth_model::Time;
use berth_model::member::KeyId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// For how long, at most, a connection may still show the certificate before, although the new one was kept.
const GRACE: Duration = Duration::from_secs(60);

/// What is known of the certificates of one key.
#[derive(Debug, Default)]
struct Known {
    /// The end of the latest that it has shown.
    has: Option<SystemTime>,
    /// The end of one that it was given since, and when.
    given: Option<(SystemTime, SystemTime)>,
    /// It came without the one that it was given.
    missed: bool,
}

impl Known {
    fn ends(&self) -> Option<SystemTime> {
        let given = self.given.map(|(until, _)| until).filter(|_| !self.missed);
        self.has.max(given)
    }
}

/// Those of all keys.
#[derive(Debug, Default)]
pub(crate) struct Certificates(Mutex<BTreeMap<KeyId, Known>>);

impl Certificates {
    fn all(&self) -> MutexGuard<'_, BTreeMap<KeyId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine is given one.
    pub(crate) fn given(&self, key: &KeyId, until: SystemTime, now: SystemTime) {
        self.all().entry(key.clone()).or_default().given = Some((until, now));
    }

    /// A machine shows one. `life`: for how long they are good.
    pub(crate) fn shown(&self, key: &KeyId, until: SystemTime, now: SystemTime, life: Duration) {
        let mut all = self.all();
        let known = all.entry(key.clone()).or_default();
        if let Some((new, at)) = known.given {
            let late = now.duration_since(at).is_ok_and(|since| since >= GRACE.min(life / 30));
            if until >= new || late {
                known.given = None;
                known.missed = until < new;
            }
        } else if known.has.is_some_and(|has| has < until) {
            known.missed = false;
        }
        known.has = known.has.max(Some(until));
    }

    /// When the one of this key ends.
    pub(crate) fn ends(&self, key: &KeyId) -> Option<Time> {
        let since = self.all().get(key)?.ends()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(Time(i64::try_from(since.as_micros()).ok()?))
    }

    /// Keys whose certificate has less than a quarter of its life left; machines ask for the next one when a third is. Those that ended long ago are nobody's news.
    pub(crate) fn ending(&self, now: SystemTime, life: Duration) -> Vec<KeyId> {
        let ends = |known: &Known| known.ends().is_some_and(|at| at < now + life / 4 && now < at + life);
        self.all().iter().filter(|(_, known)| ends(known)).map(|(key, _)| key.clone()).collect()
    }

    /// Of other keys nothing is kept.
    pub(crate) fn retain(&self, is_known: impl Fn(&KeyId) -> bool) {
        self.all().retain(|key, _| is_known(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

    fn day(n: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(n * 24 * 3600)
    }

    #[test]
    fn one_that_cannot_be_kept_is_told_of_until_a_later_one_is_shown() {
        let (certificates, key) = (Certificates::default(), KeyId::of_digest([1; 32]));
        let shown = |until, now| certificates.shown(&key, until, now, LIFE);
        let ends = || certificates.ends(&key).map(|at| at.secs() / (24 * 3600));
        certificates.given(&key, day(30), day(0));
        assert_eq!(ends(), Some(30));
        shown(day(30), day(1));
        assert!(certificates.ending(day(22), LIFE).is_empty());
        // It asks, and a connection that was under way shows the one before.
        certificates.given(&key, day(50), day(20));
        shown(day(30), day(20) + Duration::from_secs(1));
        assert_eq!(ends(), Some(50));
        // An hour later it asks again: it has not kept it.
        for hour in 1..=24 {
            let now = day(20) + Duration::from_secs(hour * 3600);
            shown(day(30), now);
            assert_eq!(ends(), Some(30));
            certificates.given(&key, day(50), now);
            assert_eq!(ends(), Some(30), "what it is given once more says nothing");
        }
        assert!(certificates.ending(day(22), LIFE).is_empty());
        assert_eq!(certificates.ending(day(23), LIFE), std::slice::from_ref(&key));
        assert_eq!(certificates.ending(day(31), LIFE), std::slice::from_ref(&key), "it has ended");
        shown(day(51), day(24));
        assert_eq!((ends(), certificates.ending(day(25), LIFE)), (Some(51), vec![]));
        // A process that has the old one still says nothing of it.
        shown(day(30), day(26));
        assert_eq!(ends(), Some(51));
        assert!(certificates.ending(day(90), LIFE).is_empty(), "nobody's news any more");
        certificates.retain(|_| false);
        assert_eq!(ends(), None);
    }

    #[test]
    fn one_that_does_not_ask_at_all_is_told_of() {
        let (certificates, key) = (Certificates::default(), KeyId::of_digest([1; 32]));
        certificates.shown(&key, day(30), day(5), LIFE);
        assert_eq!(certificates.ending(day(23), LIFE), [key]);
    }
}
