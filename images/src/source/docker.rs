//! What `docker save` writes (docker-archive): `manifest.json` names configurations and layers, and the documents of an OCI layout
//! are made of it.

use std::collections::HashMap;
use std::io::Read;

use serde::Deserialize;
use serde_json::{Value, json};

use super::layout::ArchiveSource;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::outer;
use crate::unpack::Limits;

/// Names that lead to one another before a layer is given up: old archives have links for layers that occur twice.
const LINKS: usize = 8;
/// Layers of an image; as many as the store takes.
const LAYERS: usize = 10_000;
/// Images of an archive: each costs the reading of a configuration, and nothing else bounds how often one is named.
const IMAGES: usize = 256;

/// An entry of `manifest.json`.
#[derive(Deserialize)]
struct Image {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

/// A blob: bytes that were made, or those of a member.
pub(super) enum Blob {
    Made(Vec<u8>),
    Member(u64, u64),
}

/// The images of an archive, as an OCI layout would have them.
pub(super) struct Images {
    pub(super) index: Vec<u8>,
    pub(super) blobs: HashMap<Digest, Blob>,
}

impl Images {
    /// Makes them of `manifest.json`.
    ///
    /// # Errors
    /// It is no such file, or names what the archive does not have.
    pub(super) fn of(archive: &ArchiveSource, manifest: &[u8]) -> Result<Images> {
        let listed: Vec<Image> =
            serde_json::from_slice(manifest).map_err(|e| bad(&format!("its manifest.json is none: {e}")))?;
        if listed.is_empty() {
            return Err(bad("it has no images"));
        }
        if listed.len() > IMAGES {
            return Err(bad(&format!("it has {} images, and at most {IMAGES} are read", listed.len())));
        }
        let (mut blobs, mut read) = (HashMap::new(), HashMap::new());
        let mut descriptors = Vec::new();
        for image in &listed {
            let descriptor = describe(archive, image, &mut blobs, &mut read)?;
            let tags = image.tags.as_deref().unwrap_or_default();
            if tags.is_empty() {
                descriptors.push(descriptor.clone());
            }
            for tag in tags {
                let mut named = descriptor.clone();
                named["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
                descriptors.push(named);
            }
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": descriptors,
        });
        Ok(Images { index: index.to_string().into_bytes(), blobs })
    }
}

fn bad(reason: &str) -> Error {
    Error::new(ErrorKind::Refused, "docker-archive", reason).next("write it again with `docker save`")
}

/// The descriptor of an image's manifest; it, the configuration and the layers come to the blobs. `read`: digests of compressed
/// layers by their place, so that one that is named often is read once.
fn describe(
    archive: &ArchiveSource,
    image: &Image,
    blobs: &mut HashMap<Digest, Blob>,
    read: &mut HashMap<u64, Digest>,
) -> Result<Value> {
    let limit = Limits::default().manifest_bytes;
    let missing = |name: &str| bad(&format!("it has no file {name:?}, which its manifest.json names"));
    let config = archive.small(image.config.as_bytes(), limit)?.ok_or_else(|| missing(&image.config))?;
    let parsed: Value =
        serde_json::from_slice(&config).map_err(|e| bad(&format!("a configuration is no JSON: {e}")))?;
    let ids = parsed["rootfs"]["diff_ids"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ids.len() != image.layers.len() || ids.len() > LAYERS {
        let reason = format!("an image has {} layers, and {} digests of them", image.layers.len(), ids.len());
        return Err(bad(&reason));
    }
    let mut layers = Vec::new();
    for (name, id) in image.layers.iter().zip(ids) {
        let (place, length) = followed(archive, name).ok_or_else(|| missing(name))?;
        let id: Digest =
            id.as_str().and_then(|id| id.parse().ok()).ok_or_else(|| bad("a layer's digest is none"))?;
        let digest = match read.get(&place) {
            Some(known) => known.clone(),
            None if plain(archive, (place, length))? => id,
            None => {
                let found = hashed(archive, (place, length))?;
                read.insert(place, found.clone());
                found
            }
        };
        layers.push((digest.clone(), length));
        blobs.insert(digest, Blob::Member(place, length));
    }
    let listed: Vec<(&str, &Digest, u64)> =
        layers.iter().map(|(digest, length)| (outer::LAYER, digest, *length)).collect();
    let manifest = outer::manifest(&config, &listed);
    let digest = Digest::of(Algorithm::Sha256, &manifest);
    let text = |key: &str, usual: &str| parsed[key].as_str().unwrap_or(usual).to_owned();
    let descriptor = json!({
        "mediaType": outer::MANIFEST,
        "digest": digest.to_string(),
        "size": manifest.len(),
        "platform": {"architecture": text("architecture", "amd64"), "os": text("os", "linux")},
    });
    blobs.insert(Digest::of(Algorithm::Sha256, &config), Blob::Made(config));
    blobs.insert(digest, Blob::Made(manifest));
    Ok(descriptor)
}

/// Place and length of a member, links followed.
fn followed(archive: &ArchiveSource, name: &str) -> Option<(u64, u64)> {
    let mut name = name.as_bytes().to_vec();
    for _ in 0..LINKS {
        if let Some(found) = archive.members.get(&name) {
            return Some(*found);
        }
        let target = archive.links.get(&name)?;
        let mut parts: Vec<&[u8]> = name.split(|b| *b == b'/').collect();
        parts.pop();
        for part in target.split(|b| *b == b'/') {
            match part {
                b".." => drop(parts.pop()?),
                b"." | b"" => {}
                part => parts.push(part),
            }
        }
        name = parts.join(&b'/');
    }
    None
}

/// Whether a layer is an archive as it is, whose digest the configuration has.
fn plain(archive: &ArchiveSource, (place, length): (u64, u64)) -> Result<bool> {
    let mut start = Vec::new();
    let mut member = archive.member(place, length, 0);
    (&mut member).take(4).read_to_end(&mut start).map_err(|e| Error::io("docker-archive", e))?;
    Ok(!(start.starts_with(b"\x1f\x8b") || start == b"\x28\xb5\x2f\xfd" || start == b"\xfd7zX"))
}

/// The digest of a layer that is compressed: the whole member is read.
fn hashed(archive: &ArchiveSource, (place, length): (u64, u64)) -> Result<Digest> {
    let mut member = archive.member(place, length, 0);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match member.read(&mut buffer).map_err(|e| Error::io("docker-archive", e))? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}
