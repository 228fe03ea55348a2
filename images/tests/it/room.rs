//! Room in the store: what was not used for longest goes, what is needed, in use or half fetched stays; nothing goes for what never fits.

use std::collections::BTreeSet;
use std::io::Read;

use berth_images::{
    BlobKind, BlobSource, Collected, Credentials, Digest, Error, ErrorKind, PreparedImage, Registries,
    RoomRules, Shortfall, Store, Wanted, open_source,
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::io::Errno;

use crate::support::{Bench, ImageBuilder, Tar, resolve_text};

const MIB: u64 = 1 << 20;
/// What a few layers have beside their content: a directory, a listing and a skeleton each.
const BESIDE: u64 = 128 << 10;

fn layer(name: &str, mib: u64) -> Vec<u8> {
    let content: Vec<u8> = name.bytes().cycle().take(usize::try_from(mib * MIB).unwrap()).collect();
    Tar::new().file(name, &content).end()
}

/// Layers may take so much.
fn most(mib: u64) -> RoomRules {
    let max_size = Some(mib * MIB + BESIDE);
    RoomRules { high_watermark: 100, low_watermark: 100, max_size, keep_days: None }
}

/// An image of its own layer of 2 MiB above a shared one of 1 MiB, last used so many seconds after 1970.
fn image(bench: &Bench, name: &str, used_at: i64) -> Digest {
    used(bench, bench.import(vec![layer("shared", 1), layer(name, 2)]).unwrap(), used_at)
}

/// Has it as last used then.
fn used(bench: &Bench, image: PreparedImage, used: i64) -> Digest {
    let record = bench.store().root().join("images").join(format!("sha256-{}.json", image.digest.hex()));
    let time = Timespec { tv_sec: used, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, record, &times, AtFlags::empty()).unwrap();
    image.digest
}

fn left(store: &Store) -> BTreeSet<Digest> {
    store.list().unwrap().into_iter().map(|image| image.digest).collect()
}

#[test]
fn the_image_not_used_for_longest_goes_first_and_needed_ones_stay() {
    let bench = Bench::new();
    let store = bench.store();
    let [one, two, three, four] = [("one", 100), ("two", 200), ("three", 300), ("four", 400)]
        .map(|(name, used)| image(&bench, name, used));
    let none = BTreeSet::new();
    let rules = most(9);
    // 9 MiB and the shared one of them: nothing is to go, until more is to come.
    assert!(!store.lacks_room(&rules, Wanted::default()).unwrap());
    assert_eq!(store.make_room(&rules, Wanted::default(), &none).unwrap(), None);
    let wanted = Wanted { bytes: MIB, ..Wanted::default() };
    assert!(store.lacks_room(&rules, wanted).unwrap());
    let needed = BTreeSet::from([one.clone()]);
    let made = store.make_room(&rules, wanted, &needed).unwrap().unwrap();
    assert_eq!(made.images.iter().map(|i| &i.digest).collect::<Vec<_>>(), [&two]);
    assert_eq!((made.layers, made.bytes, made.images[0].last_used), (1, 2 * MIB, 200));
    assert_eq!(left(&store), BTreeSet::from([one.clone(), three.clone(), four.clone()]));
    assert_eq!(store.df().unwrap().room.last, Some(made));
    // What is in use stays; and the shared layer, for as long as an image has it.
    let guard = store.guard(&three).unwrap();
    let made = store.make_room(&most(1), Wanted::default(), &none).unwrap().unwrap();
    assert_eq!(made.images.iter().map(|i| &i.digest).collect::<Vec<_>>(), [&one, &four]);
    assert_eq!(left(&store), BTreeSet::from([three.clone()]));
    drop(guard);
    // A pull that failed has the last one go that may; then nothing more can.
    let pressing = Wanted { pressing: true, ..Wanted::default() };
    let full = RoomRules { max_size: None, ..most(1) };
    assert_eq!(store.make_room(&full, pressing, &none).unwrap().unwrap().layers, 2);
    assert_eq!(store.make_room(&full, pressing, &none).unwrap(), None);
    assert_eq!(store.df().unwrap().bytes, 0);
}

#[test]
fn what_comes_to_be_needed_while_images_go_stays() {
    let bench = Bench::new();
    let store = bench.store();
    let [one, two, three] =
        [("one", 100), ("two", 200), ("three", 300)].map(|(name, used)| image(&bench, name, used));
    // A job is submitted when the first one has gone.
    let asked = std::cell::RefCell::new(Vec::new());
    let stays = |digest: &Digest| {
        asked.borrow_mut().push(digest.clone());
        *digest == two
    };
    let none = BTreeSet::new();
    let made = store.make_room_but(&most(1), Wanted::default(), &none, &stays).unwrap().unwrap();
    assert_eq!(made.images.iter().map(|i| &i.digest).collect::<Vec<_>>(), [&one, &three]);
    assert_eq!(left(&store), BTreeSet::from([two.clone()]));
    assert_eq!(asked.into_inner()[..3], [one, two, three]);
}

#[test]
fn small_files_count_by_the_blocks_that_they_take() {
    let with_small = || {
        let bench = Bench::new();
        let files = (0..2000).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b"x"));
        let small = used(&bench, bench.import(vec![files.end()]).unwrap(), 100);
        let others = [("one", 200), ("two", 300)].map(|(name, used)| image(&bench, name, used));
        (bench, small, BTreeSet::from(others))
    };
    let gone = |made: &Collected| made.images.iter().map(|i| i.digest.clone()).collect::<Vec<_>>();
    // The one that was not used for longest is enough, and no other goes.
    let (bench, small, others) = with_small();
    let store = bench.store();
    let usage = store.df().unwrap();
    assert!(usage.bytes < 6 * MIB && usage.disk_bytes > 12 * MIB, "{usage:?}");
    let made = store.make_room(&most(8), Wanted::default(), &BTreeSet::new()).unwrap().unwrap();
    assert_eq!((gone(&made), left(&store)), (vec![small], others));
    // What it gives back is enough for one that did not fit.
    let (bench, small, others) = with_small();
    let store = bench.store();
    let short = Some(Shortfall { need: u64::MAX, rest: 6 * MIB });
    let wanted = Wanted { pressing: true, short, ..Wanted::default() };
    let rules = RoomRules { max_size: None, ..most(1) };
    let made = store.make_room(&rules, wanted, &others).unwrap().unwrap();
    assert_eq!((gone(&made), left(&store)), (vec![small], others));
}

