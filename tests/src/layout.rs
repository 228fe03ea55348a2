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

    fn finish(self) -> Vec<u8> {
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
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| -> String {
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        format!("sha256:{digest}")
    };
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in layers {
        let bytes = layer.finish();
        let digest = put(&bytes);
        descriptors.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": bytes.len(),
        }));
        diff_ids.push(digest);
    }
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::to_vec(&json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(&config), "size": config.len()},
        "layers": descriptors,
    }))
    .unwrap();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": put(&manifest), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }],
    });
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
