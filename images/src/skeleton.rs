//! An archive without its files' content: together with the unpacked files it gives the layer's very bytes again, so that
//! the layer can be checked against its digest, and written anew without asking where it came from.
//!
//! A zstd stream: a magic word, then records. `R`: bytes of the archive as they stand (u32 length, bytes). `F`: the content of
//! a file comes here (u32 CRC, u16 length of the path, path, u32 pieces, offset and length of each as u64). `E`: the end.
//! Numbers are little endian.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use flate2::Crc;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat2};

use crate::archive::{Segment, read_buffered, show};
use crate::error::{Error, ErrorKind};
use crate::unpack::STRICT;
use kept::{Keeper, Kept, KeptContent};

mod kept;

const MAGIC: &[u8] = b"BERTH-SKELETON-1";
/// Bytes of an archive in one record.
const PIECE: usize = 64 << 10;
/// Headers are much alike: higher levels take time and give little.
const LEVEL: i32 = 1;

/// Passes an archive on and writes its skeleton.
pub(crate) struct Recorder<R, W: Write> {
    input: R,
    out: zstd::Encoder<'static, W>,
    raw: Vec<u8>,
    content: Option<Content>,
    /// Bytes that passed.
    passed: u64,
    keeper: Option<Keeper>,
    failed: Option<io::Error>,
    /// Nothing more is written.
    stopped: bool,
}

/// A file whose content passes.
struct Content {
    path: Vec<u8>,
    pieces: Vec<Segment>,
    crc: Crc,
}

impl<R: BufRead, W: Write> Recorder<R, W> {
    pub(crate) fn new(input: R, out: W) -> io::Result<Self> {
        let mut out = zstd::Encoder::new(out, LEVEL)?;
        out.include_checksum(true)?;
        out.write_all(MAGIC)?;
        Ok(Self {
            input,
            out,
            raw: Vec::with_capacity(2 * PIECE),
            content: None,
            passed: 0,
            keeper: None,
            failed: None,
            stopped: false,
        })
    }

    /// The same, with a file for what entries take the place of.
    pub(crate) fn keeping(self, file: File) -> Self {
        Self { keeper: Some(Keeper::new(file)), ..self }
    }

    /// Keeps the content of a file that came by [`Recorder::begin`] and goes now. False where it is not kept: there may be no more of it than
    /// there was of the archive, which holes of files are not in.
    pub(crate) fn keep(&mut self, path: &[u8], size: u64, content: &mut dyn Read) -> io::Result<bool> {
        match &mut self.keeper {
            Some(keeper) if keeper.kept().saturating_add(size) <= self.passed => {
                keeper.keep(path, size, content).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// What comes now is the content of the file at `path`, which is where it was unpacked, in these pieces of it.
    pub(crate) fn begin(&mut self, path: &[u8], pieces: Vec<Segment>) {
        self.flush_raw();
        self.content = Some(Content { path: path.to_vec(), pieces, crc: Crc::new() });
    }

    /// The content ended.
    pub(crate) fn end(&mut self) {
        if let Some(content) = self.content.take() {
            let written = content.write(&mut self.out);
            self.note(written);
        }
    }

    /// Writes nothing more: what still comes is passed on alone.
    pub(crate) fn stop(&mut self) {
        (self.content, self.failed, self.stopped) = (None, None, true);
        self.raw = Vec::new();
    }

    /// The end of the archive: gives the input back, and what was written to.
    pub(crate) fn finish(mut self) -> io::Result<(R, W)> {
        self.flush_raw();
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        self.out.write_all(b"E")?;
        Ok((self.input, self.out.finish()?))
    }

    fn flush_raw(&mut self) {
        if self.raw.is_empty() {
            return;
        }
        let length = u32::try_from(self.raw.len()).unwrap_or(u32::MAX).to_le_bytes();
        let written = self.out.write_all(b"R").and_then(|()| self.out.write_all(&length));
        let written = written.and_then(|()| self.out.write_all(&self.raw));
        self.raw.clear();
        self.note(written);
    }

    /// Whoever reads learns of it next.
    fn note(&mut self, written: io::Result<()>) {
        if let Err(e) = written {
            self.failed.get_or_insert(e);
        }
    }
}

impl Content {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let path = u16::try_from(self.path.len()).map_err(io::Error::other)?;
        let pieces = u32::try_from(self.pieces.len()).map_err(io::Error::other)?;
        out.write_all(b"F")?;
        out.write_all(&self.crc.sum().to_le_bytes())?;
        out.write_all(&path.to_le_bytes())?;
        out.write_all(&self.path)?;
        out.write_all(&pieces.to_le_bytes())?;
        for piece in &self.pieces {
            out.write_all(&piece.offset.to_le_bytes())?;
            out.write_all(&piece.length.to_le_bytes())?;
        }
        Ok(())
    }
}

impl<R: BufRead, W: Write> BufRead for Recorder<R, W> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.failed.take() {
            Some(e) => Err(e),
            None => self.input.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        // It was filled before, or nothing could be used of it.
        let Ok(buffer) = self.input.fill_buf() else { return };
        let used = &buffer[..amount.min(buffer.len())];
        match &mut self.content {
            Some(content) => content.crc.update(used),
            None if self.stopped => {}
            None => self.raw.extend_from_slice(used),
        }
        self.passed += used.len() as u64;
        self.input.consume(amount);
        if self.raw.len() >= PIECE {
            self.flush_raw();
        }
    }
}

impl<R: BufRead, W: Write> Read for Recorder<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}

