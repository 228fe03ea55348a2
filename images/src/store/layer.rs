//! One layer: present, or unpacked by exactly one process.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use rustix::fs::{Mode, OFlags, RenameFlags, fsync, openat, renameat_with, syncfs};
use rustix::io::Errno;

use super::archive::ArchiveSums;
use super::form::Made;
use super::merge::merged_name;
use super::record::{LayerRecord, MergedRecord, VERSION, parse, print};
use super::work::WorkDir;
use super::{Charge, Store, boot_id, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, recover};
use crate::manifest::LayerInfo;
use crate::progress::{Progress, ProgressEvent};
use crate::skeleton::Rebuilt;
use crate::source::BlobSource;
use crate::unpack::LayerReport;

/// The mark of a layer whose files outlive a power cut.
const SYNCED: &str = "synced";
/// The listing of a layer's files.
pub(super) const LISTING: &str = "files.zst";
/// The skeleton of a layer's archive.
pub(super) const SKELETON: &str = "skeleton.zst";
/// What files of the archive had whose place others in it took; there where there are any.
pub(super) const REPLACED: &str = "replaced";

/// What stands behind the name of a layer that was replaced and may still be in use, before a number.
const ASIDE: &str = ".replaced-";
/// The next step where a layer is damaged.
pub(super) const REPAIR: &str = "repair the image with `berth image verify --repair`";

/// Layers that are open at once while they are written to the disk: few enough for what a process may have open.
const MOST_OPEN: usize = 256;

/// How often a layer is fetched anew because a mirror gave wrong bytes: whoever fetches may be hostile and say so for ever.
pub(super) const MOST_MIRRORS: usize = 8;

impl Store {
    /// The record of a layer that may be used: complete, and not torn by a power cut.
    pub(super) fn layer_record(&self, diff_id: &Digest) -> Result<Option<LayerRecord>> {
        self.record_at(&diff_id.file_name(), diff_id)
    }

    /// As [`Store::layer_record`], of what is in directory `name` of the layers.
    pub(super) fn record_at(&self, name: &str, diff_id: &Digest) -> Result<Option<LayerRecord>> {
        if self.form_of(name).is_none() {
            return Ok(None);
        }
        let Some(bytes) = files::read(self.layers.as_fd(), &format!("{name}/layer.json"))? else {
            return Ok(None);
        };
        // A record that a power cut tore is the same as none.
        let Ok(record) = parse::<LayerRecord>(name, &bytes) else {
            return Ok(None);
        };
        let outlives = self.is_synced(name) || record.boot == boot_id();
        Ok((record.diff_id == *diff_id && outlives).then_some(record))
    }

    /// Whether all of a layer was on the disk before anybody relied on it.
    fn is_synced(&self, name: &str) -> bool {
        Self::has_file(self.layers.as_fd(), &format!("{name}/{SYNCED}"))
    }

    /// Whether the layer in directory `name` may be mounted: it is there in a form that can be, and no power cut tore it. An image
    /// that is listed may have one that was: it was being made anew, in place of a damaged one or in another form.
    pub(super) fn is_usable(&self, name: &str) -> Result<bool> {
        if self.form_of(name).is_none() {
            return Ok(false);
        }
        if self.is_synced(name) {
            return Ok(true);
        }
        let bytes = files::read(self.layers.as_fd(), &format!("{name}/layer.json"))?;
        let record = bytes.and_then(|bytes| parse::<LayerRecord>(name, &bytes).ok());
        Ok(record.is_some_and(|record| record.boot == boot_id()))
    }

    /// Makes the layer present, and says whether it came from the source. `None` when another process works on it, and `wait` is false or
    /// what it made is gone. When `failed` is set, another layer of the image did.
    pub(super) fn ensure_layer(
        &self,
        layer: &LayerInfo,
        source: &dyn BlobSource,
        progress: &dyn Progress,
        wait: bool,
        failed: &AtomicBool,
    ) -> Result<Option<(LayerReport, bool)>> {
        if let Some(record) = self.layer_record(&layer.diff_id)? {
            return Ok(Some((record.report, false)));
        }
        let turn = match self.try_turn(layer)? {
            Some(turn) => turn,
            None if wait => match self.turn(layer, progress, Some(failed), false)? {
                Some(turn) => turn,
                // Others made it. Where it is gone again, it is waited for again.
                None => return Ok(self.layer_record(&layer.diff_id)?.map(|record| (record.report, false))),
            },
            None => return Ok(None),
        };
        let report = match self.layer_record(&layer.diff_id)? {
            Some(record) => (record.report, false),
            None => {
                let (work, report) =
                    self.unpack_layer(layer, source, &turn.watched(progress), Some(failed))?;
                self.publish_layer(work, &layer.diff_id)?;
                progress.event(ProgressEvent::LayerDone { diff_id: layer.diff_id.clone() });
                (report, true)
            }
        };
        turn.end()?;
        Ok(Some(report))
    }

