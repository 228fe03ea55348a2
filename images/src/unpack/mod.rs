//! Unpacking one layer: a tar stream becomes a tree that overlayfs can use as a lower layer, in one of its forms.

mod finish;
mod form;
mod limits;
pub(crate) mod listing;
mod merge;
mod names;
mod path;
mod place;
mod remember;
mod remove;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(crate) use form::{EachContent, Form, IMPLIED_MODE, Meta, Whiteout};
pub use limits::Limits;
pub(crate) use limits::over;
pub(crate) use path::CleanPath;
pub(crate) use remove::remove_tree;
pub(crate) use tree::{STRICT, Tree};

use remember::{Described, Paths};

use crate::archive::{Entry, EntryKind, Reader, Segment, refused};
use crate::error::Result;
use crate::skeleton::Recorder;
use crate::store::Charge;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// What an entry hides of lower layers.
enum Hidden {
    /// It is something of its own.
    Nothing,
    /// It belongs to aufs.
    Aufs,
    /// All that is in its directory.
    Below,
    /// What has this name.
    Name(CleanPath),
}

/// Reads the name of an entry.
fn hidden(path: &CleanPath, kind: EntryKind) -> Result<Hidden> {
    let mut components = path.components();
    let Some(hidden) = components.find(|c| c.starts_with(WHITEOUT)) else {
        return Ok(Hidden::Nothing);
    };
    if hidden.starts_with(AUFS) && hidden != OPAQUE {
        return Ok(Hidden::Aufs);
    }
    if components.next().is_some() || kind == EntryKind::Directory {
        return Err(refused(path.as_bytes(), "its name is reserved for whiteouts"));
    }
    if hidden == OPAQUE {
        return Ok(Hidden::Below);
    }
    let name = &hidden[WHITEOUT.len()..];
    if matches!(name, b"" | b"." | b"..") {
        return Err(refused(path.as_bytes(), "it hides a name that could lead outside the image"));
    }
    let (mut place, _) = path.split().unwrap_or_default();
    place.push(name);
    Ok(Hidden::Name(place))
}

/// What unpacking a layer made, and what of the archive was left out on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerReport {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of all files, holes of sparse files included.
    pub bytes: u64,
    /// Files of lower layers that this layer hides.
    pub whiteouts: u64,
    /// Directories that hide all of their namesakes in lower layers.
    pub opaque_directories: u64,
    /// Device nodes left out: an unprivileged store makes none, and a container has its own `/dev`.
    pub devices_skipped: u64,
    /// Overlayfs's own attributes removed (`trusted.overlay.*`, `user.overlay.*`), with which a layer could reach
    /// outside itself.
    pub overlay_attributes_stripped: u64,
    /// File capabilities removed.
    pub capabilities_stripped: u64,
    /// Other attributes left out (`security.*`, `system.*`, `trusted.*`, or more than the file system takes).
    pub other_attributes_skipped: u64,
    /// Set-user-id and set-group-id bits removed, because the store belongs to root.
    pub setid_stripped: u64,
    /// Entries that a later one of the same name took the place of.
    pub replaced: u64,
    /// Files among them whose content was not kept, so that the archive cannot be made again: there was more of it than of the archive.
    pub unsaved: u64,
}

/// An archive whose skeleton is kept.
pub(crate) type Recorded<R, W> = Reader<Recorder<R, W>>;

/// A layer being unpacked.
pub(crate) struct Unpacker<'a, F> {
    form: F,
    limits: &'a Limits,
    report: LayerReport,
    /// Bytes of memory that are taken until the end.
    names: u64,
    /// As many as were asked for, where other layers want some, too.
    granted: u64,
    /// Components of paths that were resolved one by one.
    steps: u64,
    /// What describes directories, as far as they cannot have it before the end.
    directories: BTreeMap<Box<[u8]>, Described>,
    whiteouts: BTreeSet<Box<[u8]>>,
    opaque: BTreeSet<Box<[u8]>>,
    /// Device nodes left out, so that a hard link to one is left out too.
    skipped: Paths,
    /// Names of files that came by hard links: no content of the archive is theirs.
    linked: Paths,
    keep_setid: bool,
    /// Whether it is applied to what lower layers made.
    merging: bool,
    /// What it takes of a quota.
    charge: Option<&'a Charge<'a>>,
}

