//! What takes so much memory that one layer at a time has it, however many are unpacked at once.

use std::sync::{Condvar, Mutex, PoisonError};

/// Whose turn it is.
pub(crate) struct Turn {
    taken: Mutex<bool>,
    free: Condvar,
}

/// Held by who has it.
pub(crate) struct Taken(&'static Turn);

impl Turn {
    pub(crate) const fn new() -> Self {
        Self { taken: Mutex::new(false), free: Condvar::new() }
    }

    /// Waits until nobody else has it.
    pub(crate) fn take(&'static self) -> Taken {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = self.free.wait_while(taken, |taken| *taken).unwrap_or_else(PoisonError::into_inner);
        *taken = true;
        Taken(self)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_at_a_time() {
        static TURN: Turn = Turn::new();
        let first = TURN.take();
        let others = [(), ()].map(|()| std::thread::spawn(|| drop(TURN.take())));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(others.iter().all(|other| !other.is_finished()));
        drop(first);
        others.into_iter().for_each(|other| other.join().unwrap());
    }
}
