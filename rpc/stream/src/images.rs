//! What can be asked of a node about the images that the caller has there.

use berth_model::exchange::RemovedImage;
use berth_model::spec::ImageRef;
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
    /// About all images of the node's store, whoever has them: for its owner, or root.
    Whole(WholeQuery),
    /// Fetch one into the node's store, as the asking user.
    Pull(ImageRef),
}

/// What the owner of a node's store asks of it as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WholeQuery {
    /// All images.
    List,
    /// What they take on disk.
    Usage,
    /// Which one has this name, or a digest that begins so.
    Find(String),
    /// Remove the one of this name or digest.
    Remove(String),
    /// Remove what is not needed.
    Prune {
        /// Images not used for so many seconds.
        older_than: Option<u64>,
        /// All images that are not in use.
        all: bool,
        /// Digests of images that stay in any case.
        keep: Vec<String>,
    },
    /// The asking user removed these without the agent's help: they are for the audit log.
    Removed(Vec<RemovedImage>),
}
