//! Layers of very many entries: taken or refused as the limits say, in memory that the limits bound. Their archives are made,
//! compressed and summed up as they go to the disk, and are never in memory.
//!
//! Without optimisation the limits for those that are to be refused are lower; with `--release` they are those that everybody has.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_images::{
    Algorithm, BlobSource, Credentials, Digest, Error, ErrorKind, Hasher, LayerForm, Limits, PreparedImage,
};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::erofs::Mounted;
use crate::support::watched::{Held, Watched};
use crate::support::{
    Bench, FORMS, Tar, arch, blob_path, ensure_text, only_layer, put_blob, resolve_text, write_layout,
};

/// All of it, or this part of it where nothing is optimised.
const fn part(of: u64, parts: u64) -> u64 {
    if cfg!(debug_assertions) { of / parts } else { of }
}

/// Files in a directory.
const EACH: u64 = 1000;
/// What an import takes beside what its entries need: pieces of the archive between its threads, and what compresses and inflates them.
const FIXED: u64 = 24 << 20;
/// What an import of a million entries may take.
const MOST: u64 = 150_000_000;
/// What is counted for each entry of an EROFS image whose name has eight bytes.
const COUNTED: u64 = 40 + 8;
/// Bytes of a name that is as long as a header can have it.
const LONG: usize = 88;
/// What is counted for each directory with such a name.
const COUNTED_LONG: u64 = 40 + 64 + LONG as u64;

/// Sums up what passes.
struct Summed<W> {
    to: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W> Summed<W> {
    fn new(to: W) -> Self {
        Self { to, hasher: Hasher::new(Algorithm::Sha256), bytes: 0 }
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// A layout in `dir` of one layer with these entries, each a name and a type. Hard links lead to `file`.
fn write(dir: &Path, entries: impl Iterator<Item = (String, u8)>) {
    write_compressed(dir, Compression::fast(), entries);
}

/// As [`write()`], compressed so much.
fn write_compressed(dir: &Path, level: Compression, entries: impl Iterator<Item = (String, u8)>) {
    let layer = dir.join("layer");
    let blob = Summed::new(File::create(&layer).unwrap());
    let archive = Summed::new(GzEncoder::new(blob, level));
    let mut out = BufWriter::with_capacity(64 << 10, archive);
    for (name, kind) in entries {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        let link: &[u8] = if kind == b'1' { b"file" } else { b"" };
        out.write_all(&Tar::header(name.as_bytes(), kind, mode, 0, link)).unwrap();
    }
    out.write_all(&[0; 1024]).unwrap();
    let archive = out.into_inner().map_err(|e| e.into_error()).unwrap();
    let blob = archive.to.finish().unwrap();
    let (diff_id, digest, size) = (archive.hasher.finish(), blob.hasher.finish(), blob.bytes);
    let put = |value: serde_json::Value| {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        put_blob(dir, &digest, &bytes);
        (digest.to_string(), bytes.len())
    };
    let (config, config_size) = put(serde_json::json!({
        "architecture": arch(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
    }));
    std::fs::rename(layer, blob_path(dir, &digest)).unwrap();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let (manifest, manifest_size) = put(serde_json::json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest.to_string(), "size": size,
        }],
    }));
    let manifest = serde_json::json!({"mediaType": kind, "digest": manifest, "size": manifest_size});
    write_layout(dir, &serde_json::json!({"schemaVersion": 2, "manifests": [manifest]}));
}

/// So many empty files, in directories.
fn files(count: u64) -> impl Iterator<Item = (String, u8)> {
    (0..count).flat_map(|n| {
        let directory = (n % EACH == 0).then(|| (format!("d{}", n / EACH), b'5'));
        directory.into_iter().chain([(format!("d{}/f{n:07}", n / EACH), b'0')])
    })
}

/// So many files of aufs: nothing is made of them, and nothing of them is remembered.
fn ignored(count: u64) -> impl Iterator<Item = (String, u8)> {
    (0..count).map(|n| (format!(".wh..wh.plnk/{n}"), b'0'))
}

/// Bytes behind a name in the status of this process.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Imports what was written, and tells how much more memory this process had for a moment than it has now. Right where one test runs at a
/// time, or each in a process of its own, as both of tests/run.sh's ways have it.
fn import(bench: &Bench, limits: Limits) -> (Result<PreparedImage, Error>, u64) {
    // The highest mark starts anew (proc(5), clear_refs).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let text = format!("oci:{}", bench.layout().display());
    let imported = ensure_text(&bench.store().with_limits(limits), &text, &Credentials::anonymous(), false);
    (imported, status("VmHWM").saturating_sub(before))
}

/// A layer is refused with these words, in so much memory, and nothing is left.
fn refused(bench: &Bench, limits: Limits, words: &str, most: u64) {
    let (imported, grown) = import(bench, limits);
    let error = imported.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(grown < most, "{grown} bytes, and not less than {most}");
    bench.assert_empty();
}

#[test]
fn a_million_empty_files_take_less_memory_than_is_counted_for_them() {
    let count = 1_000_000;
    let bench = Bench::of(LayerForm::Erofs);
    write(&bench.layout(), files(count));
    let (imported, grown) = import(&bench, Limits::default());
    let image = imported.unwrap_or_else(|e| panic!("{e}"));
    let most = COUNTED * count + FIXED;
    println!("{grown} bytes");
    assert!(grown < most && most < MOST, "{grown} bytes, and not less than {most}");
    let details = bench.store().inspect(&image.digest).unwrap();
    assert_eq!(details.layers[0].report.as_ref().unwrap().entries, count + count.div_ceil(EACH));
    if let Some(mounted) = Mounted::new(only_layer(&image)) {
        let directories = std::fs::read_dir(mounted.place()).unwrap();
        let shown: usize =
            directories.map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap().count()).sum();
        assert_eq!(shown as u64, count);
    }
}

