//! Who comes to this node for a stream: machines whom the controller named, each with the key that it named, once, for one step of one
//! client, and for a short time. A grant that somebody else shows, that was used, or whose time is over opens nothing.

use crate::clients::Service;
use crate::dial::carry;
use berth_model::direct::Admission;
use berth_rpc::{DirectStream, Stranger};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Who may be expected at the same time; the oldest goes.
const MOST: usize = 16_384;
/// Longest that somebody is expected, whatever is said.
const LONGEST: Duration = Duration::from_secs(60);
/// How long the controller's word may be later than who comes by it.
const LATE: Duration = Duration::from_millis(1500);

/// Who is expected, and who is there.
pub(crate) struct Admitted {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Inner {
    /// By grant.
    expected: BTreeMap<String, (Admission, Instant)>,
    last: u64,
    /// Keys of those who are there, and what cuts them off when it is dropped.
    there: BTreeMap<u64, (String, oneshot::Sender<()>)>,
}

impl Default for Admitted {
    fn default() -> Admitted {
        Admitted { inner: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Admitted {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody comes.
    pub(crate) fn add(&self, admission: Admission) {
        let time = Duration::from_micros(u64::try_from(admission.time.0).unwrap_or(0)).min(LONGEST);
        self.expect(admission, Instant::now(), time);
        self.changed.send_replace(());
    }

    fn expect(&self, admission: Admission, now: Instant, time: Duration) {
        let mut inner = self.lock();
        if inner.expected.len() >= MOST {
            // Who is late opens nothing, and is in nobody's way before.
            inner.expected.retain(|_, (_, until)| *until > now);
        }
        if inner.expected.len() >= MOST {
            let oldest = inner.expected.iter().min_by_key(|(_, (_, until))| *until);
            if let Some(oldest) = oldest.map(|(grant, _)| grant.clone()) {
                inner.expected.remove(&oldest);
            }
        }
        inner.expected.insert(admission.grant.clone(), (admission, now + time));
    }

    /// What the machine with this key may do by this grant. It is used up with that.
    fn take(&self, grant: &str, key: &str, now: Instant) -> Option<Admission> {
        let mut inner = self.lock();
        // Who has seen another's grant neither uses it nor takes it away.
        inner.expected.get(grant).filter(|(admission, until)| admission.key == key && *until > now)?;
        inner.expected.remove(grant).map(|(admission, _)| admission)
    }

    /// The same of who may be there before the controller's word.
    async fn wait_for(&self, grant: &str, key: &str) -> Option<Admission> {
        let mut changes = self.changed.subscribe();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                if let Some(admission) = self.take(grant, key, Instant::now()) {
                    return Some(admission);
                }
                // The sender is ours.
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(LATE, waiting).await.ok().flatten()
    }

    /// A key is none of the cluster's any more: who has it is expected no more, and cut off where it is there.
    pub(crate) fn cut(&self, key: &str) {
        let mut inner = self.lock();
        inner.expected.retain(|_, (admission, _)| admission.key != key);
        inner.there.retain(|_, (of, _)| of != key);
    }

    /// Adds the keys that are there or expected.
    pub(crate) fn add_keys(&self, keys: &mut BTreeSet<String>) {
        let inner = self.lock();
        keys.extend(inner.expected.values().map(|(admission, _)| admission.key.clone()));
        keys.extend(inner.there.values().map(|(key, _)| key.clone()));
    }

    fn opened(&self, key: &str) -> (u64, oneshot::Receiver<()>) {
        let (cut, gone) = oneshot::channel();
        let mut inner = self.lock();
        inner.last += 1;
        let number = inner.last;
        inner.there.insert(number, (key.to_string(), cut));
        (number, gone)
    }

    /// Serves a machine that came for a stream, until that is over.
    pub(crate) async fn take_in(
        &self,
        mut stream: DirectStream,
        (from, mut stranger): (SocketAddr, Stranger),
        service: &Service,
    ) {
        let key = stream.key().to_string();
        // A machine of the cluster that shows no grant takes no more room than a stranger.
        stranger.begin_anew();
        let shown = async {
            let grant = stream.grant().await.ok()?;
            Some(self.wait_for(&grant, &key).await)
        };
        let Ok(Some(admission)) = stranger.attend(shown).await else { return };
        let Some(admission) = admission else {
            tracing::info!("{from} is turned away: the controller named it for no such stream");
            return stream.refuse("the controller named this machine for no such stream").await;
        };
        drop(stranger);
        // From here on it is cut when its key is nobody's any more.
        let (number, gone) = self.opened(&key);
        let (step, peer) = (admission.step, admission.peer);
        let served = async {
            let Ok(wire) = stream.welcome().await else { return };
            tracing::debug!("step {step} has a stream to {from} for uid {}", peer.uid);
            if let Err(e) = carry(wire, peer, Some(step), service).await {
                tracing::debug!("the stream of step {step} to {from}: {e}");
            }
        };
        tokio::select! {
            () = served => {}
            _ = gone => tracing::info!(
                "the stream of step {step} to {from} is cut: the key of that machine is none of the cluster's any more"
            ),
        }
        self.lock().there.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::request::Peer;
    use berth_model::{Attempt, Gid, JobId, Span, StepId, StepKey, Uid};

    fn admission(grant: &str, key: &str) -> Admission {
        let step = StepKey { job: JobId(1), attempt: Attempt(1), step: StepId::Number(0) };
        let peer = Peer { uid: Uid(7), gid: Gid(7), job: None };
        Admission { grant: grant.into(), key: key.into(), peer, step, time: Span::from_secs(30) }
    }

    #[test]
    fn a_grant_is_one_keys_for_one_connection_and_for_its_time() {
        let (admitted, now) = (Admitted::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        admitted.expect(admission("g", "login"), now, Duration::from_secs(30));
        assert!(admitted.take("g", "another", now).is_none(), "a stolen grant");
        assert!(admitted.take("", "login", now).is_none() && admitted.take("h", "login", now).is_none());
        assert!(admitted.take("g", "login", after(1)).is_some(), "it is still the one's whose it is");
        assert!(admitted.take("g", "login", after(1)).is_none(), "a replay");
        admitted.expect(admission("g", "login"), now, Duration::from_secs(30));
        assert!(admitted.take("g", "login", after(31)).is_none(), "too late");
        admitted.add(Admission { time: Span(i64::MAX), ..admission("for ever", "login") });
        assert!(admitted.take("for ever", "login", Instant::now() + LONGEST).is_none());
    }

    #[test]
    fn a_key_that_is_removed_is_expected_no_more_and_is_cut_off() {
        let (admitted, now) = (Admitted::default(), Instant::now());
        admitted.expect(admission("g", "stolen"), now, LONGEST);
        admitted.expect(admission("h", "other"), now, LONGEST);
        let (_, mut stolen) = admitted.opened("stolen");
        let (_, mut other) = admitted.opened("other");
        admitted.expect(admission("i", "third"), now, LONGEST);
        let keys = || {
            let mut keys = BTreeSet::new();
            admitted.add_keys(&mut keys);
            keys.into_iter().collect::<Vec<String>>()
        };
        assert_eq!(keys(), ["other", "stolen", "third"]);
        admitted.cut("stolen");
        assert_eq!(keys(), ["other", "third"]);
        assert!(admitted.take("g", "stolen", now).is_none());
        assert!(admitted.take("h", "other", now).is_some());
        assert_eq!(stolen.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(other.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }

    #[test]
    fn no_more_are_expected_than_there_is_room_for() {
        let (admitted, now) = (Admitted::default(), Instant::now());
        for n in 0..=MOST {
            let time = Duration::from_secs(10) + Duration::from_micros(u64::try_from(n).unwrap());
            admitted.expect(admission(&n.to_string(), "k"), now, time);
        }
        assert_eq!(admitted.lock().expected.len(), MOST);
        assert!(admitted.take("0", "k", now).is_none(), "the oldest went");
        assert!(admitted.take("1", "k", now).is_some());
    }
}
