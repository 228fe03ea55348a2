//! A squashfs image, alone or in a SIF file, or the squashfs layers of an OCI image in one, as a source of blobs: a manifest, a
//! configuration and layers, all made from the file.
//!
//! A layer is the archive that the reader makes of it, which is always the same: so its digest pins what is in the file,
//! and a file that changed is another image.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::CONFIG;
use super::read::{ENVIRONMENT, Found, Image};

use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Document, ImageConfig, Platform, descriptor_digest, parse_document};
use crate::outer;
use crate::remembered::{Entry, Remembered};
use crate::sif::script::Shell;
use crate::sif::{Holds, SIF_SIGNATURES, Sif, inside};
use crate::source::{
    BlobKind, BlobSource, OciSif, ResolveOptions, Squashed, Through, open_through, words_of,
};
use crate::unpack::Limits;

/// Bytes that are handed over at once, and how many pieces may wait.
const CHUNK: usize = 256 << 10;
const QUEUE: usize = 8;

/// A squashfs file, or a SIF file with such images.
pub(crate) struct SquashfsSource {
    path: PathBuf,
    sif: Option<Sif>,
    /// One for each layer, lowest first.
    images: Vec<Arc<Image>>,
    /// Of an OCI image.
    config: Option<Map<String, Value>>,
    /// Whose cache remembers what the file is called.
    home: Option<PathBuf>,
    /// Manifest and configuration, once they were asked for.
    described: Mutex<Option<Arc<Described>>>,
}

struct Described {
    manifest: Vec<u8>,
    manifest_digest: Digest,
    config: Vec<u8>,
    config_digest: Digest,
    layers: Vec<Digest>,
}

impl Described {
    fn of(manifest: Vec<u8>, config: Vec<u8>, layers: Vec<Digest>) -> Described {
        let manifest_digest = Digest::of(Algorithm::Sha256, &manifest);
        let config_digest = Digest::of(Algorithm::Sha256, &config);
        Described { manifest, manifest_digest, config, config_digest, layers }
    }

    /// As it was remembered; nothing, where that does not hang together.
    fn again(Entry { manifest, config }: Entry, count: usize) -> Option<Described> {
        let parsed = parse_document("squashfs image", manifest.as_bytes(), None).ok()?;
        let Document::Manifest(parsed) = parsed else { return None };
        let layers: Option<Vec<_>> =
            parsed.layers().iter().map(|layer| descriptor_digest("squashfs image", layer).ok()).collect();
        let named = descriptor_digest("squashfs image", parsed.config()).ok()?;
        let described = Described::of(manifest.into_bytes(), config.into_bytes(), layers?);
        (named == described.config_digest && described.layers.len() == count).then_some(described)
    }

    fn entry(&self) -> Entry {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Entry { manifest: text(&self.manifest), config: text(&self.config) }
    }
}

impl SquashfsSource {
    /// Opens the file at an absolute path; what it is called is remembered in the cache below `home`.
    ///
    /// # Errors
    /// It cannot be opened, or has no squashfs image that can be read.
    pub(crate) fn open(path: &Path, home: Option<&Path>, through: Through) -> Result<SquashfsSource> {
        let file = open_through(path, through)?;
        let within = |e: Error| e.within(&path.display().to_string());
        let sif = Sif::of(&file).map_err(within)?;
        let length = file.metadata().map_err(|e| Error::io("squashfs image", e))?.len();
        let (places, config) = match sif.as_ref().map(|sif| &sif.holds) {
            None => (vec![(0, length)], None),
            Some(Holds::Squashfs(place, _)) => (vec![*place], None),
            Some(Holds::Oci { .. }) => {
                let Squashed { layers, config } = oci(path, &file)?;
                (layers, Some(config))
            }
        };
        // One of several may hide what lies below.
        let hides = places.len() > 1;
        let open = |place: &(u64, u64)| -> Result<Arc<Image>> {
            let file = file.try_clone().map_err(|e| Error::io("squashfs image", e))?;
            Ok(Arc::new(Image::open(file, *place, hides)?))
        };
        let images = places.iter().map(open).collect::<Result<_>>().map_err(within)?;
        Ok(SquashfsSource {
            path: path.to_path_buf(),
            sif,
            images,
            config,
            home: home.map(Path::to_path_buf),
            described: Mutex::default(),
        })
    }

    /// For which architecture the image is, where the file says it outside of a configuration.
    pub(crate) fn architecture(&self) -> Option<&str> {
        match &self.sif.as_ref()?.holds {
            Holds::Squashfs(_, architecture) => Some(architecture),
            Holds::Oci { .. } => None,
        }
    }

