//! What a repository has of signatures of a manifest: at cosign's tag (`sha256-HEX.sig`), and as referrers (distribution
//! specification 1.1, with its tag for registries that have no such list). The registry says what it likes, and so does whoever
//! may push: all of it is bounded, and what is malformed is passed over.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::StatusCode;

use super::ways::Ways;
use super::{Client, Range};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::ACCEPT;
use crate::signature::{Evidence, Found, MAX_EVIDENCE, MAX_FOUND};
use crate::source::{BlobKind, verify};

const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";

/// Largest manifest or list.
const MAX_DOCUMENT: u64 = 1 << 20;
/// Largest payload or bundle.
const MAX_BLOB: u64 = 256 << 10;
/// Longest signature, in base64.
const MAX_SIGNATURE: usize = 16 << 10;
/// Most referrers that are looked at.
const MAX_REFERRERS: usize = 64;
/// Most descriptors of signatures that are looked at, whatever comes of them.
const MAX_LOOKED_AT: usize = MAX_FOUND;

/// What may still be looked at.
struct Left {
    bytes: u64,
    descriptors: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<serde_json::Value>,
}

/// The evidence, as JSON: that of the first place that has any.
pub(super) fn collect(ways: &Ways, subject: &Digest) -> Result<Vec<u8>> {
    let (mut start, mut before, mut passed) = (0, Vec::new(), Vec::new());
    loop {
        let ask = &mut |client: &Client| collect_from(client, subject);
        let (at, mut evidence) = ways.first(start, BlobKind::Signatures, &mut before, ask)?;
        if evidence.found.is_empty() && ways.client(at + 1).is_some() {
            passed.append(&mut evidence.passed);
            start = at + 1;
            continue;
        }
        evidence.passed.append(&mut passed);
        let failed = |e: serde_json::Error| Error::new(ErrorKind::Io, "signatures", e.to_string());
        return serde_json::to_vec(&evidence).map_err(failed);
    }
}

fn collect_from(client: &Client, subject: &Digest) -> Result<Evidence> {
    let mut evidence = Evidence::default();
    let mut left = Left { bytes: MAX_EVIDENCE / 2, descriptors: MAX_LOOKED_AT };
    let tag = subject.file_name();
    if let Some(bytes) = ask(client, &client.url(BlobKind::Manifest, &format!("{tag}.sig")), ACCEPT)? {
        take(client, &bytes, &mut evidence, &mut left)?;
    }
    for referrer in referrers(client, subject, &tag, &mut evidence)? {
        let url = client.url(BlobKind::Manifest, &referrer.digest.to_string());
        let Some(bytes) = ask(client, &url, ACCEPT)? else { continue };
        match verify("referrer", &bytes, &referrer.digest) {
            Ok(()) => take(client, &bytes, &mut evidence, &mut left)?,
            Err(error) => evidence.passed.push(error.to_string()),
        }
    }
    Ok(evidence)
}

/// Manifests that say that they are about the subject and may be signatures.
fn referrers(client: &Client, subject: &Digest, tag: &str, evidence: &mut Evidence) -> Result<Vec<Entry>> {
    let listed = format!("{}/v2/{}/referrers/{subject}", client.base, client.name.repository);
    let bytes = match ask(client, &listed, INDEX)? {
        Some(bytes) => bytes,
        // A registry without the list: whoever pushed kept one at this tag.
        None => match ask(client, &client.url(BlobKind::Manifest, tag), INDEX)? {
            Some(bytes) => bytes,
            None => return Ok(Vec::new()),
        },
    };
    let Ok(index) = serde_json::from_slice::<Index>(&bytes) else {
        evidence.passed.push("the list of referrers is malformed".to_owned());
        return Ok(Vec::new());
    };
    let entries = index.manifests.into_iter().filter_map(|entry| serde_json::from_value(entry).ok());
    let signing = |entry: &Entry| {
        let kind = entry.artifact_type.as_str();
        // An older client's list does not say what they are.
        kind.is_empty() || kind.starts_with(BUNDLE) || kind.contains("cosign")
    };
    Ok(entries.filter(signing).take(MAX_REFERRERS).collect())
}

/// Takes the signatures of one manifest.
fn take(client: &Client, manifest: &[u8], evidence: &mut Evidence, left: &mut Left) -> Result<()> {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else {
        evidence.passed.push("a manifest of signatures is malformed".to_owned());
        return Ok(());
    };
    for layer in manifest.layers {
        let layer = serde_json::from_value::<Entry>(layer).ok();
        let simple = layer.as_ref().is_some_and(|layer| layer.media_type == SIMPLE);
        if layer.as_ref().is_some_and(|layer| !simple && !layer.media_type.starts_with(BUNDLE)) {
            continue;
        }
        if left.descriptors == 0 {
            evidence.passed.push(format!("there are more than {MAX_LOOKED_AT} signatures"));
            return Ok(());
        }
        left.descriptors -= 1;
        let Some(layer) = layer else {
            evidence.passed.push("a signature has a malformed descriptor".to_owned());
            continue;
        };
        if layer.size > MAX_BLOB || layer.size > left.bytes {
            evidence.passed.push(format!("a signature of {} bytes is too large", layer.size));
            continue;
        }
        left.bytes -= layer.size;
        let url = client.url(BlobKind::Blob, &layer.digest.to_string());
        let Some(bytes) = ask(client, &url, "*/*")? else {
            evidence.passed.push(format!("a signature is missing: {}", layer.digest));
            continue;
        };
        if let Err(error) = verify("signature", &bytes, &layer.digest) {
            evidence.passed.push(error.to_string());
            continue;
        }
        let signature = layer.annotations.get(SIGNATURE).cloned().unwrap_or_default();
        if signature.len() > MAX_SIGNATURE {
            evidence.passed.push(format!("a signature of {} characters is too large", signature.len()));
            continue;
        }
        evidence.found.push(if simple {
            Found::Simple {
                payload: STANDARD.encode(&bytes),
                signature,
                keyless: layer.annotations.contains_key(CERTIFICATE),
            }
        } else {
            Found::Bundle { bundle: STANDARD.encode(&bytes) }
        });
    }
    Ok(())
}

/// A document or small blob; nothing where the registry has none, or does not know the question.
fn ask(client: &Client, url: &str, accept: &str) -> Result<Option<Vec<u8>>> {
    let absent = |status: StatusCode| {
        matches!(
            status,
            StatusCode::NOT_FOUND
                | StatusCode::BAD_REQUEST
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::NOT_ACCEPTABLE
                | StatusCode::NOT_IMPLEMENTED
        )
    };
    let known = |status: StatusCode| status.is_success() || absent(status);
    let response = client.persevere(url, &known, &mut || client.send(url, Some(accept), Range::default()))?;
    if absent(response.status()) {
        return Ok(None);
    }
    // A byte more shows that it is larger.
    match response.into_body().into_with_config().limit(MAX_DOCUMENT + 1).read_to_vec() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ureq::Error::BodyExceedsLimit(_)) => {
            let what = format!("{} of {}", url.rsplit('/').next().unwrap_or_default(), client.what());
            Err(Error::new(ErrorKind::Refused, what, format!("it is larger than {MAX_DOCUMENT} bytes"))
                .next("no signature needs one this large; remove it"))
        }
        Err(error) => Err(client.transport(&error)),
    }
}
