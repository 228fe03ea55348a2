//! Layers and manifests made to hurt: each is refused or contained, and nothing outside the layer is touched.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use berth_images::{Error, ErrorKind, LayerForm, Limits, PreparedImage, Store};

use crate::erofs::{Mounted, compared};
use crate::support::{
    Bench, Compression, FORMS, ImageBuilder, Tar, ensure_text, is_whiteout, mode, only_layer, xattr,
};

/// Refused with `word`, whatever the form of layers, and nothing is left.
fn refused(tar: Vec<u8>, word: &str) {
    let errors = FORMS.map(|form| {
        let bench = Bench::of(form);
        let error = bench.import(vec![tar.clone()]).expect_err(word);
        assert!(matches!(error.kind(), ErrorKind::Refused | ErrorKind::Corrupt), "{error:?}");
        assert!(error.to_string().contains(word), "wanted {word:?}: {error}");
        bench.assert_empty();
        bench.without_place(&error)
    });
    assert_eq!(errors[0], errors[1]);
}

fn taken(bench: &Bench, tar: Vec<u8>) -> PreparedImage {
    bench.import(vec![tar]).unwrap_or_else(|e: Error| panic!("{e}"))
}

#[test]
fn dot_dot_is_refused_everywhere() {
    for name in ["../evil", "a/../../evil", "a/..", "..", "/../evil", "a/../b"] {
        refused(Tar::new().file(name, b"x").end(), "..");
        refused(Tar::new().dir(name, 0o755).end(), "..");
        refused(Tar::new().symlink(name, "x").end(), "..");
    }
    refused(Tar::new().hardlink("a", "../../../../etc/passwd").end(), "..");
    refused(Tar::new().pax(&[("path", b"../evil")]).file("fine", b"x").end(), "..");
    refused(Tar::new().pax(&[("linkpath", b"../evil")]).hardlink("a", "fine").end(), "..");
    refused(Tar::new().entry("././@LongLink", b'L', 0o644, "", b"../evil\0").file("fine", b"x").end(), "..");
}

#[test]
fn absolute_names_stay_inside() {
    let place = tempfile::tempdir().unwrap();
    let outside = place.path().join("outside");
    let tar = Tar::new().file(&outside.display().to_string(), b"x").file("//etc//passwd", b"y");
    let (_bench, image, _other, _) = compared(&tar.end());
    assert!(!outside.exists());
    let layer = only_layer(&image);
    assert_eq!(std::fs::read(layer.join(outside.strip_prefix("/").unwrap())).unwrap(), b"x");
    assert_eq!(std::fs::read(layer.join("etc/passwd")).unwrap(), b"y");
}

#[test]
fn symlinks_never_lead_outside() {
    let bench = Bench::new();
    let victim = bench.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("file"), b"old").unwrap();
    let target = victim.display().to_string();
    let up = format!("../../../../../../../../../..{target}");
    let ways = [target.as_str(), up.as_str(), "/", "../../../../.."];
    for (link, form) in ways.iter().flat_map(|link| FORMS.map(|form| (link, form))) {
        let bench = Bench::of(form);
        let image = taken(
            &bench,
            Tar::new()
                .symlink("way", link)
                .file("way/file", b"evil")
                .file("way/deep/er", b"evil")
                .dir("way/dir", 0o777)
                .symlink("way/link", "x")
                .hardlink("way/hard", "way/file")
                .file("way/.wh.gone", b"")
                .file("way/.wh..wh..opq", b"")
                .end(),
        );
        // The link is kept as text; what was named below it is inside the layer.
        if form == LayerForm::Directory {
            assert_eq!(std::fs::read_link(only_layer(&image).join("way")).unwrap(), Path::new(link));
        }
        assert_eq!(std::fs::read(victim.join("file")).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 1);
        assert!(xattr(&victim, "user.overlay.opaque").is_none());
        for outside in ["/deep", "/hard", "/dir"] {
            assert!(!Path::new(outside).exists());
        }
    }
}

#[test]
fn a_file_over_a_symlink_replaces_it() {
    let place = tempfile::tempdir().unwrap();
    let victim = place.path().join("victim");
    std::fs::write(&victim, b"old").unwrap();
    let tar = Tar::new().symlink("a", &victim.display().to_string()).file("a", b"new");
    let (_bench, image, _other, _) = compared(&tar.end());
    assert_eq!(std::fs::read(&victim).unwrap(), b"old");
    assert!(only_layer(&image).join("a").symlink_metadata().unwrap().is_file());
}

