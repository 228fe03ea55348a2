//! Whose turn it is to make a layer: one process's at a time, and nobody is kept waiting by another user's source.
//!
//! A layer's lock is named by what an image claims to have, before a byte of that is verified. So its holder says in the lock's file
//! for which user it works and how much has come, and who waits for another user's goes by that: a source that brings too little,
//! which may be that user's own, is not waited for. Such a waiter takes the turn of its own user, with a lock that no other
//! user's processes take, and makes the layer beside the first one; what is whole first is seen by all.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::lock::{Hold, Lock};
use super::pipeline::CHUNK;
use super::work::WorkDir;
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::LayerInfo;
use crate::progress::{Progress, ProgressEvent};

/// How long a source of another user's may bring less than [`RATE`].
pub(super) const SPAN: Duration = Duration::from_secs(30);
/// Bytes a second that a source has to bring for others to wait for it: in each span, and for the layer as a whole.
const RATE: u64 = 2 << 20;
/// The first wait between two looks at a lock, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// What a holder says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    user: u32,
    bytes: u64,
}

impl Said {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
        let (user, bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Self { user, bytes })
    }

    /// Always as long as it was, so that it takes the old one's place.
    fn text(self) -> String {
        format!("{:010} {:020}\n", self.user, self.bytes)
    }
}

/// What a waiter makes of what the holder says.
struct Vigil {
    span: Duration,
    /// Bytes of the layer's blob, as the waiter's own image has it.
    size: u64,
    user: u32,
    /// When the present span began, and what had come by then.
    since: (Duration, u64),
}

impl Vigil {
    fn new(span: Duration, size: u64, user: u32) -> Self {
        Self { span, size, user, since: (Duration::ZERO, 0) }
    }

    /// Whether the holder is waited for still, after waiting for `waited`.
    fn goes_on(&mut self, waited: Duration, said: Option<Said>) -> bool {
        let bytes = match said {
            // One image after the other is what its user has asked for.
            Some(said) if said.user == self.user => {
                self.since = (waited, said.bytes);
                return true;
            }
            Some(said) => said.bytes,
            None => 0,
        };
        if bytes < self.since.1 {
            // Another one has it now.
            self.since.1 = bytes;
        }
        let all = self.span + Duration::from_secs(self.size / RATE);
        if waited >= all {
            return false;
        }
        let passed = waited.saturating_sub(self.since.0);
        if passed >= self.span {
            if u128::from(bytes - self.since.1) * 1000 < u128::from(RATE) * passed.as_millis() {
                return false;
            }
            self.since = (waited, bytes);
        }
        true
    }
}

/// The right to make a layer, until it is dropped.
pub(super) struct Turn<'a> {
    store: &'a Store,
    lock: Lock,
    name: String,
    brought: AtomicU64,
}

impl Turn<'_> {
    /// What is told of the layer goes by here, so that those who wait see that it comes.
    pub(super) fn watched<'t>(&'t self, progress: &'t dyn Progress) -> impl Fn(ProgressEvent) + Sync {
        move |event| {
            if let ProgressEvent::Fetched { bytes } = event {
                // Of another node's archive more comes than the blob has, and people are told nothing of that.
                let more = if bytes == 0 { CHUNK as u64 } else { bytes };
                self.say(self.brought.fetch_add(more, Ordering::Relaxed) + more);
            }
            progress.event(event);
        }
    }

    /// Who cannot be told so, as on a full disk, goes on by itself.
    fn say(&self, bytes: u64) {
        self.lock.say(Said { user: self.store.whose(), bytes }.text().as_bytes());
    }

    /// The layer is there: nobody needs the lock's file any more.
    pub(super) fn end(self) -> Result<()> {
        let Self { store, lock, name, .. } = self;
        lock.remove(store.locks.as_fd(), &name).map_err(|e| Error::io(format!("image store: lock {name}"), e))
    }
}

impl Store {
    /// The same store, which waits so long for sources of other users that bring next to nothing.
    #[must_use]
    pub fn waiting_for_others(mut self, span: Duration) -> Self {
        self.span = span;
        self
    }

    /// For whom work is done, as a number; those whose store it is are one, and root with them.
    fn whose(&self) -> u32 {
        self.user.unwrap_or_default()
    }

    /// What is added to a lock's name that only processes of one user take.
    pub(super) fn own_mark(&self) -> String {
        self.user.map(|user| format!(".{user}")).unwrap_or_default()
    }

