//! Room for images: which of them go when space is short, those not used for longest first, and what is told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, fstatvfs, statat};
use serde::{Deserialize, Serialize};

use super::form::LayerForm;
use super::merge::merged_name;
use super::{Store, files, now};
use crate::digest::Digest;
use crate::error::{Error, Result, Shortfall};

/// The file that holds the rules in force, and what was last removed by them.
const ROOM: &str = "room.json";

/// How often it is looked again whether enough came free: sizes of files are not what filesystems take for them.
const ROUNDS: usize = 8;

const NANOS: u64 = 1_000_000_000;

/// When images are removed, and how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomRules {
    /// Percent of the store's filesystem in use above which images are removed; 100 waits until it is full.
    pub high_watermark: u8,
    /// Percent down to which they are removed then.
    pub low_watermark: u8,
    /// Most bytes that layers may take, whatever else is on the filesystem.
    pub max_size: Option<u64>,
    /// Days without use after which an image goes in any case.
    pub keep_days: Option<u32>,
}

/// What is about to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes.
    pub bytes: u64,
    /// Something has already failed for lack of space.
    pub pressing: bool,
    /// How much that would have taken, where it is known.
    pub short: Option<Shortfall>,
}

impl Wanted {
    /// Something did not fit, and this is what its import said.
    #[must_use]
    pub fn lacking(error: &Error) -> Wanted {
        Wanted { bytes: 0, pressing: true, short: error.shortfall() }
    }

    /// So many bytes of layers are about to be fetched: they are compressed and come to about twice as much.
    #[must_use]
    pub fn to_fetch(bytes: u64) -> Wanted {
        Wanted { bytes: bytes.saturating_mul(2), ..Wanted::default() }
    }

    /// Both. Of two that did not fit the one counts that takes less: the other one asks again if it must.
    #[must_use]
    pub fn and(self, other: Wanted) -> Wanted {
        let short = match (self.pressing, other.pressing) {
            (true, true) => match (self.short, other.short) {
                (Some(one), Some(two)) => Some(if one.rest <= two.rest { one } else { two }),
                _ => None,
            },
            (true, false) => self.short,
            (false, _) => other.short,
        };
        let bytes = self.bytes.saturating_add(other.bytes);
        Wanted { bytes, pressing: self.pressing || other.pressing, short }
    }
}

/// What was removed to make room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// When, Unix seconds.
    pub at: u64,
    /// Why.
    pub why: String,
    /// Which images.
    pub images: Vec<CollectedImage>,
    /// Layers that went with them.
    pub layers: usize,
    /// Bytes of the files in these.
    pub bytes: u64,
}

/// An image that was removed to make room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedImage {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Names under which it was asked for.
    pub names: Vec<String>,
    /// When it was last prepared, Unix seconds.
    pub last_used: u64,
}

/// What is known about the store's room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomState {
    /// The rules by which an agent keeps it; none without an agent.
    pub rules: Option<RoomRules>,
    /// What it last removed.
    pub last: Option<Collected>,
}

/// An image as the choice sees it.
#[derive(Clone, Debug)]
struct Candidate {
    digest: Digest,
    /// Unix nanoseconds.
    last_used: u64,
    /// It has to stay.
    needed: bool,
    /// Each layer once, with its bytes.
    layers: BTreeMap<Digest, u64>,
}

/// Bytes of a filesystem that files may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) used: u64,
    pub(super) available: u64,
}

impl Space {
    fn percent(self) -> u64 {
        self.used.saturating_mul(100).checked_div(self.used.saturating_add(self.available)).unwrap_or(0)
    }

    /// As much as is believed of what is about to be written: a tenth of the filesystem. A manifest may say anything, and is
    /// not to cost others their images; of more than that a full disk tells.
    fn believed(self, wanted: Wanted) -> Wanted {
        Wanted { bytes: wanted.bytes.min(self.used.saturating_add(self.available) / 10), ..wanted }
    }

    /// Bytes in use beyond this percentage, with so many more.
    fn beyond(self, percent: u8, more: u64) -> u64 {
        let total = u128::from(self.used) + u128::from(self.available);
        let line = u64::try_from(total * u128::from(percent) / 100).unwrap_or(u64::MAX);
        self.used.saturating_add(more).saturating_sub(line)
    }
}

/// Until when images go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The filesystem is down to the lower mark, and layers to the most that they may take.
    Mark,
    /// Layers are down to the most that they may take.
    Most,
    /// So many bytes are free.
    Free(u64),
}

/// Why images go.
struct Shortage {
    /// Bytes that are to come free at first.
    bytes: u64,
    until: Until,
    why: String,
}