#[test]
fn hard_links_stay_inside_and_never_follow() {
    let place = tempfile::tempdir().unwrap();
    let victim = place.path().join("victim");
    std::fs::write(&victim, b"old").unwrap();
    // A hard link to a symbolic link links the link itself.
    let tar = Tar::new().symlink("s", &victim.display().to_string()).hardlink("h", "s");
    let (_bench, image, _other, _) = compared(&tar.hardlink("i", "s").file("h", b"new").end());
    assert_eq!(std::fs::metadata(&victim).unwrap().nlink(), 1);
    assert_eq!(std::fs::read(&victim).unwrap(), b"old");
    assert!(only_layer(&image).join("s").symlink_metadata().unwrap().is_symlink());
    refused(Tar::new().hardlink("a", "missing").end(), "does not have");
    refused(Tar::new().hardlink("a", &victim.display().to_string()).end(), "does not have");
    refused(Tar::new().dir("d", 0o755).hardlink("a", "d").end(), "directory");
    refused(Tar::new().hardlink("a", "/").end(), "directory");
    refused(Tar::new().file("a", b"").hardlink("a", "a").end(), "itself");
    refused(Tar::new().hardlink("a", "").end(), "directory");
}

#[test]
fn loops_of_links_end() {
    refused(Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"").end(), "too many symbolic links");
    refused(Tar::new().symlink("a", "a/a/a").file("a/x", b"").end(), "too many symbolic links");
}

#[test]
fn whiteouts_cannot_reach_outside() {
    for name in [".wh...", ".wh..", ".wh.", "a/.wh...", ".wh.x/y", ".wh.../y"] {
        refused(Tar::new().file(name, b"").end(), "");
    }
    refused(Tar::new().dir(".wh.x", 0o755).end(), "reserved");
    let tar = Tar::new().file(".wh..wh.plnk/1.2", b"").dir(".wh..wh.aufs", 0o755).file("x", b"");
    let (_bench, image, _other, _) = compared(&tar.end());
    assert_eq!(std::fs::read_dir(only_layer(&image)).unwrap().count(), 1);
}

#[test]
fn device_nodes_are_left_out_and_reported() {
    let bench = Bench::new();
    let image = taken(
        &bench,
        Tar::new()
            .entry("dev/mem", b'3', 0o666, "", b"")
            .entry("dev/sda", b'4', 0o666, "", b"")
            .hardlink("dev/mem2", "dev/mem")
            // Character device 0/0 would be a whiteout.
            .entry("bin", b'3', 0o666, "", b"")
            .entry("fifo", b'6', 0o644, "", b"")
            .end(),
    );
    let layer = only_layer(&image);
    assert_eq!(std::fs::read_dir(layer.join("dev")).unwrap().count(), 0);
    assert!(!layer.join("bin").exists());
    assert!(layer.join("fifo").symlink_metadata().is_ok());
    let details = bench.store().inspect(&image.digest).unwrap();
    assert_eq!(details.layers[0].report.as_ref().unwrap().devices_skipped, 4);
}

#[test]
fn setuid_bits_stay_only_in_an_unprivileged_store() {
    let bench = Bench::new();
    let image = taken(&bench, Tar::new().entry("su", b'0', 0o6755, "", b"x").dir("d", 0o3775).end());
    let root = rustix::process::geteuid().is_root();
    assert_eq!(mode(&only_layer(&image).join("su")), if root { 0o755 } else { 0o6755 });
    let report = bench.store().inspect(&image.digest).unwrap().layers[0].report.clone().unwrap();
    assert_eq!(report.setid_stripped, u64::from(root));
    // And nobody else can reach it.
    assert_eq!(mode(bench.store().root()), 0o700);
}

/// Attributes with which a layer would reach outside itself or give rights, one that is the node's own, and one that is kept.
pub const ATTRIBUTES: [(&str, &[u8]); 8] = [
    ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
    ("SCHILY.xattr.user.overlay.metacopy", b""),
    ("SCHILY.xattr.user.overlay.opaque", b"y"),
    ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
    ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
    ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ("SCHILY.xattr.security.selinux", b"x"),
    ("SCHILY.xattr.user.kept", b"yes"),
];

