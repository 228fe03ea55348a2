//! Images of more layers than a container can be mounted of: the lowest are made into one. They stay beside it as they are, to be
//! checked, given to other nodes, exported and pushed, and for other images.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{RenameFlags, renameat_with};

use super::form::{Fill, LayerForm, Made};
use super::lock::Hold;
use super::record::{ImageRecord, LayerRecord, MergedRecord, VERSION, print};
use super::work::WorkDir;
use super::{Charge, Store, boot_id, files};
use crate::archive::Reader;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result, recover};
use crate::manifest::LayerInfo;
use crate::progress::{Progress, ProgressEvent};
use crate::skeleton::{Rebuilt, Recorder};
use crate::unpack::{Form, LayerReport, Unpacker};

/// What stands before the digest in the name of a directory of merged layers: no image can name it as its layer.
const MERGED: &str = "merged-";
/// Bytes of an archive that wait.
const AHEAD: usize = 256 << 10;

/// How many layers one container can be mounted of, where the kernel has this release (`uname -r`). It is the runtime that
/// mounts them; a test of the agent holds both against each other.
pub fn most_layers(release: &str) -> usize {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u32>().unwrap_or(0));
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if kernel < (6, 8) { 399 } else { 999 }
}

/// That of this machine.
pub(super) fn most_layers_here() -> usize {
    most_layers(&rustix::system::uname().release().to_string_lossy())
}

/// The name of the directory in which layers are as one.
pub(super) fn merged_name(id: &Digest) -> String {
    format!("{MERGED}{}", id.file_name())
}

/// The lowest layers of an image, lowest first, and how many it has in all.
#[derive(Debug)]
pub(super) struct Lowest {
    pub(super) id: Digest,
    pub(super) layers: Vec<LayerInfo>,
    all: usize,
}

/// Each layer once, the highest first: one that occurs twice is fully covered by its upper copy, and overlayfs refuses the same
/// directory twice.
fn highest_first(layers: &[LayerInfo]) -> Vec<&LayerInfo> {
    let mut seen = HashSet::new();
    layers.iter().rev().filter(|layer| seen.insert(&layer.diff_id)).collect()
}

impl Store {
    /// The same store on a kernel that mounts so many layers at once.
    #[must_use]
    pub fn stacking(mut self, most: usize) -> Self {
        self.most_layers = most.max(1);
        self
    }

    /// Those layers of an image that have to be one, if any.
    pub(super) fn lowest(&self, layers: &[LayerInfo]) -> Option<Lowest> {
        let all = highest_first(layers);
        let above = self.most_layers - 1;
        if all.len() <= self.most_layers {
            return None;
        }
        let lowest: Vec<LayerInfo> = all[above..].iter().rev().map(|layer| (*layer).clone()).collect();
        let mut text = "layers made into one, the lowest first\n".to_owned();
        for layer in &lowest {
            text += &format!("{}\n", layer.diff_id);
        }
        let id = Digest::of(Algorithm::Sha256, text.as_bytes());
        Some(Lowest { id, layers: lowest, all: all.len() })
    }

    /// What to mount of an image, the highest first; `None` where so many cannot be mounted and the lowest are not one, or a power
    /// cut tore it.
    pub(super) fn stack(&self, record: &ImageRecord) -> Option<Vec<PathBuf>> {
        let all = highest_first(&record.layers);
        let path = |layer: &&LayerInfo| self.layer_path(&layer.diff_id);
        if all.len() <= self.most_layers {
            return Some(all.iter().map(path).collect());
        }
        let merged = record.merged.as_ref()?;
        let above = all.len().checked_sub(merged.layers).filter(|above| *above < self.most_layers)?;
        let name = merged_name(&merged.id);
        let form = self.form_of(&name).filter(|_| self.is_usable(&name).unwrap_or(false))?;
        let mut paths: Vec<PathBuf> = all[..above].iter().map(path).collect();
        paths.push(form.place(&self.root.join("layers").join(name)));
        Some(paths)
    }

    /// Makes the lowest layers of an image one, where they have to be; they are there, as directories.
    pub(super) fn ensure_merged(&self, lowest: &Lowest, progress: &dyn Progress) -> Result<MergedRecord> {
        let name = merged_name(&lowest.id);
        let merged = MergedRecord { id: lowest.id.clone(), layers: lowest.layers.len() };
        if self.has_merged(lowest)? {
            return Ok(merged);
        }
        let lock_name = format!("layer-{name}");
        let lock = match self.try_lock(&lock_name, Hold::Exclusive)? {
            Some(lock) => lock,
            None => {
                let what = format!("{} layers that are made into one", lowest.layers.len());
                progress.event(ProgressEvent::Waiting { what });
                self.lock(&lock_name, Hold::Exclusive)?
            }
        };
        if !self.has_merged(lowest)? {
            let work = self.merge(lowest)?;
            if Self::has_directory(self.layers.as_fd(), &name) {
                WorkDir::new(self)?.swallow(&name)?;
            }
            work.publish(&name)?;
        }
        lock.remove(self.locks.as_fd(), &lock_name)
            .map_err(|e| Error::io(format!("image store: lock {lock_name}"), e))?;
        Ok(merged)
    }

