//! Images that come from a file server which does not answer. Whoever reads them waits in one call of the kernel for as long as that likes,
//! and fetching has no time, since large images take long. So it is looked at what they do who fetch one: who has been in the same call about a
//! file for too long is named, and is not waited for any more.

use crate::left::{self, Call};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often it is looked.
const LOOKS: Duration = Duration::from_secs(1);

/// A thread that has an image fetched: it is looked at, with the processes that it starts, for as long as it keeps this.
#[derive(Debug, Default)]
pub(crate) struct Fetching(Arc<AtomicI32>);

impl Fetching {
    /// It is the thread that calls.
    pub(crate) fn begin(&self) {
        self.0.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    }

    /// For who looks.
    pub(crate) fn seen(&self) -> Weak<AtomicI32> {
        Arc::downgrade(&self.0)
    }
}

/// Waits until somebody who fetches has been in one call about a file for so long, and names him; `None` where they are done before. Files
/// below the places `but` are the node's own.
pub(crate) async fn named(fetching: Weak<AtomicI32>, but: Vec<PathBuf>, limit: Duration) -> Option<String> {
    let (mut calls, but) = (Calls::default(), Arc::new(but));
    loop {
        tokio::time::sleep(LOOKS).await;
        let thread = fetching.upgrade()?.load(Ordering::Relaxed);
        let but = Arc::clone(&but);
        let look = move || {
            let stuck = calls.stuck(at(thread), Instant::now(), limit);
            let real = |place: &PathBuf| place.canonicalize().unwrap_or_else(|_| place.clone());
            let but: Vec<PathBuf> =
                if stuck.is_empty() { Vec::new() } else { but.iter().map(real).collect() };
            (stuck.into_iter().find_map(|tid| left::at_file(tid, &but)), calls)
        };
        let (found, seen) = tokio::task::spawn_blocking(look).await.ok()?;
        if found.is_some() {
            return found;
        }
        calls = seen;
    }
}

/// Why an image is not waited for any more.
pub(crate) fn told(image: &str, what: &str, limit: Duration) -> String {
    let seconds = limit.as_secs();
    format!(
        "the image {image} is not waited for any more: who fetches it has been in one call about a file for {seconds} s \
         (start_timeout_seconds): {what}; see whether that filesystem answers on this node, or name the image where one does"
    )
}

/// What the thread, and the processes that it started, are at just now.
fn at(thread: i32) -> Vec<(i32, Call)> {
    let children = std::fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    let all = std::iter::once(thread).chain(children.flat_map(left::threads));
    all.filter_map(|tid| Some((tid, left::call(tid)?))).collect()
}

/// Calls in which threads were seen, each with when that was first.
#[derive(Debug, Default)]
struct Calls(BTreeMap<i32, (Instant, Call)>);

impl Calls {
    /// Takes what threads are at. Those that have been in the same call for so long.
    fn stuck(&mut self, seen: Vec<(i32, Call)>, now: Instant, limit: Duration) -> Vec<i32> {
        let mut before = std::mem::take(&mut self.0);
        let mut stuck = Vec::new();
        for (tid, call) in seen {
            let since = before.remove(&tid).filter(|(since, first)| same(first, &call, now - *since));
            let (since, first) = since.unwrap_or((now, call));
            if now - since >= limit {
                stuck.push(tid);
            }
            self.0.insert(tid, (since, first));
        }
        stuck
    }
}

/// Whether a thread is still in the call in which it was so long ago. It may have been woken, but not once a second: a client of a file server
/// asks again now and then, and who gets on waits for one answer after the other.
fn same(first: &Call, now: &Call, since: Duration) -> bool {
    let woken = now.waits.saturating_sub(first.waits);
    first.text == now.text && first.done == now.done && woken <= since.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_that_does_not_end_is_told_from_many() {
        let call = |text: &str, done, waits| Call { text: text.into(), done: Some(done), waits };
        let (begun, limit) = (Instant::now(), Duration::from_secs(10));
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut calls = Calls::default();
        for second in 0..10 {
            let (hangs, reads) = (call("0 0x3", 7, 2), call("0 0x3", 7 + second, 2 + second));
            // Calls that look alike, of one that gets on: a file after the other.
            let walks = call("257 0xffffff9c", 7, 3 * second);
            let seen = vec![(1, hangs), (2, reads), (3, walks)];
            assert_eq!(calls.stuck(seen, after(second), limit), Vec::<i32>::new(), "{second}");
        }
        // Its client asked the server again meanwhile.
        let all =
            vec![(1, call("0 0x3", 7, 5)), (2, call("0 0x3", 18, 13)), (3, call("257 0xffffff9c", 7, 31))];
        assert_eq!(calls.stuck(all, after(10), limit), [1]);
        // One that was not there, or at something else, begins anew.
        assert_eq!(calls.stuck(Vec::new(), after(11), limit), Vec::<i32>::new());
        assert_eq!(calls.stuck(vec![(1, call("0 0x3", 7, 5))], after(12), limit), Vec::<i32>::new());
        assert_eq!(calls.stuck(vec![(1, call("0 0x4", 7, 5))], after(22), limit), Vec::<i32>::new());
        assert_eq!(calls.stuck(vec![(1, call("0 0x4", 7, 5))], after(32), limit), [1]);
    }

    #[tokio::test]
    async fn a_fetch_that_ends_names_nobody() {
        let fetching = Fetching::default();
        fetching.begin();
        let seen = fetching.seen();
        drop(fetching);
        assert_eq!(named(seen, Vec::new(), Duration::ZERO).await, None);
    }

    #[tokio::test]
    async fn a_process_that_waits_for_a_file_is_named_and_one_that_waits_for_the_nodes_own_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let fetching = Fetching::default();
        fetching.begin();
        // It opens what nobody writes to, as one that reads from a server that does not answer.
        let mut cat = std::process::Command::new("cat").arg(&pipe).spawn().unwrap();
        let look = |but: Vec<PathBuf>, seconds| {
            let named = named(fetching.seen(), but, Duration::from_secs(2));
            tokio::time::timeout(Duration::from_secs(seconds), named)
        };
        let (told, own) = tokio::join!(look(Vec::new(), 30), look(vec![directory.path().into()], 6));
        cat.kill().unwrap();
        cat.wait().unwrap();
        let told = told.ok().flatten().unwrap_or_default();
        assert!(told.starts_with(&format!("pid {} (cat)", cat.id())), "{told}");
        assert!(own.is_err(), "{own:?}");
    }
}
