//! Images for others than this node's own steps: of jobs that may start here soon, fetched before they do, one at a time and behind
//! everything else on the node; and of jobs on nodes without a way to their registry, a few at a time.

use crate::images::Images;
use berth_agent_core::Fetched;
use berth_model::ids::{Attempt, JobId, Uid};
use berth_model::launch::StepLaunch;
use berth_model::login::Login;
use berth_model::spec::ResolvedImage;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::Semaphore;

/// The weakest claim to processors, which disks go by, too.
const LAST: i32 = 19;

/// Images that are fetched for other nodes at the same time, and names that are looked up for them.
const MOST_FETCHES: usize = 8;
const MOST_NAMES: usize = 16;

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

/// Fetches images for nodes without a way to their registry, and finds what their names mean.
pub struct ForOthers {
    fetches: Arc<Semaphore>,
    names: Arc<Semaphore>,
}

impl Default for ForOthers {
    fn default() -> ForOthers {
        let places = |most| Arc::new(Semaphore::new(most));
        ForOthers { fetches: places(MOST_FETCHES), names: places(MOST_NAMES) }
    }
}

impl ForOthers {
    /// Fetches the image of a step when its turn comes; of one that came by its name alone it tells what that means.
    pub fn fetch(&self, images: &Arc<Images>, launch: Box<StepLaunch>, login: Option<Login>) {
        if launch.container.as_ref().is_some_and(|container| container.image.resolved.is_none()) {
            return self.name(images, launch, login);
        }
        let (images, places) = (Arc::clone(images), Arc::clone(&self.fetches));
        tokio::spawn(async move {
            let Ok(_place) = places.acquire_owned().await else { return };
            let job = launch.key.job;
            let fetched =
                tokio::task::spawn_blocking(move || images.fetch_for_others(&launch, login.as_ref()));
            match fetched.await {
                Ok(Ok(())) => tracing::info!("the image of job {job} is there for other nodes"),
                Ok(Err(why)) => tracing::info!("the image of job {job} is not there for other nodes: {why}"),
                Err(_) => {}
            }
        });
    }

    /// Fetches one that a user asked for without a job.
    pub fn fetch_for_user(&self, images: &Arc<Images>, user: Uid, image: ResolvedImage) {
        let (images, places) = (Arc::clone(images), Arc::clone(&self.fetches));
        tokio::spawn(async move {
            let Ok(_place) = places.acquire_owned().await else { return };
            let fetch = move || {
                if let Err(why) = images.fetch_for_user(user, image) {
                    tracing::info!("an image that uid {user} asked for is not there for other nodes: {why}");
                }
            };
            if let Err(e) = tokio::task::spawn_blocking(fetch).await {
                tracing::error!("fetching an image for other nodes: {e}");
            }
        });
    }

    fn name(&self, images: &Arc<Images>, launch: Box<StepLaunch>, login: Option<Login>) {
        let (images, places) = (Arc::clone(images), Arc::clone(&self.names));
        tokio::spawn(async move {
            let Ok(_place) = places.acquire_owned().await else { return };
            let look = move || {
                let found = images.name_for_others(&launch, login.as_ref());
                match &found {
                    Ok(_) => tracing::info!("the name of the image of step {} is found", launch.key),
                    Err(why) => {
                        tracing::info!("the name of the image of step {} is not found: {why}", launch.key);
                    }
                }
                images.peers().named(launch.key, found);
            };
            if let Err(e) = tokio::task::spawn_blocking(look).await {
                tracing::error!("looking for what a name means: {e}");
            }
        });
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
