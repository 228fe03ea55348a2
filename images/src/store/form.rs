//! The forms in which the store keeps layers, and how they are told apart.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, statat};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use super::bundle::{Bundle, FormRecord};
use super::hashing::{self, Sum};
use super::layer::{LISTING, REPAIR, REPLACED, SKELETON};
use super::record::print;
use super::{Charge, Store, boot_id, files, pipeline};
use crate::digest::Digest;
use crate::erofs::{self, Image};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::LayerInfo;
use crate::progress::Progress;
use crate::source::BlobSource;
use crate::unpack::listing::{self, Taken};
use crate::unpack::{Form, LayerReport, Limits, Tree, Unpacker};

/// How a layer is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerForm {
    /// As the directory that is mounted. Works everywhere.
    #[default]
    Directory,
    /// As one read-only EROFS image, which root mounts.
    Erofs,
}

impl LayerForm {
    const ALL: [LayerForm; 2] = [LayerForm::Directory, LayerForm::Erofs];

    /// Its name within the layer's own directory.
    pub(super) fn name(self) -> &'static str {
        match self {
            LayerForm::Directory => "fs",
            LayerForm::Erofs => "fs.erofs",
        }
    }

    fn file_type(self) -> FileType {
        match self {
            LayerForm::Directory => FileType::Directory,
            LayerForm::Erofs => FileType::RegularFile,
        }
    }

    /// Where the layer in directory `layer` is, in this form.
    pub(super) fn place(self, layer: &Path) -> PathBuf {
        layer.join(self.name())
    }
}

impl fmt::Display for LayerForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LayerForm::Directory => "directory",
            LayerForm::Erofs => "erofs",
        })
    }
}

/// What was decided about the forms of layers, until the machine starts anew, perhaps with another kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Settled {
    boot: String,
    /// Form of new layers.
    form: LayerForm,
    /// Whether images can be mounted.
    images: bool,
    /// Layers whose blob has less bytes are directories in any case.
    smallest: u64,
    /// How many images one container's layers may be.
    #[serde(default)]
    most: Option<usize>,
}

/// Below this many bytes a layer is made as a directory about as fast, and a container starts about as fast as it can.
const SMALL: u64 = 4 << 20;

/// Name of the file that holds it.
const SETTLED: &str = "form";

/// Mounts an image as a start would, and says in which way, and how many layers of one container may be images where that is bounded. An error of kind `Unsupported` says that it cannot be done
/// here; any other one says nothing of that.
pub type TryImage<'a> = &'a dyn Fn(&File) -> std::io::Result<(String, Option<usize>)>;

/// Mounts an image out of everybody's sight; gives the mount, with which it goes.
pub type MountImage = fn(&File) -> std::io::Result<OwnedFd>;

/// Tries whether an image on the filesystem of `directory` can be mounted.
///
/// # Errors
/// The reason why not, of kind `Unsupported`; any other where it could not be tried, as on a full disk.
pub fn try_image(directory: impl AsFd, attempt: TryImage<'_>) -> std::io::Result<(String, Option<usize>)> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file =
        openat(directory, ".", flags, Mode::RUSR | Mode::WUSR).and_then(erofs::trial).map_err(|e| {
            let error = std::io::Error::from(e);
            std::io::Error::new(error.kind(), format!("no image can be written: {error}"))
        })?;
    attempt(&File::from(file))
}

