//! What the images of one user may take on a store that serves several: judged before anything is fetched, while layers are
//! written, and when the image becomes theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::granted::Usage;
use super::lock::{Hold, Lock};
use super::memory::{Memory, Share, Unwanted};
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::LayerInfo;
use crate::progress::{Progress, ProgressEvent};

/// What an archive may have beside the bytes of its files, beyond as many again: headers, names and padding.
const HEADERS: u64 = 64 << 20;

/// The quota of the user for whom images are fetched.
#[derive(Debug)]
pub(super) struct Quota {
    uid: u32,
    /// Bytes that layers of this user's images may take.
    limit: u64,
    /// Bytes that their images took when the import began.
    used: AtomicU64,
    /// Bytes of this image's other layers that were there.
    there: AtomicU64,
    /// Bytes of files that were unpacked since.
    files: AtomicU64,
    /// Bytes of the archives with these files.
    archives: AtomicU64,
}

impl Quota {
    fn left(&self) -> u64 {
        let there = self.there.load(Ordering::Relaxed);
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed)).saturating_sub(there)
    }

    fn over(&self, what: &str, reason: &str) -> Error {
        over(what, self.used.load(Ordering::Relaxed), self.limit, reason)
    }
}

fn over(what: &str, used: u64, limit: u64, reason: &str) -> Error {
    let (used, limit) = (amount(used), amount(limit));
    let reason =
        format!("your quota for images on this node is {limit}, your images take {used}, and {reason}");
    Error::new(ErrorKind::Quota, what, reason).next(
        "give images back with `berth image rm IMAGE` (`berth image ls` lists yours), or ask the administrator for more \
         (images.user_quota)",
    )
}

/// `1.50 GiB`.
pub(super) fn amount(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (1..units.len()).rev().find(|n| bytes >> (10 * (n + 1)) > 0).unwrap_or(0);
    let hundredths = (u128::from(bytes) * 100) >> (10 * (unit + 1));
    format!("{}.{:02} {}", hundredths / 100, hundredths % 100, units[unit])
}

/// Bytes that a layer's unpacking took of a quota; given back where the layer comes to nothing.
pub(crate) struct Charge<'a> {
    quota: Option<&'a Quota>,
    files: AtomicU64,
    archives: AtomicU64,
    /// Memory that is taken until the layer is written.
    memory: Share,
    /// What ends waiting for it.
    unwanted: Unwanted<'a>,
    /// Bytes that files may have where it is written.
    disk: u64,
}

/// What all layers have that are unpacked at once, for their names and for windows of what decompresses them. The names of 600,000
/// files fit into it, or four windows of the largest usual size.
static MEMORY: Memory = Memory::new(32 << 20);

impl<'a> Charge<'a> {
    pub(super) fn new(quota: Option<&'a Quota>) -> Self {
        Self {
            quota,
            files: AtomicU64::new(0),
            archives: AtomicU64::new(0),
            memory: Share::of(&MEMORY),
            unwanted: Unwanted::default(),
            disk: u64::MAX,
        }
    }

    /// Of a layer that is written where files may have so many bytes.
    pub(super) fn on_disk(mut self, bytes: u64) -> Self {
        self.disk = bytes;
        self
    }

    /// Bytes that files may have where the layer is written.
    pub(crate) fn disk(&self) -> u64 {
        self.disk
    }

    /// Of a layer that may have to wait, and need not when one of these is set.
    pub(super) fn unless(mut self, unwanted: Unwanted<'a>) -> Self {
        self.unwanted = unwanted;
        self
    }

    /// Before the layer takes so many bytes of memory until it is written: waits where other layers have them.
    pub(crate) fn memory(&self, bytes: u64) -> Result<()> {
        self.memory.take(bytes, self.unwanted)
    }

    /// Before the layer takes very much memory at once: waits until no other layer has more than its part.
    pub(crate) fn alone(&self) -> Result<()> {
        self.memory.take(u64::MAX, self.unwanted)
    }

