//! Images of the store written for other tools. The store keeps no compressed layers: a layer's archive is made again from its
//! skeleton and files, byte for byte, and compressed anew, so that configuration and content are those of the image that
//! was fetched, and the digests of the compressed layers and of the manifest are our own.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use super::ensure::UseGuard;
use super::record::ImageRecord;
use super::{Store, files};
use crate::blobs::{Blob, Compressor};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, recover};
use crate::layered::{Layered, Names};
use crate::manifest::LayerInfo;
use crate::progress::{Progress, ProgressEvent};
use crate::reference::{DEFAULT_REGISTRY, Reference};
use crate::root::{directory_at, file_at};
use crate::source::verify;

impl Store {
    /// Writes an image with all its layers: as an OCI layout directory, or as a tar file that is an OCI layout and a
    /// docker-archive at once.
    ///
    /// # Errors
    /// The image is not in the store or damaged, a layer cannot be made again, or the target cannot be written; nothing is
    /// left there then.
    pub fn export(
        &self,
        digest: &Digest,
        path: &Path,
        as_directory: bool,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (record, _guard) = self.held(digest)?;
        let config = self.stored_blob(&record.config_digest)?;
        let write = |mut image: Layered<'_>, place: &Path| {
            let bytes = record.layers.iter().map(|l| l.size).sum();
            progress.event(ProgressEvent::Start { layers: record.layers.len(), cached: 0, bytes });
            for layer in &record.layers {
                image.layer(|out| self.compress(layer, out))?;
                progress.event(ProgressEvent::Fetched { bytes: layer.size });
            }
            let names = Names::of_file(place);
            let docker = record.all_names().iter().find_map(|name| docker_name(name)).unwrap_or(names.docker);
            image.finish(&config, &Names { docker, ..names })
        };
        if as_directory {
            directory_at(path, |dir, place| write(Layered::layout(dir)?, place))
        } else {
            file_at(path, |file, place| write(Layered::archive(file, place)?, place))
        }
    }

    /// The record of an image that is not removed meanwhile.
    pub(super) fn held(&self, digest: &Digest) -> Result<(ImageRecord, UseGuard)> {
        let guard = self.guard(digest)?;
        let record = self.image_record(digest)?.ok_or_else(|| self.unknown(&digest.to_string()))?;
        Ok((record, guard))
    }

    /// A manifest or configuration, as it was fetched.
    pub(super) fn stored_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = files::read(self.blobs.as_fd(), &digest.file_name())?.unwrap_or_default();
        match verify("stored blob", &bytes, digest) {
            Ok(()) => Ok(bytes),
            Err(_) => Err(damaged(format!("blob {digest}"), "it is missing, or does not have its digest")),
        }
    }

    /// Makes a layer's archive again and writes it compressed.
    pub(super) fn compress(&self, layer: &LayerInfo, out: impl Write) -> Result<Blob> {
        let what = format!("layer {}", layer.diff_id);
        self.is_rebuildable(layer)?;
        let tree = self.layer_tree(&layer.diff_id)?;
        let failed = |e| recover(&what, e).within(&what);
        let mut archive = self.rebuilt(&layer.diff_id, &tree, false)?;
        let mut compressor = Compressor::new(out, layer.diff_id.algorithm());
        std::io::copy(&mut archive, &mut compressor).map_err(failed)?;
        let blob = compressor.finish().map_err(failed)?;
        if blob.diff_id == layer.diff_id { Ok(blob) } else { Err(damaged(&what, "its files were changed")) }
    }

    /// Whether a layer's archive can be made again; says why where it cannot.
    pub(super) fn is_rebuildable(&self, layer: &LayerInfo) -> Result<()> {
        let what = format!("layer {}", layer.diff_id);
        let record = self.layer_record(&layer.diff_id)?;
        let record = record.ok_or_else(|| damaged(&what, "it is missing or incomplete"))?;
        if !record.listed {
            return Err(damaged(
                &what,
                "it was unpacked by an earlier version, which did not keep what is needed",
            ));
        }
        if !record.rebuildable {
            let reason = "its archive has more files that take the place of others in it than were kept, so that it cannot be \
                          made again";
            return Err(Error::new(ErrorKind::Unsupported, what, reason)
                .next("copy the image from where it came, with `skopeo copy`"));
        }
        Ok(())
    }
}

fn damaged(what: impl Into<String>, reason: &str) -> Error {
    Error::new(ErrorKind::Corrupt, what, reason).next("repair the image with `berth image verify --repair`")
}

/// As docker lists an image of that name.
fn docker_name(name: &str) -> Option<String> {
    let Ok(Reference::Registry(name)) = name.parse() else { return None };
    let tag = name.tag?;
    let repository = match name.registry.as_str() {
        DEFAULT_REGISTRY => name.repository.strip_prefix("library/").unwrap_or(&name.repository).to_owned(),
        registry => format!("{registry}/{}", name.repository),
    };
    Some(format!("{repository}:{tag}"))
}
