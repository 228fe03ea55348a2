//! Keeps room in the node's image store: what was not used for longest goes before the disk is full, or when it is, and what
//! its users gave back; never what a job, a kept container or a pull needs. What jobs need the controller says, each time, and what comes
//! to be needed while images go: without it nothing goes.

use crate::driver::Input;
use crate::images::Images;
use crate::kept::KeptContainers;
use crate::paths::Paths;
use berth_images::{Collected, Digest, RoomRules, Store, Wanted};
use berth_model::config::ImagesConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};

/// How often it is looked whether there is room.
const EVERY: Duration = Duration::from_secs(300);
/// How soon again where nobody could say what jobs need.
const AGAIN: Duration = Duration::from_secs(10);
/// A pull of which nothing came for so long writes nothing that would be taken for images that are to go.
const BRINGS: Duration = Duration::from_secs(60);
/// How long the controller may take to say it.
const ANSWER: Duration = Duration::from_secs(30);

/// By which rules the cluster's configuration has room kept.
pub fn rules(config: &ImagesConfig) -> RoomRules {
    let percent = |value: u32| u8::try_from(value.min(100)).unwrap_or(100);
    RoomRules {
        high_watermark: percent(config.high_watermark),
        low_watermark: percent(config.low_watermark),
        max_size: config.max_bytes(),
        keep_days: (config.keep_days > 0).then_some(config.keep_days),
    }
}

/// A pull's word that it needs room.
pub struct Want {
    wanted: Wanted,
    /// Hears whether something was removed.
    done: Option<oneshot::Sender<bool>>,
}

/// What pulls tell the one who keeps room, and which of them are under way.
pub struct Room {
    wants: mpsc::UnboundedSender<Want>,
    /// Pulls of images that are under way.
    pulling: Mutex<BTreeMap<Digest, Pulls>>,
}

/// Those of one image.
#[derive(Default)]
struct Pulls {
    count: usize,
    /// When bytes of it came last.
    came: Option<Instant>,
}

impl Room {
    /// The other end is for [`keep`].
    pub fn new() -> (Room, mpsc::UnboundedReceiver<Want>) {
        let (wants, receiver) = mpsc::unbounded_channel();
        (Room { wants, pulling: Mutex::default() }, receiver)
    }

    fn pulls(&self) -> MutexGuard<'_, BTreeMap<Digest, Pulls>> {
        self.pulling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the image, and what is there of it, until the value is dropped.
    pub fn pulling(&self, digest: &Digest) -> Pull<'_> {
        self.pulls().entry(digest.clone()).or_default().count += 1;
        Pull { room: self, digest: digest.clone() }
    }

    /// Whether bytes of a pull that is under way came lately.
    fn brings(&self, now: Instant) -> bool {
        let lately = |came: Instant| now.saturating_duration_since(came) < BRINGS;
        self.pulls().values().any(|pulls| pulls.came.is_some_and(lately))
    }

    /// So many bytes are about to be fetched, or were. Nobody waits for it.
    pub fn look(&self, bytes: u64) {
        let _ = self.wants.send(Want { wanted: Wanted::to_fetch(bytes), done: None });
    }

    /// What was given back and nobody has any more is to go: waits until it is gone, or cannot go yet.
    pub async fn drop_released(&self) {
        let (done, said) = oneshot::channel();
        if self.wants.send(Want { wanted: Wanted::default(), done: Some(done) }).is_ok() {
            let _ = said.await;
        }
    }

    /// The disk was full, as this error says: waits until something was removed, or nothing can be.
    pub fn press(&self, error: &berth_images::Error) -> bool {
        let (done, said) = oneshot::channel();
        let want = Want { wanted: Wanted::lacking(error), done: Some(done) };
        self.wants.send(want).is_ok() && said.blocking_recv().unwrap_or(false)
    }
}

/// A pull that is under way.
pub struct Pull<'a> {
    room: &'a Room,
    digest: Digest,
}

impl Pull<'_> {
    /// Bytes of it came.
    pub fn came(&self, now: Instant) {
        if let Some(pulls) = self.room.pulls().get_mut(&self.digest) {
            pulls.came = Some(now);
        }
    }
}

impl Drop for Pull<'_> {
    fn drop(&mut self) {
        let mut pulls = self.room.pulls();
        if let Some(of_image) = pulls.get_mut(&self.digest) {
            of_image.count -= 1;
            if of_image.count == 0 {
                pulls.remove(&self.digest);
            }
        }
    }
}

/// Images of all containers that are kept in a state directory: by jobs, and by name without a cluster.
///
/// # Errors
/// What is known of a container cannot be read: nobody can say which images are needed.
pub fn kept_images(state: &Path) -> Result<Vec<Digest>, String> {
    let mut all = KeptContainers::new(Paths::new(state)).images(None);
    all.extend(named_images(state)?);
    Ok(all)
}