impl<'a, F: Form> Unpacker<'a, F> {
    /// Starts in an empty tree. With `keep_setid` false, set-id bits are removed.
    pub(crate) fn new(form: F, limits: &'a Limits, keep_setid: bool) -> Self {
        Self {
            form,
            limits,
            report: LayerReport::default(),
            names: 0,
            granted: 0,
            steps: 0,
            directories: BTreeMap::new(),
            whiteouts: BTreeSet::new(),
            opaque: BTreeSet::new(),
            skipped: Paths::new(),
            linked: Paths::new(),
            keep_setid,
            merging: false,
            charge: None,
        }
    }

    /// The same, counted against a quota.
    pub(crate) fn charging(self, charge: &'a Charge<'a>) -> Self {
        Self { charge: Some(charge), ..self }
    }

    /// Unpacks all entries. The caller drains and verifies the input afterwards, and publishes nothing before.
    pub(crate) fn run<R: BufRead, W: Write>(
        mut self,
        reader: &mut Recorded<R, W>,
    ) -> Result<(LayerReport, F)> {
        self.entries(reader)?;
        self.report.replaced = self.form.replaced();
        self.finish()
    }

    fn entries<R: BufRead, W: Write>(&mut self, reader: &mut Recorded<R, W>) -> Result<()> {
        while let Some(entry) = reader.next()? {
            self.count(&entry)?;
            self.entry(entry, reader)?;
        }
        Ok(())
    }

    fn count(&mut self, entry: &Entry) -> Result<()> {
        self.report.entries += 1;
        if self.report.entries > self.limits.entries {
            return Err(over(format!("it has more than {} entries", self.limits.entries)));
        }
        self.report.bytes = self.report.bytes.saturating_add(entry.size);
        if self.report.bytes > self.limits.bytes {
            return Err(over(format!("its files have more than {} bytes", self.limits.bytes)));
        }
        match entry.kind {
            // A name alone; directories are large where they have very many.
            EntryKind::HardLink => Ok(()),
            _ => self.take(F::charged(entry.size)),
        }
    }

    /// Before so many bytes of the disk are taken.
    fn take(&self, bytes: u64) -> Result<()> {
        self.charge.map_or(Ok(()), |charge| charge.file(bytes))
    }

