//! What stands around the layers of an OCI image: manifest, index, the layout's files, and their headers in an archive.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::digest::{Algorithm, Digest};

/// `oci-layout` (image specification, image-layout.md).
pub(crate) const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Types of a manifest and of an uncompressed layer.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The name of a blob's file in a layout.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// A name beside a file for what is not complete.
pub(crate) fn partial(place: &Path) -> PathBuf {
    let mut hidden = OsString::from(".");
    hidden.push(place.file_name().unwrap_or_default());
    hidden.push(format!(".{}.partial", std::process::id()));
    place.with_file_name(hidden)
}

/// The manifest of an image, with type, digest and length of each layer.
pub(crate) fn manifest(config: &[u8], layers: &[(&str, &Digest, u64)]) -> Vec<u8> {
    manifest_of((&Digest::of(Algorithm::Sha256, config), config.len()), layers)
}

/// The same with digest and length of a configuration.
pub(crate) fn manifest_of((config, size): (&Digest, usize), layers: &[(&str, &Digest, u64)]) -> Vec<u8> {
    let layer = |(kind, digest, size): &(&str, &Digest, u64)| json!({"mediaType": kind, "digest": digest.to_string(), "size": size});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(),
            "size": size,
        },
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

/// `index.json` for a manifest's descriptor, with a name by which tools list the image.
pub(crate) fn index(mut descriptor: Value, name: &str) -> Vec<u8> {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    });
    index.to_string().into_bytes()
}

/// The header of a file. It belongs to whoever writes the archive: tools that read such archives as ordinary users (skopeo
/// among them) hand each file to the owner that the archive names, and may do so for their own alone. A size of 8 GiB
/// and more is written in the binary form that every tool reads.
pub(crate) fn header(name: &str, size: u64) -> io::Result<tar::Header> {
    member(name, tar::EntryType::Regular, 0o644, size)
}

/// The header of a directory. Every directory has one, before what is in it: those tools hand one that the archive does not name
/// to root.
pub(crate) fn directory(name: &str) -> io::Result<tar::Header> {
    member(&format!("{name}/"), tar::EntryType::Directory, 0o755, 0)
}

fn member(name: &str, kind: tar::EntryType, mode: u32, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
    header.set_gid(u64::from(rustix::process::getegid().as_raw()));
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_stands_in_one_block() {
        for size in [0, 511, 8 << 30, u64::from(u32::MAX) * 100] {
            let header = header("blobs/sha256/0123", size).unwrap();
            assert_eq!(header.size().unwrap(), size);
            assert_eq!(header.cksum().unwrap(), {
                let mut sum: u32 = header.as_bytes().iter().map(|b| u32::from(*b)).sum();
                sum -= header.as_bytes()[148..156].iter().map(|b| u32::from(*b)).sum::<u32>();
                sum + 8 * u32::from(b' ')
            });
        }
    }

    #[test]
    fn the_files_are_the_writers() {
        for header in [header("index.json", 1).unwrap(), directory("blobs").unwrap()] {
            assert_eq!(header.uid().unwrap(), u64::from(rustix::process::geteuid().as_raw()));
            assert_eq!(header.gid().unwrap(), u64::from(rustix::process::getegid().as_raw()));
        }
    }
}