/// Bytes that are too many now.
fn excess(rules: &RoomRules, space: Space, layers: u64, more: u64, until: Until) -> u64 {
    let beyond_most = layers.saturating_add(more).saturating_sub(rules.max_size.unwrap_or(u64::MAX));
    match until {
        Until::Mark => space.beyond(rules.low_watermark, more).max(beyond_most),
        Until::Most => beyond_most,
        Until::Free(bytes) => bytes.saturating_sub(space.available),
    }
}

/// `None` where there is room.
fn shortage(rules: &RoomRules, space: Space, layers: u64, wanted: Wanted) -> Option<Shortage> {
    let excess = |until| excess(rules, space, layers, wanted.bytes, until);
    if wanted.pressing {
        // What is known to be needed, and an eighth for what files take beside their bytes: nobody's images go for more than that.
        let until = match wanted.short {
            Some(short) => Until::Free(short.need.saturating_add(short.need / 8)),
            None => Until::Mark,
        };
        // At least one image, even where the filesystem has a limit that it does not tell.
        let bytes = excess(until).max(wanted.bytes).max(1);
        let why = "an image could not be fetched for lack of space".into();
        return Some(Shortage { bytes, until, why });
    }
    if rules.high_watermark < 100 && space.beyond(rules.high_watermark, wanted.bytes) > 0 {
        let more = if wanted.bytes > 0 { ", with more to come" } else { "" };
        let why = format!("its filesystem was {}% full{more}", space.percent());
        return Some(Shortage { bytes: excess(Until::Mark), until: Until::Mark, why });
    }
    let bytes = excess(Until::Most);
    let why = "it took more than images.max_size";
    (bytes > 0).then(|| Shortage { bytes, until: Until::Most, why: why.into() })
}

/// The images that go: those not used since `unused_since`, then the others from the one not used for longest, until `bytes`
/// come free. A layer comes free with the last image that has it.
fn choose(images: &[Candidate], bytes: u64, unused_since: u64) -> Vec<Digest> {
    let mut holders: BTreeMap<&Digest, usize> = BTreeMap::new();
    for layer in images.iter().flat_map(|image| image.layers.keys()) {
        *holders.entry(layer).or_default() += 1;
    }
    let mut order: Vec<&Candidate> = images.iter().filter(|image| !image.needed).collect();
    order.sort_by(|a, b| a.last_used.cmp(&b.last_used).then_with(|| a.digest.cmp(&b.digest)));
    let (mut chosen, mut freed) = (Vec::new(), 0u64);
    for image in order {
        if freed >= bytes && image.last_used >= unused_since {
            break;
        }
        for (layer, size) in &image.layers {
            let left = holders.entry(layer).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 {
                freed = freed.saturating_add(*size);
            }
        }
        chosen.push(image.digest.clone());
    }
    chosen
}

