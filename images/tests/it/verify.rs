//! Damage of every kind is found and named, and repaired without taking anything from what runs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use berth_images::{
    Algorithm, Digest, ErrorKind, LayerForm, PreparedImage, Registries, Store, Thing, open_source,
};

use crate::support::{Bench, Compression, ImageBuilder, Tar, resolve_text};

/// Files of all kinds, a sparse one, one that its owner may not read, whiteouts, names of every length.
fn layer() -> Vec<u8> {
    let long = "long/".repeat(30) + "name";
    let sparse: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"100000"),
    ];
    // Two pieces, of three and four bytes.
    let mut map = b"2\n10\n3\n99996\n4\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"onefour");
    Tar::new()
        .dir("etc/", 0o755)
        .file("etc/plain", b"plain text\n")
        .file("etc/empty", b"")
        .entry("etc/closed", b'0', 0o000, "", b"nobody reads it")
        .entry("etc/setuid", b'0', 0o4755, "", b"#!/bin/sh\n")
        .symlink("etc/link", "plain")
        .hardlink("etc/linked", "etc/plain")
        .entry("etc/pipe", b'6', 0o600, "", b"")
        .entry("etc/null", b'3', 0o666, "", b"")
        .file("etc/.wh.gone", b"")
        .pax(&[("SCHILY.xattr.user.kept", b"value"), ("SCHILY.xattr.security.capability", b"x")])
        .file("etc/attributes", b"with attributes")
        .pax(&[("path", long.as_bytes())])
        .file("short", &vec![7; 300_000])
        .pax(sparse)
        .file("GNUSparseFile/sparse", &map)
        .end()
}

struct Damaged {
    bench: Bench,
    store: Store,
    image: PreparedImage,
}

impl Damaged {
    fn new() -> Damaged {
        Damaged::of(Bench::new(), vec![Tar::new().file("below", b"below").end(), layer()])
    }

    fn of(bench: Bench, layers: Vec<Vec<u8>>) -> Damaged {
        let store = bench.store();
        let builder = ImageBuilder::new(layers);
        let image = bench.import_built(&builder.compressed(Compression::Gzip)).unwrap();
        Damaged { bench, store, image }
    }

    /// The upper layer's directory.
    fn root(&self) -> &Path {
        &self.image.layers[0]
    }

    /// A file beside it.
    fn beside(&self, name: &str) -> PathBuf {
        self.root().with_file_name(name)
    }

    fn problems(&self) -> Vec<String> {
        self.store.verify(&[]).unwrap().problems()
    }

    fn repair(&self) {
        let text = format!("oci:{}", self.bench.layout().display());
        let resolved = resolve_text(&text, &berth_images::Credentials::anonymous(), false).unwrap();
        assert_eq!(self.store.origin(&resolved.digest).unwrap().source, text);
        let source =
            open_source(&resolved, &Registries::default(), &berth_images::Credentials::anonymous()).unwrap();
        let report = self.store.verify(&[]).unwrap();
        let layers: Vec<Digest> =
            report.damaged.iter().filter(|d| d.thing == Thing::Layer).map(|d| d.digest.clone()).collect();
        self.store.repair(&resolved, &layers, source.as_ref(), &()).unwrap();
        assert_eq!(self.problems(), Vec::<String>::new());
    }
}

#[test]
fn a_store_is_as_it_was_fetched() {
    let damaged = Damaged::new();
    let report = damaged.store.verify(&[]).unwrap();
    assert_eq!(report.problems(), Vec::<String>::new());
    assert_eq!((report.images, report.layers, report.without_content), (1, 2, vec![]));
    assert!(damaged.store.verify(&[Digest::of(Algorithm::Sha256, b"none")]).is_err());
}

