//! What a long import tells those who wait for it.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum ProgressEvent {
    /// Somebody else prepares the same image or layer; we wait and take theirs.
    Waiting {
        /// What is waited for.
        what: String,
    },
    /// A registry gives no answer yet, or wants to be left alone. Unlike waiting for others it says nothing of what is there.
    Delayed {
        /// Which one, and why.
        what: String,
    },
    /// The manifest is known.
    Start {
        /// Layers of the image.
        layers: usize,
        /// Of these, layers that the store already has.
        cached: usize,
        /// Bytes of all blobs that are still to be fetched.
        bytes: u64,
    },
    /// More bytes of blobs arrived.
    Fetched {
        /// How many more.
        bytes: u64,
    },
    /// A layer is unpacked and verified.
    LayerDone {
        /// Digest of the uncompressed layer.
        diff_id: Digest,
    },
    /// What another node has of a layer is not used as it is: the layer is made here.
    ByArchive {
        /// Which layer, and why.
        text: String,
    },
    /// All layers are there and are being written to disk.
    Syncing,
    /// The image has no signature that counts, and is used all the same.
    Unsigned {
        /// Which image, and why.
        text: String,
    },
    /// Something was left out of the image on purpose, or another thing that a person may want to know.
    Note {
        /// The text.
        text: String,
    },
}

/// Receives events, from several threads.
pub trait Progress: Sync {
    /// Takes one event; returns quickly.
    fn event(&self, event: ProgressEvent);
}

/// Says nothing.
impl Progress for () {
    fn event(&self, _: ProgressEvent) {}
}

impl<F: Fn(ProgressEvent) + Sync> Progress for F {
    fn event(&self, event: ProgressEvent) {
        self(event);
    }
}
