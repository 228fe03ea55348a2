//! Which read-only images of layers a node made by itself, and can give to others; and whether that is still so. Layers are made anew and
//! in another form, and by other processes than the one that tells of them.

use std::collections::BTreeSet;

use berth_model::exchange::MadeForm;
use rustix::fs::{AtFlags, statat};

use super::Store;
use super::bundle::FormRecord;
use crate::digest::Digest;
use crate::error::Result;

/// What was made of one image's layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MadeForms {
    forms: Vec<MadeForm>,
    /// Its layers, each with the file that its record was.
    records: Vec<(Digest, Option<Stamp>)>,
}

impl MadeForms {
    /// One for each layer of which there is any.
    pub fn forms(&self) -> &[MadeForm] {
        &self.forms
    }
}

/// Which file it is, as it is: a layer that is made anew has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    seconds: i64,
    nanoseconds: u32,
}

impl Store {
    /// Which read-only images of an image's layers this node made by itself, and can give to others.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn made_forms(&self, image: &Digest) -> Result<Vec<MadeForm>> {
        Ok(self.made_forms_since(image, None)?.forms)
    }

    /// As [`Store::made_forms`], for who knows what it was `before`: records of layers that are the same files are not read again.
    ///
    /// # Errors
    /// As there.
    pub fn made_forms_since(&self, image: &Digest, before: Option<MadeForms>) -> Result<MadeForms> {
        // An image that had no record may have one now.
        if let Some(before) = before.filter(|before| !before.records.is_empty())
            && before.records.iter().all(|(layer, stamp)| self.record_stamp(layer) == *stamp)
        {
            return Ok(before);
        }
        let Some(record) = self.whole_record(image)? else { return Ok(MadeForms::default()) };
        let layers: BTreeSet<Digest> = record.layers.into_iter().map(|layer| layer.diff_id).collect();
        let mut all = MadeForms::default();
        for layer in layers {
            // First, so that one that is made anew meanwhile is looked at again.
            let stamp = self.record_stamp(&layer);
            let form = self.layer_record(&layer)?.and_then(|record| record.form);
            if let Some(FormRecord { writer, digest, size, .. }) = form.filter(|form| form.made) {
                let (layer, digest) = (layer.to_string(), digest.to_string());
                all.forms.push(MadeForm { layer, writer, digest, size });
            }
            all.records.push((layer, stamp));
        }
        Ok(all)
    }

    /// `None` where there is no record.
    fn record_stamp(&self, layer: &Digest) -> Option<Stamp> {
        let place = format!("{}/layer.json", layer.file_name());
        let stat = statat(&self.layers, place, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
        Some(Stamp { inode: stat.st_ino, seconds: stat.st_mtime, nanoseconds })
    }
}
