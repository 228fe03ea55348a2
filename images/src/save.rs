//! An image taken whole from its source into one file: an OCI layout in a tar archive (image specification,
//! image-layout.md), every blob verified on the way; and what an image says of itself, without any layer.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::archive::BLOCK;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result, recover};
use crate::manifest::{
    Document, ImageConfig, LayerInfo, Platform, check_config_type, descriptor_digest, parse_document,
    read_config,
};
use crate::progress::{Progress, ProgressEvent};
use crate::source::{BlobKind, BlobSource, ResolvedManifest, mismatch, read_verified};
use crate::unpack::Limits;

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
    let media_type = manifest.media_type().as_ref().map_or_else(
        || "application/vnd.oci.image.manifest.v1+json".to_owned(),
        std::string::ToString::to_string,
    );
    Ok(Head { what, manifest: bytes, media_type, config_digest, config, parsed, layers })
}

/// What the image says of itself, and its layers, bottom first. No layer is fetched.
///
/// # Errors
/// The source fails, or its manifest or configuration is damaged or for another platform.
pub fn describe(image: &ResolvedManifest, source: &dyn BlobSource) -> Result<(ImageConfig, Vec<LayerInfo>)> {
    head(image, source).map(|head| (head.parsed, head.layers))
}

/// Where a store at `root` has a layer that it has unpacked.
pub fn layer_place(root: &Path, diff_id: &Digest) -> PathBuf {
    root.join("layers").join(diff_id.file_name()).join("fs")
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
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.partial", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let file = File::options().write(true).create_new(true).open(&temporary);
    let file = file.map_err(|e| Error::path(path, e).next("choose another file, or make room"))?;
    let written = write(image, &head, source, name, file, progress)
        .and_then(|()| std::fs::rename(&temporary, path).map_err(|e| Error::path(path, e)));
    if written.is_err() {
        // The error that counts is the first.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn write(
    image: &ResolvedManifest,
    head: &Head,
    source: &dyn BlobSource,
    name: &str,
    file: File,
    progress: &dyn Progress,
) -> Result<()> {
    let io = |e| Error::io(format!("archive of {}", head.what), e);
    let mut seen = std::collections::HashSet::new();
    let layers: Vec<&LayerInfo> = head.layers.iter().filter(|l| seen.insert(&l.digest)).collect();
    let bytes = layers.iter().map(|l| l.size).sum();
    progress.event(ProgressEvent::Start { layers: layers.len(), cached: 0, bytes });
    let mut tar = Tar(BufWriter::with_capacity(1 << 18, file));
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": head.media_type,
            "digest": image.digest.to_string(),
            "size": head.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }],
    });
    tar.member("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(io)?;
    tar.member("index.json", index.to_string().as_bytes()).map_err(io)?;
    tar.member(&blob(&image.digest), &head.manifest).map_err(io)?;
    tar.member(&blob(&head.config_digest), &head.config).map_err(io)?;
    for layer in layers {
        let what = format!("layer {} of {}", layer.digest, head.what);
        let mut from = source.open(BlobKind::Blob, &layer.digest, 0)?.take(layer.size);
        let mut hasher = Hasher::new(layer.digest.algorithm());
        tar.header(&blob(&layer.digest), layer.size).map_err(io)?;
        let mut buffer = vec![0; 1 << 18];
        let mut total = 0;
        loop {
            let n = from.read(&mut buffer).map_err(|e| recover(&what, e))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            tar.0.write_all(&buffer[..n]).map_err(io)?;
            total += n as u64;
            progress.event(ProgressEvent::Fetched { bytes: n as u64 });
        }
        if total != layer.size {
            return Err(Error::new(
                ErrorKind::Corrupt,
                what,
                format!("it has {total} bytes and not {}", layer.size),
            )
            .next("try again; if it stays so, push the image again"));
        }
        let found = hasher.finish();
        if found != layer.digest {
            return Err(mismatch(&what, &layer.digest, &found));
        }
        tar.pad(layer.size).map_err(io)?;
    }
    progress.event(ProgressEvent::Syncing);
    tar.0.write_all(&[0; 2 * BLOCK]).map_err(io)?;
    let file = tar.0.into_inner().map_err(|e| io(e.into_error()))?;
    file.sync_all().map_err(io)
}

fn blob(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Writes members of a POSIX ustar archive (IEEE Std 1003.1, pax).
struct Tar<W: Write>(W);

impl<W: Write> Tar<W> {
    fn header(&mut self, name: &str, size: u64) -> std::io::Result<()> {
        let mut block = [0_u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        if size < 1 << 33 {
            put(124, format!("{size:011o}\0").as_bytes());
        } else {
            // Sizes that octal digits cannot hold are in base 256, marked by the first bit.
            put(124, &[0x80, 0, 0, 0]);
            put(128, &size.to_be_bytes());
        }
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.write_all(&block)
    }

    fn pad(&mut self, size: u64) -> std::io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if over == 0 { Ok(()) } else { self.0.write_all(&[0; BLOCK][over..]) }
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        self.header(name, bytes.len() as u64)?;
        self.0.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }
}
