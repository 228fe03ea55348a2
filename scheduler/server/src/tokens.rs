//! Tokens with which machines join: made of the system's randomness. Only the hash of a secret is kept.

use berth_model::member::hex;
use berth_model::request::{Refusal, RefusalCode};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

/// A token that was just made.
pub(crate) struct Made {
    /// Names it.
    pub(crate) id: String,
    /// What whoever has it shows.
    pub(crate) secret: [u8; 32],
    /// What is kept of the secret.
    pub(crate) hash: String,
}

/// Makes one.
pub(crate) fn make() -> Result<Made, Refusal> {
    let random = SystemRandom::new();
    let (mut name, mut secret) = ([0; 5], [0; 32]);
    random.fill(&mut name).and_then(|()| random.fill(&mut secret)).map_err(|_| {
        let text =
            "the controller's machine gives no random bytes: no token can be made; see its kernel's log";
        Refusal::new(RefusalCode::Internal, text)
    })?;
    Ok(Made { id: base32(name), hash: hash(&secret), secret })
}

/// What is kept of a secret: SHA-256, in hexadecimal digits. A secret has 256 random bits, so that nothing slower is needed.
pub(crate) fn hash(secret: &[u8]) -> String {
    hex(digest(&SHA256, secret).as_ref())
}

/// 40 bits in base 32 (RFC 4648), in lower case.
fn base32(bytes: [u8; 5]) -> String {
    let bits = bytes.iter().fold(0u64, |bits, byte| (bits << 8) | u64::from(*byte));
    let digit = |at: u32| usize::try_from((bits >> (5 * at)) & 31).unwrap_or(0);
    (0..8).rev().map(|at| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[digit(at)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::member::{is_digest, is_token_id};

    #[test]
    fn tokens_have_the_form_that_the_core_wants_and_are_never_the_same() {
        let (a, b) = (make().unwrap(), make().unwrap());
        for made in [&a, &b] {
            assert!(is_token_id(&made.id) && is_digest(&made.hash));
        }
        assert!(a.id != b.id && a.secret != b.secret);
        // RFC 4648, section 10: "fooba".
        assert_eq!(base32(*b"fooba"), "mzxw6ytb");
        // FIPS 180-2, appendix B.1.
        assert_eq!(hash(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
