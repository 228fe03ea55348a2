//! What the store remembers about images and layers.

use serde::{Deserialize, Serialize};

use super::archive::ArchiveSums;
use super::bundle::FormRecord;
use super::hashing::Sum;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{ImageConfig, LayerInfo};
use crate::signature::{Kept, Verdict};
use crate::unpack::LayerReport;
use crate::unpack::listing::Taken;

/// Version of the records and of the directory's layout.
pub(super) const VERSION: u32 = 1;

/// One complete image; written only when all of it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) version: u32,
    pub(super) digest: Digest,
    /// What the users of a shared store called it. Anybody may call an image as they like where its source fits, so these are
    /// for people to read.
    pub(super) names: Vec<String>,
    /// What those whose store it is called it: root, or its owner.
    #[serde(default)]
    pub(super) own: Vec<String>,
    pub(super) config_digest: Digest,
    pub(super) config: ImageConfig,
    /// Bottom first, as in the manifest.
    pub(super) layers: Vec<LayerInfo>,
    /// Bytes of all files of all layers.
    pub(super) bytes: u64,
    /// When it was completed, Unix seconds.
    pub(super) created: u64,
    /// Where it came from, as [`crate::open_source`] takes it.
    #[serde(default)]
    pub(super) source: Option<String>,
    /// Whether its registry was spoken to without TLS.
    #[serde(default)]
    pub(super) insecure: bool,
    /// Its lowest layers as one, where it has more than can be mounted at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) merged: Option<MergedRecord>,
    /// What the SIF file that it came from says of its signatures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sif_signatures: Option<String>,
}

/// The lowest layers of an image, made into one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MergedRecord {
    /// Stands for these layers in their order.
    pub(super) id: Digest,
    /// How many they are.
    pub(super) layers: usize,
}

impl ImageRecord {
    /// Names of one kind: of those whose store it is, or of users.
    pub(super) fn names_of(&mut self, own: bool) -> &mut Vec<String> {
        if own { &mut self.own } else { &mut self.names }
    }

    /// All names, each once.
    pub(super) fn all_names(&self) -> Vec<String> {
        let others = self.names.iter().filter(|name| !self.own.contains(name));
        self.own.iter().chain(others).cloned().collect()
    }
}

/// What is known of an image's signatures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SignatureRecord {
    pub(super) version: u32,
    pub(super) verdicts: Vec<Verdict>,
}

/// What a source said of an image's signatures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct EvidenceRecord {
    pub(super) version: u32,
    pub(super) kept: Kept,
}

/// What an import in progress needs, so that nothing of it is collected.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PendingRecord {
    pub(super) layers: Vec<Digest>,
    pub(super) config_digest: Digest,
    /// What its lowest layers are as one.
    #[serde(default)]
    pub(super) merged: Option<Digest>,
}

/// One unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) version: u32,
    pub(super) diff_id: Digest,
    pub(super) report: LayerReport,
    /// Whether the layer has a listing of its files, as all have that this version made.
    #[serde(default)]
    pub(super) listed: bool,
    /// Whether its archive can be made again from skeleton and files.
    #[serde(default)]
    pub(super) rebuildable: bool,
    /// Sums of what it is made again of. An earlier version noted none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) archive: Option<ArchiveSums>,
    /// Sum of the layer's image, where it is one: it stands for a listing. Under another name than before, so that an earlier version,
    /// which could not read it, takes it for not noted, and the layer for what it is.
    #[serde(default, rename = "image_blake3", alias = "image_sum", skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<Sum>,
    /// What may travel of the layer's image to other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) form: Option<FormRecord>,
    /// What it takes of the filesystem, where it is a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) taken: Option<Taken>,
    /// Boot during which it was unpacked: until the `synced` mark exists, the layer counts only in that boot.
    pub(super) boot: String,
}

/// Reads a record of this version.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(what: &str, bytes: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Versioned {
        version: Option<u32>,
    }
    let damaged = |e: serde_json::Error| {
        Error::new(ErrorKind::Corrupt, format!("image store: {what}"), format!("the record is damaged: {e}"))
            .next("pull the image again, or write the record anew with `berth image verify --repair`")
    };
    let versioned: Versioned = serde_json::from_slice(bytes).map_err(damaged)?;
    if versioned.version.is_some_and(|v| v > VERSION) {
        return Err(newer());
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

pub(super) fn newer() -> Error {
    Error::new(ErrorKind::Unsupported, "image store", "it was written by a newer version of Berth")
        .next("use that version, or another --state directory")
}

/// The JSON of a record.
pub(super) fn print<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(record).map_err(|e| Error::new(ErrorKind::Io, "image store", e.to_string()))
}