    fn entry<R: BufRead, W: Write>(&mut self, mut entry: Entry, reader: &mut Recorded<R, W>) -> Result<()> {
        let path = CleanPath::new(&entry.path, self.limits.depth)?;
        if self.whiteout(&path, entry.kind)? {
            return Ok(());
        }
        if path.is_root() {
            if entry.kind != EntryKind::Directory {
                return Err(refused(&entry.path, "the root of the layer is not a directory"));
            }
            return self.directory(path, entry);
        }
        if !self.keep_setid && entry.mode & 0o6000 != 0 {
            if entry.kind == EntryKind::File {
                self.report.setid_stripped += 1;
            }
            entry.mode &= !0o6000;
        }
        let path = self.place(path)?;
        if self.merging && entry.kind != EntryKind::Directory {
            self.forget(&path);
        }
        self.remember_name(path.split_bytes().1)?;
        self.save(&path, entry.kind, reader.inner_mut())?;
        if !matches!(entry.kind, EntryKind::HardLink | EntryKind::CharDevice | EntryKind::BlockDevice) {
            // What stands here from now on is the archive's own, and no device.
            self.skipped.remove(path.as_bytes());
            self.linked.remove(path.as_bytes());
        }
        match entry.kind {
            EntryKind::Directory => {
                self.form.make_dir(&path)?;
                self.directory(path, entry)
            }
            EntryKind::File => {
                // What the store itself may not read stays in the skeleton.
                if entry.size > 0 && entry.mode & 0o400 != 0 {
                    let whole = || vec![Segment { offset: 0, length: entry.size }];
                    let pieces = entry.sparse.clone().unwrap_or_else(whole);
                    reader.inner_mut().begin(path.as_bytes(), pieces);
                }
                let made = self.file(&path, entry, reader);
                reader.inner_mut().end();
                made
            }
            EntryKind::Symlink => self.symlink(&path, entry),
            EntryKind::HardLink => self.hard_link(&path, &entry),
            EntryKind::Fifo => self.fifo(&path, entry),
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                self.form.clear(&path)?;
                self.skip(&path)
            }
        }
    }

    /// Keeps what the file has, or the files below the directory, whose place an entry takes.
    fn save<R: BufRead, W: Write>(
        &mut self,
        path: &CleanPath,
        by: EntryKind,
        recorder: &mut Recorder<R, W>,
    ) -> Result<()> {
        if self.merging {
            return Ok(());
        }
        match self.form.kind_at(path)? {
            Some(FileType::Directory) if by == EntryKind::Directory => return Ok(()),
            Some(FileType::Directory | FileType::RegularFile) => {}
            _ => return Ok(()),
        }
        let Self { form, linked, report, charge, .. } = self;
        form.contents(path, &mut |file, size, content| {
            if linked.remove(file) {
                return Ok(());
            }
            charge.map_or(Ok(()), |charge| charge.file(size))?;
            let kept = recorder.keep(file, size, content);
            let kept =
                kept.map_err(|e| crate::error::recover("image store: what an entry takes the place of", e))?;
            report.unsaved += u64::from(!kept);
            Ok(())
        })
    }

    /// Takes an entry that hides something below, or belongs to aufs. Whiteouts are made at the end: they hide
    /// what is in lower layers and never what the same layer brings, in whatever order it does
    /// (OCI image specification, layer.md, "Whiteouts").
    fn whiteout(&mut self, path: &CleanPath, kind: EntryKind) -> Result<bool> {
        match hidden(path, kind)? {
            Hidden::Nothing => return Ok(false),
            // They were hidden before the first entry of this layer.
            _ if self.merging => {}
            Hidden::Aufs => {}
            Hidden::Below => {
                // Placing the mark itself resolves its directory, and makes it where it is missing.
                let placed = self.place(path.clone())?;
                let (place, _) = placed.split().unwrap_or_default();
                self.remember_path(&place)?;
                self.opaque.insert(place.into_kept());
            }
            Hidden::Name(place) => {
                let (parent, _) = place.split_bytes();
                // umoci replaces a directory by a file and still lists what was in it: the file hides all that by itself.
                if matches!(self.form.enter(parent), Err(Errno::NOTDIR)) {
                    return Ok(true);
                }
                let place = self.place(place)?;
                self.remember_path(&place)?;
                self.remember_name(place.split_bytes().1)?;
                self.whiteouts.insert(place.into_kept());
            }
        }
        Ok(true)
    }

    fn directory(&mut self, path: CleanPath, entry: Entry) -> Result<()> {
        let xattrs = self.allowed(entry.xattrs);
        self.describe(&path, Meta { mode: entry.mode, mtime: entry.mtime, xattrs })
    }

    fn file<R: BufRead, W: Write>(
        &mut self,
        path: &CleanPath,
        entry: Entry,
        reader: &mut Recorded<R, W>,
    ) -> Result<()> {
        let mut file = self.form.create(path, entry.mode)?;
        let whole = [Segment { offset: 0, length: entry.size }];
        for segment in entry.sparse.as_deref().unwrap_or(&whole) {
            let mut offset = segment.offset;
            let end = segment.offset + segment.length;
            while offset < end {
                let data = reader.data()?;
                let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(data.len());
                self.form.write(&mut file, &data[..length], offset).map_err(|e| path.io(e))?;
                reader.consume(length);
                offset += length as u64;
            }
        }
        let meta = Meta { mode: entry.mode, mtime: entry.mtime, xattrs: self.allowed(entry.xattrs) };
        let skipped = self.form.complete(file, entry.size, &meta).map_err(|e| path.io(e))?;
        self.report.other_attributes_skipped += skipped;
        Ok(())
    }

    fn symlink(&mut self, path: &CleanPath, entry: Entry) -> Result<()> {
        if entry.link.is_empty() || entry.link.len() > 4095 || entry.link.contains(&0) {
            return Err(refused(&entry.path, "its link target is empty, too long, or holds a NUL"));
        }
        self.form.clear(path)?;
        self.form.symlink(path, &entry.link, entry.mtime)?;
        self.leave_out(entry.xattrs);
        Ok(())
    }

    fn hard_link(&mut self, path: &CleanPath, entry: &Entry) -> Result<()> {
        let target = CleanPath::new(&entry.link, self.limits.depth)?;
        if target.is_root() {
            return Err(refused(&entry.path, "it is a hard link to a directory"));
        }
        let missing = || {
            refused(
                &entry.path,
                format!(
                    "it is a hard link to {}, which the layer does not have before it",
                    crate::archive::show(&entry.link)
                ),
            )
        };
        // Placing the target could make directories; a target whose parent is missing is missing itself.
        let target = self.place(target)?;
        if self.skipped.contains(target.as_bytes()) {
            // It takes the place of what is there, as the device itself does.
            self.form.clear(path)?;
            return self.skip(path);
        }
        if target == *path {
            return Err(refused(&entry.path, "it is a hard link to itself"));
        }
        match self.form.kind_at(&target)? {
            None => return Err(missing()),
            Some(FileType::Directory) => {
                return Err(refused(&entry.path, "it is a hard link to a directory"));
            }
            Some(_) => {}
        }
        self.form.clear(path)?;
        // Making room may have removed the target: it lay below what stood here.
        let (target_parent, _) = target.split_bytes();
        match self.form.enter(target_parent) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(missing()),
            Err(errno) => return Err(target.io(errno)),
        }
        self.form.hard_link(&target, path)?;
        self.skipped.remove(path.as_bytes());
        if !self.merging {
            self.remember(Paths::EACH)?;
            self.linked.insert(path.as_bytes());
        }
        Ok(())
    }

    fn fifo(&mut self, path: &CleanPath, entry: Entry) -> Result<()> {
        self.form.clear(path)?;
        self.form.fifo(path, entry.mode & 0o777, entry.mtime)?;
        self.leave_out(entry.xattrs);
        Ok(())
    }

    /// Counts the attributes of a file that can have none of users' (`xattr(7)`).
    fn leave_out(&mut self, xattrs: Vec<(Vec<u8>, Vec<u8>)>) {
        let left_out = self.allowed(xattrs).len() as u64;
        self.report.other_attributes_skipped += left_out;
    }

    /// Keeps attributes of users, counts the others.
    fn allowed(&mut self, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut kept = Vec::new();
        for (name, value) in xattrs {
            if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
                self.report.overlay_attributes_stripped += 1;
            } else if name == b"security.capability" {
                self.report.capabilities_stripped += 1;
            } else if name.starts_with(b"user.") && name.len() > 5 {
                kept.push((name, value));
            } else {
                self.report.other_attributes_skipped += 1;
            }
        }
        kept
    }

    /// Leaves a device node out.
    fn skip(&mut self, path: &CleanPath) -> Result<()> {
        self.report.devices_skipped += 1;
        self.remember(Paths::EACH)?;
        self.skipped.insert(path.as_bytes());
        Ok(())
    }
}
