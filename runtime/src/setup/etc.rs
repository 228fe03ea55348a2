//! The container's `/etc`: the user's line in passwd and group, name service and host name.
//!
//! What the image has there is read without following a link, without blocking, and only when it is a
//! regular file. New content is bound over the file; a container whose user acts as root has it written
//! instead, because tools such as useradd replace these files by rename. What was mounted there is left alone.

use super::target::{self, Kind, Root};
use super::{Doing, Setup, attach, c_library, rights};
use crate::plan::{EtcFile, Plan, RootPlan};
use crate::sys::Errno;
use berth_model::{ByteStr, ldcache};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A passwd or group file of an image is at most this long; a longer one is taken for none.
const MAX_LENGTH: u64 = 4 << 20;

/// Writes the planned files.
pub(super) fn write(plan: &Plan, root: &Root, staging: BorrowedFd<'_>, notes: &mut Vec<String>) -> Setup<()> {
    if plan.etc.is_empty() {
        return Ok(());
    }
    let in_place = matches!(plan.root, RootPlan::InPlace(_));
    let etc = target::ensure(root, &"/etc".into(), Kind::Directory)?;
    if !root.holds(etc.as_fd()).doing("look at /etc")? {
        notes.push("left as it is: /etc is a mount".into());
        return Ok(());
    }
    let replace = plan.identity.keep_caps && !in_place;
    for file in &plan.etc {
        let (name, content) = content(file, root, &etc);
        let done = if replace {
            root.change(etc.as_fd(), || replace_file(&etc, name, &content))
        } else {
            bind_file(root, &etc, staging, name, &content, !in_place)
        };
        match done {
            Ok(true) => {}
            Ok(false) => notes.push(format!("left as it is: /etc/{name} is no regular file")),
            Err(Errno::BUSY) => notes.push(format!("left as it is: /etc/{name} is a mount")),
            // A root directory that belongs to someone else can be run all the same.
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
                notes.push(format!("left as it is: /etc/{name} cannot be made in this root"));
            }
            Err(e) => return Err(super::SetupFailure::at("provide", &format!("/etc/{name}").into(), e)),
        }
    }
    if replace && plan.confinement.fake_ids {
        apt_as_root(root)?;
    }
    Ok(())
}

fn content<'a>(file: &'a EtcFile, root: &Root, etc: &OwnedFd) -> (&'a str, Vec<u8>) {
    match file {
        EtcFile::Copy { name, content } => (name, content.0.clone()),
        EtcFile::Passwd { line, name, fallback_line, shell } => {
            let has_shell = target::open(root, &shell.0, OFlags::PATH).is_ok();
            let old = read(etc, "passwd");
            ("passwd", passwd(&old, if has_shell { line } else { fallback_line }, name))
        }
        EtcFile::LoaderCache { libraries } => {
            let flags = |path: &ByteStr| c_library::flags(root, &path.0);
            ("ld.so.cache", cache(&read(etc, "ld.so.cache"), libraries, &flags))
        }
        EtcFile::Group { groups } => ("group", group(&read(etc, "group"), groups)),
    }
}

/// The user's line first, so that a lookup by uid finds it; the image's line of that name goes.
fn passwd(old: &[u8], line: &str, name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(old.len() + line.len() + 1);
    out.extend_from_slice(line.as_bytes());
    out.push(b'\n');
    for l in old.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        if l.split(|b| *b == b':').next() != Some(name.as_bytes()) {
            out.extend_from_slice(l);
            out.push(b'\n');
        }
    }
    out
}

/// The image's libraries, and these; where both have one of a name for the same programs, these: they belong to the node's driver. An
/// image's cache that cannot be read is taken for none: the loader would do so, too. `flags`: which programs load a library; nothing
/// where none does.
fn cache(old: &[u8], libraries: &[ByteStr], flags: &dyn Fn(&ByteStr) -> Option<u32>) -> Vec<u8> {
    let name = |path: &ByteStr| path.0.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
    let entry = |path: &ByteStr| {
        Some(ldcache::Entry { flags: flags(path)?, name: name(path), path: path.0.clone(), os: 0, hwcap: 0 })
    };
    let mut all: Vec<ldcache::Entry> = libraries.iter().filter_map(entry).collect();
    let mut old = ldcache::parse(old).unwrap_or_default();
    old.retain(|e| !all.iter().any(|ours| (ours.flags, &ours.name) == (e.flags, &e.name)));
    all.extend(old);
    ldcache::write(&all)
}

/// The image's groups, and those whose id it does not have. A name that the image uses for another id is
/// extended, so that both can be looked up.
fn group(old: &[u8], groups: &[(u32, String)]) -> Vec<u8> {
    let lines: Vec<&[u8]> = old.split(|b| *b == b'\n').filter(|l| !l.is_empty()).collect();
    let field = |line: &[u8], n| line.split(|b| *b == b':').nth(n).map(<[u8]>::to_vec);
    let mut out = Vec::with_capacity(old.len() + 64);
    for l in &lines {
        out.extend_from_slice(l);
        out.push(b'\n');
    }
    for (gid, name) in groups {
        let id = gid.to_string();
        if lines.iter().any(|l| field(l, 2).as_deref() == Some(id.as_bytes())) {
            continue;
        }
        let taken = lines.iter().any(|l| field(l, 0).as_deref() == Some(name.as_bytes()));
        let name = if taken { format!("{name}_{gid}") } else { name.clone() };
        out.extend_from_slice(format!("{name}:x:{gid}:\n").as_bytes());
    }
    out
}

