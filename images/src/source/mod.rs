//! Where blobs come from: one trait, whatever stands behind it, and the way from a reference to a pinned image.

mod docker;
mod engine;
mod layout;
mod oci_sif;
mod sniff;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berth_model::pin::{FilePin, file_of};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result, printable, recover};
use crate::known::Manifests;
use crate::manifest::{Document, Platform, choose, descriptor_digest, parse_document};
use crate::reference::{Engine, Reference, RegistryRef};
use crate::registry::{Credentials, Registries, Registry};
use crate::squashfs::SquashfsSource;
use crate::store::SeenFile;
use crate::unpack::Limits;

use engine::EngineSource;
pub(crate) use engine::leave_nothing_running;
pub use layout::{ArchiveSource, LayoutSource};
pub(crate) use oci_sif::{OciSif, Squashed};
pub use sniff::Through;
pub(crate) use sniff::{open_regular, open_through, read_regular};

/// Most bytes of a canonical source: as many as a path may have.
const MOST_SOURCE: usize = 4096;

/// Registries keep manifests apart from all other blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobKind {
    /// A manifest or index.
    Manifest,
    /// A manifest, of somebody who says who may have it: not of a mirror that gives it to everyone.
    Proof,
    /// A configuration or layer.
    Blob,
    /// Whether somebody who says who may have it has a layer: of a registry alone, which answers without the bytes.
    Held,
    /// The content of a layer, by its DiffID: of nodes of a cluster alone, which keep no compressed layers.
    Archive,
    /// Which read-only images of the layer with this DiffID nodes agree on, as JSON: of nodes of a cluster alone.
    Forms,
    /// What travels of such an image, by its own digest: of nodes of a cluster alone.
    Form,
    /// What a registry has of signatures of a manifest, as one document that nobody vouches for.
    Signatures,
    /// What a SIF file says of its own signatures, as a line of text that nobody vouches for.
    SifSignatures,
}

/// A place that has blobs. It is trusted for nothing: every reader checks digest and size.
pub trait BlobSource: Send + Sync {
    /// What this is, for messages, such as `docker://docker.io/library/debian`.
    fn describe(&self) -> String;

    /// Opens a blob at byte `offset`. Readers of one source are used by several threads at once.
    ///
    /// # Errors
    /// The blob does not exist, is not permitted, or the source cannot be reached.
    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>>;

    /// Whether it gives layers as [`BlobKind::Archive`] alone, and has no word of a registry's to give: other nodes of a cluster.
    fn is_peers(&self) -> bool {
        false
    }

    /// The one file through which all that it gives is read, as that is now, in words that every process of this machine has for it;
    /// nothing, where there is none, or the kernel does not tell.
    fn read_through(&self) -> Option<String> {
        None
    }
}

/// What [`BlobSource::read_through`] says of a file.
pub(crate) fn words_of(file: &File) -> Option<String> {
    SeenFile::of(file).and_then(|file| serde_json::to_string(&file).ok())
}

/// Reads a whole small blob, bounded and verified.
pub(crate) fn read_verified(
    source: &dyn BlobSource,
    kind: BlobKind,
    digest: &Digest,
    limit: u64,
) -> Result<Vec<u8>> {
    let what = || format!("{digest} of {}", source.describe());
    let mut bytes = Vec::new();
    source.open(kind, digest, 0)?.take(limit + 1).read_to_end(&mut bytes).map_err(|e| recover(&what(), e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(ErrorKind::Refused, what(), format!("it is larger than {limit} bytes"))
            .next("no image needs one this large; check what the name points to"));
    }
    verify(&what(), &bytes, digest)?;
    Ok(bytes)
}

/// Refuses bytes that do not have the digest that names them.
pub(crate) fn verify(what: &str, bytes: &[u8], digest: &Digest) -> Result<()> {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    let found = hasher.finish();
    if found == *digest { Ok(()) } else { Err(mismatch(what, digest, &found)) }
}

pub(crate) fn mismatch(what: &str, wanted: &Digest, found: &Digest) -> Error {
    Error::new(ErrorKind::Corrupt, what, format!("the bytes have digest {found} and not {wanted}"))
        .next("the copy there is damaged or was tampered with; nothing was kept. Push the image again, or use another source")
}

