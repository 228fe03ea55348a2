//! What those who wait for a registry are told while they do: a registry that wants to be left alone looks like a program that hangs.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::{Access, Client, Credentials};

/// Shorter waits are no matter to anybody.
const MOMENT: Duration = Duration::from_secs(2);
/// For how long nobody asks why there is no answer.
const QUIET: Duration = Duration::from_secs(5);

type Tell = dyn Fn(&str) + Send + Sync;

/// Who hears it, if anybody does.
#[derive(Clone, Default)]
pub(super) struct Told(Option<Arc<Tell>>);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "told" } else { "untold" })
    }
}

impl Told {
    fn say(&self, text: &str) {
        if let Some(tell) = &self.0 {
            tell(text);
        }
    }

    /// Does the work, and says the text when it is not done in this time.
    fn during<T>(&self, quiet: Duration, text: &str, work: impl FnOnce() -> T) -> T {
        let Some(tell) = &self.0 else { return work() };
        let (working, over) = channel::<()>();
        let watch = move || {
            if over.recv_timeout(quiet) == Err(RecvTimeoutError::Timeout) {
                tell(text);
            }
        };
        std::thread::scope(|scope| {
            // Where there may be no more threads it is done without a word.
            let _ = std::thread::Builder::new().spawn_scoped(scope, watch);
            let done = work();
            drop(working);
            done
        })
    }
}

impl Credentials {
    /// With somebody who hears of a registry that is waited for: which, and why, as what stands behind "waiting for".
    #[must_use]
    pub fn telling(mut self, tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.told = Told(Some(Arc::new(tell)));
        self
    }
}

impl Client {
    /// Asks, and says so when no answer comes for a while. An upload is long on its way before there can be one.
    pub(super) fn asking<T>(&self, server: &str, ask: impl FnOnce() -> T) -> T {
        if matches!(self.access, Access::Push { .. }) {
            return ask();
        }
        let text = format!("{server}, which has not answered for {} s", QUIET.as_secs());
        self.credentials.told.during(QUIET, &text, ask)
    }

    /// Waits before a server is asked again, and says so where that is more than a moment.
    pub(super) fn leave_alone(&self, pause: Duration, server: &str, why: &str) {
        if pause >= MOMENT {
            let seconds = pause.as_secs();
            self.credentials.told.say(&format!("{server}, which {why} and is asked again in {seconds} s"));
        }
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn work_that_takes_a_while_is_told_of_and_other_work_is_not() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        let (said, waits) = channel();
        let told = Told(Some(Arc::new(move |text: &str| {
            hears.lock().unwrap().push(text.to_owned());
            said.send(()).unwrap();
        })));
        assert_eq!(told.during(Duration::from_secs(3600), "quick", || 1), 1);
        // It is not done before that was said.
        told.during(Duration::from_millis(1), "slow", || waits.recv().unwrap());
        assert_eq!(*heard.lock().unwrap(), ["slow"]);
        assert_eq!(Told::default().during(Duration::ZERO, "nobody", || 2), 2);
    }
}