/// A regular file's content, or nothing.
fn read(etc: &OwnedFd, name: &str) -> Vec<u8> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(etc, name, flags, Mode::empty()) else { return Vec::new() };
    let Ok(stat) = rustix::fs::fstat(&fd) else { return Vec::new() };
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if !FileType::from_raw_mode(stat.st_mode).is_file() || size > MAX_LENGTH {
        return Vec::new();
    }
    let mut text = Vec::new();
    match std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(fd), MAX_LENGTH), &mut text)
    {
        Ok(_) => text,
        Err(_) => Vec::new(),
    }
}

/// Writes beside and renames over, whatever was there: a link is replaced, never followed.
fn replace_file(etc: &OwnedFd, name: &str, content: &[u8]) -> Result<bool, Errno> {
    let aside = format!(".berth-{name}");
    match rustix::fs::unlinkat(etc, &aside, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    write_new(etc, &aside, content)?;
    match rustix::fs::renameat(etc, &aside, etc, name) {
        Ok(()) => Ok(true),
        Err(Errno::ISDIR) => {
            rustix::fs::unlinkat(etc, &aside, AtFlags::empty())?;
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

fn write_new<D: AsFd>(dir: D, name: &str, content: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644))?;
    let mut rest = content;
    while !rest.is_empty() {
        let n = rustix::io::write(&fd, rest)?;
        rest = &rest[n..];
    }
    Ok(fd)
}

/// Binds a file of ours over the image's. `Ok(false)`: something else is there and may not be replaced.
fn bind_file(
    root: &Root,
    etc: &OwnedFd,
    staging: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    may_replace: bool,
) -> Result<bool, Errno> {
    let open =
        || rustix::fs::openat(etc, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let make = || root.change(etc.as_fd(), || target::make_file(etc, name.as_bytes()));
    let place = match open() {
        Ok(fd) if !root.holds(fd.as_fd())? => return Err(Errno::BUSY),
        Ok(fd) => {
            let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind.is_file() {
                fd
            } else if kind.is_dir() || !may_replace {
                return Ok(false);
            } else {
                root.change(etc.as_fd(), || rustix::fs::unlinkat(etc, name, AtFlags::empty()))?;
                make()?;
                open()?
            }
        }
        Err(Errno::NOENT) => {
            make()?;
            open()?
        }
        Err(e) => return Err(e),
    };
    drop(rights::with_roots(|| write_new(staging, name, content))??);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(staging, name, flags)?;
    attach(tree.as_fd(), &place, "")?;
    Ok(true)
}

/// apt changes to a user of its own for downloads and checks that it worked; with pretended ids it cannot,
/// so it is told to stay root.
fn apt_as_root(root: &Root) -> Setup<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let Ok(dir) = target::open(root, b"/etc/apt/apt.conf.d", flags) else { return Ok(()) };
    if !root.holds(dir.as_fd()).doing("look at the configuration of apt")? {
        return Ok(());
    }
    let content = b"APT::Sandbox::User \"root\";\n";
    root.change(dir.as_fd(), || replace_file(&dir, "99berth-remap-root", content))
        .map(drop)
        .doing("configure apt for a mapped root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drivers_libraries_stand_for_those_of_the_image_and_what_is_no_cache_is_none() {
        let entry = |path: &str| ldcache::Entry {
            flags: ldcache::native_flags(),
            name: path.rsplit('/').next().unwrap().into(),
            path: path.into(),
            os: 0,
            hwcap: 0,
        };
        let old = ldcache::write(&[entry("/usr/lib/libc.so.6"), entry("/usr/lib/libcuda.so.1")]);
        let paths = |bytes: &[u8]| {
            let entries = ldcache::parse(bytes).unwrap();
            entries.into_iter().map(|e| String::from_utf8(e.path).unwrap()).collect::<Vec<_>>()
        };
        let ours = ["/driver/libcuda.so.1".into()];
        let native = |_: &ByteStr| Some(ldcache::native_flags());
        assert_eq!(paths(&cache(&old, &ours, &native)), ["/driver/libcuda.so.1", "/usr/lib/libc.so.6"]);
        assert_eq!(paths(&cache(b"nonsense", &ours, &native)), ["/driver/libcuda.so.1"]);
        assert_eq!(paths(&cache(&old[..old.len() - 3], &ours, &native)), ["/driver/libcuda.so.1"]);
        // One of 32 bits takes no place of one of 64, and one of another machine none at all.
        let narrow = |_: &ByteStr| Some(ldcache::narrow_flags());
        let both = ["/usr/lib/libcuda.so.1", "/driver/libcuda.so.1", "/usr/lib/libc.so.6"];
        assert_eq!(paths(&cache(&old, &ours, &narrow)), both);
        assert_eq!(paths(&cache(&old, &ours, &|_| None)), ["/usr/lib/libcuda.so.1", "/usr/lib/libc.so.6"]);
    }

    #[test]
    fn the_users_line_comes_first_and_once() {
        let old = b"root:x:0:0::/root:/bin/sh\nann:x:7:7::/:/bin/sh\nubuntu:x:1000:1000::/:/bin/sh";
        let new = passwd(old, "ann:x:1000:1000:ann:/home/ann:/bin/bash", "ann");
        let text = String::from_utf8(new).unwrap();
        assert_eq!(
            text,
            "ann:x:1000:1000:ann:/home/ann:/bin/bash\nroot:x:0:0::/root:/bin/sh\nubuntu:x:1000:1000::/:/bin/sh\n"
        );
    }

    #[test]
    fn groups_are_added_by_id() {
        let old = b"root:x:0:\nstaff:x:50:\n";
        let new = group(old, &[(0, "root".into()), (1000, "staff".into()), (7, "lp".into())]);
        assert_eq!(String::from_utf8(new).unwrap(), "root:x:0:\nstaff:x:50:\nstaff_1000:x:1000:\nlp:x:7:\n");
    }
}
