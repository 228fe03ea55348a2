//! What a gateway does for nodes without a way to a registry: it fetches images, and finds what names mean. Each user has some of it at the same
//! time, and what gets nowhere ends: the registry may be the user's own, and the processes that ask it are the user's.

use super::places::Places;
use crate::images::{Images, Quiet};
use berth_model::ids::Uid;
use berth_model::launch::StepLaunch;
use berth_model::login::Login;
use berth_model::spec::ResolvedImage;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Images that are fetched for other nodes at the same time, and names that are looked up for them. Of the images fewer are brought at the
/// same time, as of all images of the node; but it is asked for all of these where they are to come from.
const MOST_FETCHES: usize = 32;
const MOST_NAMES: usize = 16;

/// For so long the controller waits for a gateway's word of a name: `SILENT` of its core's `names`. Then it counts no more.
const NAME_COUNTS: Duration = Duration::from_secs(60);
/// A fetch to which nothing comes for so long gets nowhere.
const FETCH_STALLS: Duration = Duration::from_secs(600);
/// How often it is looked whether something came.
const LOOKS: Duration = Duration::from_millis(500);

/// Fetches images for nodes without a way to their registry, and finds what their names mean.
pub struct ForOthers {
    fetches: Arc<Places>,
    names: Arc<Places>,
}

impl Default for ForOthers {
    fn default() -> ForOthers {
        ForOthers { fetches: Places::new(MOST_FETCHES), names: Places::new(MOST_NAMES) }
    }
}

impl ForOthers {
    /// Fetches the image of a step when its turn comes; of one that came by its name alone it tells what that means.
    pub fn fetch(&self, images: &Arc<Images>, launch: Box<StepLaunch>, login: Option<Login>) {
        if launch.container.as_ref().is_some_and(|container| container.image.resolved.is_none()) {
            return self.name(images, launch, login);
        }
        let (images, user, pulling) = (Arc::clone(images), launch.identity.uid, Arc::new(Quiet::default()));
        let patience = Patience::for_fetch(&pulling);
        begin(&self.fetches, user, patience, move |stop| {
            let job = launch.key.job;
            match images.fetch_for_others(&launch, login.as_ref(), &pulling, stop) {
                Ok(()) => tracing::info!("the image of job {job} is there for other nodes"),
                Err(why) => tracing::info!("the image of job {job} is not there for other nodes: {why}"),
            }
        });
    }

    /// Fetches one that a user asked for without a job.
    pub fn fetch_for_user(&self, images: &Arc<Images>, user: Uid, image: ResolvedImage) {
        let (images, pulling) = (Arc::clone(images), Arc::new(Quiet::default()));
        let patience = Patience::for_fetch(&pulling);
        begin(&self.fetches, user, patience, move |stop| {
            if let Err(why) = images.fetch_for_user(user, image, &pulling, stop) {
                tracing::info!("an image that uid {user} asked for is not there for other nodes: {why}");
            }
        });
    }

    fn name(&self, images: &Arc<Images>, launch: Box<StepLaunch>, login: Option<Login>) {
        let (images, user) = (Arc::clone(images), launch.identity.uid);
        begin(&self.names, user, Patience::of(NAME_COUNTS, || 0), move |stop| {
            let found = images.name_for_others(&launch, login.as_ref(), stop);
            match &found {
                Ok(_) => tracing::info!("the name of the image of step {} is found", launch.key),
                Err(why) => {
                    tracing::info!("the name of the image of step {} is not found: {why}", launch.key);
                }
            }
            images.peers().named(launch.key, found);
        });
    }
}

/// For how long something is done that gets nowhere.
struct Patience {
    most: Duration,
    /// Grows while it gets on.
    moved: Box<dyn Fn() -> u64 + Send>,
    seen: u64,
    since: Instant,
    /// Whether what was waited for a place counts, too.
    from_the_first: bool,
}

impl Patience {
    fn of(most: Duration, moved: impl Fn() -> u64 + Send + 'static) -> Patience {
        Patience { most, moved: Box::new(moved), seen: 0, since: Instant::now(), from_the_first: true }
    }

    fn for_fetch(pulling: &Arc<Quiet>) -> Patience {
        let pulling = Arc::clone(pulling);
        let patience = Patience::of(FETCH_STALLS, move || pulling.moved());
        Patience { from_the_first: false, ..patience }
    }

    /// There is a place: it begins.
    fn begins(&mut self, now: Instant) {
        if !self.from_the_first {
            self.since = now;
        }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        let moved = (self.moved)();
        if moved != self.seen {
            (self.seen, self.since) = (moved, now);
        }
        now.duration_since(self.since) > self.most
    }

    /// Waits until it is.
    async fn ends(&mut self) {
        while !self.is_over(Instant::now()) {
            tokio::time::sleep(LOOKS).await;
        }
    }
}