impl Store {
    /// Settles the form in which layers are kept, for everybody who opens the store until the machine starts anew:
    /// `wanted`, or, where nothing is wanted, images where they can be mounted and directories for small layers. Layers that
    /// are there stay as they are, unless they are images and cannot be mounted any more. Where it cannot be tried now
    /// whether images can be mounted, it stays as the last try since the machine started had it.
    ///
    /// # Errors
    /// Images are wanted and cannot be mounted; or it was never tried and cannot be tried; or the store cannot be written.
    pub fn settle_form(&mut self, wanted: Option<LayerForm>, attempt: TryImage<'_>) -> Result<LayerForm> {
        let before = settled(self.root_fd.as_fd())?;
        let tried = match (try_image(&self.tmp, attempt), &before) {
            (Ok((_, most)), _) => Ok(most),
            (Err(e), _) if e.kind() == std::io::ErrorKind::Unsupported => Err(e),
            (Err(_), Some(before)) if before.images => Ok(before.most),
            (Err(e), Some(_)) => Err(e),
            (Err(e), None) => {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!("image store {}", self.root.display()),
                    format!("it cannot be tried whether layers can be kept as EROFS images: {e}"),
                )
                .next("put that right and start again: layers that are kept so would be taken for missing"));
            }
        };
        let form = match (wanted, &tried) {
            (Some(LayerForm::Erofs), Err(why)) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("image store {}", self.root.display()),
                    format!("layers cannot be kept as EROFS images here: {why}"),
                )
                .next("write layer_form = \"auto\" or \"directory\" in [images] of berth.toml"));
            }
            (Some(wanted), _) => wanted,
            (None, Ok(_)) => LayerForm::Erofs,
            (None, Err(_)) => LayerForm::Directory,
        };
        let smallest = if wanted.is_none() { SMALL } else { 0 };
        let (images, most) = (tried.is_ok(), tried.unwrap_or_default());
        let settled = Settled { boot: boot_id(), form, images, smallest, most };
        // Each start of an agent comes here, also on a full disk.
        if before.as_ref() != Some(&settled) {
            files::write(self.root_fd.as_fd(), SETTLED, &print(&settled)?, self.give_to)?;
        }
        self.take_form(&settled);
        Ok(form)
    }

    /// The same store with another form for new layers, for as long as this value lives.
    #[must_use]
    pub fn with_form(mut self, form: LayerForm) -> Self {
        self.form = form;
        self.images_mount |= form == LayerForm::Erofs;
        self.smallest_image = 0;
        self
    }

    /// The form of new layers.
    pub fn form(&self) -> LayerForm {
        self.form
    }

    /// Whether the form was settled since the machine started.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn is_settled(&self) -> Result<bool> {
        Ok(settled(self.root_fd.as_fd())?.is_some())
    }

    /// Takes over what was settled.
    pub(super) fn read_form(&mut self) -> Result<()> {
        if let Some(settled) = settled(self.root_fd.as_fd())? {
            self.take_form(&settled);
        }
        Ok(())
    }

    fn take_form(&mut self, settled: &Settled) {
        self.form = settled.form;
        self.images_mount = settled.images;
        self.smallest_image = settled.smallest;
        self.most_images = settled.most;
    }

    /// These layers are directories, whatever the form is.
    pub(super) fn flatten<'a>(&self, layers: impl IntoIterator<Item = &'a LayerInfo>) {
        let mut flat = self.flat.lock().unwrap_or_else(PoisonError::into_inner);
        flat.extend(layers.into_iter().map(|layer| layer.diff_id.clone()));
    }

    /// Decides which layers of an image are directories because not so many images can be mounted for one container: the smallest of
    /// those that are not there yet.
    pub(super) fn bound_images(&self, layers: &[LayerInfo]) {
        let Some(most) = self.most_images.filter(|most| *most < layers.len()) else { return };
        let mut seen = HashSet::new();
        let mut all: Vec<&LayerInfo> = layers.iter().filter(|layer| seen.insert(&layer.diff_id)).collect();
        all.sort_by_key(|layer| {
            let is_image = self.form_of(&layer.diff_id.file_name()) == Some(LayerForm::Erofs);
            (!is_image, std::cmp::Reverse(layer.size))
        });
        self.flatten(all.into_iter().skip(most));
    }

    /// The form of the layer in directory `name` of the layers, if it is there and can be used.
    pub(super) fn form_of(&self, name: &str) -> Option<LayerForm> {
        let stands = |form: &LayerForm| {
            statat(&self.layers, format!("{name}/{}", form.name()), AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == form.file_type())
        };
        LayerForm::ALL
            .into_iter()
            .filter(|form| *form == LayerForm::Directory || self.images_mount)
            .find(stands)
    }

    /// The form that a layer gets which is made now.
    pub(super) fn form_for(&self, layer: &LayerInfo) -> LayerForm {
        let flat = self.flat.lock().unwrap_or_else(PoisonError::into_inner).contains(&layer.diff_id);
        if flat || layer.size < self.smallest_image { LayerForm::Directory } else { self.form }
    }

    /// Makes a layer in `directory`, in the form that is settled, with what is needed to look for damage and to make its
    /// archive again.
    pub(super) fn make_layer(
        &self,
        directory: &OwnedFd,
        layer: &LayerInfo,
        source: &dyn BlobSource,
        progress: &dyn Progress,
        charge: &Charge<'_>,
    ) -> Result<Made> {
        let what = format!("image store: layer {}", layer.diff_id.short());
        let form = self.form_for(layer);
        let new = |name| new_file(directory, name).map(File::from).map_err(|e| Error::io(&what, e));
        let (skeleton, replaced) = (new(SKELETON)?, new(REPLACED)?);
        let replaced_too = replaced.try_clone().map_err(|e| Error::io(&what, e))?;
        let kept = (skeleton, replaced_too);
        let filling = Fetching { source, layer, progress, kept, bounds: (&self.limits, charge) };
        let (mut made, written) = self.make_form(directory, form, &layer.diff_id, charge, filling)?;
        // Content that is gone cannot be put where the archive has it.
        if made.report.unsaved > 0 {
            files::remove(directory.as_fd(), SKELETON)?;
        }
        if made.report.unsaved > 0 || replaced.metadata().is_ok_and(|meta| meta.len() == 0) {
            files::remove(directory.as_fd(), REPLACED)?;
        }
        let Some(written) = written else { return Ok(made) };
        let travels = self.travels && made.report.unsaved == 0 && written.travels();
        let bundle =
            travels.then(|| Bundle::open(directory, &layer.diff_id, &made.report, &writer())).transpose()?;
        // Each reads all of the image, and the first does it by several threads.
        let (image, form) = std::thread::scope(|scope| {
            let form = bundle.as_ref().map(|bundle| {
                let builder = std::thread::Builder::new().name("form-sum".to_owned());
                (bundle, builder.spawn_scoped(scope, move || bundle.record(true)))
            });
            let image = written.sum(&what);
            let form = form.map(|(bundle, thread)| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // Where there may be no more threads, this one does it.
                Err(_) => bundle.record(true),
            });
            (image, form)
        });
        made.image = Some(image?);
        made.form = form.transpose()?;
        Ok(made)
    }

    /// Makes in `directory` what is filled in, in this form, with what is needed to look for damage; of an image that is its sum, which is
    /// still to be made.
    pub(super) fn make_form<A: Fill>(
        &self,
        directory: &OwnedFd,
        form: LayerForm,
        id: &Digest,
        charge: &Charge<'_>,
        filling: A,
    ) -> Result<(Made, Option<Written>)> {
        let what = format!("image store: layer {}", id.short());
        let io = |e: Errno| Error::io(&what, e);
        let name = form.name();
        match form {
            LayerForm::Directory => {
                mkdirat(directory, name, Mode::RWXU).map_err(io)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let tree = openat(directory, name, flags, Mode::empty()).map_err(io)?;
                let root = tree.try_clone().map_err(|e| Error::io("image store", e))?;
                let unpacker = Unpacker::new(Tree::new(root), &self.limits, keeps_setid()).charging(charge);
                let (report, _) = filling.fill(unpacker)?;
                let listing = File::from(new_file(directory, LISTING).map_err(io)?);
                let sums: Option<listing::Sum> = A::SUMMED.then_some(hashing::of_content);
                let taken = listing::write(&tree, listing, sums).map_err(|e| Error::io(&what, e))?;
                Ok((Made { report, image: None, form: None, taken: Some(taken) }, None))
            }
            LayerForm::Erofs => {
                let owner = (geteuid().as_raw(), getegid().as_raw());
                let image = Image::new(new_file(directory, name).map_err(io)?, owner, filesystem_id(id));
                let unpacker = Unpacker::new(image, &self.limits, keeps_setid()).charging(charge);
                let (report, image) = filling.fill(unpacker)?;
                let holes = image.holes();
                let file = File::from(image.seal().map_err(io)?);
                let length = file.metadata().map_err(|e| Error::io(&what, e))?.len();
                let made = Made { report, image: None, form: None, taken: None };
                Ok((made, Some(Written { file, length, holes })))
            }
        }
    }

    /// The same store, with a way to mount layers that are images, where their files have to be read.
    #[must_use]
    pub fn mounting(mut self, mount: MountImage) -> Self {
        self.mount = Some(mount);
        self
    }

    /// Whether layers that are images can be mounted to read their files.
    pub(super) fn mounts(&self) -> bool {
        self.mount.is_some()
    }

    /// Opens the directory that a layer's files are in.
    pub(super) fn layer_tree(&self, diff_id: &Digest) -> Result<OwnedFd> {
        let name = diff_id.file_name();
        let failed = |e: std::io::Error| Error::path(&self.layer_path(diff_id), e).next(REPAIR);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match self.form_of(&name) {
            Some(LayerForm::Erofs) => {
                let image = self.layer_file(diff_id, LayerForm::Erofs.name())?;
                let mount = self.mount.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Denied,
                        format!("layer {diff_id}"),
                        "it is an image, which root mounts",
                    )
                    .next("do it as root")
                })?;
                let mounted = mount(&image).map_err(failed)?;
                openat(&mounted, ".", flags, Mode::empty()).map_err(|e| failed(e.into()))
            }
            _ => self.tree_at(&name),
        }
    }

    /// Opens what is a directory in directory `layer` of the layers.
    pub(super) fn tree_at(&self, layer: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = format!("{layer}/{}", LayerForm::Directory.name());
        openat(&self.layers, &place, flags, Mode::empty())
            .map_err(|e| Error::path(&self.root.join("layers").join(&place), e).next(REPAIR))
    }

    /// Whether the image of a layer has other bytes than those that were written.
    pub(super) fn image_changed(&self, diff_id: &Digest, written: &Sum) -> Result<bool> {
        let image = self.layer_file(diff_id, LayerForm::Erofs.name())?;
        Ok(!written.is_of(&image).map_err(|e| Error::path(&self.layer_path(diff_id), e))?)
    }
}

