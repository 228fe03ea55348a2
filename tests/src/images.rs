//! Real images, made once per machine by `tests/images.sh` and kept as OCI layouts in the cache.

use crate::{Cmd, machine};
use std::path::PathBuf;

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

/// Debian: by debootstrap as root, from unpacked packages as an ordinary user.
pub fn debian() -> PathBuf {
    made("debian")
}

fn made(name: &str) -> PathBuf {
    let path = machine::cache().join("images").join(name);
    let _guard = machine::lock(&format!("{name}.lock"));
    if !path.join("index.json").exists() {
        Cmd::new(machine::workspace().join("tests/images.sh"))
            .arg(name)
            .arg(&path)
            .env("HOME", machine::cache())
            .limit(280)
            .ok();
    }
    path
}
