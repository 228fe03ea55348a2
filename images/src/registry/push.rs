//! Pushing into one repository: what is there already stays there, what a sister repository has is mounted, the rest is
//! uploaded in one request a blob, or in chunks where that does not do (OCI distribution specification, "Push").

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::chunks::{self, Upload};
use super::urls::{location, query};
use super::{Access, Client, Credentials, Registries, message};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::reference::RegistryRef;
use crate::source::BlobKind;

/// A repository that is pushed to.
pub(crate) struct Uploader(pub(super) Client);

/// The bytes of a blob.
#[derive(Clone, Copy)]
pub(crate) enum Bytes<'a> {
    Memory(&'a [u8]),
    /// All of the file.
    File(&'a File),
}

impl<'a> Bytes<'a> {
    fn length(self) -> Result<u64> {
        match self {
            Bytes::Memory(bytes) => Ok(bytes.len() as u64),
            Bytes::File(file) => {
                file.metadata().map(|m| m.len()).map_err(|e| Error::io("image store: compressed layer", e))
            }
        }
    }

    /// What lies between two places, which are in it.
    pub(super) fn part(self, from: u64, end: u64) -> io::Result<Box<dyn Read + 'a>> {
        match self {
            Bytes::Memory(bytes) => {
                let place = |at| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                Ok(Box::new(&bytes[place(from)..place(end)]))
            }
            Bytes::File(mut file) => {
                file.seek(SeekFrom::Start(from))?;
                Ok(Box::new(file.take(end.saturating_sub(from))))
            }
        }
    }
}

/// What became of an upload in one request.
enum Whole {
    Done,
    /// It is to be sent in chunks. Before the first one nothing is begun yet, or this upload.
    InChunks(Option<Upload>),
}

impl Uploader {
    /// For the repository of `name`; blobs may be mounted from the repository `from` of the same registry. Nothing is asked
    /// yet.
    pub(crate) fn new(
        name: &RegistryRef,
        from: Option<String>,
        credentials: &Credentials,
        registries: &Registries,
    ) -> Result<Self> {
        Client::new(name, credentials, registries, Access::Push { from }).map(Self)
    }

    /// Whether the repository has the blob.
    pub(crate) fn has(&self, digest: &Digest) -> Result<bool> {
        self.0.has(digest)
    }

    /// Has the registry take the blob over from the sister repository; false where it does not.
    pub(crate) fn mount(&self, digest: &Digest) -> Result<bool> {
        let client = &self.0;
        let Access::Push { from: Some(from) } = &client.access else { return Ok(false) };
        let pairs = [("mount", digest.to_string()), ("from", from.clone())];
        let url = format!("{}?{}", self.uploads(), query(&pairs));
        // A registry may refuse a repository that it does not show us, or know nothing of mounting. Some say so by 401, which
        // else means that a token has to be renewed: what a new one does not help is a refusal, and uploading says what of.
        let asked = Cell::new(false);
        let known = |status: StatusCode| match status {
            StatusCode::UNAUTHORIZED => asked.replace(true),
            StatusCode::TOO_MANY_REQUESTS => false,
            status => status.is_success() || status.is_client_error(),
        };
        let response = client.persevere(&url, &known, &mut || {
            client.allowed(client.agent_for(&url)?.post(&url), &url).send_empty()
        })?;
        if response.status() == StatusCode::ACCEPTED
            && let Some(session) = location(&url, &response)
            && let Ok(agent) = client.agent_for(&session)
        {
            // It began an upload instead, which nobody goes on with. One that it keeps is its own to clean up.
            let _ = client.allowed(agent.delete(&session), &session).call();
        }
        Ok(response.status() == StatusCode::CREATED)
    }

    /// Uploads a blob: in one request, unless the registry says how long chunks are to be at least, or the request is too large
    /// for it, or breaks.
    pub(crate) fn upload(&self, digest: &Digest, bytes: Bytes<'_>) -> Result<()> {
        let length = bytes.length()?;
        match self.whole(digest, bytes, length)? {
            Whole::Done => Ok(()),
            Whole::InChunks(begun) => chunks::upload(self, digest, bytes, length, begun),
        }
    }

    fn whole(&self, digest: &Digest, bytes: Bytes<'_>, length: u64) -> Result<Whole> {
        let client = &self.0;
        let url = self.uploads();
        let divisible = length > chunks::SMALLEST;
        // An upload that broke is begun again, as a whole or in chunks: what the registry made of the first is unknown.
        let (broke, upload) = (Cell::new(false), Cell::new(None));
        let known = |status: StatusCode| {
            status.is_success() || (divisible && status == StatusCode::PAYLOAD_TOO_LARGE)
        };
        let response = client.persevere(&url, &known, &mut || {
            let begun = self.begin()?;
            if !begun.status().is_success() {
                return Ok(begun);
            }
            let at = Upload::begun(&url, &begun, length).ok_or_else(|| message::misled(client, &begun))?;
            if broke.get() || at.is_wanted(length) {
                upload.set(Some(at));
                return Ok(begun);
            }
            let request = client
                .allowed(client.agent_for(at.place())?.put(at.last(digest)), at.place())
                .header(header::CONTENT_TYPE, "application/octet-stream");
            let sent = match bytes {
                Bytes::Memory(bytes) => request.send(bytes),
                Bytes::File(mut file) => {
                    file.seek(SeekFrom::Start(0))?;
                    request.send(file)
                }
            };
            broke.set(divisible && sent.is_err());
            sent
        })?;
        Ok(match upload.take() {
            Some(upload) => Whole::InChunks(Some(upload)),
            None if response.status().is_success() => Whole::Done,
            None => Whole::InChunks(None),
        })
    }

    /// Asks for an upload.
    pub(super) fn begin(&self) -> std::result::Result<Response<Body>, ureq::Error> {
        let client = &self.0;
        let url = self.uploads();
        client.allowed(client.agent_for(&url)?.post(&url), &url).send_empty()
    }

    /// Uploads the manifest under a tag; what it names must be there.
    pub(crate) fn manifest(&self, tag: &str, media_type: &str, bytes: &[u8], digest: &Digest) -> Result<()> {
        let client = &self.0;
        let url = client.url(BlobKind::Manifest, tag);
        let response = client.persevere(&url, &|status| status.is_success(), &mut || {
            client
                .allowed(client.agent_for(&url)?.put(&url), &url)
                .header(header::CONTENT_TYPE, media_type)
                .send(bytes)
        })?;
        let told = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        if told.and_then(|text| text.parse::<Digest>().ok()).is_some_and(|told| told != *digest) {
            let reason = format!(
                "registry {} says that the manifest has digest {} and not {digest}",
                client.name.registry,
                told.unwrap_or_default()
            );
            return Err(Error::new(ErrorKind::Corrupt, client.what(), reason)
                .next("something between here and there changes what is sent; push again"));
        }
        Ok(())
    }

    pub(super) fn uploads(&self) -> String {
        format!("{}/v2/{}/blobs/uploads/", self.0.base, self.0.name.repository)
    }
}
