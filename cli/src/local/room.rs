//! Room in a store that no agent serves: before a pull for which the disk is short, and after each, what was not used for longest
//! goes by the rules by which agents keep room. A pull that finds everything there looks at nothing.

use crate::daemon::{self, Part};
use crate::images;
use crate::joined::Joined;
use berth_client::error::{Failure, Kind};
use berth_client::site::{Site, StateDir};
use berth_images::{
    Collected, Digest, Error, ErrorKind, PreparedImage, Progress, ProgressEvent, RoomRules, Shortfall, Store,
    Wanted,
};
use berth_model::member::MemberRole;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Images that are named when they are gone.
const NAMED: usize = 5;

/// Brings an image into the store and tells how it goes on.
type Bring<'a> = dyn Fn(&dyn Progress) -> berth_images::Result<PreparedImage> + 'a;

/// Has an image brought into the store of a state directory (option, or the caller's own), with room for it.
///
/// # Errors
/// As of bringing it.
pub fn bring(
    store: &Store,
    digest: &Digest,
    progress: &dyn Progress,
    state: Option<&Path>,
    bring: &Bring<'_>,
) -> berth_images::Result<PreparedImage> {
    let room = &Room { store, state, digest, progress, removed: Mutex::new(false), warned: Mutex::default() };
    let fetches = AtomicBool::new(false);
    let reached = Reached::default();
    let mut last = None;
    let prepared = std::thread::scope(|scope| {
        let telling = |event: ProgressEvent| {
            reached.note(&event);
            if let ProgressEvent::Start { bytes, .. } = &event
                && *bytes > 0
                && !fetches.swap(true, Ordering::Relaxed)
            {
                let bytes = *bytes;
                // The pull goes on meanwhile. Without a thread for it room is made when the disk is full.
                let look = std::thread::Builder::new().name("room".into());
                let _ = look.spawn_scoped(scope, move || room.await_bytes(bytes));
            }
            progress.event(event);
        };
        loop {
            match bring(&telling) {
                // Layers that were complete are there still.
                Err(e)
                    if e.kind() == ErrorKind::NoSpace
                        && room.may_hold(reached.bytes.load(Ordering::Relaxed))
                        && (room.was_made()
                            || (reached.further_than(e.shortfall(), &mut last) && room.press(&e))) => {}
                other => break other,
            }
        }
    })?;
    // What came is in use for as long as `prepared` lives.
    if fetches.into_inner() {
        room.look(Wanted::default());
    }
    Ok(prepared)
}

/// How far bringing an image came, of the try that runs or ran last.
#[derive(Default)]
struct Reached {
    /// It is known what is to come.
    begun: AtomicBool,
    /// Bytes that are to be fetched, compressed.
    bytes: AtomicU64,
    /// Of these, bytes that came.
    fetched: AtomicU64,
    /// Layers that are complete.
    layers: AtomicUsize,
}

impl Reached {
    fn note(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Start { cached, bytes, .. } => {
                self.begun.store(true, Ordering::Relaxed);
                self.bytes.store(*bytes, Ordering::Relaxed);
                self.fetched.store(0, Ordering::Relaxed);
                self.layers.store(*cached, Ordering::Relaxed);
            }
            ProgressEvent::Fetched { bytes } => {
                self.fetched.fetch_add(*bytes, Ordering::Relaxed);
            }
            ProgressEvent::LayerDone { .. } => {
                self.layers.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Whether this try, which is over, came further than the one after which images went last, or none went yet: others' images do not
    /// go for one that gets nowhere with their room.
    fn further_than(&self, short: Option<Shortfall>, last: &mut Option<(u64, usize)>) -> bool {
        let fetched = self.fetched.load(Ordering::Relaxed);
        let left = match (short, self.begun.load(Ordering::Relaxed)) {
            // Counted to the end, all of it was fetched.
            (Some(short), _) => short.rest,
            (None, true) => self.bytes.load(Ordering::Relaxed).saturating_sub(fetched),
            (None, false) => u64::MAX,
        };
        let layers = self.layers.load(Ordering::Relaxed);
        let before = last.replace((left, layers));
        before.is_none_or(|before| left < before.0 || layers > before.1)
    }
}

/// Keeps room while an image comes.
struct Room<'a> {
    store: &'a Store,
    state: Option<&'a Path>,
    /// The image.
    digest: &'a Digest,
    progress: &'a dyn Progress,
    /// Something was removed of which no pull knows that failed. Held while something is removed.
    removed: Mutex<bool>,
    /// Why nothing is removed, as it was told last.
    warned: Mutex<Option<String>>,
}

impl Room<'_> {
    fn removed(&self) -> MutexGuard<'_, bool> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the filesystem could hold so many bytes if nothing else were on it: for an image that never fits nothing is removed.
    fn may_hold(&self, bytes: u64) -> bool {
        self.store.capacity().is_ok_and(|all| bytes <= all)
    }

