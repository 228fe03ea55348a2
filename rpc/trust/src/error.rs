//! What can be wrong between two machines, in words that name the thing, the reason and the next step.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Why something is not trusted, or could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file of a key or of a certificate cannot be read, written or trusted.
    #[error("{path}: {why}; {next}", path = path.display())]
    File {
        /// Which file or directory.
        path: PathBuf,
        /// What is the matter.
        why: String,
        /// What to do.
        next: &'static str,
    },
    /// The kernel gave no random bytes.
    #[error("the kernel gives no random bytes; try again")]
    Random,
    /// What should be a machine's public key is none.
    #[error(
        "what was sent is no public key of a machine (ECDSA P-256 as SubjectPublicKeyInfo); let the \
         machine make its own key and join again"
    )]
    PublicKey,
    /// A name or a role from which no name in a certificate can be made.
    #[error("{what} {text:?} cannot stand in a certificate: {why}")]
    Name {
        /// `the name` or `the role`.
        what: &'static str,
        /// As it was given.
        text: String,
        /// The rule.
        why: &'static str,
    },
    /// The certificate is misshapen, or of another make than ours.
    #[error(
        "the certificate is none of a machine of this cluster: {0}; join the machine again with a new token"
    )]
    Malformed(&'static str),
    /// Signed by somebody else.
    #[error(
        "the certificate is not signed by this cluster's authority: it is another cluster's, or it was \
         altered; join the machine to this cluster with a new token"
    )]
    OtherAuthority,
    /// It begins later.
    #[error(
        "the certificate is not valid yet: it begins at {from}, and here it is {now}: its clock or ours \
         is wrong; set the wrong one, then try again",
        from = shown(from),
        now = shown(now)
    )]
    NotYetValid {
        /// When it begins.
        from: SystemTime,
        /// The time here.
        now: SystemTime,
    },
    /// It ended before.
    #[error(
        "the certificate has expired: it ended at {until}, and here it is {now}: its clock or ours is \
         wrong, or it was never renewed; set the wrong clock, or join the machine again with a new token",
        until = shown(until),
        now = shown(now)
    )]
    Expired {
        /// When it ended.
        until: SystemTime,
        /// The time here.
        now: SystemTime,
    },
    /// The authority's own certificate is no longer, or not yet, valid, so that it can issue nothing.
    #[error(
        "the authority's certificate is valid from {from} to {until}, and here it is {now}: no \
         certificate can be issued; set the clock, or move authority.pem away: it is made anew with the \
         same key, and machines stay joined",
        from = shown(from),
        until = shown(until),
        now = shown(now)
    )]
    AuthorityEnded {
        /// When it begins.
        from: SystemTime,
        /// When it ends.
        until: SystemTime,
        /// The time here.
        now: SystemTime,
    },
    /// Of our authority, but of somebody who does not have the part that was asked for.
    #[error(
        "the other side is no {wanted} of this cluster (its certificate says {has:?}); check the \
         address, and that nobody else answers there"
    )]
    Role {
        /// The role that was asked for.
        wanted: String,
        /// Names in the certificate.
        has: String,
    },
    /// Not signed with the key of the certificate that came with it.
    #[error(
        "what the controller is said to have signed was altered on the way, or somebody else signed it; nothing follows from it"
    )]
    Signature,
    /// The server's chain does not hold the authority that the token names.
    #[error(
        "the other side is not of the cluster that the token is for: it does not show the authority of \
         the token; check address and token: if both are right, somebody stands in between"
    )]
    OtherCluster,
    /// A token's text.
    #[error("this is no join token: {0}; copy all of what 'berth token create' printed")]
    Token(&'static str),
    /// A key and a certificate that do not fit each other, or that rustls cannot take.
    #[error("key and certificate cannot be used for TLS: {0}; join the machine again with a new token")]
    Tls(rustls::Error),
}

impl TrustError {
    /// The reason within an error of a connection, as rustls hands it over: `None` when it has another one.
    pub fn within(error: &std::io::Error) -> Option<&TrustError> {
        let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        let rustls::Error::Other(other) = tls else { return None };
        other.0.downcast_ref()
    }

    pub(crate) fn file(path: &Path, why: impl ToString, next: &'static str) -> TrustError {
        TrustError::File { path: path.to_path_buf(), why: why.to_string(), next }
    }
}

impl From<TrustError> for rustls::Error {
    fn from(error: TrustError) -> rustls::Error {
        rustls::Error::Other(rustls::OtherError(std::sync::Arc::new(error)))
    }
}

/// A point in time for people, in UTC.
fn shown(time: &SystemTime) -> String {
    match jiff::Timestamp::try_from(*time) {
        Ok(stamp) => stamp.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => "a time beyond all calendars".to_string(),
    }
}
