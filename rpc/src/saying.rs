//! What the controller holds of what nodes say, until it has been handled. A message may have megabytes, and an agent waits for no answer before it
//! sends the next: what is beyond stays unread, with the sender.

use berth_model::NodeName;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The largest message of an agent: a Hello with the exits of thousands of steps has less.
pub(crate) const LARGEST: usize = 8 << 20;
/// Bytes of one node that wait, on all of its connections together.
const BYTES: usize = 8 << 20;
/// What each message counts beside its own: a thousand of the smallest may wait, too.
const EACH: usize = 8 << 10;

/// What of each node waits.
#[derive(Default)]
pub(crate) struct Saying(Mutex<HashMap<NodeName, Weak<Semaphore>>>);

/// A message's part of what may wait of its node, until it is dropped: keep it with the message until that is handled.
#[derive(Debug, Default)]
pub struct Unheard {
    _bytes: Option<OwnedSemaphorePermit>,
}

impl Saying {
    /// The room that a node has.
    pub(crate) fn of(&self, node: &NodeName) -> Arc<Semaphore> {
        let mut of = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = of.get(node).and_then(Weak::upgrade) {
            return known;
        }
        // Of nodes without a link nothing is kept.
        of.retain(|_, room| room.strong_count() > 0);
        let made = Arc::new(Semaphore::new(BYTES));
        of.insert(node.clone(), Arc::downgrade(&made));
        made
    }
}

impl Unheard {
    /// Waits until there is room for a message of so many bytes.
    pub(crate) async fn take(room: &Arc<Semaphore>, bytes: usize) -> Unheard {
        let weight = u32::try_from(bytes.saturating_add(EACH).min(BYTES)).unwrap_or(u32::MAX);
        // It is never closed.
        Unheard { _bytes: Arc::clone(room).acquire_many_owned(weight).await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// Whether there is room at this moment.
    fn now(room: &Arc<Semaphore>, bytes: usize) -> Option<Unheard> {
        let mut taking = pin!(Unheard::take(room, bytes));
        match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(unheard) => Some(unheard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_waits_of_a_node_is_bounded_in_bytes_and_in_number_and_others_have_their_own() {
        let saying = Saying::default();
        let (one, other) = (NodeName::from("n1"), NodeName::from("n2"));
        let room = saying.of(&one);
        let held: Vec<Unheard> = (0..1024).map(|_| now(&room, 0).unwrap()).collect();
        assert!(now(&saying.of(&one), 0).is_none(), "another connection of it has no room of its own");
        assert!(now(&saying.of(&other), 1 << 20).is_some());
        drop(held);
        // The largest has all of it to itself, and comes through.
        let largest = now(&room, LARGEST).unwrap();
        assert!(now(&room, 1).is_none());
        drop(largest);
        assert!(now(&room, 1).is_some());
        drop(room);
        let _other = saying.of(&other);
        assert_eq!(saying.0.lock().unwrap().len(), 1, "nodes without a link are forgotten");
    }
}
