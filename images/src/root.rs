//! A container's root filesystem, which comes as a POSIX archive, kept as an image: a squashfs file, an archive that
//! docker and OCI tools read, or an OCI layout. Nothing is seen under its name before it is complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use berth_tar::{BLOCK, END, WHOLE, padding};
use serde_json::json;

use crate::archive::{EntryKind, Reader, read_buffered};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result, recover};
use crate::helpers::{RunAs, become_identity, parse_identity};
use crate::manifest::{ImageConfig, Platform};
use crate::outer::{self, MARKER, blob_name, directory, header};
use crate::squashfs::{self, CONFIG_PATH, configuration_of};
use crate::unseen::Unseen;

/// The form of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveForm {
    /// A squashfs file, as Pyxis and Enroot keep images.
    Squashfs,
    /// A tar file that is an OCI layout and a docker-archive at once.
    Archive,
    /// An OCI layout directory.
    Layout,
}

impl SaveForm {
    /// The form that a path asks for: `.tar` is an archive, `.oci` or a slash at the end an OCI layout directory, and
    /// everything else squashfs.
    pub fn of(path: &Path) -> SaveForm {
        let bytes = path.as_os_str().as_bytes();
        if bytes.ends_with(b".tar") {
            SaveForm::Archive
        } else if bytes.ends_with(b"/") || bytes.ends_with(b".oci") {
            SaveForm::Layout
        } else {
            SaveForm::Squashfs
        }
    }
}

/// Writes the archive that `input` gives as an image at `path`. A file that is there is replaced; a directory is refused.
///
/// # Errors
/// The archive ends early, or the image cannot be written; nothing is left then, and what was there is as it was.
pub fn save_root(input: impl Read, path: &Path, config: &ImageConfig) -> Result<()> {
    let form = SaveForm::of(path);
    let (place, temporary) = places(path)?;
    check_target(&place, form)?;
    if form == SaveForm::Layout {
        let done = layout(input, &temporary, config, &place)
            .and_then(|()| fs::rename(&temporary, &place).map_err(|e| Error::path(&place, e)));
        if done.is_err() {
            // The error that counts is the first.
            let _ = fs::remove_dir_all(&temporary);
        }
        done?;
    } else {
        let unseen = Unseen::create(&place).map_err(|e| cannot_create(&place, e))?;
        match form {
            SaveForm::Archive => archive_file(input, unseen.file(), config, &place)?,
            _ => squashfs_file(input, unseen.file(), config, &place)?,
        }
        unseen.publish().map_err(|e| Error::path(&place, e))?;
    }
    sync_parent(&place)
}

/// Refuses what an image cannot take the place of: `rename` would replace a device, too.
fn check_target(place: &Path, form: SaveForm) -> Result<()> {
    let Ok(found) = fs::metadata(place) else { return Ok(()) };
    let refuse = |why: &str, next: &str| {
        Err(Error::new(ErrorKind::Refused, place.display().to_string(), why).next(next))
    };
    let layout = "name a file, or an OCI layout directory that is not there yet (NAME.oci)";
    if found.is_dir() {
        refuse("target is a directory", layout)
    } else if !found.is_file() {
        refuse("target is no regular file", "name a file, or one that is not there yet")
    } else if form == SaveForm::Layout {
        refuse("target is a file, and an OCI layout is a directory", layout)
    } else {
        Ok(())
    }
}

fn sync_parent(place: &Path) -> Result<()> {
    let parent = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| Error::path(parent, e))
}

/// The place, and a name beside it for what is not complete.
fn places(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let none = || {
        Error::new(ErrorKind::Reference, path.display().to_string(), "names no file")
            .next("write a path such as /data/image.sqsh")
    };
    let name = path.file_name().ok_or_else(none)?;
    let place = match path.parent() {
        Some(parent) => parent.join(name),
        None => PathBuf::from(name),
    };
    let temporary = outer::partial(&place);
    Ok((place, temporary))
}

