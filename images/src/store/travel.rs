//! A layer that comes from another node as the read-only image which that has, instead of as its archive: nothing is inflated and
//! nothing is written anew. Its bytes are not what a registry's digest names, so it is taken only where the source says that nodes
//! agree on it, each of which made it of the archive by itself; and they must have the digest on which these agree.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use berth_model::exchange::MadeForm;

use super::bundle::{FormRecord, HEAD, Head};
use super::form::{LayerForm, Made, new_file, writer};
use super::hashing::Sum;
use super::layer::{MOST_MIRRORS, REPLACED, SKELETON};
use super::pipeline::{QUEUE, read_chunk};
use super::sum::runs;
use super::work::WorkDir;
use super::{Charge, Store};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result, recover};
use crate::manifest::LayerInfo;
use crate::progress::{Progress, ProgressEvent};
use crate::source::{BlobKind, BlobSource, mismatch};
use crate::unpack::LayerReport;

/// Most bytes of what a source says of one layer's images.
const MOST_TEXT: u64 = 64 << 10;

impl Store {
    /// The same store, of a node that may take read-only images of layers from others, and notes of its own which they are.
    #[must_use]
    pub fn travelling(mut self) -> Self {
        self.travels = true;
        self
    }

    /// The layer where nobody sees it, as another node's image; `None` where it has to come as its archive.
    pub(super) fn travelled<'a>(
        &'a self,
        layer: &LayerInfo,
        source: &dyn BlobSource,
        progress: &dyn Progress,
        failed: Option<&AtomicBool>,
    ) -> Option<(WorkDir<'a>, LayerReport)> {
        for tries in 0..=MOST_MIRRORS {
            let form = self.agreed(layer, source)?;
            let taking = |directory: &OwnedFd, charge: &Charge<'_>| {
                Taking { directory, layer, form: &form, charge }.take(source, progress)
            };
            match self.layer_by(layer, failed, taking) {
                Ok(done) => return Some(done),
                // Whoever gave these bytes is not asked again, and the next one may give others.
                Err(error) if error.kind() == ErrorKind::Mirror && tries < MOST_MIRRORS => {}
                Err(error) => {
                    let text = format!("layer {} comes as its archive: {error}", layer.diff_id.short());
                    progress.event(ProgressEvent::ByArchive { text });
                    return None;
                }
            }
        }
        None
    }

    /// The image of the layer on which nodes agree, as this node would write it, where it would write one.
    fn agreed(&self, layer: &LayerInfo, source: &dyn BlobSource) -> Option<MadeForm> {
        if !self.travels || !source.is_peers() || self.form_for(layer) != LayerForm::Erofs {
            return None;
        }
        let mut text = Vec::new();
        let said = source.open(BlobKind::Forms, &layer.diff_id, 0).ok()?;
        said.take(MOST_TEXT).read_to_end(&mut text).ok()?;
        let all: Vec<MadeForm> = serde_json::from_slice(&text).ok()?;
        let (wanted, writer) = (layer.diff_id.to_string(), writer());
        all.into_iter().find(|form| form.layer == wanted && form.writer == writer)
    }
}

/// An image that comes.
struct Taking<'a> {
    directory: &'a OwnedFd,
    layer: &'a LayerInfo,
    form: &'a MadeForm,
    charge: &'a Charge<'a>,
}

