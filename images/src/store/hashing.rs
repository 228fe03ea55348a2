//! What sums of the store's own files are made with. BLAKE3 takes a small part of SHA-256's time, where the processor has instructions
//! for that, too; SHA-256 is what earlier versions noted of images, and what listings have of files.

use std::fmt;
use std::fs::File;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::sum::{BLOCK, summed};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};

/// The sum of a layer's image, written `blake3:HEX`, or `sha256:HEX` where an earlier version made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) enum Sum {
    Blake3(blake3::Hash),
    Sha256(Digest),
}

impl Sum {
    /// That of an image.
    pub(super) fn of(image: &File) -> io::Result<Self> {
        summed::<Blake3>(image).map(Sum::Blake3)
    }

    /// Whether a file has this sum.
    pub(super) fn is_of(&self, image: &File) -> io::Result<bool> {
        Ok(match self {
            Sum::Blake3(sum) => summed::<Blake3>(image)? == *sum,
            Sum::Sha256(sum) => summed::<Sha256>(image)? == *sum,
        })
    }
}

/// The sum that listings have of a file's content.
pub(super) fn of_content(file: &File) -> io::Result<Digest> {
    summed::<Sha256>(file)
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sum::Blake3(sum) => write!(f, "blake3:{}", sum.to_hex()),
            Sum::Sha256(sum) => write!(f, "{sum}"),
        }
    }
}

impl FromStr for Sum {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(hex) = text.strip_prefix("blake3:") else { return text.parse().map(Sum::Sha256) };
        let sum = blake3::Hash::from_hex(hex);
        sum.map(Sum::Blake3)
            .map_err(|e| Error::new(ErrorKind::Corrupt, format!("sum {text:?}"), e.to_string()))
    }
}

impl TryFrom<String> for Sum {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Sum> for String {
    fn from(sum: Sum) -> Self {
        sum.to_string()
    }
}

/// A way to make the sum of one part of a file, and that of all.
pub(super) trait Hashing: 'static {
    type Sum;

    fn new() -> Self;

    /// Adds blocks that follow each other, none of which is all zeros. The next ones lie behind them.
    fn add(&mut self, place: u64, blocks: &[u8]);

    fn finish(self) -> Vec<u8>;

    /// The sum of a file of so many bytes, of the sums of its parts in their order.
    fn whole(parts: &[(u64, Vec<u8>)], length: u64) -> Self::Sum;
}

/// What is in the blocks is hashed without a word in between, as that is how the processor takes many of them at a time; where they
/// lie stands in front of it.
pub(super) struct Blake3 {
    content: blake3::Hasher,
    /// Where blocks lie that follow each other, and how many bytes they have.
    runs: Vec<(u64, u64)>,
}

impl Hashing for Blake3 {
    type Sum = blake3::Hash;

    fn new() -> Self {
        Self { content: blake3::Hasher::new(), runs: Vec::new() }
    }

    fn add(&mut self, place: u64, blocks: &[u8]) {
        self.content.update(blocks);
        let length = blocks.len() as u64;
        match self.runs.last_mut() {
            // However they were read.
            Some((from, all)) if *from + *all == place => *all += length,
            _ => self.runs.push((place, length)),
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        for (from, length) in &self.runs {
            hasher.update(&from.to_le_bytes());
            hasher.update(&length.to_le_bytes());
        }
        hasher.update(self.content.finalize().as_bytes());
        hasher.finalize().as_bytes().to_vec()
    }

    fn whole(parts: &[(u64, Vec<u8>)], length: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (part, sum) in parts {
            hasher.update(&part.to_le_bytes());
            hasher.update(sum);
        }
        hasher.update(&length.to_le_bytes());
        hasher.finalize()
    }
}

/// Each block behind where it lies.
pub(super) struct Sha256(Hasher);

impl Hashing for Sha256 {
    type Sum = Digest;

    fn new() -> Self {
        Self(Hasher::new(Algorithm::Sha256))
    }

    fn add(&mut self, place: u64, blocks: &[u8]) {
        for (block, place) in blocks.chunks(BLOCK).zip((place..).step_by(BLOCK)) {
            self.0.update(&place.to_le_bytes());
            self.0.update(block);
        }
    }

    fn finish(self) -> Vec<u8> {
        self.0.finish().hex().into()
    }

    fn whole(parts: &[(u64, Vec<u8>)], length: u64) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for (part, sum) in parts {
            hasher.update(&part.to_le_bytes());
            hasher.update(sum);
        }
        hasher.update(&length.to_le_bytes());
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A file of more than two parts, with blocks of zeros in a hole and as bytes, and a last block that is short.
    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..1_500_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file.write_all_at(&[0; 9000], 700_000).unwrap();
        file.set_len(3_000_000).unwrap();
        file.write_all_at(b"the end", 3_000_000).unwrap();
        file
    }

    /// Records of layers have these: whoever changes how a sum is made gives it another name, and goes on to compare these.
    const RECORDED: [&str; 2] = [
        "sha256:e3a0448df81c61abd812e89869bbb5268420e1c8f33100c7ed456554051252d2",
        "blake3:df4768563bcebba2fe1a229235c6d2b91bef9829b045d7ddc342b74844dfccf6",
    ];

    #[test]
    fn sums_that_this_and_earlier_versions_noted_are_compared() {
        let file = file();
        assert_eq!(Sum::of(&file).unwrap().to_string(), RECORDED[1]);
        assert_eq!(of_content(&file).unwrap().to_string(), RECORDED[0]);
        let noted = RECORDED.map(|text| text.parse::<Sum>().unwrap());
        assert_eq!(noted.clone().map(|sum| sum.to_string()), RECORDED);
        assert!(noted.iter().all(|sum| sum.is_of(&file).unwrap()));
        file.write_all_at(b"x", 1_000_000).unwrap();
        assert!(noted.iter().all(|sum| !sum.is_of(&file).unwrap()));
    }

    #[test]
    fn what_is_no_sum_is_an_error() {
        for text in ["", "blake3:", "blake3:00", "blake2:00", &format!("blake3:{}", "g".repeat(64))] {
            assert!(text.parse::<Sum>().is_err(), "{text}");
        }
    }
}
