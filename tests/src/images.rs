//! Real images, made once per machine and change of `tests/images.sh` and kept as OCI layouts in the cache.

use crate::{Cmd, machine};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::time::Duration;

/// One layer with busybox; `Cmd` is `sh`.
pub fn busybox() -> PathBuf {
    made("busybox")
}

/// Four layers over each other: files removed, directories emptied, replaced and made opaque, hard links.
pub fn layers() -> PathBuf {
    made("layers")
}

/// busybox with ENV, WORKDIR, ENTRYPOINT, CMD and USER.
pub fn configured() -> PathBuf {
    made("configured")
}

/// Debian, with apt, mount and procps: by debootstrap as root, from unpacked packages as an ordinary user.
pub fn debian() -> PathBuf {
    made("debian")
}

/// By name and by what it is made of: a change of a script makes it anew.
fn made(name: &str) -> PathBuf {
    let scripts = ["tests/images.sh", "examples/debian-image.sh"].map(|path| machine::workspace().join(path));
    let mut hash = Sha256::new();
    for script in &scripts {
        hash.update(std::fs::read(script).unwrap());
    }
    let key: String = hash.finalize().iter().take(6).map(|b| format!("{b:02x}")).collect();
    let images = machine::cache().join("images");
    let path = images.join(format!("{name}-{key}"));
    let _guard = machine::lock(&format!("{name}.lock"));
    if !path.join("index.json").exists() {
        std::fs::create_dir_all(&images).unwrap();
        machine::remove_old(&images, name, WEEK);
        Cmd::new(&scripts[0]).arg(name).arg(&path).env("HOME", machine::cache()).limit(280).ok();
    }
    path
}

/// After which nobody goes back to what a script was.
const WEEK: Duration = Duration::from_secs(7 * 86400);
