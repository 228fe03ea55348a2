//! OCI layouts: a directory, or the same in a tar file (image specification, image-layout.md); and the tar file of `docker save`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::docker::{Blob, Images};
use super::sniff::{Through, open_through, read_small};
use super::{BlobKind, BlobSource, Layout, words_of};
use crate::archive::{EntryKind, Reader};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::outer::blob_name;
use crate::unpack::{CleanPath, Limits};

/// Bytes of `oci-layout`.
const MAX_MARKER: u64 = 1 << 16;
/// Members of a tar file that holds an OCI layout.
const MAX_MEMBERS: usize = 1 << 20;

/// An OCI layout directory.
pub struct LayoutSource {
    path: PathBuf,
    through: Through,
}

impl LayoutSource {
    /// Opens the layout at an absolute path.
    ///
    /// # Errors
    /// There is none, or its version is unknown.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_through(path, Through::Links)
    }

    pub(super) fn open_through(path: &Path, through: Through) -> Result<Self> {
        let what = format!("oci:{}", path.display());
        if !path.is_dir() {
            let reason = if path.exists() { "is not a directory" } else { "does not exist" };
            return Err(Error::new(ErrorKind::NotFound, what, reason)
                .next("an OCI layout is a directory with oci-layout, index.json and blobs; a tar file of it is named oci-archive:FILE"));
        }
        let marker = read_small(&path.join("oci-layout"), through, MAX_MARKER).map_err(|e| {
            if e.kind() == ErrorKind::NotFound {
                Error::new(
                    ErrorKind::Unsupported,
                    what.clone(),
                    "is not an OCI layout: it has no file oci-layout",
                )
                .next("name the directory that holds oci-layout; a root directory is named by its path alone")
            } else {
                e
            }
        })?;
        check_marker(&what, &marker)?;
        Ok(Self { path: path.to_path_buf(), through })
    }
}

impl BlobSource for LayoutSource {
    fn describe(&self) -> String {
        format!("oci:{}", self.path.display())
    }

    fn open(&self, _: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        let path = self.path.join("blobs").join(digest.algorithm().name()).join(digest.hex());
        let mut file = open_through(&path, self.through).map_err(|e| missing(e, &self.describe(), digest))?;
        file.seek(SeekFrom::Start(offset)).map_err(|e| Error::path(&path, e))?;
        Ok(Box::new(file))
    }
}

impl Layout for LayoutSource {
    fn index(&self) -> Result<Vec<u8>> {
        read_small(&self.path.join("index.json"), self.through, Limits::default().manifest_bytes)
    }
}

/// A tar file that holds an OCI layout, or what `docker save` writes, read in place.
pub struct ArchiveSource {
    path: PathBuf,
    file: Arc<File>,
    /// Offset and length of each regular member.
    pub(super) members: HashMap<Vec<u8>, (u64, u64)>,
    /// Targets of symbolic links.
    pub(super) links: HashMap<Vec<u8>, Vec<u8>>,
    /// Of an archive of docker's.
    docker: Option<Images>,
}

impl ArchiveSource {
    /// Opens the file at an absolute path and finds its members. One that is of both forms is read as an OCI layout.
    ///
    /// # Errors
    /// It is not a tar file, or one of neither form.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, false, Through::Links)
    }

    /// As [`ArchiveSource::open`], for one that was called an archive of docker's: it is read as that if it is of both forms.
    ///
    /// # Errors
    /// As there.
    pub fn open_docker(path: &Path) -> Result<Self> {
        Self::open_as(path, true, Through::Links)
    }

    pub(super) fn open_as(path: &Path, docker: bool, through: Through) -> Result<Self> {
        let shown = path.display().to_string();
        let mut source = Self::scanned(path, open_through(path, through)?).map_err(|e| e.within(&shown))?;
        let saved = source.members.contains_key(&b"manifest.json"[..]);
        match source.small(b"oci-layout", MAX_MARKER)? {
            _ if docker && saved => source.take_docker()?,
            Some(marker) => check_marker(&source.describe(), &marker)?,
            None if saved => source.take_docker()?,
            None => {
                return Err(Error::new(ErrorKind::Unsupported, shown, "is a tar file with neither oci-layout nor manifest.json, so it is no image")
                    .next("make one with `skopeo copy … oci-archive:FILE.tar`; a tar of a root file system is unpacked first and named as a directory"));
            }
        }
        Ok(source)
    }

    /// What an engine has saved, named `path` in messages. Some engines save an OCI layout, too: as a docker-archive, an image has
    /// the same manifest whichever engine saved it.
    pub(super) fn saved(path: &Path, file: File) -> Result<Self> {
        let mut source = Self::scanned(path, file)?;
        source.take_docker()?;
        Ok(source)
    }

    fn scanned(path: &Path, file: File) -> Result<Self> {
        let (members, links) = scan(&file)?;
        Ok(Self { path: path.to_path_buf(), file: Arc::new(file), members, links, docker: None })
    }

    fn take_docker(&mut self) -> Result<()> {
        let manifest = self.small(b"manifest.json", Limits::default().manifest_bytes)?;
        let images = Images::of(self, &manifest.unwrap_or_default());
        self.docker = Some(images.map_err(|e| e.within(&self.path.display().to_string()))?);
        Ok(())
    }

    pub(super) fn small(&self, name: &[u8], limit: u64) -> Result<Option<Vec<u8>>> {
        let Some((offset, length)) = self.members.get(name).copied() else {
            return Ok(None);
        };
        if length > limit {
            return Err(Error::new(
                ErrorKind::Refused,
                self.path.display().to_string(),
                format!("its member {:?} is larger than {limit} bytes", String::from_utf8_lossy(name)),
            )
            .next("no image needs one this large; make the archive again"));
        }
        let mut bytes = Vec::new();
        self.member(offset, length, 0).read_to_end(&mut bytes).map_err(|e| Error::path(&self.path, e))?;
        Ok(Some(bytes))
    }

    pub(super) fn member(&self, offset: u64, length: u64, skip: u64) -> Member {
        Member::of(&self.file, (offset, length), skip)
    }
}

