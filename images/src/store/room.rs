//! Room for images: which of them go when space is short, those not used for longest first, and what is told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::merge::merged_name;
use super::record::ImageRecord;
use super::space::{Filled, Size, Space};
use super::{Store, files, now};
use crate::digest::Digest;
use crate::error::{Error, Result, Shortfall};

/// The file that holds the rules in force, and what was last removed by them.
const ROOM: &str = "room.json";

/// How often it is looked again whether enough came free: sizes of files are not what filesystems take for them.
const ROUNDS: usize = 8;

const NANOS: u64 = 1_000_000_000;

/// From this percentage of a filesystem's files on, files are what an image lacked that did not fit.
const OUT_OF_FILES: u64 = 99;

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
    /// Each layer once, with what it takes.
    layers: BTreeMap<Digest, Size>,
}

/// As much as is believed of what is about to be written: a tenth of the filesystem. A manifest may say anything, and is
/// not to cost others their images; of more than that a full disk tells.
fn believed(space: Space, wanted: Wanted) -> Wanted {
    Wanted { bytes: wanted.bytes.min(space.bytes.total() / 10), ..wanted }
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
    /// What is to come free at first.
    size: Size,
    until: Until,
    why: String,
}

/// What is too much now.
fn excess(rules: &RoomRules, space: Space, layers: Size, more: u64, until: Until) -> Size {
    let beyond_most = layers.bytes.saturating_add(more).saturating_sub(rules.max_size.unwrap_or(u64::MAX));
    // What all layers together could not bring are others' files: every image would go for nothing, and more so where a layer is one file.
    let files = Some(space.files.beyond(rules.low_watermark, 0)).filter(|files| *files <= layers.files);
    let files = files.unwrap_or(0);
    match until {
        Until::Mark => Size { bytes: space.bytes.beyond(rules.low_watermark, more).max(beyond_most), files },
        Until::Most => Size { bytes: beyond_most, files: 0 },
        Until::Free(bytes) => Size {
            bytes: bytes.saturating_sub(space.bytes.available),
            // How many it takes nobody counted: where they are what lacks, bytes do not help.
            files: if space.files.percent() >= OUT_OF_FILES { files } else { 0 },
        },
    }
}

/// `None` where there is room.
fn shortage(rules: &RoomRules, space: Space, layers: Size, wanted: Wanted) -> Option<Shortage> {
    let excess = |until| excess(rules, space, layers, wanted.bytes, until);
    if wanted.pressing {
        // What is known to be needed, and an eighth for what files take beside their bytes: nobody's images go for more than that.
        let until = match wanted.short {
            Some(short) => Until::Free(short.need.saturating_add(short.need / 8)),
            None => Until::Mark,
        };
        // At least one image, even where the filesystem has a limit that it does not tell.
        let Size { bytes, files } = excess(until);
        let size = Size { bytes: bytes.max(wanted.bytes).max(1), files };
        let why = "an image could not be fetched for lack of space".into();
        return Some(Shortage { size, until, why });
    }
    let beyond = |of: Filled, more| rules.high_watermark < 100 && of.beyond(rules.high_watermark, more) > 0;
    let why = if beyond(space.bytes, wanted.bytes) {
        let more = if wanted.bytes > 0 { ", with more to come" } else { "" };
        Some(format!("its filesystem was {}% full{more}", space.bytes.percent()))
    } else if beyond(space.files, 0) && excess(Until::Mark).files > 0 {
        Some(format!("{}% of the files that its filesystem can have were there", space.files.percent()))
    } else {
        None
    };
    if let Some(why) = why {
        return Some(Shortage { size: excess(Until::Mark), until: Until::Mark, why });
    }
    let size = excess(Until::Most);
    let why = "it took more than images.max_size";
    (size.bytes > 0).then(|| Shortage { size, until: Until::Most, why: why.into() })
}