    /// Digest of the manifest; the whole file is read for it, unless it is remembered.
    ///
    /// # Errors
    /// The image is damaged or hostile.
    pub(crate) fn digest(&self) -> Result<Digest> {
        Ok(self.described()?.manifest_digest.clone())
    }

    fn described(&self) -> Result<Arc<Described>> {
        let mut kept = self.described.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(described) = &*kept {
            return Ok(Arc::clone(described));
        }
        let before = self.remembered()?;
        let known = before.as_ref().and_then(Remembered::read);
        let known = known.and_then(|entry| Described::again(entry, self.images.len()));
        let described = match known {
            Some(known) => known,
            None => {
                let found = self.describe_anew()?;
                if let (Some(before), Ok(Some(after))) = (&before, self.remembered())
                    && after.is(before)
                {
                    // Without a place for it, the file is read again the next time.
                    let _ = before.write(&found.entry(), std::time::SystemTime::now());
                }
                found
            }
        };
        let described = Arc::new(described);
        *kept = Some(Arc::clone(&described));
        Ok(described)
    }

    fn remembered(&self) -> Result<Option<Remembered>> {
        let (Some(home), Some(image)) = (&self.home, self.images.first()) else { return Ok(None) };
        Ok(Some(Remembered::of(home, &image.file_metadata()?)))
    }

    /// Reads the whole file.
    fn describe_anew(&self) -> Result<Described> {
        let mut layers = Vec::new();
        let mut last = Found::default();
        for image in &self.images {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let mut size = 0_u64;
            let found = image.archive(&Limits::default(), &mut |bytes| {
                hasher.update(bytes);
                size += bytes.len() as u64;
                Ok(())
            });
            last = found.map_err(|e| e.within(&self.path.display().to_string()))?;
            layers.push((hasher.finish(), size));
        }
        let digests: Vec<Digest> = layers.iter().map(|(digest, _)| digest.clone()).collect();
        let config = match (&self.config, digests.as_slice()) {
            (Some(config), _) => {
                let mut config = config.clone();
                let ids: Vec<String> = digests.iter().map(Digest::to_string).collect();
                config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": ids}));
                Value::Object(config)
            }
            (None, [layer]) => configuration(&last, layer),
            (None, _) => return Err(Error::new(ErrorKind::Refused, self.describe(), "it has no layers")),
        };
        let config = config.to_string().into_bytes();
        let layers: Vec<_> = layers.iter().map(|(digest, size)| (outer::LAYER, digest, *size)).collect();
        let manifest = outer::manifest(&config, &layers);
        let manifest = self.sif.as_ref().map_or(manifest.clone(), |sif| signed(&manifest, sif));
        Ok(Described::of(manifest, config, digests))
    }
}

/// The squashfs layers of an OCI image in a SIF file, for this machine. What they are called is read in the file that they are read from.
fn oci(path: &Path, file: &File) -> Result<Squashed> {
    let gone = || {
        let what = format!("sif:{}", path.display());
        Error::new(ErrorKind::NotFound, what, "the file is another one than when it was named")
            .next("submit again")
    };
    let file = file.try_clone().map_err(|e| Error::io("squashfs image", e))?;
    let image = OciSif::of(path, file)?.ok_or_else(gone)?;
    let pinned = image.resolve(&ResolveOptions::default())?;
    image.squashed(&pinned.digest)?.ok_or_else(gone)
}

/// The manifest with what is known of the file's signatures.
fn signed(manifest: &[u8], sif: &Sif) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    manifest["annotations"] = json!({SIF_SIGNATURES: sif.signed()});
    manifest.to_string().into_bytes()
}

/// How the image is to be run: as it was saved, or as enroot's and Apptainer's images have it.
fn configuration(found: &Found, layer: &Digest) -> Value {
    let saved = found.get(CONFIG).and_then(|text| serde_json::from_slice::<ImageConfig>(text).ok());
    let config = saved.unwrap_or_else(|| {
        let mut env = found.get(ENVIRONMENT).map(|text| variables(text)).unwrap_or_default();
        let mut shell = Shell::starting_with(&env);
        inside::VARIABLES.iter().filter_map(|name| found.get(name)).for_each(|script| shell.read(script));
        let exported = shell.exported();
        let names: BTreeSet<&str> = exported.iter().map(|(name, _)| name.as_str()).collect();
        env.retain(|line| line.split_once('=').is_none_or(|(name, _)| !names.contains(name)));
        env.extend(exported.into_iter().map(|(name, value)| format!("{name}={value}")));
        let run = found.contains_key(inside::RUNSCRIPT).then(|| format!("/{}", inside::RUNSCRIPT));
        ImageConfig {
            env,
            entrypoint: run.into_iter().collect(),
            labels: found.get(inside::LABELS).map(|text| inside::labels(text)).unwrap_or_default(),
            ..ImageConfig::default()
        }
    });
    configuration_of(&config, layer)
}

