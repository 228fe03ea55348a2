//! `--container-writable-layer`: what holds what a container writes, and how much of it.

use crate::spec::{LayerKind, LayerSpec};

/// Reads `tmpfs|disk[:SIZE]`.
///
/// # Errors
/// The reason, without the text.
pub fn parse_layer(text: &str) -> Result<LayerSpec, String> {
    let (kind, size) = match text.split_once(':') {
        Some((kind, size)) => (kind, Some(size)),
        None => (text, None),
    };
    let kind = match kind {
        "tmpfs" => LayerKind::Tmpfs,
        "disk" => LayerKind::Disk,
        _ => return Err("is neither tmpfs nor disk".to_string()),
    };
    let size = match size {
        Some(text) => Some(crate::memory::parse(text).map_err(|e| e.to_string())?),
        None => None,
    };
    match size {
        Some(size) if size < SMALLEST_LAYER => Err(format!("holds less than {SMALLEST_LAYER} MiB")),
        _ => Ok(LayerSpec { kind, size }),
    }
}

/// A container needs some space for files of its own, in MiB.
const SMALLEST_LAYER: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers() {
        let some = |kind, size| Ok(LayerSpec { kind, size });
        assert_eq!(parse_layer("tmpfs"), some(LayerKind::Tmpfs, None));
        assert_eq!(parse_layer("disk:2G"), some(LayerKind::Disk, Some(2048)));
        assert_eq!(parse_layer("tmpfs:64"), some(LayerKind::Tmpfs, Some(64)));
        for bad in ["", "memory", "tmpfs:", "disk:x", "tmpfs:1", "disk:0", "tmpfs:1G:2", "DISK"] {
            assert!(parse_layer(bad).is_err(), "{bad}");
        }
    }
}