/// Eight layers at once are as many as an import has, on a machine with the processors for it. All are held up just before the end of their
/// archives, so that what one has of the memory is not given back: whose end comes then has nearly all of its names in memory, and
/// others wait.
#[test]
fn layers_that_are_unpacked_at_once_share_the_memory_for_their_names() {
    const LAYERS: usize = 8;
    /// What they have together; one of them may have more.
    const SHARED: u64 = 32 << 20;
    /// Bytes of an archive that may have been read of which the names are not in memory yet: a dozen pieces between the threads of an import and
    /// in their hands, and one more.
    const AHEAD: u64 = 13 * (256 << 10);
    let count = 60_000;
    // What a layer has at least when its archive has come to its end: so many have room for that, and one more has the turn to need none.
    let each = (count - AHEAD / 512) * (40 + LONG as u64);
    let most = SHARED / each + 1;
    assert!(most + 3 <= LAYERS as u64, "{most} would not show it");
    let written = Bench::of(LayerForm::Erofs);
    let named = |n: u64| (format!("d{}/{n:0LONG$}", n / EACH), b'0');
    // Not compressed: what was read says what was unpacked. Each goes into a store of its own.
    write_compressed(&written.layout(), Compression::none(), (0..count).map(named));
    let text = format!("oci:{}", written.layout().display());
    let image = resolve_text(&text, &Credentials::anonymous(), false).unwrap();
    let benches: Vec<Bench> = (0..LAYERS).map(|_| Bench::of(LayerForm::Erofs)).collect();
    let (reached, at_end) = channel();
    let read = Arc::new(AtomicU64::new(0));
    let (holds, sources): (Vec<_>, Vec<_>) = (0..LAYERS).map(|_| held_up(&written, &reached, &read)).unzip();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    std::thread::scope(|scope| {
        let image = &image;
        for (bench, source) in benches.iter().zip(&sources) {
            scope.spawn(move || {
                bench.store().ensure(image, source, &()).unwrap_or_else(|e| panic!("{e}"));
            });
        }
        let (mut ended, mut seen) = (0, 0);
        // Until nobody gets on.
        loop {
            match at_end.recv_timeout(Duration::from_secs(2)) {
                Ok(()) => ended += 1,
                Err(_) => {
                    let now = read.load(Ordering::Relaxed);
                    if ended > 0 && now == seen {
                        break;
                    }
                    seen = now;
                }
            }
        }
        println!("{ended} layers came to their end");
        assert!(ended <= most, "{ended} layers came to their end at once: there is memory for {most}");
        drop(holds);
    });
    let grown = status("VmHWM").saturating_sub(before);
    println!("{grown} bytes");
    assert!(grown < MOST, "{grown} bytes");
}

/// The source of an image, of which the layer is held up just before its end for as long as the first value is there.
fn held_up(bench: &Bench, reached: &Sender<()>, read: &Arc<AtomicU64>) -> (Sender<()>, impl BlobSource) {
    let (hold, held) = channel();
    let once = Mutex::new(Some((reached.clone(), held, Arc::clone(read))));
    let (_, source) = Watched::new(bench, move |size, blob| {
        // Not the manifest, and not the configuration.
        let held = once.lock().unwrap().take_if(|_| size > 1 << 20);
        let Some((reached, held, read)) = held else { return Ok(blob) };
        Ok(Box::new(Held { blob, left: size - 1024, reached, held, read }))
    });
    (hold, source)
}

#[test]
fn more_entries_than_a_layer_may_have_are_refused_also_where_none_needs_memory() {
    let entries = part(Limits::default().entries, 4);
    for form in FORMS {
        let bench = Bench::of(form);
        write(&bench.layout(), ignored(entries + 1));
        let limits = Limits { entries, ..Limits::default() };
        refused(&bench, limits, &format!("it has more than {entries} entries"), FIXED);
    }
}

#[test]
fn more_directories_than_there_may_be_names_in_memory_are_refused_in_that_memory() {
    let name_bytes = part(Limits::default().name_bytes, 8);
    let bench = Bench::of(LayerForm::Erofs);
    // With the limits that everybody has they are fewer than there may be entries.
    let count = name_bytes / COUNTED_LONG + 1;
    assert!(count < Limits::default().entries);
    write(&bench.layout(), (0..count).map(|n| (format!("{n:0LONG$}"), b'5')));
    let limits = Limits { name_bytes, ..Limits::default() };
    let words = format!("its names need more than {name_bytes} bytes of memory");
    refused(&bench, limits, &words, name_bytes + FIXED);
}

#[test]
fn what_is_remembered_of_links_whiteouts_and_the_like_is_no_more_than_is_counted() {
    let count = part(1_000_000, 4);
    // Of each what counts besides the name, of which a whiteout has another one.
    let kinds: [(&str, u8, u64); 4] =
        [("d", b'5', 64), ("l", b'1', 64), (".wh.w", b'0', 72 + 8), ("device", b'3', 64 + 5)];
    for (name, kind, more) in kinds {
        let bench = Bench::of(LayerForm::Erofs);
        let entries = (0..count).map(|n| (format!("{name}{n:07}"), kind));
        write(&bench.layout(), std::iter::once(("file".to_owned(), b'0')).chain(entries));
        let (imported, grown) = import(&bench, Limits::default());
        imported.unwrap_or_else(|e| panic!("{e}"));
        let most = (COUNTED + more) * count + FIXED;
        println!("{name}: {grown} bytes");
        assert!(grown < most.min(MOST), "{name}: {grown} bytes, and not less than {most}");
    }
}
