//! SIF images made by siftool around images of mksquashfs, as Apptainer makes them.

use std::path::{Path, PathBuf};

use berth_images::{Algorithm, Credentials, Digest, Platform, ResolveOptions, resolve};
use serde_json::json;

use crate::support::{Bench, ImageBuilder, Tar, arch, is_whiteout, tool, xattr};

const KEY: &str = "433FE984155206BD962725E20E8713472A879943";

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A squashfs image of what Apptainer makes of an OCI image.
fn partition(bench: &Bench) -> PathBuf {
    let tree = bench.path().join("tree");
    for (name, content) in [
        ("bin/tool", "#!/bin/sh\n"),
        (
            ".singularity.d/env/10-docker2singularity.sh",
            "#!/bin/sh\nexport PATH=\"/usr/bin:/bin\"\nexport LANG=\"${LANG:-\"C.UTF-8\"}\"\n",
        ),
        (
            ".singularity.d/env/90-environment.sh",
            "#!/bin/sh\n    export PATH=/opt/bin:$PATH\n    if true; then\n  export HIDDEN=1\n    fi\n    export SHOWN=1\n",
        ),
        (".singularity.d/env/91-environment.sh", "export BUILT=\"$SHOWN 2\"\n"),
        (".singularity.d/labels.json", "{\"org.label-schema.usage\": \"none\"}"),
        (".singularity.d/runscript", "#!/bin/sh\nexec \"$@\"\n"),
    ] {
        let path = tree.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let image = bench.path().join("root.sqsh");
    tool("squashfs-tools", "mksquashfs", &[&text(&tree), &text(&image), "-quiet", "-no-progress"]);
    image
}

/// A SIF file with a partition for an architecture by its number: 2 is amd64, 4 arm64.
fn sif(bench: &Bench, name: &str, (fs, architecture): (&str, &str)) -> PathBuf {
    let path = bench.path().join(name);
    let definition = bench.path().join("definition");
    std::fs::write(&definition, "bootstrap: docker\nfrom: debian:12\n").unwrap();
    tool("siftool", "siftool", &["new", &text(&path)]);
    let partition = text(&partition(bench));
    for object in [
        vec![text(&definition), "--datatype".into(), "1".into(), "--groupid".into(), "1".into()],
        [
            &partition,
            "--datatype",
            "4",
            "--parttype",
            "2",
            "--partfs",
            fs,
            "--partarch",
            architecture,
            "--groupid",
            "1",
        ]
        .map(str::to_owned)
        .to_vec(),
    ] {
        let mut words = vec!["add".to_owned(), text(&path)];
        words.extend(object);
        tool("siftool", "siftool", &words.iter().map(String::as_str).collect::<Vec<_>>());
    }
    path
}

fn own() -> &'static str {
    if arch() == "arm64" { "4" } else { "2" }
}

fn signatures(bench: &Bench, name: &str) -> String {
    let store = bench.store();
    let shown = store.inspect(&store.find(name).unwrap()).unwrap();
    let shown = serde_json::to_value(&shown).unwrap().to_string();
    let (_, rest) = shown.split_once("io.berth.sif.signatures\":\"").expect("no word of signatures");
    rest.split('"').next().unwrap().to_owned()
}

