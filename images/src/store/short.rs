//! What did not fit: how much all of it is, and whether what may go from the store would be enough for it.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;

use super::ensure::{partial_of, pending_of};
use super::lock::Hold;
use super::quota::amount;
use super::record::{PendingRecord, parse};
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, Shortfall};
use crate::manifest::LayerInfo;

impl Store {
    /// Adds what all layers of an image lacked to the error of the one that did not fit: those that were not counted have at least
    /// what their blobs have.
    pub(super) fn with_shortfall(
        &self,
        error: Error,
        missing: &[&LayerInfo],
        counted: &HashMap<Digest, Shortfall>,
    ) -> Result<Error> {
        if error.kind() != ErrorKind::NoSpace || counted.is_empty() {
            return Ok(error);
        }
        let mut all = Shortfall::default();
        for layer in missing {
            let short = match counted.get(&layer.diff_id) {
                Some(short) => *short,
                None if self.layer_record(&layer.diff_id)?.is_some() => continue,
                None => Shortfall { need: layer.size, rest: layer.size },
            };
            all.need = all.need.saturating_add(short.need);
            all.rest = all.rest.saturating_add(short.rest);
        }
        Ok(error.lacking(all))
    }

    /// Where images are kept, how much room is there, and how much would have been needed.
    pub(super) fn told_of_room(&self, short: Option<Shortfall>) -> String {
        let place = format!("images are kept in {}", self.root().display());
        match (short, self.space()) {
            (Some(short), Ok(space)) => format!(
                "{place}, where {} of {} are free, and what did not become complete of this image is {} at least",
                amount(space.bytes.available),
                amount(space.bytes.total()),
                amount(short.need)
            ),
            _ => place,
        }
    }

    /// Judges whether what did not fit would fit if everything went that may. Where others give room back meanwhile, or the
    /// filesystem compresses, what is free and what was still to come tell different things: it is refused when both say so.
    ///
    /// # Errors
    /// It would not; or the store cannot be read.
    pub(super) fn could_hold(&self, short: Shortfall, needed: &BTreeSet<Digest>) -> Result<()> {
        let (free, may_go) = (self.space()?.bytes.available, self.removable(needed)?);
        if short.rest <= may_go || short.need <= free.saturating_add(may_go) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            format!("image store {}", self.root().display()),
            format!(
                "the image needs {} at least, {} are free, and all images that may go have {}",
                amount(short.need),
                amount(free),
                amount(may_go)
            ),
        )
        .next("keep images on a larger filesystem (images.path), or have containers and jobs end that need others"))
    }

    /// Bytes of the layers that would go with all images but `needed` ones, and those that are in use or just come.
    fn removable(&self, needed: &BTreeSet<Digest>) -> Result<u64> {
        let mut stays: BTreeSet<Digest> = BTreeSet::new();
        for record in self.records()? {
            if needed.contains(&record.digest) || self.in_use(&record.digest)? {
                stays.extend(self.layer_sizes(&record)?.into_keys());
            }
        }
        for name in self.names(&self.images)? {
            let comes = match (pending_of(&name), partial_of(&name)) {
                // One whose lock is free is what a killed import left.
                (Some((_, lock)), _) => self.try_lock(&lock, Hold::Exclusive)?.is_none(),
                (None, Some(digest)) => needed.contains(&digest),
                (None, None) => false,
            };
            // Of one that is damaged nobody knows what it needs.
            if comes
                && let Some(bytes) = files::read(self.images.as_fd(), &name)?
                && let Ok(pending) = parse::<PendingRecord>(&name, &bytes)
            {
                stays.extend(pending.layers.into_iter().chain(pending.merged));
            }
        }
        let mut bytes = 0u64;
        for diff_id in self.stored_layers()?.iter().filter(|diff_id| !stays.contains(diff_id)) {
            bytes = bytes.saturating_add(self.layer_size(diff_id)?);
        }
        for id in self.stored_merged()?.iter().filter(|id| !stays.contains(id)) {
            bytes = bytes.saturating_add(self.merged_size(id)?);
        }
        Ok(bytes)
    }
}
