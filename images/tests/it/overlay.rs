//! Layers mounted: the kernel's overlay shows what the image means. As any user, in a user namespace.

use std::process::Command;

use crate::support::{Bench, Tar};

/// Lists the merged tree, in namespaces of its own.
fn merged(image: &berth_images::PreparedImage, bench: &Bench) -> String {
    let mount = bench.path().join("mnt");
    std::fs::create_dir_all(&mount).unwrap();
    let lower: Vec<String> = image.layers.iter().map(|l| l.display().to_string()).collect();
    // Two lowers at least; an overlay of one needs an upper.
    let script = format!(
        "mount -t overlay overlay -o userxattr,lowerdir={} {mount} && cd {mount} && find . -mindepth 1 | sort && for f in $(find . -type f); do echo \"$f=$(cat $f)\"; done",
        lower.join(":"),
        mount = mount.display()
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .output()
        .unwrap_or_else(|e| panic!("cannot run unshare: {e}; install the Debian package util-linux"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_they_should() {
    let bench = Bench::new();
    let lower = Tar::new()
        .file("keep", b"keep")
        .file("gone", b"gone")
        .dir("gonedir", 0o755)
        .file("gonedir/x", b"x")
        .dir("opaque", 0o755)
        .file("opaque/old", b"old")
        .dir("merged", 0o755)
        .file("merged/old", b"old")
        .dir("again", 0o755)
        .file("again/old", b"old")
        .end();
    let upper = Tar::new()
        .file(".wh.gone", b"")
        .file(".wh.gonedir", b"")
        .dir("opaque", 0o755)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .file("merged/new", b"new")
        .file(".wh.again", b"")
        .file("again/new", b"new")
        .end();
    let image = bench.import(vec![lower, upper]).unwrap();
    let tree = merged(&image, &bench);
    let names: Vec<&str> = tree.lines().filter(|l| !l.contains('=')).collect();
    assert_eq!(
        names,
        [
            "./again",
            "./again/new",
            "./keep",
            "./merged",
            "./merged/new",
            "./merged/old",
            "./opaque",
            "./opaque/new"
        ]
    );
    assert!(tree.contains("./merged/old=old") && tree.contains("./keep=keep"), "{tree}");
}
