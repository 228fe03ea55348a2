//! Looking for damage in the store, and fetching again what is damaged.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::ensure::{record_name, use_lock};
use super::form::LayerForm;
use super::hashing::of_content;
use super::layer::{LISTING, SKELETON};
use super::lock::Hold;
use super::merge::merged_name;
use super::record::{ImageRecord, LayerRecord};
use super::turn::place_lock;
use super::{Store, files};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result, recover};
use crate::progress::{Progress, ProgressEvent};
use crate::reference::Reference;
use crate::skeleton;
use crate::source::{BlobSource, ResolvedManifest, verify};
use crate::unpack::listing::{self, Compared};

/// Result of looking for damage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Images looked at.
    pub images: usize,
    /// Layers looked at.
    pub layers: usize,
    /// Layers of whose files not all contents could be compared, because more was replaced in their archive than was kept, or the
    /// image forbids its owner to get at them; or they were made one by an earlier version.
    pub without_content: Vec<Digest>,
    /// What is damaged.
    pub damaged: Vec<Damage>,
}

/// What can be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thing {
    /// The record of an image.
    Record,
    /// A manifest or a configuration.
    Blob,
    /// An unpacked layer.
    Layer,
}

/// Something damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// What it is.
    pub thing: Thing,
    /// Which one: digest of the image, of the blob, or of the uncompressed layer.
    pub digest: Digest,
    /// Images that need it.
    pub images: Vec<Digest>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file of a layer, where it is one file's; bytes that are no text are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// In words.
    pub what: String,
}

impl Problem {
    fn of(what: impl Into<String>) -> Self {
        Self { path: None, what: what.into() }
    }

    /// Of the file `path` in a layer.
    fn file(path: &[u8], what: String) -> Self {
        let path = path.strip_prefix(b".").unwrap_or(path);
        let path = if path.is_empty() { b"/" } else { path };
        Self { path: Some(crate::error::printable(&String::from_utf8_lossy(path), 4096)), what }
    }
}

impl VerifyReport {
    /// What is damaged of an image.
    pub fn of<'a>(&'a self, image: &'a Digest) -> impl Iterator<Item = &'a Damage> {
        self.damaged.iter().filter(move |damage| damage.images.contains(image))
    }

    /// Every problem, in words.
    pub fn problems(&self) -> Vec<String> {
        let mut all = Vec::new();
        for damage in &self.damaged {
            for Problem { path, what } in &damage.problems {
                let thing = match damage.thing {
                    Thing::Record => "record of image",
                    Thing::Blob => "blob",
                    Thing::Layer => "layer",
                };
                let path = path.iter().map(|path| format!("{path} ")).collect::<String>();
                all.push(format!("{thing} {}: {path}{what}", damage.digest));
            }
        }
        all
    }
}

