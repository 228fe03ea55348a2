//! Images in the stores that engines keep on this machine: podman's of the user, and that of docker's daemon.
//!
//! Neither store is read by us: podman's belongs to ids that only its own user namespace has, docker's to root. Both
//! engines write an image as a docker-archive, of uncompressed layers, whose digests the configuration has: so an image has
//! the same manifest wherever it is written. The archive goes into a file without a name, which is gone with the
//! process, however that ends.

mod daemon;
mod podman;
mod spool;

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::Deserialize;

use super::layout::ArchiveSource;
use super::{BlobKind, BlobSource, ResolveOptions, ResolvedManifest, read_verified, resolve_layout};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result, printable};
use crate::manifest::{Document, descriptor_digest, parse_document};
use crate::reference::Engine;
use crate::remembered::{Entry, Remembered};
use crate::unpack::Limits;
pub(crate) use podman::leave_nothing_running;
use spool::Spool;

/// Bytes of an engine's complaint that are shown.
const WORDS: usize = 300;

/// What both engines say of an image when they are asked to inspect it.
#[derive(Deserialize)]
struct Inspected {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Size")]
    size: u64,
}

/// What an engine knows of an image without writing it.
struct Seen {
    /// Digest of its configuration, or of its manifest, as the engine has it.
    id: Digest,
    /// Bytes, by the engine's own count.
    size: u64,
}

/// An image of an engine, by its id.
pub(super) struct EngineSource {
    engine: Engine,
    id: Digest,
    home: Option<PathBuf>,
    described: Mutex<Option<Arc<Described>>>,
    archive: Mutex<Option<Arc<ArchiveSource>>>,
}

/// Manifest and configuration.
struct Described {
    manifest: (Digest, Vec<u8>),
    config: (Digest, Vec<u8>),
}

impl Described {
    /// Of the bytes of both; nothing, where the one does not name the other.
    fn of(what: &str, manifest: Vec<u8>, config: Vec<u8>) -> Option<Described> {
        let Ok(Document::Manifest(parsed)) = parse_document(what, &manifest, None) else { return None };
        let named = descriptor_digest(what, parsed.config()).ok()?;
        let digest = Digest::of(Algorithm::Sha256, &config);
        (named == digest).then(|| Described {
            manifest: (Digest::of(Algorithm::Sha256, &manifest), manifest),
            config: (digest, config),
        })
    }
}

/// Pins the image that has this name now.
pub(super) fn resolve(
    engine: Engine,
    name: &str,
    home: Option<&Path>,
    options: &ResolveOptions,
) -> Result<ResolvedManifest> {
    let shown = format!("{}:{name}", engine.scheme());
    let seen = look(engine, name)?.ok_or_else(|| {
        let (store, list) = match engine {
            Engine::Podman => ("your own storage of podman's has", "podman images"),
            Engine::Docker => ("docker's daemon has", "docker image ls"),
        };
        Error::new(ErrorKind::NotFound, &shown, format!("{store} no image of that name"))
            .next(format!("look with `{list}`; an image of a registry is named without {}:", engine.scheme()))
    })?;
    let source = EngineSource::new(engine, seen.id, home);
    let digest = source.describe_for(options)?.manifest.0.clone();
    Ok(ResolvedManifest {
        source: source.describe(),
        digest,
        insecure: false,
        name: Some(shown),
        indexes: Vec::new(),
        pin: None,
    })
}

fn look(engine: Engine, name: &str) -> Result<Option<Seen>> {
    match engine {
        Engine::Podman => podman::look(name),
        Engine::Docker => daemon::Daemon::of_environment()?.look(name),
    }
}

impl EngineSource {
    pub(super) fn new(engine: Engine, id: Digest, home: Option<&Path>) -> EngineSource {
        let home = home.map(Path::to_path_buf);
        EngineSource { engine, id, home, described: Mutex::default(), archive: Mutex::default() }
    }

