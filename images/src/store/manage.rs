//! Looking at the store, and removing from it what nobody uses.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, fstatvfs, statat};
use serde::{Deserialize, Serialize};

use super::ensure::{partial_of, pending_of, record_name, use_lock};
use super::form::LayerForm;
use super::grant::parse_name;
use super::lock::Hold;
use super::merge::merged_name;
use super::record::{ImageRecord, PendingRecord, parse};
use super::room::RoomState;
use super::signed::{EVIDENCE, VERDICTS, evidence_name, verdicts_name};
use super::work::WorkDir;
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::ImageConfig;
use crate::reference::Reference;
use crate::signature::Verdict;
use crate::source::verify;
use crate::unpack::LayerReport;

/// One image, as `berth image ls` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Names under which it was asked for; none when all of them mean newer images now.
    pub names: Vec<String>,
    /// Bytes of all files in its layers; layers may be shared with other images.
    pub bytes: u64,
    /// Number of layers.
    pub layers: usize,
    /// When the import was complete, Unix seconds.
    pub created: u64,
    /// When it was last prepared, Unix seconds.
    pub last_used: u64,
    /// Whether a container or an import uses it now.
    pub in_use: bool,
}

/// Everything about one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageDetails<I = ImageInfo, D = serde_json::Value> {
    /// As in the list.
    pub info: I,
    /// How the image wants to be run.
    pub config: ImageConfig,
    /// Layers, bottom first.
    pub layers: Vec<LayerDetails>,
    /// So many of the lowest are mounted as one, because the kernel mounts no more at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_layers: Option<usize>,
    /// What is known of its signatures: by which keys, or why by none.
    pub signatures: Vec<Verdict>,
    /// What the SIF file that it came from says of its own signatures; nobody checked them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sif_signatures: Option<String>,
    /// The manifest as the registry has it.
    pub manifest: D,
    /// The image configuration as the registry has it.
    pub raw_config: D,
}

impl<I> ImageDetails<I, String> {
    /// With manifest and configuration read: what its maker wrote may take many times its bytes in memory.
    ///
    /// # Errors
    /// They are no JSON.
    pub fn parsed(self) -> Result<ImageDetails<I>> {
        let json = |text: &str| {
            serde_json::from_str(text)
                .map_err(|e| Error::new(ErrorKind::Corrupt, "manifest or configuration", e.to_string()))
        };
        let (manifest, raw_config) = (json(&self.manifest)?, json(&self.raw_config)?);
        let ImageDetails { info, config, layers, merged_layers, signatures, sif_signatures, .. } = self;
        Ok(ImageDetails {
            info,
            config,
            layers,
            merged_layers,
            signatures,
            sif_signatures,
            manifest,
            raw_config,
        })
    }
}

/// One layer of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerDetails {
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// How it is kept; absent when the layer is damaged.
    pub form: Option<LayerForm>,
    /// Its directory or image.
    pub path: PathBuf,
    /// What was unpacked and what was left out; absent when the layer is damaged.
    pub report: Option<LayerReport>,
}

/// What to prune.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Images not used for this long.
    pub older_than: Option<Duration>,
    /// All images that are not in use.
    pub all: bool,
    /// Images that stay in any case: what running and queued jobs need.
    pub keep: BTreeSet<Digest>,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Images.
    pub images: Vec<Digest>,
    /// Layers that no image needs any more.
    pub layers: usize,
    /// Bytes of the files in them.
    pub bytes: u64,
}

/// Use of disk space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Complete images.
    pub images: usize,
    /// Images that are in use.
    pub images_in_use: usize,
    /// Unpacked layers, each counted once.
    pub layers: usize,
    /// Bytes of the files in them.
    pub bytes: u64,
    /// Bytes of the disk that layers take: more than their files have where these are small.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Bytes of the files in layers that no image in use needs, which pruning all would remove.
    pub reclaimable_bytes: u64,
    /// Bytes that the file system still has for the store.
    pub free_bytes: u64,
    /// How room is kept, and what was last removed for it.
    #[serde(default)]
    pub room: RoomState,
}

