//! What one user's images may take: judged before anything is fetched, while it is written, and by what it took.

use berth_images::{Credentials, Digest, Error, ErrorKind, Helpers, PreparedImage, ResolvedManifest, Store};
use rustix::process::geteuid;

use crate::concurrency::helpers;
use crate::support::{Bench, Compression, ImageBuilder, Tar, resolve_text};

const MIB: usize = 1 << 20;

/// So many bytes that do not compress, another for each seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes / 8).flat_map(|_| next()).collect()
}

fn layer(seed: u64, bytes: usize) -> Vec<u8> {
    Tar::new().file(&format!("f{seed}"), &noise(seed, bytes)).end()
}

fn image(bench: &Bench, name: &str, layers: Vec<Vec<u8>>) -> ResolvedManifest {
    let layout = bench.path().join(name);
    std::fs::create_dir(&layout).unwrap();
    ImageBuilder::new(layers).compressed(Compression::Gzip).write(&layout);
    resolve_text(&format!("oci:{}", layout.display()), &Credentials::anonymous(), false).unwrap()
}

fn with(quota: usize) -> Helpers {
    Helpers { quota: Some(quota as u64), ..helpers(None, None, vec![]) }
}

fn refused(result: Result<PreparedImage, Error>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Quota, "{error}");
    error.to_string()
}

/// Whether it is so many MiB, and what a few layers have beside their content.
fn is_about(bytes: u64, mib: usize) -> bool {
    let beyond = bytes.checked_sub((mib * MIB) as u64);
    beyond.is_some_and(|beyond| beyond < 64 << 10)
}

fn used(store: &Store) -> u64 {
    store.usage(geteuid().as_raw()).unwrap().bytes
}

fn there(store: &Store) -> Vec<Digest> {
    store.list().unwrap().into_iter().map(|image| image.digest).collect()
}

#[test]
fn an_image_that_is_too_large_is_refused_before_it_is_fetched_and_what_is_had_runs() {
    let bench = Bench::new();
    let store = bench.store();
    let first = image(&bench, "first", vec![layer(0, MIB), layer(1, 2 * MIB)]);
    let second = image(&bench, "second", vec![layer(0, MIB), layer(2, 2 * MIB)]);
    let third = image(&bench, "third", vec![layer(3, MIB)]);
    // The second shares a layer with the first, which counts once.
    let quota = with(5 * MIB + 64 * 1024);
    drop(quota.ensure(&store, &first, &()).unwrap());
    drop(quota.ensure(&store, &second, &()).unwrap());
    assert!(is_about(used(&store), 5), "{}", used(&store));
    let layout = bench.path().join("third");
    for blob in std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|blob| blob.unwrap().path()) {
        if std::fs::metadata(&blob).unwrap().len() > 100_000 {
            // Nobody opens it: who did would say that it is gone.
            std::fs::remove_file(blob).unwrap();
        }
    }
    let why = refused(quota.ensure(&store, &third, &()));
    for part in ["5.06 MiB", "your images take 5.0", "compressed", "berth image rm", "administrator"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert_eq!(there(&store).len(), 2);
    // A quota that became smaller takes nothing away, and what was given back makes room.
    drop(with(MIB).ensure(&store, &first, &()).unwrap());
    store.take_back(&first.digest, geteuid().as_raw()).unwrap();
    assert!(is_about(used(&store), 3), "{}", used(&store));
    drop(quota.ensure(&store, &first, &()).unwrap());
}

#[test]
fn a_bomb_ends_at_the_quota_and_leaves_nothing() {
    let bench = Bench::new();
    let store = bench.store();
    let kept = image(&bench, "kept", vec![layer(0, MIB)]);
    drop(with(4 * MIB).ensure(&store, &kept, &()).unwrap());
    let one = vec![Tar::new().file("zeros", &vec![0; 64 * MIB]).end()];
    // In many files, in several layers at a time, beside one that is small enough.
    let files = |name: &str| {
        let content = vec![0; MIB / 4];
        (0..10).fold(Tar::new(), |tar, n| tar.file(&format!("{name}{n}"), &content)).end()
    };
    let many = vec![layer(7, 1000), files("a"), files("b"), files("c")];
    for (name, layers) in [("one", one), ("many", many)] {
        let bomb = image(&bench, name, layers);
        let why = refused(with(4 * MIB).ensure(&store, &bomb, &()));
        assert!(why.contains("4.00 MiB") && why.contains("more than is left"), "{why}");
        bench.assert_no_work();
        assert_eq!(there(&store), std::slice::from_ref(&kept.digest));
        let layers = std::fs::read_dir(store.root().join("layers")).unwrap().count();
        assert_eq!(layers, 1, "layers of {name} are left");
        let df = store.df().unwrap();
        assert_eq!((df.layers, df.bytes), (1, MIB as u64));
        // Others may have it.
        drop(with(1 << 30).ensure(&store, &bomb, &()).unwrap());
        store.take_back(&bomb.digest, geteuid().as_raw()).unwrap();
        store.remove(&bomb.digest).unwrap();
    }
}

