//! Maps of sparse files: GNU's old header form and its PAX form 1.0.

use std::io::BufRead;

use super::header::{Header, number};
use super::pax::decimal;
use super::reader::read_block;
use super::{BLOCK, Segment, refused};
use crate::error::Result;

/// Most pieces of one sparse file.
const MAX_SEGMENTS: usize = 1 << 16;

/// The map of an old GNU sparse header (type `S`), with its extension blocks. Gives the map, the real size and
/// the number of extension blocks read.
pub(super) fn old_gnu(
    header: &Header<'_>,
    stored: u64,
    input: &mut impl BufRead,
) -> Result<(Vec<Segment>, u64)> {
    let path = header.path();
    let real = u64::try_from(header.number(483, 12, "real size")?)
        .map_err(|_| refused(&path, "its real size is negative"))?;
    let mut map = Vec::new();
    let mut more = take(&header.block()[386..482], &mut map, &path)? && header.block()[482] != 0;
    while more {
        let mut block = [0; BLOCK];
        if !read_block(input, &mut block)? {
            return Err(refused(&path, "the archive ends within its sparse map"));
        }
        more = take(&block[..504], &mut map, &path)? && block[504] != 0;
    }
    check(&map, stored, real, &path)?;
    Ok((map, real))
}

/// The map of sparse format 1.0, decimal lines at the start of the data, padded to a block. Gives the map and
/// the bytes of data that the map took.
pub(super) fn pax_1_0(
    path: &[u8],
    stored: u64,
    real: u64,
    input: &mut impl BufRead,
) -> Result<(Vec<Segment>, u64)> {
    let mut taken = 0u64;
    let mut block = [0; BLOCK];
    let mut at = BLOCK;
    let mut number = |input: &mut _, taken: &mut u64| -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            if at == BLOCK {
                if *taken + BLOCK as u64 > stored || !read_block(input, &mut block)? {
                    return Err(refused(path, "its sparse map is cut off"));
                }
                *taken += BLOCK as u64;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            match byte {
                b'\n' => {
                    return decimal(&digits).ok_or_else(|| refused(path, "its sparse map is malformed"));
                }
                _ if digits.len() < 20 => digits.push(byte),
                _ => return Err(refused(path, "its sparse map is malformed")),
            }
        }
    };
    let count = number(input, &mut taken)?;
    if count > MAX_SEGMENTS as u64 {
        return Err(refused(path, "its sparse map is too long"));
    }
    let mut map = Vec::new();
    for _ in 0..count {
        let offset = number(input, &mut taken)?;
        let length = number(input, &mut taken)?;
        map.push(Segment { offset, length });
    }
    check(&map, stored - taken, real, path)?;
    Ok((map, taken))
}

/// Reads pairs of 12-byte numbers up to the first empty one; gives whether all were full.
fn take(fields: &[u8], map: &mut Vec<Segment>, path: &[u8]) -> Result<bool> {
    let bad = || refused(path, "its sparse map is malformed");
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            return Ok(false);
        }
        let offset = number(&pair[..12]).and_then(|n| u64::try_from(n).ok()).ok_or_else(bad)?;
        let length = number(&pair[12..]).and_then(|n| u64::try_from(n).ok()).ok_or_else(bad)?;
        map.push(Segment { offset, length });
        if map.len() > MAX_SEGMENTS {
            return Err(refused(path, "its sparse map is too long"));
        }
    }
    Ok(true)
}

/// Pieces ascend, do not overlap, end within the file, and add up to the stored bytes.
fn check(map: &[Segment], stored: u64, real: u64, path: &[u8]) -> Result<()> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for segment in map {
        let next = segment
            .offset
            .checked_add(segment.length)
            .ok_or_else(|| refused(path, "its sparse map overflows"))?;
        if segment.offset < end || next > real {
            return Err(refused(path, "its sparse map overlaps or leaves the file"));
        }
        end = next;
        sum += segment.length;
    }
    if sum != stored {
        return Err(refused(path, "its sparse map does not match the stored size"));
    }
    Ok(())
}