/// A blob of some hundred bytes may have a file of a terabyte: it takes no room, and nobody else's images go for it.
#[test]
fn holes_of_one_users_files_cost_others_no_images() {
    let bench = Bench::new();
    let store = bench.store();
    let theirs = image(&bench, "theirs", 100);
    let sparse: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"giant"),
        ("GNU.sparse.realsize", b"1000000000"),
    ];
    let map = [b"1\n999999999\n1\n".as_slice(), &[0; 512 - 14], b"x"].concat();
    let giant = Tar::new().pax(sparse).entry("giant", b'0', 0o644, "", &map).end();
    let giant = bench.import(vec![giant]).unwrap().digest;
    let (rules, nothing) = (most(9), Wanted::default());
    assert!(!store.lacks_room(&rules, nothing).unwrap());
    assert_eq!(store.make_room(&rules, nothing, &BTreeSet::new()).unwrap(), None);
    assert_eq!(left(&store), BTreeSet::from([theirs, giant.clone()]));
    assert!(store.df().unwrap().bytes < 4 * MIB);
    // What comes free with it is as little.
    assert!(store.remove(&giant).unwrap().bytes < MIB);
}

#[test]
fn nothing_goes_for_what_would_not_fit_even_then() {
    let bench = Bench::new();
    let store = bench.store();
    let all = [("one", 100), ("two", 200), ("three", 300)].map(|(name, used)| image(&bench, name, used));
    let rules = RoomRules { max_size: None, ..most(1) };
    let short =
        |need, rest| Wanted { pressing: true, short: Some(Shortfall { need, rest }), ..Wanted::default() };
    // What may go has 7 MiB, or without the needed one 4: the shared layer stays with that.
    let needed = BTreeSet::from([all[0].clone()]);
    for (needed, may_go) in [(BTreeSet::new(), 7), (needed.clone(), 4)] {
        let refused = store.make_room(&rules, short(u64::MAX, may_go * MIB + MIB / 2), &needed).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        let told = format!("all images that may go have {may_go}.0");
        assert!(refused.to_string().contains(&told), "{refused}");
        assert_eq!(left(&store).len(), 3);
    }
    // The one in use cannot go either.
    let guard = store.guard(&all[1]).unwrap();
    store.make_room(&rules, short(u64::MAX, 3 * MIB), &needed).unwrap_err();
    assert_eq!(left(&store).len(), 3);
    drop(guard);
    // There is room for so much meanwhile: one goes, as for what nobody counted, and it is not the one that was used last.
    let made = store.make_room(&rules, short(MIB, u64::MAX), &needed).unwrap().unwrap();
    assert_eq!(made.images.iter().map(|i| &i.digest).collect::<Vec<_>>(), [&all[2]]);
}