fn create(path: &Path) -> Result<File> {
    let file = File::options().write(true).read(true).create_new(true).open(path);
    file.map_err(|e| cannot_create(path, e))
}

fn cannot_create(path: &Path, e: io::Error) -> Error {
    Error::path(path, e).next("name a directory that exists and that you may write to")
}

/// Hashes and passes on what is read.
struct Tee<R, W> {
    inner: BufReader<R>,
    hasher: Hasher,
    out: W,
    failed: Option<io::Error>,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}

impl<R: Read, W: Write> BufRead for Tee<R, W> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.failed.take() {
            Some(e) => Err(e),
            None => self.inner.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        let used = &self.inner.buffer()[..amount];
        self.hasher.update(used);
        if let Err(e) = self.out.write_all(used) {
            self.failed = Some(e);
        }
        self.inner.consume(amount);
    }
}

/// A compressed layer: digest and length of the blob, and digest of what is in it.
struct Blob {
    digest: Digest,
    size: u64,
    diff_id: Digest,
}

/// Hashes and counts what is written.
struct Counted<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn failed(e: io::Error) -> Error {
    Error::io("image", e)
}

/// Writes the layer, gzipped as every tool reads it, and checks on the way that the archive is whole.
fn blob(input: impl Read, out: impl Write) -> Result<Blob> {
    let counted = Counted { out, hasher: Hasher::new(Algorithm::Sha256), size: 0 };
    let gzip = flate2::write::GzEncoder::new(counted, flate2::Compression::fast());
    let tee = Tee {
        inner: BufReader::with_capacity(1 << 18, input),
        hasher: Hasher::new(Algorithm::Sha256),
        out: gzip,
        failed: None,
    };
    let mut reader = Reader::new(tee);
    while reader.next()?.is_some() {}
    let mut tee = reader.into_inner();
    if let Some(e) = tee.failed.take() {
        return Err(failed(e));
    }
    ended(&mut tee.inner)?;
    let mut counted = tee.out.finish().map_err(failed)?;
    counted.flush().map_err(failed)?;
    Ok(Blob { digest: counted.hasher.finish(), size: counted.size, diff_id: tee.hasher.finish() })
}

/// An archive that was cut off between two files looks like one that is complete, but for what follows it.
fn ended(rest: &mut impl Read) -> Result<()> {
    let mut word = Vec::new();
    rest.take(64).read_to_end(&mut word).map_err(|e| recover("image", e))?;
    if word == WHOLE {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, "the container's files", "they end too early")
        .next("the step was ended while it was saved, or a file could not be read; save it again"))
}

fn manifest_of(blob: &Blob, config: &[u8]) -> Vec<u8> {
    outer::manifest(config, (&format!("{}+gzip", outer::LAYER), &blob.digest, blob.size))
}

fn index_of(manifest: &[u8], name: &str) -> Vec<u8> {
    let descriptor = json!({
        "mediaType": outer::MANIFEST,
        "digest": Digest::of(Algorithm::Sha256, manifest).to_string(),
        "size": manifest.len(),
        "platform": {"architecture": Platform::default().architecture, "os": "linux"},
    });
    outer::index(descriptor, name)
}

/// The file's name without its ending, in letters that a tag may have.
fn tag_of(place: &Path) -> String {
    let stem = place.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let tag: String = stem.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    let tag = tag.trim_start_matches(['.', '-']).to_string();
    if tag.is_empty() { "saved".to_string() } else { tag }
}

