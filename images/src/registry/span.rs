//! Bytes of a blob one after the other, continued after cut connections from where they stopped, and from another place where
//! one fails.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, header};
use ureq::{Body, BodyReader};

use super::ways::Ways;
use super::{Client, Range};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::ACCEPT;
use crate::source::BlobKind;

/// How often a blob is continued without progress in between.
const RESUMES: u32 = 5;
/// What counts as progress. Less in the time for which a silent registry is waited for counts as silence.
const PROGRESS: u64 = 64 << 10;
/// What a mirror gives of at most this size is judged before it is handed on.
const JUDGED_WHOLE: u64 = 4 << 20;

/// The bytes from one offset to another, or to the end.
pub(super) struct Span {
    ways: Arc<Ways>,
    kind: BlobKind,
    digest: Digest,
    /// Offset of the next byte.
    at: u64,
    /// Where to stop, as far as the registry knows ranges and the blob is as long.
    end: Option<u64>,
    /// Who gives the bytes.
    way: usize,
    /// What those said who were asked in vain.
    before: Vec<String>,
    /// Length of the blob, where it was said.
    total: Option<u64>,
    body: Option<Bytes>,
    /// The last answer stops before what was asked for.
    short: bool,
    pace: Pace,
    left: u32,
}

/// What came since the last cut, and what came lately in how much time of waiting for it: a reader that is slow itself is no stall.
#[derive(Default)]
struct Pace {
    since: u64,
    lately: u64,
    waited: Duration,
}

impl Pace {
    fn came(&mut self, bytes: usize, in_time: Duration) {
        self.since += bytes as u64;
        self.lately += bytes as u64;
        self.waited += in_time;
    }

    /// Whether as good as nothing comes.
    fn crawls(&mut self, patience: Duration) -> bool {
        if self.waited < patience {
            return false;
        }
        let crawls = self.lately < PROGRESS;
        (self.lately, self.waited) = (0, Duration::ZERO);
        crawls
    }
}

enum Bytes {
    Coming(BodyReader<'static>),
    /// Some that were looked at, and what comes after them.
    Begun(Box<io::Chain<io::Cursor<Vec<u8>>, BodyReader<'static>>>),
    /// All that is left, which has its digest.
    Judged(io::Cursor<Vec<u8>>),
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Bytes::Coming(body) => body.read(buffer),
            Bytes::Begun(body) => body.read(buffer),
            Bytes::Judged(bytes) => bytes.read(buffer),
        }
    }
}

/// What an answer has of a blob.
struct Given {
    /// Bytes in front of those that were asked for.
    skip: u64,
    /// Where it stops, where that is not the end of the blob.
    end: Option<u64>,
    total: Option<u64>,
}

impl Span {
    /// Asks for the bytes from `at` to before `end`, and nobody who is before `way`.
    pub(super) fn open(
        ways: &Arc<Ways>,
        kind: BlobKind,
        digest: &Digest,
        at: u64,
        end: Option<u64>,
        way: usize,
    ) -> Result<Span> {
        let mut span = Self::new(ways, kind, digest, (at, end), way);
        span.connect(false)?;
        Ok(span)
    }

    /// The same of a blob's range in the middle; `None` where all in front of it would have to be read, too.
    pub(super) fn open_range(
        ways: &Arc<Ways>,
        digest: &Digest,
        (at, end): (u64, u64),
        way: usize,
    ) -> Result<Option<Span>> {
        let mut span = Self::new(ways, BlobKind::Blob, digest, (at, Some(end)), way);
        Ok(span.connect(true)?.then_some(span))
    }

    fn new(
        ways: &Arc<Ways>,
        kind: BlobKind,
        digest: &Digest,
        (at, end): (u64, Option<u64>),
        way: usize,
    ) -> Span {
        Span {
            ways: Arc::clone(ways),
            kind,
            digest: digest.clone(),
            at,
            end,
            way,
            before: Vec::new(),
            total: None,
            body: None,
            short: false,
            pace: Pace::default(),
            left: RESUMES,
        }
    }

    /// Who gives the bytes.
    pub(super) fn way(&self) -> usize {
        self.way
    }