/// An image's configuration for a root filesystem of one layer.
pub(crate) fn configuration_of(config: &ImageConfig, layer: &Digest) -> Value {
    let mut run = Map::new();
    let mut list = |key: &str, words: &[String]| {
        if !words.is_empty() {
            run.insert(key.to_string(), json!(words));
        }
    };
    list("Env", &config.env);
    list("Entrypoint", &config.entrypoint);
    list("Cmd", &config.cmd);
    for (key, text) in
        [("WorkingDir", &config.workdir), ("User", &config.user), ("StopSignal", &config.stop_signal)]
    {
        if !text.is_empty() {
            run.insert(key.to_string(), json!(text));
        }
    }
    if !config.labels.is_empty() {
        run.insert("Labels".to_string(), json!(config.labels));
    }
    json!({
        "architecture": Platform::default().architecture,
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [layer.to_string()]},
    })
}

/// The lines `NAME=VALUE` of a file of variables; quotes around a value are not part of it.
fn variables(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || !name.bytes().all(fits) {
                return None;
            }
            let quoted = |mark| value.strip_prefix(mark).and_then(|v: &str| v.strip_suffix(mark));
            Some(format!("{name}={}", quoted('"').or_else(|| quoted('\'')).unwrap_or(value)))
        })
        .collect()
}

impl BlobSource for SquashfsSource {
    fn describe(&self) -> String {
        let scheme = if self.sif.is_some() { "sif" } else { "sqsh" };
        format!("{scheme}:{}", self.path.display())
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        if kind == BlobKind::SifSignatures {
            // They are in the manifest, which is ours to make.
            return Err(Error::new(ErrorKind::NotFound, self.describe(), "its manifest says it"));
        }
        let described = self.described()?;
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = |bytes: &[u8]| bytes.get(skip..).unwrap_or_default().to_vec();
        if *digest == described.manifest_digest {
            return Ok(Box::new(std::io::Cursor::new(from(&described.manifest))));
        }
        if *digest == described.config_digest {
            return Ok(Box::new(std::io::Cursor::new(from(&described.config))));
        }
        let Some(image) =
            described.layers.iter().position(|layer| layer == digest).and_then(|n| self.images.get(n))
        else {
            return Err(Error::new(
                ErrorKind::NotFound,
                self.describe(),
                format!("it has no blob {digest}: the file is another one than when it was named"),
            )
            .next("submit again"));
        };
        let mut layer = Layer::of(Arc::clone(image));
        std::io::copy(&mut (&mut layer).take(offset), &mut std::io::sink())
            .map_err(|e| Error::io(self.describe(), e))?;
        Ok(Box::new(layer))
    }

    fn read_through(&self) -> Option<String> {
        self.images.first().and_then(|image| words_of(image.file()))
    }
}

/// The archive as a stream: a thread of its own makes it.
struct Layer {
    pieces: Receiver<Result<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
}

impl Layer {
    fn of(image: Arc<Image>) -> Layer {
        let (out, pieces) = sync_channel(QUEUE);
        let failed = out.clone();
        let begun = std::thread::Builder::new().spawn(move || {
            let mut piece = Vec::with_capacity(CHUNK);
            let gone = || Error::new(ErrorKind::Io, "squashfs image", "nobody reads it any more");
            let made = image.archive(&Limits::default(), &mut |bytes| {
                piece.extend_from_slice(bytes);
                if piece.len() >= CHUNK {
                    let full = std::mem::replace(&mut piece, Vec::with_capacity(CHUNK));
                    out.send(Ok(full)).map_err(|_| gone())?;
                }
                Ok(())
            });
            // A reader that is gone has its own reasons.
            let _ = out.send(made.map(|_| piece));
        });
        if let Err(e) = begun {
            // It is the first word of this one, for which there is room.
            let _ = failed.send(Err(Error::io("the thread that reads a squashfs image", e)));
        }
        Layer { pieces, current: Vec::new(), at: 0 }
    }
}

impl Read for Layer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.current.len() {
            match self.pieces.recv() {
                Ok(Ok(piece)) => (self.current, self.at) = (piece, 0),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.current[self.at..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_an_environment_file() {
        let text = b"# comment\nPATH=/usr/bin:/bin\nA=\"x y\"\nB='z'\n=no\nbad name=1\nC=\n";
        assert_eq!(variables(text), ["PATH=/usr/bin:/bin", "A=x y", "B=z", "C="]);
    }
}