#[test]
fn an_image_of_apptainer_is_read_with_what_it_says_of_itself() {
    let bench = Bench::new();
    let path = sif(&bench, "x.sif", ("1", own()));
    let image = bench.import_text(&text(&path)).unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("bin/tool")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(image.config.env, ["LANG=C.UTF-8", "PATH=/opt/bin:/usr/bin:/bin", "SHOWN=1", "BUILT=1 2"]);
    assert_eq!(image.config.entrypoint, ["/.singularity.d/runscript"]);
    assert_eq!(image.config.labels["org.label-schema.usage"], "none");
    let name = format!("sif:{}", path.display());
    assert_eq!(signatures(&bench, &name), "none");
    assert_eq!(bench.store().find(&text(&path)).unwrap(), image.digest);
    assert_eq!(bench.store().verify(&[]).unwrap().problems(), Vec::<String>::new());
    // The same root as that of the squashfs image alone: its layer is there once.
    bench.import_text(&text(&bench.path().join("root.sqsh"))).unwrap();
    assert_eq!(bench.store().df().unwrap().layers, 1);

    let signature = bench.path().join("signature");
    std::fs::write(&signature, "-----BEGIN PGP SIGNED MESSAGE-----\n").unwrap();
    let words = [
        "add",
        &text(&path),
        &text(&signature),
        "--datatype",
        "5",
        "--signhash",
        "1",
        "--signentity",
        KEY,
        "--link",
        "2",
    ];
    tool("siftool", "siftool", &words);
    bench.import_text(&text(&path)).unwrap();
    assert_eq!(signatures(&bench, &name), format!("not checked, by {KEY}"));
}

#[test]
fn sif_files_that_cannot_be_run_are_refused_by_name() {
    let bench = Bench::new();
    let foreign = sif(&bench, "foreign.sif", ("1", if own() == "4" { "2" } else { "4" }));
    let error = bench.import_text(&text(&foreign)).unwrap_err().to_string();
    assert!(error.contains("it is for linux/") && error.contains("this machine is linux/"), "{error}");
    let options = ResolveOptions {
        platform: Platform { architecture: if own() == "4" { "amd64".into() } else { "arm64".into() } },
        ..ResolveOptions::default()
    };
    resolve(&text(&foreign).parse().unwrap(), &Credentials::anonymous(), &options).unwrap();

    let error = bench.import_text(&text(&sif(&bench, "ext3.sif", ("2", own())))).unwrap_err().to_string();
    assert!(error.contains("ext3") && error.contains("apptainer build --sandbox"), "{error}");

    let whole = std::fs::read(sif(&bench, "whole.sif", ("1", own()))).unwrap();
    let cut = bench.path().join("cut.sif");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let error = bench.import_text(&text(&cut)).unwrap_err().to_string();
    assert!(error.contains("outside of the file") || error.contains("cut off"), "{error}");
}

#[test]
fn damaged_sif_files_are_errors_and_nothing_worse() {
    let bench = Bench::new();
    let path = sif(&bench, "x.sif", ("1", own()));
    let whole = std::fs::read(&path).unwrap();
    let mut seed = 7_u64;
    for _ in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Head and descriptors.
            let at = usize::try_from(seed >> 33).unwrap() % 6000;
            bytes[at] = seed.to_le_bytes()[6];
        }
        std::fs::write(&path, &bytes).unwrap();
        // Refused, or read: but neither a panic nor without an end.
        let _ = resolve(&text(&path).parse().unwrap(), &Credentials::anonymous(), &ResolveOptions::default());
    }
}

/// A SIF file around an OCI layout, as Singularity 4 makes it: the index and each blob are an object, and blobs have their
/// digests in their descriptors.
fn around(layout: &Path, to: &Path) {
    around_signed(layout, to, None);
}

