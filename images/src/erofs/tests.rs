//! What the writer makes of one archive, byte for byte: nodes that call their writer by the same version take each other's images.

use std::fs::File;
use std::os::unix::fs::FileExt;

use berth_tar::{BLOCK, END, Kind, Member, padding};

use super::{Image, VERSION};
use crate::archive::Reader;
use crate::digest::{Algorithm, Digest};
use crate::skeleton::Recorder;
use crate::unpack::{Limits, Unpacker};

/// The archive, the version, the image, what is kept of the archive, and what unpacking it found.
const PINNED: [&str; 5] = [
    "241152 bytes, sha256:9836219c03adaeade8da6a9306be11361b49908fb7c289c0c595262cf14e2f33",
    "version 1",
    "1060864 bytes, sha256:d76d17a31db2876de9369f95513d9b7e96b2954ad04e8ae24321478d6c4ded9b",
    "223200 bytes, sha256:b57a9c7ef8696f42f089fdaeccea5a3962353be0839b13c3fba55b6e4f9fe313",
    r#"{"entries":416,"bytes":1018237,"whiteouts":1,"opaque_directories":1,"devices_skipped":0,"overlay_attributes_stripped":0,"capabilities_stripped":1,"other_attributes_skipped":0,"setid_stripped":1,"replaced":1,"unsaved":0}"#,
];

const PLAIN: Member<'static> = Member {
    path: b"",
    kind: Kind::File,
    mode: 0o644,
    owner: (7, 8),
    size: 0,
    mtime: (1_600_000_000, 0),
    link: b"",
    xattrs: &[],
};

fn add(archive: &mut Vec<u8>, member: Member<'_>, data: &[u8]) {
    let member = Member { size: data.len() as u64, ..member };
    archive.extend(member.header());
    archive.extend_from_slice(data);
    archive.resize(archive.len() + padding(member.size), 0);
}

/// A file with a hole of a million bytes, as GNU tar writes it (PAX format 1.0).
fn add_sparse(archive: &mut Vec<u8>) {
    let mut records = Vec::new();
    for field in ["major=1", "minor=0", "name=sparse", "realsize=1000003"] {
        let rest = format!(" GNU.sparse.{field}\n");
        // The length counts its own two digits.
        records.extend(format!("{}{rest}", rest.len() + 2).into_bytes());
    }
    let header = archive.len();
    add(archive, Member { path: b"pax", ..PLAIN }, &records);
    archive[header + 156] = b'x';
    archive[header + 148..header + 156].fill(b' ');
    let sum: u32 = archive[header..header + BLOCK].iter().map(|byte| u32::from(*byte)).sum();
    archive[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut data = b"2\n0\n5\n1000000\n3\n".to_vec();
    data.resize(BLOCK, 0);
    data.extend_from_slice(b"startend");
    add(archive, Member { path: b"GNUSparseFile.0/sparse", ..PLAIN }, &data);
}

/// All that a layer may have, in each of the ways in which the writer keeps it.
fn archive() -> Vec<u8> {
    let mut all = Vec::new();
    let note = [(b"user.note".to_vec(), b"kept".to_vec())];
    let capability = [(b"security.capability".to_vec(), vec![1; 20])];
    let large: Vec<u8> = (0..10_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let mtime = (1_500_000_000, 123_456_789);
    let directory = |path| Member { path, kind: Kind::Directory, mode: 0o755, ..PLAIN };
    add(&mut all, Member { mode: 0o700, ..directory(b".") }, b"");
    add(&mut all, Member { mtime, xattrs: &note, ..directory(b"etc") }, b"");
    add(&mut all, Member { path: b"etc/small", xattrs: &note, ..PLAIN }, b"behind its inode\n");
    add(&mut all, Member { path: b"etc/large", mode: 0o4755, mtime, ..PLAIN }, &large);
    add(&mut all, Member { path: b"etc/blocks", xattrs: &capability, ..PLAIN }, &large[..8192]);
    add(&mut all, Member { path: b"etc/empty", mode: 0, ..PLAIN }, b"");
    let link = |path, link| Member { path, kind: Kind::Symlink, mode: 0o777, link, ..PLAIN };
    add(&mut all, link(b"etc/link", b"small"), b"");
    let far = b"far/".repeat(75);
    add(&mut all, link(b"etc/far", &far), b"");
    add(&mut all, Member { path: b"pipe", kind: Kind::Fifo, ..PLAIN }, b"");
    add(&mut all, Member { path: b"lower/.wh.gone", ..PLAIN }, b"");
    add(&mut all, directory(b"hidden"), b"");
    add(&mut all, Member { path: b"hidden/.wh..wh..opq", ..PLAIN }, b"");
    // A directory of several blocks, with names that sort otherwise than they came.
    for n in (0..400).rev() {
        add(&mut all, Member { path: format!("many/name-{n}").as_bytes(), ..PLAIN }, b"");
    }
    add(&mut all, Member { path: &[b'n', 0xff], ..PLAIN }, b"no text");
    add_sparse(&mut all);
    add(&mut all, Member { path: b"other", kind: Kind::HardLink, link: b"etc/small", ..PLAIN }, b"");
    add(&mut all, Member { path: b"etc/large", ..PLAIN }, b"in another's place");
    all.extend_from_slice(&END);
    all
}

#[test]
fn an_archive_makes_what_this_version_of_the_writer_stands_for() {
    let archive = archive();
    let recorder = Recorder::new(&archive[..], Vec::new()).unwrap();
    let mut reader = Reader::new(recorder.keeping(tempfile::tempfile().unwrap()));
    let image = Image::new(tempfile::tempfile().unwrap().into(), (1, 2), *b"a pinned image!!");
    let (report, image) = Unpacker::new(image, &Limits::default(), false).run(&mut reader).unwrap();
    let mut recorder = reader.into_inner();
    std::io::copy(&mut recorder, &mut std::io::sink()).unwrap();
    let (_, skeleton) = recorder.finish().unwrap();
    let image = File::from(image.seal().unwrap());
    let mut written = vec![0; usize::try_from(image.metadata().unwrap().len()).unwrap()];
    image.read_exact_at(&mut written, 0).unwrap();
    let said = |bytes: &[u8]| format!("{} bytes, {}", bytes.len(), Digest::of(Algorithm::Sha256, bytes));
    // What compresses the skeleton is in the writer's name.
    let skeleton = zstd::decode_all(&skeleton[..]).unwrap();
    let report = serde_json::to_string(&report).unwrap();
    let found = [said(&archive), format!("version {VERSION}"), said(&written), said(&skeleton), report];
    assert_eq!(
        found, PINNED,
        "the same archive makes other bytes than before, by which nodes of two versions would give each other the lie: where that is \
         meant, raise `erofs::VERSION`, and have `PINNED` say what stands on the left. Where the first line differs, it is the test's \
         own archive that is another one"
    );
}
