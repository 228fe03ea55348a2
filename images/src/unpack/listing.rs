//! What is in an unpacked layer, file by file, to notice later what was changed, removed or added.
//!
//! A listing is written as a zstd stream of `path NUL facts NUL`, in the order of the walk: a directory before what is in
//! it, names in the order of their bytes. Sums of contents are in it where no skeleton of an archive has them.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstatfs, lgetxattr, llistxattr, openat, readlinkat, statat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::names::Names;
use crate::digest::{Algorithm, Digest, Hasher};

/// What [`Change::what`] may name, in the order in which facts are written.
const FACTS: [&str; 6] = ["mode", "owner", "size", "time of change", "device number", "extended attributes"];

/// One file that is not as it was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: Vec<u8>,
    pub(crate) what: String,
}

/// What says whether the content of a file is what it was.
pub(crate) type Sum = fn(&File) -> io::Result<Digest>;

/// What a comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    pub(crate) changes: Vec<Change>,
    /// The listing has the sum of every file with content.
    pub(crate) summed: bool,
}

/// What a tree takes of its filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// Bytes of files, without their holes, of which an archive has as many as it likes.
    pub(crate) bytes: u64,
    /// Names, of which each is a file of its own where it is no hard link.
    pub(crate) files: u64,
    /// Bytes of the blocks that files and directories have: of a small file far more than its own. An earlier version did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disk: Option<u64>,
    /// Bytes that files without a block would have more with one: of files, too, a filesystem has only so many.
    #[serde(default)]
    pub(crate) bare: u64,
}

/// A number that not every machine has in as many bits.
fn wide(number: impl Into<u64>) -> u64 {
    number.into()
}

/// Bytes of a block, as nearly all filesystems have them.
pub(crate) const BLOCK: u64 = 4096;

/// A filesystem that tells how many blocks a file takes when it has written it, seconds later.
const ZFS: u64 = 0x2fc1_2fc1;

/// Whether it is known at once in this tree what a file takes.
fn tells_at_once(root: impl AsFd) -> bool {
    let kind = fstatfs(root).map(|found| u64::try_from(found.f_type).unwrap_or_default() & 0xffff_ffff);
    kind != Ok(ZFS)
}

/// Bytes of a file, without its holes where the blocks tell of them.
fn without_holes(size: i64, blocks: i64, tells: bool) -> u64 {
    let most = if tells { in_blocks(size, blocks, tells) } else { u64::MAX };
    u64::try_from(size).unwrap_or(0).min(most)
}

/// Bytes of its blocks; as many as its size would fill where they do not tell.
fn in_blocks(size: i64, blocks: i64, tells: bool) -> u64 {
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    match tells {
        true => number(blocks).saturating_mul(512),
        false => number(size).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX),
    }
}

impl Taken {
    fn add(&mut self, file: &Found<'_>, tells: bool) {
        let stat = file.stat;
        self.files += 1;
        let (kind, mut names) = (FileType::from_raw_mode(stat.st_mode), 1);
        if kind == FileType::RegularFile {
            // A file of several names comes several times.
            names = wide(stat.st_nlink).max(1);
            let bytes = without_holes(stat.st_size, stat.st_blocks, tells);
            self.bytes = self.bytes.saturating_add(bytes / names);
        }
        let taken = match kind {
            FileType::RegularFile => in_blocks(stat.st_size, stat.st_blocks, tells),
            // Sizes of directories are no bytes everywhere.
            FileType::Directory if !tells => BLOCK,
            _ => in_blocks(0, stat.st_blocks, tells),
        };
        self.disk = Some(self.disk.unwrap_or(0).saturating_add(taken / names));
        if taken == 0 {
            self.bare = self.bare.saturating_add(BLOCK / names);
        }
    }

    /// What an earlier version noted has no blocks: no file takes more than one beyond its bytes.
    pub(crate) fn on_disk(self) -> u64 {
        self.disk.unwrap_or_else(|| self.bytes.saturating_add(self.files.saturating_mul(BLOCK)))
    }

    /// The same for a quota: there is no file that takes nothing.
    pub(crate) fn charged(self) -> u64 {
        self.on_disk().saturating_add(self.bare)
    }
}

/// Writes the listing of the tree at `root`, with the sums of contents where there is a way to make them.
pub(crate) fn write(root: impl AsFd, out: impl Write, sum: Option<Sum>) -> io::Result<Taken> {
    let mut out = zstd::Encoder::new(out, 1)?;
    let (mut taken, tells) = (Taken::default(), tells_at_once(&root));
    walk(root, |file| {
        taken.add(file, tells);
        let mut facts = file.facts()?;
        if let Some(sum) = sum.filter(|_| file.has_content()) {
            match file.sum(sum) {
                Ok(sum) => facts.extend_from_slice(sum.as_bytes()),
                // What the image itself closes to its owner.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                Err(e) => return Err(e),
            }
        }
        out.write_all(file.path)?;
        out.write_all(b"\0")?;
        out.write_all(&facts)?;
        out.write_all(b"\0")
    })?;
    out.finish()?.flush()?;
    Ok(taken)
}