/// With a signature of its group by the key of this fingerprint, if one is given.
fn around_signed(layout: &Path, to: &Path, key: Option<[u8; 20]>) {
    let mut objects = vec![(0x400a_i32, std::fs::read(layout.join("index.json")).unwrap())];
    for entry in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        objects.push((0x400b, std::fs::read(entry.unwrap().path()).unwrap()));
    }
    if key.is_some() {
        objects.push((0x4005, b"-----BEGIN PGP SIGNED MESSAGE-----\n".to_vec()));
    }
    let start = 4096 + 585 * objects.len();
    let (mut table, mut data) = (Vec::<u8>::new(), Vec::<u8>::new());
    for (number, (kind, bytes)) in objects.iter().enumerate() {
        let mut descriptor = kind.to_le_bytes().to_vec();
        descriptor.push(1);
        let link = if *kind == 0x4005 { 0xf000_0001 } else { 0 };
        for field in [u32::try_from(number + 1).unwrap(), 0xf000_0001, link] {
            descriptor.extend(field.to_le_bytes());
        }
        let (place, length) = ((start + data.len()) as u64, bytes.len() as u64);
        for field in [place, length, length] {
            descriptor.extend(field.to_le_bytes());
        }
        descriptor.resize(201, 0);
        match key.filter(|_| *kind == 0x4005) {
            Some(key) => {
                descriptor.extend(1_i32.to_le_bytes());
                descriptor.extend(key);
            }
            None => descriptor.extend(Digest::of(Algorithm::Sha256, bytes).to_string().as_bytes()),
        }
        descriptor.resize(585, 0);
        table.extend(descriptor);
        data.extend(bytes);
    }
    let mut file = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\0".to_vec();
    file.extend(if own() == "4" { b"04\0" } else { b"02\0" });
    file.resize(80, 0);
    for field in [0, objects.len(), 4096, table.len(), start, data.len()] {
        file.extend((field as u64).to_le_bytes());
    }
    file.resize(4096, 0);
    file.extend(table);
    file.extend(data);
    std::fs::write(to, file).unwrap();
    // It is one to the format's own tool.
    let listed = tool("siftool", "siftool", &["list", &text(to)]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.lines().filter(|line| line.contains('|')).count() > objects.len(), "{listed}");
}

#[test]
fn an_oci_image_in_a_sif_file_is_what_its_layout_is() {
    let bench = Bench::new();
    let layers = vec![
        Tar::new().dir("d", 0o755).file("d/gone", b"1").file("kept", b"kept").end(),
        Tar::new().file("d/.wh.gone", b"").file("new", b"new").end(),
    ];
    let digest =
        ImageBuilder::new(layers).compressed(crate::support::Compression::Gzip).write(&bench.layout());
    let path = bench.path().join("oci.sif");
    around(&bench.layout(), &path);
    let image = bench.import_text(&text(&path)).unwrap();
    assert_eq!((&image.digest, image.layers.len()), (&digest, 2));
    let said = |bench: &Bench| bench.store().inspect(&digest).unwrap().sif_signatures;
    assert_eq!(said(&bench).as_deref(), Some("none"));
    // Its manifest is the registry's, and has no word of it.
    let (signed, other) = (bench.path().join("signed.sif"), Bench::new());
    around_signed(&bench.layout(), &signed, Some([0xab; 20]));
    other.import_text(&text(&signed)).unwrap();
    assert_eq!(said(&other), Some(format!("not checked, by {}", "AB".repeat(20))));
    let plain = Bench::new();
    plain.import_text(&format!("oci:{}", bench.layout().display())).unwrap();
    assert_eq!(said(&plain), None);
    assert_eq!(std::fs::read(image.layers[0].join("new")).unwrap(), b"new");
    assert!(is_whiteout(&image.layers[0].join("d/gone")));
    assert_eq!(bench.store().verify(&[]).unwrap().problems(), Vec::<String>::new());
    // Wrong bytes are known by their digests.
    let mut bytes = std::fs::read(&path).unwrap();
    let name = bytes.windows(14).rposition(|w| w == b"\"schemaVersion").unwrap();
    bytes[name + 3] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(Bench::new().import_text(&text(&path)).is_err());
}

/// A layout of layers that are squashfs images of directories.
fn squashed(bench: &Bench, trees: &[&Path], kind: &str) {
    squashed_as(bench, trees, kind, None);
}

