//! The Singularity Image Format, as far as an image is to be found in it: a head, descriptors of objects, and among these the
//! primary system partition, which is a squashfs image (github.com/sylabs/sif, specification version 01).

pub(crate) mod inside;
pub(crate) mod script;

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::{Error, ErrorKind, Result};

/// Stands in the head, behind the line that a shell reads.
pub(crate) const MAGIC: &[u8] = b"SIF_MAGIC\0";
/// Where it stands.
pub(crate) const MAGIC_AT: usize = 32;
/// Bytes of the head, and of a descriptor.
const HEAD: usize = 128;
const DESCRIPTOR: usize = 585;
/// Descriptors of a file: tools make 48, and as many objects as are added.
const MOST: u64 = 4096;
/// Types of objects, of filesystems and of partitions.
const PARTITION: i32 = 0x4004;
const SIGNATURE: i32 = 0x4005;
const OCI_ROOT: i32 = 0x400a;
const SQUASHFS: i32 = 1;
const PRIMARY: i32 = 2;
/// Names of architectures by their number: 01 is the first.
const ARCHITECTURES: [&str; 13] = [
    "386", "amd64", "arm", "arm64", "ppc64", "ppc64le", "mips", "mipsle", "mips64", "mips64le", "s390x",
    "riscv64", "loong64",
];

/// Where the image is in a file, and what stands beside it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sif {
    /// Offset and bytes of the squashfs image.
    pub(crate) place: (u64, u64),
    /// For which architecture it is.
    pub(crate) architecture: String,
    /// Fingerprints of who signed it, in hexadecimal digits; "unknown" where the signature itself has it.
    pub(crate) signers: Vec<String>,
}

fn bad(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Refused, "SIF image", reason)
        .next("it is damaged or hostile; make or copy it again from a source you trust")
}

fn other(reason: String) -> Error {
    Error::new(ErrorKind::Unsupported, "SIF image", reason)
        .next("use the registry image that it was made from, or `apptainer build --sandbox DIR FILE` and name the directory")
}

/// A descriptor's numbers: type, id, group, object or group that it is about, place, bytes; and what its type adds.
struct Object<'a> {
    kind: i32,
    id: u32,
    group: u32,
    link: u32,
    place: u64,
    length: u64,
    extra: &'a [u8],
}

impl Object<'_> {
    fn of(bytes: &[u8]) -> Option<Object<'_>> {
        Some(Object {
            kind: i32::from_le_bytes(field(bytes, 0)?),
            id: u32::from_le_bytes(field(bytes, 5)?),
            group: u32::from_le_bytes(field(bytes, 9)?),
            link: u32::from_le_bytes(field(bytes, 13)?),
            place: u64::from_le_bytes(field(bytes, 17)?),
            length: u64::from_le_bytes(field(bytes, 25)?),
            extra: bytes.get(201..DESCRIPTOR)?,
        })
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

impl Sif {
    /// Reads head and descriptors. Nothing in them is believed: what they name lies in the file, or it is refused.
    ///
    /// # Errors
    /// It is damaged, or its image is in a form that is not read.
    pub(crate) fn read(file: &File) -> Result<Sif> {
        let total = file.metadata().map_err(|e| Error::io("SIF image", e))?.len();
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0).map_err(|_| bad("it is shorter than its head"))?;
        if head.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) != Some(MAGIC) {
            return Err(bad("its head has no SIF_MAGIC"));
        }
        if head[42..44] != *b"01" {
            let version = head[42..44].escape_ascii();
            return Err(other(format!("it is of version {version}, and only 01 is read")));
        }
        let number = |at| field(&head, at).map_or(0, u64::from_le_bytes);
        let (count, at, length) = (number(88), number(96), number(104));
        if count > MOST {
            return Err(bad("it has too many descriptors"));
        }
        let bytes = usize::try_from(count).unwrap_or(0) * DESCRIPTOR;
        if length < bytes as u64 || at.checked_add(bytes as u64).is_none_or(|end| end > total) {
            return Err(bad("its descriptors lie outside of the file"));
        }
        let mut table = vec![0; bytes];
        file.read_exact_at(&mut table, at).map_err(|e| Error::io("SIF image", e))?;
        // The fifth byte says whether a descriptor is used.
        let used = table.chunks_exact(DESCRIPTOR).filter(|d| d[4] != 0);
        let objects: Vec<Object<'_>> = used.filter_map(Object::of).collect();
        image(&objects, total)
    }
}

