//! Images for others than this node's own steps: of jobs that may start here soon, fetched before they do, one at a time and behind
//! everything else on the node; and of jobs on nodes without a way to their registry, a few at a time.

mod others;
mod places;

pub use others::ForOthers;

use crate::images::Images;
use berth_agent_core::Fetched;
use berth_model::ids::{Attempt, JobId};
use berth_model::launch::StepLaunch;
use berth_model::login::Login;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// The weakest claim to processors, which disks go by, too.
const LAST: i32 = 19;

type Run = (JobId, Attempt);

/// What is to be fetched.
struct Wish {
    run: Run,
    launch: Box<StepLaunch>,
    login: Option<Login>,
    stop: Arc<AtomicBool>,
}

/// Those wishes, and the thread that sees to them.
pub struct Ahead {
    wishes: Option<Sender<Wish>>,
    open: BTreeMap<Run, Arc<AtomicBool>>,
}

impl Ahead {
    /// With a thread that ends with this value; without one, where none can be made, nothing is fetched ahead.
    pub fn start(images: Arc<Images>) -> Ahead {
        let (wishes, wished) = channel();
        let thread = std::thread::Builder::new().name("images-ahead".into());
        let wishes = match thread.spawn(move || see_to(&images, &wished)) {
            Ok(_) => Some(wishes),
            Err(e) => {
                tracing::warn!("no image is fetched before its job starts: {e}");
                None
            }
        };
        Ahead { wishes, open: BTreeMap::new() }
    }

    /// Fetches the image of a run's first step when its turn comes.
    pub fn fetch(&mut self, run: Run, launch: Box<StepLaunch>, login: Option<Login>) {
        // Of those that are seen to nobody else knows any more.
        self.open.retain(|_, stop| Arc::strong_count(stop) > 1);
        let stop = Arc::new(AtomicBool::new(false));
        let wish = Wish { run, launch, login, stop: Arc::clone(&stop) };
        if self.wishes.as_ref().is_some_and(|wishes| wishes.send(wish).is_ok()) {
            self.open.insert(run, stop);
        }
    }

    /// The run comes not, or elsewhere. What was fetched of its image stays until the room is needed.
    pub fn give_up(&mut self, run: Run) {
        if let Some(stop) = self.open.remove(&run) {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        for stop in self.open.values() {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

fn see_to(images: &Images, wished: &Receiver<Wish>) {
    // Of this thread, and of the processes that it starts.
    if let Err(e) = rustix::process::setpriority_process(None, LAST) {
        tracing::warn!("images are fetched ahead with no less priority than others: {e}");
    }
    while let Ok(Wish { run: (job, _), launch, login, stop }) = wished.recv() {
        if stop.load(Ordering::Relaxed) {
            continue;
        }
        match images.prefetch(&launch, login.as_ref(), &stop) {
            Ok(Some(Fetched { bytes, hit: false, .. })) => {
                tracing::info!("the image of job {job}, which waits, is there: {bytes} bytes were fetched");
            }
            Ok(_) => {}
            // Its start will say it to its user.
            Err(why) if stop.load(Ordering::Relaxed) => {
                tracing::info!(
                    "the image of job {job}, which waits, is not fetched now, for lack of room or of need: {why}"
                );
            }
            Err(why) => tracing::info!("the image of job {job}, which waits, is not there yet: {why}"),
        }
    }
}