#[test]
fn every_kind_of_damage_is_found_named_and_repaired() {
    type Harm = fn(&Path);
    let table: &[(&str, Harm, &str)] = &[
        (
            "a byte, with size and time as before",
            |r| change_a_byte(&r.join("etc/plain")),
            "/etc/plain its content was changed",
        ),
        ("a byte of a sparse file", |r| change_a_byte(&r.join("sparse")), "/sparse its content was changed"),
        (
            "a removed file",
            |r| std::fs::remove_file(r.join("etc/attributes")).unwrap(),
            "/etc/attributes is missing",
        ),
        ("an added file", |r| std::fs::write(r.join("etc/added"), "").unwrap(), "/etc/added was added"),
        (
            "an added directory",
            |r| std::fs::create_dir_all(r.join("etc/new/deep")).unwrap(),
            "/etc/new/deep was added",
        ),
        (
            "a mode",
            |r| std::fs::set_permissions(r.join("etc/plain"), PermissionsExt::from_mode(0o666)).unwrap(),
            "/etc/plain has mode 100666 and not 100644",
        ),
        (
            "an attribute",
            |r| xattr::set(r.join("etc/attributes"), "user.kept", b"other").unwrap(),
            "other extended attributes",
        ),
        (
            "an added attribute",
            |r| xattr::set(r.join("etc/plain"), "user.new", b"x").unwrap(),
            "other extended attributes",
        ),
        (
            "a link",
            |r| {
                std::fs::remove_file(r.join("etc/link")).unwrap();
                std::os::unix::fs::symlink("/etc/shadow", r.join("etc/link")).unwrap();
            },
            "other target",
        ),
        ("a whiteout", |r| std::fs::remove_file(r.join("etc/gone")).unwrap(), "/etc/gone is missing"),
        (
            "a file in place of a directory",
            |r| {
                std::fs::remove_dir_all(r.join("long")).unwrap();
                std::fs::write(r.join("long"), "x").unwrap();
            },
            "/long has mode 100",
        ),
        (
            "a shorter file",
            |r| std::fs::File::options().write(true).open(r.join("etc/plain")).unwrap().set_len(3).unwrap(),
            "has size 3",
        ),
        (
            "the listing",
            |r| std::fs::write(r.parent().unwrap().join("files.zst"), "x").unwrap(),
            "image store: layer",
        ),
        (
            "the skeleton",
            |r| std::fs::remove_file(r.parent().unwrap().join("skeleton.zst")).unwrap(),
            "skeleton.zst",
        ),
    ];
    for (what, harm, words) in table {
        let damaged = Damaged::new();
        harm(damaged.root());
        let problems = damaged.problems();
        assert!(problems.iter().any(|p| p.contains(words)), "{what}: {problems:?}");
        let report = damaged.store.verify(&[]).unwrap();
        assert!(report.damaged.iter().all(|d| d.images == [damaged.image.digest.clone()]), "{what}");
        damaged.repair();
    }
    if rustix::process::geteuid().is_root() {
        let damaged = Damaged::new();
        std::os::unix::fs::lchown(damaged.root().join("etc/link"), Some(12345), None).unwrap();
        let problems = damaged.problems();
        assert!(problems.len() == 1 && problems[0].contains("/etc/link has owner 12345:"), "{problems:?}");
        damaged.repair();
    }
}

/// Changes the last byte and puts the time back.
fn change_a_byte(file: &Path) {
    let before = std::fs::metadata(file).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let open = std::fs::File::options().write(true).open(file).unwrap();
    std::io::Write::write_all(&mut &open, &bytes).unwrap();
    open.set_modified(before).unwrap();
}

#[test]
fn what_the_image_itself_closes_to_its_owner_is_no_damage() {
    let bench = Bench::new();
    let closed = Tar::new()
        .dir("shut/", 0o000)
        .file("shut/inside", b"x")
        .dir("seen/", 0o400)
        .file("seen/inside", b"y")
        .dir("entered/", 0o300)
        .file("entered/inside", b"z");
    let image = bench.import(vec![closed.end()]).unwrap();
    let report = bench.store().verify(&[]).unwrap();
    assert_eq!(report.problems(), Vec::<String>::new());
    // Root reads it all the same.
    let root = rustix::process::geteuid().is_root();
    assert_eq!(report.without_content.is_empty(), root);
    let target = bench.path().join("exported");
    let exported = bench.store().export(&image.digest, &target, true, &());
    assert_eq!((exported.is_ok(), target.exists()), (root, root));
    if let Err(e) = exported {
        let words = e.to_string();
        assert_eq!(e.kind(), ErrorKind::Denied, "{words}");
        assert!(words.contains("closed to its owner") && words.contains("skopeo"), "{words}");
    }
}