fn image(objects: &[Object<'_>], total: u64) -> Result<Sif> {
    let number = |o: &Object<'_>, at| field(o.extra, at).map_or(0, i32::from_le_bytes);
    let mut primary = objects.iter().filter(|o| o.kind == PARTITION && number(o, 4) == PRIMARY);
    let Some(found) = primary.next() else {
        return Err(match objects.iter().any(|o| o.kind == OCI_ROOT) {
            true => other("it holds an OCI image and no partition".into()),
            false => bad("it has no primary system partition"),
        });
    };
    if primary.next().is_some() {
        return Err(bad("it has several primary system partitions"));
    }
    match number(found, 0) {
        SQUASHFS => {}
        2 => return Err(other("its partition is an ext3 filesystem, and only squashfs is read".into())),
        5 => return Err(other("its partition is encrypted".into())),
        n => return Err(other(format!("its partition has the unknown filesystem {n}"))),
    }
    if found.place.checked_add(found.length).is_none_or(|end| end > total) {
        return Err(bad("its partition lies outside of the file"));
    }
    let code = std::str::from_utf8(&found.extra[8..10]).ok().and_then(|text| text.parse::<usize>().ok());
    let architecture = code.and_then(|n| ARCHITECTURES.get(n.checked_sub(1)?)).copied().unwrap_or("unknown");
    // A signature is about an object, or about all of a group: then its link has the mark of groups.
    let signs = |o: &&Object<'_>| {
        o.kind == SIGNATURE && (o.link == found.id || (found.group != 0 && o.link == found.group))
    };
    let signers = objects.iter().filter(signs).map(|o| signer(&o.extra[4..])).collect();
    Ok(Sif { place: (found.place, found.length), architecture: architecture.into(), signers })
}

/// The fingerprint of a key, of 20 bytes. Signatures of other kinds than PGP's leave it empty.
fn signer(entity: &[u8]) -> String {
    let bytes = &entity[..20.min(entity.len())];
    if bytes.iter().all(|b| *b == 0) {
        return "unknown".into();
    }
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Numbers of a partition: filesystem, type, architecture.
    fn partition(fs: i32, kind: i32, arch: &[u8; 2]) -> Vec<u8> {
        [&fs.to_le_bytes()[..], &kind.to_le_bytes(), arch].concat()
    }

    fn descriptor(
        kind: i32,
        (id, group, link): (u32, u32, u32),
        (at, length): (u64, u64),
        extra: &[u8],
    ) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.push(1);
        for number in [id, group, link] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(at.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.resize(201, 0);
        bytes.extend(extra);
        bytes.resize(DESCRIPTOR, 0);
        bytes
    }

    fn read(version: &[u8; 2], count: u64, at: u64, descriptors: &[Vec<u8>]) -> Result<Sif> {
        let table = descriptors.concat();
        let mut bytes = vec![0; 32];
        bytes.extend(MAGIC);
        bytes.extend(version);
        bytes.resize(88, 0);
        for number in [count, at, table.len() as u64] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.resize(4096, 0);
        bytes.extend(table);
        bytes.resize(65536, 0);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        Sif::read(&file)
    }

    const GROUP: u32 = 0xf000_0001;

    #[test]
    fn the_partition_and_who_signed_it() {
        let image = descriptor(PARTITION, (2, GROUP, 0), (32768, 100), &partition(SQUASHFS, PRIMARY, b"04"));
        let by = |link, key: u8| {
            let mut extra = 1_i32.to_le_bytes().to_vec();
            extra.extend([key; 20]);
            descriptor(SIGNATURE, (3, 0, link), (0, 1), &extra)
        };
        let all =
            [descriptor(0x4001, (1, GROUP, 0), (0, 1), &[]), image, by(GROUP, 0xab), by(2, 0), by(7, 1)];
        let found = read(b"01", 5, 4096, &all).unwrap();
        assert_eq!((found.place, found.architecture.as_str()), ((32768, 100), "arm64"));
        assert_eq!(found.signers, ["AB".repeat(20), "unknown".into()]);
    }

    #[test]
    fn what_is_not_read_is_named() {
        let one = |fs, kind, arch: &[u8; 2]| {
            vec![descriptor(PARTITION, (1, 0, 0), (32768, 100), &partition(fs, kind, arch))]
        };
        let says = |result: Result<Sif>, word: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        says(read(b"02", 1, 4096, &one(SQUASHFS, PRIMARY, b"02")), "version 02");
        says(read(b"01", 1, 4096, &one(2, PRIMARY, b"02")), "ext3");
        says(read(b"01", 1, 4096, &one(5, PRIMARY, b"02")), "encrypted");
        says(read(b"01", 1, 4096, &one(9, PRIMARY, b"02")), "filesystem 9");
        says(read(b"01", 1, 4096, &one(SQUASHFS, 1, b"02")), "no primary system partition");
        says(read(b"01", 1, 4096, &[descriptor(OCI_ROOT, (1, 0, 0), (0, 1), &[])]), "an OCI image");
        says(
            read(b"01", 2, 4096, &[one(SQUASHFS, PRIMARY, b"02"), one(SQUASHFS, PRIMARY, b"02")].concat()),
            "several",
        );
        for (place, length) in [(u64::MAX, 2), (65536, 1), (0, 65537)] {
            let outside =
                descriptor(PARTITION, (1, 0, 0), (place, length), &partition(SQUASHFS, PRIMARY, b"02"));
            says(read(b"01", 1, 4096, &[outside]), "outside of the file");
        }
        for (count, at) in [(u64::MAX, 4096), (4096, u64::MAX), (2, 65536 - 585), (1 << 32, 4096)] {
            says(read(b"01", count, at, &one(SQUASHFS, PRIMARY, b"02")), "descriptors");
        }
        assert_eq!(read(b"01", 1, 4096, &one(SQUASHFS, PRIMARY, b"xx")).unwrap().architecture, "unknown");
    }
}
