//! A container's root filesystem, which comes as a POSIX archive, kept as an image: a squashfs file, an archive that
//! docker and OCI tools read, or an OCI layout. Nothing is seen under its name before it is complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use berth_tar::WHOLE;

use crate::archive::{EntryKind, Reader, read_buffered};
use crate::blobs::{Blob, Compressor};
use crate::digest::Algorithm;
use crate::error::{Error, ErrorKind, Result, recover};
use crate::helpers::{RunAs, SetId, become_identity, parse_identity};
use crate::layered::{Layered, Names, cannot_create};
use crate::manifest::ImageConfig;
use crate::outer;
use crate::squashfs::{self, CONFIG, configuration_of};
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
pub fn save_root(input: impl Read, path: &Path, form: SaveForm, config: &ImageConfig) -> Result<()> {
    match form {
        SaveForm::Squashfs => file_at(path, |file, place| squashfs_file(input, file, config, place)),
        SaveForm::Archive => {
            file_at(path, |file, place| one_layer(input, Layered::archive(file, place)?, config, place))
        }
        SaveForm::Layout => {
            directory_at(path, |dir, place| one_layer(input, Layered::layout(dir)?, config, place))
        }
    }
}

/// Has a file written that is at `path` when it is complete and on disk.
pub(crate) fn file_at(path: &Path, write: impl FnOnce(&File, &Path) -> Result<()>) -> Result<()> {
    let (place, _) = places(path)?;
    check_target(&place, false)?;
    let unseen = Unseen::create(&place).map_err(|e| cannot_create(&place, e))?;
    write(unseen.file(), &place)?;
    unseen.publish().map_err(|e| Error::path(&place, e))?;
    sync_parent(&place)
}

/// Has a directory made and filled that is at `path` when it is complete and on disk.
pub(crate) fn directory_at(path: &Path, write: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<()> {
    let (place, temporary) = places(path)?;
    check_target(&place, true)?;
    let done = write(&temporary, &place)
        .and_then(|()| fs::rename(&temporary, &place).map_err(|e| Error::path(&place, e)));
    if done.is_err() {
        // The error that counts is the first.
        let _ = fs::remove_dir_all(&temporary);
    }
    done?;
    sync_parent(&place)
}

/// Refuses what an image cannot take the place of: `rename` would replace a device, too.
fn check_target(place: &Path, is_directory: bool) -> Result<()> {
    let Ok(found) = fs::metadata(place) else { return Ok(()) };
    let refuse = |why: &str, next: &str| {
        Err(Error::new(ErrorKind::Refused, place.display().to_string(), why).next(next))
    };
    let layout = "name a file, or an OCI layout directory that is not there yet (NAME.oci)";
    if found.is_dir() {
        refuse("target is a directory", layout)
    } else if !found.is_file() {
        refuse("target is no regular file", "name a file, or one that is not there yet")
    } else if is_directory {
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

/// Passes on what is read.
struct Tee<R, W> {
    inner: BufReader<R>,
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
        if let Err(e) = self.out.write_all(used) {
            self.failed = Some(e);
        }
        self.inner.consume(amount);
    }
}

fn failed(e: io::Error) -> Error {
    Error::io("image", e)
}

/// Writes the layer, gzipped as every tool reads it, and checks on the way that the archive is whole.
fn blob(input: impl Read, out: impl Write) -> Result<Blob> {
    let out = Compressor::new(out, Algorithm::Sha256);
    let tee = Tee { inner: BufReader::with_capacity(1 << 18, input), out, failed: None };
    let mut reader = Reader::new(tee);
    while reader.next()?.is_some() {}
    let mut tee = reader.into_inner();
    if let Some(e) = tee.failed.take() {
        return Err(failed(e));
    }
    ended(&mut tee.inner)?;
    tee.out.finish().map_err(failed)
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

fn one_layer(input: impl Read, mut image: Layered<'_>, config: &ImageConfig, place: &Path) -> Result<()> {
    let diff_id = image.layer(|out| blob(input, out))?;
    let config = configuration_of(config, &diff_id).to_string().into_bytes();
    image.finish(&config, &Names::of_file(place))
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
        (CONFIG.as_bytes(), saved, 0o644),
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
    become_identity(identity.as_ref(), SetId::Off)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask & 0o777));
    // The tasks of other jobs come first.
    let _ = rustix::process::nice(10);
    save_root(input, &to, SaveForm::of(&to), &config)
}