    /// Whether they are one already.
    pub(super) fn has_merged(&self, lowest: &Lowest) -> Result<bool> {
        Ok(self.record_at(&merged_name(&lowest.id), &lowest.id)?.is_some())
    }

    /// Makes them one anew, in place of a damaged one. Containers that run on that keep it.
    pub(super) fn replace_merged(&self, lowest: &Lowest) -> Result<()> {
        let name = merged_name(&lowest.id);
        let lock_name = format!("layer-{name}");
        let lock = self.lock(&lock_name, Hold::Exclusive)?;
        let work = self.merge(lowest)?;
        if Self::has_directory(self.layers.as_fd(), &name) {
            let aside = self.aside(&name)?;
            work.publish(&aside)?;
            renameat_with(&self.layers, &aside, &self.layers, &name, RenameFlags::EXCHANGE)
                .map_err(|e| Error::io(format!("image store: {name}"), e))?;
        } else {
            work.publish(&name)?;
        }
        lock.remove(self.locks.as_fd(), &lock_name)
            .map_err(|e| Error::io(format!("image store: lock {lock_name}"), e))
    }

    fn merge(&self, lowest: &Lowest) -> Result<WorkDir<'_>> {
        let work = WorkDir::new(self)?;
        let directory = work.open()?;
        let charge = Charge::new(self.quota.as_ref()).unless(self.unwanted(None));
        // Where few images can be mounted, those that are layers of their own have the places.
        let form = if self.most_images.is_some() { LayerForm::Directory } else { self.form };
        let filling = Merging { store: self, lowest };
        let (made, written) = self.make_form(&directory, form, &lowest.id, &charge, filling)?;
        let Made { report, taken, .. } = made;
        let image = written.map(|written| written.sum(&format!("image store: {}", merged_name(&lowest.id))));
        let record = LayerRecord {
            version: VERSION,
            diff_id: lowest.id.clone(),
            report,
            listed: true,
            rebuildable: false,
            archive: None,
            image: image.transpose()?,
            form: None,
            taken,
            boot: boot_id(),
        };
        files::write(directory.as_fd(), "layer.json", &print(&record)?, self.give_to)?;
        charge.keep();
        Ok(work)
    }

    /// Digests under which layers are there as one.
    pub(super) fn stored_merged(&self) -> Result<Vec<Digest>> {
        let digest = |name: &String| Digest::from_file_name(name.strip_prefix(MERGED)?);
        Ok(self.names(&self.layers)?.iter().filter_map(digest).collect())
    }
}

/// Layers that become one.
struct Merging<'a> {
    store: &'a Store,
    lowest: &'a Lowest,
}

impl Merging<'_> {
    /// The archive of a layer again; with its names alone.
    fn archive<'t>(&self, layer: &LayerInfo, tree: &'t OwnedFd, names: bool) -> Result<Again<'t>> {
        let archive = self.store.rebuilt(&layer.diff_id, tree, false)?;
        let archive = if names { archive.hollow() } else { archive };
        let recorder = Recorder::new(BufReader::with_capacity(AHEAD, archive), io::sink());
        recorder.map(Reader::new).map_err(|e| recover("its archive", e))
    }

    /// What is wrong with a layer that cannot be one with others.
    fn failed(&self, layer: &LayerInfo, error: Error) -> Error {
        let what = format!("layer {}", layer.diff_id);
        if !matches!(error.kind(), ErrorKind::Denied | ErrorKind::Unsupported) {
            return error.within(&what);
        }
        let Lowest { all, layers, .. } = self.lowest;
        let most = self.store.most_layers;
        let reason = format!(
            "the image has {all} layers, of which this kernel mounts {most} at once, and its lowest {} cannot be made into one: {}",
            layers.len(),
            error.reason()
        );
        Error::new(ErrorKind::Unsupported, what, reason)
            .next(format!("build the image with at most {most} layers"))
    }
}

type Again<'t> = Reader<Recorder<BufReader<Rebuilt<'t, File>>, io::Sink>>;

impl Fill for Merging<'_> {
    const SUMMED: bool = true;

    fn fill<F: Form>(self, unpacker: Unpacker<'_, F>) -> Result<(LayerReport, F)> {
        let mut unpacker = unpacker.merging();
        for layer in &self.lowest.layers {
            let mut apply = || {
                self.store.is_rebuildable(layer)?;
                let tree = self.store.layer_tree(&layer.diff_id)?;
                unpacker.hide(&mut self.archive(layer, &tree, true)?)?;
                unpacker.apply(&mut self.archive(layer, &tree, false)?)
            };
            apply().map_err(|e| self.failed(layer, e))?;
        }
        unpacker.merged()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_6_8_mount_fewer_layers() {
        for (release, most) in
            [("6.1.0-18-amd64", 399), ("6.7.12", 399), ("6.8.0-rc1", 999), ("6.18.3", 999), ("7.0", 999)]
        {
            assert_eq!(most_layers(release), most, "{release}");
        }
        assert_eq!(most_layers("odd"), 399);
    }
}
