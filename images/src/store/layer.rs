//! One layer: present, or unpacked by exactly one process.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::process::geteuid;

use super::lock::Hold;
use super::record::{LayerRecord, VERSION, parse, print};
use super::work::WorkDir;
use super::{Store, boot_id, files, pipeline};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::LayerInfo;
use crate::progress::{Progress, ProgressEvent};
use crate::source::BlobSource;
use crate::unpack::{LayerReport, Unpacker, fingerprint};

/// The mark of a layer whose files outlive a power cut.
const SYNCED: &str = "synced";

impl Store {
    /// The record of a layer that may be used: complete, and not torn by a power cut.
    pub(super) fn layer_record(&self, diff_id: &Digest) -> Result<Option<LayerRecord>> {
        let name = diff_id.file_name();
        if !Self::has_directory(self.layers.as_fd(), &format!("{name}/fs")) {
            return Ok(None);
        }
        let Some(bytes) = files::read(self.layers.as_fd(), &format!("{name}/layer.json"))? else {
            return Ok(None);
        };
        // A record that a power cut tore is the same as none.
        let Ok(record) = parse::<LayerRecord>(&name, &bytes) else {
            return Ok(None);
        };
        let synced = files::read(self.layers.as_fd(), &format!("{name}/{SYNCED}"))?.is_some();
        Ok((record.diff_id == *diff_id && (synced || record.boot == boot_id())).then_some(record))
    }

    /// Makes the layer present. `None` when `wait` is false and another process works on it.
    pub(super) fn ensure_layer(
        &self,
        layer: &LayerInfo,
        source: &dyn BlobSource,
        progress: &dyn Progress,
        wait: bool,
    ) -> Result<Option<LayerReport>> {
        if let Some(record) = self.layer_record(&layer.diff_id)? {
            return Ok(Some(record.report));
        }
        let lock_name = format!("layer-{}", layer.diff_id.file_name());
        let lock = match self.try_lock(&lock_name, Hold::Exclusive)? {
            Some(lock) => lock,
            None if wait => {
                progress.event(ProgressEvent::Waiting { what: format!("layer {}", layer.diff_id.short()) });
                self.lock(&lock_name, Hold::Exclusive)?
            }
            None => return Ok(None),
        };
        let report = match self.layer_record(&layer.diff_id)? {
            Some(record) => record.report,
            None => {
                let report = self.unpack_layer(layer, source, progress)?;
                progress.event(ProgressEvent::LayerDone { diff_id: layer.diff_id.clone() });
                report
            }
        };
        // Nobody needs the lock's file any more: whoever comes finds the layer.
        lock.remove(self.locks.as_fd(), &lock_name)
            .map_err(|e| Error::io(format!("image store: lock {lock_name}"), e))?;
        Ok(Some(report))
    }

    fn unpack_layer(
        &self,
        layer: &LayerInfo,
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<LayerReport> {
        let name = layer.diff_id.file_name();
        let work = WorkDir::new(self)?;
        let directory = work.open()?;
        let io = |e| Error::io(format!("image store: layer {name}"), e);
        mkdirat(&directory, "fs", Mode::RWXU).map_err(io)?;
        let tree = openat(
            &directory,
            "fs",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(io)?;
        let root = tree.try_clone().map_err(|e| Error::io("image store", e))?;
        // In root's own store a set-user-id file would belong to root.
        let keep_setid = !geteuid().is_root();
        let unpacker = Unpacker::new(root, &self.limits, keep_setid);
        let report = pipeline::unpack(source, layer, &self.limits, progress, unpacker)?;
        let record = LayerRecord {
            version: VERSION,
            diff_id: layer.diff_id.clone(),
            report: report.clone(),
            fingerprint: fingerprint(&tree).map_err(io)?,
            boot: boot_id(),
        };
        files::write(directory.as_fd(), "layer.json", &print(&record)?, self.give_to)?;
        // A torn or foreign directory in the way is moved aside first.
        if Self::has_directory(self.layers.as_fd(), &name) {
            WorkDir::new(self)?.swallow(&name)?;
        }
        work.publish(&name)?;
        Ok(report)
    }

    /// Marks layers as outliving a power cut; call after syncfs.
    pub(super) fn mark_synced(&self, layers: &[LayerInfo]) -> Result<()> {
        for layer in layers {
            let name = layer.diff_id.file_name();
            let io = |e| Error::io(format!("image store: layer {name}"), e);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&self.layers, format!("{name}/{SYNCED}"), flags, Mode::RUSR | Mode::WUSR).map_err(io)?;
        }
        Ok(())
    }
}