pub(crate) fn named_images(state: &Path) -> Result<Vec<Digest>, String> {
    #[derive(serde::Deserialize)]
    struct Named {
        pinned: Pinned,
    }
    #[derive(serde::Deserialize)]
    struct Pinned {
        digest: Digest,
    }
    let containers = state.join("containers");
    let failed = |path: &Path, e: &dyn std::fmt::Display| {
        format!(
            "{}: {e}: which image the container needs is not known; `enroot remove` or `berth container rm` removes it",
            path.display()
        )
    };
    let entries = match std::fs::read_dir(&containers) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| failed(&containers, &e))?,
    };
    let mut digests = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| failed(&containers, &e))?.path().join("container.json");
        match std::fs::read(&path) {
            Ok(text) => {
                let named: Named = serde_json::from_slice(&text).map_err(|e| failed(&path, &e))?;
                digests.push(named.pinned.digest);
            }
            // Not made yet, or gone.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(failed(&path, &e)),
        }
    }
    Ok(digests)
}

/// What the controller says that jobs need of the images that it was asked about, while some of them may go.
#[derive(Default)]
pub struct Needs {
    said: Mutex<Said>,
    heard: Notify,
}

#[derive(Default)]
struct Said {
    digests: BTreeSet<String>,
    /// Nobody can say it, or say any more what comes to be needed.
    unknown: bool,
}

impl Needs {
    /// The answer, or what came to be needed after it; nothing where nobody can say it.
    pub fn say(&self, digests: Option<Vec<String>>) {
        {
            let mut said = self.said();
            said.unknown |= digests.is_none();
            said.digests.extend(digests.into_iter().flatten());
        }
        self.heard.notify_one();
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the answer: those that jobs need, where somebody can say it.
    async fn answer(&self) -> Option<BTreeSet<String>> {
        self.heard.notified().await;
        let said = self.said();
        (!said.unknown).then(|| said.digests.clone())
    }

    /// Whether a job needs it now, or may.
    fn has(&self, digest: &Digest) -> bool {
        let said = self.said();
        said.unknown || said.digests.contains(&digest.to_string())
    }
}

/// Keeps room, until the agent ends.
pub async fn keep(
    images: Arc<Images>,
    rules: RoomRules,
    mut wants: mpsc::UnboundedReceiver<Want>,
    inputs: mpsc::UnboundedSender<Input>,
) {
    let (mut pause, mut told) = (Duration::ZERO, None);
    loop {
        let mut all = Vec::new();
        tokio::select! {
            want = wants.recv() => match want {
                Some(want) => all.push(want),
                None => return,
            },
            () = tokio::time::sleep(pause) => {}
        }
        // Pulls that ask at the same time are served at once.
        while let Ok(want) = wants.try_recv() {
            all.push(want);
        }
        let wanted = all.iter().map(|want| want.wanted).fold(Wanted::default(), Wanted::and);
        let made = make(&images, &rules, wanted, &inputs).await;
        pause = if made.is_ok() { EVERY } else { AGAIN };
        if made.is_ok() {
            told = None;
        }
        let removed = match made {
            Ok(made) => made.as_ref().is_some_and(|made| {
                tell(made);
                true
            }),
            Err(why) => {
                // It is tried again soon, and said once.
                if told.as_ref() != Some(&why) {
                    tracing::warn!("images are to go from the store, and nothing is removed: {why}");
                }
                told = Some(why);
                false
            }
        };
        for done in all.into_iter().filter_map(|want| want.done) {
            let _ = done.send(removed);
        }
    }
}

/// What is in the store and may have to go.
struct Held {
    /// The images that the controller is asked about.
    images: Vec<Digest>,
    /// Those that were given back and that nobody has.
    released: Vec<Digest>,
    /// There is not enough room.
    short: bool,
}

async fn make(
    images: &Arc<Images>,
    rules: &RoomRules,
    wanted: Wanted,
    inputs: &mpsc::UnboundedSender<Input>,
) -> Result<Option<Collected>, String> {
    let (of, by) = (Arc::clone(images), rules.clone());
    let held = tokio::task::spawn_blocking(move || of.held(&by, wanted));
    let Some(held) = held.await.map_err(|e| e.to_string())?? else { return Ok(None) };
    let needs = Arc::new(Needs::default());
    let digests = held.images.iter().map(Digest::to_string).collect();
    let _ = inputs.send(Input::AskNeeded(digests, Arc::clone(&needs)));
    let Ok(Some(needed)) = tokio::time::timeout(ANSWER, needs.answer()).await else {
        return Err("the controller does not say what jobs need".into());
    };
    let (of, by) = (Arc::clone(images), rules.clone());
    let made = tokio::task::spawn_blocking(move || of.make_room(&by, wanted, &held, (&needed, &*needs)));
    let made = made.await.map_err(|e| e.to_string());
    // Nothing goes any more: nobody has to be told what comes to be needed.
    let _ = inputs.send(Input::AskNeeded(Vec::new(), Arc::default()));
    made?
}

fn tell(made: &Collected) {
    for image in &made.images {
        let name = image.names.first().map_or("", String::as_str);
        tracing::info!("image {} {name} was removed from the store: {}", image.digest, made.why);
    }
    tracing::info!("{} layers of images, {} bytes, were removed", made.layers, made.bytes);
}

impl Images {
    /// The images in the store, if some of them would have to go.
    fn held(&self, rules: &RoomRules, wanted: Wanted) -> Result<Option<Held>, String> {
        let text = |e: berth_images::Error| e.to_string();
        let store = self.store().map_err(text)?;
        let released = store.released().map_err(text)?;
        // What pulls have written so far makes the disk look full: images go for them when one says what it needs, and not bit by bit. One
        // that brings nothing holds up nobody, however long it lasts.
        let looks = wanted != Wanted::default() || !self.room().brings(Instant::now());
        let short = looks && store.lacks_room(rules, wanted).map_err(text)?;
        let images = match short {
            true => store.list().map_err(text)?.into_iter().map(|image| image.digest).collect(),
            false => released.clone(),
        };
        Ok((short || !released.is_empty()).then_some(Held { images, released, short }))
    }