    /// Unpacks the layer anew in place of a damaged one. Containers that run on the damaged one keep it.
    pub(super) fn replace_layer(
        &self,
        layer: &LayerInfo,
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<()> {
        let name = layer.diff_id.file_name();
        // What is there ends no waiting of whoever makes it anew.
        let Some(turn) = self.turn(layer, progress, None, true)? else { return Ok(()) };
        let (work, _) = self.unpack_layer(layer, source, &turn.watched(progress), None)?;
        self.placing(&layer.diff_id, || self.put_anew(work, &name))?;
        progress.event(ProgressEvent::LayerDone { diff_id: layer.diff_id.clone() });
        turn.end()
    }

    /// Puts a layer in the place of the one that is there, if any.
    fn put_anew(&self, work: WorkDir<'_>, name: &str) -> Result<()> {
        if !Self::has_directory(self.layers.as_fd(), name) {
            return work.publish(name);
        }
        let aside = self.aside(name)?;
        work.publish(&aside)?;
        // In one step, so that no container starts without the layer.
        renameat_with(&self.layers, &aside, &self.layers, name, RenameFlags::EXCHANGE)
            .map_err(|e| Error::io(format!("image store: layer {name}"), e))
    }

    /// A name for a layer that was replaced.
    pub(super) fn aside(&self, name: &str) -> Result<String> {
        let taken = self.names(&self.layers)?;
        let free = (0_u64..).map(|n| format!("{name}{ASIDE}{n}")).find(|name| !taken.contains(name));
        Ok(free.unwrap_or_default())
    }

    /// Removes layers that were replaced, unless something still runs on them: who does holds an image of the layer.
    pub(super) fn remove_replaced(&self) -> Result<()> {
        let mut bin = None;
        for name in self.names(&self.layers)? {
            let Some((layer, _)) = name.split_once(ASIDE) else { continue };
            let mut used = self.unknown_in_use()?;
            for image in self.records()? {
                let merged = image.merged.as_ref().is_some_and(|merged| merged_name(&merged.id) == layer);
                if merged || image.layers.iter().any(|l| l.diff_id.file_name() == layer) {
                    used |= self.in_use(&image.digest)?;
                }
            }
            if !used {
                let bin = match &mut bin {
                    Some(bin) => bin,
                    None => bin.insert(WorkDir::new(self)?),
                };
                bin.swallow_unused(&name)?;
            }
        }
        Ok(())
    }

    /// Opens a file that stands beside a layer's directory.
    pub(super) fn layer_file(&self, diff_id: &Digest, name: &str) -> Result<File> {
        self.file_at(&diff_id.file_name(), name)
    }

    /// As [`Store::layer_file`], of what is in directory `layer` of the layers.
    pub(super) fn file_at(&self, layer: &str, name: &str) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = format!("{layer}/{name}");
        let opened = openat(&self.layers, &path, flags, Mode::empty());
        opened.map(File::from).map_err(|e| Error::io(format!("image store: layers/{path}"), e).next(REPAIR))
    }

