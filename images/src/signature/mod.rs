//! Signatures of images, as cosign makes them with a key: who must have signed an image, what a registry has of signatures, and
//! whether one of them counts.
//!
//! What a source hands out is [`Evidence`], of which nothing is believed. It is judged where the keys are known: by the store's
//! unpacker before any layer is fetched, and by a client that wants to know early.

mod claim;
mod kept;
mod key;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, printable};
use crate::listed::{listed, not_listed};
use crate::progress::{Progress, ProgressEvent};
use crate::reference::Reference;
use crate::source::{BlobKind, BlobSource, ResolvedManifest, read_verified};
use crate::unpack::Limits;
pub(crate) use claim::Found;
pub(crate) use kept::{Heard, Kept};
use key::Key;

/// Most bytes of what a source has of signatures of one manifest.
pub(crate) const MAX_EVIDENCE: u64 = 4 << 20;
/// Most signatures of one manifest.
pub(crate) const MAX_FOUND: usize = 64;
/// Most reasons that a message tells.
const MAX_REASONS: usize = 4;

/// Whose signature an image needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signers {
    /// Whether the image is refused without one; else people are told.
    pub required: bool,
    /// Any of these is enough.
    pub keys: Vec<SignerKey>,
    /// What the signer must have called the image, where the signature says it: `registry/repository`.
    pub identity: String,
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignerKey {
    /// How people call it, such as its file.
    pub name: String,
    /// The text of its file.
    pub pem: String,
}

impl SignerKey {
    /// Reads it, to see whether it is a key.
    ///
    /// # Errors
    /// It is none, or of a kind that is not supported.
    pub fn check(&self) -> Result<()> {
        Key::read(&self.name, &self.pem).map(drop)
    }
}

/// What a source has of signatures of one manifest.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Evidence {
    pub found: Vec<Found>,
    /// Why others were passed over.
    pub passed: Vec<String>,
}

/// What was found out about an image's signatures; the store remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Digests of the keys that counted.
    pub keys: Vec<Digest>,
    /// What the signer had to call the image.
    pub identity: String,
    /// The key by which it is signed.
    pub signed_by: Option<Digest>,
    /// The manifest or index that was signed.
    pub subject: Option<Digest>,
    /// Why it counts as unsigned.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Signers {
    fn keys(&self) -> Result<Vec<Key>> {
        self.keys.iter().map(|key| Key::read(&key.name, &key.pem)).collect()
    }

    /// What is known of an image that was looked at for these signers, or for others of whom one counts here, too.
    pub(crate) fn known<'a>(&self, verdicts: &'a [Verdict]) -> Result<Option<&'a Verdict>> {
        let keys: Vec<Digest> = self.keys()?.into_iter().map(|key| key.fingerprint).collect();
        let same = |verdict: &&Verdict| verdict.identity == self.identity;
        let signed = |verdict: &&Verdict| verdict.signed_by.as_ref().is_some_and(|key| keys.contains(key));
        let looked = |verdict: &&Verdict| !self.required && verdict.keys == keys;
        let mut fitting = verdicts.iter().filter(same);
        Ok(fitting.clone().find(signed).or_else(|| fitting.rfind(looked)))
    }

    /// What follows of a verdict: nothing, a word to people, or a refusal.
    ///
    /// # Errors
    /// A signature is required, and there is none.
    pub fn judge(&self, image: &ResolvedManifest, verdict: &Verdict, progress: &dyn Progress) -> Result<()> {
        if verdict.signed_by.is_some() {
            return Ok(());
        }
        self.unsigned(&called(image), &verdict.why, progress)
    }

    /// Refuses, or tells of, something that has no signature that counts.
    ///
    /// # Errors
    /// A signature is required.
    pub fn unsigned(&self, what: &str, why: &str, progress: &dyn Progress) -> Result<()> {
        if !self.required {
            progress.event(ProgressEvent::Unsigned { text: format!("{what}: {why}") });
            return Ok(());
        }
        let names: Vec<&str> = self.keys.iter().map(|key| key.name.as_str()).collect();
        let (wanted, next) = if names.is_empty() {
            (
                "this site runs signed images alone, and no key is known for this one".to_owned(),
                "use an image that the site has a key for, or ask the administrator for a rule ([[images.signature]] in berth.toml)"
                    .to_owned(),
            )
        } else {
            let names = names.join(", ");
            (
                format!("this site requires a signature by {names}"),
                "have it signed (`cosign sign --key …`), use an image that is, or ask the administrator"
                    .to_owned(),
            )
        };
        Err(Error::new(ErrorKind::Refused, what, format!("{wanted}: {why}")).next(next))
    }
}

/// An image as people know it, with its digest.
fn called(image: &ResolvedManifest) -> String {
    let name = image.name.as_ref().unwrap_or(&image.source);
    if name.contains('@') { name.clone() } else { format!("{name}@{}", image.digest) }
}

