//! What a path holds, told from its content.

use std::fs::File;
use std::io::{ErrorKind as Io, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::{Errno, retry_on_intr};

use crate::error::{Error, ErrorKind, Result};
use crate::sif::{MAGIC, MAGIC_AT};

/// The supported forms of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    Layout,
    /// A tar file, perhaps of an image.
    Archive,
    /// Alone, or in a SIF file.
    Squashfs,
    RootDir,
}

/// Filesystems that are no images: where their superblocks say what they are, and what takes files out of them without a mount. What a
/// user made is never given to the kernel to mount.
const FILESYSTEMS: [(usize, &[u8], &str, &str); 2] = [
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS", "fsck.erofs --extract=DIR FILE"),
    (1024 + 56, b"\x53\xef", "an ext2, ext3 or ext4", "mkdir DIR && debugfs -R 'rdump / DIR' FILE"),
];

/// Tells the form by the first bytes.
pub(super) fn sniff(path: &Path) -> Result<Form> {
    let what = path.display().to_string();
    if path.is_dir() {
        if path.join("oci-layout").is_file() {
            return Ok(Form::Layout);
        }
        if ["bin", "usr", "etc", "sbin"].iter().any(|name| path.join(name).symlink_metadata().is_ok()) {
            return Ok(Form::RootDir);
        }
        return Err(Error::new(
            ErrorKind::Unsupported,
            what,
            "is neither an OCI layout (no file oci-layout) nor a root directory (no bin, sbin, usr or etc)",
        )
        .next("name an OCI layout, an OCI tar file or a root directory"));
    }
    let file = open_regular(path)?;
    let mut start = [0u8; 2048];
    let length = read_start(&file, &mut start).map_err(|e| Error::path(path, e))?;
    let start = &start[..length];
    if start.is_empty() {
        return Err(Error::new(ErrorKind::Unsupported, what, "is an empty file, and no image")
            .next("make or fetch it again, or name an OCI layout, an OCI tar file or a root directory"));
    }
    let sif = start.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC);
    if start.starts_with(b"hsqs") || sif {
        return Ok(Form::Squashfs);
    }
    for (magic, name, tool) in [
        (&b"\x1f\x8b"[..], "gzip", "gunzip"),
        (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
        (b"\xfd7zXZ", "xz", "unxz"),
    ] {
        if start.starts_with(magic) {
            return Err(Error::new(ErrorKind::Unsupported, what, format!("is compressed with {name}")).next(
                format!("uncompress it first with `{tool}`: blobs are read from anywhere in the file"),
            ));
        }
    }
    if start.get(257..262) != Some(b"ustar") {
        for (at, magic, name, tool) in FILESYSTEMS {
            if start.get(at..at + magic.len()) == Some(magic) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    what,
                    format!("is {name} filesystem, and none that a user made is mounted"),
                )
                .next(format!(
                    "take the files out with `{tool}`, and name DIR or what `mksquashfs DIR FILE.sqsh` makes of it"
                )));
            }
        }
        return Err(Error::new(
            ErrorKind::Unsupported,
            what,
            "is not a tar file, and no other known image file",
        )
        .next("name an OCI layout, an OCI tar file, a squashfs or SIF file or a root directory"));
    }
    // Of which kind is told by its members when it is opened.
    Ok(Form::Archive)
}

/// What may lie on the way to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Through {
    /// Symbolic links, which are followed.
    #[default]
    Links,
    /// Directories alone: the file is at the very path by which it was judged, whatever is exchanged meanwhile.
    NoLinks,
}

/// Opens a regular file without waiting on a FIFO that somebody put in its place.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    open_through(path, Through::Links)
}

/// As [`open_regular`], by a way that may have links or not.
pub(crate) fn open_through(path: &Path, through: Through) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = retry_on_intr(|| match through {
        Through::Links => open(path, flags, Mode::empty()),
        Through::NoLinks => openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS),
    });
    let file = File::from(opened.map_err(|e| not_opened(path, through, e))?);
    if !file.metadata().map_err(|e| Error::path(path, e))?.is_file() {
        return Err(Error::new(ErrorKind::Unsupported, path.display().to_string(), "is not a regular file"));
    }
    Ok(file)
}

/// All of a regular file that is no longer than `limit`: where somebody put a FIFO in its place nothing is waited for, and where they put
/// a device nothing is read.
pub(crate) fn read_regular(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(retry_on_intr(|| open(path, flags, Mode::empty()))?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(Io::InvalidInput, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::new(Io::InvalidInput, format!("is larger than {limit} bytes")));
    }
    Ok(bytes)
}

fn not_opened(path: &Path, through: Through, errno: Errno) -> Error {
    if through == Through::Links || errno != Errno::LOOP {
        return Error::path(path, errno);
    }
    let reason = "there is a link on the way, and this cluster's rules judge images by paths without links";
    Error::new(ErrorKind::Denied, path.display().to_string(), reason)
        .next("name the image again, by its path without links; an OCI layout has no links inside either")
}

fn read_start(file: &File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == Io::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Reads a small file of a layout.
pub(super) fn read_small(path: &Path, through: Through, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_through(path, through)?.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::path(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(
            ErrorKind::Refused,
            path.display().to_string(),
            format!("is larger than {limit} bytes"),
        )
        .next("no image needs one this large; make the layout again"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn where_links_are_refused_none_is_followed_anywhere_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir(dir.join("real")).unwrap();
        std::fs::write(dir.join("real/image"), "x").unwrap();
        symlink("real", dir.join("linked")).unwrap();
        symlink("image", dir.join("real/named")).unwrap();
        for (path, straight) in [("real/image", true), ("linked/image", false), ("real/named", false)] {
            let path = dir.join(path);
            assert!(open_through(&path, Through::Links).is_ok(), "{}", path.display());
            let opened = open_through(&path, Through::NoLinks);
            assert_eq!(opened.is_ok(), straight, "{}", path.display());
            if let Err(e) = opened {
                assert_eq!(e.kind(), ErrorKind::Denied, "{e}");
                assert!(e.to_string().contains("without links"), "{e}");
            }
        }
        let gone = open_through(&dir.join("linked-not/image"), Through::NoLinks).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
    }
}