/// The images that go: those not used since `unused_since`, then the others from the one not used for longest, until so much
/// comes free. A layer comes free with the last image that has it.
fn choose(images: &[Candidate], wanted: Size, unused_since: u64) -> Vec<Digest> {
    let mut holders: BTreeMap<&Digest, usize> = BTreeMap::new();
    for layer in images.iter().flat_map(|image| image.layers.keys()) {
        *holders.entry(layer).or_default() += 1;
    }
    let mut order: Vec<&Candidate> = images.iter().filter(|image| !image.needed).collect();
    order.sort_by(|a, b| a.last_used.cmp(&b.last_used).then_with(|| a.digest.cmp(&b.digest)));
    let (mut chosen, mut freed) = (Vec::new(), Size::default());
    for image in order {
        if freed.covers(wanted) && image.last_used >= unused_since {
            break;
        }
        for (layer, size) in &image.layers {
            let left = holders.entry(layer).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 {
                freed = freed.and(*size);
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
        if shortage(rules, space, self.layers_size()?, believed(space, wanted)).is_some() {
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
        self.make_room_but(rules, wanted, needed, &|_| false)
    }

    /// As [`Store::make_room`], but for images that come to be needed meanwhile, which is asked before each one goes.
    ///
    /// # Errors
    /// As there.
    pub fn make_room_but(
        &self,
        rules: &RoomRules,
        wanted: Wanted,
        needed: &BTreeSet<Digest>,
        stays: &dyn Fn(&Digest) -> bool,
    ) -> Result<Option<Collected>> {
        let now = now();
        let since = unused_since(rules, now);
        if let Some(short) = wanted.short {
            self.could_hold(short, needed)?;
        }
        let space = self.space()?;
        let wanted = believed(space, wanted);
        let short = shortage(rules, space, self.layers_size()?, wanted);
        let until = short.as_ref().map(|s| s.until);
        let (mut size, why) = match short {
            Some(short) => (short.size, short.why),
            None => {
                (Size::default(), format!("they were not used for {} days", rules.keep_days.unwrap_or(0)))
            }
        };
        let mut made = Collected { at: now, why, images: Vec::new(), layers: 0, bytes: 0 };
        let mut stay = needed.clone();
        for _ in 0..ROUNDS {
            let images = self.candidates(&stay, since)?;
            let before = made.images.len();
            for digest in choose(&images, size, since) {
                let names = self.image_record(&digest)?.map(|r| r.all_names()).unwrap_or_default();
                let last_used = images.iter().find(|i| i.digest == digest).map_or(0, |i| i.last_used / NANOS);
                if !stays(&digest) && self.forget(&digest)? {
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
            size = excess(rules, self.space()?, self.layers_size()?, wanted.bytes, until);
            if size == Size::default() || made.images.len() == before {
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

    /// Each layer of an image once, what is there as one among them, with what it takes.
    fn layers_of_image(&self, record: &ImageRecord) -> Result<BTreeMap<Digest, Size>> {
        let layers = record.layers.iter().map(|layer| (layer.diff_id.file_name(), &layer.diff_id));
        let merged = record.merged.iter().map(|merged| (merged_name(&merged.id), &merged.id));
        let sized = |(name, id): (String, &Digest)| Ok((id.clone(), self.size_at(&name, id)?));
        layers.chain(merged).map(sized).collect()
    }

    fn candidates(&self, needed: &BTreeSet<Digest>, since: u64) -> Result<Vec<Candidate>> {
        let mut images = Vec::new();
        for record in self.records()? {
            let layers = self.layers_of_image(&record)?;
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

    /// A filesystem of 1000 bytes and as many files, with so many of them in use.
    fn space(bytes: u64, files: u64) -> Space {
        let of = |used: u64| Filled { used, available: 1000 - used };
        Space { bytes: of(bytes), files: of(files) }
    }

    /// Layers of so many bytes, and as many files as there can be.
    fn layers(bytes: u64) -> Size {
        Size { bytes, files: 1000 }
    }

    fn short(rules: &RoomRules, used: u64, taken: u64, bytes: u64, pressing: bool) -> Option<u64> {
        let wanted = Wanted { bytes, pressing, short: None };
        shortage(rules, space(used, 0), layers(taken), wanted).map(|short| short.size.bytes)
    }

    #[test]
    fn files_have_their_marks_where_a_filesystem_has_only_so_many() {
        let found = |rules: &RoomRules, files: u64, wanted: Wanted| {
            shortage(rules, space(100, files), layers(100), wanted).map(|short| (short.size, short.until))
        };
        let none = Wanted::default();
        assert_eq!(found(&RULES, 850, none), None);
        assert_eq!(found(&RULES, 851, none), Some((Size { bytes: 0, files: 101 }, Until::Mark)));
        let full = RoomRules { high_watermark: 100, low_watermark: 100, ..RULES };
        assert_eq!(found(&full, 1000, none), None);
        // A filesystem that makes them as they are needed has no marks for them.
        let plain = Space { files: Filled::default(), ..space(100, 0) };
        assert!(shortage(&RULES, plain, layers(100), none).is_none());
        // What lacked where an image did not fit: files, or bytes.
        let short = Some(Shortfall { need: 80, rest: 40 });
        let pressing = Wanted { pressing: true, short, ..none };
        assert_eq!(found(&RULES, 990, pressing), Some((Size { bytes: 1, files: 240 }, Until::Free(90))));
        assert_eq!(found(&RULES, 989, pressing), Some((Size { bytes: 1, files: 0 }, Until::Free(90))));
        let image = |(n, last_used, bytes, files): (usize, u64, u64, u64)| Candidate {
            digest: digest(n),
            last_used,
            needed: false,
            layers: BTreeMap::from([(digest(100 + n), Size { bytes, files })]),
        };
        let images = [(1, 1, 500, 8), (2, 2, 10, 60), (3, 3, 10, 60)].map(image);
        let chosen = |bytes, files| choose(&images, Size { bytes, files }, 0).len();
        assert_eq!([chosen(100, 0), chosen(0, 61), chosen(100, 69), chosen(511, 1)], [1, 2, 3, 3]);
    }

    #[test]
    fn no_images_go_for_files_that_are_others() {
        let found = |bytes: u64, files: u64, taken: u64, wanted: Wanted| {
            let taken = Size { bytes, files: taken };
            shortage(&RULES, space(bytes, files), taken, wanted).map(|short| short.size)
        };
        let none = Wanted::default();
        assert_eq!(found(100, 900, 150, none), Some(Size { bytes: 0, files: 150 }));
        assert_eq!(found(100, 900, 149, none), None);
        assert_eq!(found(851, 900, 149, none), Some(Size { bytes: 101, files: 0 }));
        // Where one did not fit, one makes room for it.
        let pressing = Wanted { pressing: true, short: Some(Shortfall { need: 8, rest: 8 }), ..none };
        assert_eq!(found(100, 1000, 16, pressing), Some(Size { bytes: 1, files: 0 }));
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
        let space = space(300, 0);
        let claimed = Wanted { bytes: u64::MAX, ..Wanted::default() };
        assert_eq!(believed(space, claimed).bytes, 100);
        assert!(shortage(&RULES, space, layers(300), believed(space, claimed)).is_none());
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
        let space = space(950, 0);
        let of = |need, rest| {
            let wanted =
                Wanted { pressing: true, short: Some(Shortfall { need, rest }), ..Wanted::default() };
            shortage(&RULES, space, layers(900), wanted).map(|short| (short.size.bytes, short.until))
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
                layers: layers.iter().map(|l| (digest(100 + l), Size { bytes: sizes[*l], files: 0 })).collect(),
            }).collect();
            let freed = |gone: &[Digest]| -> u64 {
                let kept: BTreeSet<&Digest> =
                    images.iter().filter(|i| !gone.contains(&i.digest)).flat_map(|i| i.layers.keys()).collect();
                let all: BTreeMap<&Digest, u64> =
                    images.iter().flat_map(|i| i.layers.iter().map(|(l, s)| (l, s.bytes))).collect();
                all.iter().filter(|(l, _)| !kept.contains(*l)).map(|(_, s)| s).sum()
            };
            let of = |d: &Digest| images.iter().find(|i| i.digest == *d).unwrap();
            let chosen = choose(&images, Size { bytes, files: 0 }, since);
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