/// Small files, empty ones, and directories that names imply: of each a filesystem has only so many, and the blob of thousands has
/// a hundred KiB.
#[test]
fn very_many_files_count_by_the_blocks_that_they_take() {
    let bench = Bench::new();
    let (store, me) = (bench.store(), geteuid().as_raw());
    let files = |content: &'static [u8]| {
        (0..5000).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), content)).end()
    };
    let below = "a/".repeat(40);
    let deep = (0..125).fold(Tar::new(), |tar, n| tar.file(&format!("d{n}/{below}f"), b"")).end();
    for (name, archive) in [("small", files(b"x")), ("empty", files(b"")), ("deep", deep)] {
        let many = image(&bench, name, vec![archive]);
        let why = refused(with(10 * MIB).ensure(&store, &many, &()));
        assert!(why.contains("more than is left"), "{name}: {why}");
        assert!(there(&store).is_empty());
        bench.assert_no_work();
        drop(with(64 * MIB).ensure(&store, &many, &()).unwrap());
        assert!(used(&store) >= 5000 * 4096, "{name}: {}", used(&store));
        // As little as its files have, it is no less for who has it from somebody else.
        store.grant(&many, 54_001).unwrap();
        store.take_back(&many.digest, me).unwrap();
        let why = refused(with(10 * MIB).ensure(&store, &many, &()));
        assert!(why.contains("this one needs") && store.df().unwrap().bytes < MIB as u64, "{name}: {why}");
        store.take_back(&many.digest, 54_001).unwrap();
        store.remove(&many.digest).unwrap();
    }
    // Names of one file are one file.
    let linked = (0..5000).fold(Tar::new().file("f", b"x"), |tar, n| tar.hardlink(&format!("l{n}"), "f"));
    let linked = image(&bench, "linked", vec![linked.end()]);
    drop(with(10 * MIB).ensure(&store, &linked, &()).unwrap());
}

#[test]
fn an_image_that_is_there_for_others_counts_by_what_it_takes() {
    let bench = Bench::new();
    let store = bench.store();
    let theirs = image(&bench, "theirs", vec![Tar::new().file("zeros", &vec![0; 8 * MIB]).end()]);
    drop(helpers(None, None, vec![]).ensure(&store, &theirs, &()).unwrap());
    let (me, other) = (geteuid().as_raw(), 54_001);
    store.grant(&theirs, other).unwrap();
    store.take_back(&theirs.digest, me).unwrap();
    let why = refused(with(4 * MIB).ensure(&store, &theirs, &()));
    assert!(why.contains("needs 8.0"), "{why}");
    // It stays for whom it was.
    assert_eq!(there(&store), std::slice::from_ref(&theirs.digest));
    assert!(store.is_granted(&theirs, other).unwrap() && !store.is_granted(&theirs, me).unwrap());
    assert_eq!(used(&store), 0);
}

#[test]
fn imports_of_one_user_at_the_same_time_stay_within_the_quota() {
    let bench = Bench::new();
    let images: Vec<_> = (0..4).map(|n| image(&bench, &format!("i{n}"), vec![layer(n, 2 * MIB)])).collect();
    let done: Vec<bool> = std::thread::scope(|scope| {
        let one = |image| {
            let bench = &bench;
            scope.spawn(move || with(5 * MIB).ensure(&bench.store(), image, &()).is_ok())
        };
        let all: Vec<_> = images.iter().map(one).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(done.iter().filter(|done| **done).count(), 2, "{done:?}");
    assert!(is_about(used(&bench.store()), 4), "{}", used(&bench.store()));
    assert_eq!(there(&bench.store()).len(), 2);
    bench.assert_no_work();
}
