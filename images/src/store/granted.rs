//! The store as one of its users sees it: the images that they have, and nothing of what others have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::grant::{Grant, parse_name};
use super::manage::choose_named;
use super::record::ImageRecord;
use super::{ImageDetails, Store};
use crate::digest::Digest;
use crate::error::Result;

/// An image that a user has on a store which serves several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedImage {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Names under which this user asked for it.
    pub names: Vec<String>,
    /// Sources that gave it to this user.
    pub sources: Vec<String>,
    /// Bytes of all files in its layers; layers may be shared with other images.
    pub bytes: u64,
    /// Number of layers.
    pub layers: usize,
    /// When this user was first given it, Unix seconds.
    pub granted: u64,
    /// When this user last used it, Unix seconds.
    pub last_used: u64,
}

/// What a user's images take of the store's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Images.
    pub images: usize,
    /// Layers of these, each once.
    pub layers: usize,
    /// Bytes of the disk that these take; of a file without any a block all the same.
    pub bytes: u64,
}

impl Usage {
    /// Of images, each with its layers and what they take: a layer counts once, however many images have it.
    pub fn of<'a>(images: impl IntoIterator<Item = &'a BTreeMap<Digest, u64>>) -> Usage {
        let mut layers: BTreeMap<&Digest, u64> = BTreeMap::new();
        let mut count = 0;
        for image in images {
            count += 1;
            layers.extend(image.iter().map(|(digest, bytes)| (digest, *bytes)));
        }
        let bytes = layers.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        Usage { images: count, layers: layers.len(), bytes }
    }
}

/// The image that `text` names, as [`Store::find`] does, among those that a user has; nothing where there is none.
///
/// # Errors
/// There are several.
pub fn find_granted<'a>(images: &'a [GrantedImage], text: &str) -> Result<Option<&'a GrantedImage>> {
    let named = images.iter().map(|image| (&image.digest, image.names.as_slice()));
    let digests: Vec<&Digest> = images.iter().map(|image| &image.digest).collect();
    let found = choose_named(text, named, &digests)?;
    Ok(images.iter().find(|image| Some(&image.digest) == found))
}

impl Store {
    /// The images that the user has, the last used first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn granted(&self, uid: u32) -> Result<Vec<GrantedImage>> {
        let mut images = Vec::new();
        for (digest, grant, last_used) in self.grants_of(uid)? {
            images.extend(self.whole_record(&digest)?.map(|record| granted(record, grant, last_used)));
        }
        images.sort_by(|a, b| b.last_used.cmp(&a.last_used).then_with(|| a.digest.cmp(&b.digest)));
        Ok(images)
    }

    /// Everything about an image that the user has; manifest and configuration as texts.
    ///
    /// # Errors
    /// As for [`Store::inspect`].
    pub fn inspect_granted(&self, image: GrantedImage) -> Result<ImageDetails<GrantedImage, String>> {
        let digest = image.digest.clone();
        self.details(&digest, |_| Ok(image))
    }

    /// What the user's images take.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn usage(&self, uid: u32) -> Result<Usage> {
        let mut images = Vec::new();
        for (digest, _, _) in self.grants_of(uid)? {
            images.extend(self.whole_record(&digest)?.map(|record| self.layer_sizes(&record)).transpose()?);
        }
        Ok(Usage::of(&images))
    }

    /// Who has images here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn users(&self) -> Result<Vec<u32>> {
        let names = self.names(&self.images)?;
        let mut users: Vec<u32> = names.iter().filter_map(|name| Some(parse_name(name)?.1)).collect();
        users.sort_unstable();
        users.dedup();
        Ok(users)
    }

    /// Images that others than `uid` have, with a name of each, and who they are.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn of_others(&self, uid: u32) -> Result<BTreeMap<Digest, (String, Vec<u32>)>> {
        let mut all: BTreeMap<Digest, (String, Vec<u32>)> = BTreeMap::new();
        for name in self.names(&self.images)? {
            if let Some((digest, user)) = parse_name(&name).filter(|(_, user)| *user != uid) {
                all.entry(digest).or_default().1.push(user);
            }
        }
        for (digest, (name, _)) in &mut all {
            let names = self.whole_record(digest)?.map(|record| record.all_names()).unwrap_or_default();
            *name = names.into_iter().next().unwrap_or_default();
        }
        Ok(all)
    }

    /// The layers of an image, with what they count in a quota.
    pub(super) fn layer_sizes(&self, record: &ImageRecord) -> Result<BTreeMap<Digest, u64>> {
        let sized = |diff_id: &Digest| Ok((diff_id.clone(), self.layer_charge(diff_id)?));
        let mut all: BTreeMap<_, _> =
            record.layers.iter().map(|layer| sized(&layer.diff_id)).collect::<Result<_>>()?;
        if let Some(merged) = &record.merged {
            all.insert(merged.id.clone(), self.merged_charge(&merged.id)?);
        }
        Ok(all)
    }
}

fn granted(record: ImageRecord, grant: Grant, last_used: u64) -> GrantedImage {
    GrantedImage {
        digest: record.digest,
        names: grant.names,
        sources: grant.sources,
        bytes: record.bytes,
        layers: record.layers.len(),
        granted: grant.since,
        last_used,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use proptest::prelude::*;

    fn digest(n: usize) -> Digest {
        Digest::of(Algorithm::Sha256, &n.to_le_bytes())
    }

    proptest! {
        /// Each layer once; one image more adds what it has of its own, and the order does not matter.
        #[test]
        fn a_layer_counts_once(
            images in prop::collection::vec(prop::collection::btree_set(0usize..12, 0..6), 0..8),
            sizes in prop::collection::vec(0u64..1000, 12),
        ) {
            let sized: Vec<BTreeMap<Digest, u64>> =
                images.iter().map(|layers| layers.iter().map(|l| (digest(*l), sizes[*l])).collect()).collect();
            let mut seen = std::collections::BTreeSet::new();
            let mut sum = 0;
            for (n, image) in images.iter().enumerate() {
                sum += image.iter().filter(|l| seen.insert(**l)).map(|l| sizes[*l]).sum::<u64>();
                let usage = Usage::of(&sized[..=n]);
                prop_assert_eq!(usage, Usage { images: n + 1, layers: seen.len(), bytes: sum });
            }
            prop_assert_eq!(Usage::of(&sized), Usage::of(sized.iter().rev()));
        }
    }
}
