//! A login of a registry, sealed by its user to the cluster that is to use it: nobody but the cluster's controller can
//! open it, and only for the user and the registry that it was sealed for.
//!
//! The construction is that of HPKE's base mode (RFC 9180) with its own key schedule: an X25519 key made for this one
//! message, HKDF with SHA-256 over the shared secret with both public keys as salt, and ChaCha20-Poly1305. User and
//! registry are the associated data. The derived key is used once, so that the nonce is zero.
#![forbid(unsafe_code)]

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use x25519_dalek::{PublicKey, StaticSecret};

/// Bytes of a key.
pub const KEY: usize = 32;
/// First byte of what is sealed: another construction would have another one.
const VERSION: u8 = 1;
const PURPOSE: &[u8] = b"berth: login of a registry, 1";
/// No login is longer.
const MOST: usize = 64 * 1024;

/// Why nothing was sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The kernel gave no random bytes.
    #[error("no random bytes can be had")]
    Random,
    /// Not 32 bytes, or a point that makes every secret the same.
    #[error("the cluster's key is none")]
    Key,
    /// Longer than any login.
    #[error("it is longer than {MOST} bytes")]
    Long,
    /// Sealed for another user, another registry or another cluster, altered, or no sealed login at all.
    #[error("it was not sealed for this user, this registry and this cluster")]
    NotOurs,
}

/// The cluster's secret key.
#[derive(Clone)]
pub struct SecretKey(StaticSecret);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey")
    }
}

fn random() -> Result<[u8; KEY], SealError> {
    let mut bytes = [0; KEY];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SealError::Random)?;
    Ok(bytes)
}

impl SecretKey {
    /// A new one.
    ///
    /// # Errors
    /// No random bytes can be had.
    pub fn make() -> Result<SecretKey, SealError> {
        Ok(SecretKey(StaticSecret::from(random()?)))
    }

    /// The one in these bytes.
    ///
    /// # Errors
    /// They are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<SecretKey, SealError> {
        let bytes: [u8; KEY] = bytes.try_into().map_err(|_| SealError::Key)?;
        Ok(SecretKey(StaticSecret::from(bytes)))
    }

    /// To be kept where nobody else reads it.
    pub fn to_bytes(&self) -> [u8; KEY] {
        self.0.to_bytes()
    }

    /// What users seal to.
    pub fn public(&self) -> [u8; KEY] {
        PublicKey::from(&self.0).to_bytes()
    }

    /// The login, if it was sealed to this key for this user and this registry.
    ///
    /// # Errors
    /// It was not.
    pub fn open(&self, uid: u32, registry: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError::NotOurs)?;
        let (theirs, content) = rest.split_first_chunk::<KEY>().ok_or(SealError::NotOurs)?;
        if *version != VERSION || content.len() > MOST + CHACHA20_POLY1305.tag_len() {
            return Err(SealError::NotOurs);
        }
        let shared = self.0.diffie_hellman(&PublicKey::from(*theirs));
        if !shared.was_contributory() {
            return Err(SealError::NotOurs);
        }
        let key = derive(shared.as_bytes(), theirs, &self.public())?;
        let mut content = content.to_vec();
        let opened = key.open_in_place(nonce(), Aad::from(bound(uid, registry)), &mut content);
        Ok(opened.map_err(|_| SealError::NotOurs)?.to_vec())
    }
}

/// Seals a login of `uid`'s at `registry` to the cluster with this public key.
///
/// # Errors
/// The key is none, the login is too long, or no random bytes can be had.
pub fn seal(public: &[u8], uid: u32, registry: &str, login: &[u8]) -> Result<Vec<u8>, SealError> {
    let public: [u8; KEY] = public.try_into().map_err(|_| SealError::Key)?;
    if login.len() > MOST {
        return Err(SealError::Long);
    }
    let once = StaticSecret::from(random()?);
    let ours = PublicKey::from(&once).to_bytes();
    let shared = once.diffie_hellman(&PublicKey::from(public));
    if !shared.was_contributory() {
        return Err(SealError::Key);
    }
    let key = derive(shared.as_bytes(), &ours, &public)?;
    let mut content = login.to_vec();
    key.seal_in_place_append_tag(nonce(), Aad::from(bound(uid, registry)), &mut content)
        .map_err(|_| SealError::Long)?;
    let mut sealed = vec![VERSION];
    sealed.extend_from_slice(&ours);
    sealed.extend_from_slice(&content);
    Ok(sealed)
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

/// The key of one message, which only its own pair of keys gives.
fn derive(shared: &[u8], once: &[u8; KEY], cluster: &[u8; KEY]) -> Result<LessSafeKey, SealError> {
    let salt = Salt::new(HKDF_SHA256, &[once.as_slice(), cluster.as_slice()].concat());
    let key = salt.extract(shared);
    let key = key.expand(&[PURPOSE], &CHACHA20_POLY1305).map_err(|_| SealError::Key)?;
    Ok(LessSafeKey::new(UnboundKey::from(key)))
}

/// What the seal is bound to.
fn bound(uid: u32, registry: &str) -> Vec<u8> {
    [PURPOSE, uid.to_be_bytes().as_slice(), registry.as_bytes()].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // what fails here fails the test
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_for_its_user_registry_and_cluster_alone() {
        let key = SecretKey::make().unwrap();
        let sealed = seal(&key.public(), 1000, "r.io:5000", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(key.open(1000, "r.io:5000", &sealed).unwrap(), b"secret");
        let again = SecretKey::from_bytes(&key.to_bytes()).unwrap();
        assert_eq!(again.open(1000, "r.io:5000", &sealed).unwrap(), b"secret");
        let other = SecretKey::make().unwrap();
        for (key, uid, registry) in
            [(&key, 1001, "r.io:5000"), (&key, 1000, "r.io:5001"), (&other, 1000, "r.io:5000")]
        {
            assert_eq!(key.open(uid, registry, &sealed), Err(SealError::NotOurs));
        }
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(key.open(1000, "r.io:5000", &altered), Err(SealError::NotOurs), "byte {at}");
            assert_eq!(key.open(1000, "r.io:5000", &sealed[..at]), Err(SealError::NotOurs));
        }
        assert_ne!(seal(&key.public(), 1000, "r.io:5000", b"secret").unwrap(), sealed, "no two are alike");
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let key = SecretKey::make().unwrap();
        assert_eq!(seal(&[1; 31], 1, "r", b""), Err(SealError::Key));
        assert_eq!(SecretKey::from_bytes(&[1; 33]).unwrap_err(), SealError::Key);
        // The points of small order: every secret would be the same.
        assert_eq!(seal(&[0; 32], 1, "r", b"x"), Err(SealError::Key));
        let mut forged = vec![VERSION];
        forged.extend_from_slice(&[0; 64]);
        assert_eq!(key.open(1, "r", &forged), Err(SealError::NotOurs));
        assert_eq!(seal(&key.public(), 1, "r", &vec![0; MOST + 1]), Err(SealError::Long));
        assert_eq!(format!("{key:?}"), "SecretKey");
    }
}
