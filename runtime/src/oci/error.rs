//! Why a call of the OCI command line failed, in words that name the thing, the reason and the next step.

use crate::cgroup::CgroupError;
use crate::hooks::HookFailure;
use crate::setup::SetupFailure;
use crate::sys::Errno;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum OciError {
    /// The configuration or the call asks for something that is not there to be had.
    #[error("{what} is not supported; {instead}")]
    Unsupported {
        /// The property or option.
        what: String,
        /// What to do instead.
        instead: String,
    },
    /// The configuration or the call contradicts itself or the specification.
    #[error("{what}; {next}")]
    Invalid {
        /// What is wrong.
        what: String,
        /// What to do.
        next: String,
    },
    /// No such container.
    #[error("container {0} does not exist; check the id and --root")]
    NoContainer(String),
    /// The container is not in a state that allows the call.
    #[error("cannot {action} container {id}: it is {status}{hint}")]
    Status {
        /// What was asked for.
        action: String,
        /// Which container.
        id: String,
        /// Its state.
        status: String,
        /// What to do, with its separator.
        hint: String,
    },
    /// A hook failed.
    #[error("{0}")]
    Hook(HookFailure),
    /// The system refused.
    #[error("{0}")]
    System(SetupFailure),
}

/// What a step of the command line gives.
pub type Result<T> = std::result::Result<T, OciError>;

impl From<HookFailure> for OciError {
    fn from(failure: HookFailure) -> Self {
        OciError::Hook(failure)
    }
}

impl From<SetupFailure> for OciError {
    fn from(failure: SetupFailure) -> Self {
        OciError::System(failure)
    }
}

impl From<CgroupError> for OciError {
    fn from(e: CgroupError) -> Self {
        OciError::System(SetupFailure {
            action: e.action.into(),
            path: Some(e.path.as_path().into()),
            errno: e.errno,
            hint: Some(e.hint.to_string()).filter(|h| !h.is_empty()),
        })
    }
}

pub(crate) fn unsupported(what: impl Into<String>, instead: impl Into<String>) -> OciError {
    OciError::Unsupported { what: what.into(), instead: instead.into() }
}

pub(crate) fn invalid(what: impl Into<String>, next: impl Into<String>) -> OciError {
    OciError::Invalid { what: what.into(), next: next.into() }
}

/// Names what failed, with the kernel's error.
pub(crate) trait Naming<T> {
    fn named(self, action: &str) -> Result<T>;
    fn named_at(self, action: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> Naming<T> for std::result::Result<T, Errno> {
    fn named(self, action: &str) -> Result<T> {
        self.map_err(|e| SetupFailure::new(action, e).into())
    }
    fn named_at(self, action: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| SetupFailure::at(action, &path.as_ref().into(), e).into())
    }
}

impl<T> Naming<T> for std::io::Result<T> {
    fn named(self, action: &str) -> Result<T> {
        self.map_err(errno).named(action)
    }
    fn named_at(self, action: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(errno).named_at(action, path)
    }
}

/// The kernel's error of an I/O error.
#[allow(clippy::needless_pass_by_value, reason = "fits map_err")]
pub(crate) fn errno(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}