/// Compares the tree at `root` with a listing that was made of it before; contents where that has their sums, as `sum` makes them.
pub(crate) fn compare(root: impl AsFd, listing: impl Read, sum: Sum) -> io::Result<Compared> {
    let mut summed = true;
    let mut listed = Listed { from: BufReader::new(zstd::Decoder::new(listing)?), next: None };
    listed.advance()?;
    let mut changes = Vec::new();
    walk(root, |file| {
        let path = file.path;
        while let Some((before, _)) = &listed.next
            && order(before, path) == Ordering::Less
        {
            changes.push(Change { path: before.clone(), what: "is missing".to_owned() });
            listed.advance()?;
        }
        match &listed.next {
            Some((before, known)) if before == path => {
                let facts = file.facts()?;
                // What has another size or time as well is named with that.
                let changed = match known.strip_prefix(facts.as_slice()) {
                    _ if !file.has_content() => (*known != facts).then(|| difference(known, &facts)),
                    None => Some(difference(known, &facts)),
                    Some(b"") => {
                        summed = false;
                        None
                    }
                    Some(before) => match file.sum(sum) {
                        Ok(now) => (now.as_bytes() != before).then(|| "its content was changed".to_owned()),
                        Err(e) => Some(format!("cannot be read: {e}")),
                    },
                };
                changes.extend(changed.map(|what| Change { path: path.to_vec(), what }));
                listed.advance()
            }
            _ => {
                changes.push(Change { path: path.to_vec(), what: "was added".to_owned() });
                Ok(())
            }
        }
    })?;
    while let Some((path, _)) = listed.next.take() {
        changes.push(Change { path, what: "is missing".to_owned() });
        listed.advance()?;
    }
    Ok(Compared { changes, summed })
}

/// The order of the walk.
fn order(one: &[u8], other: &[u8]) -> Ordering {
    let components = |path| <[u8]>::split(path, |b| *b == b'/');
    components(one).cmp(components(other))
}

/// In which facts two files differ.
fn difference(known: &[u8], found: &[u8]) -> String {
    let fields = |facts| <[u8]>::splitn(facts, FACTS.len() + 1, |b| *b == b' ').collect::<Vec<_>>();
    let (known, found) = (fields(known), fields(found));
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let mut said = Vec::new();
    for (at, name) in FACTS.iter().enumerate() {
        if let (Some(known), Some(found)) = (known.get(at), found.get(at))
            && known != found
        {
            // The sums of attributes mean nothing to anybody.
            said.push(match at {
                5 => format!("other {name}"),
                _ => format!("{name} {} and not {}", text(found), text(known)),
            });
        }
    }
    // Of a file the sum of its content may stand there.
    let (before, now) = (known.get(FACTS.len()), found.get(FACTS.len()));
    if before != now && now.is_some_and(|target| !target.is_empty()) {
        said.push("other target".to_owned());
    }
    format!("has {}", said.join(", "))
}

/// A listing that is read again.
struct Listed<R> {
    from: R,
    next: Option<(Vec<u8>, Vec<u8>)>,
}

impl<R: BufRead> Listed<R> {
    fn advance(&mut self) -> io::Result<()> {
        let mut word = || -> io::Result<Option<Vec<u8>>> {
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes)?;
            Ok((bytes.pop() == Some(0)).then_some(bytes))
        };
        self.next = word()?.zip(word()?);
        Ok(())
    }
}

/// A file that a walk comes to.
struct Found<'a> {
    path: &'a [u8],
    directory: &'a OwnedFd,
    name: &'a [u8],
    stat: &'a Stat,
}

impl Found<'_> {
    fn facts(&self) -> Result<Vec<u8>, Errno> {
        facts(self.directory, self.name, self.stat)
    }

    fn has_content(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::RegularFile && self.stat.st_size > 0
    }

    fn sum(&self, sum: Sum) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(self.directory, self.name, flags, Mode::empty())?;
        Ok(sum(&file.into())?.to_string())
    }
}

