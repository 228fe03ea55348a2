//! A blob that is uploaded in chunks, and goes on where the registry has it after one of them broke (OCI distribution
//! specification, "Pushing a blob in chunks").

use std::cell::{Cell, RefCell};

use ureq::http::{Response, StatusCode, header};
use ureq::{Body, SendBody};

use super::message;
use super::push::{Bytes, Uploader};
use super::urls::{location, query};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// What one request has at first, and what it never has less of: proxies that take less take no images.
const LARGEST: u64 = 16 << 20;
pub(super) const SMALLEST: u64 = 1 << 20;
/// How often a registry may lose an upload, or have nothing more of it after a chunk.
const LOST: u32 = 3;

/// How far an upload is.
#[derive(Clone)]
pub(super) struct Upload {
    /// Where it goes on; each answer names the next place.
    place: String,
    /// Bytes that the registry has.
    at: u64,
    /// How much is sent at once.
    chunk: u64,
    /// What the registry wants at least in each chunk but the last; 0 where it says nothing.
    least: u64,
}

impl Upload {
    /// As the registry began it.
    pub(super) fn begun(url: &str, answer: &Response<Body>, length: u64) -> Option<Upload> {
        let told = answer.headers().get("oci-chunk-min-length").and_then(|v| v.to_str().ok());
        let least = told.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let chunk = (length / 4).clamp(SMALLEST, LARGEST).max(least);
        Some(Upload { place: location(url, answer)?, at: 0, chunk, least })
    }

    /// Whether the registry speaks of chunks, and the blob has more than one.
    pub(super) fn is_wanted(&self, length: u64) -> bool {
        self.least > 0 && length > self.least
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Where the upload ends.
    pub(super) fn last(&self, digest: &Digest) -> String {
        let mark = if self.place.contains('?') { '&' } else { '?' };
        format!("{}{mark}{}", self.place, query(&[("digest", digest.to_string())]))
    }

    fn end(&self, length: u64) -> u64 {
        self.at.saturating_add(self.chunk).min(length)
    }

    /// Less at once, as far as the registry takes it.
    fn smaller(&mut self) -> bool {
        let before = self.chunk;
        self.chunk = (before / 4).max(SMALLEST).max(self.least);
        self.chunk < before
    }

    /// Takes over what an answer says: where to go on, and what the registry has.
    fn follow(&mut self, answer: &Response<Body>, otherwise: u64) {
        if let Some(place) = location(&self.place, answer) {
            self.place = place;
        }
        let told = answer.headers().get(header::RANGE).and_then(|v| v.to_str().ok());
        let last = told.and_then(|text| text.trim_start_matches("bytes=").strip_prefix("0-")?.parse().ok());
        self.at = match last {
            // The docker registry's word for nothing: no chunk is a single byte.
            Some(0) => 0,
            Some(last) => u64::saturating_add(last, 1),
            None => otherwise,
        };
    }
}

/// What became of a request.
enum Step {
    On,
    /// The registry knows nothing of the upload any more; what it answered.
    Lost(String),
}

impl Step {
    fn lost(status: StatusCode) -> Step {
        Step::Lost(format!("it answered {status}"))
    }
}

/// Uploads all of a blob.
pub(super) fn upload(
    uploader: &Uploader,
    digest: &Digest,
    bytes: Bytes<'_>,
    length: u64,
    begun: Option<Upload>,
) -> Result<()> {
    let (mut chunk, mut said) = (None, String::new());
    let mut next = begun;
    for _ in 0..LOST {
        let mut upload = match next.take() {
            Some(upload) => upload,
            None => begin(uploader, length)?,
        };
        if let Some(chunk) = chunk {
            upload.chunk = upload.least.max(chunk);
        }
        match run(uploader, &mut upload, digest, bytes, length)? {
            Step::On => return Ok(()),
            Step::Lost(last) => said = last,
        }
        chunk = Some(upload.chunk);
    }
    let client = &uploader.0;
    let registry = &client.name.registry;
    let reason = format!("registry {registry} lost the upload of {digest} {LOST} times; at last {said}");
    Err(Error::new(ErrorKind::Unreachable, client.what(), reason)
        .next("push again; if it stays, ask the registry's administrator"))
}

fn begin(uploader: &Uploader, length: u64) -> Result<Upload> {
    let client = &uploader.0;
    let url = uploader.uploads();
    let answer = client.persevere(&url, &|status| status.is_success(), &mut || uploader.begin())?;
    Upload::begun(&url, &answer, length).ok_or_else(|| client.transport(&message::misled(client, &answer)))
}

fn run(
    uploader: &Uploader,
    upload: &mut Upload,
    digest: &Digest,
    bytes: Bytes<'_>,
    length: u64,
) -> Result<Step> {
    // One that says now this and now that comes to no end either.
    let (mut idle, mut most) = (0, upload.at);
    while upload.at < length {
        if let Step::Lost(said) = chunk(uploader, upload, bytes, length)? {
            return Ok(Step::Lost(said));
        }
        idle = if upload.at > most { 0 } else { idle + 1 };
        most = most.max(upload.at);
        if idle == LOST || most > length {
            return Ok(Step::Lost(format!("it had {} of {length} bytes", upload.at)));
        }
    }
    let client = &uploader.0;
    let last = upload.last(digest);
    let known = |status: StatusCode| status.is_success() || is_lost(status);
    let answer = client.persevere(&last, &known, &mut || {
        client
            .allowed(client.agent_for(&last)?.put(&last), &last)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .send_empty()
    })?;
    // One whose answer did not come may have done it.
    let there = answer.status().is_success() || uploader.has(digest)?;
    Ok(if there { Step::On } else { Step::lost(answer.status()) })
}

fn is_lost(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::RANGE_NOT_SATISFIABLE)
}

