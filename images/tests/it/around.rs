//! What stands around layers, made to hurt: the files of layouts, the members of archives, documents and digests, the directories of
//! squashfs images. In both forms of layers, where a layer is read at all.

use std::os::unix::fs::symlink;
use std::path::Path;

use berth_images::{
    Algorithm, Credentials, Digest, Error, ErrorKind, Limits, Reference, Registries, ResolveOptions,
    Resolved, leads_to, resolve_with_proof,
};
use serde_json::{Value, json};

use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::{
    Bench, Compression, FORMS, ImageBuilder, Tar, arch, blob_path, ensure_text, gzip, mode, only_layer,
    put_blob, tool, write_layout,
};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn digest(value: &Value) -> Digest {
    value["digest"].as_str().unwrap().parse().unwrap()
}

/// Nothing but files is read, and nobody waits for what is none.
#[test]
fn what_is_no_file_in_a_layout_is_not_read() {
    type Put<'a> = (&'a str, &'a dyn Fn(&Path));
    let puts: [Put<'_>; 5] = [
        ("a FIFO", &|path| {
            tool("coreutils", "mkfifo", &[path.to_str().unwrap()]);
        }),
        ("a link to a FIFO", &|path| {
            let fifo = path.with_extension("fifo");
            tool("coreutils", "mkfifo", &[fifo.to_str().unwrap()]);
            symlink(fifo, path).unwrap();
        }),
        ("a link to a device without end", &|path| symlink("/dev/zero", path).unwrap()),
        ("a socket", &|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
        ("a directory", &|path| std::fs::create_dir(path).unwrap()),
    ];
    for form in FORMS {
        for (what, put) in &puts {
            for place in ["oci-layout", "index.json", "manifest", "config", "layer"] {
                let bench = Bench::of(form);
                let layout = bench.layout();
                let of_manifest = ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&layout);
                let manifest = read(&blob_path(&layout, &of_manifest));
                let path = match place {
                    "manifest" => blob_path(&layout, &of_manifest),
                    "config" => blob_path(&layout, &digest(&manifest["config"])),
                    "layer" => blob_path(&layout, &digest(&manifest["layers"][0])),
                    name => layout.join(name),
                };
                std::fs::remove_file(&path).unwrap();
                put(&path);
                let error = bench.import_text(&format!("oci:{}", layout.display())).unwrap_err().to_string();
                assert!(
                    error.contains("not a regular file") || error.contains("No such device"),
                    "{what} as {place}: {error}"
                );
                if bench.path().join("store").exists() {
                    bench.assert_empty();
                }
            }
        }
    }
}

#[test]
fn documents_that_are_too_large_are_not_read_into_memory() {
    for place in ["oci-layout", "index.json", "manifest", "config"] {
        let bench = Bench::new();
        let layout = bench.layout();
        let of_manifest = ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&layout);
        let path = match place {
            "manifest" => blob_path(&layout, &of_manifest),
            "config" => blob_path(&layout, &digest(&read(&blob_path(&layout, &of_manifest))["config"])),
            name => layout.join(name),
        };
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let error = bench.import_text(&format!("oci:{}", layout.display())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{place}: {error}");
        assert!(error.to_string().contains("larger than"), "{place}: {error}");
    }
}

/// An index of what has this descriptor, as a blob; gives its own.
fn index_of(layout: &Path, descriptor: &Value) -> Value {
    let kind = "application/vnd.oci.image.index.v1+json";
    let text = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [descriptor]}).to_string();
    let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
    put_blob(layout, &digest, text.as_bytes());
    json!({"mediaType": kind, "digest": digest.to_string(), "size": text.len()})
}

