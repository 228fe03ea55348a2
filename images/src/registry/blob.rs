//! A blob's bytes, continued after cut connections from where they stopped.

use std::io::{self, Read};
use std::sync::Arc;

use ureq::http::{Response, StatusCode, header};
use ureq::{Body, BodyReader};

use super::Client;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::ACCEPT;
use crate::source::BlobKind;

/// How often a blob is continued without any progress in between.
const RESUMES: u32 = 5;

pub(super) fn open(
    client: &Arc<Client>,
    kind: BlobKind,
    digest: &Digest,
    offset: u64,
) -> Result<Box<dyn Read + Send>> {
    let url = client.url(kind, &digest.to_string());
    let accept = (kind == BlobKind::Manifest).then_some(ACCEPT);
    let mut reader = Resuming {
        client: Arc::clone(client),
        url,
        accept,
        at: offset,
        total: None,
        body: None,
        left: RESUMES,
    };
    reader.connect()?;
    Ok(Box::new(reader))
}

struct Resuming {
    client: Arc<Client>,
    url: String,
    accept: Option<&'static str>,
    /// Offset of the next byte.
    at: u64,
    /// Length of the blob, where the registry said it.
    total: Option<u64>,
    body: Option<BodyReader<'static>>,
    left: u32,
}

impl Resuming {
    fn connect(&mut self) -> Result<()> {
        let response = self.client.request(&self.url, self.accept, self.at)?;
        let skip = self.start_of(&response)?;
        let length = response.body().content_length();
        self.total = length.map(|length| length + self.at - skip).or(self.total);
        let mut body = response.into_body().into_reader();
        // A registry without ranges starts over.
        io::copy(&mut (&mut body).take(skip), &mut io::sink()).map_err(|e| self.broken(&e))?;
        self.body = Some(body);
        Ok(())
    }

    /// Bytes to drop in front of the wanted offset.
    fn start_of(&self, response: &Response<Body>) -> Result<u64> {
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(self.at);
        }
        let range =
            response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let start = range
            .strip_prefix("bytes ")
            .and_then(|r| r.split('-').next())
            .and_then(|s| s.parse::<u64>().ok());
        match start {
            Some(start) if start <= self.at => Ok(self.at - start),
            _ => Err(Error::new(
                ErrorKind::Unreachable,
                self.client.what(),
                format!(
                    "registry {} answered with another range than asked ({range:?})",
                    self.client.name.registry
                ),
            )
            .next("ask the registry's administrator")),
        }
    }

    fn broken(&self, error: &io::Error) -> Error {
        Error::new(
            ErrorKind::Unreachable,
            self.client.what(),
            format!(
                "the connection to registry {} broke at byte {}: {error}",
                self.client.name.registry, self.at
            ),
        )
        .next("try again; what was complete is kept")
    }
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
                Ok(read) => {
                    self.at += read as u64;
                    if read > 0 {
                        self.left = RESUMES;
                    }
                    return Ok(read);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            self.body = None;
            if self.left == 0 {
                return Err(self.broken(&cut).into());
            }
            self.left -= 1;
            std::thread::sleep(super::FIRST_WAIT);
        }
    }
}
