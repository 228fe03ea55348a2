//! Giving an image of the store to another node of the cluster: manifest and configuration as they were fetched, and the content
//! of its layers, made again byte for byte. What compressed them is not kept: for clients that know nothing of that there is the
//! same image as it would be with layers that nobody compressed, under a manifest and a digest of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use super::Store;
use super::bundle::{Bundle, MEDIA_TYPE};
use super::ensure::UseGuard;
use super::grant::parse_name;
use super::layer::SKELETON;
use super::record::ImageRecord;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result, recover};
use crate::manifest::{LayerInfo, media_type};
use crate::source::BlobKind;
use crate::{outer, skeleton};

/// The type of what is no manifest.
const BYTES: &str = "application/octet-stream";

/// An image that may be given; it is not removed meanwhile.
pub struct Offer<'a> {
    store: &'a Store,
    record: ImageRecord,
    _guard: UseGuard,
}

/// A part of an image.
pub struct Part<'a> {
    store: &'a Store,
    form: Form,
    length: u64,
    media_type: &'static str,
}

enum Form {
    Whole(Vec<u8>),
    Layer(LayerInfo),
    Image(Bundle),
}

impl Store {
    /// All images that are whole, with who has shown here that they may have them. Names of files alone are looked at.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn all_held(&self) -> Result<BTreeMap<Digest, BTreeSet<u32>>> {
        let names = self.names(&self.images)?;
        let whole = names.iter().filter_map(|name| Digest::from_file_name(name.strip_suffix(".json")?));
        let mut all: BTreeMap<Digest, BTreeSet<u32>> =
            whole.map(|digest| (digest, BTreeSet::new())).collect();
        for (digest, uid) in names.iter().filter_map(|name| parse_name(name)) {
            if let Some(users) = all.get_mut(&digest) {
                users.insert(uid);
            }
        }
        Ok(all)
    }

    /// The image, for a user who has shown here that `source` gives it to them; without one, on a store that is its owner's
    /// alone, for its owner.
    ///
    /// # Errors
    /// It is not in the store, or not theirs.
    pub fn offer(&self, digest: &Digest, source: &str, user: Option<u32>) -> Result<Offer<'_>> {
        let (record, guard) = self.held(digest)?;
        let theirs = match user {
            Some(uid) if self.user_of(uid)?.is_some() => {
                self.grant_of(digest, uid)?.is_some_and(|grant| grant.sources.iter().any(|s| s == source))
            }
            // Root, who asked for it here, too.
            Some(_) => !record.own.is_empty() && record.source.as_deref() == Some(source),
            None => true,
        };
        // Whether somebody else has it is nobody's business.
        if theirs {
            Ok(Offer { store: self, record, _guard: guard })
        } else {
            Err(self.unknown(&digest.to_string()))
        }
    }
}

