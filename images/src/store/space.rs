//! What the store's filesystem has and what layers take of it: bytes, and files, of which many filesystems have only so many.

use std::path::Path;

use rustix::fs::{AtFlags, fstatvfs, statat};

use super::Store;
use super::form::LayerForm;
use super::layer::{LISTING, REPLACED, SKELETON};
use super::merge::merged_name;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::unpack::listing::Taken;

/// Files that a layer has beside those of its archive: its directories, its record, its listing, and the like.
const OWN: u64 = 8;

/// Files of these of which the archive says how large they are.
const BESIDE: [&str; 3] = [LISTING, SKELETON, REPLACED];

/// How much of something is in use, and how much is left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filled {
    pub(super) used: u64,
    pub(super) available: u64,
}

impl Filled {
    pub(super) fn total(self) -> u64 {
        self.used.saturating_add(self.available)
    }

    pub(super) fn percent(self) -> u64 {
        self.used.saturating_mul(100).checked_div(self.total()).unwrap_or(0)
    }

    /// What is in use beyond this percentage, with so much more.
    pub(super) fn beyond(self, percent: u8, more: u64) -> u64 {
        let total = u128::from(self.used) + u128::from(self.available);
        let line = u64::try_from(total * u128::from(percent) / 100).unwrap_or(u64::MAX);
        self.used.saturating_add(more).saturating_sub(line)
    }
}

/// What a filesystem has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Space {
    /// Bytes that files may have.
    pub(super) bytes: Filled,
    /// Files; none at all where it makes them as they are needed.
    pub(super) files: Filled,
}

/// What a layer takes of it, or what has to come free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

impl Size {
    pub(super) fn and(self, more: Size) -> Size {
        Size { bytes: self.bytes.saturating_add(more.bytes), files: self.files.saturating_add(more.files) }
    }

    /// Whether it is no less in anything.
    pub(super) fn covers(self, wanted: Size) -> bool {
        self.bytes >= wanted.bytes && self.files >= wanted.files
    }
}

impl Store {
    pub(super) fn space(&self) -> Result<Space> {
        let stat = fstatvfs(&self.root_fd).map_err(|e| Error::io("image store", e))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize);
        let bytes = Filled { used, available: stat.f_bavail.saturating_mul(stat.f_frsize) };
        let used = stat.f_files.saturating_sub(stat.f_ffree);
        // One that makes them as they are needed tells of none.
        let files = Filled { used, available: stat.f_favail.min(stat.f_files) };
        Ok(Space { bytes, files: if stat.f_files == 0 { Filled::default() } else { files } })
    }

    /// Bytes that files may have on the store's filesystem, those that are there among them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn capacity(&self) -> Result<u64> {
        Ok(self.space()?.bytes.total())
    }

    /// What all layers take.
    pub(super) fn layers_size(&self) -> Result<Size> {
        let mut total = Size::default();
        for diff_id in self.stored_layers()? {
            total = total.and(self.size_at(&diff_id.file_name(), &diff_id)?);
        }
        for id in self.stored_merged()? {
            total = total.and(self.size_at(&merged_name(&id), &id)?);
        }
        Ok(total)
    }

    /// Bytes that a layer counts in a quota: of its image, or of what is in its directory, where each file has a block at least.
    pub(super) fn layer_charge(&self, diff_id: &Digest) -> Result<u64> {
        Ok(self.taken_at(&diff_id.file_name(), diff_id)?.charged())
    }

    /// Bytes that layers count which are there as one.
    pub(super) fn merged_charge(&self, id: &Digest) -> Result<u64> {
        Ok(self.taken_at(&merged_name(id), id)?.charged())
    }

    /// Bytes that a layer takes of the disk.
    pub(super) fn layer_size(&self, diff_id: &Digest) -> Result<u64> {
        Ok(self.size_at(&diff_id.file_name(), diff_id)?.bytes)
    }

    /// Bytes that the files of a layer have; without their holes, where it is a directory.
    pub(super) fn content_size(&self, diff_id: &Digest) -> Result<u64> {
        self.content_at(&diff_id.file_name(), diff_id)
    }

    /// The same of layers that are there as one. Their archives came one after the other, with what others of them hide: an image of them
    /// has its blocks.
    pub(super) fn merged_content(&self, id: &Digest) -> Result<u64> {
        match self.form_of(&merged_name(id)) {
            Some(LayerForm::Erofs) => self.merged_size(id),
            _ => self.content_at(&merged_name(id), id),
        }
    }

    fn content_at(&self, name: &str, id: &Digest) -> Result<u64> {
        let record = self.record_at(name, id)?;
        Ok(record.map_or(0, |layer| layer.taken.map_or(layer.report.bytes, |taken| taken.bytes)))
    }

    /// Bytes that layers take which are there as one.
    pub(super) fn merged_size(&self, id: &Digest) -> Result<u64> {
        Ok(self.size_at(&merged_name(id), id)?.bytes)
    }

    /// What the layer takes that is in directory `name` of the layers. Holes of files take nothing: a blob of some KiB may have a file of a
    /// terabyte. Nor does a small file take as little as its bytes: it may have twenty thousand of one byte.
    pub(super) fn size_at(&self, name: &str, id: &Digest) -> Result<Size> {
        let taken = self.taken_at(name, id)?;
        Ok(Size { bytes: taken.on_disk(), files: taken.files })
    }

    fn taken_at(&self, name: &str, id: &Digest) -> Result<Taken> {
        let place = Path::new(name);
        let blocks = |file: &Path| {
            statat(&self.layers, file, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512))
        };
        let mut beside = BESIDE.iter().fold(0u64, |all, file| all.saturating_add(blocks(&place.join(file))));
        let mut taken = Taken::default();
        if self.form_of(name) == Some(LayerForm::Erofs) {
            beside = beside.saturating_add(blocks(&LayerForm::Erofs.place(place)));
        } else if let Some(layer) = self.record_at(name, id)? {
            // An earlier version noted only what its files have, holes included.
            let (bytes, files) = (layer.report.bytes, layer.report.entries);
            taken = layer.taken.unwrap_or(Taken { bytes, files, ..Taken::default() });
        }
        let disk = taken.on_disk().saturating_add(beside);
        Ok(Taken { files: taken.files.saturating_add(OWN), disk: Some(disk), ..taken })
    }
}
