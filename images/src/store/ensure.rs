//! Making an image present: the fast answer when it is, one import when it is not.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::image::ImageManifest;
use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_NOW, renameat, utimensat};
use rustix::io::Errno;

use super::form::LayerForm;
use super::layer::REPAIR;
use super::lock::{Hold, Lock};
use super::merge::Lowest;
use super::record::{ImageRecord, MergedRecord, PendingRecord, VERSION, parse, print};
use super::verify::source_of;
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, Shortfall, printable};
use crate::manifest::{
    Document, ImageConfig, LayerInfo, check_config_type, descriptor_digest, parse_document, read_config,
};
use crate::progress::{Progress, ProgressEvent};
use crate::reference::Engine;
use crate::sif::SIF_SIGNATURES;
use crate::source::{BlobKind, BlobSource, ResolvedManifest, read_verified, verify};
use crate::unpack::LayerReport;

/// Most layers unpacked at the same time.
pub(super) const MAX_PARALLEL: usize = 8;

/// What a lock's name has before the image, and the name of what an import needs behind it.
const FETCH: &str = "fetch-";
const PENDING: &str = ".pending";
const PARTIAL: &str = ".partial";
/// Characters of what a SIF file says of its signatures.
const MOST_SAID: usize = 1000;

/// Names of one image that are kept, of either kind; the oldest goes.
const MOST_NAMES: usize = 64;

/// An image whose layers are on disk and stay there while this value lives.
#[derive(Debug)]
pub struct PreparedImage {
    /// Digest of the manifest.
    pub digest: Digest,
    /// How the image wants to be run.
    pub config: ImageConfig,
    /// What to mount, top layer first, as overlayfs takes it; absolute paths. What is a file is an EROFS image.
    pub layers: Vec<PathBuf>,
    /// Keeps the image from being removed.
    pub guard: UseGuard,
}

/// Keeps an image from being removed or pruned: a shared lock that lasts until every copy of its descriptor is
/// closed. It can be passed on to the process that uses the image and outlives this one.
#[derive(Debug)]
pub struct UseGuard(Lock);

impl AsFd for UseGuard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<UseGuard> for OwnedFd {
    fn from(guard: UseGuard) -> Self {
        guard.0.into_fd()
    }
}

impl Store {
    /// Makes the image present and gives what is needed to mount and run it. When it is present already, this
    /// asks nobody and waits for nobody. Several processes that want the same image fetch it once.
    ///
    /// # Errors
    /// The source fails, the image is damaged, hostile, or for another platform, or the disk is full. Layers
    /// that were complete are kept; nothing else is left behind.
    pub fn ensure(
        &self,
        image: &ResolvedManifest,
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<PreparedImage> {
        if let Some(prepared) = self.prepared(&image.digest)? {
            self.show_image(image, source, progress)?;
            return self.named(prepared, image, self.user);
        }
        let fetch_name = self.fetch_lock(&image.digest);
        let fetch = match self.try_lock(&fetch_name, Hold::Exclusive)? {
            Some(lock) => lock,
            None => {
                progress.event(ProgressEvent::Waiting { what: format!("image {}", image.digest.short()) });
                self.lock(&fetch_name, Hold::Exclusive)?
            }
        };
        if let Some(prepared) = self.prepared(&image.digest)? {
            self.show_image(image, source, progress)?;
            return self.named(prepared, image, self.user);
        }
        // From here on the image cannot be removed under our hands.
        let guard = self.lock(&use_lock(&image.digest), Hold::Shared)?;
        self.sweep()?;
        let is_new = self.whole_record(&image.digest)?.is_none();
        let result = self.import(image, source, progress).and_then(|record| self.record_made(record, is_new));
        let (pending, partial) = (self.pending_name(&image.digest), self.partial_name(&image.digest));
        let ended = match &result {
            // Room may be made, and complete layers wait for the next try.
            Err(e) if e.kind() == ErrorKind::NoSpace => {
                match renameat(&self.images, &pending, &self.images, &partial) {
                    Ok(()) | Err(Errno::NOENT) => Ok(()),
                    Err(errno) => Err(Error::io(format!("image store: {pending}"), errno)),
                }
            }
            _ => files::remove(self.images.as_fd(), &pending)
                .and_then(|()| files::remove(self.images.as_fd(), &partial)),
        };
        let record = result.map_err(|e| match e.kind() {
            ErrorKind::NoSpace => {
                let room = self.told_of_room(e.shortfall());
                e.beside(&room)
            }
            _ => e,
        })?;
        ended?;
        fetch.remove(self.locks.as_fd(), &fetch_name).map_err(|e| Error::io("image store: lock", e))?;
        if let Some(name) = name_of(image) {
            self.take_name_from_others(&name, &image.digest, self.user.is_none())?;
        }
        let layers = self.stack(&record).ok_or_else(|| {
            Error::new(ErrorKind::Io, format!("image {}", record.digest), "its layers were removed meanwhile")
                .next("try again")
        })?;
        Ok(PreparedImage { digest: record.digest, config: record.config, layers, guard: UseGuard(guard) })
    }

    /// The image if it is present, without asking anybody: a use guard, one small file and two looks per layer.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn prepared(&self, digest: &Digest) -> Result<Option<PreparedImage>> {
        let lock_name = use_lock(digest);
        // Without a record there is nothing to guard, and no lock file should be left. A damaged one is written anew by an
        // import.
        if self.whole_record(digest)?.is_none() {
            return Ok(None);
        }
        let guard = self.lock(&lock_name, Hold::Shared)?;
        let Some(record) = self.whole_record(digest)? else {
            return Ok(None);
        };
        for layer in &record.layers {
            if !self.is_usable(&layer.diff_id.file_name())? {
                // Somebody removed files by hand, images cannot be mounted any more, or the power went while the layer was made
                // anew; importing again repairs it.
                return Ok(None);
            }
        }
        // The kernel may be another one than that for which it was imported.
        let Some(layers) = self.stack(&record) else { return Ok(None) };
        self.note_use(digest);
        Ok(Some(PreparedImage {
            digest: record.digest,
            config: record.config,
            layers,
            guard: UseGuard(guard),
        }))
    }

