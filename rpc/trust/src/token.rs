//! The text of a join token: what an administrator copies from the controller to a machine that is to join.

use crate::{TrustError, hex, sha256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::str::FromStr;

const VERSION: &str = "berth1";

/// A join token. As text it is `berth1.ID.SECRET.FINGERPRINT`, the last two in base64url without padding.
///
/// The secret admits one machine. The fingerprint is what that machine knows the cluster by before it shows the secret to anybody.
/// What it prints for debugging leaves the secret out; displaying it shows it all.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Under which the controller knows it: letters, digits, `-` and `_`, at most 32. Not secret.
    pub id: String,
    /// What admits the machine.
    pub secret: [u8; 32],
    /// [`crate::Authority::fingerprint`] of the cluster's authority.
    pub fingerprint: [u8; 32],
}

impl JoinToken {
    /// SHA-256 of the secret in hex digits: what the controller keeps of it.
    pub fn secret_hash(&self) -> String {
        hex(&sha256(&self.secret))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [secret, fingerprint] = [self.secret, self.fingerprint].map(|part| URL_SAFE_NO_PAD.encode(part));
        write!(f, "{VERSION}.{}.{secret}.{fingerprint}", self.id)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fingerprint = hex(&self.fingerprint);
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("fingerprint", &fingerprint)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TrustError;

    /// White space around it is left out. No error repeats any of the text: it may be a secret in the wrong place.
    fn from_str(text: &str) -> Result<JoinToken, TrustError> {
        let mut parts = text.trim().split('.');
        if parts.next() != Some(VERSION) {
            return Err(TrustError::Token("it does not begin with 'berth1.'"));
        }
        let (Some(id), Some(secret), Some(fingerprint), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TrustError::Token("it does not have four parts with a '.' between them"));
        };
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if id.is_empty() || id.len() > 32 || !id.bytes().all(fits) {
            return Err(TrustError::Token("its second part is no id"));
        }
        let bytes = |part: &str| -> Option<[u8; 32]> {
            // As many characters as 32 bytes make: what is longer is not even decoded.
            (part.len() == 43).then(|| URL_SAFE_NO_PAD.decode(part).ok())??.try_into().ok()
        };
        let secret = bytes(secret).ok_or(TrustError::Token("its third part is not 32 bytes in base64url"))?;
        let fingerprint =
            bytes(fingerprint).ok_or(TrustError::Token("its fourth part is not 32 bytes in base64url"))?;
        Ok(JoinToken { id: id.to_string(), secret, fingerprint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        JoinToken { id: "a1_b-2".to_string(), secret: [0xa5; 32], fingerprint: [0x3c; 32] }
    }

    #[test]
    fn tokens_come_back_from_their_text() {
        let text = token().to_string();
        assert_eq!(
            text,
            "berth1.a1_b-2.paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU.PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw"
        );
        assert_eq!(text.parse::<JoinToken>().unwrap(), token());
        assert_eq!(format!("  {text}\r\n").parse::<JoinToken>().unwrap(), token());
        // As sha256sum has it of 32 bytes 0xa5.
        assert_eq!(token().secret_hash(), "fc8b64001c5fdd0f2f40fb67dae4a865a2c5bd17836676d6d5b58b7917e33717");
    }

    #[test]
    fn one_character_wrong_is_never_the_same_token() {
        let text = token().to_string();
        for at in 0..text.len() {
            for other in ['A', 'z', '0', '-', '.', '+', '=', ' ', 'ß'] {
                if text[at..].starts_with(other) {
                    continue;
                }
                let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
                assert_ne!(changed.parse::<JoinToken>().ok(), Some(token()), "{changed}");
            }
            // One missing, and one twice.
            let missing = format!("{}{}", &text[..at], &text[at + 1..]);
            let twice = format!("{}{}", &text[..=at], &text[at..]);
            for changed in [missing, twice] {
                assert_ne!(changed.parse::<JoinToken>().ok(), Some(token()), "{changed}");
            }
        }
        // The unused bits of the last character: another spelling of the same bytes.
        let respelled = text.replace("paU.", "paV.");
        respelled.parse::<JoinToken>().unwrap_err();
        for wrong in ["", "berth1", "berth1...", "berth2.a.b.c", &format!("{text}."), &format!("x{text}")] {
            wrong.parse::<JoinToken>().unwrap_err();
        }
    }

    /// The secret is in no form in what a log could get.
    fn hides(text: &str, shown: &str) {
        for part in text.split(['.', ' ']).filter(|p| p.len() > 8) {
            assert!(!shown.contains(part), "{shown}");
        }
    }

    #[test]
    fn the_secret_is_shown_by_nothing_but_display() {
        let secret = std::array::from_fn(|at| u8::try_from(at * 7 + 11).unwrap());
        let token = JoinToken { secret, ..token() };
        let shown = format!("{token:?} {token:#?}");
        hides(&URL_SAFE_NO_PAD.encode(token.secret), &shown);
        assert!(!shown.contains(&hex(&token.secret)) && !shown.contains(&format!("{:?}", token.secret)));
        assert!(shown.contains(&token.id));
        let text = token.to_string();
        for cut in 0..text.len() {
            for wrong in [&text[..cut], &text[cut + 1..]] {
                let Err(e) = wrong.parse::<JoinToken>() else { continue };
                hides(&text, &format!("{e} {e:?}"));
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_being_repeated(text in "(berth1\\.)?\\PC{0,60}(\\.\\PC{0,60}){0,4}") {
            match text.parse::<JoinToken>() {
                Ok(token) => prop_assert_eq!(token.to_string(), text.trim()),
                Err(e) => {
                    let shown = format!("{e} {e:?}");
                    for part in text.split('.').filter(|p| p.len() > 8) {
                        prop_assert!(!shown.contains(part), "{shown}");
                    }
                }
            }
        }

        #[test]
        fn every_token_comes_back(id in "[A-Za-z0-9_-]{1,32}", secret: [u8; 32], fingerprint: [u8; 32]) {
            let token = JoinToken { id, secret, fingerprint };
            prop_assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        }
    }
}