impl Store {
    /// Looks for damage of the images named, or of all: blobs that do not have their digest; files of layers that are
    /// missing, were added or changed; layers of which the archive that they came in cannot be made again.
    ///
    /// # Errors
    /// An image is not in the store, or the store cannot be read.
    pub fn verify(&self, only: &[Digest]) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut damage = Damages::default();
        let (mut layers, mut blobs, mut merged_seen) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let recorded = self.recorded()?;
        for digest in only {
            if !recorded.contains(digest) {
                return Err(self.unknown(&digest.to_string()));
            }
        }
        for digest in recorded {
            if !only.is_empty() && !only.contains(&digest) {
                continue;
            }
            // What is looked at is not removed meanwhile; what was removed before is not looked at.
            let _guard = self.lock(&use_lock(&digest), Hold::Shared)?;
            let record = match self.look_at_record(&digest)? {
                Looked::Whole(record) => record,
                Looked::Gone => continue,
                Looked::Damaged => {
                    damage.add(
                        Thing::Record,
                        &digest,
                        &digest,
                        [Problem::of("is damaged, so that the image is not known")],
                    );
                    continue;
                }
            };
            report.images += 1;
            for blob in [&record.digest, &record.config_digest] {
                if blobs.insert(blob.clone()) {
                    damage.found(Thing::Blob, blob, self.look_at_blob(blob)?);
                }
                damage.needs(blob, &digest);
            }
            for layer in record.layers {
                if !layers.contains_key(&layer.diff_id) {
                    let (problems, complete) = self.look_at_layer(&layer.diff_id)?;
                    damage.found(Thing::Layer, &layer.diff_id, problems);
                    layers.insert(layer.diff_id.clone(), complete);
                }
                damage.needs(&layer.diff_id, &digest);
            }
            if let Some(merged) = record.merged {
                if !merged_seen.contains_key(&merged.id) {
                    let (problems, complete) = self.look_at_merged(&merged.id)?;
                    damage.found(Thing::Layer, &merged.id, problems);
                    merged_seen.insert(merged.id.clone(), complete);
                }
                damage.needs(&merged.id, &digest);
            }
        }
        report.layers = layers.len();
        let all = layers.into_iter().chain(merged_seen);
        report.without_content = all.filter(|(_, whole)| !whole).map(|(layer, _)| layer).collect();
        report.damaged = damage.0;
        Ok(report)
    }

    /// Where an image of the store came from, to be fetched again.
    ///
    /// # Errors
    /// The image is not in the store, or nobody noted it.
    pub fn origin(&self, digest: &Digest) -> Result<ResolvedManifest> {
        let record = self.image_record(digest)?.ok_or_else(|| self.unknown(&digest.to_string()))?;
        let (names, insecure) = (record.all_names(), record.insecure);
        let source = record.source.or_else(|| names.first().and_then(|name| source_of(name)));
        let source = source.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("image {digest}"), "nobody noted where it came from")
                .next("remove it with `berth image rm`, and pull it again by its name")
        })?;
        Ok(ResolvedManifest {
            source,
            digest: digest.clone(),
            insecure,
            name: None,
            indexes: Vec::new(),
            pin: None,
        })
    }

    /// Fetches again what is damaged of an image: blobs where they are, and these layers. Containers that run on a damaged
    /// layer keep it until they end; what starts from now on has the new one.
    ///
    /// # Errors
    /// As for [`Store::ensure`]; what was there stays then.
    pub fn repair(
        &self,
        image: &ResolvedManifest,
        layers: &[Digest],
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<()> {
        {
            let fetch_name = self.fetch_lock(&image.digest);
            let fetch = self.lock(&fetch_name, Hold::Exclusive)?;
            let _guard = self.lock(&use_lock(&image.digest), Hold::Shared)?;
            self.sweep()?;
            let record =
                self.image_record(&image.digest)?.ok_or_else(|| self.unknown(&image.digest.to_string()))?;
            self.blobs_again(&record, source)?;
            let mut seen = HashSet::new();
            let again: Vec<_> = record
                .layers
                .iter()
                .filter(|l| layers.contains(&l.diff_id) && seen.insert(&l.diff_id))
                .cloned()
                .collect();
            self.bound_images(&record.layers);
            let bytes = again.iter().map(|l| l.size).sum();
            progress.event(ProgressEvent::Start { layers: again.len(), cached: 0, bytes });
            let lowest = self.lowest(&record.layers);
            if let Some(lowest) = &lowest {
                self.flatten(&lowest.layers);
            }
            for layer in &again {
                self.replace_layer(layer, source, progress)?;
            }
            let merged = record.merged.as_ref().filter(|merged| layers.contains(&merged.id));
            if let (Some(_), Some(lowest)) = (merged, &lowest) {
                self.replace_merged(lowest)?;
            }
            progress.event(ProgressEvent::Syncing);
            self.sync_layers(&again, merged)?;
            fetch.remove(self.locks.as_fd(), &fetch_name).map_err(|e| Error::io("image store: lock", e))?;
        }
        self.remove_replaced()
    }

    /// The record of an image that was listed, for the holder of its lock.
    fn look_at_record(&self, digest: &Digest) -> Result<Looked> {
        Ok(match self.whole_record(digest)? {
            Some(record) => Looked::Whole(Box::new(record)),
            None if Self::has_file(self.images.as_fd(), &record_name(digest)) => Looked::Damaged,
            None => Looked::Gone,
        })
    }

    fn look_at_blob(&self, digest: &Digest) -> Result<Vec<Problem>> {
        Ok(match files::read(self.blobs.as_fd(), &digest.file_name())? {
            None => vec![Problem::of("is missing")],
            Some(bytes) if verify("blob", &bytes, digest).is_err() => {
                vec![Problem::of("does not have its digest")]
            }
            Some(_) => Vec::new(),
        })
    }

    /// Problems of layers that are one, and whether all contents could be compared: they are copies of its layers', and what
    /// containers run on.
    fn look_at_merged(&self, id: &Digest) -> Result<(Vec<Problem>, bool)> {
        let name = merged_name(id);
        let _lock = self.lock(&format!("layer-{name}"), Hold::Shared)?;
        let Some(record) = self.record_at(&name, id)? else {
            return Ok((vec![Problem::of("is missing or incomplete")], true));
        };
        Ok(self.compare_at(&name, &record).unwrap_or_else(|e| (vec![Problem::of(e.to_string())], true)))
    }

    fn compare_at(&self, name: &str, record: &LayerRecord) -> Result<(Vec<Problem>, bool)> {
        if let Some(written) = &record.image {
            let image = self.file_at(name, LayerForm::Erofs.name())?;
            let same = written.is_of(&image).map_err(|e| Error::io(format!("image store: {name}"), e))?;
            let changed = (!same).then(|| Problem::of("its image was changed"));
            return Ok((changed.into_iter().collect(), true));
        }
        let what = format!("image store: {name}");
        let tree = self.tree_at(name)?;
        let found = listing::compare(&tree, self.file_at(name, LISTING)?, of_content);
        let Compared { changes, summed } = found.map_err(|e| recover(&what, e))?;
        Ok((changes.into_iter().map(|c| Problem::file(&c.path, c.what)).collect(), summed))
    }

    /// Problems of a layer, and whether contents could be compared.
    fn look_at_layer(&self, diff_id: &Digest) -> Result<(Vec<Problem>, bool)> {
        // It is not exchanged meanwhile.
        let _lock = self.lock(&place_lock(diff_id), Hold::Shared)?;
        let Some(record) = self.layer_record(diff_id)? else {
            return Ok((vec![Problem::of("is missing or incomplete")], true));
        };
        let summed = record.image.is_some() || self.form_of(&diff_id.file_name()) != Some(LayerForm::Erofs);
        if !record.listed || !summed {
            let what = "was unpacked by an earlier version, which did not note what is in it";
            return Ok((vec![Problem::of(what)], true));
        }
        // Whatever cannot be read is damage, too.
        Ok(self.compare_layer(&record).unwrap_or_else(|e| (vec![Problem::of(e.to_string())], true)))
    }

    fn compare_layer(&self, record: &LayerRecord) -> Result<(Vec<Problem>, bool)> {
        let diff_id = &record.diff_id;
        let mut beside = Vec::new();
        if let Some(sums) = &record.archive {
            let found = sums.problems(self.open_layer(&diff_id.file_name())?);
            beside.extend(found.into_iter().map(Problem::of));
        }
        if let Some(written) = &record.image {
            let mut problems = match self.image_changed(diff_id, written)? {
                true => vec![Problem::of("its image was changed")],
                false => Vec::new(),
            };
            let changed = !problems.is_empty();
            if beside.is_empty() && record.rebuildable {
                problems.extend(self.look_into_image(record, changed));
            }
            problems.append(&mut beside);
            return Ok((problems, true));
        }
        let tree = self.layer_tree(diff_id)?;
        let what = format!("image store: layer {}", diff_id.file_name());
        let found = listing::compare(&tree, self.layer_file(diff_id, LISTING)?, of_content);
        let changes = found.map_err(|e| recover(&what, e))?.changes;
        let mut problems: Vec<_> = changes.into_iter().map(|c| Problem::file(&c.path, c.what)).collect();
        let mut complete = false;
        if !beside.is_empty() {
            // The archive that would be made of it says nothing of the files.
            problems.append(&mut beside);
            complete = true;
        } else if record.rebuildable {
            let known: HashSet<_> = problems.iter().map(|p| p.path.clone()).collect();
            let (wrong, all, found) = self.contents(record, &tree)?;
            complete = all;
            problems.extend(wrong.into_iter().filter(|problem| !known.contains(&problem.path)));
            if problems.is_empty() && all && found != *diff_id {
                problems.push(Problem::of(format!("its archive now has digest {found}")));
            }
        }
        Ok((problems, complete))
    }

    /// Problems of the files in a layer's image, where that was changed, and of what its archive is made again of, where an earlier version
    /// noted no sums of it. Files are only to be seen where it can be mounted, and as far as it can be read.
    fn look_into_image(&self, record: &LayerRecord, changed: bool) -> Vec<Problem> {
        let (diff_id, unknown) = (&record.diff_id, record.archive.is_none());
        let words = |e: Error| match changed {
            true => vec![Problem::of(format!("its files cannot be looked at: {e}"))],
            false => vec![Problem::of(e.to_string())],
        };
        let tree = (self.mounts() && (changed || unknown)).then(|| self.layer_tree(diff_id));
        match tree {
            Some(Ok(tree)) => match self.contents(record, &tree) {
                Ok((wrong, true, found)) if wrong.is_empty() && !changed && found != *diff_id => {
                    vec![Problem::of(format!("its archive now has digest {found}"))]
                }
                Ok((wrong, ..)) => wrong,
                Err(e) => words(e),
            },
            Some(Err(e)) if changed => words(e),
            // The skeleton has a sum of its own within.
            _ if unknown => {
                let read =
                    |file: File| skeleton::length(file).map_err(|e| recover(SKELETON, e).within(SKELETON));
                self.layer_file(diff_id, SKELETON).and_then(read).map_or_else(words, |_| Vec::new())
            }
            _ => Vec::new(),
        }
    }

    /// Files of a layer whose content is not what its archive had; whether all could be read; the digest of the archive as it is
    /// now.
    fn contents(&self, record: &LayerRecord, tree: &OwnedFd) -> Result<(Vec<Problem>, bool, Digest)> {
        let what = format!("image store: layer {}", record.diff_id.file_name());
        let mut archive = self.rebuilt(&record.diff_id, tree, true)?;
        let found = digest_of(&mut archive, &record.diff_id).map_err(|e| recover(&what, e))?;
        let (wrong, all) = archive.into_wrong();
        let wrong = wrong.into_iter().map(|w| Problem::file(&[b"./", &w.path[..]].concat(), w.what));
        Ok((wrong.collect(), all, found))
    }
}