fn layout(input: impl Read, dir: &Path, config: &ImageConfig, place: &Path) -> Result<()> {
    let io = |e| Error::path(dir, e);
    let blobs = dir.join("blobs/sha256");
    fs::create_dir(dir).and_then(|()| fs::create_dir_all(&blobs)).map_err(|e| cannot_create(dir, e))?;
    let partial = blobs.join("partial");
    let file = create(&partial)?;
    let blob = blob(input, io::BufWriter::new(&file))?;
    file.sync_all().map_err(io)?;
    fs::rename(&partial, dir.join(blob_name(&blob.digest))).map_err(io)?;
    let config = configuration_of(config, &blob.diff_id).to_string().into_bytes();
    let manifest = manifest_of(&blob, &config);
    let write = |name: &str, bytes: &[u8]| {
        let mut file = create(&dir.join(name))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)
    };
    for bytes in [&config, &manifest] {
        write(&blob_name(&Digest::of(Algorithm::Sha256, bytes)), bytes)?;
    }
    write("index.json", &index_of(&manifest, &tag_of(place)))?;
    write("oci-layout", MARKER)?;
    // The names, too, before the whole gets its own.
    for names in [&blobs, dir] {
        File::open(names).and_then(|names| names.sync_all()).map_err(io)?;
    }
    Ok(())
}

fn archive_file(input: impl Read, mut file: &File, config: &ImageConfig, place: &Path) -> Result<()> {
    let io = |e| Error::path(place, e);
    for name in ["blobs", "blobs/sha256"] {
        file.write_all(directory(name).map_err(io)?.as_bytes()).map_err(io)?;
    }
    // The blob's name and length are known when it is written: its header comes last, into this block.
    let place_of_header = file.stream_position().map_err(io)?;
    file.write_all(&[0; BLOCK]).map_err(io)?;
    let mut out = io::BufWriter::with_capacity(1 << 20, file);
    let blob = blob(input, &mut out)?;
    out.write_all(&vec![0; padding(blob.size)]).map_err(io)?;
    let config = configuration_of(config, &blob.diff_id).to_string().into_bytes();
    let manifest = manifest_of(&blob, &config);
    let tag = tag_of(place);
    let config_name = blob_name(&Digest::of(Algorithm::Sha256, &config));
    let docker = json!([{
        "Config": config_name,
        "RepoTags": [format!("{}:latest", tag.to_ascii_lowercase())],
        "Layers": [blob_name(&blob.digest)],
    }]);
    let manifest_name = blob_name(&Digest::of(Algorithm::Sha256, &manifest));
    for (name, bytes) in [
        (config_name.as_str(), config.as_slice()),
        (manifest_name.as_str(), manifest.as_slice()),
        ("index.json", index_of(&manifest, &tag).as_slice()),
        ("manifest.json", docker.to_string().as_bytes()),
        ("oci-layout", MARKER),
    ] {
        out.write_all(header(name, bytes.len() as u64).map_err(io)?.as_bytes()).map_err(io)?;
        out.write_all(bytes).map_err(io)?;
        out.write_all(&vec![0; padding(bytes.len() as u64)]).map_err(io)?;
    }
    out.write_all(&END).map_err(io)?;
    out.flush().map_err(io)?;
    drop(out);
    let header = header(&blob_name(&blob.digest), blob.size).map_err(io)?;
    file.seek(SeekFrom::Start(place_of_header)).map_err(io)?;
    file.write_all(header.as_bytes()).and_then(|()| file.sync_all()).map_err(io)
}

/// Enroot starts an image by this script, with the command as its arguments.
fn start_script(config: &ImageConfig) -> Vec<u8> {
    let quote = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
    let words = |list: &[String]| list.iter().map(quote).collect::<Vec<_>>().join(" ");
    let mut text = String::from("#!/bin/sh\n");
    if !config.workdir.is_empty() {
        let dir = quote(&config.workdir);
        text.push_str(&format!("mkdir -p {dir} 2>/dev/null\ncd {dir} || exit 1\n"));
    }
    let entry = words(&config.entrypoint);
    let cmd =
        if config.cmd.is_empty() && entry.is_empty() { "/bin/sh".to_string() } else { words(&config.cmd) };
    text.push_str(&format!(
        "if [ $# -gt 0 ]; then\n    exec {entry} \"$@\"\nelse\n    exec {entry} {cmd}\nfi\n"
    ));
    text.into_bytes()
}