/// What a reference means right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// An image, pinned by digest.
    Manifest(ResolvedManifest),
    /// An unpacked root directory, used in place. The path is absolute.
    RootDir(PathBuf),
    /// The node's own file system.
    Host,
}

/// An image pinned by the digest of its manifest for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedManifest {
    /// Canonical source, which [`open_source`] opens: `docker://registry/repository`, `oci:/path`,
    /// `oci-archive:/path`, `docker-archive:/path`, `sqsh:/path`, `sif:/path`, `containers-storage:ID` or
    /// `docker-daemon:ID`.
    pub source: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Whether the registry was spoken to without TLS, and is where the image is fetched.
    #[serde(default)]
    pub insecure: bool,
    /// The name under which people list and remove the image: the reference's canonical spelling.
    #[serde(default)]
    pub name: Option<String>,
    /// The indexes on the way from the name to the manifest, outermost first: a signature may be of one of them.
    #[serde(default)]
    pub indexes: Vec<Digest>,
    /// The file that it is from, as it was when it was read.
    #[serde(default)]
    pub pin: Option<FilePin>,
}

/// How to resolve and open.
#[derive(Clone, Debug, Default)]
pub struct ResolveOptions {
    /// How registries are reached.
    pub registries: Registries,
    /// Manifests that were read before; by default nothing is known.
    pub manifests: Manifests,
    /// For which platform; this machine's by default.
    pub platform: Platform,
    /// Directory that relative paths start from; the process's own by default.
    pub directory: Option<PathBuf>,
}

/// Finds out what `reference` means: asks the registry with the person's own login, or looks into the file.
/// No layer is fetched.
///
/// # Errors
/// The image does not exist, the login is refused, the registry cannot be reached, no architecture fits, or the
/// path holds none of the supported forms; each with the next step.
pub fn resolve(
    reference: &Reference,
    credentials: &Credentials,
    options: &ResolveOptions,
) -> Result<Resolved> {
    // As it was before it was read and after: else nobody knows which was read.
    let before =
        named_file(reference, credentials, options).and_then(|path| pin_of(&path, Through::Links).ok());
    let mut found = resolve_unpinned(reference, credentials, options)?;
    if let (Resolved::Manifest(image), Some(before)) = (&mut found, before) {
        image.pin = file_pin(&image.source, Through::Links).ok().filter(|after| *after == before);
    }
    Ok(found)
}

/// The file of a canonical source as it is now, opened by whoever asks.
///
/// # Errors
/// The source is no file, or it cannot be opened by such a way.
pub fn file_pin(source: &str, through: Through) -> Result<FilePin> {
    let path = file_of(source).ok_or_else(|| {
        Error::new(ErrorKind::Reference, printable(source, 200), "is no file")
            .next("resolve the image reference again")
    })?;
    pin_of(Path::new(path), through)
}

/// Of a layout, the file that names its images.
fn pin_of(path: &Path, through: Through) -> Result<FilePin> {
    let index = path.join("index.json");
    let path = if path.is_dir() { index.as_path() } else { path };
    let found = open_through(path, through)?.metadata().map_err(|e| Error::path(path, e))?;
    let modified = found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec());
    Ok(FilePin { inode: found.ino(), size: found.size(), modified })
}

fn named_file(reference: &Reference, credentials: &Credentials, options: &ResolveOptions) -> Option<PathBuf> {
    match reference {
        Reference::Path(path)
        | Reference::Oci { path, .. }
        | Reference::OciArchive { path, .. }
        | Reference::DockerArchive { path, .. } => absolute(path, credentials, options).ok(),
        Reference::Host | Reference::Registry(_) | Reference::Engine { .. } => None,
    }
}

