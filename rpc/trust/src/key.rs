//! A machine's own key: ECDSA on the curve P-256, which every library of TLS speaks.

use crate::files::{self, PRIVATE};
use crate::{TrustError, der, hex, sha256};
use ring::agreement;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::path::Path;

const LABEL: &str = "PRIVATE KEY";
/// What stands before the 65 bytes of an uncompressed point in the SubjectPublicKeyInfo of a P-256 key (RFC 5480): any key has
/// only this one form here, so that it has only one id.
const BEFORE_POINT: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A private key. What it prints for debugging is its id.
#[derive(Clone)]
pub struct PrivateKey {
    /// PKCS#8, with the public key in it; judged when it was read.
    pkcs8: Vec<u8>,
    public: Vec<u8>,
}

/// A machine that has joined: its key, and the certificate that the cluster's authority gave for it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The key, which never leaves the machine.
    pub key: PrivateKey,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey({})", self.id())
    }
}

impl PrivateKey {
    /// A new one.
    ///
    /// # Errors
    /// No random bytes can be had.
    pub fn make() -> Result<PrivateKey, TrustError> {
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| TrustError::Random)?;
        PrivateKey::from_pkcs8(made.as_ref().to_vec()).ok_or(TrustError::Random)
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Option<PrivateKey> {
        let pair = pair(&pkcs8)?;
        let public = [&BEFORE_POINT, pair.public_key().as_ref()].concat();
        Some(PrivateKey { pkcs8, public })
    }

    /// The key in a PEM file; `None` where there is no file.
    ///
    /// # Errors
    /// The file is a link, no regular file, somebody else's, open to others, or holds no such key. The error says what to do.
    pub fn read(path: &Path) -> Result<Option<PrivateKey>, TrustError> {
        let Some(bytes) = files::read(path, PRIVATE)? else { return Ok(None) };
        let key = files::unpem(LABEL, &bytes).and_then(PrivateKey::from_pkcs8);
        let next = "put the right file there, from a backup if need be";
        key.map(Some).ok_or_else(|| TrustError::file(path, "it holds no P-256 key (PKCS#8 as PEM)", next))
    }

    /// Writes it as a PEM file that only its owner can read: whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), TrustError> {
        files::write(path, files::pem(LABEL, &self.pkcs8).as_bytes(), PRIVATE)
    }

    /// What a machine is known by: 64 hex digits, the SHA-256 of [`PrivateKey::public`].
    pub fn id(&self) -> String {
        key_id(&self.public)
    }

    /// The public key: SubjectPublicKeyInfo, DER.
    pub fn public(&self) -> Vec<u8> {
        self.public.clone()
    }

    /// An ECDSA signature with SHA-256, DER.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        let pair = pair(&self.pkcs8).ok_or(TrustError::Random)?;
        let signature = pair.sign(&SystemRandom::new(), message).map_err(|_| TrustError::Random)?;
        Ok(signature.as_ref().to_vec())
    }

    /// As rustls takes it.
    pub(crate) fn for_tls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.clone()).into()
    }
}

fn pair(pkcs8: &[u8]) -> Option<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &SystemRandom::new()).ok()
}

/// What the machine of a public key (SubjectPublicKeyInfo, DER) is known by: 64 hex digits.
pub fn key_id(public: &[u8]) -> String {
    hex(&sha256(public))
}

/// The uncompressed point of a public key, if it is written in the one form that counts here. Whether the point lies on the
/// curve [`on_the_curve`] says.
pub(crate) fn point(public: &[u8]) -> Option<&[u8]> {
    public.strip_prefix(&BEFORE_POINT).filter(|point| point.len() == 65 && point[0] == 4)
}

/// Whether a point lies on the curve. ring looks before it agrees on a key with it, which is the only door to that test.
pub(crate) fn on_the_curve(point: &[u8]) -> Result<bool, TrustError> {
    let own = agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P256, &SystemRandom::new())
        .map_err(|_| TrustError::Random)?;
    let other = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, point);
    Ok(agreement::agree_ephemeral(own, &other, |_| ()).is_ok())
}

/// What the key is called in certificates: twenty bytes of the hash of the bit string (RFC 7093, section 2, method 1).
pub(crate) fn key_identifier(point: &[u8]) -> Vec<u8> {
    der::value(der::OCTET_STRING, &[&sha256(point)[..20]])
}
