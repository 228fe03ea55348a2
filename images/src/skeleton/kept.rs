//! Content of files whose place later entries of their archive took: what the files of a layer cannot give any more.
//!
//! Records, in the order in which the files went: length of the path (u16), path, bytes of the content (u64), bytes of what follows
//! (u64), the content as zstd. Numbers are little endian. A path that has several stands for its first entries in the archive.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::malformed;

/// It is rarely needed, and is not to take time.
const LEVEL: i32 = 1;

/// Writes them.
pub(super) struct Keeper {
    file: File,
    kept: u64,
}

impl Keeper {
    /// Into an empty file.
    pub(super) fn new(file: File) -> Self {
        Self { file, kept: 0 }
    }

    /// Bytes of content that were kept.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    pub(super) fn keep(&mut self, path: &[u8], size: u64, content: &mut dyn Read) -> io::Result<()> {
        let length = u16::try_from(path.len()).map_err(io::Error::other)?;
        self.file.write_all(&[&length.to_le_bytes(), path, &size.to_le_bytes()[..], &[0; 8]].concat())?;
        let start = self.file.stream_position()?;
        let mut out = zstd::Encoder::new(&mut self.file, LEVEL)?;
        if io::copy(&mut content.take(size), &mut out)? != size {
            return Err(io::Error::other("a file that is replaced is shorter than it was"));
        }
        out.finish()?;
        let end = self.file.stream_position()?;
        self.file.write_all_at(&(end - start).to_le_bytes(), start - 8)?;
        self.kept += size;
        Ok(())
    }
}

/// What was kept, by path. There may be millions, for each of which a few numbers are in memory.
#[derive(Default)]
pub(super) struct Kept {
    file: Option<Arc<File>>,
    records: Vec<Record>,
    /// Numbers of the first record of each path that is left, and of its last one. 128 bits stand for a path, by keys that nobody can
    /// know.
    paths: HashMap<(u64, u64), (u32, u32)>,
    keys: (RandomState, RandomState),
}

/// Where content stands, in so many bytes, and the number of the next record of its path.
struct Record {
    at: u64,
    left: u64,
    next: u32,
}

impl Kept {
    /// Finds what a file has.
    pub(super) fn read(mut file: File) -> io::Result<Self> {
        let end = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut input = BufReader::new(&file);
        let (mut at, mut kept) = (0u64, Self::default());
        while at < end {
            let mut length = [0; 2];
            input.read_exact(&mut length)?;
            let mut path = vec![0; u16::from_le_bytes(length).into()];
            input.read_exact(&mut path)?;
            let (mut size, mut packed) = ([0; 8], [0; 8]);
            input.read_exact(&mut size)?;
            input.read_exact(&mut packed)?;
            let start = at + 18 + path.len() as u64;
            let packed = u64::from_le_bytes(packed);
            at = start
                .checked_add(packed)
                .filter(|at| *at <= end)
                .ok_or_else(|| malformed("it ends too early"))?;
            kept.add(&path, start, packed)?;
            input.seek_relative(i64::try_from(packed).map_err(io::Error::other)?)?;
        }
        kept.file = Some(Arc::new(file));
        Ok(kept)
    }

    fn add(&mut self, path: &[u8], at: u64, left: u64) -> io::Result<()> {
        let number = u32::try_from(self.records.len()).map_err(io::Error::other)?;
        self.records.push(Record { at, left, next: number });
        let hash = self.hash(path);
        let (_, last) = self.paths.entry(hash).or_insert((number, number));
        if let Some(before) = usize::try_from(*last).ok().and_then(|last| self.records.get_mut(last)) {
            before.next = number;
        }
        *last = number;
        Ok(())
    }

    fn hash(&self, path: &[u8]) -> (u64, u64) {
        (self.keys.0.hash_one(path), self.keys.1.hash_one(path))
    }

    /// The content of the next entry of this path, where another one took its place.
    pub(super) fn take(&mut self, path: &[u8]) -> Option<io::Result<KeptContent>> {
        let file = Arc::clone(self.file.as_ref()?);
        let hash = self.hash(path);
        let (first, last) = self.paths.get_mut(&hash)?;
        let Record { at, left, next } = *self.records.get(usize::try_from(*first).ok()?)?;
        if first == last {
            self.paths.remove(&hash);
        } else {
            *first = next;
        }
        let content = zstd::Decoder::new(Section { file, at, left });
        Some(content.map(|content| KeptContent { content, at: 0 }))
    }
}

/// A part of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        (self.at, self.left) = (self.at + read as u64, self.left - read as u64);
        Ok(read)
    }
}

/// The content of a file that was kept.
pub(super) struct KeptContent {
    content: zstd::Decoder<'static, BufReader<Section>>,
    at: u64,
}

impl KeptContent {
    /// Bytes at an offset that is not before the last.
    pub(super) fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let gap = offset.checked_sub(self.at).ok_or_else(|| malformed("its pieces go back"))?;
        self.at += io::copy(&mut (&mut self.content).take(gap), &mut io::sink())?;
        let read = if self.at == offset { self.content.read(buffer)? } else { 0 };
        self.at += read as u64;
        Ok(read)
    }
}
