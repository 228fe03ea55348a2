//! An OCI image in a SIF file, as Singularity 4 writes it: what an OCI layout has, as objects of one file. Its layers are
//! archives, or squashfs images, of which archives are made.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::ImageManifest;

use super::layout::{Member, no_blob};
use super::sniff::{Through, open_through};
use super::{BlobKind, BlobSource, Layout, read_verified, resolve_layout, words_of};
use super::{ResolveOptions, ResolvedManifest};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Document, descriptor_digest, parse_document};
use crate::sif::{Holds, Sif};
use crate::unpack::Limits;

/// Type of a layer that is a squashfs image.
const SQUASHFS: &str = "application/vnd.sylabs.image.layer.v1.squashfs";

/// The image of a SIF file.
pub(crate) struct OciSif {
    path: PathBuf,
    file: Arc<File>,
    index: (u64, u64),
    blobs: HashMap<Digest, (u64, u64)>,
    /// What is known of the file's signatures.
    signed: String,
}

/// An image whose layers are squashfs images.
pub(crate) struct Squashed {
    /// Where its layers are, lowest first.
    pub(crate) layers: Vec<(u64, u64)>,
    /// Its configuration.
    pub(crate) config: serde_json::Map<String, serde_json::Value>,
}

impl OciSif {
    /// Opens the file at an absolute path; nothing, where it holds no OCI image.
    ///
    /// # Errors
    /// It cannot be read, or is a SIF file that is damaged.
    pub(crate) fn open(path: &Path, through: Through) -> Result<Option<OciSif>> {
        OciSif::of(path, open_through(path, through)?)
    }

    /// As [`OciSif::open`], of a file that is open, named `path` in messages.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn of(path: &Path, file: File) -> Result<Option<OciSif>> {
        let sif = Sif::of(&file).map_err(|e| e.within(&path.display().to_string()))?;
        let Some(sif) = sif else { return Ok(None) };
        let signed = sif.signed();
        let Holds::Oci { index, blobs } = sif.holds else { return Ok(None) };
        Ok(Some(OciSif { path: path.to_path_buf(), file: Arc::new(file), index, blobs, signed }))
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// The image for a platform.
    pub(crate) fn resolve(&self, options: &ResolveOptions) -> Result<ResolvedManifest> {
        resolve_layout(self, None, options)
    }

    /// Of the image of this digest, what is made archives of; nothing, where its layers are archives.
    pub(crate) fn squashed(&self, digest: &Digest) -> Result<Option<Squashed>> {
        let what = self.describe();
        let limits = Limits::default();
        let manifest = read_verified(self, BlobKind::Manifest, digest, limits.manifest_bytes)?;
        let Document::Manifest(manifest) = parse_document(&what, &manifest, None)? else {
            return Err(no_blob(&what, digest));
        };
        let is = |layer: &oci_spec::image::Descriptor| layer.media_type().to_string() == SQUASHFS;
        if !manifest.layers().iter().any(is) {
            return Ok(None);
        }
        if !manifest.layers().iter().all(is) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                what,
                "some of its layers are squashfs images and some are none",
            )
            .next("make it again from the registry image"));
        }
        self.parts(&manifest, &limits).map(Some)
    }

    fn parts(&self, manifest: &ImageManifest, limits: &Limits) -> Result<Squashed> {
        let what = self.describe();
        let config = descriptor_digest(&what, manifest.config())?;
        let config = read_verified(self, BlobKind::Blob, &config, limits.config_bytes)?;
        let config = serde_json::from_slice(&config).map_err(|e| {
            Error::new(ErrorKind::Refused, format!("configuration of {what}"), format!("is malformed: {e}"))
                .next("make the image again")
        })?;
        let place = |layer| -> Result<(u64, u64)> {
            let digest = descriptor_digest(&what, layer)?;
            self.blobs.get(&digest).copied().ok_or_else(|| no_blob(&what, &digest))
        };
        Ok(Squashed { layers: manifest.layers().iter().map(place).collect::<Result<_>>()?, config })
    }
}

impl BlobSource for OciSif {
    fn describe(&self) -> String {
        format!("sif:{}", self.path.display())
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        if kind == BlobKind::SifSignatures {
            let text = self.signed.as_bytes();
            let skip = usize::try_from(offset).unwrap_or(usize::MAX);
            return Ok(Box::new(Cursor::new(text.get(skip..).unwrap_or_default().to_vec())));
        }
        let (at, length) = *self.blobs.get(digest).ok_or_else(|| no_blob(&self.describe(), digest))?;
        Ok(Box::new(Member::of(&self.file, (at, length), offset)))
    }

    fn read_through(&self) -> Option<String> {
        words_of(&self.file)
    }
}

impl Layout for OciSif {
    fn index(&self) -> Result<Vec<u8>> {
        let limit = Limits::default().manifest_bytes;
        if self.index.1 > limit {
            return Err(Error::new(
                ErrorKind::Refused,
                self.describe(),
                format!("its index is larger than {limit} bytes"),
            )
            .next("no image needs one this large; make the file again"));
        }
        let mut bytes = Vec::new();
        Member::of(&self.file, self.index, 0)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::path(&self.path, e))?;
        Ok(bytes)
    }
}