#[test]
fn blobs_and_records() {
    let damaged = Damaged::new();
    let blobs = damaged.store.root().join("blobs");
    let all: Vec<_> = std::fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(all.len(), 2);
    std::fs::remove_file(&all[0]).unwrap();
    std::fs::write(&all[1], "{}").unwrap();
    let problems = damaged.problems();
    assert!(problems.len() == 2 && problems.iter().any(|p| p.contains("is missing")), "{problems:?}");
    assert!(problems.iter().any(|p| p.contains("does not have its digest")), "{problems:?}");
    damaged.repair();
    let record = format!("images/{}.json", damaged.image.digest.to_string().replace(':', "-"));
    std::fs::write(damaged.store.root().join(record), "{").unwrap();
    let report = damaged.store.verify(&[]).unwrap();
    assert_eq!((report.images, report.damaged[0].thing), (0, Thing::Record));
}

#[test]
fn what_runs_keeps_a_damaged_layer_until_it_ends() {
    let damaged = Damaged::new();
    // As a mounted container holds it: by the directory, not by its name.
    let held = std::fs::File::open(damaged.root()).unwrap();
    let inside = |name: &str| format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&held));
    std::fs::write(damaged.root().join("etc/added"), "still there").unwrap();
    damaged.repair();
    assert_eq!(std::fs::read_to_string(inside("etc/added")).unwrap(), "still there");
    assert_eq!(std::fs::read_to_string(inside("etc/plain")).unwrap(), "plain text\n");
    assert!(!damaged.root().join("etc/added").exists());
    let replaced =
        || damaged.bench.records("layers").iter().filter(|name| name.contains(".replaced-")).count();
    assert_eq!(replaced(), 1);
    // Pruning takes it away when nobody uses an image of that layer any more.
    damaged.store.prune(&berth_images::PruneOptions::default()).unwrap();
    assert_eq!(replaced(), 1);
    let Damaged { bench, store, image } = damaged;
    drop(image);
    store.prune(&berth_images::PruneOptions::default()).unwrap();
    assert_eq!(bench.records("layers").iter().filter(|name| name.contains(".replaced-")).count(), 0);
    assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
}