fn resolve_unpinned(
    reference: &Reference,
    credentials: &Credentials,
    options: &ResolveOptions,
) -> Result<Resolved> {
    match reference {
        Reference::Host => Ok(Resolved::Host),
        Reference::Registry(name) => resolve_registry(name, credentials, options).map(Resolved::Manifest),
        Reference::Engine { engine, name } => {
            engine::resolve(*engine, name, credentials.home(), options).map(Resolved::Manifest)
        }
        Reference::Oci { path, name } => {
            let path = absolute(path, credentials, options)?;
            resolve_layout(&LayoutSource::open(&path)?, name.as_deref(), options).map(Resolved::Manifest)
        }
        Reference::OciArchive { path, name } => {
            let path = absolute(path, credentials, options)?;
            resolve_layout(&ArchiveSource::open(&path)?, name.as_deref(), options).map(Resolved::Manifest)
        }
        Reference::DockerArchive { path, name } => {
            let path = absolute(path, credentials, options)?;
            resolve_layout(&ArchiveSource::open_docker(&path)?, name.as_deref(), options)
                .map(Resolved::Manifest)
        }
        Reference::Path(path) => {
            let path = absolute(path, credentials, options)?;
            match sniff::sniff(&path)? {
                sniff::Form::Layout => {
                    resolve_layout(&LayoutSource::open(&path)?, None, options).map(Resolved::Manifest)
                }
                sniff::Form::Archive => {
                    resolve_layout(&ArchiveSource::open(&path)?, None, options).map(Resolved::Manifest)
                }
                sniff::Form::Squashfs => {
                    if let Some(image) = OciSif::open(&path, Through::Links)? {
                        let found = image.resolve(options)?;
                        if image.squashed(&found.digest)?.is_none() {
                            return Ok(Resolved::Manifest(found));
                        }
                    }
                    let source = SquashfsSource::open(&path, credentials.home(), Through::Links)?;
                    let wanted = &options.platform.architecture;
                    if let Some(found) = source.architecture()
                        && found != wanted
                    {
                        return Err(Error::new(
                            ErrorKind::Unsupported,
                            source.describe(),
                            format!("it is for linux/{found}, and this machine is linux/{wanted}"),
                        )
                        .next("use an image that was built for this machine"));
                    }
                    let digest = source.digest()?;
                    let source = source.describe();
                    let name = Some(source.clone());
                    Ok(Resolved::Manifest(ResolvedManifest {
                        source,
                        digest,
                        insecure: false,
                        name,
                        indexes: Vec::new(),
                        pin: None,
                    }))
                }
                sniff::Form::RootDir => Ok(Resolved::RootDir(path)),
            }
        }
    }
}

/// Opens the source of a pinned image.
///
/// # Errors
/// The text is not a canonical source, or the file is gone. A registry is asked only when a blob is opened.
pub fn open_source(
    image: &ResolvedManifest,
    registries: &Registries,
    credentials: &Credentials,
) -> Result<Box<dyn BlobSource>> {
    open_source_through(image, registries, credentials, Through::Links)
}

/// As [`open_source`], of files by a way that may have links or not.
///
/// # Errors
/// As there; or there is a link on the way where there may be none.
pub fn open_source_through(
    image: &ResolvedManifest,
    registries: &Registries,
    credentials: &Credentials,
    through: Through,
) -> Result<Box<dyn BlobSource>> {
    let source = image.source.as_str();
    if source.len() > MOST_SOURCE || source.chars().any(char::is_control) {
        let shown = printable(source, 200);
        return Err(Error::new(
            ErrorKind::Reference,
            format!("source {shown:?}"),
            format!("has control characters, or more than {MOST_SOURCE} bytes"),
        )
        .next("resolve the image reference again"));
    }
    let relative = || {
        Error::new(
            ErrorKind::Reference,
            format!("source {source:?}"),
            "is none of docker://, oci:/path, oci-archive:/path, docker-archive:/path, sqsh:/path, sif:/path, \
             containers-storage:ID, docker-daemon:ID",
        )
        .next("resolve the image reference again")
    };
    if let Some(path) = source.strip_prefix("oci-archive:").map(Path::new) {
        return if path.is_absolute() {
            Ok(Box::new(ArchiveSource::open_as(path, false, through)?))
        } else {
            Err(relative())
        };
    }
    if let Some(path) = source.strip_prefix("docker-archive:").map(Path::new) {
        return if path.is_absolute() {
            Ok(Box::new(ArchiveSource::open_as(path, true, through)?))
        } else {
            Err(relative())
        };
    }
    if let Some(path) = source.strip_prefix("sqsh:").or_else(|| source.strip_prefix("sif:")) {
        let path = Path::new(path);
        if !path.is_absolute() {
            return Err(relative());
        }
        return match OciSif::open(path, through)? {
            Some(held) if held.has(&image.digest) => Ok(Box::new(held)),
            _ => Ok(Box::new(SquashfsSource::open(path, credentials.home(), through)?)),
        };
    }
    if let Some(path) = source.strip_prefix("oci:") {
        let path = Path::new(path);
        return if path.is_absolute() {
            Ok(Box::new(LayoutSource::open_through(path, through)?))
        } else {
            Err(relative())
        };
    }
    if let Some((engine, id)) = Engine::of(source) {
        let id = id.parse().map_err(|_| relative())?;
        return Ok(Box::new(EngineSource::new(engine, id, credentials.home())));
    }
    if !source.starts_with("docker://") {
        return Err(relative());
    }
    let Reference::Registry(name) = source.parse()? else { return Err(relative()) };
    let registries =
        if image.insecure { registries.clone().without_tls(&name.registry) } else { registries.clone() };
    Ok(Box::new(Registry::new(&name, credentials, &registries)?))
}