#[test]
fn overlay_attributes_and_capabilities_are_stripped() {
    let tar = Tar::new()
        .pax(&ATTRIBUTES)
        .file("a", b"x")
        .pax(&ATTRIBUTES)
        .dir("d", 0o755)
        // These two can have no attribute of users', so that the last one is left out, too.
        .pax(&ATTRIBUTES)
        .symlink("s", "a")
        .pax(&ATTRIBUTES)
        .entry("p", b'6', 0o644, "", b"");
    let (bench, directory, other, image) = compared(&tar.end());
    for (bench, made) in [(&bench, &directory), (&other, &image)] {
        let report = bench.store().inspect(&made.digest).unwrap().layers[0].report.clone().unwrap();
        assert_eq!(
            (
                report.overlay_attributes_stripped,
                report.capabilities_stripped,
                report.other_attributes_skipped
            ),
            (4 * 5, 4, 4 + 2),
            "{:?}",
            bench.form
        );
    }
    let only_kept = |root: &Path| {
        for name in ["a", "d"] {
            let listed = xattr::list(root.join(name)).unwrap().collect::<Vec<_>>();
            assert_eq!(listed, ["user.kept"], "{}", root.join(name).display());
        }
        assert_eq!(xattr(&root.join("d"), "user.kept").as_deref(), Some(&b"yes"[..]));
        for name in ["s", "p"] {
            let listed = xattr::list(root.join(name)).unwrap().count();
            assert_eq!(listed, 0, "{}", root.join(name).display());
        }
    };
    only_kept(only_layer(&directory));
    if let Some(mounted) = Mounted::new(only_layer(&image)) {
        only_kept(mounted.place());
    }
    // Whoever may mount nothing reads the image: an attribute's name stands there without what it begins with.
    let bytes = std::fs::read(only_layer(&image)).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("kept"), "names of attributes are not found in the image");
    for name in ["overlay.", "redirect", "metacopy", "opaque", "capability", "selinux"] {
        assert!(!has(name), "the image has {name}");
    }
}

#[test]
fn archives_that_two_readers_would_see_differently_are_refused() {
    // The size of PAX and of the header disagree: data of one reader is headers of the other.
    let inner = Tar::new().file("smuggled", b"evil").0;
    let mut tar = Tar::new().pax(&[("size", inner.len().to_string().as_bytes())]);
    tar = tar.raw(&Tar::header(b"cover", b'0', 0o644, 0, b"")).raw(&inner);
    refused(tar.end(), "disagree about the size");
    refused(Tar::new().pax(&[("size", b"1")]).file("a", b"xx").end(), "disagree about the size");
    refused(Tar::new().pax(&[("path", b"a"), ("path", b"b")]).file("c", b"").end(), "twice");
    refused(
        Tar::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("c", b"").end(),
        "two extended headers",
    );
    refused(
        Tar::new().entry("l", b'L', 0, "", b"a\0").pax(&[("path", b"b")]).file("c", b"").end(),
        "disagree about its name",
    );
    refused(
        Tar::new().entry("l", b'L', 0, "", b"a\0").entry("l", b'L', 0, "", b"b\0").file("c", b"").end(),
        "two long names",
    );
    refused(Tar::new().entry("l", b'L', 0, "", b"a\0b\0").file("c", b"").end(), "NUL");
    refused(Tar::new().entry("g", b'g', 0, "", b"10 path=a\n").file("c", b"").end(), "global");
    refused(Tar::new().entry("link", b'1', 0o644, "x", b"data").end(), "has data");
    refused(Tar::new().entry("dir", b'5', 0o755, "", b"data").end(), "has data");
    refused(Tar::new().file("a/", b"x").end(), "slash");
    refused(Tar::new().entry("a", b'Z', 0o644, "", b"").end(), "type 'Z'");
    refused(Tar::new().file("a", b"x").raw(&[0; 512]).file("b", b"x").end(), "single zero block");
    refused(Tar::new().pax(&[("path", b"b")]).end(), "after an extended header");
    let mut wrong = Tar::new().file("a", b"x").0;
    wrong[0] = b'b';
    refused(wrong, "checksum");
    let mut negative = Tar::header(b"a", b'0', 0o644, 0, b"");
    negative[124..136].copy_from_slice(&[0xff; 12]);
    Tar::seal(&mut negative);
    refused(negative.to_vec(), "negative");
    // A file, and entries below it.
    refused(Tar::new().file("a", b"x").file("a/b", b"y").end(), "has a file where a directory");
    refused(Tar::new().symlink("a", "").end(), "link target");
    refused(Tar::new().entry("./", b'0', 0o644, "", b"x").end(), "");
    refused(b"this is no tar stream, but it is longer than a block of 512 bytes".repeat(20), "checksum");
}

