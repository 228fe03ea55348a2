//! Doors for the fuzz targets of `images/fuzz` to parsers that this crate keeps to itself. Built for tests, and
//! for cargo-fuzz, which sets `fuzzing`; nothing else may call them.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::archive::{Reader, refused};
use crate::digest::{Algorithm, Digest};
use crate::erofs::Image;
use crate::error::{Result, recover};
use crate::manifest::{
    Document, ImageConfig, LayerInfo, Platform, check_config_type, choose, descriptor_digest, parse_document,
    read_config,
};
use crate::skeleton::{Rebuilt, Recorder};
use crate::unpack::{Form, LayerReport, Limits, Tree, Unpacker, listing};

/// Where targets make files: in memory where they make them for hours, and where all tests do else.
pub fn place() -> PathBuf {
    if cfg!(fuzzing) { PathBuf::from("/dev/shm") } else { std::env::temp_dir() }
}

/// Limits that a fuzzer's machine can bear.
fn limits() -> Limits {
    Limits { bytes: 1 << 20, ..Limits::default() }
}

/// Reads an archive to its end; gives the bytes of data that it handed out.
///
/// # Errors
/// The archive is refused.
pub fn archive(bytes: &[u8]) -> Result<u64> {
    let mut reader = Reader::new(bytes);
    let mut total = 0;
    while reader.next()?.is_some() {
        loop {
            let length = reader.data()?.len();
            if length == 0 {
                break;
            }
            reader.consume(length);
            total += length as u64;
        }
    }
    Ok(total)
}

/// Unpacks an archive into an empty directory, and makes it again from skeleton and files.
///
/// # Errors
/// The archive is refused, or the machine fails.
///
/// # Panics
/// The archive that is made again is another one.
pub fn unpack(bytes: &[u8], directory: OwnedFd) -> Result<LayerReport> {
    let io = |e| recover("fuzz", e);
    let tree = directory.try_clone().map_err(io)?;
    let (report, _, skeleton) = fill(bytes, Tree::new(directory))?;
    if report.replaced == 0 {
        let mut again = Vec::new();
        Rebuilt::new(&skeleton[..], &tree, false).map_err(io)?.read_to_end(&mut again).map_err(io)?;
        assert!(again == bytes, "the archive that is made again is another one");
    }
    Ok(report)
}

/// Writes an archive into an empty file, as an image.
///
/// # Errors
/// The archive is refused, or the machine fails.
pub fn image(bytes: &[u8], file: OwnedFd) -> Result<LayerReport> {
    let (report, image, _) = fill(bytes, Image::new(file, (0, 0), [1; 16]))?;
    image.seal().map_err(|e| crate::error::Error::io("image", e))?;
    Ok(report)
}

/// Fills a form; gives it back, with the archive's skeleton.
fn fill<F: Form>(bytes: &[u8], form: F) -> Result<(LayerReport, F, Vec<u8>)> {
    let io = |e| recover("fuzz", e);
    let mut reader = Reader::new(Recorder::new(bytes, Vec::new()).map_err(io)?);
    let (report, form) = Unpacker::new(form, &limits(), false).run(&mut reader)?;
    let mut recorder = reader.into_inner();
    std::io::copy(&mut recorder, &mut std::io::sink()).map_err(io)?;
    let (_, skeleton) = recorder.finish().map_err(io)?;
    Ok((report, form, skeleton))
}

/// Reads a manifest or an index as a registry sends it, and what it names.
///
/// # Errors
/// The document is refused.
pub fn manifest(bytes: &[u8], content_type: Option<&str>) -> Result<()> {
    match parse_document("fuzz", bytes, content_type)? {
        Document::Index(index) => {
            let chosen = choose("fuzz", &index, &Platform::default())?;
            descriptor_digest("fuzz", chosen).map(drop)
        }
        Document::Manifest(manifest) => {
            check_config_type("fuzz", &manifest)?;
            descriptor_digest("fuzz", manifest.config()).map(drop)
        }
    }
}

/// Joins a configuration to the layers of a manifest.
///
/// # Errors
/// One of the two is refused.
pub fn config(manifest: &[u8], config: &[u8]) -> Result<(ImageConfig, Vec<LayerInfo>)> {
    match parse_document("fuzz", manifest, None)? {
        Document::Manifest(manifest) => {
            read_config("fuzz", &manifest, config, &Platform::default(), &limits())
        }
        Document::Index(_) => Err(refused(&[], "an index has no configuration")),
    }
}

/// Reads a `WWW-Authenticate` header.
pub fn challenge(header: &str) {
    crate::registry::read_challenge(header);
}

/// Reads a squashfs image to its end; gives the bytes of the archive that it makes.
///
/// # Errors
/// The image is refused.
pub fn squashfs(file: std::fs::File) -> Result<u64> {
    let mut total = 0;
    crate::squashfs::doors::read_whole(file, &limits(), &mut |bytes| {
        total += bytes.len() as u64;
        Ok(())
    })?;
    Ok(total)
}

/// Reads head and descriptors of a SIF file; gives places and lengths of what is in it.
///
/// # Errors
/// The file is refused.
pub fn sif(file: &std::fs::File) -> Result<Vec<(u64, u64)>> {
    crate::sif::Sif::read(file).map(|sif| match sif.holds {
        crate::sif::Holds::Squashfs(place, _) => vec![place],
        crate::sif::Holds::Oci { index, blobs } => {
            std::iter::once(index).chain(blobs.into_values()).collect()
        }
    })
}

/// Unpacks a block of lzo into at most `most` bytes; nothing where it is damaged.
pub fn lzo(bytes: &[u8], most: usize) -> Option<Vec<u8>> {
    crate::squashfs::doors::unpack_lzo(bytes, most)
}

/// Makes at most a MiB of an archive again from a skeleton with these records and the files of a directory.
///
/// # Errors
/// The skeleton is malformed, or a file is not as it says.
pub fn skeleton(records: &[u8], tree: &OwnedFd, all: bool) -> std::io::Result<Vec<u8>> {
    let packed = zstd::encode_all(records, 1)?;
    let mut made = Vec::new();
    Rebuilt::new(&packed[..], tree, all)?.take(1 << 20).read_to_end(&mut made)?;
    Ok(made)
}

fn sum(mut file: &File) -> std::io::Result<Digest> {
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(Digest::of(Algorithm::Sha256, &content))
}

/// Compares a directory with the listing of these words; gives the number of changes.
///
/// # Errors
/// The listing is malformed.
///
/// # Panics
/// A listing of the directory itself finds changes.
pub fn listing(words: &[u8], tree: &OwnedFd) -> std::io::Result<usize> {
    let mut own = Vec::new();
    listing::write(tree, &mut own, Some(sum))?;
    let same = listing::compare(tree, &own[..], sum)?;
    assert!(same.changes.is_empty(), "a tree is not what it is");
    Ok(listing::compare(tree, &zstd::encode_all(words, 1)?[..], sum)?.changes.len())
}

/// Reads each kind of record.
///
/// # Panics
/// What was read is another when it is written and read again.
pub fn records(bytes: &[u8]) {
    crate::store::doors::records(bytes);
}
