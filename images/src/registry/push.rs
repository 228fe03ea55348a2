//! Pushing into one repository: what is there already stays there, what a sister repository has is mounted, the rest is
//! uploaded in one request a blob (OCI distribution specification, "Push").

use std::cell::Cell;
use std::fs::File;
use std::io::{Seek, SeekFrom};

use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::{Access, Client, Credentials, Registries, join, query};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::reference::RegistryRef;
use crate::source::BlobKind;

/// A repository that is pushed to.
pub(crate) struct Uploader(Client);

/// The bytes of a blob.
#[derive(Clone, Copy)]
pub(crate) enum Bytes<'a> {
    Memory(&'a [u8]),
    /// All of the file.
    File(&'a File),
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
        let client = &self.0;
        let url = client.url(BlobKind::Blob, &digest.to_string());
        // Storage behind a registry need not answer to HEAD; that it is named is enough.
        let known = |status: StatusCode| {
            status.is_success() || status.is_redirection() || status == StatusCode::NOT_FOUND
        };
        let response =
            client.persevere(&url, &known, &mut || client.allowed(client.agent.head(&url), &url).call())?;
        Ok(response.status() != StatusCode::NOT_FOUND)
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
        let response = client
            .persevere(&url, &known, &mut || client.allowed(client.agent.post(&url), &url).send_empty())?;
        if response.status() == StatusCode::ACCEPTED
            && let Some(session) = location(&url, &response)
        {
            // It began an upload instead, which nobody goes on with. One that it keeps is its own to clean up.
            let _ = client.allowed(client.agent.delete(&session), &session).call();
        }
        Ok(response.status() == StatusCode::CREATED)
    }

    /// Uploads a blob.
    pub(crate) fn upload(&self, digest: &Digest, bytes: Bytes<'_>) -> Result<()> {
        let client = &self.0;
        let url = self.uploads();
        // An upload that broke is begun again as a whole: what the registry made of the first is unknown.
        client
            .persevere(&url, &|status| status.is_success(), &mut || self.upload_once(&url, digest, bytes))?;
        Ok(())
    }

    fn upload_once(
        &self,
        url: &str,
        digest: &Digest,
        bytes: Bytes<'_>,
    ) -> std::result::Result<Response<Body>, ureq::Error> {
        let client = &self.0;
        let begun = client.allowed(client.agent.post(url), url).send_empty()?;
        if !begun.status().is_success() {
            return Ok(begun);
        }
        let place = location(url, &begun).ok_or(ureq::Error::RedirectFailed)?;
        let mark = if place.contains('?') { '&' } else { '?' };
        let place = format!("{place}{mark}{}", query(&[("digest", digest.to_string())]));
        let request = client
            .allowed(client.agent.put(&place), &place)
            .header(header::CONTENT_TYPE, "application/octet-stream");
        match bytes {
            Bytes::Memory(bytes) => request.send(bytes),
            Bytes::File(mut file) => {
                file.seek(SeekFrom::Start(0))?;
                request.send(file)
            }
        }
    }

    /// Uploads the manifest under a tag; what it names must be there.
    pub(crate) fn manifest(&self, tag: &str, media_type: &str, bytes: &[u8], digest: &Digest) -> Result<()> {
        let client = &self.0;
        let url = client.url(BlobKind::Manifest, tag);
        let response = client.persevere(&url, &|status| status.is_success(), &mut || {
            client.allowed(client.agent.put(&url), &url).header(header::CONTENT_TYPE, media_type).send(bytes)
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

    fn uploads(&self) -> String {
        format!("{}/v2/{}/blobs/uploads/", self.0.base, self.0.name.repository)
    }
}

/// Where an answer sends us.
fn location(url: &str, response: &Response<Body>) -> Option<String> {
    join(url, response.headers().get(header::LOCATION)?.to_str().ok()?)
}