impl Store {
    /// Notes the rules by which the store's room is kept, for those who look at it.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn note_room_rules(&self, rules: &RoomRules) -> Result<()> {
        let state = self.room_state()?;
        if state.rules.as_ref() == Some(rules) {
            return Ok(());
        }
        self.write_room(&RoomState { rules: Some(rules.clone()), ..state })
    }

    /// What is known about the store's room.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn room_state(&self) -> Result<RoomState> {
        let bytes = files::read(self.root_fd.as_fd(), ROOM)?;
        // It is for people to read: what is damaged is nothing.
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    fn write_room(&self, state: &RoomState) -> Result<()> {
        files::write(self.root_fd.as_fd(), ROOM, &super::record::print(state)?, self.give_to)
    }

    /// Whether images would be removed now, if nobody needed any.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn lacks_room(&self, rules: &RoomRules, wanted: Wanted) -> Result<bool> {
        let space = self.space()?;
        if shortage(rules, space, self.layers_size()?, space.believed(wanted)).is_some() {
            return Ok(true);
        }
        let since = unused_since(rules, now());
        // Looked at often: whether they are in use, which takes a lock of each, is asked when some are to go.
        Ok(since > 0 && self.records()?.iter().any(|record| self.last_used(record) < since))
    }

    /// Removes images by the rules until there is room, but none of `needed` and none that is in use or being fetched: these
    /// count as used now where they would be too old. Layers of a needed image that was only fetched in part stay, too.
    ///
    /// # Errors
    /// What is known to be needed would not fit even if everything went that may: then nothing does. The store cannot be read or written.
    pub fn make_room(
        &self,
        rules: &RoomRules,
        wanted: Wanted,
        needed: &BTreeSet<Digest>,
    ) -> Result<Option<Collected>> {
        let now = now();
        let since = unused_since(rules, now);
        if let Some(short) = wanted.short {
            self.could_hold(short, needed)?;
        }
        let space = self.space()?;
        let wanted = space.believed(wanted);
        let short = shortage(rules, space, self.layers_size()?, wanted);
        let until = short.as_ref().map(|s| s.until);
        let (mut bytes, why) = match short {
            Some(short) => (short.bytes, short.why),
            None => (0, format!("they were not used for {} days", rules.keep_days.unwrap_or(0))),
        };
        let mut made = Collected { at: now, why, images: Vec::new(), layers: 0, bytes: 0 };
        let mut stay = needed.clone();
        for _ in 0..ROUNDS {
            let images = self.candidates(&stay, since)?;
            let before = made.images.len();
            for digest in choose(&images, bytes, since) {
                let names = self.image_record(&digest)?.map(|r| r.all_names()).unwrap_or_default();
                let last_used = images.iter().find(|i| i.digest == digest).map_or(0, |i| i.last_used / NANOS);
                if self.forget(&digest)? {
                    made.images.push(CollectedImage { digest, names, last_used });
                } else {
                    stay.insert(digest);
                }
            }
            // Layers that no image has may lie there as well.
            let removed = self.collect(needed)?;
            made.layers += removed.layers;
            made.bytes += removed.bytes;
            let Some(until) = until else { break };
            bytes = excess(rules, self.space()?, self.layers_size()?, wanted.bytes, until);
            if bytes == 0 || made.images.len() == before {
                break;
            }
        }
        if made.images.is_empty() && made.layers == 0 {
            return Ok(None);
        }
        let state = self.room_state()?;
        // There is room now, and that counts: what cannot be noted for people is in the agent's log.
        let _ = self.write_room(&RoomState { last: Some(made.clone()), ..state });
        Ok(Some(made))
    }

    fn candidates(&self, needed: &BTreeSet<Digest>, since: u64) -> Result<Vec<Candidate>> {
        let mut images = Vec::new();
        for record in self.records()? {
            let layers = self.layer_sizes(&record)?;
            let needed = needed.contains(&record.digest) || self.in_use(&record.digest)?;
            let mut last_used = self.last_used(&record);
            if needed && last_used < since {
                // It has its days once more: else everything would be looked at again and again until it may go.
                self.note_use(&record.digest);
                last_used = self.last_used(&record);
            }
            images.push(Candidate { last_used, needed, digest: record.digest, layers });
        }
        Ok(images)
    }

    fn layers_size(&self) -> Result<u64> {
        let mut total = 0u64;
        for diff_id in self.stored_layers()? {
            total = total.saturating_add(self.layer_size(&diff_id)?);
        }
        for id in self.stored_merged()? {
            total = total.saturating_add(self.merged_size(&id)?);
        }
        Ok(total)
    }

    /// Bytes that a layer takes: of its image, or of the files in its directory.
    pub(super) fn layer_size(&self, diff_id: &Digest) -> Result<u64> {
        self.size_at(&diff_id.file_name(), diff_id)
    }

    /// Bytes that layers take which are there as one.
    pub(super) fn merged_size(&self, id: &Digest) -> Result<u64> {
        self.size_at(&merged_name(id), id)
    }

    fn size_at(&self, name: &str, id: &Digest) -> Result<u64> {
        if self.form_of(name) == Some(LayerForm::Erofs) {
            let image = LayerForm::Erofs.place(std::path::Path::new(name));
            return Ok(statat(&self.layers, &image, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)));
        }
        Ok(self.record_at(name, id)?.map_or(0, |layer| layer.report.bytes))
    }

    /// Bytes that files may have on the store's filesystem, those that are there among them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn capacity(&self) -> Result<u64> {
        let space = self.space()?;
        Ok(space.used.saturating_add(space.available))
    }

    pub(super) fn space(&self) -> Result<Space> {
        let stat = fstatvfs(&self.root_fd).map_err(|e| Error::io("image store", e))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize);
        Ok(Space { used, available: stat.f_bavail.saturating_mul(stat.f_frsize) })
    }
}