impl Offer<'_> {
    /// The manifest, as it was fetched.
    ///
    /// # Errors
    /// It is damaged.
    pub fn manifest(&self) -> Result<Part<'_>> {
        let bytes = self.store.stored_blob(&self.record.digest)?;
        let kind = media_type(&bytes);
        Ok(self.whole(bytes, kind))
    }

    /// The manifest of the same image with uncompressed layers, which are all given here, and its digest. Configuration and content are
    /// those of the image; annotations are left out.
    ///
    /// # Errors
    /// The image is damaged, or a layer's archive cannot be made again.
    pub fn plain_manifest(&self) -> Result<(Digest, Part<'_>)> {
        let config = self.store.stored_blob(&self.record.config_digest)?.len();
        let layers = self.record.layers.iter().map(|layer| {
            let length = self.length_of(layer)?;
            Ok::<_, Error>((outer::LAYER, &layer.diff_id, length))
        });
        let layers: Vec<(&str, &Digest, u64)> = layers.collect::<Result<_>>()?;
        let bytes = outer::manifest_of((&self.record.config_digest, config), &layers);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        Ok((digest, self.whole(bytes, outer::MANIFEST)))
    }

    /// The configuration, or the content of the layer with this DiffID; nothing where the image has no such part.
    ///
    /// # Errors
    /// It is damaged, or a layer's archive cannot be made again.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Part<'_>>> {
        if self.record.config_digest == *digest {
            return Ok(Some(self.whole(self.store.stored_blob(digest)?, BYTES)));
        }
        let Some(layer) = self.record.layers.iter().find(|layer| layer.diff_id == *digest) else {
            return Ok(None);
        };
        let length = self.length_of(layer)?;
        Ok(Some(Part { store: self.store, form: Form::Layer(layer.clone()), length, media_type: BYTES }))
    }

    /// What travels of the read-only image of one of the layers, by its own digest; nothing where the image has no such part. It is for
    /// nodes that know by others that it is what the layer's archive makes.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn form(&self, digest: &Digest) -> Result<Option<Part<'_>>> {
        let mut seen = BTreeSet::new();
        for layer in self.record.layers.iter().filter(|layer| seen.insert(&layer.diff_id)) {
            let Some(record) = self.store.layer_record(&layer.diff_id)? else { continue };
            let Some(form) = record.form.filter(|form| form.digest == *digest) else { continue };
            let directory = self.store.open_layer(&layer.diff_id.file_name())?;
            let bundle = Bundle::open(&directory, &layer.diff_id, &record.report, &form.writer)?;
            let (length, store) = (bundle.length(), self.store);
            return Ok(Some(Part { store, form: Form::Image(bundle), length, media_type: MEDIA_TYPE }));
        }
        Ok(None)
    }

    /// What is kept of signatures of this manifest or index of the image's, with its own digest; nothing where there is none.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn signatures(&self, subject: &Digest) -> Result<Option<(Digest, Part<'_>)>> {
        let Some(bytes) = self.kept(BlobKind::Signatures, subject)? else { return Ok(None) };
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        Ok(Some((digest, self.whole(bytes, BYTES))))
    }

    /// An index that lists the image, where it was seen when its signature was looked for.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn index(&self, digest: &Digest) -> Result<Option<Part<'_>>> {
        let index = self.kept(BlobKind::Manifest, digest)?;
        Ok(index.map(|bytes| {
            let kind = media_type(&bytes);
            self.whole(bytes, kind)
        }))
    }

    fn kept(&self, kind: BlobKind, digest: &Digest) -> Result<Option<Vec<u8>>> {
        Ok(self.store.evidence(&self.record.digest)?.and_then(|kept| kept.get(kind, digest)))
    }

    /// The length of a layer's archive, where it can be made again.
    fn length_of(&self, layer: &LayerInfo) -> Result<u64> {
        self.store.is_rebuildable(layer)?;
        let skeleton = self.store.layer_file(&layer.diff_id, SKELETON)?;
        skeleton::length(skeleton).map_err(|e| recover(&format!("layer {}", layer.diff_id), e))
    }

    fn whole(&self, bytes: Vec<u8>, media_type: &'static str) -> Part<'_> {
        Part { store: self.store, length: bytes.len() as u64, form: Form::Whole(bytes), media_type }
    }
}

impl Part<'_> {
    /// Its bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Its media type.
    pub fn media_type(&self) -> &'static str {
        self.media_type
    }

    /// Writes the bytes from one offset to before another.
    ///
    /// # Errors
    /// It cannot be written, or a file of the layer is not as it was: what was written then is to be used for nothing.
    pub fn copy(&self, (from, end): (u64, u64), out: &mut dyn Write) -> Result<()> {
        let failed = |e: io::Error| Error::io("giving an image to another node", e);
        match &self.form {
            Form::Whole(bytes) => {
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                out.write_all(bytes.get(at(from)..at(end)).unwrap_or_default()).map_err(failed)
            }
            Form::Image(bundle) => bundle.copy((from, end), out).map_err(failed),
            Form::Layer(layer) => {
                let what = format!("layer {}", layer.diff_id);
                let tree = self.store.layer_tree(&layer.diff_id)?;
                let made = |e| recover(&what, e);
                let mut archive = self.store.rebuilt(&layer.diff_id, &tree, false)?;
                io::copy(&mut (&mut archive).take(from), &mut io::sink()).map_err(made)?;
                io::copy(&mut archive.take(end.saturating_sub(from)), out).map(drop).map_err(made)
            }
        }
    }
}
