//! The Singularity Image Format, as far as an image is to be found in it: a head, descriptors of objects, and among these the
//! primary system partition, which is a squashfs image, or an OCI image's index and blobs (github.com/sylabs/sif,
//! specification version 01).

pub(crate) mod inside;
pub(crate) mod script;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, printable};

/// Stands in the head, behind the line that a shell reads.
pub(crate) const MAGIC: &[u8] = b"SIF_MAGIC\0";
/// Where it stands.
pub(crate) const MAGIC_AT: usize = 32;
/// What a manifest that is made of such a file calls the state of its signatures.
pub(crate) const SIF_SIGNATURES: &str = "io.berth.sif.signatures";
/// Bytes of the head, and of a descriptor.
const HEAD: usize = 128;
const DESCRIPTOR: usize = 585;
/// Descriptors of a file: tools make 48, and as many objects as are added.
const MOST: u64 = 4096;
/// Bytes of a signature that is an envelope, and keys of it that are told of.
const MOST_ENVELOPE: usize = 64 << 10;
const MOST_KEYS: usize = 4;
/// Types of objects, of filesystems and of partitions.
const PARTITION: i32 = 0x4004;
const SIGNATURE: i32 = 0x4005;
const OCI_ROOT: i32 = 0x400a;
const OCI_BLOB: i32 = 0x400b;
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
    pub(crate) holds: Holds,
    /// Fingerprints of who signed it, in hexadecimal digits; of an envelope (DSSE), what it calls its keys; "unknown" where neither says it.
    pub(crate) signers: Vec<String>,
}

/// In which form the image is there. Places are offset and bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// A squashfs image, and for which architecture.
    Squashfs((u64, u64), String),
    /// An OCI image, as Singularity 4 has it: what stands in a layout's `index.json`, and blobs.
    Oci { index: (u64, u64), blobs: HashMap<Digest, (u64, u64)> },
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

    /// Where it is, if that is in the file.
    fn within(&self, total: u64, what: &str) -> Result<(u64, u64)> {
        match self.place.checked_add(self.length) {
            Some(end) if end <= total => Ok((self.place, self.length)),
            _ => Err(bad(format!("its {what} lies outside of the file"))),
        }
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

impl Sif {
    /// What a file holds; nothing, where it is none of these.
    ///
    /// # Errors
    /// As for [`Sif::read`].
    pub(crate) fn of(file: &File) -> Result<Option<Sif>> {
        let mut magic = [0; MAGIC.len()];
        // A file that is too short for it is none.
        let found = file.read_exact_at(&mut magic, MAGIC_AT as u64).is_ok() && magic == MAGIC;
        found.then(|| Sif::read(file)).transpose()
    }

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
        image(&objects, total, file)
    }
}

impl Sif {
    /// What is known of its signatures: whose they say they are. Nobody checked them.
    pub(crate) fn signed(&self) -> String {
        match self.signers.as_slice() {
            [] => "none".to_owned(),
            signers => format!("not checked, by {}", signers.join(" and ")),
        }
    }
}

fn image(objects: &[Object<'_>], total: u64, file: &File) -> Result<Sif> {
    let number = |o: &Object<'_>, at| field(o.extra, at).map_or(0, i32::from_le_bytes);
    let mut primary = objects.iter().filter(|o| o.kind == PARTITION && number(o, 4) == PRIMARY);
    let (found, holds) = match primary.next() {
        Some(found) => (found, partition(found, number(found, 0), total)?),
        None => oci(objects, total)?,
    };
    if primary.next().is_some() {
        return Err(bad("it has several primary system partitions"));
    }
    // A signature is about an object, or about all of a group: then its link has the mark of groups.
    let signs = |o: &&Object<'_>| {
        o.kind == SIGNATURE && (o.link == found.id || (found.group != 0 && o.link == found.group))
    };
    let signers = objects.iter().filter(signs).map(|o| signer(o, file)).collect();
    Ok(Sif { holds, signers })
}

fn partition(found: &Object<'_>, filesystem: i32, total: u64) -> Result<Holds> {
    match filesystem {
        SQUASHFS => {}
        2 => return Err(other("its partition is an ext3 filesystem, and only squashfs is read".into())),
        5 => return Err(other("its partition is encrypted".into())),
        n => return Err(other(format!("its partition has the unknown filesystem {n}"))),
    }
    let code = std::str::from_utf8(&found.extra[8..10]).ok().and_then(|text| text.parse::<usize>().ok());
    let architecture = code.and_then(|n| ARCHITECTURES.get(n.checked_sub(1)?)).copied().unwrap_or("unknown");
    Ok(Holds::Squashfs(found.within(total, "partition")?, architecture.into()))
}

fn oci<'a, 'b>(objects: &'a [Object<'b>], total: u64) -> Result<(&'a Object<'b>, Holds)> {
    let mut roots = objects.iter().filter(|o| o.kind == OCI_ROOT);
    let found = roots.next().ok_or_else(|| bad("it has no primary system partition, and no OCI image"))?;
    if roots.next().is_some() {
        return Err(bad("it has several OCI images' indexes"));
    }
    let index = found.within(total, "OCI index")?;
    let mut blobs = HashMap::new();
    for blob in objects.iter().filter(|o| o.kind == OCI_BLOB) {
        // The digest as text, and zeros behind it.
        let text = blob.extra.split(|b| *b == 0).next().unwrap_or_default();
        let digest = std::str::from_utf8(text).ok().and_then(|text| text.parse::<Digest>().ok());
        blobs
            .insert(digest.ok_or_else(|| bad("an OCI blob has no digest"))?, blob.within(total, "OCI blob")?);
    }
    Ok((found, Holds::Oci { index, blobs }))
}