/// With this configuration, if one is given.
fn squashed_as(bench: &Bench, trees: &[&Path], kind: &str, config: Option<serde_json::Value>) {
    let layout = bench.layout();
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8], kind: &str| {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        crate::support::put_blob(&layout, &digest, bytes);
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    };
    let mut layers = Vec::new();
    for (number, tree) in trees.iter().enumerate() {
        let image = bench.path().join("layer.sqsh");
        let _ = std::fs::remove_file(&image);
        let words = [&text(tree), &text(&image), "-quiet", "-no-progress", "-p", "gone c 0 0 0 0 0"];
        tool("squashfs-tools", "mksquashfs", &words[..if number == 0 { 4 } else { 6 }]);
        layers.push(put(&std::fs::read(&image).unwrap(), if number == 0 { SQUASHFS } else { kind }));
    }
    let ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let usual = json!({
        "architecture": arch(), "os": "linux", "config": {"Env": ["A=b"], "Cmd": ["/bin/x"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = config.unwrap_or(usual);
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let manifest = put(manifest.to_string().as_bytes(), kind);
    crate::support::write_layout(&layout, &json!({"schemaVersion": 2, "manifests": [manifest]}));
}

const SQUASHFS: &str = "application/vnd.sylabs.image.layer.v1.squashfs";

#[test]
fn squashfs_layers_of_an_oci_image_are_layers() {
    let bench = Bench::new();
    let (lower, upper) = (bench.path().join("lower"), bench.path().join("upper"));
    for (tree, files) in [(&lower, &["gone", "kept", "d/old", "e/old"][..]), (&upper, &["d/new", "e/new"])] {
        for file in files {
            std::fs::create_dir_all(tree.join(file).parent().unwrap()).unwrap();
            std::fs::write(tree.join(file), file).unwrap();
        }
    }
    // As tools write it for root, and for others.
    let root = rustix::process::geteuid().is_root();
    let opaque = if root { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
    xattr::set(upper.join("d"), opaque, b"y").unwrap();
    squashed(&bench, &[&lower, &upper], SQUASHFS);
    let path = bench.path().join("oci.sif");
    around(&bench.layout(), &path);
    let image = bench.import_text(&text(&path)).unwrap();
    assert_eq!((image.layers.len(), image.config.env[0].as_str()), (2, "A=b"));
    assert_eq!(image.config.cmd, ["/bin/x"]);
    let (top, bottom) = (&image.layers[0], &image.layers[1]);
    assert_eq!(std::fs::read(bottom.join("gone")).unwrap(), b"gone");
    assert!(is_whiteout(&top.join("gone")) && !top.join("kept").exists());
    assert_eq!(xattr(&top.join("d"), "user.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(xattr(&top.join("e"), "user.overlay.opaque").filter(|value| value == b"y"), None);
    assert_eq!(std::fs::read(top.join("d/new")).unwrap(), b"d/new");
    assert_eq!(bench.store().verify(&[]).unwrap().problems(), Vec::<String>::new());
    // It is pinned by what is in it.
    let again = crate::support::resolve_text(&text(&path), &Credentials::anonymous(), false).unwrap();
    assert_eq!(again.digest, image.digest);
    // One that stands in its place does not run.
    let other = Bench::new();
    squashed(&other, &[&upper], SQUASHFS);
    around(&other.layout(), &path);
    let source =
        berth_images::open_source(&again, &berth_images::Registries::default(), &Credentials::anonymous());
    let error = Bench::new().store().ensure(&again, source.unwrap().as_ref(), &()).unwrap_err().to_string();
    assert!(error.contains("another one than when it was named"), "{error}");

    let mixed = Bench::new();
    squashed(&mixed, &[&lower, &upper], "application/vnd.oci.image.layer.v1.tar");
    around(&mixed.layout(), &path);
    let error = mixed.import_text(&text(&path)).unwrap_err().to_string();
    assert!(error.contains("some of its layers are squashfs"), "{error}");
}

#[test]
fn a_configuration_that_is_none_is_refused() {
    let tree = tempfile::tempdir().unwrap();
    for config in [json!([]), json!("text"), json!(7), json!(null), json!(true)] {
        let bench = Bench::new();
        squashed_as(&bench, &[tree.path()], SQUASHFS, Some(config.clone()));
        let path = bench.path().join("oci.sif");
        around(&bench.layout(), &path);
        let error = bench.import_text(&text(&path)).unwrap_err().to_string();
        assert!(error.contains("is malformed"), "{config}: {error}");
    }
}
