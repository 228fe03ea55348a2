//! Which machines belong to a cluster, the tokens with which they join, and the log of who decided what.

use crate::ids::{JobId, NodeName, Uid};
use crate::rights::Role;
use crate::time::{Span, Time};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Shortest life of a token.
pub const SHORTEST_TTL: Span = Span::from_secs(60);
/// Longest life of a token.
pub const LONGEST_TTL: Span = Span::from_mins(30 * 24 * 60);
/// Most machines that may join with one token.
pub const MOST_USES: u32 = 100_000;

/// A public key's name: SHA-256 of its SubjectPublicKeyInfo in DER, as 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub String);

/// The text does not name a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' does not name a key: expected the 64 lower-case hexadecimal digits of a SHA-256")]
pub struct BadKeyId(pub String);

impl KeyId {
    /// The key with this digest.
    pub fn of_digest(digest: [u8; 32]) -> KeyId {
        KeyId(hex(&digest))
    }

    /// The key that the text names.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(text: &str) -> Result<KeyId, BadKeyId> {
        if is_digest(text) { Ok(KeyId(text.to_string())) } else { Err(BadKeyId(text.to_string())) }
    }

    /// Its first 16 digits: enough for people to compare.
    pub fn short(&self) -> &str {
        self.0.get(..16).unwrap_or(&self.0)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n & 15)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect()
}

/// Whether the text is a SHA-256 in lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

/// Whether the text is a token's id: 8 characters of base 32 (RFC 4648) in lower case.
pub fn is_token_id(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}

/// The name is none that a machine could have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{name}' is no host name: {why}; names are made of letters, digits, '-' and '.', at most 253 characters"
)]
pub struct BadHostName {
    /// The name, shortened.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Checks a full host name (RFC 1123, section 2.1): it appears in paths, in lists of nodes and on screens.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_host_name(name: &str) -> Result<(), BadHostName> {
    let bad = |why| {
        let shown: String = name.chars().take(64).flat_map(char::escape_default).collect();
        Err(BadHostName { name: shown, why })
    };
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.len() > 253 {
        return bad("it is too long");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
        return bad("it has other characters");
    }
    if name.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return bad("between dots there are 1 to 63 characters");
    }
    if name.split('.').any(|label| label.starts_with('-') || label.ends_with('-')) {
        return bad("a part of it begins or ends with '-'");
    }
    Ok(())
}

/// What a machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Runs jobs; speaks for itself and for the jobs on it.
    Compute,
    /// Vouches for the users who are logged in on it; runs no jobs.
    Login,
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MemberRole::Compute => "compute",
            MemberRole::Login => "login",
        })
    }
}

/// The text is not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no role of a machine: expected 'compute' or 'login'")]
pub struct BadRole(pub String);

impl FromStr for MemberRole {
    type Err = BadRole;
    fn from_str(text: &str) -> Result<MemberRole, BadRole> {
        match text {
            "compute" => Ok(MemberRole::Compute),
            "login" => Ok(MemberRole::Login),
            other => Err(BadRole(other.to_string())),
        }
    }
}

/// Whether a member may do anything yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Waits for `berth node approve`.
    Pending,
    /// Belongs to the cluster.
    Approved,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MemberState::Pending => "pending",
            MemberState::Approved => "approved",
        })
    }
}

/// A machine of the cluster, beside the controller's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its full host name.
    pub name: NodeName,
    /// What it is for.
    pub role: MemberRole,
    /// Whether it may do anything yet.
    pub state: MemberState,
    /// The key by which it is known.
    pub key: KeyId,
    /// When it joined.
    pub joined: Time,
    /// The id of the token with which it came.
    pub token: String,
    /// The network address from which it joined.
    pub from: String,
    /// When it last got a key.
    pub renewed: Time,
    /// When its certificate ends, as far as is known.
    pub ends: Option<Time>,
    /// It may vouch for operators and administrators; login nodes alone.
    pub administrators: bool,
}

/// What a token is to allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// What machines that join with it are for.
    pub role: MemberRole,
    /// For how long it is good: [`SHORTEST_TTL`] to [`LONGEST_TTL`].
    pub ttl: Span,
    /// How many machines may join with it: 1 to [`MOST_USES`].
    pub uses: u32,
    /// Who joins waits for `berth node approve`.
    pub approval: bool,
    /// Its machines may vouch for operators and administrators; login nodes alone.
    pub administrators: bool,
}

/// A token. Its secret is nowhere but with those to whom it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Names it; no secret.
    pub id: String,
    /// What machines that join with it are for.
    pub role: MemberRole,
    /// When it was made.
    pub created: Time,
    /// Who made it.
    pub by: String,
    /// Until when it is good.
    pub expires: Time,
    /// How many machines may still join with it.
    pub uses_left: u32,
    /// Who joins waits for `berth node approve`.
    pub approval: bool,
    /// Its machines may vouch for operators and administrators.
    pub administrators: bool,
}

/// One decision of somebody with a role, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditInfo {
    /// Counts upward from 1.
    pub number: u64,
    /// When.
    pub at: Time,
    /// Who.
    pub uid: Uid,
    /// Who, by name; of a machine that joined, the token with which it did; of one that exchanged its key or left, the machine.
    pub user: String,
    /// As what; not known of entries of versions before roles, and none of a machine.
    pub role: Option<Role>,
    /// The job from inside which it was asked.
    pub inside: Option<JobId>,
    /// The machine from which it was asked, where that is not the controller's; earlier versions did not keep it.
    pub via: Option<NodeName>,
    /// What was done, in words.
    pub what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_digests() {
        let mut digest = [0; 32];
        (digest[0], digest[31]) = (0xab, 0x0f);
        let key = KeyId::of_digest(digest);
        assert_eq!((key.0.len(), &key.0[..2], &key.0[62..]), (64, "ab", "0f"));
        assert_eq!(KeyId::parse(&key.0), Ok(key.clone()));
        assert_eq!(key.short(), "ab00000000000000");
        for bad in ["", "ab", &key.0[1..], &key.0.to_uppercase(), &format!("{}g", &key.0[1..])] {
            assert!(KeyId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names_are_plain() {
        let longest = [["a".repeat(63).as_str(); 3].join("."), "a".repeat(61)].join(".");
        for good in ["n1", "Node-1.example.org", "10-0-0-1", &longest] {
            assert_eq!(check_host_name(good), Ok(()), "{good}");
        }
        let long = longest.clone() + "a";
        for bad in [
            "",
            ".",
            "a..b",
            "a.",
            ".a",
            "-a",
            "a-",
            "a.-b",
            "a_b",
            "a b",
            "a/b",
            "../x",
            "n[1-2]",
            "n,m",
            "é",
            "a\n",
            "a\0",
            &long,
            &"a".repeat(64),
        ] {
            let error = check_host_name(bad).unwrap_err().to_string();
            assert!(!error.contains(['\n', '\0']) && error.contains("host name"), "{error}");
        }
    }

    #[test]
    fn roles_and_ids_of_tokens() {
        for role in [MemberRole::Compute, MemberRole::Login] {
            assert_eq!(role.to_string().parse(), Ok(role));
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
        assert!("Compute".parse::<MemberRole>().is_err());
        assert!(is_token_id("abcdef27"));
        for bad in ["", "abcdefg", "abcdefghi", "abcdefg1", "ABCDEFGH", "abcdefg-"] {
            assert!(!is_token_id(bad), "{bad}");
        }
    }
}