/// Files whose place others take, in both forms: small and large ones, sparse ones, of several names, below a directory that goes.
fn twice() -> Vec<u8> {
    let large: Vec<u8> = (0..3 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Tar::new()
        .file("a", b"first")
        .file("large", &large)
        .hardlink("linked", "a")
        .file("a", b"second")
        .dir("d", 0o755)
        .file("d/one", b"one")
        .file("d/two", &large[..5000])
        .hardlink("d/three", "large")
        .entry("d/shut", b'0', 0o000, "", b"nobody reads it")
        .file("linked", b"a file of its own")
        .file("d", b"a file")
        .symlink("large", "a")
        .file("a", b"")
        .file("a", b"third")
        .end()
}

#[test]
fn an_archive_in_which_files_take_the_place_of_others_is_made_again() {
    for form in crate::support::FORMS {
        let bench = Bench::of(form);
        let image = bench.import(vec![twice()]).unwrap();
        let (report, store) = (bench.store().verify(&[]).unwrap(), bench.store());
        assert_eq!((report.problems(), report.without_content.len()), (vec![], 0));
        let Some(store) = exportable(store, form) else { continue };
        let target = bench.path().join("exported");
        store.export(&image.digest, &target, true, &()).unwrap();
        // What it is now is what it was.
        let again = Bench::of(form);
        let moved = again.import_text(&format!("oci:{}", target.display())).unwrap();
        let layer = |image: &PreparedImage| image.layers[0].parent().unwrap().file_name().unwrap().to_owned();
        assert_eq!(layer(&moved), layer(&image));
        if form == LayerForm::Directory {
            std::fs::write(image.layers[0].join("a"), "tHird").unwrap();
            assert_eq!(bench.store().verify(&[]).unwrap().damaged.len(), 1);
        }
    }
}

/// Changes a byte in the middle.
fn change_the_middle(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(file, bytes).unwrap();
}

fn cut(file: &Path) {
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
}

/// All files of the layer, or its image, are as they were then; but nothing can be exported, pushed or given to other nodes.
#[test]
fn damage_of_what_an_archive_is_made_again_of_is_found_and_repaired_in_both_forms() {
    type Harm = fn(&Path);
    let harms: &[(Harm, &str)] = &[
        (change_a_byte, "was changed"),
        (change_the_middle, "was changed"),
        (cut, "was changed"),
        (|file| std::fs::remove_file(file).unwrap(), "is missing"),
    ];
    for form in crate::support::FORMS {
        for name in ["skeleton.zst", "replaced"] {
            for (harm, words) in harms {
                let damaged = Damaged::of(Bench::of(form), vec![twice()]);
                harm(&damaged.beside(name));
                let problems = damaged.problems();
                let named = problems.iter().all(|p| p.contains(&format!(": {name}, ")) && p.contains(words));
                assert!(problems.len() == 1 && named, "{form} {name} {words}: {problems:?}");
                damaged.repair();
            }
            let damaged = Damaged::of(Bench::of(form), vec![twice()]);
            change_the_middle(&damaged.beside(name));
            let target = damaged.bench.path().join("exported");
            if let Some(store) = exportable(damaged.bench.store(), form) {
                let why = store.export(&damaged.image.digest, &target, true, &()).unwrap_err().to_string();
                assert!(why.contains("layer sha256:") && why.contains("verify --repair"), "{name}: {why}");
            }
        }
        let damaged = Damaged::of(Bench::of(form), vec![Tar::new().file("only", b"only").end()]);
        std::fs::write(damaged.beside("replaced"), "x").unwrap();
        let problems = damaged.problems();
        assert!(problems.len() == 1 && problems[0].contains("replaced, of which"), "{form}: {problems:?}");
        damaged.repair();
    }
}

/// A record as an earlier version wrote it, without sums of what stands beside an image.
#[test]
fn where_no_sums_were_noted_the_archive_is_made_again_to_look_for_damage() {
    let old = || {
        let damaged = Damaged::of(Bench::of(LayerForm::Erofs), vec![twice()]);
        let place = damaged.beside("layer.json");
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&place).unwrap()).unwrap();
        assert!(record.as_object_mut().unwrap().remove("archive").is_some());
        std::fs::write(place, record.to_string()).unwrap();
        damaged
    };
    let damaged = old();
    assert_eq!(damaged.problems(), Vec::<String>::new());
    change_a_byte(&damaged.beside("skeleton.zst"));
    assert!(damaged.problems()[0].contains("skeleton.zst"), "{:?}", damaged.problems());
    damaged.repair();
    let damaged = old();
    let Some(store) = exportable(damaged.bench.store(), LayerForm::Erofs) else { return };
    assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
    std::fs::remove_file(damaged.beside("replaced")).unwrap();
    let found = store.verify(&[]).unwrap();
    assert_eq!(found.damaged.len(), 1, "{:?}", found.problems());
}

/// Root alone reads the files of an image, by mounting it.
fn exportable(store: Store, form: LayerForm) -> Option<Store> {
    match form {
        LayerForm::Directory => Some(store),
        LayerForm::Erofs if crate::erofs::mounts_files() => Some(store.mounting(crate::erofs::mount)),
        LayerForm::Erofs => None,
    }
}

#[test]
fn of_holes_that_are_replaced_no_more_is_kept_than_the_archive_has() {
    let bench = Bench::new();
    // A file of a terabyte that has nothing, twice.
    let giant = |tar: Tar| {
        tar.pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"giant"),
            ("GNU.sparse.realsize", b"1000000000"),
        ])
        .entry(
            "giant",
            b'0',
            0o644,
            "",
            &[b"1\n999999999\n1\n".as_slice(), &[0; 512 - 14], b"x"].concat(),
        )
    };
    let image = bench.import(vec![giant(giant(Tar::new())).end()]).unwrap();
    let report = bench.store().verify(&[]).unwrap();
    assert_eq!((report.problems(), report.without_content.len()), (vec![], 1));
    let target = bench.path().join("exported");
    let why = bench.store().export(&image.digest, &target, true, &()).unwrap_err().to_string();
    assert!(why.contains("cannot be made again") && why.contains("skopeo copy"), "{why}");
}
