//! How an image of the store came to be, as its configuration tells it.

use serde::{Deserialize, Serialize};

use super::{ImageDetails, LayerDetails, Store};
use crate::digest::Digest;
use crate::error::Result;

/// One step of an image's making.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When, RFC 3339; empty where unknown.
    pub created: String,
    /// The command that made it; empty where unknown.
    pub created_by: String,
    /// What its maker says about it.
    pub comment: String,
    /// The layer that it made; absent where it changed the configuration alone.
    pub layer: Option<LayerDetails>,
}

/// As configurations have it (image specification, config.md, "history").
#[derive(Default, Deserialize)]
#[serde(default)]
struct Written {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    empty_layer: bool,
}

impl Store {
    /// The steps in which an image was made, the last first. Layers of which the configuration says nothing are in it, too.
    ///
    /// # Errors
    /// The image is not in the store, or its records are damaged.
    pub fn history(&self, digest: &Digest) -> Result<Vec<HistoryEntry>> {
        Ok(self.inspect(digest)?.history())
    }
}

impl<I> ImageDetails<I> {
    /// As [`Store::history`].
    pub fn history(self) -> Vec<HistoryEntry> {
        let written = self.raw_config.get("history").cloned().unwrap_or_default();
        // It is for people to read: what is no history is none.
        let written: Vec<Written> = serde_json::from_value(written).unwrap_or_default();
        let mut layers = self.layers.into_iter();
        let mut entries: Vec<_> = written
            .into_iter()
            .map(|step| HistoryEntry {
                created: step.created.unwrap_or_default(),
                created_by: step.created_by.unwrap_or_default(),
                comment: step.comment.unwrap_or_default(),
                layer: if step.empty_layer { None } else { layers.next() },
            })
            .collect();
        entries.extend(layers.map(|layer| HistoryEntry { layer: Some(layer), ..HistoryEntry::default() }));
        entries.reverse();
        entries
    }
}
