//! What one user may have the controller hold of requests: while they come, and until they are answered. A request may have 16 MiB, and a
//! connection thousands of them at a time.

use crate::error::to_status;
use crate::serve::Caller;
use berth_model::Uid;
use berth_model::request::{Refusal, RefusalCode};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, Streaming};

/// Requests of one user that come at the same time; others wait for them, unread.
const COMING: usize = 16;
/// Bytes of those that have come and wait for their answer: a few of the largest, very many of the usual ones.
const BYTES: usize = 4 * crate::MAX_MESSAGE;
/// For how long one may be on its way.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whose requests are held. What a machine sends slowly in a user's name holds up nothing that the user sends.
#[derive(Default)]
pub(crate) struct Receiving(Mutex<HashMap<Whose, Weak<Bounds>>>);

/// A user, and whether we have it from another than the kernel: from a machine, or from the agent of the job that they are in.
type Whose = (Uid, bool);

struct Bounds {
    coming: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A request's part of what its user may have, until it is dropped.
#[derive(Default)]
pub(crate) struct Held {
    _bytes: Option<OwnedSemaphorePermit>,
    // The next request of the same user finds it by this.
    _bounds: Option<Arc<Bounds>>,
}

impl Receiving {
    /// The request, once there is room for it. Root and agents wait for nobody.
    pub(crate) async fn take(
        &self,
        caller: Option<&Caller>,
        said: &mut Streaming<Bytes>,
    ) -> Result<(Bytes, Held), Status> {
        let Some(whose) = caller.and_then(whose) else {
            return Ok((received(said).await?, Held::default()));
        };
        let bounds = self.of(whose);
        // Neither is ever closed.
        let place = Arc::clone(&bounds.coming).acquire_owned().await;
        let body = received(said).await?;
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&bounds.bytes).acquire_many_owned(size).await;
        drop(place);
        Ok((body, Held { _bytes: bytes.ok(), _bounds: Some(bounds) }))
    }

    fn of(&self, whose: Whose) -> Arc<Bounds> {
        let mut of = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = of.get(&whose).and_then(Weak::upgrade) {
            return known;
        }
        // Of users who ask for nothing any more nothing is kept.
        of.retain(|_, bounds| bounds.strong_count() > 0);
        let made = Arc::new(Bounds {
            coming: Arc::new(Semaphore::new(COMING)),
            bytes: Arc::new(Semaphore::new(BYTES)),
        });
        of.insert(whose, Arc::downgrade(&made));
        made
    }
}

/// Whose request it is, unless it is root's or an agent's.
fn whose(caller: &Caller) -> Option<Whose> {
    let (uid, vouched) = match caller {
        Caller::Client(peer) => (peer.uid, peer.job.is_some()),
        Caller::Vouched { peer, .. } => (peer.uid, true),
        Caller::Agent(_) | Caller::NoPlace(_) => return None,
    };
    (uid.0 != 0).then_some((uid, vouched))
}

async fn received(said: &mut Streaming<Bytes>) -> Result<Bytes, Status> {
    let invalid = |text: &str| to_status(&Refusal::new(RefusalCode::Invalid, text));
    let coming = async {
        let body = said.message().await?;
        // To its end, behind which nothing more is read.
        said.trailers().await?;
        Ok::<_, Status>(body)
    };
    match tokio::time::timeout(PATIENCE, coming).await {
        Ok(body) => body?.ok_or_else(|| invalid("malformed message: it has no content")),
        Err(_) => Err(invalid("malformed message: it did not come within 60 s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::request::Peer;
    use berth_model::{Gid, JobId};

    #[test]
    fn one_users_requests_are_bounded_and_others_have_their_own_bounds() {
        let receiving = Receiving::default();
        let one = receiving.of((Uid(1000), false));
        let held: Vec<_> =
            (0..COMING).map(|_| Arc::clone(&one.coming).try_acquire_owned().unwrap()).collect();
        let again = receiving.of((Uid(1000), false));
        assert!(Arc::clone(&again.coming).try_acquire_owned().is_err());
        assert!(Arc::clone(&receiving.of((Uid(1001), false)).coming).try_acquire_owned().is_ok());
        let large = u32::try_from(crate::MAX_MESSAGE).unwrap();
        let bytes: Vec<_> =
            (0..4).map(|_| Arc::clone(&one.bytes).try_acquire_many_owned(large).unwrap()).collect();
        assert!(Arc::clone(&one.bytes).try_acquire_owned().is_err());
        drop((held, bytes, again));
        assert!(Arc::clone(&one.coming).try_acquire_owned().is_ok());
        drop(one);
        let _other = receiving.of((Uid(1002), false));
        assert_eq!(receiving.0.lock().unwrap().len(), 1, "users who ask for nothing are forgotten");
    }

    #[test]
    fn what_a_machine_says_for_a_user_holds_up_nothing_that_they_say_themselves() {
        let peer = |uid, job| Peer { uid: Uid(uid), gid: Gid(1), job };
        let own = whose(&Caller::Client(peer(1000, None))).unwrap();
        let vouched =
            whose(&Caller::Vouched { peer: peer(1000, None), administrators: false, by: "n1".into() })
                .unwrap();
        assert_eq!(whose(&Caller::Client(peer(1000, Some(JobId(7))))), Some(vouched));
        assert_eq!(whose(&Caller::Client(peer(0, None))), None);
        assert_eq!(whose(&Caller::Agent("n1".into())), None);
        let receiving = Receiving::default();
        let theirs = receiving.of(vouched);
        let held: Vec<_> =
            (0..COMING).map(|_| Arc::clone(&theirs.coming).try_acquire_owned().unwrap()).collect();
        assert!(Arc::clone(&receiving.of(vouched).coming).try_acquire_owned().is_err());
        let ours = receiving.of(own);
        let also: Vec<_> =
            (0..COMING).map(|_| Arc::clone(&ours.coming).try_acquire_owned().unwrap()).collect();
        drop(held);
        assert!(Arc::clone(&theirs.coming).try_acquire_owned().is_ok());
        assert!(Arc::clone(&ours.coming).try_acquire_owned().is_err());
        drop(also);
    }
}