    /// Before so many bytes of the disk are taken by a file, or by whatever else an archive has.
    pub(crate) fn file(&self, bytes: u64) -> Result<()> {
        self.add(bytes, |quota| &quota.files, &self.files, Quota::left)
    }

    /// Before more of the archive is unpacked: what is not of a file takes room, too.
    pub(crate) fn archive(&self, bytes: u64) -> Result<()> {
        let most = |quota: &Quota| quota.left().saturating_mul(2).saturating_add(HEADERS);
        self.add(bytes, |quota| &quota.archives, &self.archives, most)
    }

    fn add(
        &self,
        bytes: u64,
        counter: impl Fn(&Quota) -> &AtomicU64,
        own: &AtomicU64,
        most: impl Fn(&Quota) -> u64,
    ) -> Result<()> {
        let Some(quota) = self.quota else { return Ok(()) };
        let most = most(quota);
        let add = |sum: u64| sum.checked_add(bytes).filter(|sum| *sum <= most);
        if counter(quota).fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_err() {
            return Err(
                quota.over("layer", "what is unpacked of this one is more than is left; it was not kept")
            );
        }
        own.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The layer is there and counts.
    pub(super) fn keep(mut self) {
        self.quota = None;
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if let Some(quota) = self.quota {
            let less = |sum: &AtomicU64, own: &AtomicU64| {
                let own = own.load(Ordering::Relaxed);
                let _ = sum
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| Some(sum.saturating_sub(own)));
            };
            less(&quota.files, &self.files);
            less(&quota.archives, &self.archives);
        }
    }
}

impl Store {
    /// The same store, filled for a user whose images may take so many bytes.
    #[must_use]
    pub fn with_quota(mut self, uid: u32, limit: u64) -> Self {
        let zero = || AtomicU64::new(0);
        self.quota = Some(Quota { uid, limit, used: zero(), there: zero(), files: zero(), archives: zero() });
        self
    }

    /// One import after the other for a user with a quota: two at a time would not know of each other what they write.
    pub(crate) fn quota_turn(&self, progress: &dyn Progress) -> Result<Option<Lock>> {
        let Some(quota) = &self.quota else { return Ok(None) };
        let name = format!("quota-{}", quota.uid);
        if let Some(lock) = self.try_lock(&name, Hold::Exclusive)? {
            return Ok(Some(lock));
        }
        progress.event(ProgressEvent::Waiting { what: "another image of yours".to_owned() });
        self.lock(&name, Hold::Exclusive).map(Some)
    }

    /// Judges an image by what is known of it before anything is fetched: the layers that are there by what they take, the
    /// others by the bytes of their blobs, which are compressed. So it needs at least that much.
    pub(super) fn admit(&self, what: &str, layers: &[LayerInfo]) -> Result<()> {
        let Some(quota) = &self.quota else { return Ok(()) };
        let had = self.layers_of(quota.uid, None)?;
        let used = Usage::of([&had]).bytes;
        let (mut there, mut missing) = (0u64, 0u64);
        let mut seen = BTreeSet::new();
        for layer in layers.iter().filter(|layer| !had.contains_key(&layer.diff_id)) {
            if !seen.insert(&layer.diff_id) {
                continue;
            }
            match self.layer_record(&layer.diff_id)? {
                Some(_) => there = there.saturating_add(self.layer_charge(&layer.diff_id)?),
                None => missing = missing.saturating_add(layer.size),
            }
        }
        quota.used.store(used, Ordering::Relaxed);
        quota.there.store(there, Ordering::Relaxed);
        let more = there.saturating_add(missing);
        if more > 0 && used.saturating_add(more) > quota.limit {
            let needs = format!(
                "this one needs {} more at least ({} of it are still to be fetched, compressed)",
                amount(more),
                amount(missing)
            );
            return Err(over(what, used, quota.limit, &needs));
        }
        Ok(())
    }