/// Looks for a signature of the image by one of the signers, in what `source` has of them. Trusts the source for nothing.
///
/// # Errors
/// A key cannot be read, or the source cannot be asked. Without a signature that counts the verdict says why.
pub fn look_for_signature(
    image: &ResolvedManifest,
    source: &dyn BlobSource,
    signers: &Signers,
) -> Result<Verdict> {
    let keys = signers.keys()?;
    let mut verdict = Verdict {
        keys: keys.iter().map(|key| key.fingerprint.clone()).collect(),
        identity: signers.identity.clone(),
        signed_by: None,
        subject: None,
        why: String::new(),
    };
    if !image.source.starts_with("docker://") {
        verdict.why = "it is no image of a registry, and only those have signatures".to_owned();
        return Ok(verdict);
    }
    if keys.is_empty() {
        verdict.why = "there is no key that could have signed it".to_owned();
        return Ok(verdict);
    }
    let mut reasons = Vec::new();
    let subjects = chain(image, source).unwrap_or_else(|why| {
        reasons.push(why.to_string());
        vec![image.digest.clone()]
    });
    for subject in subjects {
        let evidence = evidence(source, &subject)?;
        if let Some(key) = weigh(&evidence, &subject, &keys, &signers.identity, &mut reasons) {
            verdict.signed_by = Some(key);
            verdict.subject = Some(subject);
            return Ok(verdict);
        }
    }
    reasons.dedup();
    let more = reasons.len().saturating_sub(MAX_REASONS);
    reasons.truncate(MAX_REASONS);
    verdict.why = match reasons.is_empty() {
        true => format!("{} has no signature of it", image.source),
        false => reasons.join("; "),
    };
    if more > 0 {
        verdict.why += &format!("; and {more} more");
    }
    Ok(verdict)
}

/// What may have been signed: the manifest, and the indexes that list it, each proven by its bytes.
fn chain(image: &ResolvedManifest, source: &dyn BlobSource) -> Result<Vec<Digest>> {
    let what = called(image);
    let mut subjects = vec![image.digest.clone()];
    for index in image.indexes.iter().rev().take(MAX_INDEXES) {
        let bytes = read_verified(source, BlobKind::Manifest, index, Limits::default().manifest_bytes)?;
        let child = subjects.last().unwrap_or(&image.digest);
        if !listed(&what, &bytes)?.contains(child) {
            return Err(not_listed(index, child));
        }
        subjects.push(index.clone());
    }
    Ok(subjects)
}

/// Most indexes from a name to a manifest.
pub(crate) const MAX_INDEXES: usize = 4;

/// Asks the source.
fn evidence(source: &dyn BlobSource, subject: &Digest) -> Result<Evidence> {
    use std::io::Read;
    let what = || format!("signatures of {subject} at {}", source.describe());
    let mut bytes = Vec::new();
    source
        .open(BlobKind::Signatures, subject, 0)?
        .take(MAX_EVIDENCE + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| crate::error::recover(&what(), e))?;
    if bytes.len() as u64 > MAX_EVIDENCE {
        return Err(Error::new(
            ErrorKind::Refused,
            what(),
            format!("they are more than {MAX_EVIDENCE} bytes"),
        )
        .next("remove those that nobody needs"));
    }
    serde_json::from_slice(&bytes).map_err(|_| Error::new(ErrorKind::Refused, what(), "they are malformed"))
}

/// The key by which one of the signatures counts.
fn weigh(
    evidence: &Evidence,
    subject: &Digest,
    keys: &[Key],
    identity: &str,
    reasons: &mut Vec<String>,
) -> Option<Digest> {
    let (mut strangers, mut keyless) = (0, 0);
    for found in evidence.found.iter().take(MAX_FOUND) {
        let Some(signed) = found.open() else {
            reasons.push("a malformed signature".to_owned());
            continue;
        };
        let by = keys.iter().find(|key| signed.signatures.iter().any(|s| key.signed(&signed.message, s)));
        let Some(by) = by else {
            if signed.keyless {
                keyless += 1;
            } else {
                strangers += 1;
            }
            continue;
        };
        let Some(claim) = signed.claim() else {
            reasons.push(format!("{} signed something that is no image", by.name));
            continue;
        };
        if !claim.digests.iter().any(|digest| *digest == subject.to_string()) {
            let digests: String =
                claim.digests.iter().take(2).map(|d| format!(" {}", printable(d, 80))).collect();
            reasons.push(format!("{} signed another image{digests}", by.name));
            continue;
        }
        if !claim.name.is_empty() && repository(&claim.name).as_deref() != Some(identity) {
            let name = printable(&claim.name, 200);
            reasons.push(format!("{} signed it as {name}, and not as {identity}", by.name));
            continue;
        }
        return Some(by.fingerprint.clone());
    }
    if strangers > 0 {
        reasons.push(format!("{strangers} by other keys"));
    }
    if keyless > 0 {
        reasons.push(format!("{keyless} without a lasting key (keyless), which is not supported"));
    }
    reasons.extend(evidence.passed.iter().take(MAX_REASONS).map(|why| printable(why, 200)));
    None
}

