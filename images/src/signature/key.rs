//! Public keys that sign images: a PEM file with one SubjectPublicKeyInfo (RFC 5280, RFC 7468), as cosign and openssl write it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result, printable};

/// Largest text of a key.
const MAX_TEXT: usize = 16 << 10;

const BEGIN: &str = "-----BEGIN ";
const NEXT: &str = "name a file that starts with -----BEGIN PUBLIC KEY-----, such as cosign.pub";

/// Identifiers of algorithms and curves, as DER has them.
const EC: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
const P256: &[u8] = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
const P384: &[u8] = b"\x2b\x81\x04\x00\x22";
const EDWARDS: &[u8] = b"\x2b\x65\x70";
const RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";

type Algorithms = &'static [&'static dyn VerificationAlgorithm];

const WITH_P256: Algorithms = &[&ECDSA_P256_SHA256_ASN1];
/// cosign takes SHA-256 whatever the curve; others the curve's own hash.
const WITH_P384: Algorithms = &[&ECDSA_P384_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1];
const WITH_EDWARDS: Algorithms = &[&ED25519];
const WITH_RSA: Algorithms = &[&RSA_PKCS1_2048_8192_SHA256];

/// A key, read.
pub(super) struct Key {
    /// How people call it.
    pub name: String,
    /// Digest of its SubjectPublicKeyInfo.
    pub fingerprint: Digest,
    /// What a signature by it may be made with.
    algorithms: Algorithms,
    bytes: Vec<u8>,
}

impl Key {
    /// Reads the text of a key.
    pub fn read(name: &str, text: &str) -> Result<Key> {
        let bad = |reason: &str, next: &str| {
            Error::new(ErrorKind::Refused, format!("key {name}"), reason.to_owned()).next(next)
        };
        if text.len() > MAX_TEXT {
            return Err(bad("is far too long for a key", NEXT));
        }
        let Some((_, rest)) = text.split_once(BEGIN) else { return Err(bad("is no PEM text", NEXT)) };
        let Some((label, rest)) = rest.split_once("-----") else { return Err(bad("is no PEM text", NEXT)) };
        if label.ends_with("PRIVATE KEY") {
            return Err(bad(
                "is a private key, which nobody should have who only checks signatures",
                "name the public one",
            ));
        }
        if label.ends_with("CERTIFICATE") {
            return Err(bad(
                "is a certificate: signatures without a lasting key (keyless) are not supported",
                "sign with a key (`cosign sign --key`) and name its public part",
            ));
        }
        if label != "PUBLIC KEY" {
            let label = printable(label, 40);
            return Err(bad(
                &format!("has {label:?} where PUBLIC KEY is read"),
                "convert it with `openssl pkey -pubin`",
            ));
        }
        let Some((body, rest)) = rest.split_once("-----END PUBLIC KEY-----") else {
            return Err(bad("is cut off", NEXT));
        };
        if rest.contains(BEGIN) {
            return Err(bad("holds more than one key", "write each key into a file of its own"));
        }
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|_| bad("is damaged: no base64", NEXT))?;
        let Some((algorithm, parameters, bytes)) = public_key_info(&der) else {
            return Err(bad("is damaged: no SubjectPublicKeyInfo", NEXT));
        };
        let algorithms = if algorithm == EC && parameters == P256 {
            WITH_P256
        } else if algorithm == EC && parameters == P384 {
            WITH_P384
        } else if algorithm == EDWARDS {
            WITH_EDWARDS
        } else if algorithm == RSA {
            WITH_RSA
        } else {
            return Err(bad(
                "is of a kind that is not supported",
                "use ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 bits and more",
            ));
        };
        let fingerprint = Digest::of(Algorithm::Sha256, &der);
        Ok(Key { name: name.to_owned(), fingerprint, algorithms, bytes: bytes.to_vec() })
    }

    /// Whether the key made `signature` of `message`.
    pub fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let by = |algorithm: &&'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(*algorithm, &self.bytes).verify(message, signature).is_ok()
        };
        self.algorithms.iter().any(by)
    }
}

/// Algorithm, its parameters where they are an identifier, and the key's bytes.
fn public_key_info(der: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    const SEQUENCE: u8 = 0x30;
    const IDENTIFIER: u8 = 0x06;
    const BITS: u8 = 0x03;
    let (SEQUENCE, whole, []) = element(der)? else { return None };
    let (SEQUENCE, kind, rest) = element(whole)? else { return None };
    let (BITS, key, []) = element(rest)? else { return None };
    let (IDENTIFIER, algorithm, parameters) = element(kind)? else { return None };
    let parameters = match parameters {
        [] => parameters,
        some => match element(some)? {
            (IDENTIFIER, curve, []) => curve,
            (_, _, []) => &[],
            _ => return None,
        },
    };
    // Whole bytes.
    Some((algorithm, parameters, key.strip_prefix(&[0])?))
}

/// Type and content of the first element of DER, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [kind, length, rest @ ..] = der else { return None };
    let (length, rest) = match *length {
        short @ ..=0x7f => (usize::from(short), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), rest.get(2..)?),
        _ => return None,
    };
    Some((*kind, rest.get(..length)?, rest.get(length..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn what_is_no_public_key_says_what_it_is() {
        assert!(Key::read("k", ED25519_KEY).is_ok());
        let long = "x".repeat(MAX_TEXT + 1);
        let twice = ED25519_KEY.repeat(2);
        for (text, says) in [
            ("", "no PEM"),
            ("-----BEGIN ", "no PEM"),
            ("-----BEGIN EC PRIVATE KEY-----", "private"),
            ("-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----", "private"),
            ("-----BEGIN CERTIFICATE-----", "keyless"),
            ("-----BEGIN RSA PUBLIC KEY-----", "openssl"),
            ("-----BEGIN PUBLIC KEY-----\nMCow", "cut off"),
            ("-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----", "base64"),
            ("-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----", "damaged"),
            (long.as_str(), "too long"),
            (twice.as_str(), "more than one"),
        ] {
            let error = Key::read("k", text).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains("key k") && error.contains(says), "{text:.60}: {error}");
        }
    }

    #[test]
    fn every_cut_of_der_is_refused() {
        let der = STANDARD.decode("MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=").unwrap();
        assert!(public_key_info(&der).is_some());
        for cut in 0..der.len() {
            assert!(public_key_info(&der[..cut]).is_none(), "{cut}");
        }
        let mut longer = der.clone();
        longer.push(0);
        assert!(public_key_info(&longer).is_none());
    }
}
