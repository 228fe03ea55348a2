//! The files of an archive that is an image: what stands around the layers.

use std::io;

/// The header of a file. It belongs to whoever writes the archive: tools that read such archives as ordinary users (skopeo
/// among them) hand each file to the owner that the archive names, and may do so for their own alone. A size of 8 GiB
/// and more is written in the binary form that every tool reads.
pub(crate) fn header(name: &str, size: u64) -> io::Result<tar::Header> {
    member(name, tar::EntryType::Regular, 0o644, size)
}

/// The header of a directory. Every directory has one, before what is in it: those tools hand one that the archive does not name
/// to root.
pub(crate) fn directory(name: &str) -> io::Result<tar::Header> {
    member(&format!("{name}/"), tar::EntryType::Directory, 0o755, 0)
}

fn member(name: &str, kind: tar::EntryType, mode: u32, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
    header.set_gid(u64::from(rustix::process::getegid().as_raw()));
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_stands_in_one_block() {
        for size in [0, 511, 8 << 30, u64::from(u32::MAX) * 100] {
            let header = header("blobs/sha256/0123", size).unwrap();
            assert_eq!(header.size().unwrap(), size);
            assert_eq!(header.cksum().unwrap(), {
                let mut sum: u32 = header.as_bytes().iter().map(|b| u32::from(*b)).sum();
                sum -= header.as_bytes()[148..156].iter().map(|b| u32::from(*b)).sum::<u32>();
                sum + 8 * u32::from(b' ')
            });
        }
    }

    #[test]
    fn the_files_are_the_writers() {
        for header in [header("index.json", 1).unwrap(), directory("blobs").unwrap()] {
            assert_eq!(header.uid().unwrap(), u64::from(rustix::process::geteuid().as_raw()));
            assert_eq!(header.gid().unwrap(), u64::from(rustix::process::getegid().as_raw()));
        }
    }
}