    /// So many bytes of layers are about to be fetched.
    fn await_bytes(&self, bytes: u64) {
        if self.may_hold(bytes) {
            self.look(Wanted::to_fetch(bytes));
        }
    }

    /// So much is about to come, or came.
    fn look(&self, wanted: Wanted) {
        let mut removed = self.removed();
        *removed |= self.make(wanted);
    }

    /// Whether something was removed beside a pull since it was last asked.
    fn was_made(&self) -> bool {
        std::mem::take(&mut *self.removed())
    }

    /// The disk was full, as this error says. Whether something was removed for that.
    fn press(&self, error: &Error) -> bool {
        let _alone = self.removed();
        self.make(Wanted::lacking(error))
    }

    fn make(&self, wanted: Wanted) -> bool {
        let (text, made) = match self.make_by_rules(wanted) {
            Ok(None) => return false,
            Ok(Some(made)) => (told(&made), true),
            Err(why) => (format!("images are to go from the store, and nothing is removed: {why}"), false),
        };
        if !made {
            // It is looked at several times for one pull.
            let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
            if warned.as_ref() == Some(&text) {
                return false;
            }
            *warned = Some(text.clone());
        }
        self.progress.event(ProgressEvent::Note { text });
        made
    }

    fn make_by_rules(&self, wanted: Wanted) -> Result<Option<Collected>, Failure> {
        let failed = |e: Error| images::failed(&e);
        let dir = images::local_dir(self.state)?;
        if is_served(&dir) {
            return Ok(None);
        }
        let Some(rules) = own_rules(&dir, self.store)? else { return Ok(None) };
        if !self.store.lacks_room(&rules, wanted).map_err(failed)? {
            return Ok(None);
        }
        let Some(mut needed) = needed(&dir)? else { return Ok(None) };
        needed.insert(self.digest.clone());
        self.store.make_room(&rules, wanted, &needed).map_err(failed)
    }
}

/// Whether an agent keeps room in the store of the state directory.
fn is_served(dir: &StateDir) -> bool {
    daemon::pid_file(dir, Part::Agent).is_some()
}

/// Whether jobs of a cluster elsewhere run here.
fn is_compute_node(dir: &StateDir) -> Result<bool, Failure> {
    Ok(Joined::read(dir)?.is_some_and(|joined| joined.role == MemberRole::Compute))
}

/// The rules by which room is kept in the store of the state directory: those of its `berth.toml`; where a cluster has it whose configuration
/// is elsewhere, those that its agent noted in the store; else the defaults. `None`: nobody here knows what they are.
fn own_rules(dir: &StateDir, store: &Store) -> Result<Option<RoomRules>, Failure> {
    let failed = |e: Error| Failure::new(Kind::Configuration, e.to_string());
    let own = std::fs::metadata(dir.0.join("berth.toml"));
    let has_none = own.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    if has_none && berth_controller::has_records(&dir.0) {
        return Ok(store.room_state().map_err(failed)?.rules);
    }
    let config = berth_controller::load_config(&dir.0, None);
    let config = config.map_err(|e| Failure::new(Kind::Configuration, e.to_string()))?;
    Ok(Some(berth_agent::room_rules(&config.images)))
}

/// The rules by which room is kept after pulls; `None` where that is an agent's affair, which notes them in the store.
pub fn rules(state: Option<&Path>, store: &Store) -> Result<Option<RoomRules>, Failure> {
    let dir = images::local_dir(state)?;
    if is_served(&dir) || is_compute_node(&dir)? {
        return Ok(None);
    }
    own_rules(&dir, store)
}