/// Unix nanoseconds: what was last used before goes.
fn unused_since(rules: &RoomRules, now: u64) -> u64 {
    rules.keep_days.map_or(0, |days| now.saturating_sub(u64::from(days) * 86_400).saturating_mul(NANOS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use proptest::prelude::*;

    fn digest(n: usize) -> Digest {
        Digest::of(Algorithm::Sha256, &n.to_le_bytes())
    }

    const RULES: RoomRules =
        RoomRules { high_watermark: 85, low_watermark: 75, max_size: None, keep_days: None };

    fn short(rules: &RoomRules, used: u64, layers: u64, bytes: u64, pressing: bool) -> Option<u64> {
        let space = Space { used, available: 1000 - used };
        shortage(rules, space, layers, Wanted { bytes, pressing, short: None }).map(|short| short.bytes)
    }

    #[test]
    fn above_the_high_mark_it_goes_down_to_the_low_one() {
        assert_eq!(short(&RULES, 850, 500, 0, false), None);
        assert_eq!(short(&RULES, 851, 500, 0, false), Some(101));
        assert_eq!(short(&RULES, 800, 500, 51, false), Some(101), "what is to be written counts");
        assert_eq!(
            short(&RULES, 100, 100, 0, true),
            Some(1),
            "a pull that failed frees something in any case"
        );
        let full = RoomRules { high_watermark: 100, low_watermark: 100, ..RULES };
        assert_eq!(short(&full, 1000, 500, 0, false), None);
        assert_eq!(short(&full, 1000, 500, 70, true), Some(70));
        let small = RoomRules { max_size: Some(400), ..RULES };
        assert_eq!(short(&small, 500, 400, 0, false), None);
        assert_eq!(short(&small, 500, 400, 10, false), Some(10));
    }

    #[test]
    fn a_manifest_and_a_fetcher_cannot_have_everybodys_images_removed() {
        let space = Space { used: 300, available: 700 };
        let claimed = Wanted { bytes: u64::MAX, ..Wanted::default() };
        assert_eq!(space.believed(claimed).bytes, 100);
        assert!(shortage(&RULES, space, 300, space.believed(claimed)).is_none());
        let full = Error::io("x", rustix::io::Errno::NOSPC);
        assert_eq!(full.kind(), crate::error::ErrorKind::NoSpace);
        let full = full.lacking(Shortfall { need: 2, rest: 1 });
        assert_eq!(
            (full.sanitised().kind(), full.sanitised().shortfall()),
            (crate::error::ErrorKind::Io, None)
        );
    }

    #[test]
    fn for_what_did_not_fit_no_more_goes_than_it_takes() {
        let space = Space { used: 950, available: 50 };
        let of = |need, rest| {
            let wanted =
                Wanted { pressing: true, short: Some(Shortfall { need, rest }), ..Wanted::default() };
            shortage(&RULES, space, 900, wanted).map(|short| (short.bytes, short.until))
        };
        assert_eq!(of(80, 40), Some((40, Until::Free(90))));
        // Bytes are not what lacked.
        assert_eq!(of(16, 0), Some((1, Until::Free(18))));
        let pressing = |short: Option<Shortfall>| Wanted { pressing: true, short, ..Wanted::default() };
        let (less, more) = (Some(Shortfall { need: 9, rest: 1 }), Some(Shortfall { need: 5, rest: 2 }));
        assert_eq!(pressing(more).and(pressing(less)), pressing(less));
        assert_eq!(pressing(more).and(pressing(None)), pressing(None));
        let comes = Wanted { bytes: 7, ..Wanted::default() };
        assert_eq!(comes.and(pressing(less)), Wanted { bytes: 7, ..pressing(less) });
        assert_eq!(pressing(less).and(comes), Wanted { bytes: 7, ..pressing(less) });
    }

    proptest! {
        /// Never a needed one; enough, or all that may go; in order of use; and not one more than that takes.
        #[test]
        fn what_is_chosen_is_enough_and_no_more(
            raw in prop::collection::vec((0u64..20, any::<bool>(), prop::collection::btree_set(0usize..12, 0..5)), 0..12),
            sizes in prop::collection::vec(0u64..100, 12),
            bytes in 0u64..600,
            since in 0u64..20,
        ) {
            let images: Vec<Candidate> = raw.iter().enumerate().map(|(n, (used, needed, layers))| Candidate {
                digest: digest(n),
                last_used: *used,
                needed: *needed,
                layers: layers.iter().map(|l| (digest(100 + l), sizes[*l])).collect(),
            }).collect();
            let freed = |gone: &[Digest]| -> u64 {
                let kept: BTreeSet<&Digest> =
                    images.iter().filter(|i| !gone.contains(&i.digest)).flat_map(|i| i.layers.keys()).collect();
                let all: BTreeMap<&Digest, u64> =
                    images.iter().flat_map(|i| i.layers.iter().map(|(l, s)| (l, *s))).collect();
                all.iter().filter(|(l, _)| !kept.contains(*l)).map(|(_, s)| s).sum()
            };
            let of = |d: &Digest| images.iter().find(|i| i.digest == *d).unwrap();
            let chosen = choose(&images, bytes, since);
            prop_assert!(chosen.iter().all(|d| !of(d).needed));
            let may_go: Vec<Digest> = images.iter().filter(|i| !i.needed).map(|i| i.digest.clone()).collect();
            prop_assert!(freed(&chosen) >= bytes || chosen.len() == may_go.len());
            for left in may_go.iter().filter(|d| !chosen.contains(d)) {
                prop_assert!(of(left).last_used >= since);
                prop_assert!(chosen.iter().all(|d| of(d).last_used <= of(left).last_used));
            }
            if let Some((last, before)) = chosen.split_last() {
                prop_assert!(freed(before) < bytes || of(last).last_used < since);
            }
        }
    }
}
