//! Writes OCI layouts byte by byte, for images that no honest tool would make.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use tar::EntryType;

/// A layer under construction.
pub struct Layer {
    archive: tar::Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Layer {
        Layer { archive: tar::Builder::new(Vec::new()) }
    }
}

impl Layer {
    /// Adds an entry with exactly this name, however wrong it is.
    fn entry(mut self, name: &str, kind: EntryType, mode: u32, link: &str, content: &[u8]) -> Layer {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        // The crate's own setters refuse what hostile layers hold.
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.archive.append(&header, content).unwrap();
        self
    }

    /// A regular file.
    pub fn file(self, name: &str, mode: u32, content: &[u8]) -> Layer {
        self.entry(name, EntryType::Regular, mode, "", content)
    }

    /// A directory.
    pub fn directory(self, name: &str) -> Layer {
        self.entry(name, EntryType::Directory, 0o755, "", b"")
    }

    /// A symbolic link.
    pub fn symlink(self, name: &str, target: &str) -> Layer {
        self.entry(name, EntryType::Symlink, 0o777, target, b"")
    }

    /// A hard link.
    pub fn hardlink(self, name: &str, target: &str) -> Layer {
        self.entry(name, EntryType::Link, 0o644, target, b"")
    }

    /// A named pipe.
    pub fn fifo(self, name: &str) -> Layer {
        self.entry(name, EntryType::Fifo, 0o644, "", b"")
    }

    /// The archive.
    pub fn finish(self) -> Vec<u8> {
        self.archive.into_inner().unwrap()
    }
}

/// The layer of busybox with what a program needs to run; the first layer of a hostile image.
pub fn busybox() -> Layer {
    let program = std::fs::read("/bin/busybox").or_else(|_| std::fs::read("/usr/bin/busybox"));
    let program = program.expect("busybox-static is not installed (tests/packages.txt)");
    let mut layer = Layer::default().directory("bin").directory("etc").directory("tmp").file(
        "bin/busybox",
        0o755,
        &program,
    );
    for applet in ["sh", "cat", "ls", "echo", "true", "id", "stat", "env", "sleep", "find", "touch", "mkdir"]
    {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    layer
}

/// Writes the layers as an image with this `config` object; returns nothing, the directory is the image.
pub fn write(directory: &Path, layers: Vec<Layer>, config: Value) {
    std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in layers {
        let bytes = layer.finish();
        let digest = put(directory, &bytes);
        descriptors.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": bytes.len(),
        }));
        diff_ids.push(digest);
    }
    describe(directory, &diff_ids, config, descriptors.into());
}

/// Writes blobs that are compressed already as the layers of an image: each with its media type's ending, and the archive that is in it.
pub fn write_compressed(directory: &Path, layers: &[(&str, Vec<u8>, Vec<u8>)]) {
    std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    let described = |(ending, blob, _): &(&str, Vec<u8>, Vec<u8>)| {
        let kind = format!("application/vnd.oci.image.layer.v1.tar+{ending}");
        json!({"mediaType": kind, "digest": put(directory, blob), "size": blob.len()})
    };
    let descriptors: Vec<Value> = layers.iter().map(described).collect();
    let diff_ids: Vec<String> = layers.iter().map(|(_, _, archive)| named(archive)).collect();
    describe(directory, &diff_ids, json!({}), descriptors.into());
}

fn named(bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{digest}")
}

fn put(directory: &Path, bytes: &[u8]) -> String {
    let digest = named(bytes);
    std::fs::write(directory.join("blobs/sha256").join(&digest["sha256:".len()..]), bytes).unwrap();
    digest
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn describe(directory: &Path, diff_ids: &[String], config: Value, layers: Value) {
    let config = json!({
        "architecture": architecture(), "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    finish(directory, &serde_json::to_vec(&config).unwrap(), layers);
}

fn finish(directory: &Path, config: &[u8], layers: Value) {
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(directory, config), "size": config.len(),
        },
        "layers": layers,
    }))
    .unwrap();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": put(directory, &manifest),
            "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }],
    });
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Writes the image of another directory with these layers above its own.
pub fn above(other: &Path, directory: &Path, layers: Vec<Layer>) {
    write(directory, layers, json!({}));
    let read = |of: &Path, name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(of.join(name)).unwrap()).unwrap()
    };
    let of_blob = |of: &Path, descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        read(of, &format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap()))
    };
    let manifest = |of: &Path| of_blob(of, &read(of, "index.json")["manifests"][0]);
    let (below, ours) = (manifest(other), manifest(directory));
    let (config, added) = (of_blob(other, &below["config"]), of_blob(directory, &ours["config"]));
    let joined = |one: &Value, two: &Value| -> Value {
        Value::from([one.as_array().unwrap().as_slice(), two.as_array().unwrap().as_slice()].concat())
    };
    for blob in std::fs::read_dir(other.join("blobs/sha256")).unwrap().flatten() {
        std::fs::copy(blob.path(), directory.join("blobs/sha256").join(blob.file_name())).unwrap();
    }
    let mut config = config;
    config["rootfs"]["diff_ids"] = joined(&config["rootfs"]["diff_ids"], &added["rootfs"]["diff_ids"]);
    // Of which there would have to be more.
    config.as_object_mut().unwrap().remove("history");
    let mut manifest = below;
    manifest["layers"] = joined(&manifest["layers"], &ours["layers"]);
    finish(directory, &serde_json::to_vec(&config).unwrap(), manifest["layers"].clone());
}

/// Writes the image of another directory with an index around it, and gives the index's digest: the image can be named by that, too.
pub fn indexed(other: &Path, directory: &Path) -> String {
    std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    for blob in std::fs::read_dir(other.join("blobs/sha256")).unwrap().flatten() {
        std::fs::copy(blob.path(), directory.join("blobs/sha256").join(blob.file_name())).unwrap();
    }
    let listed: Value = serde_json::from_slice(&std::fs::read(other.join("index.json")).unwrap()).unwrap();
    let mut image = listed["manifests"][0].clone();
    image.as_object_mut().unwrap().remove("annotations");
    image["platform"] = json!({"os": "linux", "architecture": architecture()});
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [image]}).to_string();
    let digest = put(directory, index.as_bytes());
    let entry = json!({"mediaType": kind, "digest": digest, "size": index.len()});
    let text = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    std::fs::write(directory.join("index.json"), text).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    digest
}