/// All spellings under which an image that people call `text` may be listed, what they say first.
fn spellings(text: &str) -> Vec<String> {
    let mut wanted = vec![text.to_owned()];
    let Ok(reference) = text.parse::<Reference>() else { return wanted };
    wanted.push(reference.to_string());
    // A file is listed as what it was found to be, whatever it was called.
    let (path, name, schemes) = match &reference {
        Reference::Path(path) => (path, &None, &["oci", "oci-archive", "docker-archive", "sqsh", "sif"][..]),
        Reference::Oci { path, name } => (path, name, &["oci"][..]),
        Reference::OciArchive { path, name } => (path, name, &["oci-archive", "docker-archive"][..]),
        Reference::DockerArchive { path, name } => (path, name, &["docker-archive", "oci-archive"][..]),
        Reference::Host | Reference::Registry(_) | Reference::Engine { .. } => return wanted,
    };
    if let Ok(path) = path.canonicalize() {
        let name = name.as_ref().map_or(String::new(), |name| format!(":{name}"));
        wanted.extend(schemes.iter().map(|scheme| format!("{scheme}:{}{name}", path.display())));
    }
    wanted
}

/// The image that `text` names, as [`Store::find`] does, among those of a list; nothing where there is none.
///
/// # Errors
/// There are several.
pub fn find_listed<'a>(images: &'a [ImageInfo], text: &str) -> Result<Option<&'a Digest>> {
    let named = images.iter().map(|image| (&image.digest, image.names.as_slice()));
    let digests: Vec<&Digest> = images.iter().map(|image| &image.digest).collect();
    choose_named(text, named, &digests)
}

/// The image that has a spelling of `text` for a name, or a digest that `text` is the beginning of.
pub(super) fn choose_named<'a>(
    text: &str,
    named: impl IntoIterator<Item = (&'a Digest, &'a [String])>,
    digests: &[&'a Digest],
) -> Result<Option<&'a Digest>> {
    let named = Vec::from_iter(named);
    for wanted in spellings(text) {
        if let Some((digest, _)) = named.iter().find(|(_, names)| names.contains(&wanted)) {
            return Ok(Some(digest));
        }
    }
    let hex = text.rsplit_once("sha256:").map_or(text, |(_, hex)| hex);
    let digits = hex.len() >= 4 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let matching: Vec<_> = digests.iter().filter(|d| digits && d.hex().starts_with(hex)).collect();
    match matching[..] {
        [only] => Ok(Some(only)),
        [] => Ok(None),
        _ => Err(Error::new(
            ErrorKind::Reference,
            format!("image {text}"),
            format!("{} images have a digest that starts so", matching.len()),
        )
        .next("write more digits of it")),
    }
}

