//! One digest over the names and metadata of an unpacked layer, to notice later that it was changed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::digest::{Algorithm, Digest, Hasher};

/// The fingerprint of the tree at `root`: types, modes, sizes, times, links and device numbers of everything in
/// it. File contents are not read: the kernel changes a time whenever they are written.
pub(crate) fn fingerprint(root: impl AsFd) -> Result<Digest, Errno> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let top = openat(root.as_fd(), ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut levels: Vec<(OwnedFd, Vec<Vec<u8>>)> = Vec::new();
    let names = sorted(&top)?;
    levels.push((top, names));
    while let Some((directory, names)) = levels.last_mut() {
        let Some(name) = names.pop() else {
            hasher.update(b"up\0");
            levels.pop();
            continue;
        };
        let stat = statat(&*directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        hasher.update(&name);
        // Sizes of directories depend on the file system's history.
        let size = if kind == FileType::Directory { 0 } else { stat.st_size };
        hasher.update(
            format!(
                "\0{:o} {size} {} {} {}\0",
                stat.st_mode, stat.st_mtime, stat.st_mtime_nsec, stat.st_rdev
            )
            .as_bytes(),
        );
        match kind {
            FileType::Symlink => {
                hasher.update(readlinkat(&*directory, name.as_slice(), Vec::new())?.as_bytes())
            }
            // What its owner may not list looks the same to everybody.
            FileType::Directory if stat.st_mode & 0o500 == 0o500 => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = openat(&*directory, name.as_slice(), flags, Mode::empty())?;
                let names = sorted(&below)?;
                levels.push((below, names));
            }
            _ => {}
        }
    }
    Ok(hasher.finish())
}

/// Names in a directory, last first.
fn sorted(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}
