//! Whether the image's C library can load what the node brings in: read from its files, without running any of them.

use super::target::{self, Root};
use super::{Setup, SetupFailure};
use crate::plan::Plan;
use berth_model::elf::{self, Glibc, MadeFor, NeedsGlibc};
use berth_model::ldcache;
use rustix::fs::{FileType, OFlags};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

/// Where distributions put it, beside what the loader's cache says.
const DIRECTORIES: [&str; 8] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];
/// musl's loader, which is its C library.
const MUSL: [&str; 2] = ["/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1"];
/// A loader's cache is at most this long.
const MAX_CACHE: u64 = 4 << 20;

/// The C library of a root.
enum Found {
    Glibc(Glibc),
    Musl(&'static str),
    /// Programs without one, or with one that nobody knows: nothing is said of them.
    None,
}

/// Refuses a root whose C library is too old for what is brought in, or is none that it was made for.
pub(super) fn check(plan: &Plan, root: &Root) -> Setup<()> {
    let Some(NeedsGlibc { version, of }) = &plan.glibc else { return Ok(()) };
    let refuse = |has: &str, instead: &str| {
        Err(SetupFailure {
            action: format!(
                "use this node's GPU driver in the image: its {of} needs glibc {version}, and {has}"
            ),
            path: None,
            errno: 0,
            hint: Some(format!("{instead}, or set NVIDIA_DISABLE_REQUIRE=1 to try anyway")),
        })
    };
    match find(root) {
        Found::Glibc(there) if there < *version => refuse(
            &format!("the image has glibc {there}"),
            "take an image of a newer distribution, ask for a node with an older driver",
        ),
        Found::Musl(file) => refuse(
            &format!("the image has musl instead of glibc ({file})"),
            "take an image with glibc, such as one of Debian, Ubuntu or Rocky Linux",
        ),
        Found::Glibc(_) | Found::None => Ok(()),
    }
}

fn find(root: &Root) -> Found {
    let cached = cached(root);
    let usual = DIRECTORIES.iter().map(|dir| format!("{dir}/libc.so.6").into_bytes());
    let found = cached.into_iter().chain(usual).find_map(|path| {
        let file = open(root, &path)?;
        elf::defines(&|at, length| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
        })
    });
    match found {
        Some(version) => Found::Glibc(version),
        None => match MUSL.iter().find(|path| open(root, path.as_bytes()).is_some()) {
            Some(path) => Found::Musl(path),
            None => Found::None,
        },
    }
}

/// Where the image's own loader would find it.
fn cached(root: &Root) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(root, b"/etc/ld.so.cache").map(|file| file.take(MAX_CACHE).read_to_end(&mut bytes));
    if !matches!(read, Some(Ok(_))) {
        return Vec::new();
    }
    let entries = ldcache::parse(&bytes).unwrap_or_default().into_iter();
    let own = |e: &ldcache::Entry| e.name == b"libc.so.6" && e.flags == ldcache::native_flags();
    entries.filter(own).map(|e| e.path).filter(|path| path.starts_with(b"/")).collect()
}

/// The flags of the loader's cache for a library of a root; nothing for one that no program of the machine can load.
pub(super) fn flags(root: &Root, path: &[u8]) -> Option<u32> {
    let file = open(root, path);
    let made_for = elf::made_for(&|at, length| {
        let mut bytes = vec![0; length];
        file.as_ref()?.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    });
    match made_for {
        MadeFor::Native | MadeFor::Unsaid => Some(ldcache::native_flags()),
        MadeFor::Narrow => Some(ldcache::narrow_flags()),
        MadeFor::Others => None,
    }
}

/// A regular file of the root's, through its own links.
fn open(root: &Root, path: &[u8]) -> Option<File> {
    // Nothing that is opened by this may have an effect by being opened.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let place = target::open(root, path, OFlags::PATH).ok()?;
    let stat = rustix::fs::fstat(&place).ok()?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return None;
    }
    target::open(root, path, flags).ok().map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode};

    fn of(dir: &std::path::Path) -> Found {
        let fd = rustix::fs::openat(CWD, dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        find(&Root::new(fd, false).unwrap())
    }

    #[test]
    fn the_c_library_of_a_root_is_told_by_its_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(of(dir.path()), Found::None));
        std::fs::create_dir_all(dir.path().join("lib")).unwrap();
        std::fs::write(dir.path().join(MUSL[0].trim_start_matches('/')), "").unwrap();
        assert!(matches!(of(dir.path()), Found::Musl(_)));
        // Not a library, a link out of the root, and a pipe that nobody writes to.
        std::fs::write(dir.path().join("lib/libc.so.6"), "text").unwrap();
        assert!(matches!(of(dir.path()), Found::Musl(_)));
        std::fs::create_dir_all(dir.path().join("lib64")).unwrap();
        rustix::fs::mknodat(CWD, dir.path().join("lib64/libc.so.6"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(of(dir.path()), Found::Musl(_)));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let own =
            maps.lines().filter_map(|l| l.split_whitespace().last()).find(|p| p.ends_with("/libc.so.6"));
        let own = own.unwrap();
        std::fs::remove_file(dir.path().join("lib/libc.so.6")).unwrap();
        std::os::unix::fs::symlink(own, dir.path().join("lib/libc.so.6")).unwrap();
        assert!(matches!(of(dir.path()), Found::Musl(_)), "the link leads to the node's");
        std::fs::remove_file(dir.path().join("lib/libc.so.6")).unwrap();
        std::fs::copy(own, dir.path().join("lib/libc.so.6")).unwrap();
        assert!(matches!(of(dir.path()), Found::Glibc(version) if version > Glibc(2, 17, 0)));
    }
}