fn digest_of(archive: &mut impl Read, like: &Digest) -> std::io::Result<Digest> {
    let mut hasher = Hasher::new(like.algorithm());
    let mut buffer = vec![0; 256 << 10];
    loop {
        match archive.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The source that a name of an image stands for.
pub(super) fn source_of(name: &str) -> Option<String> {
    if name.starts_with("sqsh:") || name.starts_with("sif:") {
        return Some(name.to_owned());
    }
    match name.parse().ok()? {
        Reference::Registry(registry) => Some(registry.source()),
        Reference::Oci { path, .. } => Some(format!("oci:{}", path.display())),
        Reference::OciArchive { path, .. } => Some(format!("oci-archive:{}", path.display())),
        Reference::DockerArchive { path, .. } => Some(format!("docker-archive:{}", path.display())),
        // An image of an engine may have another name by now: its record has its id.
        Reference::Engine { .. } | Reference::Path(_) | Reference::Host => None,
    }
}

/// What there is of a record.
#[derive(Debug, PartialEq)]
enum Looked {
    Whole(Box<ImageRecord>),
    Damaged,
    /// The image was removed after the images were listed.
    Gone,
}

/// Damage, each thing once.
#[derive(Default)]
struct Damages(Vec<Damage>);

impl Damages {
    fn found(&mut self, thing: Thing, digest: &Digest, problems: Vec<Problem>) {
        if !problems.is_empty() {
            self.0.push(Damage { thing, digest: digest.clone(), images: Vec::new(), problems });
        }
    }

    /// Notes that an image needs what may be damaged.
    fn needs(&mut self, digest: &Digest, image: &Digest) {
        for damage in self.0.iter_mut().filter(|d| d.digest == *digest && !d.images.contains(image)) {
            damage.images.push(image.clone());
        }
    }

    fn add<const N: usize>(&mut self, thing: Thing, digest: &Digest, image: &Digest, problems: [Problem; N]) {
        self.found(thing, digest, problems.into());
        self.needs(digest, image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn an_image_that_was_removed_after_the_listing_is_not_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"an image");
        assert_eq!(store.look_at_record(&digest).unwrap(), Looked::Gone);
        for torn in ["", "{\"version\":1,"] {
            std::fs::write(store.root().join("images").join(record_name(&digest)), torn).unwrap();
            assert_eq!(store.look_at_record(&digest).unwrap(), Looked::Damaged);
        }
    }
}
