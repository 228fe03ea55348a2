//! Memory for what layers keep until they are written, however many are unpacked at once: so much they have together, and one at a
//! time has what it needs beyond that. So an import takes no more than its largest layer alone would, and that much.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// How often a layer that waits looks whether somebody wants it still.
const LOOKS: Duration = Duration::from_millis(500);

/// By what a layer that waits for others sees that it is not wanted any more.
#[derive(Clone, Copy, Default)]
pub(super) struct Unwanted<'a> {
    /// Set by whoever wanted the image.
    pub(super) stopped: Option<&'a AtomicBool>,
    /// Set when another layer of the image failed.
    pub(super) failed: Option<&'a AtomicBool>,
}

impl Unwanted<'_> {
    /// Why the layer is given up, where it is.
    fn error(self) -> Option<Error> {
        let set = |flag: Option<&AtomicBool>| flag.is_some_and(|flag| flag.load(Ordering::Relaxed));
        let why = match (set(self.stopped), set(self.failed)) {
            (true, _) => "the image is not wanted any more",
            (_, true) => "another layer of the image failed",
            _ => return None,
        };
        let reason = format!("it waited for memory that other layers have, and was given up: {why}");
        Some(Error::new(ErrorKind::Io, "layer", reason))
    }
}

/// Memory that layers share.
pub(super) struct Memory {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Bytes that nobody has.
    left: u64,
    /// A layer has more than that.
    beyond: bool,
}

/// What one layer has of it, for all of its reasons: none waits for a turn that the layer has. It comes back when the layer is
/// written, or comes to nothing.
pub(super) struct Share {
    memory: &'static Memory,
    held: Mutex<Held>,
}

struct Held {
    bytes: u64,
    /// It is the one that has more.
    beyond: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    pub(super) const fn new(bytes: u64) -> Self {
        Self { state: Mutex::new(State { left: bytes, beyond: false }), changed: Condvar::new() }
    }

    /// Waits until so many bytes are left, which it takes, or until nobody has more than what is shared, which the caller then has.
    fn take(&self, bytes: u64, unwanted: Unwanted<'_>) -> Result<Held> {
        let mut state = locked(&self.state);
        // Whoever has more waits for nobody, so that this ends.
        while state.left < bytes && state.beyond {
            if let Some(error) = unwanted.error() {
                return Err(error);
            }
            state = self.changed.wait_timeout(state, LOOKS).unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(left) = state.left.checked_sub(bytes) {
            state.left = left;
            return Ok(Held { bytes, beyond: false });
        }
        state.beyond = true;
        Ok(Held { bytes: 0, beyond: true })
    }
}

impl Share {
    pub(super) const fn of(memory: &'static Memory) -> Self {
        Self { memory, held: Mutex::new(Held { bytes: 0, beyond: false }) }
    }

    /// Before the layer takes so many more bytes.
    ///
    /// # Errors
    /// They would have had to be waited for, and nobody wants the layer any more.
    pub(super) fn take(&self, bytes: u64, unwanted: Unwanted<'_>) -> Result<()> {
        let mut held = locked(&self.held);
        if !held.beyond {
            let more = self.memory.take(bytes, unwanted)?;
            *held = Held { bytes: held.bytes + more.bytes, beyond: more.beyond };
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        if held.bytes > 0 || held.beyond {
            let mut state = locked(&self.memory.state);
            state.left += held.bytes;
            state.beyond &= !held.beyond;
            drop(state);
            self.memory.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    /// By a layer that is wanted.
    fn take(share: &Share, bytes: u64) {
        share.take(bytes, Unwanted::default()).unwrap();
    }

    #[test]
    fn one_has_more_than_what_is_shared_and_the_others_wait_for_it_or_for_what_comes_back() {
        static MEMORY: Memory = Memory::new(100);
        let (first, second, third) = (Share::of(&MEMORY), Share::of(&MEMORY), Share::of(&MEMORY));
        take(&first, 60);
        take(&second, 40);
        // Nothing is left.
        take(&first, 1);
        take(&first, 1_000_000);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                take(&third, 50);
                assert!(!locked(&third.held).beyond);
                take(&second, 10);
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(!waits.is_finished());
            drop(first);
            waits.join().unwrap();
        });
        drop((second, third));
        assert_eq!(locked(&MEMORY.state).left, 100);
        assert!(!locked(&MEMORY.state).beyond);
    }

    #[test]
    fn more_than_there_is_at_all_is_had_by_one_at_a_time() {
        static MEMORY: Memory = Memory::new(100);
        let one = Share::of(&MEMORY);
        take(&one, u64::MAX);
        take(&one, u64::MAX);
        let small = Share::of(&MEMORY);
        take(&small, 100);
        let other = std::thread::spawn(|| take(&Share::of(&MEMORY), u64::MAX));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!other.is_finished());
        drop(one);
        other.join().unwrap();
    }

    /// Each a little below what one may have, as many as there are.
    #[test]
    fn layers_of_less_than_all_of_it_do_not_have_it_several_times() {
        static MEMORY: Memory = Memory::new(100);
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        static MOST: AtomicU64 = AtomicU64::new(0);
        let layers = [(); 8].map(|()| {
            std::thread::spawn(|| {
                let share = Share::of(&MEMORY);
                for _ in 0..90 {
                    take(&share, 1);
                    MOST.fetch_max(TAKEN.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                }
                TAKEN.fetch_sub(90, Ordering::SeqCst);
            })
        });
        layers.into_iter().for_each(|layer| layer.join().unwrap());
        let most = MOST.load(Ordering::SeqCst);
        assert!(most <= 100 + 90, "{most}");
    }

    #[test]
    fn who_waits_is_given_up_when_nobody_wants_it_or_another_layer_failed() {
        static MEMORY: Memory = Memory::new(100);
        let (most, other) = (Share::of(&MEMORY), Share::of(&MEMORY));
        take(&most, 101);
        take(&other, 60);
        let flag = AtomicBool::new(false);
        let by_both: [Unwanted<'_>; 2] = [
            Unwanted { stopped: Some(&flag), ..Unwanted::default() },
            Unwanted { failed: Some(&flag), ..Unwanted::default() },
        ];
        for (unwanted, says) in by_both.into_iter().zip(["not wanted any more", "another layer"]) {
            flag.store(false, Ordering::Relaxed);
            let (said, heard) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let other = &other;
                scope.spawn(move || said.send(other.take(50, unwanted)));
                assert!(heard.recv_timeout(Duration::from_millis(50)).is_err(), "it did not wait");
                flag.store(true, Ordering::Relaxed);
                let ended = heard.recv_timeout(Duration::from_secs(20));
                if ended.is_err() {
                    // So that the test fails, and ends.
                    locked(&MEMORY.state).beyond = false;
                }
                let error = ended.unwrap().unwrap_err();
                assert!(error.to_string().contains(says), "{error}");
            });
            // Nothing was taken, and what there is is had by whoever wants it or not.
            assert_eq!(locked(&MEMORY.state).left, 40);
            other.take(0, unwanted).unwrap();
        }
        drop((most, other));
        let state = locked(&MEMORY.state);
        assert!(state.left == 100 && !state.beyond);
    }
}
