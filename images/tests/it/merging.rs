//! Images of more layers than are mounted at once: the lowest are one, and that is what they are on one another.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_images::{Digest, LayerForm, PreparedImage, Store};
use proptest::prelude::*;

use crate::erofs::Mounted;
use crate::support::{Bench, ImageBuilder, Tar, resolve_text};
use berth_images::{Credentials, Registries, open_source};

/// A store on a kernel that mounts so many layers.
fn store(bench: &Bench, most: usize) -> Store {
    bench.store().stacking(most)
}

/// Imports into such a store what is in the bench's layout.
fn ensure(bench: &Bench, store: &Store) -> PreparedImage {
    let text = format!("oci:{}", bench.layout().display());
    let resolved = resolve_text(&text, &Credentials::anonymous(), false).unwrap();
    let source = open_source(&resolved, &Registries::default(), &Credentials::anonymous()).unwrap();
    store.ensure(&resolved, source.as_ref(), &()).unwrap_or_else(|e| panic!("{e}"))
}

/// Without the number of links: overlayfs tells of those, too, that a layer above hides.
const LOOK: &str = "find . -mindepth 1 -printf '%P %y %m %T@ %l\\n' | grep -v ' d ' | sort; find . -mindepth 1 -type d \
                    -printf '%P %m\\n' | sort; for f in $(find . -type f | sort); do echo \"$f=$(cat $f)\"; done";

/// What is in a directory.
fn seen(place: &Path) -> String {
    let told = Command::new("sh").args(["-c", LOOK]).current_dir(place).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8_lossy(&told.stdout).into_owned()
}

/// What the kernel shows of layers, the highest first, on one another.
fn stacked(layers: &[PathBuf], bench: &Bench) -> String {
    let mount = bench.path().join("mnt");
    std::fs::create_dir_all(&mount).unwrap();
    // Of one alone an overlay would need an upper one.
    let nothing = bench.path().join("nothing");
    std::fs::create_dir_all(&nothing).unwrap();
    let lower: Vec<String> = layers.iter().chain([&nothing]).map(|l| l.display().to_string()).collect();
    let mount = mount.display();
    let script = format!(
        "mount -t overlay overlay -o userxattr,lowerdir={} {mount} && cd {mount} && {LOOK}",
        lower.join(":")
    );
    let told = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .output()
        .unwrap_or_else(|e| panic!("cannot run unshare: {e}; install the Debian package util-linux"));
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8_lossy(&told.stdout).into_owned()
}

/// What a layer does with a name.
#[derive(Clone, Copy, Debug)]
enum Does {
    Nothing,
    File,
    Directory,
    Link,
    HardLink,
    Hides,
    HidesAndFile,
    HidesAndDirectory,
    HidesBelow,
}

/// Parents first.
const NAMES: [&str; 9] = ["a", "a/b", "a/b/c", "a/b/d", "a/e", "f", "g", "g/h", "g/i"];

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![
        4 => Just(Does::Nothing),
        3 => Just(Does::File),
        3 => Just(Does::Directory),
        1 => Just(Does::Link),
        1 => Just(Does::HardLink),
        2 => Just(Does::Hides),
        1 => Just(Does::HidesAndFile),
        1 => Just(Does::HidesAndDirectory),
        1 => Just(Does::HidesBelow),
    ]
}

