//! Words of the controller's that other machines pass on: signed with the key of its certificate, so that nobody has to be believed.

use crate::tls::Leaf;
use crate::{CONTROLLER, Identity, TrustError, key};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use std::time::SystemTime;
use webpki::KeyUsage;

/// What is signed begins so: no other signature of the same key means anything here, nor one of these anywhere else. Those of handshakes
/// begin with 64 spaces (RFC 8446, section 4.4.3), those of certificates with a SEQUENCE.
const BEFORE: &[u8] = b"berth, words of the controller: ";

/// Signs words.
///
/// # Errors
/// The kernel gives no random bytes.
pub fn sign(own: &Identity, words: &[u8]) -> Result<Vec<u8>, TrustError> {
    own.key.sign(&[BEFORE, words].concat())
}

/// Judges whether a controller of this authority signed these words with the key of its certificate (DER).
///
/// # Errors
/// The certificate is another authority's, not a controller's, not valid now, or malformed; or the words were not signed with its key.
pub fn controller_signed(
    authority_der: &[u8],
    certificate: &[u8],
    now: SystemTime,
    words: &[u8],
    signature: &[u8],
) -> Result<(), TrustError> {
    let certificate = CertificateDer::from(certificate);
    let leaf = Leaf::read(&certificate)?;
    leaf.signed_by(&CertificateDer::from(authority_der), KeyUsage::server_auth())?;
    leaf.has_role(CONTROLLER)?;
    leaf.valid_at(now)?;
    let point = key::point(leaf.parts.public).ok_or(TrustError::PublicKey)?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
    key.verify(&[BEFORE, words].concat(), signature).map_err(|_| TrustError::Signature)
}