/// Images that must stay. `None`: nobody here can say what jobs need; their cluster's agent looks after the store when it is up.
fn needed(dir: &StateDir) -> Result<Option<BTreeSet<Digest>>, Failure> {
    let jobs = if daemon::pid_file(dir, Part::Controller).is_some() {
        images::needed_by_jobs(&Site::of(dir.clone()), &[])?
    } else {
        let waits = || {
            berth_controller::has_unfinished_jobs(&dir.0)
                .map_err(|e| Failure::new(Kind::Configuration, e.to_string()))
        };
        if is_compute_node(dir)? || waits()? {
            return Ok(None);
        }
        Vec::new()
    };
    let kept = berth_agent::kept_images(&dir.0).map_err(Failure::user)?;
    Ok(Some(kept.into_iter().chain(jobs).collect()))
}

/// What went, and why, in one line.
fn told(made: &Collected) -> String {
    let Collected { why, images: gone, layers, bytes, .. } = made;
    let names = gone.iter().take(NAMED).map(|image| match image.names.first() {
        Some(name) => name.clone(),
        None => image.digest.short().to_string(),
    });
    let names: Vec<String> = names.collect();
    let more = match gone.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let names = match names.is_empty() {
        true => String::new(),
        false => format!(" ({}{more})", names.join(", ")),
    };
    format!(
        "{}{names} and {}, {}, were removed from the store: {why}",
        images::counted(gone.len(), "image"),
        images::counted(*layers, "layer"),
        images::size(*bytes)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // what fails here fails the test

    use super::*;
    use berth_images::CollectedImage;

    fn digest(n: usize) -> Digest {
        format!("sha256:{n:064x}").parse().unwrap()
    }

    #[test]
    fn what_went_is_told_in_one_line_with_the_reason() {
        let image = |n: usize, names: &[&str]| CollectedImage {
            digest: digest(n),
            names: names.iter().map(|name| (*name).to_string()).collect(),
            last_used: 7,
        };
        let of = |images: Vec<CollectedImage>, layers| {
            told(&Collected {
                at: 1,
                why: "its filesystem was 91% full".into(),
                images,
                layers,
                bytes: 3 << 20,
            })
        };
        assert_eq!(
            of(vec![image(1, &["docker://debian:12", "x"]), image(2, &[])], 1),
            "2 images (docker://debian:12, 000000000000) and 1 layer, 3.00 MiB, were removed from the store: its filesystem was \
             91% full"
        );
        let many = of((0..8).map(|n| image(n, &["a"])).collect(), 9);
        assert!(
            many.starts_with("8 images (a, a, a, a, a and 3 more) and 9 layers, 3.00 MiB, were"),
            "{many}"
        );
        assert!(of(Vec::new(), 2).starts_with("0 images and 2 layers, 3.00 MiB, were removed"));
    }

    /// A state directory with a store and a configuration, and what the pull of an image told that was brought so.
    fn told_of(config: &str, bring_it: &Bring<'_>) -> (Vec<String>, Error) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("berth.toml"), config).unwrap();
        let store = Store::open(&dir.path().join("images")).unwrap();
        let notes = Mutex::new(Vec::new());
        let progress = |event: ProgressEvent| {
            if let ProgressEvent::Note { text } = event {
                notes.lock().unwrap().push(text);
            }
        };
        let error = bring(&store, &digest(1), &progress, Some(dir.path()), bring_it).unwrap_err();
        (notes.into_inner().unwrap(), error)
    }

    #[test]
    fn a_full_disk_on_which_nothing_can_go_is_told_as_it_is_and_tried_once() {
        let tries = AtomicUsize::new(0);
        let full = |progress: &dyn Progress| {
            tries.fetch_add(1, Ordering::Relaxed);
            progress.event(ProgressEvent::Start { layers: 1, cached: 0, bytes: 5 });
            Err(Error::new(ErrorKind::NoSpace, "image x", "No space left on device"))
        };
        let rules = "[images]\nhigh_watermark = 100\nlow_watermark = 100\n";
        let (notes, error) = told_of(rules, &full);
        assert_eq!((notes, error.kind()), (Vec::new(), ErrorKind::NoSpace));
        assert_eq!(tries.into_inner(), 1);
    }

    #[test]
    fn rules_that_cannot_be_read_remove_nothing_and_are_told_once() {
        // It is looked at while the image comes, and when the disk is full.
        let full = |progress: &dyn Progress| {
            progress.event(ProgressEvent::Start { layers: 1, cached: 0, bytes: 5 });
            Err(Error::new(ErrorKind::NoSpace, "image x", "No space left on device"))
        };
        let (notes, error) = told_of("[images]\nhigh_watermarks = 3\n", &full);
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(
            notes.len() == 1 && notes[0].contains("nothing is removed") && notes[0].contains("berth.toml"),
            "{notes:?}"
        );
    }

    #[test]
    fn nothing_goes_for_an_image_that_never_fits() {
        let full = |progress: &dyn Progress| {
            progress.event(ProgressEvent::Start { layers: 1, cached: 0, bytes: u64::MAX });
            Err(Error::new(ErrorKind::NoSpace, "image x", "No space left on device"))
        };
        let (notes, error) = told_of("[images]\nhigh_watermarks = 3\n", &full);
        assert_eq!((notes, error.kind()), (Vec::new(), ErrorKind::NoSpace), "it does not come to the rules");
    }

    #[test]
    fn a_try_that_gets_no_further_is_the_last() {
        let (reached, mut last) = (Reached::default(), None);
        assert!(reached.further_than(None, &mut last), "the first");
        let start = |cached, bytes| reached.note(&ProgressEvent::Start { layers: 3, cached, bytes });
        assert!(!reached.further_than(None, &mut last), "it does not even begin");
        start(0, 100);
        reached.note(&ProgressEvent::Fetched { bytes: 10 });
        assert!(reached.further_than(None, &mut last));
        start(0, 100);
        reached.note(&ProgressEvent::Fetched { bytes: 30 });
        assert!(reached.further_than(None, &mut last), "more bytes came");
        start(0, 100);
        reached.note(&ProgressEvent::Fetched { bytes: 30 });
        assert!(!reached.further_than(None, &mut last));
        reached.note(&ProgressEvent::LayerDone { diff_id: digest(1) });
        assert!(reached.further_than(None, &mut last), "a layer more");
        let short = |rest| Some(Shortfall { need: 90, rest });
        assert!(reached.further_than(short(20), &mut last), "less was still to come");
        assert!(!reached.further_than(short(20), &mut last));
    }

    #[test]
    fn what_a_kept_container_needs_stays_and_one_that_cannot_be_read_keeps_all() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir(dir.path().to_path_buf());
        assert_eq!(needed(&state).unwrap(), Some(BTreeSet::new()));
        let place = dir.path().join("containers/box");
        std::fs::create_dir_all(&place).unwrap();
        let text = format!(r#"{{"pinned": {{"digest": "{}"}}}}"#, digest(3));
        std::fs::write(place.join("container.json"), text).unwrap();
        assert_eq!(needed(&state).unwrap(), Some(BTreeSet::from([digest(3)])));
        std::fs::write(place.join("container.json"), "{").unwrap();
        needed(&state).unwrap_err();
    }

    #[test]
    fn a_store_without_an_agent_has_the_rules_of_its_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("images")).unwrap();
        let of = || rules(Some(dir.path()), &store).unwrap().unwrap();
        assert_eq!((of().high_watermark, of().max_size), (85, None));
        std::fs::write(dir.path().join("berth.toml"), "[images]\nmax_size = \"1M\"\n").unwrap();
        assert_eq!(of().max_size, Some(1 << 20));
    }

    #[test]
    fn a_cluster_whose_configuration_is_elsewhere_has_the_rules_that_its_agent_noted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("images")).unwrap();
        std::fs::create_dir(dir.path().join("db")).unwrap();
        std::fs::write(dir.path().join("db").join(berth_controller::RECORDS), "").unwrap();
        let of = || rules(Some(dir.path()), &store).unwrap();
        assert_eq!(of(), None, "no agent ran yet");
        let noted = RoomRules { high_watermark: 100, low_watermark: 100, max_size: None, keep_days: Some(9) };
        store.note_room_rules(&noted).unwrap();
        assert_eq!(of(), Some(noted));
        std::fs::write(dir.path().join("berth.toml"), "[images]\nmax_size = \"1M\"\n").unwrap();
        assert_eq!(of().unwrap().max_size, Some(1 << 20));
    }
}