/// `registry/repository` of a name in a signature, in our spelling.
fn repository(name: &str) -> Option<String> {
    match name.parse().ok()? {
        Reference::Registry(name) => Some(name.place()),
        _ => None,
    }
}

impl ResolvedManifest {
    /// By what name a site's rules know its source: `registry/repository`, or a path.
    pub fn place(&self) -> String {
        let source = self.source.as_str();
        if source.starts_with("docker://") {
            return repository(source).unwrap_or_default();
        }
        // `FORM:/path`
        source.split_once(':').map_or(source, |(_, path)| path).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_signatures_are_read_as_those_of_images() {
        for (name, is) in [
            ("ghcr.io/team/app", Some("ghcr.io/team/app")),
            ("index.docker.io/library/debian", Some("docker.io/library/debian")),
            ("localhost:5000/a/b:1", Some("localhost:5000/a/b")),
            ("", None),
            ("/etc/passwd", None),
            ("host:", None),
        ] {
            assert_eq!(repository(name).as_deref(), is, "{name}");
        }
    }

    #[test]
    fn places_are_what_rules_name() {
        let place = |source: &str| {
            let digest = Digest::of(crate::digest::Algorithm::Sha256, b"");
            ResolvedManifest {
                source: source.into(),
                digest,
                insecure: false,
                name: None,
                indexes: Vec::new(),
                pin: None,
            }
            .place()
        };
        assert_eq!(place("docker://ghcr.io/team/app"), "ghcr.io/team/app");
        assert_eq!(place("docker://me@ghcr.io#team/app"), "ghcr.io/team/app");
        assert_eq!(place("docker://build#team/app"), "build/team/app");
        assert_eq!(place("sqsh:/shared/x.sqsh"), "/shared/x.sqsh");
        assert_eq!(place("oci:/shared/layout"), "/shared/layout");
        assert_eq!(place("docker://"), "");
    }

    /// What cosign itself wrote, in its registry's words: key, payload and signature.
    const COSIGN_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAENptdY/l3nB0yqkXLBWkZWQwo6+cu\nOSWS1X9vPavpiQOoTTGC0xX57OojUadxF1cdQmrsiReWg2Wn4FneJfa8xw==\n-----END PUBLIC KEY-----";
    const COSIGN_PAYLOAD: &str = r#"{"critical":{"identity":{"docker-reference":"registry-testing.svc.lan/busybox"},"image":{"docker-manifest-digest":"sha256:f3cfc9d0dbf931d3db4685ec659b7ac68e2a578219da4aae65427886e649b06b"},"type":"cosign container image signature"},"optional":null}"#;
    const COSIGN_SIGNATURE: &str =
        "MEUCIQD6q/COgzOyW0YH1Dk+CCYSt4uAhm3FDHUwvPI55zwnlwIgE0ZK58ZOWpZw8YVmBapJhBqCfdPekIknimuO0xH8Jh8=";

    #[test]
    fn a_signature_that_cosign_made_counts_for_what_it_says_and_for_nothing_else() {
        use base64::Engine;
        let weighed = |payload: &str, subject: &str, identity: &str| {
            let key = Key::read("team.pub", COSIGN_KEY).unwrap();
            let payload = base64::engine::general_purpose::STANDARD.encode(payload);
            let found = Found::Simple { payload, signature: COSIGN_SIGNATURE.to_owned(), keyless: false };
            let evidence = Evidence { found: vec![found], passed: Vec::new() };
            let mut reasons = Vec::new();
            match weigh(&evidence, &subject.parse().unwrap(), &[key], identity, &mut reasons) {
                Some(_) => "counts".to_owned(),
                None => reasons.join("; "),
            }
        };
        let subject = "sha256:f3cfc9d0dbf931d3db4685ec659b7ac68e2a578219da4aae65427886e649b06b";
        let other = format!("sha256:{}", "0".repeat(64));
        let identity = "registry-testing.svc.lan/busybox";
        assert_eq!(weighed(COSIGN_PAYLOAD, subject, identity), "counts");
        assert!(weighed(COSIGN_PAYLOAD, &other, identity).contains("signed another image"));
        let named = weighed(COSIGN_PAYLOAD, subject, "registry-testing.svc.lan/busybox-evil");
        assert!(named.contains("signed it as registry-testing.svc.lan/busybox"), "{named}");
        let changed = COSIGN_PAYLOAD.replace("f3cf", "0000");
        assert_eq!(weighed(&changed, &subject.replace("f3cf", "0000"), identity), "1 by other keys");
    }
}