impl BlobSource for ArchiveSource {
    fn describe(&self) -> String {
        let scheme = if self.docker.is_some() { "docker-archive" } else { "oci-archive" };
        format!("{scheme}:{}", self.path.display())
    }

    fn open(&self, _: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        if let Some(images) = &self.docker {
            return match images.blobs.get(digest) {
                Some(Blob::Made(bytes)) => {
                    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
                    Ok(Box::new(Cursor::new(bytes.get(skip..).unwrap_or_default().to_vec())))
                }
                Some(Blob::Member(start, length)) => Ok(Box::new(self.member(*start, *length, offset))),
                None => Err(no_blob(&self.describe(), digest)),
            };
        }
        let name = blob_name(digest);
        match self.members.get(name.as_bytes()) {
            Some((start, length)) => Ok(Box::new(self.member(*start, *length, offset))),
            None => Err(no_blob(&self.describe(), digest)),
        }
    }

    fn read_through(&self) -> Option<String> {
        words_of(&self.file)
    }
}

impl Layout for ArchiveSource {
    fn index(&self) -> Result<Vec<u8>> {
        if let Some(images) = &self.docker {
            return Ok(images.index.clone());
        }
        self.small(b"index.json", Limits::default().manifest_bytes)?.ok_or_else(|| {
            Error::new(ErrorKind::Refused, self.describe(), "it has no index.json")
                .next("make the archive again")
        })
    }

    fn nameless_differ(&self) -> bool {
        self.docker.is_some()
    }
}

/// A part of a file, read without moving the file's position.
pub(super) struct Member {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Member {
    /// What lies at a place of so many bytes, without the first `skip`.
    pub(super) fn of(file: &Arc<File>, (offset, length): (u64, u64), skip: u64) -> Member {
        let skip = skip.min(length);
        Member { file: Arc::clone(file), at: offset + skip, left: length - skip }
    }
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Counts where it is, and skips by seeking.
struct Position {
    inner: BufReader<File>,
    at: u64,
}

impl Read for Position {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl BufRead for Position {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.at += amount as u64;
    }
}

type Members = HashMap<Vec<u8>, (u64, u64)>;
type Links = HashMap<Vec<u8>, Vec<u8>>;

fn scan(file: &File) -> Result<(Members, Links)> {
    let total = file.metadata().map_err(|e| Error::io("archive", e))?.len();
    let file = file.try_clone().map_err(|e| Error::io("archive", e))?;
    let mut reader = Reader::new(Position { inner: BufReader::new(file), at: 0 });
    let (mut members, mut links) = (HashMap::new(), HashMap::new());
    while let Some(entry) = reader.next()? {
        if entry.kind == EntryKind::Symlink {
            let path = CleanPath::new(&entry.path, Limits::default().depth)?;
            links.insert(path.as_bytes().to_vec(), entry.link.clone());
            if links.len() > MAX_MEMBERS {
                return Err(crate::archive::refused(&[], "the archive has too many members to be an image"));
            }
        }
        if entry.kind == EntryKind::File && entry.sparse.is_none() {
            let path = CleanPath::new(&entry.path, Limits::default().depth)?;
            let at = reader.inner().at;
            if at.checked_add(entry.size).is_none_or(|end| end > total) {
                return Err(Error::new(ErrorKind::Corrupt, "archive", "it ends in the middle of a member")
                    .next("copy or make it again"));
            }
            if members.insert(path.as_bytes().to_vec(), (at, entry.size)).is_some() {
                return Err(crate::archive::refused(path.as_bytes(), "the archive has it twice"));
            }
            if members.len() > MAX_MEMBERS {
                return Err(crate::archive::refused(&[], "the archive has too many members to be an image"));
            }
            reader.skip_by(|position, bytes| {
                let signed = i64::try_from(bytes).map_err(std::io::Error::other)?;
                position.inner.seek_relative(signed)?;
                position.at += bytes;
                Ok(())
            })?;
        }
    }
    Ok((members, links))
}

fn check_marker(what: &str, bytes: &[u8]) -> Result<()> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| {
        Error::new(ErrorKind::Refused, what, format!("its oci-layout is not JSON: {e}"))
            .next("make the layout again")
    })?;
    match value.get("imageLayoutVersion").and_then(serde_json::Value::as_str) {
        Some(version) if version.starts_with("1.") => Ok(()),
        version => Err(Error::new(
            ErrorKind::Unsupported,
            what,
            format!("its layout version is {version:?}, and only 1.x is known"),
        )
        .next("make the layout again with a tool that writes version 1.0.0")),
    }
}

fn missing(error: Error, what: &str, digest: &Digest) -> Error {
    if error.kind() == ErrorKind::NotFound { no_blob(what, digest) } else { error }
}

pub(super) fn no_blob(what: &str, digest: &Digest) -> Error {
    let reason = format!("it has no blob {digest}: it is another one than when it was named, or incomplete");
    Error::new(ErrorKind::NotFound, what, reason).next("submit again, or copy or make it again")
}
