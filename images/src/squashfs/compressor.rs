//! How blocks of an image are compressed, and how they are unpacked: never into more than they may become.

use std::io::{self, Read};

use super::{GZIP, LZO, XZ, ZSTD, lzo};
use crate::error::{Error, ErrorKind, Result};

/// Names by number, from 1 on.
const NAMES: [&str; 6] = ["gzip", "lzma", "lzo", "xz", "lz4", "zstd"];
/// The largest dictionary of zstd, as a power of two, and the memory of xz in KiB: a block has a MiB at most.
const WINDOW: u32 = 21;
const XZ_MEMORY: u32 = 8 << 10;

/// A way in which blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compressor {
    Gzip,
    Lzo,
    Xz,
    Zstd,
}

impl Compressor {
    /// The one that a superblock names.
    ///
    /// # Errors
    /// It cannot be read here.
    pub(super) fn of(number: u16) -> Result<Compressor> {
        match number {
            GZIP => Ok(Compressor::Gzip),
            LZO => Ok(Compressor::Lzo),
            XZ => Ok(Compressor::Xz),
            ZSTD => Ok(Compressor::Zstd),
            other => {
                let name = NAMES.get(usize::from(other).wrapping_sub(1)).unwrap_or(&"something unknown");
                let what = format!("is compressed with {name}");
                Err(Error::new(ErrorKind::Unsupported, "squashfs image", what)
                    .next("make it again with `mksquashfs DIR FILE -comp zstd`"))
            }
        }
    }

    /// Unpacks what becomes at most `most` bytes, and one more when it would become more.
    pub(super) fn unpack(self, packed: &[u8], most: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let limit = most as u64 + 1;
        match self {
            Compressor::Gzip => flate2::read::ZlibDecoder::new(packed).take(limit).read_to_end(&mut out)?,
            Compressor::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(packed)?;
                decoder.window_log_max(WINDOW)?;
                decoder.take(limit).read_to_end(&mut out)?
            }
            Compressor::Xz => lzma_rust2::XzReader::new_mem_limit(packed, false, XZ_MEMORY)
                .take(limit)
                .read_to_end(&mut out)?,
            Compressor::Lzo => {
                return lzo::unpack(packed, most + 1).ok_or_else(|| io::Error::other("damaged or too large"));
            }
        };
        Ok(out)
    }
}
