//! An image taken whole from its source into one file: an OCI layout in a tar archive (image specification,
//! image-layout.md), every blob verified on the way; and what an image says of itself, without any layer.

use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::Path;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result, recover};
use crate::manifest::{
    Document, ImageConfig, LayerInfo, Platform, check_config_type, descriptor_digest, parse_document,
    read_config,
};
use crate::outer::{self, blob_name, directory, header};
use crate::progress::{Progress, ProgressEvent};
use crate::source::{BlobKind, BlobSource, ResolvedManifest, mismatch, read_verified};
use crate::unpack::Limits;
use crate::unseen::Unseen;

/// Manifest and configuration of an image, as they came.
struct Head {
    what: String,
    manifest: Vec<u8>,
    media_type: String,
    config_digest: Digest,
    config: Vec<u8>,
    parsed: ImageConfig,
    layers: Vec<LayerInfo>,
}

fn head(image: &ResolvedManifest, source: &dyn BlobSource) -> Result<Head> {
    let limits = Limits::default();
    let what = image.name.clone().unwrap_or_else(|| format!("{}@{}", image.source, image.digest));
    let bytes = read_verified(source, BlobKind::Manifest, &image.digest, limits.manifest_bytes)?;
    let Document::Manifest(manifest) = parse_document(&what, &bytes, None)? else {
        return Err(Error::new(ErrorKind::Refused, what, "the digest is of an index")
            .next("resolve the image reference again"));
    };
    check_config_type(&what, &manifest)?;
    let config_digest = descriptor_digest(&what, manifest.config())?;
    let config = read_verified(source, BlobKind::Blob, &config_digest, limits.config_bytes)?;
    let (parsed, layers) = read_config(&what, &manifest, &config, &Platform::default(), &limits)?;
    let media_type = manifest
        .media_type()
        .as_ref()
        .map_or_else(|| outer::MANIFEST.to_owned(), std::string::ToString::to_string);
    Ok(Head { what, manifest: bytes, media_type, config_digest, config, parsed, layers })
}

/// What the image says of itself, and its layers, bottom first. No layer is fetched.
///
/// # Errors
/// The source fails, or its manifest or configuration is damaged or for another platform.
pub fn describe(image: &ResolvedManifest, source: &dyn BlobSource) -> Result<(ImageConfig, Vec<LayerInfo>)> {
    head(image, source).map(|head| (head.parsed, head.layers))
}

/// Writes the image into a new file at `path`, by renaming it into place when it is complete. `name` is recorded
/// as the image's name in the layout.
///
/// # Errors
/// The source fails, a blob does not have its digest, or the file cannot be written; nothing is left then.
pub fn save_archive(
    image: &ResolvedManifest,
    source: &dyn BlobSource,
    name: &str,
    path: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let head = head(image, source)?;
    let unseen = Unseen::create(path);
    let unseen = unseen.map_err(|e| Error::path(path, e).next("choose another file, or make room"))?;
    write(image, &head, source, name, unseen.file(), progress)?;
    unseen.publish().map_err(|e| Error::path(path, e))
}

fn write(
    image: &ResolvedManifest,
    head: &Head,
    source: &dyn BlobSource,
    name: &str,
    file: &File,
    progress: &dyn Progress,
) -> Result<()> {
    let io = |e| Error::io(format!("archive of {}", head.what), e);
    let mut seen = std::collections::HashSet::new();
    let layers: Vec<&LayerInfo> = head.layers.iter().filter(|l| seen.insert(&l.digest)).collect();
    let bytes = layers.iter().map(|l| l.size).sum();
    progress.event(ProgressEvent::Start { layers: layers.len(), cached: 0, bytes });
    let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 18, file));
    let descriptor = serde_json::json!({
        "mediaType": head.media_type,
        "digest": image.digest.to_string(),
        "size": head.manifest.len(),
    });
    let index = outer::index(descriptor, name);
    let digests = layers.iter().map(|l| &l.digest).chain([&image.digest, &head.config_digest]);
    let algorithms: std::collections::BTreeSet<_> = digests.map(|d| d.algorithm().name()).collect();
    let directories = algorithms.iter().map(|algorithm| format!("blobs/{algorithm}"));
    for name in std::iter::once("blobs".to_string()).chain(directories) {
        archive.append(&directory(&name).map_err(io)?, std::io::empty()).map_err(io)?;
    }
    let mut member = |name: &str, bytes: &[u8]| archive.append(&header(name, bytes.len() as u64)?, bytes);
    member("oci-layout", outer::MARKER).map_err(io)?;
    member("index.json", &index).map_err(io)?;
    member(&blob_name(&image.digest), &head.manifest).map_err(io)?;
    member(&blob_name(&head.config_digest), &head.config).map_err(io)?;
    for layer in layers {
        let mut verified = Verified {
            what: format!("layer {} of {}", layer.digest, head.what),
            from: source.open(BlobKind::Blob, &layer.digest, 0)?.take(layer.size),
            hasher: Hasher::new(layer.digest.algorithm()),
            total: 0,
            progress,
        };
        header(&blob_name(&layer.digest), layer.size)
            .and_then(|header| archive.append(&header, &mut verified))
            .map_err(|e| recover(&format!("archive of {}", head.what), e))?;
        verified.check(layer)?;
    }
    progress.event(ProgressEvent::Syncing);
    let file = archive.into_inner().and_then(|buffer| buffer.into_inner().map_err(|e| e.into_error()));
    file.and_then(|file| file.sync_all()).map_err(io)
}

/// A blob on its way into the archive: counted and hashed as it is read.
struct Verified<'a, R> {
    what: String,
    from: R,
    hasher: Hasher,
    total: u64,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Verified<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // An error of the source names the layer, not the file that is written.
        let n = self.from.read(buffer).map_err(|e| recover(&self.what, e))?;
        self.hasher.update(&buffer[..n]);
        self.total += n as u64;
        if n > 0 {
            self.progress.event(ProgressEvent::Fetched { bytes: n as u64 });
        }
        Ok(n)
    }
}

impl<R> Verified<'_, R> {
    /// Whether what was read is the layer.
    fn check(self, layer: &LayerInfo) -> Result<()> {
        if self.total != layer.size {
            let reason = format!("it has {} bytes and not {}", self.total, layer.size);
            return Err(Error::new(ErrorKind::Corrupt, self.what, reason)
                .next("try again; if it stays so, push the image again"));
        }
        let found = self.hasher.finish();
        if found == layer.digest { Ok(()) } else { Err(mismatch(&self.what, &layer.digest, &found)) }
    }
}