/// The length of the archive that a skeleton and its files make.
pub(crate) fn length(skeleton: impl Read) -> io::Result<u64> {
    let mut records = BufReader::with_capacity(PIECE, zstd::Decoder::new(skeleton)?);
    fn number<const N: usize>(records: &mut impl Read) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        records.read_exact(&mut bytes)?;
        Ok(bytes)
    }
    let skip = |records: &mut dyn Read, bytes: u64| match io::copy(&mut records.take(bytes), &mut io::sink())?
    {
        skipped if skipped == bytes => Ok(()),
        _ => Err(malformed("it ends too early")),
    };
    if number::<{ MAGIC.len() }>(&mut records)? != *MAGIC {
        return Err(malformed("it is none"));
    }
    let mut length: u64 = 0;
    loop {
        match number::<1>(&mut records)? {
            [b'R'] => {
                let bytes = u32::from_le_bytes(number(&mut records)?).into();
                skip(&mut records, bytes)?;
                length = length.saturating_add(bytes);
            }
            [b'F'] => {
                let _: [u8; 4] = number(&mut records)?;
                let path = u16::from_le_bytes(number(&mut records)?).into();
                skip(&mut records, path)?;
                for _ in 0..u32::from_le_bytes(number(&mut records)?) {
                    let _: [u8; 8] = number(&mut records)?;
                    length = length.saturating_add(u64::from_le_bytes(number(&mut records)?));
                }
            }
            // Behind it stands the sum of all that was compressed.
            [b'E'] => return io::copy(&mut records, &mut io::sink()).map(|_| length),
            _ => return Err(malformed("it has an unknown record")),
        }
    }
}

/// What is wrong with a file.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) path: Vec<u8>,
    pub(crate) what: String,
}

/// The archive again, from its skeleton and the files.
pub(crate) struct Rebuilt<'a, R: Read> {
    records: BufReader<zstd::Decoder<'static, BufReader<R>>>,
    tree: &'a OwnedFd,
    now: Now,
    begun: bool,
    /// Files that are not as they were; noted where the reader wants all of them, else the first ends the reading.
    wrong: Option<Vec<Wrong>>,
    /// Whether a directory of the image forbids its owner to get at a file.
    unread: bool,
    /// Whether files are opened at all.
    hollow: bool,
    /// What files had whose place others took.
    kept: Kept,
}

/// What is read next.
enum Now {
    Record,
    Raw(u64),
    File(Box<Place>),
    End,
}

/// Where the content of a file is.
enum Origin {
    File(File),
    Kept(KeptContent),
}

