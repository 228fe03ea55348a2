//! What can go wrong with an image, in words for the person who asked for it.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The few kinds of failure that a caller may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The text is not an image reference, or names a form that is not supported.
    Reference,
    /// The image, a blob of it or a file does not exist.
    NotFound,
    /// Login refused, or no permission.
    Denied,
    /// The registry or the helper process cannot be reached, or went away.
    Unreachable,
    /// Bytes do not have the digest or size that names them.
    Corrupt,
    /// Bytes of a mirror do not have the digest that names them; asked again, others are given.
    Mirror,
    /// The image is hostile, ambiguous or beyond a limit.
    Refused,
    /// A valid image in a form that this version does not handle, or for another platform.
    Unsupported,
    /// The image is being used, so it cannot be removed.
    InUse,
    /// The disk is full, or its quota is used up.
    NoSpace,
    /// It is more than the user's images may take.
    Quota,
    /// The machine failed otherwise: a disk that cannot be read, and the like.
    Io,
}

/// What a full disk had no room for, in bytes of files' content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortfall {
    /// What the layers come to that did not become complete, at least.
    pub need: u64,
    /// What was still to come of that when the disk was full.
    pub rest: u64,
}

/// An error: the thing, the reason, and the next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    reason: String,
    #[serde(default)]
    next: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    short: Option<Shortfall>,
}

impl Error {
    /// An error about `what`, because of `reason`.
    pub fn new(kind: ErrorKind, what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { kind, what: what.into(), reason: reason.into(), next: String::new(), short: None }
    }

    /// Adds the next step for the person who reads it.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }

    /// An error of the machine while something was done to `what`.
    pub fn io(what: impl Into<String>, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        let next = match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::NOSPC.raw_os_error() => {
                "free space on that file system, or remove images with `berth image prune`"
            }
            Some(code) if code == rustix::io::Errno::DQUOT.raw_os_error() => {
                "the disk quota is used up; remove files or images with `berth image prune`"
            }
            _ => "",
        };
        Self::new(kind, what, error.to_string()).next(next)
    }

    /// As [`Error::io`], for a path.
    pub fn path(path: &Path, error: impl Into<std::io::Error>) -> Self {
        Self::io(path.display().to_string(), error)
    }

    /// Which kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Of what did not fit: how much it would have taken, where that is known.
    pub fn shortfall(&self) -> Option<Shortfall> {
        self.short
    }

    /// Notes how much did not fit.
    #[must_use]
    pub(crate) fn lacking(mut self, short: Shortfall) -> Self {
        self.short = Some(short);
        self
    }

    /// The thing that failed.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Why it failed.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// Tells too what failed before.
    #[must_use]
    pub(crate) fn after(mut self, before: &[String]) -> Self {
        if !before.is_empty() {
            self.reason = format!("{} (before that, {})", self.reason, before.join("; "));
        }
        self
    }

    /// Tells too what somebody else said.
    #[must_use]
    pub fn beside(mut self, note: &str) -> Self {
        self.reason = format!("{} ({})", self.reason, printable(note, 2000));
        self
    }

    /// Puts the image or layer in front of the thing that failed.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        if !self.what.starts_with(outer) {
            self.what =
                if self.what.is_empty() { outer.to_owned() } else { format!("{outer}: {}", self.what) };
        }
        self
    }

    /// A copy whose texts are bounded and free of control characters: for text that another identity wrote.
    #[must_use]
    pub fn sanitised(&self) -> Self {
        let clean = |text: &str| printable(text, 2000);
        // The disk that is full would be theirs: nobody's images are to go for it.
        let kind = if self.kind == ErrorKind::NoSpace { ErrorKind::Io } else { self.kind };
        let (what, reason, next) = (clean(&self.what), clean(&self.reason), clean(&self.next));
        Self { kind, what, reason, next, short: None }
    }
}

/// At most `limit` characters of `text`, with control characters replaced.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    text.chars().take(limit).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)?;
        if !self.next.is_empty() {
            write!(f, "; {}", self.next)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    /// Carries the error through `Read`, whole; this crate takes it out again on the other side.
    fn from(error: Error) -> Self {
        std::io::Error::other(error)
    }
}

/// Takes our own error out of an I/O error that carried it, or describes the I/O error.
pub(crate) fn recover(what: &str, error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::io(what, error),
    }
}