#[test]
fn truncated_archives_are_refused_and_a_missing_end_is_not() {
    let whole = Tar::new().file("a", &[7; 1000]).0;
    for cut in [100, 512, 600, 1511] {
        refused(whole[..cut].to_vec(), "ends in the middle");
    }
    for complete in [512 + 1000, whole.len(), whole.len() + 512] {
        let mut tar = whole.clone();
        tar.resize(complete, 0);
        let bench = Bench::new();
        let image = taken(&bench, tar);
        assert_eq!(std::fs::read(only_layer(&image).join("a")).unwrap(), [7; 1000]);
    }
    let bench = Bench::new();
    assert_eq!(std::fs::read_dir(only_layer(&taken(&bench, Vec::new()))).unwrap().count(), 0);
}

#[test]
fn huge_sizes_are_refused_before_they_are_believed() {
    let mut huge = Tar::header(b"a", b'0', 0o644, 0, b"");
    huge[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    Tar::seal(&mut huge);
    refused(huge.to_vec(), "bytes");
    // An extended header that claims gigabytes.
    refused(Tar::header(b"x", b'x', 0o644, 1 << 32, b"").to_vec(), "over the limit");
    refused(Tar::header(b"x", b'L', 0o644, 1 << 32, b"").to_vec(), "over the limit");
}

/// An archive with a GNU sparse file whose only data is one byte at the end.
fn sparse(real: u64) -> Vec<u8> {
    sparse_file(real).end()
}

/// Only that file, named `sparse`.
pub fn sparse_file(real: u64) -> Tar {
    let mut block = Tar::header(b"sparse", b'S', 0o644, 1, b"");
    block[257..265].copy_from_slice(b"ustar  \0");
    block[345..500].fill(0);
    block[386..398].copy_from_slice(format!("{:011o}\0", real - 1).as_bytes());
    block[398..410].copy_from_slice(format!("{:011o}\0", 1).as_bytes());
    block[483..495].copy_from_slice(format!("{real:011o}\0").as_bytes());
    Tar::seal(&mut block);
    let mut data = [0; 512];
    data[0] = b'!';
    Tar::new().raw(&block).raw(&data)
}

#[test]
fn sparse_files_stay_sparse_and_bounded() {
    let bench = Bench::new();
    let size = 4 << 30;
    let image = taken(&bench, sparse(size));
    let file = only_layer(&image).join("sparse");
    let meta = std::fs::metadata(&file).unwrap();
    assert_eq!(meta.len(), size);
    assert!(meta.blocks() < 100, "{} blocks", meta.blocks());
    let limits = Limits { bytes: 1 << 30, ..Limits::default() };
    let error = with_limits(sparse(size), Compression::Plain, limits);
    assert!(error.contains("more than 1073741824 bytes"), "{error}");
    // A map that leaves the file or overlaps.
    let mut wrong = sparse(100);
    wrong[483..495].copy_from_slice(b"00000000001\0");
    let mut block: [u8; 512] = wrong[..512].try_into().unwrap();
    Tar::seal(&mut block);
    wrong[..512].copy_from_slice(&block);
    refused(wrong, "leaves the file");
}

#[test]
fn pax_sparse_files_are_read() {
    let bench = Bench::new();
    let mut data = b"2\n0\n3\n1000\n2\n".to_vec();
    data.resize(512, 0);
    data.extend(b"abcde");
    let tar = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"real"),
            ("GNU.sparse.realsize", b"2000"),
        ])
        .file("GNUSparseFile.0/real", &data)
        .end();
    let image = taken(&bench, tar);
    let content = std::fs::read(only_layer(&image).join("real")).unwrap();
    assert_eq!(content.len(), 2000);
    assert_eq!((&content[..3], &content[1000..1002]), (&b"abc"[..], &b"de"[..]));
    assert!(content[3..1000].iter().all(|b| *b == 0));
    refused(
        Tar::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")])
            .file("a", &[b'9'; 600])
            .end(),
        "sparse map",
    );
}