/// The archive of a layer; `late`: what hides comes last.
fn archive(number: usize, all: &[Does], late: bool) -> Vec<u8> {
    let (mut tar, mut marks) = (Tar::new(), Vec::new());
    let mut files: Vec<&str> = Vec::new();
    let mut closed: Vec<&str> = Vec::new();
    for (name, does) in NAMES.iter().zip(all) {
        let (parent, last) = name.rsplit_once('/').unwrap_or(("", name));
        // Below what is no directory in this layer there is nothing.
        if closed.iter().any(|other| name.starts_with(&format!("{other}/"))) {
            continue;
        }
        let mark = format!("{parent}{}.wh.{last}", if parent.is_empty() { "" } else { "/" });
        if matches!(does, Does::Hides | Does::HidesAndFile | Does::HidesAndDirectory) {
            marks.push(mark);
        }
        // What the archive does not describe a stack of layers shows otherwise than what has been merged: see `unpack::merge`.
        let below = NAMES
            .iter()
            .zip(all)
            .any(|(other, does)| other.starts_with(&format!("{name}/")) && !matches!(does, Does::Nothing));
        match does {
            Does::File | Does::HidesAndFile => {
                tar = tar.file(name, format!("{number} {name}").as_bytes());
                files.push(name);
                closed.push(name);
            }
            Does::Link => {
                tar = tar.symlink(name, &format!("to-{number}"));
                closed.push(name);
            }
            Does::HardLink if !files.is_empty() => {
                tar = tar.hardlink(name, files[0]);
                closed.push(name);
            }
            Does::Directory | Does::HidesAndDirectory => tar = tar.dir(name, 0o700 + (number % 8) as u32),
            Does::HidesBelow => {
                tar = tar.dir(name, 0o755);
                marks.push(format!("{name}/.wh..wh..opq"));
            }
            Does::Hides => closed.push(name),
            Does::Nothing | Does::HardLink if below => tar = tar.dir(name, 0o750),
            Does::Nothing | Does::HardLink => {}
        }
    }
    let hide = |tar: Tar| marks.iter().fold(tar, |tar, mark| tar.file(mark, b""));
    if late {
        return hide(tar).end();
    }
    let first = hide(Tar::new());
    Tar([first.0, tar.0].concat()).end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// The kernel shows the same of all layers on one another, of some as one below the others, and of all as one.
    #[test]
    fn layers_that_are_one_are_what_they_are_on_one_another(
        all in prop::collection::vec((prop::collection::vec(does(), NAMES.len()), any::<bool>()), 2..6),
        most in 1usize..4,
        erofs in any::<bool>(),
    ) {
        let root = rustix::process::geteuid().is_root();
        let bench = Bench::of(if erofs && root { LayerForm::Erofs } else { LayerForm::Directory });
        // A file of its own in each: no two are the same.
        let layers: Vec<Vec<u8>> = all
            .iter()
            .enumerate()
            .map(|(n, (does, late))| [Tar::new().file(&format!("own-{n}"), b"own").0, archive(n, does, *late)].concat())
            .collect();
        let layers_of = layers.len();
        ImageBuilder::new(layers).write(&bench.layout());
        let plain = Bench::new();
        std::fs::remove_dir(plain.layout()).unwrap();
        std::os::unix::fs::symlink(bench.layout(), plain.path().join("layout")).unwrap();
        let before = ensure(&plain, &store(&plain, 999));
        prop_assert_eq!(before.layers.len(), layers_of);
        let wanted = stacked(&before.layers, &plain);
        let image = ensure(&bench, &store(&bench, most));
        prop_assert_eq!(image.layers.len(), most.min(layers_of));
        // An ordinary user's namespace mounts no image: root's does it beforehand.
        let mounted: Vec<(PathBuf, Option<Mounted>)> = image
            .layers
            .iter()
            .map(|layer| {
                if layer.is_dir() { (layer.clone(), None) } else {
                    let mounted = Mounted::new(layer).unwrap();
                    (mounted.place().to_path_buf(), Some(mounted))
                }
            })
            .collect();
        let paths: Vec<PathBuf> = mounted.iter().map(|(path, _)| path.clone()).collect();
        prop_assert_eq!(stacked(&paths, &bench), wanted.clone());
        let alone = ensure(&plain, &store(&plain, 1));
        prop_assert_eq!(alone.layers.len(), 1);
        let names = seen(&alone.layers[0]);
        prop_assert_eq!(names, wanted);
        store(&plain, 1).verify(&[]).map(|report| assert_eq!(report.problems(), Vec::<String>::new())).unwrap();
    }
}

fn tower(layers: usize) -> Vec<Vec<u8>> {
    (0..layers)
        .map(|n| {
            let layer = Tar::new().dir("d", 0o755).file(&format!("d/{n}"), format!("{n}").as_bytes());
            let layer = if n > 0 { layer.file(&format!("d/.wh.{}", n - 1), b"") } else { layer };
            layer.entry("d/secret", b'0', 0o000, "", format!("of {n}").as_bytes()).end()
        })
        .collect()
}

#[test]
fn what_is_one_goes_with_its_image_and_is_made_again_where_it_is_damaged() {
    for form in [LayerForm::Directory, LayerForm::Erofs] {
        let bench = Bench::of(form);
        ImageBuilder::new(tower(6)).write(&bench.layout());
        let prepared = ensure(&bench, &store(&bench, 3));
        assert_eq!((prepared.layers.len(), bench.records("layers").len()), (3, 7));
        let digest = prepared.digest.clone();
        let merged = prepared.layers[2].clone();
        assert!(merged.display().to_string().contains("/layers/merged-sha256-"), "{}", merged.display());
        // Nothing is done twice.
        let inode = std::fs::metadata(&merged).unwrap().ino();
        drop(prepared);
        let again = store(&bench, 3).prepared(&digest).unwrap().unwrap();
        assert_eq!((&again.layers[2], std::fs::metadata(&again.layers[2]).unwrap().ino()), (&merged, inode));
        drop(again);
        assert_eq!(store(&bench, 3).inspect(&digest).unwrap().merged_layers, Some(4));
        // It takes room, and counts.
        let usage = store(&bench, 3).df().unwrap();
        assert_eq!(usage.layers, 6);
        assert!(usage.bytes > usage.layers as u64 * 4, "{usage:?}");
        assert!(store(&bench, 3).verify(&[]).unwrap().damaged.is_empty());
        match form {
            LayerForm::Directory => std::fs::write(merged.join("d/3"), "3 and more").unwrap(),
            LayerForm::Erofs => {
                use std::io::Write;
                std::fs::File::options().append(true).open(&merged).unwrap().write_all(b"more").unwrap();
            }
        }
        let report = store(&bench, 3).verify(&[]).unwrap();
        assert_eq!(report.damaged.len(), 1, "{:?}", report.problems());
        let damaged: Vec<Digest> = report.damaged.iter().map(|damage| damage.digest.clone()).collect();
        let store = store(&bench, 3);
        let origin = store.origin(&digest).unwrap();
        let source = open_source(&origin, &Registries::default(), &Credentials::anonymous()).unwrap();
        store.repair(&origin, &damaged, source.as_ref(), &()).unwrap();
        assert!(store.verify(&[]).unwrap().damaged.is_empty());
        assert_eq!(bench.records("layers").len(), 7);
        store.remove(&digest).unwrap();
        bench.assert_empty();
    }
}