    /// The turn to make a layer; `None` when another process has it.
    pub(super) fn try_turn(&self, layer: &LayerInfo) -> Result<Option<Turn<'_>>> {
        self.free_turn(&layer_lock(layer))
    }

    /// The turn to make a layer, waiting for others where that is right; `None` where it is there meanwhile, which is nothing to whoever
    /// makes it `anew`. When `failed` is set, another layer of the image did, and nobody waits any more. Whoever has the turn looks first
    /// whether the layer is there by now.
    pub(super) fn turn(
        &self,
        layer: &LayerInfo,
        progress: &dyn Progress,
        failed: Option<&AtomicBool>,
        anew: bool,
    ) -> Result<Option<Turn<'_>>> {
        if let Some(turn) = self.try_turn(layer)? {
            return Ok(Some(turn));
        }
        let name = layer_lock(layer);
        progress.event(ProgressEvent::Waiting { what: format!("layer {}", layer.diff_id.short()) });
        let mut vigil = Vigil::new(self.span, layer.size, self.whose());
        let begun = Instant::now();
        // Somebody beside the holder may have made it.
        let there = || -> Result<bool> { Ok(!anew && self.layer_record(&layer.diff_id)?.is_some()) };
        let waits = || -> Result<bool> {
            let said = files::read(self.locks.as_fd(), &name)?.and_then(|text| Said::parse(&text));
            Ok(vigil.goes_on(begun.elapsed(), said) && !there()?)
        };
        if let Some(turn) = self.turn_while(&name, failed, waits)? {
            return Ok(Some(turn));
        }
        // One of this user's at a time, however many wait; its source may be as bad, while others bring the layer.
        let own = format!("{name}.{}", self.whose());
        loop {
            if there()? {
                return Ok(None);
            }
            if let Some(turn) = self.turn_while(&own, failed, || Ok(!there()?))? {
                return Ok(Some(turn));
            }
        }
    }

    /// Takes a turn, looking for it again and again for as long as `waits`.
    fn turn_while(
        &self,
        name: &str,
        failed: Option<&AtomicBool>,
        mut waits: impl FnMut() -> Result<bool>,
    ) -> Result<Option<Turn<'_>>> {
        let (mut pause, longest) = LOOKS;
        let unwanted = self.unwanted(failed);
        let set = |flag: Option<&AtomicBool>| flag.is_some_and(|flag| flag.load(Ordering::Relaxed));
        loop {
            if let Some(turn) = self.free_turn(name)? {
                return Ok(Some(turn));
            }
            if set(unwanted.stopped) || set(unwanted.failed) {
                let reason = "others were making it, and its image is not wanted any more";
                return Err(Error::new(ErrorKind::Io, "layer", reason));
            }
            if !waits()? {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(longest);
        }
    }

    fn free_turn(&self, name: &str) -> Result<Option<Turn<'_>>> {
        let Some(lock) = self.try_lock(name, Hold::Exclusive)? else { return Ok(None) };
        let turn = Turn { store: self, lock, name: name.to_owned(), brought: AtomicU64::new(0) };
        // One that was killed may have left its own words.
        turn.say(0);
        Ok(Some(turn))
    }

    /// Does what puts a layer in its place, where nobody looks at it as a whole: that takes a moment, and waits for nobody's source.
    pub(super) fn placing(&self, diff_id: &Digest, put: impl FnOnce() -> Result<()>) -> Result<()> {
        let name = place_lock(diff_id);
        let lock = self.lock(&name, Hold::Exclusive)?;
        put()?;
        lock.remove(self.locks.as_fd(), &name).map_err(|e| Error::io(format!("image store: lock {name}"), e))
    }

    /// Has everybody see a layer, unless one that was made beside it is there already.
    pub(super) fn publish_layer(&self, work: WorkDir<'_>, diff_id: &Digest) -> Result<()> {
        let name = diff_id.file_name();
        self.placing(diff_id, || {
            if self.layer_record(diff_id)?.is_some() {
                return Ok(());
            }
            // A torn or foreign directory in the way is moved aside first.
            if Self::has_directory(self.layers.as_fd(), &name) {
                WorkDir::new(self)?.swallow(&name)?;
            }
            work.publish(&name)
        })
    }
}

fn layer_lock(layer: &LayerInfo) -> String {
    format!("layer-{}", layer.diff_id.file_name())
}

