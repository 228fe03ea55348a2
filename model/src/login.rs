//! Logins of registries that travel with jobs: sealed while they wait, open only on the way to the node that uses them.

use crate::bytes::ByteStr;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A login that only the cluster's controller can open, and only for its user and registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedLogin {
    /// `host` or `host:port`, as in the image's source.
    pub registry: String,
    /// What the client sealed.
    pub sealed: ByteStr,
}

/// Sealed or not, it is of no use in a log.
impl fmt::Debug for SealedLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedLogin({})", self.registry)
    }
}

/// A login, open. It is in no file, and in no record: serde leaves it out wherever it would be a member.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// `host` or `host:port`.
    pub registry: String,
    /// The login, as the client's and the node's image library write and read it.
    pub secret: ByteStr,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_not_printed() {
        let (registry, secret) = ("r.io".to_string(), ByteStr::from("hidden"));
        assert_eq!(
            format!("{:?}", Login { registry: registry.clone(), secret: secret.clone() }),
            "Login(r.io)"
        );
        assert_eq!(format!("{:?}", SealedLogin { registry, sealed: secret }), "SealedLogin(r.io)");
    }
}
