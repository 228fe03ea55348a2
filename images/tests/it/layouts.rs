//! Images in files: layouts and tars made by umoci and skopeo, sniffing, and what is refused by name.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;

use berth_images::{
    Algorithm, Credentials, Digest, ErrorKind, Reference, Registries, ResolveOptions, Resolved, open_source,
    resolve, save_archive,
};

use crate::support::{
    Bench, Compression, ImageBuilder, Tar, arch, gzip, is_whiteout, mode, only_layer, resolve_text, tool,
};

/// An image of two layers made by umoci from a directory, as people make them.
fn umoci_image(bench: &Bench) -> String {
    let layout = bench.path().join("made").display().to_string();
    let image = format!("{layout}:v1");
    let bundle = bench.path().join("bundle").display().to_string();
    tool("umoci", "umoci", &["init", "--layout", &layout]);
    tool("umoci", "umoci", &["new", "--image", &image]);
    tool("umoci", "umoci", &["unpack", "--rootless", "--image", &image, &bundle]);
    let root = Path::new(&bundle).join("rootfs");
    std::fs::create_dir_all(root.join("usr/bin")).unwrap();
    std::fs::create_dir_all(root.join("etc/old")).unwrap();
    std::fs::write(root.join("etc/old/file"), b"old").unwrap();
    std::fs::write(root.join("usr/bin/tool"), b"#!/bin/sh\n").unwrap();
    std::fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/same")).unwrap();
    std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
    tool("umoci", "umoci", &["repack", "--refresh-bundle", "--image", &image, &bundle]);
    std::fs::remove_dir_all(root.join("etc/old")).unwrap();
    std::fs::write(root.join("etc/new"), b"new").unwrap();
    tool("umoci", "umoci", &["repack", "--refresh-bundle", "--image", &image, &bundle]);
    tool(
        "umoci",
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.env",
            "A=b",
            "--config.entrypoint",
            "/bin/tool",
            "--config.cmd",
            "x",
            "--config.workingdir",
            "/etc",
            "--config.user",
            "1000:1000",
            "--config.label",
            "k=v",
        ],
    );
    layout
}

#[test]
fn an_image_of_umoci_is_read_in_every_file_form() {
    let bench = Bench::new();
    let layout = umoci_image(&bench);
    let archive = bench.path().join("image.tar").display().to_string();
    tool(
        "skopeo",
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--quiet",
            "--preserve-digests",
            &format!("oci:{layout}:v1"),
            &format!("oci-archive:{archive}:v1"),
        ],
    );
    let mut digests = Vec::new();
    for text in [
        format!("oci:{layout}"),
        format!("oci:{layout}:v1"),
        layout.clone(),
        format!("oci-archive:{archive}"),
        format!("oci-archive:{archive}:v1"),
        archive.clone(),
    ] {
        let image = bench.import_text(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        digests.push(image.digest.clone());
        assert_eq!(image.layers.len(), 2, "{text}");
        let (top, bottom) = (&image.layers[0], &image.layers[1]);
        assert_eq!(std::fs::read(bottom.join("etc/old/file")).unwrap(), b"old");
        assert!(is_whiteout(&top.join("etc/old")));
        assert_eq!(std::fs::read(top.join("etc/new")).unwrap(), b"new");
        assert_eq!(std::fs::metadata(bottom.join("usr/bin/same")).unwrap().nlink(), 2);
        let c = &image.config;
        assert_eq!(
            (c.env.last().unwrap().as_str(), c.entrypoint.as_slice(), c.cmd.as_slice()),
            ("A=b", &["/bin/tool".to_owned()][..], &["x".to_owned()][..])
        );
        assert_eq!((c.workdir.as_str(), c.user.as_str(), c.labels["k"].as_str()), ("/etc", "1000:1000", "v"));
    }
    digests.dedup();
    assert_eq!(digests.len(), 1);
    // Shared layers are there once, and names of the image are remembered.
    assert_eq!(bench.store().df().unwrap().layers, 2);
    assert_eq!(bench.store().find(&archive).unwrap(), digests[0]);
    assert_eq!(bench.store().find(&format!("oci:{layout}:v1")).unwrap(), digests[0]);
    assert_eq!(bench.store().find(digests[0].short()).unwrap(), digests[0]);
    assert!(bench.store().find("debian:12").unwrap_err().to_string().contains("berth image ls"));

    let error = bench.import_text(&format!("oci:{layout}:v2")).unwrap_err().to_string();
    assert!(error.contains("v1"), "{error}");
    tool("umoci", "umoci", &["tag", "--image", &format!("{layout}:v1"), "v2"]);
    // Two names of one image are no question; of two images they are.
    bench.import_text(&layout).unwrap();
    tool("umoci", "umoci", &["config", "--image", &format!("{layout}:v2"), "--config.label", "k=w"]);
    let error = bench.import_text(&layout).unwrap_err().to_string();
    assert!(error.contains("several images: v1, v2"), "{error}");
    bench.import_text(&format!("oci:{layout}:v2")).unwrap();
}

