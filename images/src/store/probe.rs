//! On which filesystems a store cannot be: those that machines share, and those that a program serves. They are slow, lack
//! what overlayfs needs, do not lock between machines, or wait for somebody else. And which ones are the machine's memory: what is kept
//! there is taken from whoever works on it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstatfs, fstatvfs};
use rustix::io::Errno;

/// What they have in common, in words.
const SHARED: &str = "which machines share";
const SERVED: &str = "which a program serves";

/// By the kernel's name of the type, as `/proc/self/mountinfo` has it; of what begins with `fuse` see [`by_name`].
const TYPES: &[&str] = &[
    "9p",
    "acfs",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "orangefs",
    "panfs",
    "pvfs2",
    "smb3",
    "smbfs",
    "vboxsf",
    "virtiofs",
    "wekafs",
];

/// By the magic number of statfs(2), for mounts that `/proc` does not list.
const MAGIC: &[(u64, &str, &str)] = &[
    (0x6969, "NFS", SHARED),
    (0xff53_4d42, "CIFS", SHARED),
    (0xfe53_4d42, "SMB2", SHARED),
    (0x517b, "SMB", SHARED),
    (0x0bd0_0bd0, "Lustre", SHARED),
    (0x4750_4653, "GPFS", SHARED),
    (0x1983_0326, "BeeGFS", SHARED),
    (0x00c3_6400, "Ceph", SHARED),
    (0x5346_414f, "AFS", SHARED),
    (0x0102_1997, "9p", SHARED),
    (0x2003_0528, "OrangeFS", SHARED),
    (0xaad7_aaea, "PanFS", SHARED),
    (0x0116_1970, "GFS2", SHARED),
    (0x7461_636f, "OCFS2", SHARED),
    (0x6573_5546, "FUSE", SERVED),
];

/// Why no store can be at `place`, as the end of a sentence that begins with "is on"; what is not there yet comes to be on the
/// filesystem of the nearest directory above it.
///
/// # Errors
/// The directory cannot be reached, and the filesystem is not the reason.
pub fn unfit_filesystem(place: &Path) -> io::Result<Option<String>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut failed = None;
    for directory in place.ancestors() {
        match rustix::fs::open(directory, flags, Mode::empty()) {
            Ok(found) => {
                return match (unfit(&found)?, failed) {
                    (None, Some(errno)) => Err(io::Error::from(errno)),
                    (found, _) => Ok(found),
                };
            }
            Err(Errno::NOENT) => {}
            // Of a filesystem whose server is gone, or keeps root out, the directory where it is mounted still tells.
            Err(errno) => failed = failed.or(Some(errno)),
        }
    }
    Ok(None)
}

fn unfit(directory: &OwnedFd) -> io::Result<Option<String>> {
    // What serves a filesystem may be gone or hang, and statfs(2) would wait for it; the list of mounts is the kernel's.
    if let Some(name) = type_name(directory) {
        return Ok(by_name(&name).map(|why| format!("{name}, {why}")));
    }
    let magic = u64::try_from(fstatfs(directory.as_fd())?.f_type).unwrap_or_default() & 0xffff_ffff;
    let found = MAGIC.iter().find(|(number, ..)| *number == magic);
    Ok(found.map(|(_, name, why)| format!("{name}, {why}")))
}

/// A filesystem that is the machine's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InMemory {
    /// What it is, for people, such as `tmpfs`.
    pub kind: String,
    /// Bytes that it may come to hold; `None` without a bound.
    pub bytes: Option<u64>,
    /// Files that it may come to hold; `None` without a bound.
    pub files: Option<u64>,
}

/// Bytes of memory that a file may take beside its content, its name included: about 1 KiB, and attributes, which a tmpfs bounds by as
/// much again for each file that it may hold.
const BESIDE: u64 = 2048;
/// Bytes that a file with content has at least.
const PAGE: u64 = 4096;

impl InMemory {
    /// Bytes of memory that all of it may come to take, with what files have beside their content; `None` without a bound. Where files
    /// are not bounded they count as those with content, of which there is room for so many.
    pub fn memory(&self) -> Option<u64> {
        let bytes = self.bytes?;
        let files = self.files.unwrap_or(bytes / PAGE);
        Some(bytes.saturating_add(files.saturating_mul(BESIDE)))
    }
}

