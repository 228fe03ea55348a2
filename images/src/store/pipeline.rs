//! Fetch, verify, inflate and write, each at the same time as the others.
//!
//! Three threads a layer: one reads and hashes the blob, one inflates, one hashes the tar stream and writes files.
//! Between them stand short queues of chunks, so that memory stays bounded whatever the layer's size.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::archive::{Reader, read_buffered};
use crate::digest::Hasher;
use crate::error::{Error, ErrorKind, Result, Shortfall, recover};
use crate::manifest::LayerInfo;
use crate::progress::{Progress, ProgressEvent};
use crate::skeleton::Recorder;
use crate::source::{BlobKind, BlobSource, mismatch};
use crate::store::Charge;
use crate::store::window::Frames;
use crate::unpack::{Form, LayerReport, Limits, Recorded, Unpacker};

pub(super) const CHUNK: usize = 256 << 10;
/// Chunks between two stages: 2 MiB for a layer, and each stage has one in hand.
pub(super) const QUEUE: usize = 4;

/// Either more bytes, or the end, which is sent only after everything was verified.
enum Chunk {
    Data(Vec<u8>),
    End,
    Failed(Error),
}

/// Unpacks one layer from `source`, writes its skeleton and what entries take the place of, and verifies blob and tar stream. Gives the form that was filled.
pub(super) fn unpack<F: Form>(
    source: &dyn BlobSource,
    layer: &LayerInfo,
    (limits, charge): (&Limits, &Charge<'_>),
    progress: &dyn Progress,
    unpacker: Unpacker<'_, F>,
    (skeleton, replaced): (File, File),
) -> Result<(LayerReport, F)> {
    let compressed = AtomicU64::new(0);
    let what = format!("layer {} of {}", layer.digest, source.describe());
    thread::scope(|scope| {
        let chunks = content(scope, source, layer, &what, (limits, charge), (&compressed, progress))?;
        let kept = |e| Error::io("image store: skeleton of a layer", e);
        let mut reader = Reader::new(Recorder::new(chunks, skeleton).map_err(kept)?.keeping(replaced));
        let result = unpacker.run(&mut reader).map_err(|error| match error.kind() {
            ErrorKind::NoSpace => counted(error, &mut reader, charge.disk()),
            _ => error,
        });
        let mut recorder = reader.into_inner();
        // Damaged bytes make a damaged archive; the digest then tells the true reason.
        let drained = match &result {
            Err(e) if e.kind() != ErrorKind::Corrupt => Ok(()),
            _ => drain(&mut recorder),
        };
        match (result, drained) {
            (Ok(made), Ok(())) => {
                judge(recorder.finish().map_err(kept)?.0, layer)?;
                Ok(made)
            }
            (Err(error), Ok(())) => Err(error),
            (_, Err(error)) => Err(error),
        }
    })
    .map_err(|e| e.within(&what))
}

/// Reads on after the disk was full, and writes nothing: what others have is not to go for what would not fit even then. Stops where
/// the layer has more than `disk` bytes.
fn counted(error: Error, reader: &mut Recorded<Chunks, File>, disk: u64) -> Error {
    reader.inner_mut().stop();
    match reader.rest(disk) {
        Ok(rest) => error.lacking(Shortfall { need: reader.content(), rest }),
        // What breaks off, or is damaged, says nothing of how much it would have been.
        Err(_) => error,
    }
}

/// Verifies one layer from `source` as [`unpack`] does, and writes nothing.
pub(super) fn check(
    source: &dyn BlobSource,
    layer: &LayerInfo,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<()> {
    // What is not kept counts for nobody.
    let (compressed, charge) = (AtomicU64::new(0), Charge::new(None));
    let what = format!("layer {} of {}", layer.digest, source.describe());
    thread::scope(|scope| {
        let mut chunks = content(scope, source, layer, &what, (limits, &charge), (&compressed, progress))?;
        drain(&mut chunks)?;
        judge(chunks, layer)
    })
    .map_err(|e| e.within(&what))
}

/// Starts the stages before the last one; gives the archive that comes out of them, which is hashed as it is read.
fn content<'scope, 'env>(
    scope: &'scope thread::Scope<'scope, 'env>,
    source: &'env dyn BlobSource,
    layer: &'env LayerInfo,
    what: &'env str,
    bounds: (&'env Limits, &'env Charge<'_>),
    (compressed, progress): (&'env AtomicU64, &'env dyn Progress),
) -> Result<Chunks> {
    let (blob_out, blob_in) = sync_channel(QUEUE);
    let (tar_out, tar_in) = sync_channel(QUEUE);
    // Named for whoever looks with top or perf where an import spends its time.
    let stage = |name: &str| thread::Builder::new().name(name.to_string());
    let refused = |e| Error::io("image store: another thread for an import", e);
    stage("layer-fetch")
        .spawn_scoped(scope, move || {
            send_result(&blob_out, fetch(source, layer, what, compressed, progress, &blob_out));
        })
        .map_err(refused)?;
    let plain = source.is_peers();
    stage("layer-inflate")
        .spawn_scoped(scope, move || {
            send_result(&tar_out, inflate(Chunks::new(blob_in, None), plain, bounds, compressed, &tar_out));
        })
        .map_err(refused)?;
    Ok(Chunks::new(tar_in, Some(Hasher::new(layer.diff_id.algorithm()))))
}

/// Judges the content of the layer, all of which has passed.
fn judge(content: Chunks, layer: &LayerInfo) -> Result<()> {
    match content.finish() {
        Some(found) if found != layer.diff_id => Err(mismatch("uncompressed layer", &layer.diff_id, &found)),
        _ => Ok(()),
    }
}

/// Reads and hashes the blob. Nothing but the exact bytes counts as its end.
fn fetch(
    source: &dyn BlobSource,
    layer: &LayerInfo,
    what: &str,
    counter: &AtomicU64,
    progress: &dyn Progress,
    out: &SyncSender<Chunk>,
) -> Result<()> {
    if source.is_peers() {
        return fetch_archive(source, layer, what, counter, progress, out);
    }
    let mut hasher = Hasher::new(layer.digest.algorithm());
    let blob = source.open(BlobKind::Blob, &layer.digest, 0).map_err(|error| missing(layer, error))?;
    let mut blob = blob.take(layer.size.saturating_add(1));
    let mut total = 0u64;
    loop {
        let chunk = read_chunk(&mut blob).map_err(|e| recover(what, e))?;
        if chunk.is_empty() {
            break;
        }
        let bytes = chunk.len() as u64;
        total += bytes;
        counter.store(total, Ordering::Relaxed);
        hasher.update(&chunk);
        progress.event(ProgressEvent::Fetched { bytes });
        if out.send(Chunk::Data(chunk)).is_err() {
            // The other side failed and says why.
            return Ok(());
        }
    }
    if total != layer.size {
        let much = if total > layer.size { "more" } else { "less" };
        return Err(Error::new(
            ErrorKind::Corrupt,
            what,
            format!("the blob has {much} than the {} bytes that the manifest says", layer.size),
        )
        .next("the copy there is damaged; nothing was kept. Push the image again"));
    }
    let found = hasher.finish();
    if found == layer.digest { Ok(()) } else { Err(mismatch(what, &layer.digest, &found)) }
}

/// What is told of a layer that cannot be opened.
fn missing(layer: &LayerInfo, error: Error) -> Error {
    if !layer.foreign || error.kind() != ErrorKind::NotFound {
        return error;
    }
    error.next(
        "its type says that it is not distributable, so that only its makers give it: have the image pushed with that layer, or one made \
         that needs none",
    )
}

/// The same of a layer that another node has unpacked: what it gives is the content, which its own digest judges.
fn fetch_archive(
    source: &dyn BlobSource,
    layer: &LayerInfo,
    what: &str,
    counter: &AtomicU64,
    progress: &dyn Progress,
    out: &SyncSender<Chunk>,
) -> Result<()> {
    // It may be as much larger than the blob as a blob may grow.
    counter.store(layer.size, Ordering::Relaxed);
    let mut hasher = Hasher::new(layer.diff_id.algorithm());
    let mut archive = source.open(BlobKind::Archive, &layer.diff_id, 0)?;
    let mut told = 0;
    loop {
        let chunk = read_chunk(&mut archive).map_err(|e| recover(what, e))?;
        if chunk.is_empty() {
            break;
        }
        hasher.update(&chunk);
        // What people are told goes by the blobs' sizes.
        let bytes = (chunk.len() as u64).min(layer.size - told);
        told += bytes;
        progress.event(ProgressEvent::Fetched { bytes });
        if out.send(Chunk::Data(chunk)).is_err() {
            return Ok(());
        }
    }
    progress.event(ProgressEvent::Fetched { bytes: layer.size - told });
    let found = hasher.finish();
    if found == layer.diff_id { Ok(()) } else { Err(mismatch(what, &layer.diff_id, &found)) }
}

/// Inflates the blob, and waits for the verdict of its digest.
fn inflate(
    mut blob: Chunks,
    plain: bool,
    bounds: (&Limits, &Charge<'_>),
    compressed: &AtomicU64,
    out: &SyncSender<Chunk>,
) -> Result<()> {
    match (inflate_stream(&mut blob, plain, bounds, compressed, out), blob.failed.take()) {
        (Ok(false), _) => Ok(()),
        // Bytes after the compressed stream count for the digest.
        (Ok(true), _) => drain(&mut blob),
        (Err(_), Some(fetching)) => Err(fetching),
        // Damaged bytes cannot be decompressed; the digest then tells the true reason.
        (Err(error), None) if error.kind() == ErrorKind::Corrupt => drain(&mut blob).and(Err(error)),
        (Err(error), None) => Err(error),
    }
}

/// Inflates gzip and zstd by their magic numbers; anything else is a plain tar stream, and so is what is said to be `plain`. Gives
/// false when the next stage wants no more.
fn inflate_stream(
    blob: &mut Chunks,
    plain: bool,
    (limits, charge): (&Limits, &Charge<'_>),
    compressed: &AtomicU64,
    out: &SyncSender<Chunk>,
) -> Result<bool> {
    let start = blob.fill_buf().map_err(|e| recover("layer", e))?;
    let gzip = !plain && start.starts_with(b"\x1f\x8b");
    // A zstd frame, or a skippable one in front of it.
    let skippable = start.len() > 3 && start[0] & 0xf0 == 0x50 && start[1..4] == *b"\x2a\x4d\x18";
    let zstd = !plain && (skippable || start.starts_with(b"\x28\xb5\x2f\xfd"));
    let damaged = |e: io::Error| match e.downcast::<Error>() {
        Ok(ours) => ours,
        Err(e) => Error::new(ErrorKind::Corrupt, "layer", format!("it cannot be decompressed: {e}"))
            .next("the image is damaged; push it again"),
    };
    let mut input: Box<dyn Read + '_> = if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(blob))
    } else if zstd {
        Box::new(Frames::new(blob, charge))
    } else {
        Box::new(blob)
    };
    let mut total = 0u64;
    loop {
        let chunk = read_chunk(&mut input).map_err(damaged)?;
        if chunk.is_empty() {
            return Ok(true);
        }
        total += chunk.len() as u64;
        limits.check_ratio(compressed.load(Ordering::Relaxed), total)?;
        charge.archive(chunk.len() as u64)?;
        if out.send(Chunk::Data(chunk)).is_err() {
            return Ok(false);
        }
    }
}

/// Tells the next stage how this one ended.
fn send_result(out: &SyncSender<Chunk>, result: Result<()>) {
    let last = match result {
        Ok(()) => Chunk::End,
        Err(error) => Chunk::Failed(error),
    };
    // A receiver that is gone has failed by itself.
    let _ = out.send(last);
}

pub(super) fn read_chunk(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; CHUNK];
    let mut filled = 0;
    while filled < CHUNK {
        match input.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    chunk.truncate(filled);
    Ok(chunk)
}

/// Reads to the end, so that everything is hashed and verified.
fn drain(input: &mut impl BufRead) -> Result<()> {
    loop {
        let length = input.fill_buf().map_err(|e| recover("layer", e))?.len();
        if length == 0 {
            return Ok(());
        }
        input.consume(length);
    }
}

/// The receiving end of a queue, as a stream; hashes what passes.
struct Chunks {
    queue: Receiver<Chunk>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    failed: Option<Error>,
    hasher: Option<Hasher>,
}

impl Chunks {
    fn new(queue: Receiver<Chunk>, hasher: Option<Hasher>) -> Self {
        Self { queue, current: Vec::new(), at: 0, ended: false, failed: None, hasher }
    }

    fn finish(self) -> Option<crate::digest::Digest> {
        self.hasher.map(Hasher::finish)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.current.len() && !self.ended {
            if let Some(error) = &self.failed {
                return Err(error.clone().into());
            }
            match self.queue.recv() {
                Ok(Chunk::Data(chunk)) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&chunk);
                    }
                    self.current = chunk;
                    self.at = 0;
                }
                Ok(Chunk::End) => self.ended = true,
                Ok(Chunk::Failed(error)) => self.failed = Some(error),
                Err(_) => {
                    self.failed = Some(Error::new(
                        ErrorKind::Io,
                        "layer",
                        "a stage of the import ended without a result",
                    ));
                }
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}