fn squashfs_file(input: impl Read, file: &File, config: &ImageConfig, place: &Path) -> Result<()> {
    let io = |e| Error::path(place, e);
    let mut image = squashfs::Writer::new(file.try_clone().map_err(io)?, 0).map_err(io)?;
    let mut reader = Reader::new(BufReader::with_capacity(1 << 18, input));
    let saved = serde_json::to_vec(config).map_err(|e| Error::new(ErrorKind::Io, "image", e.to_string()))?;
    let mut environment = config.env.join("\n").into_bytes();
    environment.push(b'\n');
    // What a real enroot looks for, and what we look for ourselves.
    let own: [(&[u8], Vec<u8>, u32); 3] = [
        (CONFIG_PATH, saved, 0o644),
        (b"etc/rc", start_script(config), 0o755),
        (b"etc/environment", environment, 0o644),
    ];
    while let Some(entry) = reader.next()? {
        let name = entry.path.strip_suffix(b"/").unwrap_or(&entry.path).to_vec();
        let meta = squashfs::Meta {
            mode: entry.mode,
            owner: entry.owner,
            mtime: entry.mtime.0,
            xattrs: entry.xattrs,
        };
        match entry.kind {
            EntryKind::Directory => image.directory(&name, meta).map_err(io)?,
            EntryKind::Symlink => image.symlink(&name, &entry.link, meta).map_err(io)?,
            EntryKind::Fifo => image.fifo(&name, meta).map_err(io)?,
            EntryKind::HardLink => image.hard_link(&name, &entry.link).map_err(io)?,
            EntryKind::CharDevice | EntryKind::BlockDevice => {}
            EntryKind::File => {
                let content = image.file(&name, meta, |buffer| {
                    let data = reader.data().map_err(io::Error::from)?;
                    let length = data.len().min(buffer.len());
                    buffer[..length].copy_from_slice(&data[..length]);
                    reader.consume(length);
                    Ok(length)
                });
                content.map_err(|e| recover("image", e))?;
            }
        }
    }
    ended(&mut reader.into_inner())?;
    // In place of what the container has there, of which there may be further names.
    for (name, bytes, mode) in own {
        let mut rest = bytes.as_slice();
        let meta = squashfs::Meta { mode, owner: (0, 0), mtime: 0, xattrs: Vec::new() };
        image.file(name, meta, |buffer| rest.read(buffer)).map_err(io)?;
    }
    image.finish().and_then(|file| file.sync_all()).map_err(io)
}

/// The program behind a supervisor that saves: reads an archive from `input`, becomes the user that `--as` names, and
/// writes the image to `--to`. Says what failed in one line.
pub fn saver_main(
    arguments: impl IntoIterator<Item = OsString>,
    input: impl Read,
    mut errors: impl Write,
) -> u8 {
    match save_as(arguments, input) {
        Ok(()) => 0,
        Err(e) => {
            // Whoever does not listen is gone.
            let _ = writeln!(errors, "{e}");
            1
        }
    }
}

fn save_as(arguments: impl IntoIterator<Item = OsString>, input: impl Read) -> Result<()> {
    let bad = |what: &str| {
        Error::new(
            ErrorKind::Reference,
            format!("argument {what:?}"),
            "is not understood by this internal command",
        )
    };
    let (mut identity, mut to, mut config, mut mask) = (None::<RunAs>, None, ImageConfig::default(), 0o022);
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        let name = name.to_string_lossy().into_owned();
        let value = arguments.next().ok_or_else(|| bad(&name))?;
        let text = || value.to_str().ok_or_else(|| bad(&name));
        match name.as_str() {
            "--as" => identity = Some(parse_identity(text()?).ok_or_else(|| bad(&name))?),
            "--to" => to = Some(PathBuf::from(&value)),
            "--umask" => mask = u32::from_str_radix(text()?, 8).map_err(|_| bad(&name))?,
            "--config" => config = serde_json::from_str(text()?).map_err(|_| bad(&name))?,
            _ => return Err(bad(&name)),
        }
    }
    let to = to.ok_or_else(|| bad("--to"))?;
    become_identity(identity.as_ref())?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask & 0o777));
    // The tasks of other jobs come first.
    let _ = rustix::process::nice(10);
    save_root(input, &to, &config)
}