#[test]
fn indexes_of_indexes_end() {
    let bench = Bench::new();
    let layout = bench.layout();
    ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&layout);
    let mut descriptor = read(&layout.join("index.json"))["manifests"][0].clone();
    for depth in 1..6 {
        descriptor = index_of(&layout, &descriptor);
        write_layout(&layout, &json!({"schemaVersion": 2, "manifests": [descriptor]}));
        let taken = bench.import_text(&format!("oci:{}", layout.display()));
        match depth {
            1..=3 => drop(taken.unwrap_or_else(|e| panic!("{depth}: {e}"))),
            _ => assert!(taken.unwrap_err().to_string().contains("nested more than three deep"), "{depth}"),
        }
    }
    // A digest that means an index which lists that digest cannot be made; a store that says so lies.
    let zeros: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let own = json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": zeros.to_string(), "size": 1});
    let text = json!({"schemaVersion": 2, "manifests": [own]});
    put_blob(&layout, &zeros, text.to_string().as_bytes());
    write_layout(&layout, &text);
    let error = bench.import_text(&format!("oci:{}", layout.display())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

/// What those see who ask no registry, in this process and by the one that fetches as the user.
#[test]
fn a_name_by_the_digest_of_an_index_comes_with_what_proves_what_it_means() {
    let bench = Bench::new();
    let layout = bench.layout();
    ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&layout);
    let image = read(&layout.join("index.json"))["manifests"][0].clone();
    let inner = index_of(&layout, &image);
    let outer = index_of(&layout, &inner);
    let fake = FakeRegistry::new(layout, Behaviour::default());
    let registries = Registries::default().without_tls(&fake.address);
    let helpers = crate::mirrors::helpers(&bench, &registries, None, None);
    let options = ResolveOptions { registries, ..ResolveOptions::default() };
    for (named, indexes) in [(&outer, 2), (&inner, 1), (&image, 0)] {
        let reference: Reference = format!("{}/x@{}", fake.address, digest(named)).parse().unwrap();
        let here = resolve_with_proof(&reference, &Credentials::anonymous(), &options).unwrap();
        let (resolved, proof) = helpers.resolve_with_proof(&reference, bench.path()).unwrap();
        assert_eq!((&resolved, &proof), (&here.0, &here.1));
        let Resolved::Manifest(found) = resolved else { panic!("{reference}") };
        assert_eq!((&found.digest, proof.len()), (&digest(&image), indexes));
        leads_to(&digest(named), &proof, &found.digest).unwrap();
    }
}

#[test]
fn weak_and_misshapen_digests_are_refused_wherever_they_stand() {
    let weak = [
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "sha224:d14a028c2a3a2bc9476102bb288234c415a2b01f828ea62ac5b3e42f",
        "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
        "sha256:e3b0",
        "sha256:../../../../../../../../../../../../../../../../../../../etc/passwd",
        "sha256",
        "",
    ];
    for weak in weak {
        for place in ["index", "config", "layer", "diff"] {
            let bench = Bench::new();
            let layout = bench.layout();
            let of_manifest = ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&layout);
            let mut index = read(&layout.join("index.json"));
            let mut manifest = read(&blob_path(&layout, &of_manifest));
            let mut config = read(&blob_path(&layout, &digest(&manifest["config"])));
            let put = |value: &Value| {
                let text = value.to_string();
                let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
                put_blob(&layout, &digest, text.as_bytes());
                (digest.to_string(), text.len())
            };
            if place == "diff" {
                config["rootfs"]["diff_ids"][0] = weak.into();
            }
            let (digest, size) = put(&config);
            (manifest["config"]["digest"], manifest["config"]["size"]) = (digest.into(), size.into());
            match place {
                "config" => manifest["config"]["digest"] = weak.into(),
                "layer" => manifest["layers"][0]["digest"] = weak.into(),
                _ => {}
            }
            let (digest, size) = put(&manifest);
            let entry = &mut index["manifests"][0];
            (entry["digest"], entry["size"]) = (digest.into(), size.into());
            if place == "index" {
                entry["digest"] = weak.into();
            }
            write_layout(&layout, &index);
            let error = bench.import_text(&format!("oci:{}", layout.display())).unwrap_err();
            let told = error.to_string();
            assert!(told.contains("digest") || told.contains("malformed"), "{weak} as {place}: {told}");
            if bench.path().join("store").exists() {
                bench.assert_empty();
            }
        }
    }
}