/// Who says to have signed. The descriptor has the fingerprint of a key, of 20 bytes, for PGP's signatures alone.
fn signer(signature: &Object<'_>, file: &File) -> String {
    let fingerprint = field::<20>(signature.extra, 4).unwrap_or_default();
    if fingerprint != [0; 20] {
        return fingerprint.iter().map(|b| format!("{b:02X}")).collect();
    }
    let Some(envelope) = envelope(signature, file) else { return "unknown".into() };
    let named = envelope.signatures.iter().map(|by| match by.key.as_str() {
        "" => "a key without a name (DSSE)".to_owned(),
        key => format!("key {} (DSSE)", printable(key, 100)),
    });
    named.take(MOST_KEYS).collect::<Vec<_>>().join(" and ")
}

/// The envelope that a signature with a key or a certificate is (DSSE protocol, "JSON envelope").
fn envelope(signature: &Object<'_>, file: &File) -> Option<Envelope> {
    let length = usize::try_from(signature.length).ok().filter(|length| *length <= MOST_ENVELOPE)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, signature.place).ok()?;
    serde_json::from_slice::<Envelope>(&bytes).ok().filter(|envelope| !envelope.signatures.is_empty())
}

#[derive(Deserialize)]
struct Envelope {
    signatures: Vec<By>,
}

#[derive(Deserialize)]
struct By {
    #[serde(default, rename = "keyid")]
    key: String,
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
        read_with(version, (count, at), descriptors, b"")
    }

    /// With this at 60,000.
    fn read_with(
        version: &[u8; 2],
        (count, at): (u64, u64),
        descriptors: &[Vec<u8>],
        text: &[u8],
    ) -> Result<Sif> {
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
        bytes.resize(60_000, 0);
        bytes.extend(text);
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
        assert_eq!(found.holds, Holds::Squashfs((32768, 100), "arm64".into()));
        assert_eq!(found.signers, ["AB".repeat(20), "unknown".into()]);
    }

    #[test]
    fn who_signed_an_envelope_is_what_it_calls_its_keys() {
        let image = descriptor(PARTITION, (2, GROUP, 0), (32768, 100), &partition(SQUASHFS, PRIMARY, b"02"));
        let signers = |text: &str, length: u64| {
            let signature = descriptor(SIGNATURE, (3, 0, GROUP), (60_000, length), &[0; 260]);
            let all = [image.clone(), signature];
            read_with(b"01", (2, 4096), &all, text.as_bytes()).unwrap().signers
        };
        let said = |text: &str| signers(text, text.len() as u64);
        let two = r#"{"payloadType":"x","payload":"eA==","signatures":[{"keyid":"SHA256:ab\u001bc","sig":"eA=="},{"sig":"eA=="}]}"#;
        let found = said(two);
        assert_eq!(found.len(), 1);
        let by = &found[0];
        assert!(
            by.starts_with("key SHA256:ab") && by.ends_with("(DSSE) and a key without a name (DSSE)"),
            "{by}"
        );
        assert!(!by.contains('\u{1b}'), "{by}");
        for odd in ["", "{}", r#"{"signatures":[]}"#, "[", r#"{"signatures":7}"#] {
            assert_eq!(said(odd), ["unknown"], "{odd}");
        }
        assert_eq!(signers(two, u64::MAX), ["unknown"]);
        assert_eq!(signers(two, 10_000), ["unknown"], "it would lie outside of the file");
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
        let unknown = read(b"01", 1, 4096, &one(SQUASHFS, PRIMARY, b"xx")).unwrap();
        assert_eq!(unknown.holds, Holds::Squashfs((32768, 100), "unknown".into()));
        let root = |id| descriptor(OCI_ROOT, (id, GROUP, 0), (32768, 100), &[]);
        let blob = |place, digest: &str| descriptor(OCI_BLOB, (9, GROUP, 0), place, digest.as_bytes());
        let digest = format!("sha256:{}", "7".repeat(64));
        for (objects, word) in [
            (vec![root(1), root(2)], "several OCI"),
            (vec![descriptor(OCI_ROOT, (1, 0, 0), (65536, 1), &[])], "OCI index lies outside"),
            (vec![root(1), blob((65000, 1000), &digest)], "OCI blob lies outside"),
            (vec![root(1), blob((0, 1), "md5:0")], "has no digest"),
            (vec![blob((0, 1), &digest)], "no OCI image"),
        ] {
            says(read(b"01", objects.len() as u64, 4096, &objects), word);
        }
        let found = read(b"01", 2, 4096, &[root(1), blob((40000, 7), &digest)]).unwrap();
        let blobs = HashMap::from([(digest.parse().unwrap(), (40000, 7))]);
        assert_eq!(found.holds, Holds::Oci { index: (32768, 100), blobs });
    }
}
