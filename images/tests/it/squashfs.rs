//! Squashfs images: ours as squashfs-tools see them, theirs as we see them, and hostile ones.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::support::{Bench, Tar, tool};
use berth_images::{
    Credentials, ErrorKind, ImageConfig, ResolveOptions, Resolved, SaveForm, resolve, save_root,
};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// An image of a directory, by mksquashfs.
fn made(bench: &Bench, name: &str, options: &[&str], fill: impl FnOnce(&Path)) -> PathBuf {
    let tree = bench.path().join(format!("{name}.tree"));
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    fill(&tree);
    let image = bench.path().join(name);
    let (from, to) = (text(&tree), text(&image));
    let fixed = [from.as_str(), to.as_str(), "-quiet", "-no-progress", "-all-root"];
    tool("squashfs-tools", "mksquashfs", &[&fixed[..], options].concat());
    image
}

fn looked_at(path: &Path) -> Result<Resolved, berth_images::Error> {
    resolve(&text(path).parse()?, &Credentials::anonymous(), &ResolveOptions::default())
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

/// A root with what images have, as the archive of a container.
fn archive(large: &[u8]) -> Vec<u8> {
    let mut bytes = Tar::new()
        .dir("usr/", 0o755)
        .dir("usr/bin/", 0o755)
        .file("usr/bin/large", large)
        .hardlink("usr/bin/other", "usr/bin/large")
        .symlink("bin", "usr/bin")
        .file("usr/zeros", &vec![0; 300_000])
        .file("usr/small", b"small")
        .pax(&[("SCHILY.xattr.user.mark", &b"kept"[..])])
        .file("usr/marked", b"marked")
        .entry("usr/pipe", b'6', 0o600, "", b"")
        .end();
    bytes.extend_from_slice(b"whole\n");
    bytes
}

#[test]
fn what_we_write_is_read_by_us_and_by_squashfs_tools() {
    let bench = Bench::new();
    let large = random(300_001);
    let path = bench.path().join("own.sqsh");
    let config = ImageConfig {
        env: vec!["A=b c".to_string()],
        cmd: vec!["/bin/large".to_string()],
        workdir: "/srv".to_string(),
        ..ImageConfig::default()
    };
    save_root(archive(&large).as_slice(), &path, SaveForm::of(&path), &config).unwrap();
    let prepared = bench.import_text(&text(&path)).unwrap();
    assert_eq!((&prepared.config.env, &prepared.config.cmd), (&config.env, &config.cmd));
    assert_eq!((prepared.config.workdir.as_str(), prepared.layers.len()), ("/srv", 1));
    let layer = &prepared.layers[0];
    assert_eq!(std::fs::read(layer.join("usr/bin/large")).unwrap(), large);
    assert_eq!(std::fs::metadata(layer.join("usr/bin/other")).unwrap().nlink(), 2);
    assert_eq!(std::fs::read(layer.join("usr/zeros")).unwrap(), vec![0; 300_000]);
    assert_eq!(std::fs::read_link(layer.join("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(
        std::fs::symlink_metadata(layer.join("usr/pipe")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(xattr::get(layer.join("usr/marked"), "user.mark").unwrap().as_deref(), Some(&b"kept"[..]));
    assert!(!layer.join("etc/berth-image.json").exists() && layer.join("etc/rc").exists());
    let out = bench.path().join("unpacked");
    tool("squashfs-tools", "unsquashfs", &["-quiet", "-no-progress", "-dest", &text(&out), &text(&path)]);
    assert_eq!(std::fs::read(out.join("usr/bin/other")).unwrap(), large);
    assert_eq!(std::fs::metadata(out.join("usr/bin/other")).unwrap().nlink(), 2);
    assert_eq!(std::fs::read(out.join("usr/small")).unwrap(), b"small");
    assert_eq!(xattr::get(out.join("usr/marked"), "user.mark").unwrap().as_deref(), Some(&b"kept"[..]));
    assert_eq!(std::fs::read_to_string(out.join("etc/environment")).unwrap(), "A=b c\n");
}

#[test]
fn times_that_squashfs_does_not_have_become_the_nearest_that_it_has() {
    let bench = Bench::new();
    let times = [("-5.5", 0), ("-2000000000", 0), ("2147483648.7", 1 << 31), ("5000000000", (1 << 32) - 1)];
    let tar = times.iter().enumerate().fold(Tar::new(), |tar, (n, (time, _))| {
        tar.pax(&[("mtime", time.as_bytes())]).file(&n.to_string(), b"x")
    });
    let path = bench.path().join("own.sqsh");
    let bytes = [tar.end(), b"whole\n".to_vec()].concat();
    save_root(bytes.as_slice(), &path, SaveForm::of(&path), &ImageConfig::default()).unwrap();
    let prepared = bench.import_text(&text(&path)).unwrap();
    let out = bench.path().join("unpacked");
    tool("squashfs-tools", "unsquashfs", &["-quiet", "-no-progress", "-dest", &text(&out), &text(&path)]);
    for (n, (time, expected)) in times.iter().enumerate() {
        for place in [&prepared.layers[0], &out] {
            let found = std::fs::metadata(place.join(n.to_string())).unwrap().mtime();
            assert_eq!(found, *expected, "{time} in {}", place.display());
        }
    }
}

#[test]
fn an_archive_that_is_cut_off_makes_no_image() {
    let bench = Bench::new();
    let whole = archive(&random(5000));
    for name in ["cut.sqsh", "cut.tar", "cut.oci"] {
        let path = bench.path().join(name);
        // Before the word behind the end, between two files, within one.
        for length in [whole.len() - 6, 2 * 512, 3 * 512 + 100, 0] {
            save_root(&whole[..length], &path, SaveForm::of(&path), &ImageConfig::default()).unwrap_err();
            assert!(!path.exists());
        }
        let left = std::fs::read_dir(bench.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("partial"));
        assert_eq!(left.count(), 0);
    }
}

#[test]
fn images_of_mksquashfs_are_read_whatever_their_blocks_and_tables_are() {
    let bench = Bench::new();
    for (name, options) in [
        ("gzip", &["-comp", "gzip"][..]),
        ("zstd", &["-comp", "zstd", "-b", "1M"][..]),
        ("small", &["-comp", "gzip", "-b", "4096"][..]),
        ("plain", &["-comp", "gzip", "-noI", "-noD", "-noF", "-noX"][..]),
        ("whole", &["-comp", "zstd", "-no-fragments"][..]),
        ("xz", &["-comp", "xz", "-b", "1M"][..]),
        ("filtered", &["-comp", "xz", "-Xbcj", "x86,arm"][..]),
        ("lzo", &["-comp", "lzo", "-b", "1M"][..]),
        ("quick", &["-comp", "lzo", "-Xalgorithm", "lzo1x_1_11"][..]),
    ] {
        let large = random(70_000);
        // What compresses well, badly, near and far.
        let lines: String =
            (0..40_000_u32).map(|n| format!("{} {n}\n", n.wrapping_mul(2_654_435_761))).collect();
        let image = made(&bench, name, options, |tree| {
            std::fs::write(tree.join("etc/environment"), "FROM=enroot\n").unwrap();
            std::fs::write(tree.join("large"), &large).unwrap();
            std::fs::hard_link(tree.join("large"), tree.join("again")).unwrap();
            xattr::set(tree.join("large"), "user.mark", b"kept").unwrap();
            std::fs::write(tree.join("lines"), &lines).unwrap();
            std::fs::copy("/bin/sh", tree.join("program")).unwrap();
            let many = tree.join("many");
            std::fs::create_dir(&many).unwrap();
            for n in 0..700 {
                std::fs::write(many.join(format!("file-{n}")), n.to_string()).unwrap();
            }
            std::fs::create_dir(tree.join("empty")).unwrap();
        });
        let prepared = bench.import_text(&text(&image)).unwrap();
        assert_eq!(prepared.config.env, ["FROM=enroot"], "{name}");
        let layer = &prepared.layers[0];
        assert_eq!(std::fs::read(layer.join("again")).unwrap(), large, "{name}");
        assert_eq!(std::fs::metadata(layer.join("again")).unwrap().nlink(), 2, "{name}");
        assert_eq!(std::fs::read_to_string(layer.join("lines")).unwrap(), lines, "{name}");
        let program = std::fs::read("/bin/sh").unwrap();
        assert!(std::fs::read(layer.join("program")).unwrap() == program, "{name}");
        assert_eq!(std::fs::read_dir(layer.join("many")).unwrap().count(), 700, "{name}");
        assert_eq!(std::fs::read_to_string(layer.join("many/file-699")).unwrap(), "699", "{name}");
        assert_eq!(
            xattr::get(layer.join("large"), "user.mark").unwrap().as_deref(),
            Some(&b"kept"[..]),
            "{name}"
        );
        assert!(layer.join("empty").is_dir(), "{name}");
    }
    let image = made(&bench, "lz4", &["-comp", "lz4"], |_| {});
    let error = looked_at(&image).unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unsupported && error.to_string().contains("compressed with lz4"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_as_it_was_is_not_read_again_for_its_name() {
    let bench = Bench::new();
    let home = bench.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let credentials = Credentials::from_parts(None, None, None, Some(&home));
    let digest =
        |image: &Path| match resolve(&text(image).parse().unwrap(), &credentials, &ResolveOptions::default())
        {
            Ok(Resolved::Manifest(found)) => found.digest,
            other => panic!("{other:?}"),
        };
    let fill = |what: &'static str| move |tree: &Path| std::fs::write(tree.join("etc/what"), what).unwrap();
    let image = made(&bench, "one", &[], fill("one"));
    let other = made(&bench, "two", &[], fill("two"));
    let cache = home.join(".cache/berth/squashfs");
    // What has changed just now is not remembered.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let (one, two) = (digest(&image), digest(&other));
    assert_ne!(one, two);
    let entries =
        || -> Vec<PathBuf> { std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect() };
    let kept = entries();
    assert_eq!(kept.len(), 2);
    // What stands there is what is answered: the two change places.
    let contents: Vec<_> = kept.iter().map(|path| std::fs::read(path).unwrap()).collect();
    std::fs::write(&kept[0], &contents[1]).unwrap();
    std::fs::write(&kept[1], &contents[0]).unwrap();
    assert_eq!((digest(&image), digest(&other)), (two.clone(), one.clone()));
    // Not where others may write, and not when it is damaged.
    let mode = |mode| std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o770);
    assert_eq!((digest(&image), digest(&other)), (one.clone(), two.clone()));
    mode(0o700);
    std::fs::write(&kept[0], &contents[0][..contents[0].len() / 2]).unwrap();
    std::fs::remove_file(&kept[1]).unwrap();
    assert_eq!((digest(&image), digest(&other)), (one.clone(), two.clone()));
    // Another file under the same path is another image.
    std::fs::rename(&other, &image).unwrap();
    assert_eq!(digest(&image), two);
}

#[test]
fn what_the_saved_image_says_of_itself_takes_no_name_of_the_containers_files() {
    let bench = Bench::new();
    let mut bytes = Tar::new()
        .dir("etc/", 0o755)
        .file("etc/environment", b"OLD=1\n")
        .hardlink("etc/kept", "etc/environment")
        .symlink("etc/rc", "environment")
        .end();
    bytes.extend_from_slice(b"whole\n");
    let path = bench.path().join("own.sqsh");
    let config = ImageConfig { env: vec!["NEW=2".to_string()], ..ImageConfig::default() };
    save_root(bytes.as_slice(), &path, SaveForm::of(&path), &config).unwrap();
    let layer = &bench.import_text(&text(&path)).unwrap().layers[0];
    let digest = layer.parent().unwrap().file_name().unwrap();
    assert_eq!(
        digest, "sha256-03f7eb856a83c1cce2468bea76611b2ef6e796428eb9ea96327beb5c0ec51482",
        "if another archive is made of an image, raise FORMAT in squashfs/remembered.rs"
    );
    let read = |name: &str| std::fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!((read("etc/kept").as_str(), read("etc/environment").as_str()), ("OLD=1\n", "NEW=2\n"));
    assert!(
        layer.join("etc/rc").symlink_metadata().unwrap().is_file()
            && read("etc/rc").starts_with("#!/bin/sh\n")
    );
}

#[test]
fn what_is_no_file_is_not_replaced_by_an_image() {
    let bench = Bench::new();
    let pipe = bench.path().join("pipe");
    tool("coreutils", "mkfifo", &[&text(&pipe)]);
    let file = bench.path().join("file.oci");
    std::fs::write(&file, "mine").unwrap();
    for (path, why) in [
        (&pipe, "no regular file"),
        (&file, "an OCI layout is a directory"),
        (&bench.path().to_path_buf(), "directory"),
    ] {
        // Nothing is read before.
        let error =
            save_root(&b""[..], path, SaveForm::of(path), &ImageConfig::default()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    assert!(!pipe.symlink_metadata().unwrap().is_file());
}

#[test]
fn a_table_is_as_large_as_what_is_read_of_it() {
    let bench = Bench::new();
    let image = made(&bench, "counts", &["-comp", "gzip", "-noI", "-noD", "-noF", "-noX"], |tree| {
        std::fs::write(tree.join("file"), "x").unwrap();
        xattr::set(tree.join("file"), "user.mark", b"kept").unwrap();
    });
    let digest = || match looked_at(&image).unwrap() {
        Resolved::Manifest(found) => found.digest,
        other => panic!("{other:?}"),
    };
    let honest = digest();
    let mut bytes = std::fs::read(&image).unwrap();
    // Four thousand million fragments, and as many lists of attributes, by the counts alone.
    bytes[16..20].fill(0xff);
    let xattrs = usize::try_from(u64::from_le_bytes(bytes[56..64].try_into().unwrap())).unwrap();
    bytes[xattrs + 8..xattrs + 12].fill(0xff);
    std::fs::write(&image, &bytes).unwrap();
    assert_eq!(digest(), honest);
}

#[test]
fn a_directory_below_itself_and_a_bomb_are_refused() {
    let bench = Bench::new();
    let image = made(&bench, "loop", &["-comp", "gzip", "-noI", "-noD", "-noF", "-noX"], |tree| {
        std::fs::create_dir(tree.join("below")).unwrap();
        std::fs::write(tree.join("below/file"), "x").unwrap();
    });
    let mut bytes = std::fs::read(&image).unwrap();
    looked_at(&image).unwrap();
    // The entry of `below` in the root's listing: its inode becomes the root's own.
    let entry = [&1_u16.to_le_bytes()[..], &4_u16.to_le_bytes(), b"below"].concat();
    let at = bytes.windows(entry.len()).position(|w| w == entry).expect("the listing is not compressed");
    let root = [bytes[32], bytes[33]];
    bytes[at - 4..at - 2].copy_from_slice(&root);
    std::fs::write(&image, &bytes).unwrap();
    let error = looked_at(&image).unwrap_err().to_string();
    assert!(error.contains("below itself"), "{error}");
    let image = made(&bench, "bomb", &["-comp", "gzip"], |tree| {
        std::fs::File::create(tree.join("hole")).unwrap().set_len(1536 << 20).unwrap();
    });
    let error = looked_at(&image).unwrap_err().to_string();
    assert!(error.contains("decompression bomb"), "{error}");
}

#[test]
fn damaged_images_are_errors_and_nothing_worse() {
    let bench = Bench::new();
    let image = made(&bench, "sound", &["-comp", "gzip", "-noI", "-noD", "-noF", "-noX"], |tree| {
        for n in 0..40 {
            std::fs::write(tree.join(format!("file-{n}")), vec![b'x'; n * 100]).unwrap();
        }
        std::os::unix::fs::symlink("file-1", tree.join("link")).unwrap();
        xattr::set(tree.join("file-2"), "user.mark", b"kept").unwrap();
    });
    let sound = std::fs::read(&image).unwrap();
    let (mut seed, mut refused) = (7_u64, 0);
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % below
    };
    // In the head, in the tables at the end, and anywhere.
    for round in 0..900 {
        let mut bytes = sound.clone();
        for _ in 0..=next(3) {
            let at = match round % 3 {
                0 => next(96),
                1 => bytes.len() - 1 - next(bytes.len() / 2),
                _ => next(bytes.len()),
            };
            bytes[at] = u8::try_from(next(256)).unwrap();
        }
        if round % 50 == 0 {
            bytes.truncate(next(sound.len()));
        }
        std::fs::write(&image, &bytes).unwrap();
        refused += usize::from(looked_at(&image).is_err());
    }
    assert!(refused > 200, "only {refused} of 900 were refused");
}

#[test]
fn blocks_that_would_be_unpacked_again_for_each_file_are_refused() {
    let bench = Bench::new();
    let sorted = bench.path().join("order");
    let of = |name: &str, options: &[&str]| {
        let image = made(
            &bench,
            name,
            &[&["-comp", "zstd", "-b", "1M", "-no-duplicates"], options].concat(),
            |tree| {
                let mut order = String::new();
                for n in 0..6144 {
                    std::fs::write(tree.join(format!("file-{n:04}")), [b'x'; 1024]).unwrap();
                    order.push_str(&format!("file-{n:04} {}\n", n % 6));
                }
                std::fs::write(&sorted, order).unwrap();
            },
        );
        looked_at(&image)
    };
    of("honest", &[]).unwrap();
    // Six blocks of a MiB, and each file has its end in another one than the file before it.
    let error = of("turning", &["-sort", &text(&sorted)]).unwrap_err().to_string();
    assert!(error.contains("decompression bomb"), "{error}");
}