    /// Notes that an image is used now: pruning by age and the choice of what goes for lack of room read it.
    pub(super) fn note_use(&self, digest: &Digest) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let _ = utimensat(&self.images, record_name(digest), &times, AtFlags::SYMLINK_NOFOLLOW);
    }

    /// Guards an image that is in use, without preparing it: for an agent that adopts running containers.
    ///
    /// # Errors
    /// The image is not in the store, or damaged.
    pub fn guard(&self, digest: &Digest) -> Result<UseGuard> {
        if let Some(prepared) = self.prepared(digest)? {
            return Ok(prepared.guard);
        }
        // Says so where the record is damaged.
        let record = self.image_record(digest)?;
        Err(record.map_or_else(
            || self.unknown(&digest.to_string()),
            |_| {
                let reason = "a layer of it is missing, or cannot be mounted any more";
                Error::new(ErrorKind::Corrupt, format!("image {digest}"), reason).next(REPAIR)
            },
        ))
    }

    pub(crate) fn unknown(&self, name: &str) -> Error {
        Error::new(
            ErrorKind::NotFound,
            format!("image {name}"),
            format!("is not in the store {}", self.root.display()),
        )
        .next("list what is there with `berth image ls`, or fetch it with `berth image pull`")
    }

    pub(super) fn image_record(&self, digest: &Digest) -> Result<Option<ImageRecord>> {
        let name = record_name(digest);
        match files::read(self.images.as_fd(), &name)? {
            Some(bytes) => {
                let record: ImageRecord = parse(&name, &bytes)?;
                Ok((record.digest == *digest).then_some(record))
            }
            None => Ok(None),
        }
    }

    /// The record of an image; `None` also where it is damaged.
    pub(super) fn whole_record(&self, digest: &Digest) -> Result<Option<ImageRecord>> {
        match self.image_record(digest) {
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(None),
            other => other,
        }
    }

    pub(super) fn write_image_record(&self, record: &ImageRecord) -> Result<()> {
        files::write(self.images.as_fd(), &record_name(&record.digest), &print(record)?, self.give_to)
    }

    /// Writes the record of an image that was imported. One that was there keeps its names: a layer of it was made anew, or, where
    /// there was none when the import began, another user's was made beside it, and stands for where the image came from.
    fn record_made(&self, mut record: ImageRecord, was_new: bool) -> Result<ImageRecord> {
        // Names are taken from it, and given to it, under this lock.
        let _store = self.lock("store", Hold::Exclusive)?;
        if let Some(known) = self.whole_record(&record.digest)? {
            if was_new {
                (record.source, record.insecure) = (known.source, known.insecure);
                (record.created, record.sif_signatures) = (known.created, known.sif_signatures);
            }
            for (old, new) in [(known.names, &mut record.names), (known.own, &mut record.own)] {
                let mut all: Vec<_> = old.into_iter().filter(|name| !new.contains(name)).collect();
                all.drain(..(all.len() + new.len()).saturating_sub(MOST_NAMES).min(all.len()));
                all.append(new);
                *new = all;
            }
        }
        self.write_image_record(&record)?;
        Ok(record)
    }

    /// Adds the name under which the image was asked for, if it is new: by `user`, or by those whose store it is.
    pub(crate) fn named(
        &self,
        prepared: PreparedImage,
        image: &ResolvedManifest,
        user: Option<u32>,
    ) -> Result<PreparedImage> {
        let (Some(name), own) = (name_of(image), user.is_none()) else {
            return Ok(prepared);
        };
        let known = |record: &mut ImageRecord| record.names_of(own).contains(&name);
        if self.image_record(&image.digest)?.is_some_and(|mut record| known(&mut record)) {
            return Ok(prepared);
        }
        let _store = self.lock("store", Hold::Exclusive)?;
        if let Some(mut record) = self.image_record(&image.digest)?
            && !known(&mut record)
        {
            let names = record.names_of(own);
            let old = names.len().saturating_sub(MOST_NAMES - 1);
            names.drain(..old);
            names.push(name.clone());
            self.write_image_record(&record)?;
        }
        drop(_store);
        self.take_name_from_others(&name, &image.digest, own)?;
        Ok(prepared)
    }

    /// A name means the image that was asked for last; a user's takes none from those whose store it is.
    fn take_name_from_others(&self, name: &str, digest: &Digest, own: bool) -> Result<()> {
        let named = |record: &mut ImageRecord| record.names_of(own).iter().any(|n| n == name);
        let others = self.records()?.into_iter().filter_map(|mut record| {
            (record.digest != *digest && named(&mut record)).then_some(record.digest)
        });
        let others: Vec<_> = others.collect();
        if others.is_empty() {
            return Ok(());
        }
        let _store = self.lock("store", Hold::Exclusive)?;
        for other in others {
            if let Some(mut record) = self.image_record(&other)? {
                record.names_of(own).retain(|n| n != name);
                // Losing a name is no use of the image.
                let used = self.last_used(&record);
                self.write_image_record(&record)?;
                let time = Timespec {
                    tv_sec: i64::try_from(used / 1_000_000_000).unwrap_or_default(),
                    tv_nsec: i64::try_from(used % 1_000_000_000).unwrap_or_default(),
                };
                let times = Timestamps { last_access: time, last_modification: time };
                let _ =
                    utimensat(&self.images, record_name(&record.digest), &times, AtFlags::SYMLINK_NOFOLLOW);
            }
        }
        Ok(())
    }

    /// Writes the damaged record of an image anew from what the store has of it. Names, and where it came from, are lost
    /// with the old one: pulling the image by a name gives them back.
    ///
    /// # Errors
    /// The store lacks a part of the image.
    pub fn record_again(&self, digest: &Digest) -> Result<()> {
        let fetch_name = self.fetch_lock(digest);
        let fetch = self.lock(&fetch_name, Hold::Exclusive)?;
        if self.whole_record(digest)?.is_none() {
            let _guard = self.lock(&use_lock(digest), Hold::Shared)?;
            let image = ResolvedManifest {
                source: String::new(),
                digest: digest.clone(),
                insecure: false,
                name: None,
                indexes: Vec::new(),
                pin: None,
            };
            let result = self
                .import(&image, &StoreAlone, &())
                .and_then(|record| self.write_image_record(&ImageRecord { source: None, ..record }));
            let pending = files::remove(self.images.as_fd(), &self.pending_name(digest));
            result?;
            pending?;
        }
        fetch.remove(self.locks.as_fd(), &fetch_name).map_err(|e| Error::io("image store: lock", e))
    }

    /// The lock of an import of the image. Each user has their own: none waits for another's registry, beyond what
    /// [`Store::turn`] has them wait for a layer.
    pub(super) fn fetch_lock(&self, digest: &Digest) -> String {
        format!("{}{}", fetch_lock(digest), self.own_mark())
    }

    /// What such an import needs.
    fn pending_name(&self, digest: &Digest) -> String {
        format!("{}{}{PENDING}", digest.file_name(), self.own_mark())
    }

    /// What such an import needed that failed on a full disk: kept for as long as somebody wants the image, whatever others have of it.
    fn partial_name(&self, digest: &Digest) -> String {
        format!("{}{}{PARTIAL}", digest.file_name(), self.own_mark())
    }

    fn import(
        &self,
        image: &ResolvedManifest,
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<ImageRecord> {
        let what = image.name.clone().unwrap_or_else(|| format!("{}@{}", image.source, image.digest));
        let described = self.blob(source, BlobKind::Manifest, &image.digest, self.limits.manifest_bytes)?;
        let Document::Manifest(manifest) = parse_document(&what, &described, None)? else {
            return Err(Error::new(
                ErrorKind::Refused,
                what,
                "the digest is of an index and not of one platform's manifest",
            )
            .next("resolve the image reference again"));
        };
        check_config_type(&what, &manifest)?;
        let config_digest = descriptor_digest(&what, manifest.config())?;
        let configured = self.config_blob(&what, &manifest, &config_digest, source)?;
        let (config, layers) = read_config(&what, &manifest, &configured, &self.platform, &self.limits)?;
        self.admit(&what, &layers)?;
        let diff_ids: Vec<Digest> = layers.iter().map(|l| l.diff_id.clone()).collect();
        let lowest = self.lowest(&layers);
        {
            // Written under the lock that collection takes alone: it sees this record, or we see what it removed.
            let _store = self.lock("store", Hold::Shared)?;
            let merged = lowest.as_ref().map(|lowest| lowest.id.clone());
            let pending = PendingRecord { layers: diff_ids, config_digest: config_digest.clone(), merged };
            let name = self.pending_name(&image.digest);
            files::write(self.images.as_fd(), &name, &print(&pending)?, self.give_to)?;
            // Collection may have removed the blobs of an image that nothing named until now. The source is not asked for them again: all who
            // use the store wait for this lock.
            self.keep_blob(&image.digest, &described)?;
            self.keep_blob(&config_digest, &configured)?;
        }
        self.bound_images(&layers);
        if let Some(lowest) = &lowest {
            // Their files are read again, by who mounts nothing.
            self.flatten(&lowest.layers);
        }
        let (reports, fetched) = self.layers(image, &layers, source, progress)?;
        self.show_layers(image, &layers, &fetched, source, progress)?;
        let merged = match &lowest {
            Some(lowest) => Some(self.merge_lowest(lowest, source, progress)?),
            None => None,
        };
        progress.event(ProgressEvent::Syncing);
        self.sync_layers(&layers, merged.as_ref())?;
        notes(&what, &reports, progress);
        let (names, own) = (Vec::from_iter(name_of(image)), self.user.is_none());
        Ok(ImageRecord {
            version: VERSION,
            digest: image.digest.clone(),
            names: if own { Vec::new() } else { names.clone() },
            own: if own { names } else { Vec::new() },
            config_digest,
            config,
            bytes: reports.iter().map(|r| r.bytes).sum(),
            layers,
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            source: Some(image.source.clone()),
            insecure: image.insecure,
            merged,
            sif_signatures: sif_signatures(image, &manifest, source),
        })
    }

    /// Makes the lowest layers one. Those that were there as images, for others, are fetched anew as directories.
    fn merge_lowest(
        &self,
        lowest: &Lowest,
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<MergedRecord> {
        if !self.has_merged(lowest)? {
            for layer in &lowest.layers {
                if self.form_of(&layer.diff_id.file_name()) == Some(LayerForm::Erofs) {
                    self.replace_layer(layer, source, progress)?;
                }
            }
        }
        self.ensure_merged(lowest, progress)
    }

    /// Fetches manifest and configuration of a known image where they are missing or damaged.
    pub(super) fn blobs_again(&self, record: &ImageRecord, source: &dyn BlobSource) -> Result<()> {
        self.blob(source, BlobKind::Manifest, &record.digest, self.limits.manifest_bytes)?;
        self.blob(source, BlobKind::Blob, &record.config_digest, self.limits.config_bytes)?;
        Ok(())
    }

    fn config_blob(
        &self,
        what: &str,
        manifest: &ImageManifest,
        digest: &Digest,
        source: &dyn BlobSource,
    ) -> Result<Vec<u8>> {
        let bytes = match self.user {
            // They have to have it, whatever the store has.
            Some(_) => {
                let bytes = read_verified(source, BlobKind::Blob, digest, self.limits.config_bytes)?;
                files::write(self.blobs.as_fd(), &digest.file_name(), &bytes, self.give_to)?;
                bytes
            }
            None => self.blob(source, BlobKind::Blob, digest, self.limits.config_bytes)?,
        };
        if bytes.len() as u64 != manifest.config().size() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                what,
                "its configuration has another size than the manifest says",
            )
            .next("push the image again"));
        }
        Ok(bytes)
    }

    /// A small blob, from the store or from the source; verified either way.
    fn blob(&self, source: &dyn BlobSource, kind: BlobKind, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        if let Some(bytes) = self.kept_blob(digest)? {
            return Ok(bytes);
        }
        let bytes = read_verified(source, kind, digest, limit)?;
        files::write(self.blobs.as_fd(), &digest.file_name(), &bytes, self.give_to)?;
        Ok(bytes)
    }

    /// A small blob that is whole in the store.
    fn kept_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let bytes = files::read(self.blobs.as_fd(), &digest.file_name())?;
        Ok(bytes.filter(|bytes| verify("stored blob", bytes, digest).is_ok()))
    }

    /// Has a small blob in the store that was verified, without asking anybody.
    fn keep_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        match self.kept_blob(digest)? {
            Some(_) => Ok(()),
            None => files::write(self.blobs.as_fd(), &digest.file_name(), bytes, self.give_to),
        }
    }

    /// Makes all layers present, several at a time, the largest first; tells which came from the source.
    fn layers(
        &self,
        image: &ResolvedManifest,
        layers: &[LayerInfo],
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<(Vec<LayerReport>, HashSet<Digest>)> {
        let mut distinct = HashSet::new();
        let mut queue: Vec<&LayerInfo> = layers.iter().filter(|l| distinct.insert(&l.diff_id)).collect();
        let total = queue.len();
        let mut reports = Vec::new();
        let mut missing = Vec::new();
        for layer in queue.drain(..) {
            match self.layer_record(&layer.diff_id)? {
                Some(record) => reports.push(record.report),
                None => missing.push(layer),
            }
        }
        missing.sort_by_key(|l| std::cmp::Reverse(l.size));
        progress.event(ProgressEvent::Start {
            layers: total,
            cached: reports.len(),
            bytes: missing.iter().map(|l| l.size).sum(),
        });
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let workers = cores.clamp(2, MAX_PARALLEL).min(missing.len());
        let queue: Mutex<VecDeque<(&LayerInfo, bool)>> =
            Mutex::new(missing.iter().map(|l| (*l, false)).collect());
        let (fetched, short) = (HashSet::new(), HashMap::new());
        let results = Mutex::new(Results { reports, fetched, failed: None, short });
        let one_failed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let work = || self.layer_worker(&queue, (&results, &one_failed), source, progress);
            for _ in 1..workers {
                // Fewer do it as well, be it this thread alone.
                if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        let Results { reports, fetched, failed, short } =
            results.into_inner().unwrap_or_else(PoisonError::into_inner);
        match failed {
            Some(error) => {
                // What came of it need not be brought again to show it.
                let known: Vec<&LayerInfo> =
                    layers.iter().filter(|layer| fetched.contains(&layer.diff_id)).collect();
                self.note_shown(image, &known, source)?;
                Err(self.with_shortfall(error, &missing, &short)?)
            }
            None => Ok((reports, fetched)),
        }
    }

    fn layer_worker(
        &self,
        queue: &Mutex<VecDeque<(&LayerInfo, bool)>>,
        (results, one_failed): (&Mutex<Results>, &AtomicBool),
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) {
        let results = || results.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if results().failed.is_some() {
                return;
            }
            let Some((layer, wait)) = queue().pop_front() else {
                return;
            };
            match self.ensure_layer(layer, source, progress, wait, one_failed) {
                Ok(Some((report, fetched))) => {
                    let mut results = results();
                    results.reports.push(report);
                    results.fetched.extend(fetched.then(|| layer.diff_id.clone()));
                }
                // Another process works on it: do the others first, then wait for it.
                Ok(None) => queue().push_back((layer, true)),
                Err(error) => {
                    let mut results = results();
                    results.short.extend(error.shortfall().map(|short| (layer.diff_id.clone(), short)));
                    results.failed.get_or_insert(error);
                    drop(results);
                    // Those that wait for others need not any more.
                    one_failed.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}

/// What several threads make present.
struct Results {
    reports: Vec<LayerReport>,
    /// Layers that came from the source.
    fetched: HashSet<Digest>,
    failed: Option<Error>,
    /// What did not fit of those that were counted.
    short: HashMap<Digest, Shortfall>,
}

/// The name that is noted of an image: one that its source stands for, else the source. What a job says it is called is its
/// user's to choose, and only where it came from was seen.
fn name_of(image: &ResolvedManifest) -> Option<String> {
    let (name, source) = (image.name.as_ref()?, &image.source);
    let fits = source_of(name).is_some_and(|of| of == *source);
    match (Engine::of(name), Engine::of(source)) {
        (Some((named, _)), Some((from, _))) if named == from => Some(name.clone()),
        _ if fits => Some(name.clone()),
        _ if source.starts_with("docker://") => Some(format!("{source}@{}", image.digest)),
        // A path may lead there by links, or from another directory.
        _ => Some(source.clone()),
    }
}

/// What the SIF file that an image comes from says of its signatures: in a manifest that was made of it, or beside the one that it holds.
fn sif_signatures(
    image: &ResolvedManifest,
    manifest: &ImageManifest,
    source: &dyn BlobSource,
) -> Option<String> {
    if !image.source.starts_with("sif:") {
        return None;
    }
    let said = manifest.annotations().as_ref().and_then(|all| all.get(SIF_SIGNATURES));
    if let Some(said) = said {
        return Some(printable(said, MOST_SAID));
    }
    // Nothing depends on it, and another node does not say it.
    let mut text = Vec::new();
    let said = source.open(BlobKind::SifSignatures, &image.digest, 0).ok()?;
    said.take(4 * MOST_SAID as u64).read_to_end(&mut text).ok()?;
    Some(printable(&String::from_utf8_lossy(&text), MOST_SAID))
}

/// A source for what is in the store already.
struct StoreAlone;

impl BlobSource for StoreAlone {
    fn describe(&self) -> String {
        "the store".to_owned()
    }

    fn open(&self, _: BlobKind, digest: &Digest, _: u64) -> Result<Box<dyn Read + Send>> {
        let reason = "is not whole in the store, and the damaged record said where it came from";
        Err(Error::new(ErrorKind::NotFound, format!("blob {digest}"), reason)
            .next("pull the image again by its name, which writes the record anew"))
    }
}

/// Tells what was left out of the image.
fn notes(what: &str, reports: &[LayerReport], progress: &dyn Progress) {
    let sum = |field: fn(&LayerReport) -> u64| reports.iter().map(field).sum::<u64>();
    for (count, text) in [
        (sum(|r| r.devices_skipped), "device nodes left out (containers have their own /dev)"),
        (
            sum(|r| r.capabilities_stripped),
            "file capabilities removed (they would have no effect in an unprivileged container)",
        ),
        (
            sum(|r| r.overlay_attributes_stripped),
            "overlayfs attributes removed (an image has no reason to carry them)",
        ),
        (sum(|r| r.setid_stripped), "set-user-id and set-group-id bits removed (the store belongs to root)"),
    ] {
        if count > 0 {
            progress.event(ProgressEvent::Note { text: format!("{what}: {count} {text}") });
        }
    }
}

pub(super) fn record_name(digest: &Digest) -> String {
    format!("{}.json", digest.file_name())
}

/// The image of which `name` says what an import needs, and the lock that the import holds.
pub(super) fn pending_of(name: &str) -> Option<(Digest, String)> {
    let name = name.strip_suffix(PENDING)?;
    Some((made_of(name)?, format!("{FETCH}{name}")))
}

/// The image of which `name` says what an import needed that failed on a full disk.
pub(super) fn partial_of(name: &str) -> Option<Digest> {
    made_of(name.strip_suffix(PARTIAL)?)
}

/// The image that stands before a user, if one does.
fn made_of(name: &str) -> Option<Digest> {
    Digest::from_file_name(name.split_once('.').map_or(name, |(digest, _)| digest))
}

pub(super) fn use_lock(digest: &Digest) -> String {
    format!("use-{}", digest.file_name())
}

fn fetch_lock(digest: &Digest) -> String {
    format!("{FETCH}{}", digest.file_name())
}

#[cfg(test)]
mod tests {
    use super::super::merge::merged_name;
    use super::*;
    use crate::digest::Algorithm;
    use std::collections::BTreeSet;

    /// The record of an image that came from a SIF file, which says this of its signatures.
    fn record(source: &str, said: Option<&str>) -> ImageRecord {
        ImageRecord {
            version: VERSION,
            digest: Digest::of(Algorithm::Sha256, b"x"),
            names: vec![source.to_owned()],
            own: Vec::new(),
            config_digest: Digest::of(Algorithm::Sha256, b"config"),
            config: ImageConfig::default(),
            layers: Vec::new(),
            bytes: 0,
            created: 1,
            source: Some(source.to_owned()),
            insecure: false,
            merged: None,
            sif_signatures: said.map(str::to_owned),
        }
    }

    #[test]
    fn what_one_user_had_no_room_for_stays_whatever_becomes_of_anothers_import() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("store")).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let image = ResolvedManifest {
            source: "oci:/x".to_owned(),
            digest: digest.clone(),
            insecure: false,
            name: None,
            indexes: Vec::new(),
            pin: None,
        };
        let merged = Digest::of(Algorithm::Sha256, b"merged");
        let needed = PendingRecord {
            layers: Vec::new(),
            config_digest: Digest::of(Algorithm::Sha256, b"config"),
            merged: Some(merged.clone()),
        };
        let partials = |store: &Store| -> Vec<String> {
            let names = store.names(&store.images).unwrap();
            names.into_iter().filter(|name| name.ends_with(PARTIAL)).collect()
        };
        let mut all = Vec::new();
        for user in [Some(1001), None, Some(1002)] {
            store.user = user;
            let name = store.partial_name(&digest);
            files::write(store.images.as_fd(), &name, &print(&needed).unwrap(), None).unwrap();
            all.push(name);
        }
        // The last user's source has nothing of it.
        store.ensure(&image, &StoreAlone, &()).unwrap_err();
        assert_eq!(partials(&store), all[..2]);
        std::fs::create_dir(store.root.join("layers").join(merged_name(&merged))).unwrap();
        store.collect(&BTreeSet::from([digest])).unwrap();
        assert_eq!(partials(&store), all[..2], "somebody wants it");
        assert_eq!(store.stored_merged().unwrap(), [merged], "and its lowest layers as one");
        store.collect(&BTreeSet::new()).unwrap();
        assert_eq!(partials(&store), Vec::<String>::new());
        assert!(store.stored_merged().unwrap().is_empty());
    }

    #[test]
    fn what_is_known_of_an_image_is_all_of_the_first_that_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        store.record_made(record("sif:/a", Some("by A")), true).unwrap();
        let second = record("sif:/b", Some("by B"));
        let made = store.record_made(second.clone(), true).unwrap();
        assert_eq!((made.source.as_deref(), made.sif_signatures.as_deref()), (Some("sif:/a"), Some("by A")));
        assert_eq!(made.names, ["sif:/a", "sif:/b"]);
        // One that was made anew is as it came now.
        let made = store.record_made(second, false).unwrap();
        assert_eq!((made.source.as_deref(), made.sif_signatures.as_deref()), (Some("sif:/b"), Some("by B")));
    }

    #[test]
    fn what_an_import_needs_is_known_by_its_lock() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let (name, lock) = (digest.file_name(), fetch_lock(&digest));
        for user in ["", ".1001"] {
            let found = pending_of(&format!("{name}{user}.pending"));
            assert_eq!(found, Some((digest.clone(), format!("{lock}{user}"))));
            assert_eq!(partial_of(&format!("{name}{user}.partial")), Some(digest.clone()));
            assert_eq!(partial_of(&format!("{name}{user}.pending")), None);
        }
        for other in [format!("{name}.json"), format!("{name}.partial"), "x.pending".to_owned()] {
            assert_eq!(pending_of(&other), None);
        }
    }
}