/// Containers run on a copy of the lowest layers: what is changed in that is no layer's damage.
#[test]
fn a_changed_content_of_what_is_one_is_found_and_mended() {
    let bench = Bench::of(LayerForm::Directory);
    let layers = (0..4).map(|n| Tar::new().file(&format!("{n}"), format!("of {n}").as_bytes()).end());
    ImageBuilder::new(layers.collect()).write(&bench.layout());
    let prepared = ensure(&bench, &store(&bench, 2));
    let (digest, merged) = (prepared.digest.clone(), prepared.layers[1].clone());
    drop(prepared);
    let store = store(&bench, 2);
    let report = store.verify(&[]).unwrap();
    assert_eq!((report.problems(), report.without_content), (vec![], vec![]));
    // As long as it was, and with the time put back.
    let file = merged.join("1");
    let time = std::fs::metadata(&file).unwrap().modified().unwrap();
    std::fs::write(&file, "evil").unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    let report = store.verify(&[]).unwrap();
    let problems = report.problems();
    assert!(problems.len() == 1 && problems[0].ends_with(": /1 its content was changed"), "{problems:?}");
    assert_eq!(report.damaged[0].images, std::slice::from_ref(&digest));
    let damaged: Vec<Digest> = report.damaged.iter().map(|damage| damage.digest.clone()).collect();
    let origin = store.origin(&digest).unwrap();
    let source = open_source(&origin, &Registries::default(), &Credentials::anonymous()).unwrap();
    store.repair(&origin, &damaged, source.as_ref(), &()).unwrap();
    assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "of 1");
}

#[test]
fn another_kernel_has_its_own_share_of_layers_as_one() {
    let bench = Bench::of(LayerForm::Erofs);
    ImageBuilder::new(tower(6)).write(&bench.layout());
    let all = ensure(&bench, &store(&bench, 999));
    assert!(all.layers.len() == 6 && all.layers.iter().all(|layer| layer.is_file()));
    let digest = all.digest.clone();
    drop(all);
    assert!(store(&bench, 4).prepared(&digest).unwrap().is_none(), "so many are not mounted");
    for most in [4, 2] {
        let some = ensure(&bench, &store(&bench, most));
        assert_eq!(some.layers.len(), most);
        // Of those that were images the lowest came again, as directories, and what is made of them is an image.
        assert!(some.layers.iter().all(|layer| layer.is_file()));
        let kept = bench.records("layers").into_iter().filter(|name| !name.starts_with("merged-"));
        let directories =
            kept.filter(|name| bench.path().join("store/layers").join(name).join("fs").is_dir()).count();
        assert_eq!(directories, 6 - most + 1);
    }
    assert_eq!(ensure(&bench, &store(&bench, 999)).layers.len(), 6);
    // Of two that there were one is left, and none where nobody needs one.
    store(&bench, 2).prune(&Default::default()).unwrap();
    let merged = || bench.records("layers").iter().filter(|name| name.starts_with("merged-")).count();
    assert_eq!(merged(), 1);
}

#[test]
fn a_directory_that_is_closed_to_its_owner_is_named_where_layers_cannot_be_one() {
    as_an_ordinary_user(closed_to_its_owner);
}

/// Root passes by what is closed: its tests have another thread for it.
fn as_an_ordinary_user(test: fn()) {
    let become_one = || {
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (rustix::process::Uid::from_raw(54_321), rustix::process::Gid::from_raw(54_321));
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        }
        test();
    };
    std::thread::scope(|scope| scope.spawn(become_one).join()).unwrap();
}

fn closed_to_its_owner() {
    let bench = Bench::new();
    let closed = Tar::new().entry("closed", b'5', 0o000, "", b"").file("closed/x", b"x").end();
    ImageBuilder::new([vec![closed], tower(3)].concat()).write(&bench.layout());
    let text = format!("oci:{}", bench.layout().display());
    let resolved = resolve_text(&text, &Credentials::anonymous(), false).unwrap();
    let source = open_source(&resolved, &Registries::default(), &Credentials::anonymous()).unwrap();
    let error = store(&bench, 2).ensure(&resolved, source.as_ref(), &()).unwrap_err().to_string();
    for part in ["4 layers", "mounts 2 at once", "lowest 3", "closed to its owner", "at most 2 layers"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(ensure(&bench, &store(&bench, 4)).layers.len(), 4);
}
