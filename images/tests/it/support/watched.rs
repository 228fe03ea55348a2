//! A source whose blobs a test looks at, changes or holds up as they come.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use berth_images::{
    BlobKind, BlobSource, Credentials, Digest, Registries, ResolvedManifest, Result, open_source,
};

use super::{Bench, blob_path, resolve_text};

/// A blob as it comes.
pub type Blob = Box<dyn Read + Send>;

/// The source of the image in a bench's layout, which hands each blob to `opened` with its size.
pub struct Watched<F> {
    inner: Box<dyn BlobSource>,
    layout: PathBuf,
    opened: F,
}

impl<F: Fn(usize, Blob) -> Result<Blob> + Send + Sync> Watched<F> {
    pub fn new(bench: &Bench, opened: F) -> (ResolvedManifest, Self) {
        let anonymous = Credentials::anonymous();
        let layout = bench.layout();
        let image = resolve_text(&format!("oci:{}", layout.display()), &anonymous, false).unwrap();
        let inner = open_source(&image, &Registries::default(), &anonymous).unwrap();
        (image, Self { inner, layout, opened })
    }
}

impl<F: Fn(usize, Blob) -> Result<Blob> + Send + Sync> BlobSource for Watched<F> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Blob> {
        let size = std::fs::metadata(blob_path(&self.layout, digest)).unwrap().len();
        (self.opened)(usize::try_from(size).unwrap(), self.inner.open(kind, digest, offset)?)
    }
}

/// Gives so many bytes, says so, and goes on when nobody holds it up any more.
pub struct Held {
    pub blob: Blob,
    /// Bytes that come before it is held up.
    pub left: usize,
    pub reached: Sender<()>,
    /// For as long as the other side of this is there.
    pub held: Receiver<()>,
    /// What it gave, added up.
    pub read: Arc<AtomicU64>,
}

impl Read for Held {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            // Who does not listen any more need not know, and who is gone holds nothing up.
            let _ = self.reached.send(());
            let _ = self.held.recv();
            self.left = usize::MAX;
        }
        let most = buffer.len().min(self.left);
        let read = self.blob.read(&mut buffer[..most])?;
        self.left -= read;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