impl Origin {
    /// Bytes at an offset, which never goes back.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Origin::File(file) => file.read_at(buffer, offset),
            Origin::Kept(kept) => kept.read_at(buffer, offset),
        }
    }
}

/// How far a file was read.
struct Place {
    path: Vec<u8>,
    file: Option<Origin>,
    wanted: u32,
    crc: Crc,
    pieces: std::vec::IntoIter<Segment>,
    piece: Segment,
}

impl<'a, R: Read> Rebuilt<'a, R> {
    /// Of the files below `tree`. With `all` it goes on behind a file that is not as it was, with other bytes in its place.
    pub(crate) fn new(skeleton: R, tree: &'a OwnedFd, all: bool) -> io::Result<Self> {
        let records = BufReader::with_capacity(PIECE, zstd::Decoder::new(skeleton)?);
        Ok(Self {
            records,
            tree,
            now: Now::Record,
            begun: false,
            wrong: all.then(Vec::new),
            unread: false,
            hollow: false,
            kept: Kept::default(),
        })
    }

    /// The same with zeros for the content of files, for whoever wants their names alone.
    pub(crate) fn hollow(self) -> Self {
        Self { hollow: true, ..self }
    }

    /// The same with what files had whose place others took, as a [`Recorder`] kept it.
    pub(crate) fn with_kept(self, file: File) -> io::Result<Self> {
        Ok(Self { kept: Kept::read(file)?, ..self })
    }

    /// Files that are not as they were, and whether all could be read.
    pub(crate) fn into_wrong(self) -> (Vec<Wrong>, bool) {
        (self.wrong.unwrap_or_default(), !self.unread)
    }

    fn complain(&mut self, path: &[u8], what: String) -> io::Result<()> {
        match &mut self.wrong {
            Some(list) => {
                if list.last().is_none_or(|last| last.path != path) {
                    list.push(Wrong { path: path.to_vec(), what });
                }
                Ok(())
            }
            None => {
                let error = Error::new(ErrorKind::Corrupt, format!("stored file {}", show(path)), what)
                    .next("repair the image with `berth image verify --repair`");
                Err(error.into())
            }
        }
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.records.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the next record.
    fn record(&mut self) -> io::Result<Now> {
        if !self.begun {
            if self.number::<{ MAGIC.len() }>()? != *MAGIC {
                return Err(malformed("it is none"));
            }
            self.begun = true;
        }
        match self.number::<1>()? {
            [b'R'] => Ok(Now::Raw(u32::from_le_bytes(self.number()?).into())),
            [b'F'] => {
                let wanted = u32::from_le_bytes(self.number()?);
                let mut path = vec![0; u16::from_le_bytes(self.number()?).into()];
                self.records.read_exact(&mut path)?;
                let mut pieces = Vec::new();
                for _ in 0..u32::from_le_bytes(self.number()?) {
                    let (offset, length) =
                        (u64::from_le_bytes(self.number()?), u64::from_le_bytes(self.number()?));
                    pieces.push(Segment { offset, length });
                }
                let mut open = |path: &[u8]| match self.kept.take(path) {
                    Some(kept) => kept.map(Origin::Kept),
                    None => Self::open(self.tree, path).map(Origin::File),
                };
                let file = match (!self.hollow).then(|| open(&path)).transpose() {
                    Ok(file) => file,
                    // An ordinary user's store holds images to their permissions.
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied && self.wrong.is_some() => {
                        self.unread = true;
                        None
                    }
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                        let reason = "a directory of the image is closed to its owner, and so to you";
                        let error =
                            Error::new(ErrorKind::Denied, format!("stored file {}", show(&path)), reason)
                                .next(
                                    "do it as root, or copy the image from where it came with `skopeo copy`",
                                );
                        return Err(error.into());
                    }
                    Err(e) => {
                        self.complain(&path, e.to_string())?;
                        None
                    }
                };
                let piece = Segment { offset: 0, length: 0 };
                Ok(Now::File(Box::new(Place {
                    path,
                    file,
                    wanted,
                    crc: Crc::new(),
                    pieces: pieces.into_iter(),
                    piece,
                })))
            }
            [b'E'] => Ok(Now::End),
            _ => Err(malformed("it has an unknown record")),
        }
    }