/// A layer that was made.
pub(super) struct Made {
    pub(super) report: LayerReport,
    /// Sum of its image, where it is one.
    pub(super) image: Option<Sum>,
    /// What may travel of it.
    pub(super) form: Option<FormRecord>,
    /// What it takes, where it is a directory: an image tells it itself.
    pub(super) taken: Option<Taken>,
}

/// An image that was written.
pub(super) struct Written {
    file: File,
    length: u64,
    holes: u64,
}

impl Written {
    /// By which is told later whether it was changed.
    pub(super) fn sum(&self, what: &str) -> Result<Sum> {
        Sum::of(&self.file).map_err(|e| Error::io(what, e))
    }

    /// Whether other nodes may have it as it is: of one that is holes for the most part, which may be larger than any disk, they make
    /// their own.
    fn travels(&self) -> bool {
        self.holes <= self.length / 2
    }
}

/// Whether set-id bits are kept: in root's own store such a file would belong to root.
fn keeps_setid() -> bool {
    !geteuid().is_root()
}

/// What writes images here, with all on which it depends which bytes it makes of an archive.
pub(super) fn writer() -> String {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let bits = if keeps_setid() { "kept" } else { "cleared" };
    // What is kept of the archive travels with it, compressed.
    let zstd = zstd::zstd_safe::version_number();
    format!("erofs {} of {uid}:{gid}, set-id bits {bits}, zstd {zstd}", erofs::VERSION)
}

