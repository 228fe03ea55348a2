//! Turns of those who read long answers: each holds a thread for as long as its reader takes, and starts of jobs need threads, too.

use berth_model::Uid;
use berth_model::rights::Rank;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Answers that are given at a time: half of the threads that the runtime has for work which may wait.
const ALL: usize = 256;
/// Those of one user; more wait for each other.
const OF_ONE: usize = 32;

/// Who has one, and who waits.
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    of: Mutex<HashMap<Uid, Weak<Semaphore>>>,
}

/// A turn, until it is dropped.
pub(crate) struct Turn {
    _places: Option<[OwnedSemaphorePermit; 2]>,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns { all: Arc::new(Semaphore::new(ALL)), of: Mutex::default() }
    }
}

impl Turns {
    /// Waits for a turn. Root's is always now, and that of operators and administrators: they are who finds out what others do.
    pub(crate) async fn take(&self, (reader, rank): (Uid, Rank)) -> Turn {
        if reader.0 == 0 || rank > Rank::User {
            return Turn { _places: None };
        }
        // First the own place: who waits for others' holds none that they could have.
        let own = self.of(reader).acquire_owned().await;
        let all = Arc::clone(&self.all).acquire_owned().await;
        // Neither is ever closed.
        Turn { _places: own.ok().zip(all.ok()).map(|(own, all)| [own, all]) }
    }

    fn of(&self, reader: Uid) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = of.get(&reader).and_then(Weak::upgrade) {
            return known;
        }
        // Of users who read nothing any more nothing is kept.
        of.retain(|_, places| places.strong_count() > 0);
        let made = Arc::new(Semaphore::new(OF_ONE));
        of.insert(reader, Arc::downgrade(&made));
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn at_once(turns: &Turns, reader: u32) -> Option<Turn> {
        tokio::time::timeout(Duration::from_millis(50), turns.take((Uid(reader), Rank::User))).await.ok()
    }

    #[tokio::test]
    async fn one_user_has_some_turns_all_have_more_and_root_and_operators_wait_for_nobody() {
        let turns = Turns::default();
        let mut held = Vec::new();
        for _ in 0..OF_ONE {
            held.push(at_once(&turns, 1000).await.unwrap());
        }
        assert!(at_once(&turns, 1000).await.is_none());
        for other in 1001.. {
            if held.len() == ALL {
                break;
            }
            held.push(at_once(&turns, other).await.unwrap());
        }
        assert!(at_once(&turns, 9999).await.is_none());
        assert!(at_once(&turns, 0).await.is_some());
        for rank in [Rank::Operator, Rank::Administrator] {
            let soon = Duration::from_millis(50);
            assert!(tokio::time::timeout(soon, turns.take((Uid(9999), rank))).await.is_ok());
        }
        held.truncate(OF_ONE);
        assert!(at_once(&turns, 9999).await.is_some());
        assert!(at_once(&turns, 1000).await.is_none());
        held.clear();
        assert!(at_once(&turns, 1000).await.is_some());
        assert_eq!(turns.of.lock().unwrap().len(), 1, "users who read nothing are forgotten");
    }
}
