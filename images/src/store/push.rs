//! Pushing an image of the store to a registry, with as few bytes as can be.

use std::collections::HashMap;
use std::fs::File;

use rustix::fs::{Mode, OFlags, openat};
use serde_json::json;

use super::Store;
use super::work::WorkDir;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::LayerInfo;
use crate::outer;
use crate::progress::{Progress, ProgressEvent};
use crate::reference::{Reference, RegistryRef};
use crate::registry::{Bytes, Credentials, Registries, Uploader};

/// What pushing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest there.
    pub digest: Digest,
    /// Layers that were uploaded; all others were there, or were mounted from another repository.
    pub uploaded: usize,
    /// Layers that the registry took over from another of its repositories.
    pub mounted: usize,
    /// Bytes of the layers that were uploaded.
    pub bytes: u64,
    /// Whether the manifest is another than the one that was fetched, because layers were compressed anew.
    pub anew: bool,
}

/// A layer's descriptor in the registry, as far as it is another than the manifest's.
type Anew = Option<(Digest, u64)>;

impl Store {
    /// Pushes an image under the tag that `to` names.
    ///
    /// # Errors
    /// The image is not in the store or damaged, a layer that the registry does not have cannot be made again, or the
    /// registry refuses.
    pub fn push(
        &self,
        image: &Digest,
        to: &RegistryRef,
        credentials: &Credentials,
        registries: &Registries,
        progress: &dyn Progress,
    ) -> Result<Pushed> {
        let what = Reference::Registry(to.clone()).to_string();
        let (Some(tag), None) = (&to.tag, &to.digest) else {
            return Err(Error::new(
                ErrorKind::Reference,
                what,
                "an image is pushed under a tag, and not by its digest",
            )
            .next("write REGISTRY/NAME:TAG"));
        };
        let (record, _guard) = self.held(image)?;
        let original = self.stored_blob(&record.digest)?;
        let config = self.stored_blob(&record.config_digest)?;
        let mut manifest: serde_json::Value = serde_json::from_slice(&original)
            .map_err(|e| Error::new(ErrorKind::Corrupt, format!("blob {image}"), e.to_string()))?;
        let uploader = Uploader::new(to, sister(record.source.as_deref(), to), credentials, registries)?;
        let mut pushed = Pushed { digest: image.clone(), uploaded: 0, mounted: 0, bytes: 0, anew: false };
        let bytes = record.layers.iter().map(|l| l.size).sum();
        progress.event(ProgressEvent::Start { layers: record.layers.len(), cached: 0, bytes });
        let mut done: HashMap<&Digest, Anew> = HashMap::new();
        for (at, layer) in record.layers.iter().enumerate() {
            let anew = match done.get(&layer.digest) {
                Some(anew) => anew.clone(),
                None => self.push_layer(layer, &uploader, &mut pushed)?,
            };
            if let Some((digest, size)) = &anew {
                pushed.anew = true;
                let docker = manifest["mediaType"].as_str().is_some_and(|kind| kind.contains("docker"));
                let kind = match docker {
                    true => "application/vnd.docker.image.rootfs.diff.tar.gzip".to_owned(),
                    false => format!("{}+gzip", outer::LAYER),
                };
                manifest["layers"][at] =
                    json!({"mediaType": kind, "digest": digest.to_string(), "size": size});
            }
            done.insert(&layer.digest, anew);
            progress.event(ProgressEvent::Fetched { bytes: layer.size });
        }
        if !uploader.has(&record.config_digest)? {
            uploader.upload(&record.config_digest, Bytes::Memory(&config))?;
        }
        let bytes = match pushed.anew {
            true => manifest.to_string().into_bytes(),
            false => original,
        };
        if pushed.anew {
            pushed.digest = Digest::of(Algorithm::Sha256, &bytes);
        }
        let kind = manifest["mediaType"].as_str().unwrap_or(outer::MANIFEST);
        uploader.manifest(tag, kind, &bytes, &pushed.digest)?;
        Ok(pushed)
    }

    /// Makes the registry have a layer. As it was fetched where the registry has it so, or has it elsewhere.
    fn push_layer(&self, layer: &LayerInfo, uploader: &Uploader, pushed: &mut Pushed) -> Result<Anew> {
        if uploader.has(&layer.digest)? {
            return Ok(None);
        }
        if uploader.mount(&layer.digest)? {
            pushed.mounted += 1;
            return Ok(None);
        }
        let work = WorkDir::new(self)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(work.open()?, "blob", flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| Error::io("image store: compressed layer", e))?;
        let file = File::from(file);
        let blob = self.compress(layer, std::io::BufWriter::with_capacity(1 << 18, &file))?;
        // From an earlier push: the same files give the same blob.
        if !uploader.has(&blob.digest)? {
            uploader.upload(&blob.digest, Bytes::File(&file))?;
            pushed.uploaded += 1;
            pushed.bytes += blob.size;
        }
        Ok((blob.digest != layer.digest).then_some((blob.digest, blob.size)))
    }
}

/// The repository of the same registry that the image came from, if it is another one.
fn sister(source: Option<&str>, to: &RegistryRef) -> Option<String> {
    match source?.parse().ok()? {
        Reference::Registry(from) if from.registry == to.registry && from.repository != to.repository => {
            Some(from.repository)
        }
        _ => None,
    }
}