/// Ends what is not waited for any more: the agent may end.
struct Stopping(Arc<AtomicBool>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does something in a thread of its own when there is a place for the user; it is told to stop when patience is over. The place is taken until
/// it has: what cannot be stopped is in the way of its user's alone.
fn begin(
    places: &Arc<Places>,
    user: Uid,
    mut patience: Patience,
    work: impl FnOnce(&Arc<AtomicBool>) + Send + 'static,
) -> JoinHandle<()> {
    let places = Arc::clone(places);
    tokio::spawn(async move {
        let place = tokio::select! {
            biased;
            place = places.place(user) => place,
            () = patience.ends() => {
                tracing::info!("uid {user} has as much at this gateway as one user may: what more they want is not waited for");
                return;
            }
        };
        patience.begins(Instant::now());
        let stop = Stopping(Arc::default());
        let stopped = Arc::clone(&stop.0);
        let mut working = tokio::task::spawn_blocking(move || {
            let _place = place;
            work(&stopped);
        });
        let done = tokio::select! {
            biased;
            done = &mut working => done,
            () = patience.ends() => {
                let most = patience.most.as_secs();
                tracing::info!("what this gateway does for uid {user} is ended: nothing came of it in {most} s");
                drop(stop);
                working.await
            }
        };
        if let Err(e) = done {
            tracing::error!("what this gateway does for other nodes: {e}");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(3600);
    /// Only what fails takes so long.
    const FAILS: Duration = Duration::from_secs(60);

    /// As a registry of one's own that never answers, or a process that was stopped.
    fn hangs(stop: &Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn users_whose_registries_never_answer_keep_a_gateway_from_nobody() {
        let places = Places::new(MOST_NAMES);
        let many = (0..40).flat_map(|_| 1..=4);
        let attack: Vec<_> =
            many.map(|user| begin(&places, Uid(user), Patience::of(LONG, || 0), hangs)).collect();
        let (said, heard) = tokio::sync::oneshot::channel();
        begin(&places, Uid(9), Patience::of(LONG, || 0), move |_| said.send(()).unwrap());
        tokio::time::timeout(FAILS, heard).await.unwrap().unwrap();
        for user in 1..=4 {
            assert_eq!(places.of(Uid(user)), MOST_NAMES / 4);
        }
        // When the agent ends, nothing is left that it would have to wait for.
        attack.iter().for_each(JoinHandle::abort);
    }

    #[tokio::test]
    async fn what_gets_nowhere_is_ended_and_its_place_is_anothers() {
        let places = Places::new(4);
        let first = begin(&places, Uid(1), Patience::of(Duration::ZERO, || 0), hangs);
        tokio::time::timeout(FAILS, first).await.unwrap().unwrap();
        assert_eq!(places.of(Uid(1)), 0);
        // Who waits for the place has it then; and does not wait for ever.
        let (said, heard) = channel();
        let kept = begin(&places, Uid(1), Patience::of(LONG, || 0), hangs);
        while places.of(Uid(1)) == 0 {
            tokio::task::yield_now().await;
        }
        let late = begin(&places, Uid(1), Patience::of(Duration::ZERO, || 0), |_| panic!("it has no place"));
        tokio::time::timeout(FAILS, late).await.unwrap().unwrap();
        let next = begin(&places, Uid(1), Patience::of(LONG, || 0), move |_| said.send(()).unwrap());
        kept.abort();
        tokio::time::timeout(FAILS, next).await.unwrap().unwrap();
        heard.try_recv().unwrap();
    }

    #[test]
    fn a_name_has_its_time_with_what_was_waited_for_a_place_and_a_fetch_without() {
        let mut name = Patience::of(NAME_COUNTS, || 0);
        let mut fetch = Patience::for_fetch(&Arc::default());
        let late = name.since.max(fetch.since) + FETCH_STALLS + LOOKS;
        assert!(name.is_over(late) && fetch.is_over(late));
        name.begins(late);
        fetch.begins(late);
        assert!(name.is_over(late) && !fetch.is_over(late));
    }

    #[test]
    fn a_fetch_is_ended_when_nothing_comes_and_not_for_being_long() {
        let came = Arc::new(AtomicU64::new(0));
        let moved = Arc::clone(&came);
        let mut patience = Patience::of(FETCH_STALLS, move || moved.load(Ordering::Relaxed));
        let mut now = patience.since;
        for _ in 0..100 {
            now += FETCH_STALLS;
            came.fetch_add(1, Ordering::Relaxed);
            assert!(!patience.is_over(now));
        }
        assert!(!patience.is_over(now + FETCH_STALLS));
        assert!(patience.is_over(now + FETCH_STALLS + LOOKS));
    }
}
