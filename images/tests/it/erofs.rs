//! Layers as EROFS images: `fsck.erofs` accepts what is written, the kernel mounts it, and it is what the directory of
//! the same layer is. Mounting takes root; whoever else runs these tests has the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_images::{Algorithm, Digest, LayerForm, PreparedImage};
use proptest::prelude::*;

use crate::hostile::ATTRIBUTES;
use crate::support::{Bench, FORMS, Tar, only_layer, tool};

/// An image mounted for as long as this lives.
pub struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` to whoever may not mount.
    pub fn new(image: &Path) -> Option<Mounted> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        // mount(8) makes a loop device where the kernel takes no file (before 6.12).
        let mounted =
            Command::new("mount").args(["-t", "erofs", "-o", "ro"]).arg(image).arg(place.path()).output();
        let mounted = mounted.unwrap_or_else(|e| panic!("cannot run mount: {e}"));
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        Some(Mounted(place))
    }

    pub fn place(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.0.path()).status();
        assert!(done.is_ok_and(|s| s.success()), "cannot unmount {}", self.0.path().display());
    }
}

fn fsck(image: &Path) {
    tool("erofs-utils", "fsck.erofs", &[image.to_str().unwrap()]);
}

/// Everything about a file that a layer keeps.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    links: u64,
    device: u64,
    size: u64,
    mtime: Option<(i64, i64)>,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Tree = BTreeMap<Vec<u8>, Seen>;

/// What is in a tree.
fn tree(root: &Path) -> Tree {
    let mut all = Tree::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", full.display()));
        let kind = meta.file_type();
        let content = if kind.is_file() {
            std::fs::read(&full).unwrap()
        } else if kind.is_symlink() {
            std::fs::read_link(&full).unwrap().into_os_string().into_vec()
        } else {
            Vec::new()
        };
        let names = if kind.is_symlink() { None } else { xattr::list(&full).ok() };
        let xattrs = names
            .into_iter()
            .flatten()
            .map(|name| (name.as_bytes().to_vec(), xattr::get(&full, &name).unwrap().unwrap_or_default()))
            .collect();
        if kind.is_dir() {
            let entries = std::fs::read_dir(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
            todo.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
        }
        // A whiteout is seen by nobody, and the kernel dates it.
        let dated = meta.mode() != 0o020_000;
        let seen = Seen {
            mode: meta.mode(),
            // What a directory's links are is each filesystem's own affair.
            links: if kind.is_dir() { 0 } else { meta.nlink() },
            device: meta.rdev(),
            size: if kind.is_dir() { 0 } else { meta.size() },
            mtime: dated.then(|| (meta.mtime(), meta.mtime_nsec())),
            content,
            xattrs,
        };
        all.insert(path.into_os_string().into_vec(), seen);
    }
    all
}

/// What was left out of the only layer of an image, as its report counts it: devices, overlayfs's attributes, capabilities, other attributes,
/// and set-id bits.
fn left_out(bench: &Bench, image: &PreparedImage) -> [u64; 5] {
    let report = bench.store().inspect(&image.digest).unwrap().layers[0].report.clone().unwrap();
    let (overlay, capabilities) = (report.overlay_attributes_stripped, report.capabilities_stripped);
    [report.devices_skipped, overlay, capabilities, report.other_attributes_skipped, report.setid_stripped]
}

/// Imports a layer in both forms, has `fsck.erofs` look at the image, and compares what the kernel shows of both, and what was left
/// out. Gives the directory and the image, each with what keeps it.
pub fn compared(layer: &[u8]) -> (Bench, PreparedImage, Bench, PreparedImage) {
    let [(a, directory), (b, image)] = FORMS.map(|form| {
        let bench = Bench::of(form);
        let prepared = bench.import(vec![layer.to_vec()]).unwrap_or_else(|e| panic!("{e}"));
        (bench, prepared)
    });
    fsck(only_layer(&image));
    assert_eq!(left_out(&a, &directory), left_out(&b, &image));
    if let Some(mounted) = Mounted::new(only_layer(&image)) {
        same(&tree(only_layer(&directory)), &tree(mounted.0.path()));
    }
    (a, directory, b, image)
}

fn same(directory: &Tree, image: &Tree) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(directory), names(image));
    for (name, seen) in directory {
        assert_eq!(seen, &image[name], "{}", String::from_utf8_lossy(name));
    }
}

/// A layer with everything that a layer may have.
fn everything() -> Vec<u8> {
    let long = "n".repeat(255);
    let mut tar = Tar::new()
        .dir("./", 0o755)
        .dir("etc", 0o755)
        .file("etc/empty", b"")
        .file("etc/small", b"small")
        .entry("bin/tool", b'0', 0o4755, "", b"#!/bin/sh\n")
        .hardlink("bin/tool2", "bin/tool")
        .hardlink("bin/tool3", "bin/tool2")
        .entry("tmp", b'5', 0o1777, "", b"")
        .entry("closed", b'5', 0o700, "", b"")
        .entry("closed/inside", b'0', 0o000, "", b"hidden")
        .symlink("link", "etc/small")
        .hardlink("link2", "link")
        .entry("pipe", b'6', 0o666, "", b"")
        .entry("dev/null", b'3', 0o666, "", b"")
        .file("implied/by/its/name", b"x")
        .file(".wh.gone", b"")
        .file("etc/.wh.gone", b"")
        .dir("opaque", 0o755)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .pax(&[
            ("SCHILY.xattr.user.key", b"value"),
            ("SCHILY.xattr.user.other", b"\0\xff"),
            ("mtime", b"1500000000.123456789"),
        ])
        .file("attributes", b"with attributes")
        .pax(&[("SCHILY.xattr.user.dir", b"directory"), ("mtime", b"-5.5")])
        .dir("attributed", 0o750)
        .pax(&ATTRIBUTES)
        .file("stripped", b"of attributes")
        .pax(&ATTRIBUTES)
        .dir("stripped-too", 0o755)
        .pax(&[("path", b"bytes\xff\xfe/\x01odd")])
        .file("x", b"not UTF-8")
        .pax(&[("path", format!("long/{long}").as_bytes())])
        .file("x", b"long name")
        .pax(&[("linkpath", "t/".repeat(2040).as_bytes())])
        .symlink("far", "x")
        .pax(&[("linkpath", "t".repeat(4032).as_bytes())])
        .symlink("fits", "x")
        // Replaced in part, and altogether.
        .file("twice", b"first")
        .file("twice", b"second")
        .dir("was/a/directory", 0o755)
        .file("was/a/directory/file", b"")
        .file("was", b"a file")
        .file("becomes", b"a file")
        .dir("becomes", 0o755)
        .file("becomes/a", b"directory")
        .hardlink("etc/gone-target", "twice")
        .file("twice", b"third");
    // Around every border of a block and of what fits behind an inode.
    for size in [1usize, 4031, 4032, 4033, 4095, 4096, 4097, 8128, 8191, 8192, 8193, 3 << 20, (1 << 20) + 77]
    {
        let data: Vec<u8> = (0..size).map(|n| (n * 31 + size) as u8).collect();
        tar = tar.file(&format!("sizes/{size}"), &data);
    }
    tar.end()
}

#[test]
fn an_image_is_what_the_directory_is() {
    let (_a, directory, bench, image) = compared(&everything());
    let (devices, set_ids) = (1, u64::from(rustix::process::geteuid().is_root()));
    assert_eq!(left_out(&bench, &image), [devices, 2 * 5, 2, 2, set_ids]);
    for implied in ["implied", "implied/by/its"] {
        assert_eq!(only_layer(&directory).join(implied).metadata().unwrap().mtime(), 0, "{implied}");
    }
    if let Some(mounted) = Mounted::new(only_layer(&image)) {
        let owner = mounted.0.path().join("etc").metadata().unwrap();
        let kept = only_layer(&directory).join("etc").metadata().unwrap();
        assert_eq!((owner.uid(), owner.gid()), (kept.uid(), kept.gid()));
    }
}

#[test]
fn sparse_files_stay_sparse() {
    // GNU's old form: data at the start, in the middle and at the end of 96 MiB.
    let real = 96u64 << 20;
    let pieces: [(u64, &[u8]); 3] = [(0, &[1; 512]), (5 << 20, &[2; 1536]), (real - 512, &[3; 512])];
    let stored: u64 = pieces.iter().map(|(_, data)| data.len() as u64).sum();
    let mut header = Tar::header(b"sparse", b'S', 0o644, stored, b"");
    header[257..265].copy_from_slice(b"ustar  \0");
    for (n, (offset, data)) in pieces.iter().enumerate() {
        let at = 386 + 24 * n;
        header[at..at + 12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
        header[at + 12..at + 24].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    }
    header[483..495].copy_from_slice(format!("{real:011o}\0").as_bytes());
    Tar::seal(&mut header);
    let mut tar = Tar::new().raw(&header);
    for (_, data) in pieces {
        tar = tar.raw(data);
    }
    let (_a, _, _b, image) = compared(&tar.file("after", b"after").end());
    let taken = only_layer(&image).metadata().unwrap();
    assert!(taken.blocks() * 512 < 1 << 20, "{} blocks", taken.blocks());
    assert!(taken.size() > real);
}

#[test]
fn a_directory_may_have_any_number_of_names() {
    let mut tar = Tar::new();
    for n in 0..4_000 {
        tar = tar.file(&format!("huge/{n}"), n.to_string().as_bytes());
    }
    for n in 0..300 {
        tar = tar.dir(&format!("wide/{n}{}", "w".repeat(n % 90)), 0o755);
    }
    let mut deep = String::from("deep");
    for _ in 0..60 {
        deep.push_str("/d");
        tar = tar.file(&format!("{deep}/!before-dot"), b"x");
    }
    compared(&tar.end());
}

#[test]
fn the_same_layer_gives_the_same_bytes() {
    let images = [0, 1].map(|_| {
        let bench = Bench::of(LayerForm::Erofs);
        let prepared = bench.import(vec![everything()]).unwrap();
        std::fs::read(only_layer(&prepared)).unwrap()
    });
    assert!(images[0] == images[1]);
}

#[test]
fn an_image_may_end_with_an_inode() {
    // A block of metadata is filled by files without content, to the last place: 64 have room.
    for files in [63, 64, 65, 128] {
        let tar = (0..files).fold(Tar::new(), |tar, n| tar.file(&format!("{n}"), b""));
        let bench = Bench::of(LayerForm::Erofs);
        fsck(only_layer(&bench.import(vec![tar.end()]).unwrap()));
    }
}

#[test]
fn attributes_beyond_what_an_image_holds_are_left_out_and_counted() {
    let large = vec![b'v'; 60_000];
    let larger = vec![b'v'; 65_536];
    let tar = Tar::new()
        .pax(&[("SCHILY.xattr.user.large", &large), ("SCHILY.xattr.user.larger", &larger)])
        .dir("./", 0o755)
        .pax(&[("SCHILY.xattr.user.large", &large), ("SCHILY.xattr.user.larger", &larger)])
        .file("file", b"content")
        .end();
    let bench = Bench::of(LayerForm::Erofs);
    let image = bench.import(vec![tar]).unwrap();
    fsck(only_layer(&image));
    let details = bench.store().inspect(&image.digest).unwrap();
    // Both of the root's, whose inode shares its block with the superblock, and the larger one of the file.
    assert_eq!(details.layers[0].report.as_ref().unwrap().other_attributes_skipped, 3);
    if let Some(mounted) = Mounted::new(only_layer(&image)) {
        assert_eq!(xattr::get(mounted.0.path().join("file"), "user.large").unwrap(), Some(large));
    }
}

#[test]
fn the_store_looks_after_images_as_after_directories() {
    let bench = Bench::of(LayerForm::Erofs);
    let image =
        bench.import(vec![Tar::new().file("a", b"a").end(), Tar::new().file("b", b"bb").end()]).unwrap();
    let store = bench.store();
    let details = store.inspect(&image.digest).unwrap();
    assert!(details.layers.iter().all(|l| l.form == Some(LayerForm::Erofs) && l.path.is_file()));
    assert_eq!(store.df().unwrap().bytes, 3);
    assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
    // A directory's form is taken as it is where it is there already.
    let other = Bench { dir: bench.dir, form: LayerForm::Directory };
    let found = other.store().prepared(&image.digest).unwrap();
    assert!(found.is_none(), "nobody said that images can be mounted");
    let bench = Bench { dir: other.dir, form: LayerForm::Erofs };
    // One of which an earlier build noted another sum cannot be compared.
    let record = details.layers[1].path.with_file_name("layer.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("\"image_blake3\"", "\"image\"")).unwrap();
    let problems = store.verify(&[]).unwrap().problems();
    assert!(problems.len() == 1 && problems[0].contains("earlier version"), "{problems:?}");
    std::fs::write(&record, text).unwrap();
    let changed = &details.layers[0].path;
    let mut bytes = std::fs::read(changed).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(changed, bytes).unwrap();
    let problems = store.verify(&[]).unwrap().problems();
    assert!(problems.len() == 1 && problems[0].contains("changed"), "{problems:?}");
    std::fs::remove_file(changed).unwrap();
    assert!(store.prepared(&image.digest).unwrap().is_none());
    let digest = image.digest.clone();
    drop(image);
    bench.import(vec![Tar::new().file("a", b"a").end(), Tar::new().file("b", b"bb").end()]).unwrap();
    assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
    let removed = store.remove(&digest).unwrap();
    assert_eq!((removed.layers, removed.bytes), (2, 3));
    bench.assert_empty();
}

/// The sum that earlier versions noted of an image.
fn earlier_sum(image: &[u8]) -> Digest {
    let mut parts = Vec::new();
    for (part, place) in image.chunks(1 << 20).zip((0u64..).step_by(1 << 20)) {
        let mut blocks = Vec::new();
        for (block, at) in part.chunks(4096).zip((place..).step_by(4096)) {
            if block.iter().any(|byte| *byte != 0) {
                blocks.extend(at.to_le_bytes());
                blocks.extend_from_slice(block);
            }
        }
        if !blocks.is_empty() {
            parts.extend(place.to_le_bytes());
            parts.extend_from_slice(Digest::of(Algorithm::Sha256, &blocks).hex().as_bytes());
        }
    }
    parts.extend((image.len() as u64).to_le_bytes());
    Digest::of(Algorithm::Sha256, &parts)
}

#[test]
fn a_layer_of_which_an_earlier_version_noted_the_sum_is_looked_at_by_that() {
    let bench = Bench::of(LayerForm::Erofs);
    let large: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let image = bench.import(vec![Tar::new().file("large", &large).file("zeros", &[0; 9000]).end()]).unwrap();
    let store = bench.store();
    let place = only_layer(&image);
    let mut bytes = std::fs::read(place).unwrap();
    let record = place.with_file_name("layer.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let at = text.find("\"image_blake3\": \"blake3:").unwrap();
    let end = at + text[at..].find(',').unwrap();
    let noted = format!("\"image_sum\": \"{}\"", earlier_sum(&bytes));
    std::fs::write(&record, [&text[..at], &noted, &text[end..]].concat()).unwrap();
    assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(place, bytes).unwrap();
    let problems = store.verify(&[]).unwrap().problems();
    assert!(problems.len() == 1 && problems[0].contains("its image was changed"), "{problems:?}");
}

/// Before Linux 6.12 each is a loop device, and not any number can be handed to a container.
#[test]
fn where_few_images_can_be_mounted_the_smaller_layers_of_an_image_are_directories() {
    let bench = Bench::of(LayerForm::Directory);
    let loops = |_: &std::fs::File| Ok(("by loop".to_string(), Some(3)));
    let open = || berth_images::Store::open(&bench.path().join("store")).unwrap();
    assert_eq!(open().settle_form(Some(LayerForm::Erofs), &loops).unwrap(), LayerForm::Erofs);
    let layout = bench.layout();
    let text = format!("oci:{}", layout.display());
    let import = |sizes: &[usize]| {
        // Bytes that nothing compresses: the size of the blob is what counts.
        let noise = |size: usize| {
            (0..size as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8).collect::<Vec<u8>>()
        };
        let layer = |size: &usize| Tar::new().file(&format!("f{size}"), &noise(*size)).end();
        let _ = std::fs::remove_dir_all(&layout);
        crate::support::ImageBuilder::new(sizes.iter().map(layer).collect()).write(&layout);
        let anonymous = berth_images::Credentials::anonymous();
        let image = crate::support::ensure_text(&open(), &text, &anonymous, false).unwrap();
        // The uppermost layer comes first.
        image.layers.iter().rev().map(|layer| layer.is_file()).collect::<Vec<_>>()
    };
    assert_eq!(import(&[5, 50_000, 60_000, 4_000]), [false, true, true, true]);
    assert_eq!(import(&[1000, 2000, 3000]), [true, true, true]);
    // Those that are images already count first.
    assert_eq!(import(&[90_000, 50_000, 60_000, 4_000, 80_000]), [false, true, true, true, false]);
    assert_eq!(open().verify(&[]).unwrap().problems(), Vec::<String>::new());
    // Once all can be mounted, it is as ever.
    let files = |_: &std::fs::File| Ok(("from its file".to_string(), None));
    assert_eq!(open().settle_form(Some(LayerForm::Erofs), &files).unwrap(), LayerForm::Erofs);
    assert_eq!(import(&[11, 12, 13, 14, 15]), [true; 5]);
}

#[test]
fn where_images_cannot_be_mounted_any_more_they_are_fetched_again_as_directories() {
    let bench = Bench::of(LayerForm::Directory);
    let layer = || vec![Tar::new().file("a", b"a").end()];
    let can = |_: &std::fs::File| Ok(("somehow".to_string(), None));
    let cannot =
        |_: &std::fs::File| Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "no such kernel"));
    let open = || berth_images::Store::open(&bench.path().join("store")).unwrap();
    assert!(!open().is_settled().unwrap());
    assert_eq!(open().settle_form(None, &can).unwrap(), LayerForm::Erofs);
    assert!(open().is_settled().unwrap());
    // Small layers are directories unless images are wanted.
    assert_eq!(open().settle_form(Some(LayerForm::Erofs), &can).unwrap(), LayerForm::Erofs);
    assert_eq!(open().form(), LayerForm::Erofs);
    let layout = bench.layout();
    crate::support::ImageBuilder::new(layer()).write(&layout);
    let text = format!("oci:{}", layout.display());
    let import = || {
        crate::support::ensure_text(&open(), &text, &berth_images::Credentials::anonymous(), false).unwrap()
    };
    assert!(only_layer(&import()).is_file());
    // A choice for directories leaves what is there.
    assert_eq!(open().settle_form(Some(LayerForm::Directory), &can).unwrap(), LayerForm::Directory);
    assert!(only_layer(&import()).is_file());
    assert_eq!(open().settle_form(None, &cannot).unwrap(), LayerForm::Directory);
    assert!(only_layer(&import()).is_dir());
    assert_eq!(open().verify(&[]).unwrap().problems(), Vec::<String>::new());
    let refused = open().settle_form(Some(LayerForm::Erofs), &cannot).unwrap_err().to_string();
    assert!(refused.contains("no such kernel") && refused.contains("layer_form"), "{refused}");
}

#[test]
fn a_trial_that_fails_for_want_of_something_decides_nothing() {
    let bench = Bench::new();
    let open = || berth_images::Store::open(&bench.path().join("store")).unwrap();
    let file = || std::fs::metadata(bench.path().join("store/form")).map(|m| m.ino()).ok();
    let can = |_: &std::fs::File| Ok(("somehow".to_string(), None));
    let cannot = |_: &std::fs::File| Err(std::io::ErrorKind::Unsupported.into());
    let full = |_: &std::fs::File| Err(rustix::io::Errno::MFILE.into());
    for wanted in [None, Some(LayerForm::Directory), Some(LayerForm::Erofs)] {
        let words = open().settle_form(wanted, &full).unwrap_err().to_string();
        assert!(words.contains("Too many open files") && words.contains("start again"), "{words}");
        assert!(!open().is_settled().unwrap());
    }
    assert_eq!(open().settle_form(None, &can).unwrap(), LayerForm::Erofs);
    let written = file();
    assert!(written.is_some());
    assert_eq!(open().settle_form(None, &full).unwrap(), LayerForm::Erofs);
    assert_eq!(open().settle_form(None, &can).unwrap(), LayerForm::Erofs);
    assert_eq!(file(), written, "it is written where something is new");
    assert_eq!(open().settle_form(Some(LayerForm::Erofs), &full).unwrap(), LayerForm::Erofs);
    assert_eq!(open().settle_form(None, &cannot).unwrap(), LayerForm::Directory);
    assert_eq!(open().settle_form(None, &full).unwrap(), LayerForm::Directory);
    assert!(open().settle_form(Some(LayerForm::Erofs), &full).is_err());
    assert_eq!(open().form(), LayerForm::Directory);
}

/// As root's programs mount an image.
pub fn mount(image: &std::fs::File) -> std::io::Result<std::os::fd::OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    use std::os::fd::AsRawFd;
    let fs = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "source", format!("/proc/self/fd/{}", image.as_raw_fd()))?;
    rustix::mount::fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    Ok(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

#[test]
fn who_mounts_no_image_makes_no_archive_of_it() {
    let bench = Bench::of(LayerForm::Erofs);
    let image = bench.import(vec![Tar::new().file("f", b"x").end()]).unwrap();
    let target = bench.path().join("exported");
    let refused = bench.store().export(&image.digest, &target, true, &()).unwrap_err().to_string();
    assert!(refused.contains("root") && !target.exists(), "{refused}");
}

#[test]
fn the_archive_of_an_image_is_made_again_from_its_mount_file_backed_as_root() {
    assert!(mounts_files(), "only root can mount, from Linux 6.12 on");
    let bench = Bench::of(LayerForm::Erofs);
    let whole = Tar::new()
        .dir("d", 0o750)
        .file("d/small", b"small")
        .file("d/large", &[7; 70_000])
        .hardlink("d/link", "d/large")
        .symlink("to", "d/small")
        .file(".wh.gone", b"")
        .end();
    let image = bench.import(vec![whole]).unwrap();
    let target = bench.path().join("exported");
    // The digest of the archive is compared as it is written.
    bench.store().mounting(mount).export(&image.digest, &target, true, &()).unwrap();
    let again = Bench::new();
    let other = again.import_text(&format!("oci:{}", target.display())).unwrap();
    assert_eq!(std::fs::read(only_layer(&other).join("d/link")).unwrap(), [7; 70_000]);
}

/// Whether the tests' own way of mounting works: from the file, as root.
pub fn mounts_files() -> bool {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut version = kernel.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    rustix::process::geteuid().is_root() && (version.next(), version.next()) >= (Some(6), Some(12))
}

#[test]
fn files_of_a_changed_image_are_named_file_backed_as_root() {
    assert!(mounts_files(), "only root can mount, from Linux 6.12 on");
    let bench = Bench::of(LayerForm::Erofs);
    let layer = Tar::new().dir("d", 0o750).file("d/small", b"small").file("d/large", &[7; 70_000]).end();
    let image = bench.import(vec![layer]).unwrap();
    let file = only_layer(&image).to_path_buf();
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(64).position(|w| w == [7; 64]).unwrap();
    bytes[at + 100] = 8;
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    let told = bench.store().verify(&[]).unwrap().problems();
    assert!(told.len() == 1 && told[0].contains("its image was changed"), "{told:?}");
    let told = bench.store().mounting(mount).verify(&[]).unwrap().problems();
    assert!(told.len() == 2 && told[1].contains("/d/large its content was changed"), "{told:?}");
    // What cannot be mounted any more is told of, too.
    bytes[1024..1028].fill(0);
    std::fs::write(&file, &bytes).unwrap();
    let told = bench.store().mounting(mount).verify(&[]).unwrap().problems();
    assert!(told.len() == 2 && told[1].contains("cannot be looked at"), "{told:?}");
}

/// Few names, so that entries meet.
const NAMES: [&str; 12] =
    ["a", "b", "c", "a/b", "a/b/c", "b/x", "c/y", ".wh.a", "a/.wh.b", "b/.wh..wh..opq", "a/", "l/f"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever an archive has, both forms take it or refuse it for the same reason, and show the same.
    #[test]
    fn any_layer_is_the_same_in_both_forms(
        entries in proptest::collection::vec((0usize..12, 0usize..12, 0usize..7, 0u32..0o7777, 0usize..9000), 0..14)
    ) {
        let mut tar = Tar::new();
        for (name, link, kind, mode, size) in entries {
            let kind = b"0123456"[kind];
            // Others than root could not remove what is below a directory that they may not change.
            let mode = if kind == b'5' { mode | 0o700 } else { mode };
            let data = if kind == b'0' { vec![size as u8; size] } else { Vec::new() };
            tar = tar.entry(NAMES[name], kind, mode, NAMES[link], &data);
        }
        let layer = tar.end();
        let [(first, directory), (second, image)] = FORMS.map(|form| {
            let bench = Bench::of(form);
            let result = bench.import(vec![layer.clone()]);
            (bench, result)
        });
        match (directory, image) {
            (Ok(directory), Ok(image)) => {
                fsck(only_layer(&image));
                if let Some(mounted) = Mounted::new(only_layer(&image)) {
                    same(&tree(only_layer(&directory)), &tree(mounted.0.path()));
                }
            }
            (Err(directory), Err(image)) => {
                let (directory, image) = (first.without_place(&directory), second.without_place(&image));
                prop_assert_eq!(directory, image);
            }
            (directory, image) => prop_assert!(false, "{directory:?} and {image:?}"),
        }
    }
}