/// Sends one chunk. After one that broke the registry is asked what it has.
fn chunk(uploader: &Uploader, upload: &mut Upload, bytes: Bytes<'_>, length: u64) -> Result<Step> {
    let client = &uploader.0;
    let divisible = Cell::new(upload.chunk > SMALLEST.max(upload.least));
    let known = |status: StatusCode| {
        status.is_success() || is_lost(status) || (divisible.get() && status == StatusCode::PAYLOAD_TOO_LARGE)
    };
    let url = upload.place.clone();
    let now = RefCell::new(upload.clone());
    let unsure = Cell::new(false);
    let answer = client.persevere(&url, &known, &mut || {
        let mut now = now.borrow_mut();
        if unsure.get() {
            let state = client.allowed(client.agent_for(&now.place)?.get(&now.place), &now.place).call()?;
            if !state.status().is_success() {
                return Ok(state);
            }
            let at = now.at;
            now.follow(&state, at);
            unsure.set(false);
            if now.at >= length {
                return Ok(state);
            }
        }
        let (from, end) = (now.at, now.end(length));
        let request = client
            .allowed(client.agent_for(&now.place)?.patch(&now.place), &now.place)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, end - from)
            .header(header::CONTENT_RANGE, format!("{from}-{}", end - 1));
        let mut part = bytes.part(from, end)?;
        match request.send(SendBody::from_reader(&mut part)) {
            Ok(answer) => {
                if answer.status().is_success() {
                    now.follow(&answer, end);
                }
                unsure.set(answer.status().is_server_error());
                Ok(answer)
            }
            Err(error) => {
                unsure.set(true);
                now.smaller();
                divisible.set(now.chunk > SMALLEST.max(now.least));
                Err(error)
            }
        }
    })?;
    *upload = now.into_inner();
    match answer.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            upload.smaller();
            Ok(Step::On)
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            // It has more or less than we think.
            let url = upload.place.clone();
            let known = |status: StatusCode| status.is_success() || is_lost(status);
            let state = client.persevere(&url, &known, &mut || {
                client.allowed(client.agent_for(&url)?.get(&url), &url).call()
            })?;
            if !state.status().is_success() {
                return Ok(Step::lost(state.status()));
            }
            let at = upload.at;
            upload.follow(&state, at);
            Ok(Step::On)
        }
        status if is_lost(status) => Ok(Step::lost(status)),
        _ => Ok(Step::On),
    }
}