/// The lock under which a layer is put in its place, and looked at as a whole.
pub(super) fn place_lock(diff_id: &Digest) -> String {
    format!("place-{}", diff_id.file_name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::store::boot_id;
    use crate::store::record::{LayerRecord, VERSION, print};
    use crate::unpack::LayerReport;
    use std::path::Path;
    use std::sync::mpsc::{Receiver, channel};

    const MIB: u64 = 1 << 20;

    /// The store below `root`, for work of `user`'s.
    fn store(root: &Path, user: Option<u32>) -> Store {
        let mut store = Store::open(&root.join("store")).unwrap().waiting_for_others(Duration::ZERO);
        store.user = user;
        store
    }

    /// A place for a store, and a layer that is not in it.
    fn layer() -> (tempfile::TempDir, LayerInfo) {
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        let layer = LayerInfo { diff_id: digest.clone(), digest, size: 1, foreign: false };
        (tempfile::tempdir().unwrap(), layer)
    }

    /// Has everybody see the layer.
    fn publish(store: &Store, layer: &LayerInfo) {
        let work = WorkDir::new(store).unwrap();
        let directory = work.open().unwrap();
        rustix::fs::mkdirat(&directory, "fs", rustix::fs::Mode::RWXU).unwrap();
        let record = LayerRecord {
            version: VERSION,
            diff_id: layer.diff_id.clone(),
            report: LayerReport::default(),
            listed: true,
            rebuildable: true,
            archive: None,
            image: None,
            form: None,
            taken: None,
            boot: boot_id(),
        };
        files::write(directory.as_fd(), "layer.json", &print(&record).unwrap(), None).unwrap();
        store.publish_layer(work, &layer.diff_id).unwrap();
    }

    /// Until somebody waits, and has looked at the lock some times.
    fn once_waiting(waits: &Receiver<()>) {
        waits.recv_timeout(seconds(20)).unwrap();
        std::thread::sleep(LOOKS.1);
    }

    /// Two processes of one user find each other's sources slow, and another user's is not.
    #[test]
    fn a_layer_that_another_user_made_ends_the_waiting_for_ones_own() {
        let (dir, layer) = layer();
        let (theirs, first, second) =
            (store(dir.path(), Some(1001)), store(dir.path(), Some(1002)), store(dir.path(), Some(1002)));
        let _holder = theirs.try_turn(&layer).unwrap().unwrap();
        let own = first.turn(&layer, &(), None, false).unwrap().unwrap();
        assert_eq!(own.name, format!("{}.1002", layer_lock(&layer)));
        let ((waits, waiting), (ended, ends), over) = (channel(), channel(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let told = |_: ProgressEvent| waits.send(()).unwrap();
                let turn = second.turn(&layer, &told, Some(&over), false);
                ended.send(turn.map(|turn| turn.map(|turn| turn.name))).unwrap();
            });
            once_waiting(&waiting);
            publish(&theirs, &layer);
            let turn = ends.recv_timeout(seconds(20));
            over.store(true, Ordering::Relaxed);
            assert_eq!(turn.expect("it waits for its own user's source").unwrap(), None);
        });
    }

    /// What is there is made anew where it is damaged, or in another form.
    #[test]
    fn who_makes_a_layer_anew_waits_for_its_user_as_others_do() {
        let (dir, layer) = layer();
        let (first, second) = (store(dir.path(), None), store(dir.path(), None));
        publish(&first, &layer);
        let holder = first.turn(&layer, &(), None, true).unwrap().unwrap();
        let (waits, waiting) = channel();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let told = |_: ProgressEvent| waits.send(()).unwrap();
                second.turn(&layer, &told, None, true).map(|turn| turn.map(|turn| turn.name))
            });
            once_waiting(&waiting);
            assert!(!other.is_finished(), "both fetch it");
            holder.end().unwrap();
            assert_eq!(other.join().unwrap().unwrap(), Some(layer_lock(&layer)));
        });
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// After how many seconds a waiter goes its own way, where the holder has brought so much by each second; `None` within an hour.
    fn given_up(size: u64, holder: u32, brought: impl Fn(u64) -> u64) -> Option<u64> {
        let mut vigil = Vigil::new(SPAN, size, 1002);
        (0..3600).find(|n| !vigil.goes_on(seconds(*n), Some(Said { user: holder, bytes: brought(*n) })))
    }

    #[test]
    fn another_users_source_is_waited_for_while_it_brings_the_layer() {
        let large = 100 << 30;
        assert_eq!(given_up(large, 1001, |_| 0), Some(30), "nothing comes");
        assert_eq!(given_up(large, 1001, |n| n * 100), Some(30), "it trickles");
        assert_eq!(given_up(large, 1001, |n| n.min(100) * 4 * MIB), Some(120), "it stopped");
        assert_eq!(given_up(large, 1001, |n| n * 4 * MIB), None);
        // What comes has no end, as the layer has.
        assert_eq!(given_up(200 * MIB, 1001, |n| n * 4 * MIB), Some(130));
        // Nor do many holders, one after the other, have more time than one.
        assert_eq!(given_up(200 * MIB, 1001, |n| n % 29 * 4 * MIB), Some(30));
    }

    #[test]
    fn a_users_own_source_is_waited_for_as_long_as_it_takes() {
        assert_eq!(given_up(0, 1002, |_| 0), None);
        let mut vigil = Vigil::new(SPAN, 100 << 30, 1002);
        assert!(vigil.goes_on(seconds(1000), Some(Said { user: 1002, bytes: 5 })));
        assert!(vigil.goes_on(seconds(1001), Some(Said { user: 1001, bytes: 0 })), "it has just begun");
        assert!(!vigil.goes_on(seconds(1030), Some(Said { user: 1001, bytes: 0 })));
    }

    #[test]
    fn what_a_holder_says_is_read_back_and_anything_else_is_nothing() {
        for said in [Said { user: 0, bytes: 0 }, Said { user: u32::MAX, bytes: u64::MAX }] {
            assert_eq!(Said::parse(said.text().as_bytes()), Some(said));
            assert_eq!(said.text().len(), 32);
        }
        for text in [&b""[..], b"1001", b"x 1", b"\xff 1", b"-1 1"] {
            assert_eq!(Said::parse(text), None);
        }
        assert!(!Vigil::new(SPAN, 0, 1).goes_on(SPAN, None));
    }
}
