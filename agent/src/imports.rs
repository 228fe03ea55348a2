//! How many images are brought at the same time, on a node and for one user: the processes that bring one take memory of the node's own,
//! of which no job is charged.
//!
//! A place is taken when it is known where the image is to come from, and holds until it is there: whoever has one waits for no other
//! place, so that all come to an end. A user who has none gets one also where all are taken: what others' sources do not bring keeps
//! nobody else waiting.

use berth_images::Digest;
use berth_model::ids::Uid;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Images at the same time on a node, and those of one user of them.
const MOST: usize = 16;
const OF_ONE_USER: usize = 8;
/// How often somebody who waits looks whether the image is still wanted.
const LOOKS: Duration = Duration::from_millis(500);

/// Who brings images now.
#[derive(Default)]
pub(crate) struct Imports {
    running: Mutex<Vec<Import>>,
    changed: Condvar,
}

/// For whom something is brought, and which image, where it is one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Import {
    user: Uid,
    image: Option<Digest>,
}

/// What somebody wants a place for.
pub(crate) struct Wish<'a> {
    pub(crate) user: Uid,
    /// One process at a time brings it for a user; nothing, where what is looked for is not known by its digest.
    pub(crate) image: Option<&'a Digest>,
    /// It may never be needed: the last place is left to what is.
    pub(crate) ahead: bool,
    /// Set when nobody wants it any more.
    pub(crate) stop: &'a AtomicBool,
}

/// The right to bring it, until this is dropped.
pub(crate) struct Place<'a> {
    imports: &'a Imports,
    import: Import,
}

