//! Memory for what layers keep until they are written, however many are unpacked at once: so much they have together, and one at a
//! time has what it needs beyond that. So an import takes no more than its largest layer alone would, and that much.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

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
    fn take(&self, bytes: u64) -> Held {
        // Whoever has more waits for nobody, so that this ends.
        let full = |state: &mut State| state.left < bytes && state.beyond;
        let state = self.changed.wait_while(locked(&self.state), full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = state.left.checked_sub(bytes) {
            state.left = left;
            return Held { bytes, beyond: false };
        }
        state.beyond = true;
        Held { bytes: 0, beyond: true }
    }
}

impl Share {
    pub(super) const fn of(memory: &'static Memory) -> Self {
        Self { memory, held: Mutex::new(Held { bytes: 0, beyond: false }) }
    }

    /// Before the layer takes so many more bytes.
    pub(super) fn take(&self, bytes: u64) {
        let mut held = locked(&self.held);
        if !held.beyond {
            let more = self.memory.take(bytes);
            *held = Held { bytes: held.bytes + more.bytes, beyond: more.beyond };
        }
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
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[test]
    fn one_has_more_than_what_is_shared_and_the_others_wait_for_it_or_for_what_comes_back() {
        static MEMORY: Memory = Memory::new(100);
        let (first, second, third) = (Share::of(&MEMORY), Share::of(&MEMORY), Share::of(&MEMORY));
        first.take(60);
        second.take(40);
        // Nothing is left.
        first.take(1);
        first.take(1_000_000);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                third.take(50);
                assert!(!locked(&third.held).beyond);
                second.take(10);
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
        one.take(u64::MAX);
        one.take(u64::MAX);
        let small = Share::of(&MEMORY);
        small.take(100);
        let other = std::thread::spawn(|| Share::of(&MEMORY).take(u64::MAX));
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
                    share.take(1);
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
}