    /// Whether what comes was found to be what was asked for.
    pub(super) fn is_judged(&self) -> bool {
        matches!(self.body, Some(Bytes::Judged(_)))
    }

    /// What of the blob comes after this span, when it was read: from where, and to where.
    pub(super) fn left(&self) -> Option<(u64, u64)> {
        self.total.filter(|total| self.at < *total).map(|total| (self.at, total))
    }

    /// Asks for the bytes; false where `ranges_only`, and they are given with others in front of them.
    fn connect(&mut self, ranges_only: bool) -> Result<bool> {
        let (kind, digest, at, end) = (self.kind, &self.digest, self.at, self.end);
        let accept = (kind != BlobKind::Blob).then_some(ACCEPT);
        let mut ask = |client: &Client| {
            let url = client.url(kind, &digest.to_string());
            let response = client.request(&url, accept, Range { from: at, end })?;
            let given = given(client, at, &response)?;
            let mut body = response.into_body().into_reader();
            if given.skip > 0 && ranges_only {
                return Ok((None, given));
            }
            // A registry without ranges starts over.
            paced(&mut body, given.skip, client.read, &mut |_| {}).map_err(|e| broken(client, at, &e))?;
            let whole = at == 0 && given.end.is_none_or(|end| given.total == Some(end));
            if client.is_mirror() && whole && given.total.is_none_or(|total| total <= JUDGED_WHOLE) {
                return Ok((Some(judged(client, digest, body)?), given));
            }
            Ok((Some(Bytes::Coming(body)), given))
        };
        let (way, (bytes, given)) = self.ways.first(self.way, kind, &mut self.before, &mut ask)?;
        if !matches!(bytes, Some(Bytes::Judged(_))) {
            self.ways.gave(way, &self.digest);
        }
        self.short = is_short(end, given.end);
        // An answer without a range goes to the end of the blob.
        self.end = given.end.or(given.total);
        (self.way, self.total) = (way, given.total.or(self.total));
        self.body = bytes;
        Ok(self.body.is_some())
    }

    /// Asks for what comes behind an answer, as connect does: to before `end`. As often as a blob is continued after cuts, answers that
    /// give less than was asked for may have next to nothing in them.
    pub(super) fn go_on(&mut self, end: u64, ranges_only: bool) -> Result<bool> {
        self.end = Some(end);
        if self.short && self.pace.since < PROGRESS {
            let little = format!("it gave less than {PROGRESS} bytes in one answer");
            self.cut(&io::Error::new(io::ErrorKind::UnexpectedEof, little))?;
        } else {
            (self.pace.since, self.left) = (0, RESUMES);
        }
        self.connect(ranges_only)
    }

    /// What to do after a cut: nothing more, if it is to be gone on with.
    fn cut(&mut self, error: &io::Error) -> Result<()> {
        self.body = None;
        if std::mem::take(&mut self.pace.since) >= PROGRESS {
            self.left = RESUMES;
        }
        let Some(client) = self.ways.client(self.way) else { return Ok(()) };
        let broken = broken(client, self.at, error);
        if client.is_mirror() {
            // The next one goes on from here.
            self.before.push(self.ways.fail(self.way, broken.reason(), true));
            self.way += 1;
            return Ok(());
        }
        if self.left == 0 {
            return Err(broken.after(&self.before));
        }
        self.left -= 1;
        let pause = super::trials::a_moment(RESUMES - 1 - self.left);
        client.leave_alone(pause, &client.label(), &format!("broke off at byte {} ({error})", self.at));
        Ok(())
    }
}

/// Whether an answer that stops there gives less than was asked for: to before `end`, or all. Behind one that reaches the end of the blob
/// nothing is asked for.
fn is_short(end: Option<u64>, stops: Option<u64>) -> bool {
    stops.is_some_and(|stops| end.is_none_or(|end| stops < end))
}