/// Tells of everything in the tree, itself included, in order.
fn walk(root: impl AsFd, mut tell: impl FnMut(&Found<'_>) -> io::Result<()>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = openat(root.as_fd(), ".", flags, Mode::empty())?;
    let stat = statat(&top, ".", AtFlags::SYMLINK_NOFOLLOW)?;
    tell(&Found { path: b".", directory: &top, name: b".", stat: &stat })?;
    let sorted = |directory: &OwnedFd| Names::of(directory, |_| Ok(true)).map(Names::last_first);
    let names = sorted(&top)?;
    let mut levels: Vec<(OwnedFd, Names, usize)> = vec![(top, names, 1)];
    let mut path = b".".to_vec();
    while let Some((directory, names, length)) = levels.last_mut() {
        path.truncate(*length);
        let Some(name) = names.pop() else {
            levels.pop();
            continue;
        };
        let stat = statat(&*directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        path.push(b'/');
        path.extend_from_slice(&name);
        tell(&Found { path: &path, directory, name: &name, stat: &stat })?;
        // What its owner may not list looks the same to everybody.
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_mode & 0o500 == 0o500 {
            let below = openat(&*directory, name.as_slice(), flags, Mode::empty())?;
            let names = sorted(&below)?;
            levels.push((below, names, path.len()));
        }
    }
    Ok(())
}

/// All that is known of a file without its content, as words. The last is empty for a file with content: its sum may follow.
fn facts(directory: &OwnedFd, name: &[u8], stat: &Stat) -> Result<Vec<u8>, Errno> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    // Sizes of directories depend on the file system's history.
    let size = if kind == FileType::Directory { 0 } else { stat.st_size };
    let mut facts = format!(
        "{:o} {}:{} {size} {}.{:09} {} ",
        stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec, stat.st_rdev
    )
    .into_bytes();
    if matches!(kind, FileType::RegularFile | FileType::Directory) {
        facts.extend_from_slice(attributes(directory, name, stat.st_mode)?.as_bytes());
    } else {
        facts.push(b'-');
    }
    facts.push(b' ');
    if kind == FileType::Symlink {
        facts.extend_from_slice(readlinkat(directory, name, Vec::new())?.as_bytes());
    }
    Ok(facts)
}

/// A sum of the extended attributes that say something about the file; `-` where there are none.
fn attributes(directory: &OwnedFd, name: &[u8], mode: u32) -> Result<String, Errno> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let mut names = vec![0; 256];
    let length = loop {
        match llistxattr(path.as_slice(), names.as_mut_slice()) {
            Ok(length) => break length,
            Err(Errno::RANGE) => names.resize(names.len() * 4, 0),
            Err(Errno::OPNOTSUPP) => return Ok("-".to_owned()),
            Err(errno) => return Err(errno),
        }
    };
    // `trusted.*` is shown to root alone, and labels are the machine's policy.
    let counts = |name: &&[u8]| {
        name.starts_with(b"user.")
            || name.starts_with(b"system.posix_acl_")
            || *name == b"security.capability"
    };
    let mut list: Vec<&[u8]> = names[..length].split(|b| *b == 0).filter(counts).collect();
    if list.is_empty() {
        return Ok("-".to_owned());
    }
    list.sort_unstable();
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for attribute in list {
        hasher.update(attribute);
        hasher.update(b"\0");
        // Values of what its owner may not read are read by nobody, so that they look the same to everybody.
        if mode & 0o400 != 0 {
            let mut value = vec![0; 4096];
            let length = loop {
                match lgetxattr(path.as_slice(), attribute, value.as_mut_slice()) {
                    Ok(length) => break length,
                    Err(Errno::RANGE) => value.resize(value.len() * 4, 0),
                    Err(errno) => return Err(errno),
                }
            };
            hasher.update(&value[..length]);
            hasher.update(b"\0");
        }
    }
    Ok(hasher.finish().hex().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn changes(after: impl FnOnce(&std::path::Path)) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        for name in ["a.txt", "a/one", "a/b/two", "z"] {
            std::fs::write(root.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("z", root.join("link")).unwrap();
        let open = || OwnedFd::from(std::fs::File::open(&root).unwrap());
        let mut listing = Vec::new();
        write(open(), &mut listing, None).unwrap();
        assert_eq!(compare(open(), &listing[..], sum).unwrap(), Compared { changes: vec![], summed: false });
        let time = std::fs::metadata(root.join("a")).unwrap().modified().unwrap();
        after(&root);
        // Of the directory only what else is changed.
        if let Ok(directory) = std::fs::File::open(root.join("a")) {
            directory.set_modified(time).unwrap();
        }
        let Compared { changes, .. } = compare(open(), &listing[..], sum).unwrap();
        changes.iter().map(|c| format!("{} {}", String::from_utf8_lossy(&c.path), c.what)).collect()
    }

    #[test]
    fn every_change_is_named_with_its_file() {
        assert_eq!(changes(|r| std::fs::remove_file(r.join("a/b/two")).unwrap())[1], "./a/b/two is missing");
        assert_eq!(changes(|r| std::fs::write(r.join("a/new"), "x").unwrap()), ["./a/new was added"]);
        let mode = changes(|r| {
            std::fs::set_permissions(r.join("a/one"), PermissionsExt::from_mode(0o4755)).unwrap()
        });
        assert!(mode.len() == 1 && mode[0].starts_with("./a/one has mode 104755 and not 100"), "{mode:?}");
        let grown = changes(|r| std::fs::write(r.join("z"), "longer").unwrap());
        assert!(grown.len() == 1 && grown[0].contains("./z has size 6 and not 1"), "{grown:?}");
        let attribute = changes(|r| xattr::set(r.join("a/one"), "user.x", b"y").unwrap());
        assert_eq!(attribute, ["./a/one has other extended attributes"]);
        let last = changes(|r| std::fs::remove_file(r.join("z")).unwrap());
        assert!(last.contains(&"./z is missing".to_owned()), "{last:?}");
        let linked = changes(|r| {
            std::fs::remove_file(r.join("link")).unwrap();
            std::os::unix::fs::symlink("y", r.join("link")).unwrap();
        });
        assert!(
            linked.iter().any(|c| c.starts_with("./link has ") && c.contains("other target")),
            "{linked:?}"
        );
    }

    fn sum(file: &File) -> io::Result<Digest> {
        let (mut file, mut content) = (file, Vec::new());
        file.read_to_end(&mut content)?;
        Ok(Digest::of(Algorithm::Sha256, &content))
    }

    #[test]
    fn what_a_filesystem_tells_later_is_no_hole() {
        assert_eq!(without_holes(1 << 40, 8, true), 4096);
        assert_eq!(without_holes(5, 8, true), 5);
        // As ZFS says of a file that was just written, whatever it has.
        assert_eq!(without_holes(1 << 20, 1, false), 1 << 20);
        assert_eq!([in_blocks(1, 8, true), in_blocks(1, 1, false), in_blocks(0, 1, false)], [4096, 4096, 0]);
        assert_eq!(in_blocks(i64::MAX, 0, false), 1 << 63);
        assert!(tells_at_once(File::open("/proc").unwrap()));
    }

    #[test]
    fn contents_are_compared_where_their_sums_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("a")).unwrap();
        for (name, content) in [("a/one", "one"), ("a/two", "two"), ("empty", "")] {
            std::fs::write(root.join(name), content).unwrap();
        }
        std::os::unix::fs::symlink("a/one", root.join("link")).unwrap();
        let open = || OwnedFd::from(File::open(root).unwrap());
        let mut listing = Vec::new();
        std::fs::hard_link(root.join("a/two"), root.join("a/too")).unwrap();
        File::create(root.join("a/hole")).unwrap().set_len(1 << 40).unwrap();
        let taken = write(open(), &mut listing, None).unwrap();
        // Both names of a file have its bytes together, and holes have none.
        assert!(taken.files == 8 && (4..=6).contains(&taken.bytes), "{taken:?}");
        // The empty file and the link have no block, and what no earlier version noted is never less.
        let (disk, bare) = (taken.disk.unwrap(), taken.bare);
        assert!(disk > taken.bytes && disk < 1 << 20 && bare >= 2 * BLOCK, "{taken:?}");
        assert_eq!((taken.on_disk(), taken.charged()), (disk, disk + bare));
        let before = Taken { disk: None, bare: 0, ..taken };
        assert_eq!((before.on_disk(), before.charged()), (taken.bytes + 8 * BLOCK, taken.bytes + 8 * BLOCK));
        std::fs::remove_file(root.join("a/hole")).unwrap();
        listing.clear();
        write(open(), &mut listing, Some(sum)).unwrap();
        assert_eq!(compare(open(), &listing[..], sum).unwrap(), Compared { changes: vec![], summed: true });
        // As long as before, and with the time put back.
        let one = root.join("a/one");
        let time = std::fs::metadata(&one).unwrap().modified().unwrap();
        std::fs::write(&one, "eno").unwrap();
        File::options().write(true).open(&one).unwrap().set_modified(time).unwrap();
        let changes = |listing: &[u8]| compare(open(), listing, sum).unwrap().changes;
        let changed = Change { path: b"./a/one".to_vec(), what: "its content was changed".into() };
        assert_eq!(changes(&listing), [changed]);
        for (content, size) in [("longer", 6), ("", 0)] {
            std::fs::write(&one, content).unwrap();
            let found = changes(&listing);
            assert!(found.len() == 1, "{found:?}");
            let what = &found[0].what;
            assert!(what.contains(&format!("size {size} and not 3")) && !what.contains("target"), "{what}");
        }
    }

    #[test]
    fn names_that_sort_around_a_slash_are_in_the_order_of_the_walk() {
        // `a.txt` sorts before `a/one` as bytes and after it in a walk.
        assert_eq!(order(b"./a/one", b"./a.txt"), Ordering::Less);
        assert_eq!(order(b"./a", b"./a/one"), Ordering::Less);
    }
}