    /// The archive of a layer again, of its files below `tree`. With `all` it goes on behind a file that is not as it was.
    pub(super) fn rebuilt<'t>(
        &self,
        diff_id: &Digest,
        tree: &'t OwnedFd,
        all: bool,
    ) -> Result<Rebuilt<'t, File>> {
        let what = format!("layer {diff_id}");
        let failed = |e| recover(&what, e).within(&what).next(REPAIR);
        let archive = Rebuilt::new(self.layer_file(diff_id, SKELETON)?, tree, all).map_err(failed)?;
        match Self::has_file(self.layers.as_fd(), &format!("{}/{REPLACED}", diff_id.file_name())) {
            true => archive.with_kept(self.layer_file(diff_id, REPLACED)?).map_err(failed),
            false => Ok(archive),
        }
    }

    /// Unpacks a layer where nobody sees it; anew where a mirror gave wrong bytes, which is not asked again then.
    fn unpack_layer<'a>(
        &'a self,
        layer: &LayerInfo,
        source: &dyn BlobSource,
        progress: &dyn Progress,
        failed: Option<&AtomicBool>,
    ) -> Result<(WorkDir<'a>, LayerReport)> {
        for _ in 0..MOST_MIRRORS {
            match self.unpack_once(layer, source, progress, failed) {
                Err(error) if error.kind() == ErrorKind::Mirror => {
                    let text =
                        format!("layer {}: {}; it is fetched anew", layer.digest.short(), error.reason());
                    progress.event(ProgressEvent::Note { text });
                }
                done => return done,
            }
        }
        self.unpack_once(layer, source, progress, failed)
    }

    fn unpack_once<'a>(
        &'a self,
        layer: &LayerInfo,
        source: &dyn BlobSource,
        progress: &dyn Progress,
        failed: Option<&AtomicBool>,
    ) -> Result<(WorkDir<'a>, LayerReport)> {
        if let Some(done) = self.travelled(layer, source, progress, failed) {
            return Ok(done);
        }
        let make = |directory: &OwnedFd, charge: &Charge<'_>| {
            self.make_layer(directory, layer, source, progress, charge)
        };
        self.layer_by(layer, failed, make)
    }

    /// A layer where nobody sees it, which `make` makes, with its record.
    pub(super) fn layer_by<'a>(
        &'a self,
        layer: &LayerInfo,
        failed: Option<&AtomicBool>,
        make: impl FnOnce(&OwnedFd, &Charge<'_>) -> Result<Made>,
    ) -> Result<(WorkDir<'a>, LayerReport)> {
        let work = WorkDir::new(self)?;
        let directory = work.open()?;
        let charge = Charge::new(self.quota.as_ref()).unless(self.unwanted(failed)).on_disk(self.capacity()?);
        let Made { report, image, form, taken } = make(&directory, &charge)?;
        let rebuildable = report.unsaved == 0;
        let archive = rebuildable.then(|| ArchiveSums::of(&directory)).transpose();
        let archive =
            archive.map_err(|e| Error::io(format!("image store: layer {}", layer.diff_id.short()), e))?;
        let record = LayerRecord {
            version: VERSION,
            diff_id: layer.diff_id.clone(),
            report: report.clone(),
            listed: true,
            rebuildable,
            archive,
            image,
            form,
            taken,
            boot: boot_id(),
        };
        files::write(directory.as_fd(), "layer.json", &print(&record)?, self.give_to)?;
        charge.keep();
        Ok((work, report))
    }

    /// Has layers on the disk, and marks them as outliving a power cut.
    pub(super) fn sync_layers(&self, layers: &[LayerInfo], merged: Option<&MergedRecord>) -> Result<()> {
        let names = layers.iter().map(|layer| layer.diff_id.file_name());
        let names = names.chain(merged.map(|merged| merged_name(&merged.id)));
        let all: BTreeSet<String> = names.collect();
        let (marked, new): (Vec<String>, Vec<String>) =
            all.into_iter().partition(|name| self.is_synced(name));
        // Whoever made these marks may not have them on the disk yet.
        for name in &marked {
            fsync(self.open_layer(name)?).map_err(|e| Error::io("image store: the mark of a layer", e))?;
        }
        for names in new.chunks(MOST_OPEN) {
            // By descriptor: a layer that is not on the disk yet may be put in a name's place meanwhile, and gets no mark of ours.
            let opened = names.iter().map(|name| self.open_layer(name));
            let all = opened.collect::<Result<Vec<OwnedFd>>>()?;
            syncfs(&self.root_fd).map_err(|e| Error::io("image store: writing to disk", e))?;
            let io = |e| Error::io("image store: the mark of a layer", e);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            for layer in &all {
                match openat(layer, SYNCED, flags, Mode::RUSR | Mode::WUSR) {
                    // Another took its place, and whoever made that one marks it.
                    Ok(_) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(io(errno)),
                }
            }
            // The marks outlive the cut, too: not every filesystem keeps the order of what it was not asked to write.
            for layer in &all {
                fsync(layer).map_err(io)?;
            }
        }
        Ok(())
    }

    /// Opens the directory `name` of the layers.
    pub(super) fn open_layer(&self, name: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.layers, name, flags, Mode::empty())
            .map_err(|e| Error::io(format!("image store: layer {name}"), e))
    }
}