/// What keeps `place` in memory, be it there already or not; nothing, where that is a disk, or nobody tells.
pub fn in_memory(place: &Path) -> Option<InMemory> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let found =
        place.ancestors().find_map(|directory| rustix::fs::open(directory, flags, Mode::empty()).ok())?;
    let kind = match mounted(&found)? {
        (kind, _) if IN_MEMORY.contains(&kind.as_str()) => kind,
        // As of machines that run from the network, or from a stick.
        (kind, options) if kind == "overlay" => {
            let upper =
                PathBuf::from(options.split(',').find_map(|option| option.strip_prefix("upperdir="))?);
            let upper = rustix::fs::open(&upper, flags, Mode::empty()).ok()?;
            let below = mounted(&upper).map(|(kind, _)| kind);
            format!("overlay over {}", below.filter(|kind| IN_MEMORY.contains(&kind.as_str()))?)
        }
        _ => return None,
    };
    let (bytes, files) = fstatvfs(&found)
        .map_or((0, 0), |found| (found.f_blocks.saturating_mul(found.f_frsize), found.f_files));
    let bound = |number: u64| Some(number).filter(|number| *number > 0);
    Some(InMemory { kind, bytes: bound(bytes), files: bound(files) })
}

/// Filesystems that are in memory.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// The type of the filesystem that is mounted there, where `/proc` tells it.
fn type_name(directory: &OwnedFd) -> Option<String> {
    mounted(directory).map(|(kind, _)| kind)
}

/// The same with the filesystem's own options.
fn mounted(directory: &OwnedFd) -> Option<(String, String)> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", directory.as_raw_fd())).ok()?;
    let id = told.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    // Paths of mounts need not be UTF-8.
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let mounts = String::from_utf8_lossy(&mounts);
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(id))?;
    let mut of_filesystem = line.split_once(" - ")?.1.split(' ');
    let kind = of_filesystem.next()?.to_owned();
    Some((kind, of_filesystem.nth(1).unwrap_or_default().to_owned()))
}

fn by_name(name: &str) -> Option<&'static str> {
    // `fuseblk` has a disk below, but a program in between all the same.
    if name == "fuse" || name == "fuseblk" || name.starts_with("fuse.") {
        return Some(SERVED);
    }
    TYPES.contains(&name).then_some(SHARED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_machines_share_and_programs_serve_is_unfit() {
        for name in ["nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "ceph", "9p", "beegfs", "virtiofs"] {
            assert_eq!(by_name(name), Some(SHARED), "{name}");
        }
        for name in ["fuse", "fuseblk", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs"] {
            assert_eq!(by_name(name), Some(SERVED), "{name}");
        }
        for name in ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "fusectl"] {
            assert_eq!(by_name(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_in_memory_is_told_with_its_size() {
        let shm = in_memory(Path::new("/dev/shm/not/there/yet")).unwrap();
        assert_eq!(shm.kind, "tmpfs");
        let found = rustix::fs::statvfs("/dev/shm").unwrap();
        assert_eq!(shm.bytes.unwrap_or(0), found.f_blocks * found.f_frsize);
        assert_eq!(shm.files.unwrap_or(0), found.f_files);
        assert_eq!(in_memory(Path::new("/proc/self")), None);
    }

    #[test]
    fn what_files_have_beside_their_content_is_memory_too() {
        let of = |bytes, files| InMemory { kind: "tmpfs".to_owned(), bytes, files }.memory();
        assert_eq!(of(Some(64 << 20), Some(16_384)), Some(96 << 20));
        assert_eq!(of(Some(64 << 20), None), Some(96 << 20));
        assert_eq!(of(Some(64 << 20), Some(100)), Some((64 << 20) + 204_800));
        assert_eq!(of(None, Some(100)), None);
        assert_eq!(of(Some(u64::MAX), Some(u64::MAX)), Some(u64::MAX));
    }

    #[test]
    fn the_nearest_directory_tells() {
        let dir = tempfile::tempdir().unwrap();
        let own = type_name(&rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap());
        assert!(own.is_some_and(|name| !name.is_empty()));
        assert_eq!(unfit_filesystem(&dir.path().join("not/there/yet")).unwrap(), None);
        assert!(unfit_filesystem(Path::new("/proc/self/status")).is_err());
        assert_eq!(
            type_name(&rustix::fs::open("/proc", OFlags::PATH, Mode::empty()).unwrap()).as_deref(),
            Some("proc")
        );
    }
}