fn with_limits(tar: Vec<u8>, compression: Compression, limits: Limits) -> String {
    let errors = FORMS.map(|form| {
        let bench = Bench::of(form);
        ImageBuilder::new(vec![tar.clone()]).compressed(compression).write(&bench.layout());
        let store: Store = bench.store().with_limits(limits.clone());
        let text = format!("oci:{}", bench.layout().display());
        let error = ensure_text(&store, &text, &berth_images::Credentials::anonymous(), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        bench.assert_empty();
        bench.without_place(&error)
    });
    assert_eq!(errors[0], errors[1]);
    errors[0].clone()
}

#[test]
fn bombs_are_refused_by_ratio() {
    let tar = Tar::new().file("zeros", &vec![0; 64 << 20]).end();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let limits = Limits { free_bytes: 8 << 20, ..Limits::default() };
        let error = with_limits(tar.clone(), compression, limits);
        assert!(error.contains("decompression bomb"), "{error}");
    }
}

#[test]
fn entries_names_and_depth_are_bounded() {
    let mut many = Tar::new();
    for n in 0..100 {
        many = many.file(&format!("f{n}"), b"");
    }
    let error = with_limits(many.end(), Compression::Plain, Limits { entries: 99, ..Limits::default() });
    assert!(error.contains("more than 99 entries"), "{error}");
    let mut dirs = Tar::new();
    for n in 0..100 {
        dirs = dirs.dir(&format!("d{n}"), 0o755);
    }
    let error = with_limits(dirs.end(), Compression::Plain, Limits { name_bytes: 2000, ..Limits::default() });
    assert!(error.contains("bytes of memory"), "{error}");
    refused(Tar::new().pax(&[("path", "d/".repeat(300).as_bytes())]).dir("x", 0o755).end(), "components");
    refused(Tar::new().pax(&[("path", "x".repeat(300).as_bytes())]).file("x", b"").end(), "255");
}

#[test]
fn names_of_64_kib_are_refused_and_attributes_of_that_size_left_out() {
    let long = [b"a/".as_slice(), &[b'x'; 64 << 10]].concat();
    let gnu = [long.as_slice(), b"\0"].concat();
    let named = "longer than 4095 bytes";
    refused(Tar::new().pax(&[("path", &long[..])]).file("x", b"").end(), named);
    refused(Tar::new().entry("././@LongLink", b'L', 0o644, "", &gnu).file("x", b"").end(), named);
    refused(Tar::new().pax(&[("linkpath", &long[..])]).symlink("x", "y").end(), "too long");
    refused(Tar::new().entry("././@LongLink", b'K', 0o644, "", &gnu).symlink("x", "y").end(), "too long");
    refused(Tar::new().file("y", b"").pax(&[("linkpath", &long[..])]).hardlink("x", "y").end(), named);
    let name = format!("SCHILY.xattr.user.{}", "x".repeat(64 << 10));
    for form in FORMS {
        let bench = Bench::of(form);
        let tar = Tar::new().pax(&[
            (&name, b"value"),
            ("SCHILY.xattr.user.large", &[b'x'; 70_000]),
            ("SCHILY.xattr.user.kept", b"yes"),
        ]);
        let image = taken(&bench, tar.file("a", b"x").end());
        let report = bench.store().inspect(&image.digest).unwrap().layers[0].report.clone().unwrap();
        assert_eq!(report.other_attributes_skipped, 2, "{form:?}");
        if form == LayerForm::Directory {
            let kept: Vec<_> = xattr::list(only_layer(&image).join("a")).unwrap().collect();
            assert_eq!(kept, ["user.kept"]);
        }
    }
}

#[test]
fn what_links_lead_to_is_bounded_as_names_are() {
    // Each link leads as deep below the one before as its text is long, so that a few hundred bytes of archive would make
    // tens of thousands of directories.
    let chain = |target: &str| {
        let mut name = String::new();
        let mut tar = Tar::new();
        for n in 0..20 {
            name.push_str(&format!("L{n}"));
            tar = tar.pax(&[("linkpath", target.as_bytes())]).symlink(&name, "x");
            name.push('/');
        }
        tar.file(&format!("{name}x"), b"").end()
    };
    refused(chain(&["a"; 2000].join("/")), "more than 256 components");
    refused(chain(&["a"; 50].join("/")), "more than 256 components");
    refused(chain(&["n".repeat(250), "n".repeat(250)].join("/")), "more than 4095 bytes");
}

