//! Squashfs 4.0 images (kernel documentation, filesystems/squashfs, and the layout that its headers define): written from
//! a container's files, and read back as an image with one layer.
//!
//! All numbers are little-endian. Inodes, directories, fragments, ids and attributes stand in metadata blocks of at most
//! 8 KiB, each behind two bytes of length whose top bit says that it is not compressed.

mod compressor;
mod lzo;
mod read;
mod source;
mod write;

pub(crate) use source::{SquashfsSource, configuration_of};
pub(crate) use write::{Meta, Writer};

/// `hsqs`.
const MAGIC: u32 = 0x7371_7368;
/// Bytes of the superblock.
const SUPERBLOCK: usize = 96;
/// Most bytes of a metadata block.
const METADATA: usize = 8192;
/// Marks a metadata block that is stored as it is.
const PLAIN_METADATA: u16 = 0x8000;
/// Marks a data block that is stored as it is.
const PLAIN_DATA: u32 = 1 << 24;
/// Stands for none where a table or an index would stand.
const NONE: u32 = u32::MAX;
const NO_TABLE: u64 = u64::MAX;
const GZIP: u16 = 1;
const LZO: u16 = 3;
const XZ: u16 = 4;
const ZSTD: u16 = 6;
/// The flag of an image without attributes.
const NO_XATTRS: u16 = 0x200;

/// Kinds of inodes; the extended one of each is seven higher.
const DIRECTORY: u16 = 1;
const FILE: u16 = 2;
const SYMLINK: u16 = 3;
const FIFO: u16 = 6;
const EXTENDED: u16 = 7;

/// Where what an image is to be run with stands in the images that we write.
pub(crate) const CONFIG: &str = "etc/berth-image.json";

/// Doors for the fuzz targets.
#[cfg(any(test, fuzzing))]
pub(crate) mod doors {
    use super::read::{Give, Image};
    use crate::error::Result;
    use crate::unpack::Limits;

    pub(crate) fn read_whole(file: std::fs::File, limits: &Limits, out: &mut Give<'_>) -> Result<()> {
        let length = file.metadata().map_err(|e| crate::error::Error::io("squashfs image", e))?.len();
        Image::open(file, (0, length), true)?.archive(limits, out).map(drop)
    }

    pub(crate) fn unpack_lzo(bytes: &[u8], most: usize) -> Option<Vec<u8>> {
        super::lzo::unpack(bytes, most)
    }
}