/// What a path is without links; what is not there any more keeps its name, behind what is.
///
/// # Errors
/// The way to it cannot be looked at, or a link on it leads nowhere, so that it may lead anywhere soon.
pub fn real_path(path: &Path) -> Result<PathBuf> {
    let mut there = path;
    loop {
        match there.canonicalize() {
            Ok(real) => {
                let gone = path.strip_prefix(there).unwrap_or(Path::new(""));
                return Ok(if gone.as_os_str().is_empty() { real } else { real.join(gone) });
            }
            Err(e) => {
                let missing = e.kind() == std::io::ErrorKind::NotFound && there.symlink_metadata().is_err();
                there = there.parent().filter(|_| missing).ok_or_else(|| Error::path(there, e))?;
            }
        }
    }
}

fn absolute(path: &Path, credentials: &Credentials, options: &ResolveOptions) -> Result<PathBuf> {
    let path = match path.strip_prefix("~") {
        Ok(rest) => credentials
            .home()
            .ok_or_else(|| {
                Error::new(ErrorKind::Reference, path.display().to_string(), "HOME is not set")
                    .next("write the whole path")
            })?
            .join(rest),
        Err(_) => match &options.directory {
            Some(directory) => directory.join(path),
            None => path.to_path_buf(),
        },
    };
    let path = path.canonicalize().map_err(|e| {
        let next = if e.kind() == std::io::ErrorKind::NotFound {
            "check the path; an image of a registry is named without ./ and /"
        } else {
            ""
        };
        Error::path(&path, e).next(next)
    })?;
    // The canonical source is text, in records and messages of several programs.
    if path.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
        return Err(Error::new(
            ErrorKind::Reference,
            path.display().to_string(),
            "the path is not printable UTF-8",
        )
        .next("give it another name, or a symbolic link with one"));
    }
    Ok(path)
}

fn resolve_registry(
    name: &RegistryRef,
    credentials: &Credentials,
    options: &ResolveOptions,
) -> Result<ResolvedManifest> {
    let registry = Registry::new(name, credentials, &options.registries)?;
    let what = Reference::Registry(name.clone()).to_string();
    let known = &options.manifests;
    let fetch = |digest: &Digest| {
        if let Some(bytes) = known.get(digest) {
            return Ok(bytes);
        }
        let bytes = read_verified(&registry, BlobKind::Manifest, digest, Limits::default().manifest_bytes)?;
        known.put(digest, &bytes);
        Ok(bytes)
    };
    let pinned = |(digest, indexes)| {
        let insecure = options.registries.is_insecure(&name.registry);
        Ok(ResolvedManifest {
            source: name.source(),
            digest,
            insecure,
            name: Some(what.clone()),
            indexes,
            pin: None,
        })
    };
    // Asking what a name means shows that one may know it, too.
    let mut selector = name.selector();
    if known.any()
        && let Some(digest) = registry.digest_of(&selector)?
    {
        if let Some(bytes) = known.get(&digest)
            && let Ok(found) = descend(&what, bytes, None, digest.clone(), &options.platform, &fetch)
        {
            return pinned(found);
        }
        selector = digest.to_string();
    }
    let (bytes, content_type, first) = registry.manifest(&selector)?;
    let found =
        descend(&what, bytes.clone(), content_type.as_deref(), first.clone(), &options.platform, &fetch)?;
    known.put(&first, &bytes);
    pinned(found)
}

