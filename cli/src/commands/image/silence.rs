//! Work that is given up when nothing was heard of it for long: what it waits for may be a user's, who need never answer.

use berth_images::{Progress, ProgressEvent};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Does `work`, which tells `progress` what happens and ends soon when `stop` is set: that is when it told nothing for `silence`, but not
/// while it only has to write what it has. Whether it was.
pub(super) fn bounded<T>(
    silence: Duration,
    stop: &AtomicBool,
    progress: &dyn Progress,
    work: impl FnOnce(&dyn Progress) -> T,
) -> (T, bool) {
    let heard = &Mutex::new(Some(Instant::now()));
    let last = move || *heard.lock().unwrap_or_else(PoisonError::into_inner);
    let (working, over) = channel::<()>();
    let watch = move || {
        loop {
            let left = left(last(), Instant::now(), silence);
            if left.is_zero() {
                stop.store(true, Ordering::Relaxed);
                return;
            }
            if over.recv_timeout(left) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    };
    let told = |event: ProgressEvent| {
        let until = (event != ProgressEvent::Syncing).then(Instant::now);
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = until;
        progress.event(event);
    };
    let done = std::thread::scope(|scope| {
        // Where there may be no more threads nobody watches.
        let _ = std::thread::Builder::new().spawn_scoped(scope, watch);
        let done = work(&told);
        drop(working);
        done
    });
    (done, stop.load(Ordering::Relaxed))
}

/// For how long it may go on without a word.
fn left(last: Option<Instant>, now: Instant, silence: Duration) -> Duration {
    last.map_or(silence, |last| silence.saturating_sub(now.saturating_duration_since(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn work_of_which_nothing_is_heard_is_stopped() {
        let stop = AtomicBool::new(false);
        let waits = |_: &dyn Progress| {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        assert!(bounded(Duration::from_millis(5), &stop, &(), waits).1);
    }

    #[test]
    fn work_that_ends_is_not_and_all_that_it_tells_is_told() {
        let (stop, told) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let progress = |event: ProgressEvent| told.lock().unwrap().push(event);
        let done = bounded(LONG, &stop, &progress, |progress| {
            progress.event(ProgressEvent::Fetched { bytes: 3 });
            7
        });
        assert_eq!(
            (done, told.into_inner().unwrap()),
            ((7, false), vec![ProgressEvent::Fetched { bytes: 3 }])
        );
    }

    #[test]
    fn silence_counts_from_the_last_word_and_not_while_all_is_written() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(left(Some(begun), after(3500), LONG), Duration::from_secs(100));
        assert_eq!(left(Some(after(3500)), after(3500), LONG), LONG);
        assert_eq!(left(Some(begun), after(3600), LONG), Duration::ZERO);
        assert_eq!(left(Some(after(5)), begun, LONG), LONG);
        assert_eq!(left(None, after(9999), LONG), LONG);
    }
}