    /// Manifest and configuration: as they are remembered of an image that the engine still has, or from the whole image.
    fn describe_for(&self, options: &ResolveOptions) -> Result<Arc<Described>> {
        let mut kept = locked(&self.described);
        if let Some(described) = &*kept {
            return Ok(Arc::clone(described));
        }
        let what = self.describe();
        let place =
            self.home.as_deref().map(|home| Remembered::of_image(home, self.engine.scheme(), &self.id));
        let known = place.as_ref().and_then(Remembered::read).and_then(|Entry { manifest, config }| {
            Described::of(&what, manifest.into_bytes(), config.into_bytes())
        });
        let described = match known {
            // Only who has the image is told of it.
            Some(known) => self.seen().map(|_| known)?,
            None => {
                let archive = self.archive()?;
                let limits = Limits::default();
                let digest =
                    resolve_layout(archive.as_ref(), None, options).map_err(|e| e.within(&what))?.digest;
                let manifest =
                    read_verified(archive.as_ref(), BlobKind::Manifest, &digest, limits.manifest_bytes)?;
                let inconsistent = || {
                    Error::new(
                        ErrorKind::Corrupt,
                        &what,
                        "its manifest and configuration do not belong together",
                    )
                };
                let Document::Manifest(parsed) = parse_document(&what, &manifest, None)? else {
                    return Err(inconsistent());
                };
                let config = descriptor_digest(&what, parsed.config())?;
                let config = read_verified(archive.as_ref(), BlobKind::Blob, &config, limits.config_bytes)?;
                let found = Described::of(&what, manifest, config).ok_or_else(inconsistent)?;
                if let Some(place) = &place {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let entry = Entry { manifest: text(&found.manifest.1), config: text(&found.config.1) };
                    // Without a place for it, the image is read again the next time.
                    let _ = place.write(&entry, SystemTime::now());
                }
                found
            }
        };
        let described = Arc::new(described);
        *kept = Some(Arc::clone(&described));
        Ok(described)
    }

    fn seen(&self) -> Result<Seen> {
        look(self.engine, &self.id.to_string())?.ok_or_else(|| {
            let (store, get) = match self.engine {
                Engine::Podman => (
                    format!("the storage of podman's that user {} has on this machine", rustix::process::geteuid().as_raw()),
                    "podman",
                ),
                Engine::Docker => ("docker's daemon on this machine".to_owned(), "docker"),
            };
            Error::new(
                ErrorKind::NotFound,
                self.describe(),
                format!("{store} does not have the image: it was removed since it was named, or is on another machine"),
            )
            .next(format!(
                "get it there with {get} and submit again, or push it to a registry that all machines reach and name it there"
            ))
        })
    }

    /// The whole image, which the engine writes when it is first needed.
    fn archive(&self) -> Result<Arc<ArchiveSource>> {
        let mut kept = locked(&self.archive);
        if let Some(archive) = &*kept {
            return Ok(Arc::clone(archive));
        }
        let seen = self.seen()?;
        let what = self.describe();
        let mut spool = Spool::new(&what, seen.size)?;
        match self.engine {
            Engine::Podman => podman::save(&self.id, &mut spool)?,
            Engine::Docker => daemon::Daemon::of_environment()?.save(&self.id, &mut spool)?,
        }
        let archive = Arc::new(ArchiveSource::saved(Path::new(&what), spool.into_file()?)?);
        *kept = Some(Arc::clone(&archive));
        Ok(archive)
    }
}

impl BlobSource for EngineSource {
    fn describe(&self) -> String {
        format!("{}:{}", self.engine.scheme(), self.id)
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        let described = self.describe_for(&ResolveOptions::default())?;
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let made = [&described.manifest, &described.config].into_iter().find(|(known, _)| known == digest);
        match made {
            Some((_, bytes)) => Ok(Box::new(Cursor::new(bytes.get(skip..).unwrap_or_default().to_vec()))),
            None => self.archive()?.open(kind, digest, offset).map_err(|e| e.within(&self.describe())),
        }
    }
}

fn locked<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an engine complains of, in one line.
fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    printable(last.trim_start_matches("Error: "), WORDS)
}