#[test]
fn links_that_keep_a_node_busy_are_refused() {
    // A name through such a link is looked up in 1600 steps, of an entry that compresses to a few bytes.
    let target = "d/../".repeat(800) + "d";
    let files = |count: usize| {
        let tar = Tar::new().dir("d", 0o755).pax(&[("linkpath", target.as_bytes())]).symlink("L", "x");
        (0..count).fold(tar, |tar, n| tar.file(&format!("L/{n}"), b"")).end()
    };
    refused(files(800), "lead through too many directories and symbolic links");
    let bench = Bench::new();
    let image = taken(&bench, files(300));
    assert_eq!(std::fs::read_dir(only_layer(&image).join("d")).unwrap().count(), 300);
}

#[test]
fn unreadable_directories_are_made_used_and_removed() {
    let bench = Bench::new();
    let tar = Tar::new()
        .dir("locked", 0o000)
        .file("locked/inside", b"x")
        .dir("locked/deep", 0o111)
        .file("locked/deep/er", b"y")
        .file("none", b"z");
    let image = taken(&bench, tar.entry("secret", b'0', 0o000, "", b"s").end());
    let layer = only_layer(&image).to_path_buf();
    assert_eq!(mode(&layer.join("locked")), 0o000);
    assert_eq!(mode(&layer.join("secret")), 0o000);
    std::fs::set_permissions(layer.join("locked"), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(mode(&layer.join("locked/deep")), 0o111);
    std::fs::set_permissions(layer.join("locked"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let digest = image.digest.clone();
    drop(image);
    bench.store().remove(&digest).unwrap();
    bench.assert_empty();
}

#[test]
fn later_entries_replace_earlier_ones() {
    let bench = Bench::new();
    let tar = Tar::new()
        .file("a", b"1")
        .file("a", b"2")
        .dir("b", 0o700)
        .file("b/x", b"1")
        .file("b", b"now a file")
        .file("c", b"1")
        .dir("c", 0o711)
        .file("c/y", b"2")
        .dir("c", 0o755)
        .symlink("d", "nowhere")
        .dir("d", 0o755)
        .file("d/z", b"3");
    let image = taken(&bench, tar.end());
    let layer = only_layer(&image);
    assert_eq!(std::fs::read(layer.join("a")).unwrap(), b"2");
    assert_eq!(std::fs::read(layer.join("b")).unwrap(), b"now a file");
    assert_eq!(std::fs::read(layer.join("c/y")).unwrap(), b"2");
    assert_eq!(mode(&layer.join("c")), 0o755);
    assert_eq!(std::fs::read(layer.join("d/z")).unwrap(), b"3");
}

#[test]
fn a_whiteout_of_a_name_that_the_layer_brings_is_no_whiteout() {
    let tar = Tar::new()
        .file(".wh.a", b"")
        .file("a", b"new")
        .file("b/c", b"new")
        .file(".wh.b", b"")
        .file(".wh.gone", b"")
        // What umoci writes where a file takes a directory's place.
        .file("f", b"now a file")
        .file("f/.wh.inside", b"")
        .end();
    let (_bench, image, _other, _) = compared(&tar);
    let layer = only_layer(&image);
    assert_eq!(std::fs::read(layer.join("a")).unwrap(), b"new");
    assert_eq!(std::fs::read(layer.join("f")).unwrap(), b"now a file");
    // The directory hides the removed one below.
    assert_eq!(xattr(&layer.join("b"), "user.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(std::fs::read(layer.join("b/c")).unwrap(), b"new");
    assert!(is_whiteout(&layer.join("gone")));
}

#[test]
fn wrong_sizes_digests_and_counts_in_manifests_are_refused() {
    let bench = Bench::new();
    let layout = bench.layout();
    let digest = ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&layout);
    let path = crate::support::blob_path(&layout, &digest);
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| -> String {
        let bench = Bench::new();
        let mut manifest = manifest.clone();
        change(&mut manifest);
        let text = manifest.to_string();
        let digest = berth_images::Digest::of(berth_images::Algorithm::Sha256, text.as_bytes());
        crate::support::put_blob(&layout, &digest, text.as_bytes());
        crate::support::write_layout(
            &layout,
            &serde_json::json!({"schemaVersion": 2, "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": text.len()}]}),
        );
        let error = bench.import_text(&format!("oci:{}", layout.display())).unwrap_err().to_string();
        if bench.path().join("store").exists() {
            bench.assert_empty();
        }
        error
    };
    assert!(with(&|m| m["layers"][0]["size"] = 1.into()).contains("more than the 1 bytes"));
    assert!(with(&|m| m["layers"][0]["size"] = 1_000_000.into()).contains("less than the 1000000 bytes"));
    assert!(with(&|m| m["config"]["size"] = 1.into()).contains("another size"));
    let zeros = format!("sha256:{}", "0".repeat(64));
    assert!(with(&|m| m["layers"][0]["digest"] = zeros.clone().into()).contains("no blob"));
    assert!(
        with(&|m| m["layers"][0]["digest"] = "md5:d41d8cd98f00b204e9800998ecf8427e".into())
            .contains("digest")
    );
    assert!(
        with(&|m| m["layers"][0]["digest"] = "sha256:../../../../etc/passwd".into()).contains("malformed")
    );
    assert!(with(&|m| m["layers"] = serde_json::json!([])).contains("0"));
    assert!(
        with(
            &|m| m["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into()
        )
        .contains("encrypted")
    );
    assert!(with(&|m| m["layers"][0]["mediaType"] = "application/x-squashfs".into()).contains("not a tar"));
    assert!(
        with(&|m| m["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into())
            .contains("artifact")
    );
    let artifact = with(&|m| {
        m["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into();
        m["artifactType"] = "application/vnd.sylabs.sif.v1".into();
    });
    assert!(
        artifact.contains("artifact of type \"application/vnd.sylabs.sif.v1\"")
            && artifact.contains("oras pull"),
        "{artifact}"
    );
    for foreign in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ] {
        let absent = with(&|m| {
            m["layers"][0]["mediaType"] = foreign.into();
            m["layers"][0]["digest"] = zeros.clone().into();
            m["layers"][0]["urls"] = serde_json::json!(["http://127.0.0.1:1/layer"]);
        });
        assert!(absent.contains("no blob") && absent.contains("not distributable"), "{absent}");
    }
    assert!(with(&|m| m["manifests"] = serde_json::json!([])).contains("at once"));
}

/// What is inflated is the same, so that only the blob's own digest tells.
#[test]
fn another_blob_with_the_same_archive_in_it_is_refused() {
    for form in FORMS {
        let bench = Bench::of(form);
        let layout = bench.layout();
        let built = ImageBuilder::new(vec![Tar::new().file("a", b"x").end()])
            .compressed(Compression::Gzip)
            .write(&layout);
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(crate::support::blob_path(&layout, &built)).unwrap())
                .unwrap();
        let layer: berth_images::Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
        let mut blob = std::fs::read(crate::support::blob_path(&layout, &layer)).unwrap();
        // The time in gzip's header (RFC 1952, 2.3).
        blob[4] ^= 1;
        crate::support::put_blob(&layout, &layer, &blob);
        let error = bench.import_text(&format!("oci:{}", layout.display())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(layer.hex()), "{error}");
        bench.assert_empty();
    }
}

#[test]
fn a_diff_id_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let layout = bench.layout();
    let mut builder = ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]);
    builder.write(&layout);
    // The same configuration with another layer behind it.
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest: berth_images::Digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(crate::support::blob_path(&layout, &digest)).unwrap()).unwrap();
    builder.layers[0].0 = Tar::new().file("a", b"y").end();
    let other = &builder.layers[0].0;
    let other_digest = berth_images::Digest::of(berth_images::Algorithm::Sha256, other);
    crate::support::put_blob(&layout, &other_digest, other);
    manifest["layers"][0]["digest"] = other_digest.to_string().into();
    manifest["layers"][0]["size"] = other.len().into();
    let text = manifest.to_string();
    let digest = berth_images::Digest::of(berth_images::Algorithm::Sha256, text.as_bytes());
    crate::support::put_blob(&layout, &digest, text.as_bytes());
    crate::support::write_layout(
        &layout,
        &serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": text.len()}]}),
    );
    let error = bench.import_text(&format!("oci:{}", layout.display())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("uncompressed layer"), "{error}");
    bench.assert_empty();
}