    /// Judges an image that is whole, by what it takes. For whoever holds the store's lock, just before it becomes the user's.
    pub(super) fn admit_whole(&self, what: &str, digest: &Digest, uid: u32) -> Result<()> {
        let Some(quota) = self.quota.as_ref().filter(|quota| quota.uid == uid) else { return Ok(()) };
        let Some(record) = self.whole_record(digest)? else { return Ok(()) };
        let had = self.layers_of(uid, Some(digest))?;
        let used = Usage::of([&had]).bytes;
        let with = Usage::of([&had, &self.layer_sizes(&record)?]).bytes;
        if with > used && with > quota.limit && self.grant_of(digest, uid)?.is_none() {
            let needs = format!("this one needs {} more", amount(with - used));
            return Err(over(what, used, quota.limit, &needs));
        }
        Ok(())
    }

    /// Removes what was made for a user who may not have it, unless others have it or need it.
    pub(crate) fn drop_refused(&self, digest: &Digest) -> Result<()> {
        // What others had no room for waits for their next try.
        let waiting: BTreeSet<Digest> =
            self.names(&self.images)?.iter().filter_map(|name| super::ensure::partial_of(name)).collect();
        if self.mark_released(digest)?
            && !self.drop_released(std::slice::from_ref(digest), &waiting)?.images.is_empty()
        {
            return Ok(());
        }
        // Of an image that never was whole there are layers alone.
        self.collect(&waiting).map(drop)
    }

    /// Layers of the images that the user has, but for one.
    fn layers_of(&self, uid: u32, but: Option<&Digest>) -> Result<BTreeMap<Digest, u64>> {
        let mut layers = BTreeMap::new();
        for (digest, _, _) in self.grants_of(uid)? {
            if Some(&digest) != but
                && let Some(record) = self.whole_record(&digest)?
            {
                layers.extend(self.layer_sizes(&record)?);
            }
        }
        Ok(layers)
    }

    /// Marks an image that nobody has as given back. False where there is none, or somebody has it.
    fn mark_released(&self, digest: &Digest) -> Result<bool> {
        let _store = self.lock("store", Hold::Exclusive)?;
        let names = self.names(&self.images)?;
        if !names.contains(&super::ensure::record_name(digest)) || super::grant::has_grants(&names, digest) {
            return Ok(false);
        }
        files::write(self.images.as_fd(), &super::grant::released_name(digest), b"", self.give_to)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(limit: u64, used: u64) -> Quota {
        let of = AtomicU64::new;
        Quota { uid: 1, limit, used: of(used), there: of(0), files: of(0), archives: of(0) }
    }

    #[test]
    fn what_is_unpacked_counts_together_and_what_comes_to_nothing_does_not() {
        let quota = quota(1000, 400);
        let (one, two) = (Charge::new(Some(&quota)), Charge::new(Some(&quota)));
        one.file(300).unwrap();
        two.file(300).unwrap();
        let error = one.file(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Quota);
        for part in ["0.97 KiB", "0.39 KiB", "berth image rm", "administrator"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        drop(one);
        two.keep();
        Charge::new(Some(&quota)).file(300).unwrap();
        // A size that no file can have, as a header may say.
        assert!(Charge::new(Some(&quota)).file(u64::MAX).is_err());
        assert!(Charge::new(None).file(u64::MAX).is_ok());
    }

    #[test]
    fn an_archive_of_headers_alone_ends_too() {
        let quota = quota(1000, 400);
        let charge = Charge::new(Some(&quota));
        charge.archive(1200 + HEADERS).unwrap();
        assert_eq!(charge.archive(1).unwrap_err().kind(), ErrorKind::Quota);
    }

    #[test]
    fn amounts_are_read_at_a_glance() {
        for (bytes, text) in
            [(0, "0.00 KiB"), (1536, "1.50 KiB"), (200 << 30, "200.00 GiB"), (u64::MAX, "15.99 EiB")]
        {
            assert_eq!(amount(bytes), text);
        }
    }
}
