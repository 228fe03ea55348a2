//! SIF files that hold OCI images, as Singularity 4 writes them: its tool of Debian makes none
//! (github.com/sylabs/sif, specification version 01).

use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Bytes before the descriptors, and of each of them.
const HEAD: usize = 4096;
const DESCRIPTOR: usize = 585;
/// Types of objects: an image's index, and anything that is named by its digest.
const INDEX: i32 = 0x400a;
const BLOB: i32 = 0x400b;

/// Writes a file that holds what an OCI layout does.
pub fn around(layout: &Path, to: &Path) {
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    write(to, index, blobs.map(|blob| std::fs::read(blob.unwrap().path()).unwrap()).collect());
}

/// Writes a file with an image whose only layer is a squashfs image, as Singularity 4 makes it unless it is told to keep layers.
pub fn squashed(squashfs: &Path, to: &Path) {
    let mut blobs = Vec::new();
    let mut put = |kind: &str, bytes: Vec<u8>| {
        let descriptor = json!({"mediaType": kind, "digest": named(&bytes), "size": bytes.len()});
        blobs.push(bytes);
        descriptor
    };
    let layer = put(
        "application/vnd.sylabs.image.layer.v1.squashfs",
        std::fs::read(squashfs).expect("a squashfs image"),
    );
    let ids = [layer["digest"].clone()];
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = put("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let manifest = put(kind, manifest.to_string().into_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    write(to, index.to_string().into_bytes(), blobs);
}

fn named(bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{digest}")
}

fn write(to: &Path, index: Vec<u8>, blobs: Vec<Vec<u8>>) {
    let blobs = blobs.into_iter().map(|bytes| (BLOB, bytes));
    let objects: Vec<(i32, Vec<u8>)> = std::iter::once((INDEX, index)).chain(blobs).collect();
    let start = HEAD + DESCRIPTOR * objects.len();
    let (mut table, mut data) = (Vec::<u8>::new(), Vec::<u8>::new());
    for (number, (kind, bytes)) in objects.iter().enumerate() {
        let mut descriptor = kind.to_le_bytes().to_vec();
        // It is used; its number, its group (the first), and what it is linked to.
        descriptor.push(1);
        for field in [number as u32 + 1, 0xf000_0001, 0] {
            descriptor.extend(field.to_le_bytes());
        }
        let (place, length) = ((start + data.len()) as u64, bytes.len() as u64);
        for field in [place, length, length] {
            descriptor.extend(field.to_le_bytes());
        }
        descriptor.resize(201, 0);
        descriptor.extend(named(bytes).as_bytes());
        descriptor.resize(DESCRIPTOR, 0);
        table.extend(descriptor);
        data.extend(bytes);
    }
    let mut file = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\0".to_vec();
    file.extend(if cfg!(target_arch = "aarch64") { b"04\0" } else { b"02\0" });
    file.resize(80, 0);
    for field in [0, objects.len(), HEAD, table.len(), start, data.len()] {
        file.extend((field as u64).to_le_bytes());
    }
    file.resize(HEAD, 0);
    file.extend(table);
    file.extend(data);
    std::fs::write(to, file).unwrap();
}
