//! What of an import has come: its events added up, and told as a percentage.

use berth_agent_core::Fetched;
use berth_images::{Progress, ProgressEvent};
use berth_model::spec::ResolvedImage;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub(super) struct State {
    /// There is an image to be made present.
    pub(super) wanted: bool,
    pub(super) digest: Option<String>,
    /// What it is, where it came by its name alone.
    pub(super) found: Option<Box<ResolvedImage>>,
    /// Layers had to be fetched, or were being fetched by somebody else.
    pub(super) missing: bool,
    pub(super) bytes: u64,
    pub(super) total: u64,
    pub(super) told: Option<u8>,
}

/// Adds up an import's events, and turns them into a percentage that is told when it changes.
pub struct Pulling<F> {
    state: Mutex<State>,
    /// How often something came.
    moved: AtomicU64,
    tell: F,
}

/// That of an import of which nobody hears.
pub type Quiet = Pulling<fn(Option<u8>)>;

impl Default for Quiet {
    fn default() -> Quiet {
        Quiet::new(|_| {})
    }
}

impl<F: Fn(Option<u8>) + Sync> Pulling<F> {
    /// `tell` hears the percentage, where it is known.
    pub fn new(tell: F) -> Pulling<F> {
        Pulling { state: Mutex::default(), moved: AtomicU64::new(0), tell }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often something came: what grows no more gets nowhere.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// What it came to; `None` where no image was wanted.
    pub fn fetched(&self) -> Option<Fetched> {
        let state = self.state();
        let hit = state.digest.is_some() && !state.missing;
        let (digest, found) = (state.digest.clone(), state.found.clone());
        state.wanted.then(|| Fetched { bytes: state.bytes, hit, digest, found })
    }
}

impl<F: Fn(Option<u8>) + Sync> Progress for Pulling<F> {
    fn event(&self, event: ProgressEvent) {
        let mut state = self.state();
        if !matches!(event, ProgressEvent::Waiting { .. } | ProgressEvent::Delayed { .. }) {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        match event {
            ProgressEvent::Waiting { .. } => {
                state.missing = true;
                return;
            }
            ProgressEvent::Start { bytes, layers, cached } => {
                state.total = bytes;
                state.missing |= cached < layers;
            }
            ProgressEvent::Fetched { bytes } => state.bytes = state.bytes.saturating_add(bytes),
            _ => return,
        }
        let percent = state.bytes.saturating_mul(100).checked_div(state.total);
        let percent = percent.and_then(|p| u8::try_from(p.min(100)).ok());
        if percent != state.told {
            state.told = percent;
            (self.tell)(percent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_is_slow_to_answer_is_no_progress_and_says_nothing_of_what_is_there() {
        let pulling = Quiet::default();
        pulling.state().wanted = true;
        pulling.state().digest = Some("sha256:1".into());
        let what = || "registry r.io".to_owned();
        let hit = || pulling.fetched().is_some_and(|fetched| fetched.hit);
        pulling.event(ProgressEvent::Delayed { what: what() });
        assert!(hit() && pulling.moved() == 0);
        pulling.event(ProgressEvent::Waiting { what: what() });
        assert!(!hit() && pulling.moved() == 0);
    }
}