    /// Opens a file of the layer, and nothing else.
    fn open(tree: &OwnedFd, path: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat2(tree, path, flags, Mode::empty(), STRICT)?;
        match FileType::from_raw_mode(fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(file.into()),
            _ => Err(io::Error::other("it is no file any more")),
        }
    }

    /// Bytes of a file; none at the end of its content.
    fn file(&mut self, place: &mut Place, buffer: &mut [u8]) -> io::Result<usize> {
        while place.piece.length == 0 {
            match place.pieces.next() {
                Some(piece) => place.piece = piece,
                None => {
                    if place.file.is_some() && place.crc.sum() != place.wanted {
                        self.complain(&place.path, "its content was changed".to_owned())?;
                    }
                    return Ok(0);
                }
            }
        }
        let length = usize::try_from(place.piece.length).unwrap_or(usize::MAX).min(buffer.len());
        let read = match &mut place.file {
            Some(file) => match file.read_at(&mut buffer[..length], place.piece.offset) {
                Ok(0) => Err("it is shorter than it was".to_owned()),
                Ok(read) => Ok(read),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
                Err(e) => Err(format!("it cannot be read: {e}")),
            },
            None => {
                buffer[..length].fill(0);
                Ok(length)
            }
        };
        let read = match read {
            Ok(read) => read,
            Err(what) => {
                self.complain(&place.path, what)?;
                place.file = None;
                buffer[..length].fill(0);
                length
            }
        };
        place.crc.update(&buffer[..read]);
        // A damaged skeleton names any place.
        place.piece.offset = place.piece.offset.saturating_add(read as u64);
        place.piece.length -= read as u64;
        Ok(read)
    }
}

impl<R: Read> Read for Rebuilt<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next_bytes(buffer).map_err(unreadable)
    }
}

impl<R: Read> Rebuilt<'_, R> {
    fn next_bytes(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.now, Now::End) {
                Now::End => return Ok(0),
                Now::Record | Now::Raw(0) => self.now = self.record()?,
                Now::Raw(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let read = self.records.read(&mut buffer[..length])?;
                    if read == 0 {
                        return Err(malformed("it ends too early"));
                    }
                    self.now = Now::Raw(left - read as u64);
                    return Ok(read);
                }
                Now::File(mut place) => {
                    let read = self.file(&mut place, buffer);
                    if !matches!(read, Ok(0)) {
                        self.now = Now::File(place);
                        return read;
                    }
                    self.now = Now::Record;
                }
            }
        }
    }
}

/// Says of what the skeleton itself failed with what it is about, and what to do.
fn unreadable(e: io::Error) -> io::Error {
    let ours = e.get_ref().is_some_and(|inner| inner.is::<Error>());
    match ours || e.kind() == io::ErrorKind::Interrupted {
        true => e,
        false => malformed(&format!("it cannot be read: {e}")),
    }
}

