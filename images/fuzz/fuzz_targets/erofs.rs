//! Writes archives of arbitrary members as EROFS images and reads them back with a reader of its own: the image has what the
//! directory of the same archive has. Of some images `fsck.erofs` is asked, and, by root that fuzzes, the kernel: it accepts them and shows the
//! same.
#![cfg_attr(fuzzing, no_main)]

#[path = "erofs_reader.rs"]
mod erofs_reader;

use erofs_reader::{Seen, read};
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Images made so far: others than our reader take their time.
static MADE: AtomicU32 = AtomicU32::new(0);
/// Of so many images `fsck.erofs` looks at one.
const CHECKED: u32 = 64;
/// Of so many images the kernel mounts one.
const MOUNTED: u32 = 256;

/// Few names, so that entries meet.
const NAMES: [&str; 12] =
    ["a", "b", "c", "a/b", "a/b/c", "b/x", "c/y", ".wh.a", "a/.wh.b", "b/.wh..wh..opq", "a/", "."];

#[derive(Debug)]
struct Entry {
    name: u8,
    link: u8,
    kind: u8,
    mode: u16,
    time: Option<(i32, u32)>,
    attribute: Option<(u8, Vec<u8>)>,
    free: Option<Vec<u8>>,
    size: u16,
    hole: u8,
}

impl<'a> Arbitrary<'a> for Entry {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Entry {
            name: bytes.arbitrary()?,
            link: bytes.arbitrary()?,
            kind: bytes.arbitrary()?,
            mode: bytes.arbitrary()?,
            time: bytes.arbitrary()?,
            attribute: bytes.arbitrary()?,
            free: bytes.arbitrary()?,
            size: bytes.arbitrary()?,
            hole: bytes.arbitrary()?,
        })
    }
}

fuzz_target!(|entries: Vec<Entry>| {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let place = tempfile::tempdir_in(berth_images::fuzzing::place()).unwrap();
    let archive = archive(&entries);
    let directory = std::fs::File::open(place.path()).unwrap();
    let unpacked = berth_images::fuzzing::unpack(&archive, OwnedFd::from(directory));
    // With a name, for others who are to open it.
    let file = tempfile::NamedTempFile::new_in(berth_images::fuzzing::place()).unwrap();
    let written = berth_images::fuzzing::image(&archive, OwnedFd::from(file.as_file().try_clone().unwrap()));
    assert_eq!(unpacked, written);
    if written.is_err() {
        return;
    }
    let mut bytes = vec![0; usize::try_from(file.as_file().metadata().unwrap().len()).unwrap()];
    file.as_file().read_exact_at(&mut bytes, 0).unwrap();
    let image = read(&bytes);
    let directory = walk(place.path());
    // Files stand for whiteouts where the filesystem takes none as the image has them.
    if !directory.values().any(Seen::stands_for_whiteout) {
        same(&image, &directory);
    }
    let number = MADE.fetch_add(1, Relaxed);
    if number.is_multiple_of(CHECKED) {
        run(Command::new("fsck.erofs").arg(file.path()));
    }
    // In a test run the kernel may have no such filesystem.
    if cfg!(fuzzing) && root && number.is_multiple_of(MOUNTED) {
        same(&image, &mounted(file.path()));
    }
});

fn same(image: &Tree, expected: &Tree) {
    assert!(image.keys().eq(expected.keys()), "{:?} and not {:?}", image.keys(), expected.keys());
    for (name, seen) in image {
        assert_eq!(seen, &expected[name], "{}", name.escape_ascii());
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the kernel shows of an image.
fn mounted(image: &Path) -> Tree {
    let place = tempfile::tempdir_in(berth_images::fuzzing::place()).unwrap();
    // mount(8) makes a loop device, which goes with the mount.
    run(Command::new("mount").args(["-t", "erofs", "-o", "ro"]).arg(image).arg(place.path()));
    // It goes with the descriptor then: a panic ends the fuzzer as it stands, and would leave the mount behind.
    let root = std::fs::File::open(place.path());
    run(Command::new("umount").arg("--lazy").arg(place.path()));
    let root = root.unwrap();
    walk(Path::new(&format!("/proc/self/fd/{}/.", root.as_raw_fd())))
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries {
        let kind = b"01256S"[usize::from(entry.kind % 6)];
        let mut records = Vec::new();
        if let Some((seconds, nanoseconds)) = entry.time {
            // A fraction counts away from zero.
            records.push((
                "mtime".to_owned(),
                format!("{seconds}.{:09}", nanoseconds % 1_000_000_000).into_bytes(),
            ));
        }
        if let Some((name, value)) = &entry.attribute {
            records.push((format!("SCHILY.xattr.user.{}", name % 4), value[..value.len().min(200)].to_vec()));
        }
        if !records.is_empty() {
            let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let header = header(b"PaxHeader", b'x', 0o644, body.len() as u64, b"");
            archive.extend(sealed(header));
            padded(&mut archive, &body);
        }
        let name = entry.free.as_deref().unwrap_or(NAMES[usize::from(entry.name % 12)].as_bytes());
        let link = NAMES[usize::from(entry.link % 12)].as_bytes();
        let size = if matches!(kind, b'0' | b'S') { entry.size % 10_000 } else { 0 };
        let data = vec![entry.size.to_le_bytes()[0]; size.into()];
        // Others than root have to get into it again.
        let mut block = header(name, kind, u32::from(entry.mode & 0o7777) | 0o700, size.into(), link);
        if kind == b'S' {
            let hole = u64::from(entry.hole) * 512;
            block[257..265].copy_from_slice(b"ustar  \0");
            block[386..398].copy_from_slice(format!("{hole:011o}\0").as_bytes());
            block[398..410].copy_from_slice(format!("{size:011o}\0").as_bytes());
            block[483..495].copy_from_slice(format!("{:011o}\0", 2 * hole + u64::from(size)).as_bytes());
        }
        archive.extend(sealed(block));
        padded(&mut archive, &data);
    }
    archive.extend([0; 1024]);
    archive
}

fn header(name: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) -> [u8; 512] {
    let mut block = [0; 512];
    let name = &name[..name.len().min(100)];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    block[108..124].copy_from_slice(b"0000000\x000000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block
}

fn sealed(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn padded(archive: &mut Vec<u8>, data: &[u8]) {
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// An extended header's record, which begins with its own length.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|length| length.to_string().len() + rest == *length).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

type Tree = BTreeMap<Vec<u8>, Seen>;

/// What is in a directory.
fn walk(root: &Path) -> Tree {
    let mut all = Tree::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let attributes = if kind.is_symlink() { None } else { xattr::list(&path).ok() };
        // The machine may give files labels of its own.
        let of_users = |name: &OsString| name.as_bytes().starts_with(b"user.");
        let attributes = attributes.into_iter().flatten().filter(of_users).map(|name| {
            let value = xattr::get(&path, &name).unwrap().unwrap();
            (name.into_vec(), value)
        });
        let content = if kind.is_file() {
            std::fs::read(&path).unwrap()
        } else if kind.is_symlink() {
            std::fs::read_link(&path).unwrap().into_os_string().into_vec()
        } else {
            Vec::new()
        };
        let seen = Seen::new(
            meta.mode(),
            meta.nlink(),
            (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap()),
            content,
            attributes.collect(),
        );
        all.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), seen);
        if kind.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all
}
