//! What can be asked of a node about the images that the caller has there.

use serde::{Deserialize, Serialize};

/// What is asked of the node about the caller's images. Answered by parts of one JSON document, and Accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagesQuery {
    /// All of them.
    List,
    /// Everything about the one of this digest.
    Inspect(String),
    /// Give back the one of this digest.
    Remove(String),
    /// What they take.
    Usage,
}