impl Imports {
    fn running(&self) -> MutexGuard<'_, Vec<Import>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place; `None` when it is not wanted any more, or may never be needed and there is none now: who fetches ahead does so for one job
    /// after the other, of which none waits for another's user. `waits` is called once where it is not to be had at once.
    pub(crate) fn place(&self, wish: &Wish<'_>, waits: impl FnOnce()) -> Option<Place<'_>> {
        let import = Import { user: wish.user, image: wish.image.cloned() };
        let mut waits = Some(waits);
        let mut running = self.running();
        while !fits(&running, &import, wish.ahead) {
            if wish.ahead {
                return None;
            }
            if let Some(waits) = waits.take() {
                // It may take a lock of its own.
                drop(running);
                waits();
                running = self.running();
                continue;
            }
            if wish.stop.load(Ordering::Relaxed) {
                return None;
            }
            running = self.changed.wait_timeout(running, LOOKS).unwrap_or_else(PoisonError::into_inner).0;
        }
        running.push(import.clone());
        Some(Place { imports: self, import })
    }
}

/// Whether one more may be brought beside what is.
fn fits(running: &[Import], more: &Import, ahead: bool) -> bool {
    if more.image.is_some() && running.contains(more) {
        // It is there in the end, or is tried anew.
        return false;
    }
    let (all, own) = (running.len(), running.iter().filter(|import| import.user == more.user).count());
    match ahead {
        true => all + 1 < MOST && own + 1 < OF_ONE_USER,
        false => own == 0 || (all < MOST && own < OF_ONE_USER),
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut running = self.imports.running();
        if let Some(at) = running.iter().position(|import| *import == self.import) {
            running.swap_remove(at);
        }
        drop(running);
        self.imports.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // what fails here fails the test

    use super::*;
    use berth_images::Algorithm;
    use std::sync::mpsc::channel;

    fn image(n: usize) -> Digest {
        Digest::of(Algorithm::Sha256, n.to_string().as_bytes())
    }

    /// A place at once, or none.
    fn at_once(imports: &Imports, user: u32, n: usize, ahead: bool) -> Option<Place<'_>> {
        let (image, stop) = (image(n), AtomicBool::new(true));
        imports.place(&Wish { user: Uid(user), image: Some(&image), ahead, stop: &stop }, || {})
    }

    #[test]
    fn a_user_has_some_of_the_places_and_who_has_none_gets_one() {
        let imports = Imports::default();
        let mut held = Vec::new();
        for user in [1, 2] {
            held.extend((0..OF_ONE_USER).map(|n| at_once(&imports, user, n, false).unwrap()));
            assert!(at_once(&imports, user, 100, false).is_none());
        }
        assert_eq!(held.len(), MOST);
        // All are taken, by sources that may never bring anything.
        let third = at_once(&imports, 3, 0, false).unwrap();
        assert!(at_once(&imports, 3, 1, false).is_none());
        assert!(at_once(&imports, 4, 1, true).is_none(), "nothing that may never be needed");
        held.truncate(OF_ONE_USER);
        drop(third);
        assert!(at_once(&imports, 3, 1, false).is_some());
        drop(held);
        assert!(imports.running().is_empty());
    }

    #[test]
    fn what_may_never_be_needed_does_not_take_the_last_place() {
        let imports = Imports::default();
        let mut held: Vec<_> =
            (0..OF_ONE_USER - 1).map(|n| at_once(&imports, 1, n, false).unwrap()).collect();
        assert!(at_once(&imports, 1, 100, true).is_none());
        held.extend((0..OF_ONE_USER).map(|n| at_once(&imports, 2, n, false).unwrap()));
        assert_eq!(held.len(), MOST - 1);
        assert!(at_once(&imports, 3, 100, true).is_none(), "the node's last one");
        held.pop();
        assert!(at_once(&imports, 3, 100, true).is_some());
    }

    #[test]
    fn what_may_never_be_needed_holds_up_nothing_that_may_be_either() {
        let imports = Imports::default();
        let held: Vec<_> = (0..OF_ONE_USER).map(|n| at_once(&imports, 1, n, false).unwrap()).collect();
        let ahead = |user: u32, n: usize| {
            let (image, stop) = (image(n), AtomicBool::new(false));
            let wish = Wish { user: Uid(user), image: Some(&image), ahead: true, stop: &stop };
            imports.place(&wish, || panic!("it waits, and whatever is behind it")).is_some()
        };
        assert_eq!([ahead(1, 100), ahead(2, 0)], [false, true]);
        // What somebody brings comes anyhow.
        let other = at_once(&imports, 2, 0, false).unwrap();
        assert_eq!([ahead(2, 0), ahead(2, 1)], [false, true]);
        drop((held, other));
        assert!(ahead(1, 100));
    }

    #[test]
    fn one_image_is_brought_once_for_a_user_and_waiting_for_it_takes_no_place() {
        let imports = Imports::default();
        let first = at_once(&imports, 1, 0, false).unwrap();
        assert!(at_once(&imports, 1, 0, false).is_none());
        // Another user shows with another source that the image is theirs, too.
        let other = at_once(&imports, 2, 0, false);
        assert!(other.is_some());
        let (waits, waiting) = channel();
        std::thread::scope(|scope| {
            for _ in 0..40 {
                let (imports, waits) = (&imports, waits.clone());
                scope.spawn(move || {
                    let (image, stop) = (image(0), AtomicBool::new(false));
                    let wish = Wish { user: Uid(1), image: Some(&image), ahead: false, stop: &stop };
                    imports.place(&wish, || waits.send(()).unwrap()).unwrap();
                });
            }
            for _ in 0..40 {
                waiting.recv_timeout(Duration::from_secs(20)).unwrap();
            }
            // They are no import, so that others of the user's go on.
            let more: Vec<_> = (1..OF_ONE_USER).map(|n| at_once(&imports, 1, n, false).unwrap()).collect();
            drop(more);
            drop(first);
        });
        drop(other);
        assert!(imports.running().is_empty());
    }

    #[test]
    fn who_waits_goes_when_nobody_wants_it_any_more() {
        let imports = Imports::default();
        let first = at_once(&imports, 1, 0, false).unwrap();
        let (image, stop) = (image(0), AtomicBool::new(false));
        let wish = Wish { user: Uid(1), image: Some(&image), ahead: false, stop: &stop };
        assert!(imports.place(&wish, || stop.store(true, Ordering::Relaxed)).is_none());
        drop(first);
        assert!(imports.place(&wish, || ()).is_some(), "what is to be had is not waited for");
    }
}