impl Taking<'_> {
    /// Has it come, verified while it does.
    fn take(&self, source: &dyn BlobSource, progress: &dyn Progress) -> Result<Made> {
        let digest: Digest = self.form.digest.parse()?;
        let blob = source.open(BlobKind::Form, &digest, 0)?;
        let (out, queue) = sync_channel(QUEUE);
        let (head, image) = std::thread::scope(|scope| {
            let reading = std::thread::Builder::new()
                .name("form-fetch".to_owned())
                .spawn_scoped(scope, || self.read(blob, Hasher::new(digest.algorithm()), progress, out))
                .map_err(|e| Error::io("image store: another thread for an import", e))?;
            let written = self.write(Coming { queue, current: Vec::new(), at: 0 });
            let read = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (read?, written) {
                (Some(found), _) if found != digest => Err(mismatch(&self.what(), &digest, &found)),
                (_, written) => written,
            }
        })?;
        let image = Sum::of(&image).map_err(|e| Error::io(self.what(), e))?;
        let form = FormRecord { writer: head.writer, digest, size: self.form.size, made: false };
        Ok(Made { report: head.report, image: Some(image), form: Some(form), taken: None })
    }

    fn what(&self) -> String {
        format!("image of layer {}", self.layer.diff_id.short())
    }

    /// Reads and hashes it; gives no digest where nobody wants more.
    fn read(
        &self,
        blob: Box<dyn Read + Send>,
        mut hasher: Hasher,
        progress: &dyn Progress,
        out: SyncSender<Vec<u8>>,
    ) -> Result<Option<Digest>> {
        let mut blob = blob.take(self.form.size.saturating_add(1));
        let mut told = 0;
        loop {
            let chunk = read_chunk(&mut blob).map_err(|e| recover(&self.what(), e))?;
            if chunk.is_empty() {
                break;
            }
            hasher.update(&chunk);
            // What people are told goes by the blobs' sizes.
            let bytes = (chunk.len() as u64).min(self.layer.size - told);
            told += bytes;
            progress.event(ProgressEvent::Fetched { bytes });
            if out.send(chunk).is_err() {
                return Ok(None);
            }
        }
        progress.event(ProgressEvent::Fetched { bytes: self.layer.size - told });
        Ok(Some(hasher.finish()))
    }

    /// Writes what comes where it belongs. Gives what the head says, and the image.
    fn write(&self, mut coming: Coming) -> Result<(Head, File)> {
        let mut head = Vec::with_capacity(HEAD);
        while head.len() < HEAD {
            let bytes = coming.next((HEAD - head.len()) as u64);
            if bytes.is_empty() {
                return Err(self.short());
            }
            head.extend_from_slice(bytes);
        }
        let head = Head::parse(&head, &self.form.writer, &self.layer.diff_id, self.form.size)?;
        let image = self.file(&mut coming, LayerForm::Erofs.name(), head.image)?;
        self.file(&mut coming, SKELETON, head.skeleton)?;
        if head.replaced > 0 {
            self.file(&mut coming, REPLACED, head.replaced)?;
        }
        match coming.next(1) {
            [] => Ok((head, image)),
            _ => Err(Error::new(ErrorKind::Corrupt, self.what(), "it has more than is said of it")),
        }
    }

    fn short(&self) -> Error {
        Error::new(ErrorKind::Corrupt, self.what(), "it ends too early")
    }

    fn file(&self, coming: &mut Coming, name: &str, length: u64) -> Result<File> {
        let failed = |e: io::Error| Error::io(self.what(), e);
        let file = File::from(new_file(self.directory, name).map_err(|e| failed(e.into()))?);
        let mut at = 0;
        while at < length {
            let bytes = coming.next(length - at);
            if bytes.is_empty() {
                return Err(self.short());
            }
            self.charge.file(bytes.len() as u64)?;
            put(&file, bytes, at).map_err(failed)?;
            at += bytes.len() as u64;
        }
        file.set_len(length).map_err(failed)?;
        Ok(file)
    }
}

/// What was read and not written yet.
struct Coming {
    queue: Receiver<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
}

impl Coming {
    /// The next bytes, at most so many; none at the end.
    fn next(&mut self, most: u64) -> &[u8] {
        while self.at == self.current.len() {
            match self.queue.recv() {
                Ok(chunk) => (self.current, self.at) = (chunk, 0),
                Err(_) => return &[],
            }
        }
        let from = self.at;
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.current.len() - from);
        self.at += most;
        &self.current[from..from + most]
    }
}

/// Writes into a file that is empty there. Blocks of zeros are left to be holes.
fn put(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    runs(bytes, |first, blocks| file.write_all_at(blocks, at + first as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sum::BLOCK;

    #[test]
    fn zeros_are_holes_and_all_else_is_where_it_was() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0; 5 * BLOCK + 100];
        for at in [BLOCK, 2 * BLOCK + 7, 5 * BLOCK + 99] {
            bytes[at] = 1;
        }
        put(&file, &bytes, 4096).unwrap();
        put(&file, &[0; 3 * BLOCK], 4096 + bytes.len() as u64).unwrap();
        let length = 4096 + bytes.len() as u64;
        assert_eq!(file.metadata().unwrap().len(), length);
        let mut found = vec![9; bytes.len()];
        file.read_exact_at(&mut found, 4096).unwrap();
        assert_eq!(found, bytes);
    }
}