    /// As [`Store::make_room_but`], with what jobs need and come to need, and what else on the node does. What was given back goes first.
    fn make_room(
        &self,
        rules: &RoomRules,
        wanted: Wanted,
        held: &Held,
        (needed, needs): (&BTreeSet<String>, &Needs),
    ) -> Result<Option<Collected>, String> {
        let mut all: BTreeSet<Digest> = needed.iter().filter_map(|digest| digest.parse().ok()).collect();
        all.extend(self.kept_images()?);
        all.extend(self.room().pulls().keys().cloned());
        let text = |e: berth_images::Error| e.to_string();
        let store: Store = self.store().map_err(text)?;
        // The controller was not asked about what came meanwhile: the job for which it was fetched, or the other tasks of its
        // array, may wait for it. Listed after the pulls: what is no pull any more is on the list.
        let listed = store.list().map_err(text)?.into_iter().map(|image| image.digest);
        all.extend(listed.filter(|digest| !held.images.contains(digest)));
        let released: Vec<Digest> =
            held.released.iter().filter(|digest| !needs.has(digest)).cloned().collect();
        let removed = store.drop_released(&released, &all).map_err(text)?;
        if removed.layers > 0 {
            let (images, bytes) = (removed.images.len(), removed.bytes);
            tracing::info!("{images} images that were given back, {bytes} bytes, were removed");
        }
        match held.short {
            true => store.make_room_but(rules, wanted, &all, &|digest| needs.has(digest)).map_err(text),
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // what fails here fails the test

    use super::*;

    #[test]
    fn a_pull_that_brings_nothing_does_not_keep_room_from_being_kept() {
        let (room, _wants) = Room::new();
        let digest: Digest = format!("sha256:{:064x}", 1).parse().unwrap();
        let begun = Instant::now();
        let (first, second) = (room.pulling(&digest), room.pulling(&digest));
        assert!(!room.brings(begun), "it has not said yet what it needs");
        second.came(begun);
        let later = |seconds: u64| room.brings(begun + Duration::from_secs(seconds));
        assert_eq!([later(0), later(59), later(60)], [true, true, false]);
        first.came(begun + Duration::from_secs(100));
        assert_eq!([later(159), later(160)], [true, false]);
        drop(first);
        // Its image stays all the while.
        assert!(later(159) && room.pulls().contains_key(&digest));
        drop(second);
        assert!(!later(159) && room.pulls().is_empty());
    }

    #[tokio::test]
    async fn what_comes_to_be_needed_after_the_answer_stays_too() {
        let digest = |n: u32| -> Digest { format!("sha256:{n:064x}").parse().unwrap() };
        let needs = Needs::default();
        let has = |needs: &Needs| [1, 2, 3].map(|n| needs.has(&digest(n)));
        needs.say(Some(vec![digest(1).to_string()]));
        assert_eq!(needs.answer().await, Some(BTreeSet::from([digest(1).to_string()])));
        assert_eq!(has(&needs), [true, false, false]);
        needs.say(Some(vec![digest(2).to_string()]));
        assert_eq!(has(&needs), [true, true, false]);
        // Who would say it is gone.
        needs.say(None);
        assert_eq!(has(&needs), [true; 3]);
        let nobody = Needs::default();
        nobody.say(None);
        assert_eq!(nobody.answer().await, None);
    }

    #[test]
    fn a_container_of_which_nothing_can_be_read_keeps_all_images() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(named_images(dir.path()).unwrap(), []);
        let container = |name: &str, text: &str| {
            let place = dir.path().join("containers").join(name);
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("container.json"), text).unwrap();
        };
        let digest = format!("sha256:{:064x}", 1);
        container("one", &format!(r#"{{"pinned": {{"digest": "{digest}"}}}}"#));
        std::fs::create_dir(dir.path().join("containers/begun")).unwrap();
        assert_eq!(named_images(dir.path()).unwrap(), [digest.parse().unwrap()]);
        container("two", "{\"pinned\":");
        let why = named_images(dir.path()).unwrap_err();
        assert!(why.contains("two/container.json") && why.contains("removes it"), "{why}");
    }
}
