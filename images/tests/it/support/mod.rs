//! What the tests share: images made by hand, tools of Debian, registries.
#![allow(dead_code, reason = "each module uses its part")]

pub mod fake;
pub mod registry;
pub mod watched;

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use berth_images::{
    Algorithm, Credentials, Digest, Error, LayerForm, PreparedImage, Reference, Registries, ResolveOptions,
    Resolved, ResolvedManifest, Store, open_source, resolve,
};

/// Runs a program of Debian package `package`, which must be installed.
pub fn tool(package: &str, program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program)
        .args(arguments)
        // Else skopeo looks below /run/containers, which root's podman closes to others.
        .env("XDG_RUNTIME_DIR", "/nonexistent")
        .output()
        .unwrap_or_else(|e| panic!("cannot run {program}: {e}; install the Debian package {package}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// How a layer's blob is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
    /// Zstd with a window of 32 MiB.
    ZstdWide,
}

/// An image made by hand: tar streams, and what to say about them.
pub struct ImageBuilder {
    pub layers: Vec<(Vec<u8>, Compression)>,
    pub config: serde_json::Value,
    /// `sha256` or `sha512`, for blobs and diff-ids.
    pub algorithm: Algorithm,
    pub docker: bool,
}

impl ImageBuilder {
    pub fn new(layers: Vec<Vec<u8>>) -> Self {
        Self {
            layers: layers.into_iter().map(|l| (l, Compression::Plain)).collect(),
            config: serde_json::json!({"Env": ["PATH=/bin"]}),
            algorithm: Algorithm::Sha256,
            docker: false,
        }
    }

    pub fn compressed(mut self, compression: Compression) -> Self {
        self.layers.iter_mut().for_each(|l| l.1 = compression);
        self
    }

    /// Writes an OCI layout into `dir`; gives the manifest's digest.
    pub fn write(&self, dir: &Path) -> Digest {
        let put = |bytes: &[u8]| -> (String, usize) {
            let digest = Digest::of(self.algorithm, bytes);
            put_blob(dir, &digest, bytes);
            (digest.to_string(), bytes.len())
        };
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (tar, compression) in &self.layers {
            let (kind, blob) = match (compression, self.docker) {
                (Compression::Plain, false) => ("application/vnd.oci.image.layer.v1.tar", tar.clone()),
                (Compression::Gzip, false) => ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(tar)),
                (Compression::Zstd, false) => {
                    ("application/vnd.oci.image.layer.v1.tar+zstd", zstd::encode_all(&tar[..], 3).unwrap())
                }
                (Compression::ZstdWide, false) => {
                    ("application/vnd.oci.image.layer.v1.tar+zstd", zstd_wide(tar))
                }
                (Compression::Plain, true) => ("application/vnd.docker.image.rootfs.diff.tar", tar.clone()),
                (_, true) => ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip(tar)),
            };
            let (digest, size) = put(&blob);
            layers.push(serde_json::json!({"mediaType": kind, "digest": digest, "size": size}));
            diff_ids.push(Digest::of(self.algorithm, tar).to_string());
        }
        let config = serde_json::json!({
            "architecture": arch(), "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (config_digest, config_size) = put(config.to_string().as_bytes());
        let (manifest_type, config_type) = if self.docker {
            (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            )
        } else {
            ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json")
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": config_digest, "size": config_size},
            "layers": layers,
        });
        let (digest, size) = put(manifest.to_string().as_bytes());
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"mediaType": manifest_type, "digest": digest, "size": size}]});
        write_layout(dir, &index);
        digest.parse().unwrap()
    }
}

pub fn write_layout(dir: &Path, index: &serde_json::Value) {
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

pub fn put_blob(dir: &Path, digest: &Digest, bytes: &[u8]) {
    let path = blob_path(dir, digest);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

pub fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd_wide(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(25).unwrap();
    // In pieces, so that the frame says its window, and not its size.
    bytes.chunks(1000).for_each(|piece| encoder.write_all(piece).unwrap());
    encoder.finish().unwrap()
}

/// A server that serves each connection by a thread; its address, and what they wrote down.
pub fn front(
    serve: impl Fn(&TcpStream, &Mutex<Vec<String>>) -> Option<()> + Send + Sync + 'static,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let log = Arc::new(Mutex::new(Vec::new()));
    let (shared, serve) = (Arc::clone(&log), Arc::new(serve));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (log, serve) = (Arc::clone(&shared), Arc::clone(&serve));
            std::thread::spawn(move || serve(&stream, &log));
        }
    });
    (address, log)
}

pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Tar streams written entry by entry, with nothing checked: the hostile ones too.
#[derive(Default)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// A raw header block with a right checksum.
    pub fn header(name: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) -> [u8; 512] {
        let mut block = [0u8; 512];
        block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(format!("{:011o}\0", 1_600_000_000).as_bytes());
        block[156] = kind;
        block[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        block[257..263].copy_from_slice(b"ustar\0");
        block[263..265].copy_from_slice(b"00");
        Self::seal(&mut block);
        block
    }

    pub fn seal(block: &mut [u8; 512]) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    pub fn raw(mut self, block: &[u8]) -> Self {
        self.0.extend_from_slice(block);
        self
    }

    fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        let padding = data.len().wrapping_neg() % 512;
        self.0.extend(std::iter::repeat_n(0, padding));
        self
    }

    pub fn entry(self, name: &str, kind: u8, mode: u32, link: &str, data: &[u8]) -> Self {
        let header = Self::header(name.as_bytes(), kind, mode, data.len() as u64, link.as_bytes());
        self.raw(&header).data(data)
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name, b'0', 0o644, "", data)
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(name, b'5', mode, "", b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, b'2', 0o777, target, b"")
    }

    pub fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(name, b'1', 0o644, target, b"")
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length = length.to_string().len() + rest;
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.entry("PaxHeader", b'x', 0o644, "", &body)
    }

    /// With the end marker.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A temporary directory with a store and a layout.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub form: LayerForm,
}

/// Both forms of layers.
pub const FORMS: [LayerForm; 2] = [LayerForm::Directory, LayerForm::Erofs];

impl Bench {
    pub fn new() -> Self {
        Self::of(LayerForm::Directory)
    }

    /// With layers in this form.
    pub fn of(form: LayerForm) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), form }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn store(&self) -> Store {
        Store::open(&self.path().join("store")).unwrap().with_form(self.form)
    }

    /// What an error says, but for where this is.
    pub fn without_place(&self, error: &Error) -> String {
        error.to_string().replace(&self.path().display().to_string(), "")
    }

    pub fn layout(&self) -> PathBuf {
        let path = self.path().join("layout");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Imports an image made of `layers`.
    pub fn import(&self, layers: Vec<Vec<u8>>) -> Result<PreparedImage, Error> {
        self.import_built(&ImageBuilder::new(layers))
    }

    pub fn import_built(&self, builder: &ImageBuilder) -> Result<PreparedImage, Error> {
        let layout = self.layout();
        builder.write(&layout);
        self.import_text(&format!("oci:{}", layout.display()))
    }

    pub fn import_text(&self, text: &str) -> Result<PreparedImage, Error> {
        ensure_text(&self.store(), text, &Credentials::anonymous(), false)
    }

    /// Nothing but the store's own files: no layer, no image, no work in progress.
    pub fn assert_empty(&self) {
        for name in ["layers", "images", "tmp"] {
            let left = self.records(name);
            assert!(left.is_empty(), "{name} has {left:?}");
        }
    }

    /// Nothing in progress.
    pub fn assert_no_work(&self) {
        let left = self.records("tmp");
        assert!(left.is_empty(), "tmp has {left:?}");
    }

    /// What a directory of the store has, without the file that a killed process was just writing: nobody can tell
    /// it from one that a living process writes, so that it is swept ten minutes later.
    pub fn records(&self, name: &str) -> Vec<String> {
        std::fs::read_dir(self.path().join("store").join(name))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|file| !file.starts_with('.'))
            .collect()
    }
}

pub fn ensure_text(
    store: &Store,
    text: &str,
    credentials: &Credentials,
    insecure: bool,
) -> Result<PreparedImage, Error> {
    let resolved = resolve_text(text, credentials, insecure)?;
    let source = open_source(&resolved, &Registries::default(), credentials)?;
    store.ensure(&resolved, source.as_ref(), &())
}

pub fn resolve_text(
    text: &str,
    credentials: &Credentials,
    insecure: bool,
) -> Result<ResolvedManifest, Error> {
    let reference: Reference = text.parse()?;
    let registries = match insecure {
        true => Registries::default().without_tls_of(&reference),
        false => Registries::default(),
    };
    let options = ResolveOptions { registries, ..ResolveOptions::default() };
    match resolve(&reference, credentials, &options)? {
        Resolved::Manifest(manifest) => Ok(manifest),
        other => panic!("{text} is {other:?}"),
    }
}

/// The one layer of an image.
pub fn only_layer(image: &PreparedImage) -> &Path {
    assert_eq!(image.layers.len(), 1);
    &image.layers[0]
}

pub fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).mode() & 0o7777
}

pub fn is_whiteout(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.mode() & 0o170_000 == 0o020_000 && m.rdev() == 0)
}

pub fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    xattr::get(path, name).unwrap()
}
