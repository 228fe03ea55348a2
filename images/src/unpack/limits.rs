//! Bounds on what one layer may make, so that a small download cannot fill a node.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Bounds for one layer. The defaults are several times what the largest public images need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Entries of a layer.
    pub entries: u64,
    /// Bytes of names and link targets that have to be remembered.
    pub name_bytes: u64,
    /// Bytes of all files of a layer, holes of sparse files included.
    pub bytes: u64,
    /// Bytes that a compressed layer may grow to in any case, whatever the ratio.
    pub free_bytes: u64,
    /// Growth by decompression beyond which a layer larger than `free_bytes` is refused.
    pub ratio: u64,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of a manifest.
    pub manifest_bytes: u64,
    /// Bytes of an image configuration.
    pub config_bytes: u64,
    /// Layers of an image: each is a directory, a lock and a connection. Of those beyond what the kernel mounts at once the lowest
    /// are made into one.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            name_bytes: 512 << 20,
            bytes: 512 << 30,
            free_bytes: 1 << 30,
            ratio: 200,
            depth: 256,
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            layers: 10_000,
        }
    }
}

impl Limits {
    /// Checks the growth of a stream of which `compressed` bytes gave `plain` bytes so far.
    pub(crate) fn check_ratio(&self, compressed: u64, plain: u64) -> Result<()> {
        if plain > self.free_bytes && plain / self.ratio.max(1) > compressed {
            return Err(over(format!(
                "{compressed} compressed bytes grew to {plain}, more than {} times as much (a decompression bomb?)",
                self.ratio
            )));
        }
        Ok(())
    }
}

/// An image that is beyond a limit.
pub(crate) fn over(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Refused, "layer", reason)
        .next("the image is hostile or far larger than any that is known; it was not unpacked")
}
