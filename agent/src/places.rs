//! Connections to this machine's daemon: no user can use up its descriptors, and who has too many is told so.

use crate::clients::opening;
use berth_model::ids::Uid;
use berth_rpc::{Place, Places, one_users_part};
use berth_stream::Frame;
use berth_stream::asynchronous::write_frame;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// How many at a time are told that there is no place for them; others find the connection closed.
const TOLD: usize = 32;
/// How long one that is told may take.
const TELLING: Duration = Duration::from_secs(1);

/// Who is connected. Most connections take two descriptors: that of the client, and the one behind it.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    places: Places,
    told: Arc<Semaphore>,
    /// Whom it is not about: root, and the daemon's own user.
    own: Uid,
}

impl Connections {
    pub(crate) fn new() -> Connections {
        let own = Uid(rustix::process::geteuid().as_raw());
        Connections { places: Places::default(), told: Arc::new(Semaphore::new(TOLD)), own }
    }

    /// A place for one more, if it may be. Who gets none is told so.
    pub(crate) fn admit(&self, stream: UnixStream) -> Option<(UnixStream, Place)> {
        let uid = Uid(stream.peer_cred().ok()?.uid());
        let most = one_users_part();
        match self.take(uid, most) {
            Some(place) => Some((stream, place)),
            None => {
                self.turn_away(stream, most);
                None
            }
        }
    }

    fn is_bound(&self, uid: Uid) -> bool {
        uid.0 != 0 && uid != self.own
    }

    /// The answer to one who asks how many connections it may have.
    pub(crate) fn most(&self, uid: Uid) -> Frame {
        let most = if self.is_bound(uid) { one_users_part() } else { usize::MAX };
        Frame::Places(Some(u64::try_from(most).unwrap_or(u64::MAX)))
    }

    fn take(&self, uid: Uid, most: usize) -> Option<Place> {
        self.places.take(uid, if self.is_bound(uid) { most } else { usize::MAX })
    }

    fn turn_away(&self, mut stream: UnixStream, most: usize) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_a_bounded_number_of_places_and_root_and_the_daemons_own_have_not() {
        let all = Connections { own: Uid(500), ..Connections::new() };
        let places: Vec<Place> = (0..3).map(|_| all.take(Uid(1000), 3).unwrap()).collect();
        assert!(all.take(Uid(1000), 3).is_none());
        let own: Vec<Option<Place>> =
            [0, 500].into_iter().cycle().take(20).map(|uid| all.take(Uid(uid), 3)).collect();
        assert!(own.iter().all(Option::is_some));
        assert_eq!(all.most(Uid(0)), Frame::Places(Some(u64::MAX)));
        assert_eq!(all.most(Uid(1000)), Frame::Places(Some(u64::try_from(one_users_part()).unwrap())));
        drop(places);
        assert!(all.take(Uid(1000), 3).is_some());
    }
}