fn malformed(what: &str) -> io::Error {
    let error = Error::new(ErrorKind::Corrupt, "image store: skeleton of a layer's archive", what)
        .next("repair the image with `berth image verify --repair`");
    error.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::archive::Reader;
    use crate::unpack::{Limits, Tree, Unpacker};

    /// Few names, so that entries meet: directories, links to them, files below them, whiteouts.
    const NAMES: [&str; 10] =
        ["a", "b", "a/b", "a/b/c", "d/e", "d", "a/.wh.b", ".wh.b", "d/.wh..wh..opq", "link/x"];

    fn archive(entries: &[(u8, u8, u8, u16, Vec<u8>)], tail: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, link, kind, mode, data) in entries {
            let mut header = tar::Header::new_gnu();
            let kind = b"0125"[usize::from(kind % 4)];
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_mode(u32::from(*mode) & 0o7777);
            let data = if kind == b'0' { &data[..] } else { &[] };
            header.set_size(data.len() as u64);
            let name = NAMES[usize::from(*name) % NAMES.len()].as_bytes();
            let link = NAMES[usize::from(*link) % NAMES.len()].as_bytes();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        let mut bytes = builder.into_inner().unwrap();
        // What stands behind the end marker counts for the digest.
        bytes.extend_from_slice(tail);
        bytes
    }

    proptest! {
        #[test]
        fn an_archive_that_was_unpacked_is_made_again_byte_for_byte(
            entries in proptest::collection::vec(
                (any::<u8>(), any::<u8>(), any::<u8>(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..2000)),
                0..8,
            ),
            tail in proptest::collection::vec(any::<u8>(), 0..700),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let tree = OwnedFd::from(File::open(dir.path()).unwrap());
            let bytes = archive(&entries, &tail);
            let kept = tempfile::tempfile().unwrap();
            let recorder = Recorder::new(&bytes[..], Vec::new()).unwrap().keeping(kept.try_clone().unwrap());
            let mut reader = Reader::new(recorder);
            let limits = Limits::default();
            let form = Tree::new(tree.try_clone().unwrap());
            let unpacked = Unpacker::new(form, &limits, true).run(&mut reader);
            // Each file that goes was in the archive once.
            prop_assert!(!unpacked.as_ref().is_ok_and(|(report, _)| report.unsaved > 0));
            if unpacked.is_ok() {
                let mut recorder = reader.into_inner();
                io::copy(&mut recorder, &mut io::sink()).unwrap();
                let (_, skeleton) = recorder.finish().unwrap();
                let mut again = Vec::new();
                prop_assert_eq!(length(&skeleton[..]).unwrap(), bytes.len() as u64);
                let rebuilt = Rebuilt::new(&skeleton[..], &tree, false).unwrap().with_kept(kept).unwrap();
                match { rebuilt }.read_to_end(&mut again) {
                    Ok(_) => prop_assert!(again == bytes),
                    // An ordinary user cannot enter every directory.
                    Err(e) => prop_assert!(!rustix::process::geteuid().is_root(), "{}", e),
                }
            }
            crate::unpack::remove_tree(rustix::fs::CWD, std::os::unix::ffi::OsStrExt::as_bytes(dir.path().as_os_str())).unwrap();
        }
    }

    /// Found by fuzzing: the place of a piece went beyond the last number there is.
    #[test]
    fn a_skeleton_may_name_any_place_in_a_file() {
        let tree = OwnedFd::from(File::open("/").unwrap());
        let piece = [&(u64::MAX - 3).to_le_bytes()[..], &9_u64.to_le_bytes()].concat();
        let record = [b"F\0\0\0\0\x04\0gone\x01\0\0\0", piece.as_slice(), b"E"].concat();
        let skeleton = zstd::encode_all(&[MAGIC, &record].concat()[..], 1).unwrap();
        let mut rebuilt = Rebuilt::new(&skeleton[..], &tree, true).unwrap();
        assert_eq!(rebuilt.read_to_end(&mut Vec::new()).unwrap(), 9);
        assert_eq!(rebuilt.into_wrong().0.len(), 1);
    }

    #[test]
    fn a_skeleton_that_is_none_or_ends_early_is_told() {
        let tree = OwnedFd::from(File::open("/").unwrap());
        let read = |bytes: &[u8]| {
            let mut all = Vec::new();
            Rebuilt::new(bytes, &tree, true)
                .and_then(|mut rebuilt| rebuilt.read_to_end(&mut all))
                .unwrap_err()
        };
        let mut recorder = Recorder::new(&b"some bytes"[..], Vec::new()).unwrap();
        io::copy(&mut recorder, &mut io::sink()).unwrap();
        let (_, skeleton) = recorder.finish().unwrap();
        read(&skeleton[..skeleton.len() / 2]);
        read(b"no skeleton");
        assert!(
            read(&zstd::encode_all(&b"BERTH-SKELETON-9"[..], 1).unwrap()).to_string().contains("it is none")
        );
        assert!(
            read(&zstd::encode_all(&b"BERTH-SKELETON-1Q"[..], 1).unwrap())
                .to_string()
                .contains("unknown record")
        );
    }
}