/// What the answer to a request for the bytes from `at` has.
fn given(client: &Client, at: u64, response: &Response<Body>) -> Result<Given> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(Given { skip: at, end: None, total: response.body().content_length() });
    }
    let range =
        response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let number = |text: &str| text.parse::<u64>().ok();
    let parts = range.strip_prefix("bytes ").and_then(|r| {
        let (span, total) = r.split_once('/')?;
        let (start, last) = span.split_once('-')?;
        Some((number(start)?, number(last)?.checked_add(1)?, number(total)))
    });
    match parts {
        Some((start, end, total)) if start <= at && at < end && total.is_none_or(|total| end <= total) => {
            Ok(Given { skip: at - start, end: Some(end), total })
        }
        _ => Err(Error::new(
            ErrorKind::Unreachable,
            client.what(),
            format!("{} answered with another range than asked ({range:?})", client.label()),
        )
        .next("ask the registry's administrator")),
    }
}

/// All of a small blob, if it is the one that was asked for. One whose length is not said may be too large to be judged.
fn judged(client: &Client, digest: &Digest, mut body: BodyReader<'static>) -> Result<Bytes> {
    let mut bytes = Vec::new();
    paced(&mut body, JUDGED_WHOLE + 1, client.read, &mut |piece| bytes.extend_from_slice(piece))
        .map_err(|e| broken(client, 0, &e))?;
    if bytes.len() as u64 > JUDGED_WHOLE {
        return Ok(Bytes::Begun(Box::new(io::Cursor::new(bytes).chain(body))));
    }
    crate::source::verify(&client.what(), &bytes, digest)?;
    Ok(Bytes::Judged(io::Cursor::new(bytes)))
}

/// Reads up to `most` bytes, for as long as what comes of them is worth waiting for.
fn paced(body: &mut impl Read, most: u64, patience: Duration, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(most.min(1 << 16)).unwrap_or(0)];
    let (mut pace, mut left) = (Pace::default(), most);
    while left > 0 {
        if pace.crawls(patience) {
            return Err(slow(patience));
        }
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let begun = Instant::now();
        match body.read(&mut buffer[..wanted]) {
            Ok(0) => break,
            Ok(read) => {
                take(&buffer[..read]);
                pace.came(read, begun.elapsed());
                left -= read as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn slow(patience: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("less than {PROGRESS} bytes in {} s", patience.as_secs()))
}

fn broken(client: &Client, at: u64, error: &io::Error) -> Error {
    let reason = format!("the connection to {} broke at byte {at}: {error}", client.label());
    Error::new(ErrorKind::Unreachable, client.what(), reason).next("try again; what was complete is kept")
}

impl Read for Span {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.body.is_none() {
                self.connect(false)?;
            }
            let patience = self.ways.client(self.way).map_or(Duration::MAX, |client| client.read);
            // All of it may have come, however slowly.
            if self.end.is_none_or(|end| self.at < end) && self.pace.crawls(patience) {
                self.cut(&slow(patience))?;
                continue;
            }
            let Some(body) = self.body.as_mut() else {
                continue;
            };
            let begun = Instant::now();
            let cut = match body.read(buffer) {
                Ok(0) if !buffer.is_empty() && self.end.is_some_and(|end| self.at < end) => {
                    io::Error::from(io::ErrorKind::UnexpectedEof)
                }
                Ok(read) => {
                    self.at += read as u64;
                    self.pace.came(read, begun.elapsed());
                    return Ok(read);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            self.cut(&cut)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_stops_before_what_was_asked_for_is_short() {
        assert!(is_short(Some(10), Some(9)) && is_short(None, Some(9)));
        // Also the rest of what was asked for after a cut, however little that is.
        assert!(!is_short(Some(10), Some(10)) && !is_short(Some(10), None) && !is_short(None, None));
    }

    #[test]
    fn only_waiting_for_bytes_counts_as_a_stall() {
        let mut pace = Pace::default();
        let second = Duration::from_secs(1);
        for _ in 0..59 {
            pace.came(1, second);
            assert!(!pace.crawls(60 * second));
        }
        pace.came(1, second);
        assert!(pace.crawls(60 * second), "60 bytes in 60 s");
        assert!(!pace.crawls(60 * second), "it is judged anew");
        for _ in 0..60 {
            pace.came(2000, second);
        }
        assert!(!pace.crawls(60 * second), "120,000 bytes in 60 s");
        assert_eq!(pace.since, 60 + 120_000);
    }
}
