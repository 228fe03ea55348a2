//! A blob's bytes, continued after cut connections from where they stopped, and from another place where one fails.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;

use ureq::http::{Response, StatusCode, header};
use ureq::{Body, BodyReader};

use super::Client;
use super::ways::Ways;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::ACCEPT;
use crate::source::BlobKind;

/// How often a blob is continued without any progress in between.
const RESUMES: u32 = 5;
/// What a mirror gives of at most this size is judged before it is handed on.
const JUDGED_WHOLE: u64 = 4 << 20;

pub(super) fn open(
    ways: &Arc<Ways>,
    kind: BlobKind,
    digest: &Digest,
    offset: u64,
) -> Result<Box<dyn Read + Send>> {
    let mut reader = Resuming {
        ways: Arc::clone(ways),
        kind,
        digest: digest.clone(),
        from_start: offset == 0,
        at: offset,
        way: 0,
        before: Vec::new(),
        total: None,
        body: None,
        left: RESUMES,
        hasher: None,
        mirrors: BTreeSet::new(),
    };
    reader.connect()?;
    Ok(Box::new(reader))
}

struct Resuming {
    ways: Arc<Ways>,
    kind: BlobKind,
    digest: Digest,
    /// Whether all bytes pass through here.
    from_start: bool,
    /// Offset of the next byte.
    at: u64,
    /// Who gives the bytes.
    way: usize,
    /// What those said who were asked in vain.
    before: Vec<String>,
    /// Length of the blob, where it was said.
    total: Option<u64>,
    body: Option<Bytes>,
    left: u32,
    /// Sums up what was handed on, from the moment on that a mirror gave of it.
    hasher: Option<Hasher>,
    /// The mirrors that gave of it.
    mirrors: BTreeSet<usize>,
}

enum Bytes {
    Coming(BodyReader<'static>),
    /// All that is left, which has its digest.
    Judged(io::Cursor<Vec<u8>>),
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Bytes::Coming(body) => body.read(buffer),
            Bytes::Judged(bytes) => bytes.read(buffer),
        }
    }
}

impl Resuming {
    fn connect(&mut self) -> Result<()> {
        let (kind, digest, at, from_start) = (self.kind, &self.digest, self.at, self.from_start);
        let accept = (kind != BlobKind::Blob).then_some(ACCEPT);
        let mut ask = |client: &Client| {
            let url = client.url(kind, &digest.to_string());
            let response = client.request(&url, accept, at)?;
            let skip = start_of(client, at, &response)?;
            let total = response.body().content_length().map(|length| length + at - skip);
            let mut body = response.into_body().into_reader();
            // A registry without ranges starts over.
            io::copy(&mut (&mut body).take(skip), &mut io::sink()).map_err(|e| broken(client, at, &e))?;
            let small = at == 0 && from_start && total.is_some_and(|total| total <= JUDGED_WHOLE);
            if client.is_mirror() && small {
                return Ok((Bytes::Judged(judged(client, digest, body)?), total));
            }
            Ok((Bytes::Coming(body), total))
        };
        let (way, (bytes, total)) = self.ways.first(self.way, kind, &mut self.before, &mut ask)?;
        let mirror = self.ways.client(way).is_some_and(Client::is_mirror);
        if at == 0 {
            self.mirrors.clear();
            self.hasher = None;
        }
        if mirror && matches!(bytes, Bytes::Coming(_)) && from_start {
            self.mirrors.insert(way);
            if at == 0 {
                self.hasher = Some(Hasher::new(digest.algorithm()));
            }
        }
        (self.way, self.body, self.total) = (way, Some(bytes), total.or(self.total));
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
        let notes: Vec<String> = self.mirrors.iter().map(|way| self.ways.fail(*way, &reason, true)).collect();
        Err(Error::new(ErrorKind::Mirror, self.digest.to_string(), notes.join(", and "))
            .next("try again: it is fetched from elsewhere; tell the mirror's administrator"))
    }

    /// What to do after a cut: nothing more, if it is to be gone on with.
    fn cut(&mut self, error: &io::Error) -> Result<()> {
        self.body = None;
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
        std::thread::sleep(super::FIRST_WAIT);
        Ok(())
    }
}

/// Bytes to drop in front of the wanted offset.
fn start_of(client: &Client, at: u64, response: &Response<Body>) -> Result<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(at);
    }
    let range =
        response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let start =
        range.strip_prefix("bytes ").and_then(|r| r.split('-').next()).and_then(|s| s.parse::<u64>().ok());
    match start {
        Some(start) if start <= at => Ok(at - start),
        _ => Err(Error::new(
            ErrorKind::Unreachable,
            client.what(),
            format!("{} answered with another range than asked ({range:?})", client.label()),
        )
        .next("ask the registry's administrator")),
    }
}

/// All of a small blob, if it is the one that was asked for.
fn judged(client: &Client, digest: &Digest, body: BodyReader<'static>) -> Result<io::Cursor<Vec<u8>>> {
    let mut bytes = Vec::new();
    body.take(JUDGED_WHOLE + 1).read_to_end(&mut bytes).map_err(|e| broken(client, 0, &e))?;
    crate::source::verify(&client.what(), &bytes, digest)?;
    Ok(io::Cursor::new(bytes))
}

fn broken(client: &Client, at: u64, error: &io::Error) -> Error {
    let reason = format!("the connection to {} broke at byte {at}: {error}", client.label());
    Error::new(ErrorKind::Unreachable, client.what(), reason).next("try again; what was complete is kept")
}

impl Read for Resuming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.body.is_none() {
                self.connect()?;
            }
            let Some(body) = self.body.as_mut() else {
                continue;
            };
            let cut = match body.read(buffer) {
                Ok(0) if self.total.is_some_and(|total| self.at < total) => {
                    io::Error::from(io::ErrorKind::UnexpectedEof)
                }
                Ok(0) if !buffer.is_empty() => {
                    self.judge()?;
                    return Ok(0);
                }
                Ok(read) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&buffer[..read]);
                    }
                    self.at += read as u64;
                    if read > 0 {
                        self.left = RESUMES;
                    }
                    return Ok(read);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            self.cut(&cut)?;
        }
    }
}