/// What a layer's form is filled with.
pub(super) trait Fill {
    /// Whether contents are to be summed up: no archive is there of which they are known.
    const SUMMED: bool;

    /// Fills it.
    fn fill<F: Form>(self, unpacker: Unpacker<'_, F>) -> Result<(LayerReport, F)>;
}

/// A layer that comes from its source.
struct Fetching<'a> {
    source: &'a dyn BlobSource,
    layer: &'a LayerInfo,
    progress: &'a dyn Progress,
    kept: (File, File),
    bounds: (&'a Limits, &'a Charge<'a>),
}

impl Fill for Fetching<'_> {
    const SUMMED: bool = false;

    fn fill<F: Form>(self, unpacker: Unpacker<'_, F>) -> Result<(LayerReport, F)> {
        pipeline::unpack(self.source, self.layer, self.bounds, self.progress, unpacker, self.kept)
    }
}

/// A file of a layer's directory that is not there yet.
pub(super) fn new_file(directory: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
}

/// Gives back the space of the image of the layer at `name` in `directory`.
pub(super) fn empty_image(directory: impl AsFd, name: &str) {
    let place = format!("{name}/{}", LayerForm::Erofs.name());
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // It has none, or its removal says what is wrong.
    let _ = openat(directory, place, flags, Mode::empty());
}

fn settled(root: BorrowedFd<'_>) -> Result<Option<Settled>> {
    let bytes = files::read(root, SETTLED)?;
    // What is damaged is settled anew.
    let settled = bytes.and_then(|bytes| serde_json::from_slice::<Settled>(&bytes).ok());
    Ok(settled.filter(|settled| settled.boot == boot_id()))
}

/// The form that was settled for the store at `root` since the machine started, where the caller can see it.
pub fn settled_form(root: &Path) -> Option<LayerForm> {
    settled(File::open(root).ok()?.as_fd()).ok().flatten().map(|settled| settled.form)
}

/// Where a store at `root` has a layer, or will have it. A caller who cannot look into the store is told of the layer's
/// own directory, in which it is in one form or another.
pub fn layer_place(root: &Path, diff_id: &Digest) -> PathBuf {
    let layer = root.join("layers").join(diff_id.file_name());
    let looked = LayerForm::ALL.map(|form| form.place(&layer)).map(|place| (place.symlink_metadata(), place));
    if looked
        .iter()
        .any(|(found, _)| found.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied))
    {
        return layer;
    }
    let there = looked.into_iter().find(|(found, _)| found.is_ok()).map(|(_, place)| place);
    there.unwrap_or_else(|| settled_form(root).unwrap_or_default().place(&layer))
}

/// Two filesystems with one identity cannot lie below one overlay; that of a layer is its digest's start.
fn filesystem_id(diff_id: &Digest) -> [u8; 16] {
    let mut id = [0; 16];
    for (byte, digits) in id.iter_mut().zip(diff_id.hex().as_bytes().chunks_exact(2)) {
        let text = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(text, 16).unwrap_or_default();
    }
    id
}
