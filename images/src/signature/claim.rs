//! What a signature says: the payload of cosign's simple signing, and the statement in a bundle (sigstore bundle 0.3 with a DSSE
//! envelope around an in-toto statement).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// One signature as a registry has it; nothing of it is believed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Found {
    /// A payload and the signature of its bytes, both in base64.
    Simple { payload: String, signature: String, keyless: bool },
    /// A bundle, in base64.
    Bundle { bundle: String },
}

/// Bytes that were signed, the signatures, and how to read what the bytes say.
pub(super) struct Signed {
    pub message: Vec<u8>,
    pub signatures: Vec<Vec<u8>>,
    /// A certificate stands for the key.
    pub keyless: bool,
    said: Said,
}

enum Said {
    Simple,
    Statement(Vec<u8>),
}

/// What was signed.
pub(super) struct Claim {
    /// Digests of manifests or indexes.
    pub digests: Vec<String>,
    /// The name that the signer gave the image; empty where the format or the signer gives none.
    pub name: String,
}

/// Most signatures of one envelope.
const MOST: usize = 16;

impl Found {
    /// Takes it apart; nothing where it is malformed or of another kind.
    pub(super) fn open(&self) -> Option<Signed> {
        let decode = |text: &str| STANDARD.decode(text).ok();
        match self {
            Found::Simple { payload, signature, keyless } => Some(Signed {
                message: decode(payload)?,
                signatures: vec![decode(signature)?],
                keyless: *keyless,
                said: Said::Simple,
            }),
            Found::Bundle { bundle } => {
                let bundle: Bundle = serde_json::from_slice(&decode(bundle)?).ok()?;
                let envelope = bundle.envelope?;
                let payload = decode(&envelope.payload)?;
                let signatures = envelope.signatures.iter().take(MOST).filter_map(|s| decode(&s.sig));
                Some(Signed {
                    message: encoded(&envelope.kind, &payload),
                    signatures: signatures.collect(),
                    keyless: bundle.material.is_some_and(|m| m.certificate.is_some() || m.chain.is_some()),
                    said: Said::Statement((envelope.kind == IN_TOTO).then_some(payload)?),
                })
            }
        }
    }
}

impl Signed {
    /// What the signed bytes say. To be asked only when they were signed by a key that counts.
    pub fn claim(&self) -> Option<Claim> {
        match &self.said {
            Said::Simple => {
                let payload: Payload = serde_json::from_slice(&self.message).ok()?;
                let critical = payload.critical;
                (critical.kind == SIMPLE).then(|| Claim {
                    digests: vec![critical.image.digest],
                    name: critical.identity.map(|identity| identity.name).unwrap_or_default(),
                })
            }
            Said::Statement(bytes) => {
                let statement: Statement = serde_json::from_slice(bytes).ok()?;
                // An attestation is no signature of an image: it says something about one, perhaps nothing good.
                let signing = STATEMENTS.contains(&statement.kind.as_str()) && statement.predicate == SIGN;
                let digests = statement.subject.into_iter().filter_map(|subject| subject.digest.sha256);
                let digests = digests.map(|hex| format!("sha256:{hex}")).collect();
                signing.then_some(Claim { digests, name: String::new() })
            }
        }
    }
}

const IN_TOTO: &str = "application/vnd.in-toto+json";
const STATEMENTS: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
const SIMPLE: &str = "cosign container image signature";

/// What a DSSE envelope's signatures are made of (DSSE protocol, "pre-authentication encoding").
fn encoded(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(default)]
    identity: Option<Identity>,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference", default)]
    name: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(rename = "dsseEnvelope")]
    envelope: Option<Envelope>,
    #[serde(rename = "verificationMaterial")]
    material: Option<Material>,
}

#[derive(Deserialize)]
struct Material {
    certificate: Option<serde_json::Value>,
    #[serde(rename = "x509CertificateChain")]
    chain: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "payloadType")]
    kind: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: Digests,
}

#[derive(Deserialize)]
struct Digests {
    sha256: Option<String>,
}
