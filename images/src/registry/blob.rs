//! A blob's bytes: its first part from one connection, and of a large one the others from several at once.

use std::io::{self, Read};
use std::sync::Arc;

use super::ranges::Ranges;
use super::span::Span;
use super::ways::Ways;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::source::BlobKind;

/// What the first request asks for of a blob: all of most.
pub(super) const FIRST: u64 = 8 << 20;
/// Of what is longer than this without its first part, several ranges are fetched at once.
const LARGE: u64 = 24 << 20;

pub(super) fn open(
    ways: &Arc<Ways>,
    kind: BlobKind,
    digest: &Digest,
    offset: u64,
) -> Result<Box<dyn Read + Send>> {
    let end = (kind == BlobKind::Blob).then(|| offset + FIRST);
    let first = Span::open(ways, kind, digest, offset, end, 0)?;
    // Whoever reads a part of it cannot be told that all of it is wrong.
    let judged = offset == 0 && !first.is_judged() && ways.has_mirrors();
    let hasher = judged.then(|| Hasher::new(digest.algorithm()));
    Ok(Box::new(Blob {
        ways: Arc::clone(ways),
        kind,
        digest: digest.clone(),
        part: Part::Span(Box::new(first)),
        single: false,
        hasher,
    }))
}

struct Blob {
    ways: Arc<Ways>,
    kind: BlobKind,
    digest: Digest,
    part: Part,
    /// The rest comes by one connection.
    single: bool,
    /// Sums up what is handed on, where a mirror may have given of it.
    hasher: Option<Hasher>,
}

enum Part {
    Span(Box<Span>),
    Ranges(Ranges),
    /// The end, which was judged.
    End,
}

impl Blob {
    /// What comes after the part at hand.
    fn next(&mut self) -> Result<()> {
        let (left, way) = match &self.part {
            Part::Span(span) => (span.left(), span.way()),
            Part::Ranges(ranges) => {
                self.single = true;
                (ranges.left(), ranges.way())
            }
            Part::End => (None, 0),
        };
        let Some((at, total)) = left else {
            self.part = Part::End;
            return self.judge();
        };
        if !self.single
            && total - at > LARGE
            && let Some(ranges) = Ranges::start(&self.ways, way, &self.digest, at, total)
        {
            self.part = Part::Ranges(ranges);
            return Ok(());
        }
        if let Part::Span(span) = &mut self.part {
            span.go_on(total, false)?;
            return Ok(());
        }
        let span = Span::open(&self.ways, self.kind, &self.digest, at, Some(total), way)?;
        self.part = Part::Span(Box::new(span));
        Ok(())
    }

    /// The end: what mirrors gave must be what was asked for. The reader has some of it already, and must ask anew.
    fn judge(&mut self) -> Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let found = hasher.finish();
        if found == self.digest {
            return Ok(());
        }
        let reason = format!("gave bytes with digest {found} for {}", self.digest);
        let notes = self.ways.blame(&self.digest, &reason);
        if notes.is_empty() {
            // It is the registry's own, and the reader's to refuse.
            return Ok(());
        }
        Err(Error::new(ErrorKind::Mirror, self.digest.to_string(), notes.join(", and "))
            .next("try again: it is fetched from elsewhere; tell the mirror's administrator"))
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match &mut self.part {
                Part::Span(span) => span.read(buffer)?,
                Part::Ranges(ranges) => ranges.read(buffer)?,
                Part::End => return Ok(0),
            };
            if read > 0 || buffer.is_empty() {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&buffer[..read]);
                }
                return Ok(read);
            }
            self.next()?;
        }
    }
}