/// A docker-archive of one layer, from members that stand in front.
fn saved(front: Tar, layer: &[u8]) -> Vec<u8> {
    let id = Digest::of(Algorithm::Sha256, layer).to_string();
    let config =
        json!({"architecture": arch(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": [id]}});
    let manifest = json!([{"Config": "c.json", "RepoTags": null, "Layers": ["l/layer.tar"]}]);
    front
        .file("c.json", config.to_string().as_bytes())
        .file("l/layer.tar", layer)
        .file("manifest.json", manifest.to_string().as_bytes())
        .end()
}

#[test]
fn members_of_an_archive_that_are_no_files_or_lead_elsewhere() {
    let layer = Tar::new().file("a", b"x").end();
    let victim = tempfile::tempdir().unwrap();
    let outside = victim.path().join("file");
    for form in FORMS {
        let bench = Bench::of(form);
        let taken = |front: Tar| -> Result<(), Error> {
            let path = bench.path().join("x.tar");
            std::fs::write(&path, saved(front, &layer)).unwrap();
            bench.import_text(&path.display().to_string()).map(drop)
        };
        // Nothing of an archive but what its manifest names is read, and all of it in place.
        taken(
            Tar::new()
                .entry("pipe", b'6', 0o644, "", b"")
                .entry("dev/mem", b'3', 0o666, "", b"")
                .symlink("passwd", "/etc/passwd")
                .file(&format!("{}", outside.display()), b"x"),
        )
        .unwrap();
        assert!(!outside.exists());
        for (front, says) in [
            (Tar::new().file("../evil", b"x"), ".."),
            (Tar::new().file("manifest.json", b"[]"), "twice"),
            (Tar::new().file("./manifest.json", b"[]"), "twice"),
            (Tar::new().file("/manifest.json", b"[]"), "twice"),
            (Tar::new().pax(&[("path", b"manifest.json")]).file("x", b"[]"), "twice"),
            (Tar::new().pax(&[("size", b"1")]).file("x", b"xx"), "disagree about the size"),
            (Tar::new().raw(&Tar::header(b"x", b'0', 0o644, 1 << 32, b"")), "in the middle"),
        ] {
            let error = taken(front).expect_err(says);
            assert!(error.to_string().contains(says), "wanted {says}: {error}");
        }
        // In place of what the manifest names.
        for (kind, link) in [
            (b'6', ""),
            (b'3', ""),
            (b'2', "/etc/passwd"),
            (b'2', "c.json"),
            (b'1', "l/layer.tar"),
            (b'5', ""),
        ] {
            for name in ["manifest.json", "c.json"] {
                let whole = saved(Tar::new(), &layer);
                let at = whole
                    .chunks(512)
                    .position(|block| block.starts_with(format!("{name}\0").as_bytes()))
                    .unwrap()
                    * 512;
                let size =
                    u64::from_str_radix(std::str::from_utf8(&whole[at + 124..at + 135]).unwrap(), 8).unwrap();
                let after = at + 512 + usize::try_from(size.next_multiple_of(512)).unwrap();
                let mut changed = whole[..at].to_vec();
                changed.extend(Tar::header(name.as_bytes(), kind, 0o644, 0, link.as_bytes()));
                changed.extend(&whole[after..]);
                let path = bench.path().join("y.tar");
                std::fs::write(&path, changed).unwrap();
                let error = bench.import_text(&path.display().to_string()).unwrap_err().to_string();
                assert!(
                    error.contains("neither oci-layout nor manifest.json") || error.contains("no file"),
                    "{error}"
                );
            }
        }
    }
}

/// Whatever brings a layer, the same code judges it.
#[test]
fn a_hostile_layer_is_refused_whatever_brings_it() {
    let hostile = Tar::new().file("../evil", b"x").end();
    let bomb = Tar::new().file("zeros", &vec![0; 64 << 20]).end();
    let limits = Limits { free_bytes: 8 << 20, ..Limits::default() };
    for form in FORMS {
        let bench = Bench::of(form);
        let refused = |text: &str, says: &str| {
            let store = bench.store().with_limits(limits.clone());
            let error =
                ensure_text(&store, text, &berth_images::Credentials::anonymous(), false).unwrap_err();
            assert!(error.to_string().contains(says), "{text}: {error}");
            bench.assert_empty();
        };
        for (layer, compression, says) in [
            (&hostile, Compression::Plain, ".."),
            (&hostile, Compression::Gzip, ".."),
            (&hostile, Compression::Zstd, ".."),
            (&bomb, Compression::Gzip, "decompression bomb"),
            (&bomb, Compression::Zstd, "decompression bomb"),
        ] {
            let layout = bench.layout();
            ImageBuilder::new(vec![layer.clone()]).compressed(compression).write(&layout);
            refused(&format!("oci:{}", layout.display()), says);
            let archive = bench.path().join("oci.tar");
            tool("tar", "tar", &["-C", layout.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
            refused(&archive.display().to_string(), says);
            std::fs::remove_dir_all(layout).unwrap();
        }
        for (plain, layer, says) in
            [(&hostile, hostile.clone(), ".."), (&bomb, gzip(&bomb), "decompression bomb")]
        {
            let path = bench.path().join("docker.tar");
            let id = Digest::of(Algorithm::Sha256, plain);
            let config = json!({"architecture": arch(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": [id.to_string()]}});
            let manifest = json!([{"Config": "c.json", "RepoTags": null, "Layers": ["l.tar"]}]);
            let tar = Tar::new().file("c.json", config.to_string().as_bytes()).file("l.tar", &layer);
            std::fs::write(&path, tar.file("manifest.json", manifest.to_string().as_bytes()).end()).unwrap();
            refused(&path.display().to_string(), says);
        }
    }
}

#[test]
fn names_of_64_kib_and_more_than_paths_hold_are_refused() {
    for form in FORMS {
        for (name, says) in [
            ("n".repeat(64 << 10), "4095 bytes"),
            (format!("d/{}", "n".repeat(64 << 10)), "4095 bytes"),
            (format!("{}x", "d/".repeat(32 << 10)), "4095 bytes"),
        ] {
            for tar in [
                Tar::new().pax(&[("path", name.as_bytes())]).file("x", b""),
                Tar::new()
                    .entry("././@LongLink", b'L', 0o644, "", format!("{name}\0").as_bytes())
                    .file("x", b""),
                Tar::new().file("x", b"").pax(&[("linkpath", name.as_bytes())]).hardlink("y", "x"),
            ] {
                let bench = Bench::of(form);
                let error = bench.import(vec![tar.end()]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
                assert!(error.to_string().contains(says), "{says}: {error}");
                assert!(error.to_string().len() < 4096, "the message does not repeat it");
                bench.assert_empty();
            }
        }
        // A link may say what it likes, but no filesystem holds it.
        let bench = Bench::of(form);
        let long = "t".repeat(64 << 10);
        let error =
            bench.import(vec![Tar::new().pax(&[("linkpath", long.as_bytes())]).symlink("x", "y").end()]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("link target") && error.len() < 4096, "{error}");
        bench.assert_empty();
    }
}

/// An image of mksquashfs with nothing compressed, to be changed.
fn squashfs(bench: &Bench, options: &[&str], fill: impl FnOnce(&Path)) -> std::path::PathBuf {
    let tree = bench.path().join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    fill(&tree);
    let image = bench.path().join("x.sqsh");
    let (from, to) = (tree.display().to_string(), image.display().to_string());
    let fixed = [
        from.as_str(),
        to.as_str(),
        "-quiet",
        "-no-progress",
        "-noappend",
        "-all-root",
        "-noI",
        "-noD",
        "-noF",
        "-noX",
    ];
    tool("squashfs-tools", "mksquashfs", &[&fixed[..], options].concat());
    image
}

#[test]
fn names_in_a_squashfs_image_that_lead_elsewhere_are_refused() {
    for form in FORMS {
        let bench = Bench::of(form);
        let image = squashfs(&bench, &[], |tree| {
            std::fs::create_dir(tree.join("dir")).unwrap();
            for name in ["q~", "wxyz", "dir/uvst"] {
                std::fs::write(tree.join(name), "x").unwrap();
            }
        });
        let whole = std::fs::read(&image).unwrap();
        bench.import_text(&image.display().to_string()).unwrap();
        for (old, new) in [
            (&b"q~"[..], &b".."[..]),
            (b"wxyz", b"../z"),
            (b"wxyz", b"/etc"),
            (b"wxyz", b"a/bc"),
            (b"wxyz", b"a\0bc"),
            (b"uvst", b"../x"),
        ] {
            let mut bytes = whole.clone();
            let places: Vec<usize> =
                (0..bytes.len() - old.len()).filter(|at| bytes[*at..].starts_with(old)).collect();
            let [at] = places[..] else { panic!("{places:?}") };
            bytes[at..at + new.len()].copy_from_slice(new);
            std::fs::write(&image, &bytes).unwrap();
            let error = bench.import_text(&image.display().to_string()).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Refused | ErrorKind::Corrupt), "{new:?}: {error}");
        }
    }
}

#[test]
fn devices_and_set_user_id_bits_of_a_squashfs_image_are_those_of_a_layer() {
    for form in FORMS {
        let bench = Bench::of(form);
        let pseudo = [
            "-p",
            "mem c 666 0 0 1 1",
            "-p",
            "disk b 666 0 0 8 0",
            "-p",
            "zero c 666 0 0 0 0",
            "-p",
            "su m 6755 0 0",
        ];
        let image = squashfs(&bench, &pseudo, |tree| std::fs::write(tree.join("su"), "x").unwrap());
        let prepared = bench.import_text(&image.display().to_string()).unwrap();
        let details = bench.store().inspect(&prepared.digest).unwrap();
        let report = details.layers[0].report.as_ref().unwrap();
        // A directory and the file: no device reaches an archive of them.
        assert_eq!((report.entries, report.devices_skipped), (2, 0), "{report:?}");
        let root = rustix::process::geteuid().is_root();
        assert_eq!(report.setid_stripped, u64::from(root));
        if form == berth_images::LayerForm::Directory {
            let layer = only_layer(&prepared);
            assert_eq!(mode(&layer.join("su")), if root { 0o755 } else { 0o6755 });
            for device in ["mem", "disk", "zero"] {
                assert!(layer.join(device).symlink_metadata().is_err(), "{device}");
            }
        }
    }
}
