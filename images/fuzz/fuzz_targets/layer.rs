//! Unpacks archives of arbitrary entries: nothing outside of the layer's directory may change, and the image made of the
//! same archive is a sound one.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Images made so far: `fsck.erofs` takes its time, and looks at some of them.
static ACCEPTED: AtomicU32 = AtomicU32::new(0);

/// Few names, so that entries meet: links to directories, files in place of directories, whiteouts of both.
const NAMES: [&str; 16] = [
    "a",
    "b",
    "a/b",
    "a/b/c",
    "../x",
    "/x",
    "a/../../x",
    "",
    ".",
    "a/",
    ".wh.a",
    "a/.wh.b",
    ".wh..wh..opq",
    "a/.wh..wh..opq",
    ".wh...",
    "b/x",
];

#[derive(Debug)]
struct Entry {
    name: u8,
    link: u8,
    kind: u8,
    mode: u16,
    free: Option<Vec<u8>>,
    data: Vec<u8>,
}

impl<'a> Arbitrary<'a> for Entry {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Entry {
            name: bytes.arbitrary()?,
            link: bytes.arbitrary()?,
            kind: bytes.arbitrary()?,
            mode: bytes.arbitrary()?,
            free: bytes.arbitrary()?,
            data: bytes.arbitrary()?,
        })
    }
}

fuzz_target!(|entries: Vec<Entry>| {
    let outside = tempfile::tempdir_in(berth_images::fuzzing::place()).unwrap();
    std::fs::write(outside.path().join("x"), "untouched").unwrap();
    let root = outside.path().join("layer");
    std::fs::create_dir(&root).unwrap();
    let directory = std::fs::File::open(&root).unwrap();
    // Others than root have to get into directories again, where the archive is made of its files once more.
    let open = if std::fs::metadata("/proc/self").unwrap().uid() == 0 { 0 } else { 0o700 };
    let mut archive = tar::Builder::new(Vec::new());
    for entry in &entries {
        let mut header = tar::Header::new_gnu();
        let kind = b"0123456"[usize::from(entry.kind % 7)];
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(u32::from(entry.mode) | open);
        let data = if kind == b'0' { &entry.data[..entry.data.len().min(600)] } else { &[] };
        header.set_size(data.len() as u64);
        let name = entry.free.as_deref().unwrap_or(NAMES[usize::from(entry.name % 16)].as_bytes());
        let link = NAMES[usize::from(entry.link % 16)].as_bytes();
        let field = &mut header.as_old_mut().name;
        field[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        archive.append(&header, data).unwrap();
    }
    let archive = archive.into_inner().unwrap();
    let unpacked = berth_images::fuzzing::unpack(&archive, OwnedFd::from(directory));
    // The other form takes and leaves out the same, and refuses for the same reason.
    let file = tempfile::tempfile_in(berth_images::fuzzing::place()).unwrap();
    let written = berth_images::fuzzing::image(&archive, OwnedFd::from(file.try_clone().unwrap()));
    assert_eq!(unpacked, written);
    if written.is_ok() && ACCEPTED.fetch_add(1, Relaxed).is_multiple_of(64) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let checked = std::process::Command::new("fsck.erofs").arg(path).output();
        let checked = checked.unwrap_or_else(|e| panic!("fsck.erofs of the package erofs-utils: {e}"));
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
    assert_eq!(std::fs::read(outside.path().join("x")).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 2, "something was made outside");
    assert!(!std::path::Path::new("/x").exists());
    make_removable(&root);
});

/// Directories without permissions would keep the temporary directory from being removed.
fn make_removable(directory: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            make_removable(&entry.path());
        }
    }
}