impl Store {
    /// All complete images, the last used first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>> {
        let mut images = self.records()?.iter().map(|r| self.info(r)).collect::<Result<Vec<_>>>()?;
        images.sort_by(|a, b| b.last_used.cmp(&a.last_used).then_with(|| a.digest.cmp(&b.digest)));
        Ok(images)
    }

    /// The image that `text` names: a reference under which it was asked for, its digest, or the first digits of it.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn find(&self, text: &str) -> Result<Digest> {
        self.find_named(text, true)
    }

    /// As [`Store::find`], but for names that others than those whose store it is gave to images: what is to run by its name.
    ///
    /// # Errors
    /// As for [`Store::find`].
    pub fn find_own(&self, text: &str) -> Result<Digest> {
        self.find_named(text, false)
    }

    fn find_named(&self, text: &str, users: bool) -> Result<Digest> {
        let records = self.records()?;
        // An image whose record is damaged has its digest left.
        let recorded = self.recorded()?;
        let own = records.iter().map(|record| (&record.digest, record.own.as_slice()));
        let others = records.iter().filter(|_| users).map(|record| (&record.digest, record.names.as_slice()));
        let named = own.chain(others);
        let digests: Vec<&Digest> = recorded.iter().collect();
        let found = choose_named(text, named, &digests)?;
        found.cloned().ok_or_else(|| self.unknown(text))
    }

    /// Everything about one image.
    ///
    /// # Errors
    /// The image is not in the store, or its records are damaged.
    pub fn inspect(&self, digest: &Digest) -> Result<ImageDetails> {
        self.details(digest, |record| self.info(record))?.parsed()
    }

    /// As [`Store::inspect`], without reading what the image's maker wrote.
    pub(super) fn details<I>(
        &self,
        digest: &Digest,
        info: impl FnOnce(&ImageRecord) -> Result<I>,
    ) -> Result<ImageDetails<I, String>> {
        let record = self.image_record(digest)?.ok_or_else(|| self.unknown(&digest.to_string()))?;
        let text = |digest: &Digest| -> Result<String> {
            let bytes = files::read(self.blobs.as_fd(), &digest.file_name())?.unwrap_or_default();
            verify("stored blob", &bytes, digest)?;
            String::from_utf8(bytes)
                .map_err(|e| Error::new(ErrorKind::Corrupt, format!("blob {digest}"), e.to_string()))
        };
        let mut layers = Vec::new();
        for layer in &record.layers {
            layers.push(LayerDetails {
                diff_id: layer.diff_id.clone(),
                digest: layer.digest.clone(),
                size: layer.size,
                form: self.form_of(&layer.diff_id.file_name()),
                path: self.layer_path(&layer.diff_id),
                report: self.layer_record(&layer.diff_id)?.map(|l| l.report),
            });
        }
        Ok(ImageDetails {
            info: info(&record)?,
            manifest: text(&record.digest)?,
            raw_config: text(&record.config_digest)?,
            config: record.config,
            merged_layers: record.merged.map(|merged| merged.layers),
            signatures: self.verdicts(digest)?,
            sif_signatures: record.sif_signatures,
            layers,
        })
    }

    /// Removes one image, and the layers that no other image needs.
    ///
    /// # Errors
    /// The image is not in the store, or is in use.
    pub fn remove(&self, digest: &Digest) -> Result<Removed> {
        if !self.recorded()?.contains(digest) {
            return Err(self.unknown(&digest.to_string()));
        }
        if !self.forget(digest)? {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("image {digest}"),
                "is used by a container, or is being fetched",
            )
            .next("wait until the jobs that use it end, or cancel them"));
        }
        let mut removed = self.collect(&BTreeSet::new())?;
        removed.images.push(digest.clone());
        Ok(removed)
    }

    /// Removes those of these images that nobody has and nothing uses, and the layers that no image needs then; what is there
    /// of an image in `wanted` stays, although its import failed on a full disk.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn drop_released(&self, images: &[Digest], wanted: &BTreeSet<Digest>) -> Result<Removed> {
        let released = self.released()?;
        let mut gone = Vec::new();
        for digest in images.iter().filter(|digest| released.contains(digest)) {
            if !wanted.contains(digest) && self.forget(digest)? {
                gone.push(digest.clone());
            }
        }
        if gone.is_empty() {
            return Ok(Removed::default());
        }
        let mut removed = self.collect(wanted)?;
        removed.images = gone;
        Ok(removed)
    }

    /// Removes images by age, or all that are not in use, and everything that no image needs. Without a choice,
    /// only images that have lost their names go.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn prune(&self, options: &PruneOptions) -> Result<Removed> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut images = Vec::new();
        for info in self.list()? {
            let old =
                options.older_than.is_some_and(|age| now.saturating_sub(info.last_used) >= age.as_secs());
            let nameless = info.names.is_empty() && options.older_than.is_none();
            if (options.all || old || nameless)
                && !options.keep.contains(&info.digest)
                && self.forget(&info.digest)?
            {
                images.push(info.digest);
            }
        }
        let mut removed = self.collect(&options.keep)?;
        removed.images = images;
        Ok(removed)
    }

    /// How much space the store takes.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn df(&self) -> Result<DiskUsage> {
        let mut usage = DiskUsage::default();
        let (mut needed, mut merged) = (HashSet::new(), HashSet::new());
        for record in self.records()? {
            usage.images += 1;
            if self.in_use(&record.digest)? {
                usage.images_in_use += 1;
                merged.extend(record.merged.map(|merged| merged.id));
                needed.extend(record.layers.into_iter().map(|l| l.diff_id));
            }
        }
        for diff_id in self.stored_layers()? {
            let bytes = self.content_size(&diff_id)?;
            usage.layers += 1;
            usage.bytes += bytes;
            if !needed.contains(&diff_id) {
                usage.reclaimable_bytes += bytes;
            }
        }
        for id in self.stored_merged()? {
            let bytes = self.merged_content(&id)?;
            usage.bytes += bytes;
            if !merged.contains(&id) {
                usage.reclaimable_bytes += bytes;
            }
        }
        usage.disk_bytes = self.layers_size()?.bytes;
        let stat = fstatvfs(&self.root_fd).map_err(|e| Error::io("image store", e))?;
        usage.free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        usage.room = self.room_state()?;
        Ok(usage)
    }

    /// Digests of images that have a record, be it damaged or not.
    pub(super) fn recorded(&self) -> Result<Vec<Digest>> {
        let digest = |name: &String| name.strip_suffix(".json").and_then(Digest::from_file_name);
        Ok(self.names(&self.images)?.iter().filter_map(digest).collect())
    }

    /// All records that can be read. Damaged ones are skipped: their images are fetched again when asked for.
    pub(super) fn records(&self) -> Result<Vec<ImageRecord>> {
        let mut records = Vec::new();
        for digest in self.recorded()? {
            records.extend(self.whole_record(&digest)?);
        }
        records.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(records)
    }

    /// Whether something uses an image whose record is damaged, so that nobody knows what it needs.
    pub(super) fn unknown_in_use(&self) -> Result<bool> {
        for digest in self.recorded()? {
            if self.whole_record(&digest)?.is_none() && self.in_use(&digest)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn info(&self, record: &ImageRecord) -> Result<ImageInfo> {
        Ok(ImageInfo {
            digest: record.digest.clone(),
            names: record.all_names(),
            bytes: record.bytes,
            layers: record.layers.len(),
            created: record.created,
            last_used: self.last_used(record) / 1_000_000_000,
            in_use: self.in_use(&record.digest)?,
        })
    }

    /// When it was last prepared, Unix nanoseconds.
    pub(super) fn last_used(&self, record: &ImageRecord) -> u64 {
        let nanos = |seconds: u64, more: u64| seconds.saturating_mul(1_000_000_000).saturating_add(more);
        statat(&self.images, record_name(&record.digest), AtFlags::SYMLINK_NOFOLLOW).map_or_else(
            |_| nanos(record.created, 0),
            |s| {
                let more = u32::try_from(s.st_mtime_nsec).unwrap_or_default();
                nanos(u64::try_from(s.st_mtime).unwrap_or_default(), more.into())
            },
        )
    }

    pub(super) fn in_use(&self, digest: &Digest) -> Result<bool> {
        // Shared locks of users exclude an exclusive one; ours lasts for a moment only.
        Ok(self.try_lock(&use_lock(digest), Hold::Exclusive)?.is_none())
    }

    /// Removes the record of an image unless it is in use.
    pub(super) fn forget(&self, digest: &Digest) -> Result<bool> {
        let name = use_lock(digest);
        let Some(lock) = self.try_lock(&name, Hold::Exclusive)? else {
            return Ok(false);
        };
        let _store = self.lock("store", Hold::Exclusive)?;
        self.remove_grants(digest)?;
        files::remove(self.images.as_fd(), &verdicts_name(digest))?;
        files::remove(self.images.as_fd(), &evidence_name(digest))?;
        files::remove(self.images.as_fd(), &record_name(digest))?;
        lock.remove(self.locks.as_fd(), &name).map_err(|e| Error::io("image store: lock", e))?;
        Ok(true)
    }

    /// Removes layers and blobs that no image and no import needs, and what killed processes left. What is there of an image
    /// in `wanted` stays, although its import failed on a full disk.
    pub(super) fn collect(&self, wanted: &BTreeSet<Digest>) -> Result<Removed> {
        self.sweep()?;
        for directory in [&self.root_fd, &self.blobs, &self.images] {
            files::sweep(directory.as_fd())?;
        }
        let mut removed = Removed::default();
        let bin = WorkDir::new(self)?;
        {
            let _store = self.lock("store", Hold::Exclusive)?;
            let mut layers = HashSet::new();
            let mut merged = HashSet::new();
            let mut blobs = HashSet::new();
            // Of an image that is in use and whose record is damaged, nobody knows what it needs.
            let mut known = true;
            let names = self.names(&self.images)?;
            for name in &names {
                if let Some((digest, lock)) = pending_of(name) {
                    if let Some(dead) = self.try_lock(&lock, Hold::Exclusive)? {
                        files::remove(self.images.as_fd(), name)?;
                        drop(dead);
                        continue;
                    }
                    let Some(bytes) = files::read(self.images.as_fd(), name)? else {
                        continue;
                    };
                    let pending: PendingRecord = parse(name, &bytes)?;
                    layers.extend(pending.layers);
                    merged.extend(pending.merged);
                    blobs.extend([digest, pending.config_digest]);
                } else if let Some(digest) = partial_of(name) {
                    let bytes = files::read(self.images.as_fd(), name)?.filter(|_| wanted.contains(&digest));
                    let Some(partial) = bytes.and_then(|bytes| parse::<PendingRecord>(name, &bytes).ok())
                    else {
                        files::remove(self.images.as_fd(), name)?;
                        continue;
                    };
                    layers.extend(partial.layers);
                    merged.extend(partial.merged);
                    blobs.extend([digest, partial.config_digest]);
                } else if let Some(digest) = name.strip_suffix(".json").and_then(Digest::from_file_name) {
                    match self.whole_record(&digest)? {
                        Some(record) => {
                            layers.extend(record.layers.into_iter().map(|l| l.diff_id));
                            merged.extend(record.merged.map(|merged| merged.id));
                            blobs.extend([digest, record.config_digest]);
                        }
                        None if self.in_use(&digest)? => known = false,
                        // Nobody can ask for it by a name.
                        None => files::remove(self.images.as_fd(), name)?,
                    }
                } else if let Some(digest) = name
                    .strip_suffix(VERDICTS)
                    .or_else(|| name.strip_suffix(EVIDENCE))
                    .and_then(Digest::from_file_name)
                {
                    // Of an image that did not come after all.
                    let there = names.contains(&record_name(&digest));
                    let of = |name: &String| pending_of(name).map(|(of, _)| of).or_else(|| partial_of(name));
                    let comes = names.iter().any(|name| of(name).as_ref() == Some(&digest));
                    if !wanted.contains(&digest) && !comes && !there {
                        files::remove(self.images.as_fd(), name)?;
                    }
                } else if name.ends_with(".grants")
                    || parse_name(name).is_some_and(|(digest, _)| !names.contains(&record_name(&digest)))
                {
                    // Of an image that is gone, or as an earlier version wrote them: users show it anew.
                    files::remove(self.images.as_fd(), name)?;
                }
            }
            for diff_id in self.stored_layers()? {
                if known && !layers.contains(&diff_id) {
                    removed.layers += 1;
                    removed.bytes += self.content_size(&diff_id)?;
                    bin.swallow_unused(&diff_id.file_name())?;
                }
            }
            for id in self.stored_merged()? {
                if known && !merged.contains(&id) {
                    removed.bytes += self.merged_content(&id)?;
                    bin.swallow_unused(&merged_name(&id))?;
                }
            }
            for name in self.names(&self.blobs)? {
                if known && !Digest::from_file_name(&name).is_some_and(|digest| blobs.contains(&digest)) {
                    files::remove(self.blobs.as_fd(), &name)?;
                }
            }
            self.remove_idle_locks()?;
        }
        // Removing the files takes long and hinders nobody.
        drop(bin);
        self.remove_replaced()?;
        Ok(removed)
    }

    /// Removes lock files that nobody holds and no image needs.
    fn remove_idle_locks(&self) -> Result<()> {
        for name in self.names(&self.locks)? {
            let needed = match name.strip_prefix("use-").and_then(Digest::from_file_name) {
                Some(digest) => Self::has_file(self.images.as_fd(), &record_name(&digest)),
                None => name == "store",
            };
            if !needed && let Some(lock) = self.try_lock(&name, Hold::Exclusive)? {
                lock.remove(self.locks.as_fd(), &name).map_err(|e| Error::io("image store: lock", e))?;
            }
        }
        Ok(())
    }

    pub(super) fn stored_layers(&self) -> Result<Vec<Digest>> {
        Ok(self.names(&self.layers)?.iter().filter_map(|name| Digest::from_file_name(name)).collect())
    }

    /// Names in a directory of the store, sorted; temporary files are left out.
    pub(super) fn names(&self, directory: impl AsFd) -> Result<Vec<String>> {
        let io = |e| Error::io("image store", e);
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(io)? {
            let entry = entry.map_err(io)?;
            if let Ok(name) = entry.file_name().to_str()
                && !name.starts_with('.')
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}
