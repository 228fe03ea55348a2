//! Connections of each user to this machine's daemon: no user can use up the descriptors of all.

use crate::clients::opening;
use berth_model::ids::Uid;
use berth_stream::Frame;
use berth_stream::asynchronous::write_frame;
use rustix::process::{Resource, getrlimit};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// Which part of the descriptors' number the connections of one user may be. Most take two: that of the client, and the one behind it.
const PART: u64 = 8;
/// How many at a time are told that there is no place for them; others find the connection closed.
const TOLD: usize = 32;
/// How long one that is told may take.
const TELLING: Duration = Duration::from_secs(1);

/// Open connections, by user.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    of: Arc<Mutex<HashMap<Uid, u64>>>,
    told: Arc<Semaphore>,
    /// Whom it is not about: root, and the daemon's own user.
    own: Uid,
}

/// One of them; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    uid: Uid,
    of: Arc<Mutex<HashMap<Uid, u64>>>,
}

impl Connections {
    pub(crate) fn new() -> Connections {
        let own = Uid(rustix::process::geteuid().as_raw());
        Connections { of: Arc::default(), told: Arc::new(Semaphore::new(TOLD)), own }
    }

    /// A place for one more, if it may be. Who gets none is told so.
    pub(crate) fn admit(&self, stream: UnixStream) -> Option<(UnixStream, Place)> {
        let uid = Uid(stream.peer_cred().ok()?.uid());
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / PART;
        match self.take(uid, most) {
            Some(place) => Some((stream, place)),
            None => {
                self.turn_away(stream, most);
                None
            }
        }
    }

    fn take(&self, uid: Uid, most: u64) -> Option<Place> {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = uid.0 != 0 && uid != self.own;
        if bound && table.get(&uid).is_some_and(|count| *count >= most) {
            return None;
        }
        *table.entry(uid).or_default() += 1;
        Some(Place { uid, of: Arc::clone(&self.of) })
    }

    fn turn_away(&self, mut stream: UnixStream, most: u64) {
        let Ok(telling) = Arc::clone(&self.told).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let tell = async {
                // Who has not said anything yet does not listen either.
                opening(&mut stream).await?;
                let text = format!(
                    "you have {most} connections to this machine's daemon, as many as one user may have: end some of your \
                     commands first"
                );
                write_frame(&mut stream, &Frame::Refused(text)).await
            };
            // Nobody is waited for, and what cannot be told is not.
            let _ = tokio::time::timeout(TELLING, tell).await;
            drop(telling);
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_a_bounded_number_of_places_and_root_has_not() {
        let all = Connections { own: Uid(500), ..Connections::new() };
        let mut places: Vec<Place> = (0..3).map(|_| all.take(Uid(1000), 3).unwrap()).collect();
        assert!(all.take(Uid(1000), 3).is_none());
        assert!(all.take(Uid(1001), 3).is_some(), "others are not concerned");
        let roots: Vec<Option<Place>> =
            [0, 500].into_iter().cycle().take(20).map(|uid| all.take(Uid(uid), 3)).collect();
        assert!(roots.iter().all(Option::is_some));
        places.pop();
        places.push(all.take(Uid(1000), 3).unwrap());
        drop((places, roots));
        assert!(all.of.lock().unwrap().is_empty());
    }
}