#[test]
fn what_docker_save_writes_is_read_with_its_names() {
    let bench = Bench::new();
    let layout = umoci_image(&bench);
    let archive = bench.path().join("docker.tar").display().to_string();
    let copy = [
        "--insecure-policy",
        "copy",
        "--quiet",
        &format!("oci:{layout}:v1"),
        &format!("docker-archive:{archive}:localhost/a/b:v1"),
    ];
    tool("skopeo", "skopeo", &copy);
    for text in [
        archive.clone(),
        format!("docker-archive:{archive}"),
        format!("docker-archive:{archive}:localhost/a/b:v1"),
    ] {
        let image = bench.import_text(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let (top, bottom) = (&image.layers[0], &image.layers[1]);
        assert_eq!(std::fs::read(bottom.join("etc/old/file")).unwrap(), b"old");
        assert!(is_whiteout(&top.join("etc/old")));
        assert_eq!(image.config.entrypoint, ["/bin/tool"]);
    }
    bench.store().find(&archive).unwrap();
    let copy = [
        "--insecure-policy",
        "copy",
        "--quiet",
        &format!("oci:{layout}:v1"),
        &format!("docker-archive:{archive}2:debian:12"),
    ];
    tool("skopeo", "skopeo", &copy);
    // skopeo writes docker.io/library/debian:12 into it.
    bench.import_text(&format!("docker-archive:{archive}2:debian:12")).unwrap();
    // The same layers as those of the layout: they are there once.
    bench.import_text(&format!("oci:{layout}")).unwrap();
    assert_eq!(bench.store().df().unwrap().layers, 2);
    let error = bench.import_text(&format!("docker-archive:{archive}:x")).unwrap_err().to_string();
    assert!(error.contains("localhost/a/b:v1"), "{error}");
}

/// `docker save` of two layers: one compressed, one found by a link, as old versions write them.
fn docker_archive(manifest: &str, ids: &[Digest]) -> Vec<u8> {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let config =
        json!({"architecture": arch(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}});
    Tar::new()
        .file("c.json", config.to_string().as_bytes())
        .file("1/layer.tar", &gzip(&first_layer()))
        .file("2/layer.tar", &second_layer())
        .symlink("3/layer.tar", "../2/layer.tar")
        .symlink("4/layer.tar", "../../../etc/passwd")
        .symlink("5/layer.tar", "layer.tar")
        .file("manifest.json", manifest.as_bytes())
        .end()
}

fn first_layer() -> Vec<u8> {
    Tar::new().file("a", b"first").end()
}

fn second_layer() -> Vec<u8> {
    Tar::new().file("a", b"second").end()
}

#[test]
fn old_and_odd_archives_of_docker() {
    let bench = Bench::new();
    let path = bench.path().join("x.tar");
    let of = |bytes: Vec<u8>| Digest::of(Algorithm::Sha256, &bytes);
    let (first, second) = (of(first_layer()), of(second_layer()));
    let taken = |manifest: serde_json::Value, ids: &[Digest]| {
        std::fs::write(&path, docker_archive(&manifest.to_string(), ids)).unwrap();
        bench.import_text(&path.display().to_string())
    };
    let image = |layers: &[&str]| json!([{"Config": "c.json", "RepoTags": null, "Layers": layers}]);
    let found = taken(image(&["1/layer.tar", "3/layer.tar"]), &[first.clone(), second.clone()]).unwrap();
    assert_eq!(std::fs::read(found.layers[0].join("a")).unwrap(), b"second");
    assert_eq!(std::fs::read(found.layers[1].join("a")).unwrap(), b"first");
    for (manifest, ids, word) in [
        (image(&["1/layer.tar"]), vec![first.clone(), second.clone()], "1 layers, and 2 digests"),
        (image(&["4/layer.tar"]), vec![first.clone()], "no file \"4/layer.tar\""),
        (image(&["5/layer.tar"]), vec![first.clone()], "no file \"5/layer.tar\""),
        (image(&["2/layer.tar"]), vec![of(b"other".to_vec())], "the bytes have digest"),
        (json!([{"Config": "../c.json", "Layers": []}]), vec![], "no file \"../c.json\""),
        (json!({"Config": 1}), vec![], "manifest.json is none"),
        (json!([]), vec![], "no images"),
        (json!(vec![json!({"Config": "c.json", "Layers": []}); 257]), vec![], "257 images"),
    ] {
        let error = taken(manifest, &ids).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn an_archive_of_several_images_is_asked_which() {
    let bench = Bench::new();
    let path = bench.path().join("x.tar");
    let layer = first_layer();
    let id = Digest::of(Algorithm::Sha256, &layer).to_string();
    let config = |label: &str| {
        json!({"architecture": arch(), "os": "linux", "config": {"Labels": {"is": label}},
               "rootfs": {"type": "layers", "diff_ids": [id]}})
        .to_string()
    };
    let write = |tags: [serde_json::Value; 2]| {
        let [a, b] = tags;
        let image = |config: &str, tags| json!({"Config": config, "RepoTags": tags, "Layers": ["l.tar"]});
        let manifest = json!([image("a.json", a), image("b.json", b)]).to_string();
        let tar = Tar::new().file("l.tar", &layer).file("a.json", config("a").as_bytes());
        let tar = tar.file("b.json", config("b").as_bytes()).file("manifest.json", manifest.as_bytes());
        std::fs::write(&path, tar.end()).unwrap();
    };
    let text = path.display().to_string();
    for (tags, words) in [
        ([json!(null), json!([])], ["several images: some without a name", "save them by their names"]),
        ([json!(["r.io/a:1"]), json!(null)], ["several images: r.io/a:1, some without a name", ":NAME"]),
        ([json!(["r.io/a:1"]), json!(["r.io/b:1"])], ["several images: r.io/a:1, r.io/b:1", ":NAME"]),
    ] {
        write(tags);
        for text in [text.clone(), format!("docker-archive:{text}")] {
            let error = bench.import_text(&text).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
    let named = bench.import_text(&format!("docker-archive:{text}:r.io/b:1")).unwrap();
    assert_eq!(named.config.labels["is"], "b");
    // What cannot be read is not said to be of another form.
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..700]).unwrap();
    let error = bench.import_text(&format!("docker-archive:{text}")).unwrap_err().to_string();
    assert!(error.contains(&text) && !error.contains("oci-archive"), "{error}");
}

#[test]
fn a_saved_archive_is_read_by_every_tool_and_a_corrupt_blob_leaves_none() {
    let bench = Bench::new();
    // What does not compress makes this layer the largest blob.
    let noise: Vec<u8> = (1..5000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let layer = Tar::new().file("usr/data", &noise).end();
    let other = Tar::new().file("usr/more", &[8; 513]).end();
    let layout = bench.layout();
    ImageBuilder::new(vec![layer.clone(), other, layer]).compressed(Compression::Gzip).write(&layout);
    let image = resolve_text(&format!("oci:{}", layout.display()), &Credentials::anonymous(), false).unwrap();
    let source = open_source(&image, &Registries::default(), &Credentials::anonymous()).unwrap();
    let path = bench.path().join("saved.tar");
    save_archive(&image, source.as_ref(), "v1", &path, &()).unwrap();
    let archive = path.display().to_string();
    let listed = tool("tar", "tar", &["-tvf", &archive]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    // Layout, index, manifest, configuration, and each different layer once; before them every directory, or skopeo gives it to root.
    let owner = std::fs::metadata(&path).unwrap();
    let (directory, file) = ("drwxr-xr-x", "-rw-r--r--");
    for (line, mode) in listed.lines().zip([directory, directory, file, file, file, file, file, file]) {
        assert!(line.starts_with(&format!("{mode} {}/{} ", owner.uid(), owner.gid())), "{listed}");
    }
    assert_eq!(listed.lines().count(), 8, "{listed}");
    tool("skopeo", "skopeo", &["inspect", &format!("oci-archive:{archive}:v1")]);
    let read = bench.import_text(&format!("oci-archive:{archive}:v1")).unwrap();
    assert_eq!((read.digest, read.layers.len()), (image.digest.clone(), 2));

    let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|e| e.unwrap().path());
    let largest = blobs.max_by_key(|p| std::fs::metadata(p).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, &bytes).unwrap();
    let again = bench.path().join("again.tar");
    let error = save_archive(&image, source.as_ref(), "v1", &again, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    std::fs::write(&largest, &bytes[..middle]).unwrap();
    let error = save_archive(&image, source.as_ref(), "v1", &again, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let left =
        std::fs::read_dir(bench.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = left.filter(|name| name.contains("again")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_archive_of_both_forms_is_read_and_found_as_what_it_was_called() {
    let bench = Bench::new();
    let image = bench.import(vec![first_layer(), second_layer()]).unwrap();
    let both = bench.path().join("both.tar");
    bench.store().export(&image.digest, &both, false, &()).unwrap();
    let as_called = |scheme: &str| {
        let name = format!("{scheme}:{}", both.display());
        let found = bench.import_text(&name).unwrap().digest.clone();
        (name, found)
    };
    let (oci, docker) = (as_called("oci-archive"), as_called("docker-archive"));
    assert_ne!(oci.1, docker.1, "docker's has a manifest of its own");
    for (name, digest) in [&oci, &docker] {
        assert_eq!(&bench.store().find(name).unwrap(), digest, "{name}");
    }
    // What a file is called does not make it what it is not; it is found by either name.
    let saved = bench.path().join("saved.tar");
    let only = oci.0.parse().unwrap();
    let only = resolve(&only, &Credentials::anonymous(), &ResolveOptions::default()).unwrap();
    let Resolved::Manifest(only) = only else { panic!("{only:?}") };
    let source = open_source(&only, &Registries::default(), &Credentials::anonymous()).unwrap();
    save_archive(&only, source.as_ref(), "v1", &saved, &()).unwrap();
    let called = format!("docker-archive:{}:v1", saved.display());
    let digest = bench.import_text(&called).unwrap().digest.clone();
    assert_eq!(bench.store().find(&called).unwrap(), digest);
}

#[test]
fn every_compression_and_digest_algorithm() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        for algorithm in [berth_images::Algorithm::Sha256, berth_images::Algorithm::Sha512] {
            let bench = Bench::new();
            let mut builder =
                ImageBuilder::new(vec![Tar::new().file("a", b"1").end(), Tar::new().file("b", b"2").end()])
                    .compressed(compression);
            builder.algorithm = algorithm;
            let image = bench.import_built(&builder).unwrap();
            assert_eq!(image.layers.len(), 2);
            assert_eq!(std::fs::read(image.layers[0].join("b")).unwrap(), b"2");
        }
    }
}

#[test]
fn gzip_of_several_members_and_zstd_with_skippable_frames() {
    let tar = Tar::new().file("a", &[1; 3000]).file("b", &[2; 3000]).end();
    let members = [crate::support::gzip(&tar[..1000]), crate::support::gzip(&tar[1000..])].concat();
    let mut frames = b"\x50\x2a\x4d\x18\x04\0\0\0skip".to_vec();
    frames.extend(zstd::encode_all(&tar[..2000], 1).unwrap());
    frames.extend(zstd::encode_all(&tar[2000..], 1).unwrap());
    for blob in [members, frames] {
        let bench = Bench::new();
        let layout = bench.layout();
        let digest = ImageBuilder::new(vec![tar.clone()]).write(&layout);
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(crate::support::blob_path(&layout, &digest)).unwrap())
                .unwrap();
        let blob_digest = berth_images::Digest::of(berth_images::Algorithm::Sha256, &blob);
        crate::support::put_blob(&layout, &blob_digest, &blob);
        manifest["layers"][0]["digest"] = blob_digest.to_string().into();
        manifest["layers"][0]["size"] = blob.len().into();
        let text = manifest.to_string();
        let digest = berth_images::Digest::of(berth_images::Algorithm::Sha256, text.as_bytes());
        crate::support::put_blob(&layout, &digest, text.as_bytes());
        crate::support::write_layout(
            &layout,
            &serde_json::json!({"schemaVersion": 2, "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": text.len()}]}),
        );
        let image = bench.import_text(&format!("oci:{}", layout.display())).unwrap();
        assert_eq!(std::fs::read(only_layer(&image).join("b")).unwrap(), [2; 3000]);
    }
}

#[test]
fn a_layer_that_occurs_twice_is_mounted_once() {
    let bench = Bench::new();
    let a = Tar::new().file("a", b"1").end();
    let b = Tar::new().file("b", b"2").end();
    let image = bench.import(vec![a.clone(), b.clone(), a, b]).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert!(image.layers[0].join("b").exists() && image.layers[1].join("a").exists());
}

#[test]
fn metadata_is_kept() {
    let bench = Bench::new();
    let long = "d/".to_owned() + &"n".repeat(200);
    let tar = Tar::new()
        .dir("d", 0o1777)
        .pax(&[("mtime", b"1234567890.987654321"), ("SCHILY.xattr.user.note", b"x\0y")])
        .entry("d/f", b'0', 0o640, "", b"data")
        .entry("././@LongLink", b'L', 0, "", format!("{long}\0").as_bytes())
        .file("short", b"long")
        .pax(&[("path", "d/ü\u{1F600}".as_bytes())])
        .file("x", b"unicode")
        .symlink("d/s", "../d/f");
    let tar = tar.raw(&Tar::header(b"d/\xff\xfe", b'0', 0o600, 0, b"")).dir("./", 0o711).end();
    let image = bench.import(vec![tar]).unwrap();
    let layer = only_layer(&image);
    use std::os::unix::ffi::OsStrExt;
    let meta = std::fs::metadata(layer.join("d/f")).unwrap();
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec(), mode(&layer.join("d/f"))),
        (1_234_567_890, 987_654_321, 0o640)
    );
    assert_eq!(crate::support::xattr(&layer.join("d/f"), "user.note").unwrap(), b"x\0y");
    assert_eq!(mode(&layer.join("d")), 0o1777);
    assert_eq!(std::fs::metadata(layer.join("d")).unwrap().mtime(), 1_600_000_000);
    assert_eq!(std::fs::symlink_metadata(layer.join("d/s")).unwrap().mtime(), 1_600_000_000);
    assert_eq!(mode(layer), 0o711);
    assert!(layer.join(&long).exists() && layer.join("d/ü\u{1F600}").exists());
    assert!(layer.join(std::ffi::OsStr::from_bytes(b"d/\xff\xfe")).exists());
}

#[test]
fn paths_are_sniffed_by_content() {
    let bench = Bench::new();
    let at = |name: &str| bench.path().join(name);
    let check = |path: &Path| -> Result<Resolved, berth_images::Error> {
        let reference: Reference = path.display().to_string().parse()?;
        resolve(&reference, &Credentials::anonymous(), &ResolveOptions::default())
    };
    std::fs::create_dir_all(at("root/usr")).unwrap();
    assert_eq!(check(&at("root")).unwrap(), Resolved::RootDir(at("root").canonicalize().unwrap()));
    std::fs::create_dir(at("empty")).unwrap();
    for (name, content, word) in [
        ("squash", b"hsqs0000".to_vec(), "shorter than its head"),
        (
            "sif",
            [b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC".to_vec(), vec![0; 600]].concat(),
            "only 01 is read",
        ),
        ("gz", crate::support::gzip(b"x"), "gunzip"),
        ("text", b"hello".to_vec(), "not a tar file"),
        (
            "erofs",
            [vec![0; 1024], b"\xe2\xe1\xf5\xe0".to_vec(), vec![0; 1020]].concat(),
            "an EROFS filesystem",
        ),
        ("ext4", [vec![0; 1080], b"\x53\xef".to_vec(), vec![0; 966]].concat(), "ext4 filesystem"),
        ("cut.ext4", [vec![0; 1080], b"\x53".to_vec()].concat(), "not a tar file"),
        ("nothing", Vec::new(), "is an empty file"),
        ("rootfs.tar", Tar::new().file("etc/passwd", b"x").end(), "neither oci-layout nor manifest.json"),
        ("docker.tar", Tar::new().file("manifest.json", b"[]").end(), "no images"),
        ("twice.tar", Tar::new().file("oci-layout", b"{}").file("oci-layout", b"{}").end(), "twice"),
    ] {
        std::fs::write(at(name), content).unwrap();
        let error = check(&at(name)).unwrap_err();
        assert!(error.to_string().contains(word), "{name}: {error}");
    }
    assert!(check(&at("empty")).unwrap_err().to_string().contains("neither an OCI layout"));
    let error = check(&at("missing")).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("missing"), "{error}");
    tool("coreutils", "mkfifo", &[&at("fifo").display().to_string()]);
    assert!(check(&at("fifo")).unwrap_err().to_string().contains("not a regular file"));
    let error = bench.import_text(&format!("oci:{}", at("root").display())).unwrap_err().to_string();
    assert!(error.contains("no file oci-layout"), "{error}");
    assert_eq!(
        resolve(&"host:".parse().unwrap(), &Credentials::anonymous(), &ResolveOptions::default()).unwrap(),
        Resolved::Host
    );
}

/// Between submission and start a file may be exchanged: what was pinned runs, or nothing.
#[test]
fn a_file_that_was_replaced_is_named_and_not_run() {
    for scheme in ["oci-archive", "docker-archive", "sqsh", "sif"] {
        let bench = Bench::new();
        let archive = bench.path().join("image");
        let file = archive.display().to_string();
        let text = if scheme.ends_with("archive") { format!("{scheme}:{file}") } else { file.clone() };
        let write = |name: &str| {
            let layout = bench.path().join(name);
            ImageBuilder::new(vec![Tar::new().file("a", name.as_bytes()).end()]).write(&layout);
            let tree = bench.path().join("tree");
            let _ = std::fs::remove_dir_all(&tree);
            std::fs::create_dir(&tree).unwrap();
            std::fs::write(tree.join("a"), name).unwrap();
            // In place of the other, as a build would.
            let _ = std::fs::remove_file(&archive);
            let from = format!("oci:{}", layout.display());
            let squash = |to: &str| {
                let fixed = ["-quiet", "-no-progress", "-noappend", "-all-time", "0", "-mkfs-time", "0"];
                let tree = tree.display().to_string();
                let words = [&[&tree, to][..], &fixed].concat();
                tool("squashfs-tools", "mksquashfs", &words);
            };
            match scheme {
                "docker-archive" => {
                    tool("skopeo", "skopeo", &["copy", "--quiet", &from, &format!("{text}:box:1")]);
                }
                "oci-archive" => {
                    tool("skopeo", "skopeo", &["copy", "--quiet", &from, &text]);
                }
                "sqsh" => squash(&file),
                _ => {
                    let part = bench.path().join("part").display().to_string();
                    squash(&part);
                    tool("siftool", "siftool", &["new", &file]);
                    let kind = ["--datatype", "4", "--parttype", "2", "--partfs", "1"];
                    let arch = if arch() == "arm64" { "4" } else { "2" };
                    let words = [&["add", &file, &part][..], &kind, &["--partarch", arch]].concat();
                    tool("siftool", "siftool", &words);
                }
            }
        };
        write("one");
        let pinned = resolve_text(&text, &Credentials::anonymous(), false).unwrap();
        write("two");
        let source = open_source(&pinned, &Registries::default(), &Credentials::anonymous()).unwrap();
        let error = bench.store().ensure(&pinned, source.as_ref(), &()).unwrap_err().to_string();
        assert!(
            error.contains("another one than when it was named") && error.contains("submit again"),
            "{error}"
        );
        bench.assert_no_work();
        // The same content is the same image, whenever and wherever the file was written: it is converted once.
        write("one");
        let again = resolve_text(&text, &Credentials::anonymous(), false).unwrap();
        assert_eq!(again.digest, pinned.digest);
    }
}
