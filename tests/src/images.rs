//! Real images, made once per machine and change of what makes them, and kept as OCI layouts in the cache.

use crate::{Cmd, machine};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One layer with busybox; `Cmd` is `sh`.
pub fn busybox() -> PathBuf {
    made("busybox", &IMAGES, &["busybox"])
}

/// Four layers over each other: files removed, directories emptied, replaced and made opaque, hard links.
pub fn layers() -> PathBuf {
    made("layers", &IMAGES, &["layers"])
}

/// busybox with ENV, WORKDIR, ENTRYPOINT, CMD and USER.
pub fn configured() -> PathBuf {
    made("configured", &IMAGES, &["configured"])
}

/// Debian, with apt, mount and procps: by debootstrap as root, from unpacked packages as an ordinary user.
pub fn debian() -> PathBuf {
    made("debian", &IMAGES, &["debian"])
}

/// Debian, and over it two layers with everything odd that a layer may hold, below `/odd`.
pub fn odd() -> PathBuf {
    made("odd", &["tests/odd-image.sh", "examples/debian-image.sh"], &[])
}

/// The same tree of files, in layers that podman can save.
pub fn odd_whole() -> PathBuf {
    made("odd-whole", &["tests/odd-image.sh", "examples/debian-image.sh"], &["--whole"])
}

/// Debian with MPICH's library, Open MPI's, the `mpirun` of both, and Slurm's library of PMI-2.
pub fn mpich() -> PathBuf {
    made("mpich", &["tests/mpi-image.sh", "examples/debian-image.sh"], &[])
}

/// Debian 13 with its MPICH, 4.2: the first that waits for nobody in `MPI_Finalize`. What Debian 12's compiler made runs by it.
pub fn newer_mpich() -> PathBuf {
    made("mpich-trixie", &["tests/mpi-image.sh", "examples/debian-image.sh"], &["--suite", "trixie"])
}

/// What runs a program by the MPICH of Debian 13 outside of containers, with that release's loader and all of its libraries, as a module of a
/// site's does: a script, which is given the program and what it is told.
pub fn newer_mpich_outside() -> PathBuf {
    let layout = newer_mpich();
    let root = PathBuf::from(format!("{}-unpacked", layout.display()));
    let script = root.join("by-this-mpich");
    let _guard = machine::lock("mpich-trixie-unpacked.lock");
    if script.exists() {
        return script;
    }
    let blob = |digest: &Value| {
        let digest = digest["digest"].as_str().unwrap().replacen(':', "/", 1);
        layout.join("blobs").join(digest)
    };
    let read = |file: &Path| -> Value { serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap() };
    let manifest = read(&blob(&read(&layout.join("index.json"))["manifests"][0]));
    let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(&root).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let tar = Cmd::new("tar").args(["--no-same-owner", "--exclude=./dev/*", "--exclude=dev/*", "-xf"]);
        tar.arg(blob(layer)).arg("-C").arg(&root).limit(120).ok();
    }
    let (loader, libraries) = ("lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu");
    let text =
        format!("#!/bin/sh\nexec {0}/{loader} --library-path {0}/{libraries} \"$@\"\n", root.display());
    // What is begun and not finished has no such script.
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// What makes the images that have a name in the first of these.
const IMAGES: [&str; 2] = ["tests/images.sh", "examples/debian-image.sh"];

/// By name and by what it is made of: a change of a script makes it anew. The first of the scripts makes it.
fn made(name: &str, scripts: &[&str; 2], words: &[&str]) -> PathBuf {
    let scripts = scripts.map(|path| machine::workspace().join(path));
    let texts = scripts.each_ref().map(|script| std::fs::read(script).unwrap());
    let of = texts.each_ref().map(Vec::as_slice);
    kept(name, &of, |path| {
        Cmd::new(&scripts[0]).args(words).arg(path).env("HOME", machine::cache()).limit(280).ok();
    })
}

/// A directory in the cache, which `make` makes once per machine and change of what it is made of. The path that it is given is
/// not there yet.
pub fn kept(name: &str, of: &[&[u8]], make: impl FnOnce(&Path)) -> PathBuf {
    let mut hash = Sha256::new();
    of.iter().for_each(|part| hash.update(part));
    let key: String = hash.finalize().iter().take(6).map(|b| format!("{b:02x}")).collect();
    let images = machine::cache().join("images");
    let path = images.join(format!("{name}-{key}"));
    let _guard = machine::lock(&format!("{name}.lock"));
    if !path.exists() {
        std::fs::create_dir_all(&images).unwrap();
        machine::remove_old(&images, name, WEEK);
        let partial = images.join(format!("partial-{name}"));
        // Of one that was ended while it was made.
        let _ = std::fs::remove_dir_all(&partial);
        make(&partial);
        std::fs::rename(&partial, &path).unwrap();
    }
    path
}

/// After which nobody goes back to what a script was.
const WEEK: Duration = Duration::from_secs(7 * 86400);