#[test]
fn what_was_not_used_for_days_goes_and_what_is_needed_does_not() {
    let bench = Bench::new();
    let store = bench.store();
    let (one, two) = (image(&bench, "one", 100), image(&bench, "two", 200));
    let fresh = bench.import(vec![layer("fresh", 1)]).unwrap().digest;
    let rules = RoomRules { max_size: None, keep_days: Some(30), ..most(1) };
    assert!(store.lacks_room(&rules, Wanted::default()).unwrap());
    let made = store.make_room(&rules, Wanted::default(), &BTreeSet::from([one.clone()])).unwrap().unwrap();
    assert_eq!(made.why, "they were not used for 30 days");
    assert_eq!(left(&store), BTreeSet::from([one.clone(), fresh.clone()]));
    assert!(made.images.iter().all(|image| image.digest == two));
    // What was needed then has its days once more, and is no reason to look again.
    assert!(!store.lacks_room(&rules, Wanted::default()).unwrap());
    assert_eq!(store.make_room(&rules, Wanted::default(), &BTreeSet::new()).unwrap(), None);
    assert_eq!(left(&store), BTreeSet::from([one, fresh]));
}

/// Has no room for one blob.
struct Full(Box<dyn BlobSource>, u64);

impl BlobSource for Full {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn open(
        &self,
        kind: BlobKind,
        digest: &Digest,
        offset: u64,
    ) -> berth_images::Result<Box<dyn Read + Send>> {
        let mut blob = Vec::new();
        self.0.open(kind, digest, offset)?.read_to_end(&mut blob).unwrap();
        match blob.len() as u64 > self.1 {
            true => Err(Error::io("disk", Errno::NOSPC)),
            false => Ok(Box::new(std::io::Cursor::new(blob))),
        }
    }
}

#[test]
fn complete_layers_of_an_image_for_which_there_was_no_room_stay_for_its_next_try() {
    let bench = Bench::new();
    let store = bench.store();
    let other = image(&bench, "other", 100);
    let digest = ImageBuilder::new(vec![layer("small", 1), layer("large", 3)]).write(&bench.layout());
    let login = Credentials::anonymous();
    let resolved = resolve_text(&format!("oci:{}", bench.layout().display()), &login, false).unwrap();
    let source = open_source(&resolved, &Registries::default(), &login).unwrap();
    let full = Full(source, 2 * MIB);
    let layers = || store.df().unwrap().layers;
    // The smaller one is complete when the larger one has failed, sooner or later.
    while layers() < 3 {
        assert_eq!(store.ensure(&resolved, &full, &()).unwrap_err().kind(), ErrorKind::NoSpace);
    }
    let pressing = Wanted { pressing: true, ..Wanted::default() };
    let rules = RoomRules { max_size: None, ..most(1) };
    let made = store.make_room(&rules, pressing, &BTreeSet::from([digest])).unwrap().unwrap();
    assert!(made.images.iter().all(|image| image.digest == other));
    assert_eq!(layers(), 1, "the layer that was complete");
    // Nobody wants it any more.
    store.make_room(&rules, pressing, &BTreeSet::new()).unwrap().unwrap();
    assert_eq!(layers(), 0);
    bench.assert_empty();
}