/// Follows indexes until a manifest for the platform is found, and gives its digest, and the indexes, outermost first.
fn descend(
    what: &str,
    bytes: Vec<u8>,
    content_type: Option<&str>,
    digest: Digest,
    platform: &Platform,
    fetch: &dyn Fn(&Digest) -> Result<Vec<u8>>,
) -> Result<(Digest, Vec<Digest>)> {
    let mut indexes = Vec::new();
    let mut bytes = bytes;
    let mut digest = digest;
    let mut content_type = content_type;
    for _ in 0..4 {
        match parse_document(what, &bytes, content_type)? {
            Document::Manifest(manifest) => {
                crate::manifest::check_config_type(what, &manifest)?;
                return Ok((digest, indexes));
            }
            Document::Index(index) => {
                indexes.push(digest);
                digest = descriptor_digest(what, choose(what, &index, platform)?)?;
                bytes = fetch(&digest)?;
                content_type = None;
            }
        }
    }
    Err(Error::new(ErrorKind::Refused, what, "its indexes are nested more than three deep")
        .next("push the image again with a current tool"))
}

/// A source that also lists what it has: an OCI layout, be it a directory or a tar file.
pub(crate) trait Layout: BlobSource {
    fn index(&self) -> Result<Vec<u8>>;

    /// Whether each image without a name is one that somebody asked for, and not the same for another platform.
    fn nameless_differ(&self) -> bool {
        false
    }
}

fn resolve_layout<L: Layout>(
    layout: &L,
    name: Option<&str>,
    options: &ResolveOptions,
) -> Result<ResolvedManifest> {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let source = layout.describe();
    let Document::Index(index) = parse_document(&source, &layout.index()?, None)? else {
        return Err(Error::new(ErrorKind::Refused, source, "its index.json is a manifest and not an index")
            .next("make the layout again"));
    };
    let named = |d: &oci_spec::image::Descriptor| d.annotations().as_ref().and_then(|a| a.get(NAME)).cloned();
    let mut selected = index.clone();
    let mut manifests = index.manifests().clone();
    if let Some(name) = name {
        if manifests.iter().any(|d| named(d).as_deref() == Some(name)) {
            manifests.retain(|d| named(d).as_deref() == Some(name));
        } else {
            // Written in another way: tools put docker.io/library/debian:12 where people say debian:12.
            let meaning = |text: &str| text.parse::<Reference>().ok();
            let wanted = meaning(name);
            manifests.retain(|d| wanted.is_some() && named(d).and_then(|text| meaning(&text)) == wanted);
        }
    }
    // Two names of one image are one image.
    let mut seen = BTreeSet::new();
    manifests.retain(|d| seen.insert(d.digest().to_string()));
    selected.set_manifests(manifests);
    let mut names: Vec<String> = index.manifests().iter().filter_map(named).collect();
    names.sort();
    names.dedup();
    if selected.manifests().is_empty() {
        let have = if names.is_empty() { "no named images".to_owned() } else { names.join(", ") };
        return Err(Error::new(
            ErrorKind::NotFound,
            source.clone(),
            format!("there is no image of that name (it has: {have})"),
        )
        .next(format!("write {source}:NAME with one of its names, or no name for the only image")));
    }
    let nameless = layout.nameless_differ() && index.manifests().iter().any(|d| named(d).is_none());
    if name.is_none() && seen.len() > 1 && (nameless || names.len() > 1) {
        let mut have = names;
        let next = if have.is_empty() {
            "save them by their names, or each in a file of its own".to_owned()
        } else {
            format!("write {source}:NAME")
        };
        if nameless {
            have.push("some without a name".to_owned());
        }
        return Err(Error::new(
            ErrorKind::Reference,
            source.clone(),
            format!("it has several images: {}", have.join(", ")),
        )
        .next(next));
    }
    let fetch =
        |digest: &Digest| read_verified(layout, BlobKind::Manifest, digest, Limits::default().manifest_bytes);
    let first = descriptor_digest(&source, choose(&source, &selected, &options.platform)?)?;
    // Nobody signs what a file holds, so that the way to the manifest is of no interest.
    let (digest, _) = descend(&source, fetch(&first)?, None, first, &options.platform, &fetch)?;
    let shown = name.map_or_else(|| source.clone(), |name| format!("{source}:{name}"));
    Ok(ResolvedManifest {
        source,
        digest,
        insecure: false,
        name: Some(shown),
        indexes: Vec::new(),
        pin: None,
    })
}
