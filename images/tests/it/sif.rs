//! SIF images made by siftool around images of mksquashfs, as Apptainer makes them.

use std::path::{Path, PathBuf};

use berth_images::{Credentials, Platform, ResolveOptions, resolve};

use crate::support::{Bench, arch, tool};

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
