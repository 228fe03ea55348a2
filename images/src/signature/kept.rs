//! What a source said of an image's signatures, kept beside the image: to be looked at again with other keys, and to be given to other
//! nodes, each of which judges it with its own.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::MAX_EVIDENCE;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, recover};
use crate::source::{BlobKind, BlobSource};
use crate::unpack::Limits;

/// Most bytes of all that is kept of one image.
const MOST: usize = 16 << 20;

/// What was said, by the digest of what was asked about. Nobody vouches for it: documents of signatures are judged by keys, and indexes by
/// their digests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Indexes that list the image, in base64.
    #[serde(default)]
    indexes: BTreeMap<Digest, String>,
    /// What there is of signatures, of the manifest and of indexes, in base64.
    #[serde(default)]
    signatures: BTreeMap<Digest, String>,
}

impl Kept {
    fn of(&self, kind: BlobKind) -> Option<&BTreeMap<Digest, String>> {
        match kind {
            BlobKind::Manifest => Some(&self.indexes),
            BlobKind::Signatures => Some(&self.signatures),
            BlobKind::Proof
            | BlobKind::Blob
            | BlobKind::Held
            | BlobKind::Archive
            | BlobKind::Forms
            | BlobKind::Form
            | BlobKind::SifSignatures => None,
        }
    }

    /// An index, or what there is of signatures of this manifest or index.
    pub(crate) fn get(&self, kind: BlobKind, digest: &Digest) -> Option<Vec<u8>> {
        STANDARD.decode(self.of(kind)?.get(digest)?).ok()
    }

    fn put(&mut self, kind: BlobKind, digest: &Digest, bytes: &[u8]) {
        let all = match kind {
            BlobKind::Manifest => &mut self.indexes,
            BlobKind::Signatures => &mut self.signatures,
            BlobKind::Proof
            | BlobKind::Blob
            | BlobKind::Held
            | BlobKind::Archive
            | BlobKind::Forms
            | BlobKind::Form
            | BlobKind::SifSignatures => return,
        };
        all.insert(digest.clone(), STANDARD.encode(bytes));
    }

    /// This, and what was known before of which it says nothing; where that is too much, this alone.
    pub(crate) fn over(self, before: Kept) -> Kept {
        let mut both = before;
        both.indexes.extend(self.indexes.clone());
        both.signatures.extend(self.signatures.clone());
        if both.length() <= MOST { both } else { self }
    }

    /// Whether it is little enough to be kept.
    pub(crate) fn fits(&self) -> bool {
        self.length() <= MOST
    }

    fn length(&self) -> usize {
        self.indexes.values().chain(self.signatures.values()).map(String::len).sum()
    }
}

/// What was kept, as a source.
impl BlobSource for Kept {
    fn describe(&self) -> String {
        "what is kept of its signatures".to_owned()
    }

    fn open(&self, kind: BlobKind, digest: &Digest, _offset: u64) -> Result<Box<dyn Read + Send>> {
        match self.get(kind, digest) {
            Some(bytes) => Ok(Box::new(Cursor::new(bytes))),
            None => Err(Error::new(ErrorKind::NotFound, digest.to_string(), "nothing is kept of it")),
        }
    }
}

/// A source of which is kept what it says of signatures.
pub(crate) struct Heard<'a> {
    source: &'a dyn BlobSource,
    kept: Mutex<Kept>,
}

impl<'a> Heard<'a> {
    pub(crate) fn new(source: &'a dyn BlobSource) -> Heard<'a> {
        Heard { source, kept: Mutex::default() }
    }

    /// All that was said.
    pub(crate) fn kept(self) -> Kept {
        self.kept.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlobSource for Heard<'_> {
    fn describe(&self) -> String {
        self.source.describe()
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        let blob = self.source.open(kind, digest, offset)?;
        let limit = match kind {
            BlobKind::Manifest => Limits::default().manifest_bytes,
            BlobKind::Signatures => MAX_EVIDENCE,
            BlobKind::Proof
            | BlobKind::Blob
            | BlobKind::Held
            | BlobKind::Archive
            | BlobKind::Forms
            | BlobKind::Form
            | BlobKind::SifSignatures => return Ok(blob),
        };
        let mut bytes = Vec::new();
        // Whoever reads it refuses what is longer.
        let failed = |e| recover(&format!("{digest} of {}", self.source.describe()), e);
        blob.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).put(kind, digest, &bytes);
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn is_peers(&self) -> bool {
        self.source.is_peers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn read(source: &dyn BlobSource, kind: BlobKind, digest: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        source.open(kind, digest, 0)?.read_to_end(&mut bytes).unwrap();
        Ok(bytes)
    }

    #[test]
    fn what_was_heard_is_said_again_and_nothing_else() {
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        let mut first = Kept::default();
        first.put(BlobKind::Signatures, &digest("image"), b"by one");
        first.put(BlobKind::Manifest, &digest("index"), b"index");
        let heard = Heard::new(&first);
        assert_eq!(read(&heard, BlobKind::Signatures, &digest("image")).unwrap(), b"by one");
        read(&heard, BlobKind::Signatures, &digest("other")).unwrap_err();
        let second = heard.kept();
        assert_eq!(read(&second, BlobKind::Signatures, &digest("image")).unwrap(), b"by one");
        read(&second, BlobKind::Manifest, &digest("index")).unwrap_err();
        read(&second, BlobKind::Blob, &digest("image")).unwrap_err();
        // What is newer counts, and what it says nothing of stays.
        let mut newer = Kept::default();
        newer.put(BlobKind::Signatures, &digest("image"), b"by two");
        let both = newer.over(first);
        assert_eq!(both.get(BlobKind::Signatures, &digest("image")).unwrap(), b"by two");
        assert_eq!(both.get(BlobKind::Manifest, &digest("index")).unwrap(), b"index");
        let again: Kept = serde_json::from_slice(&serde_json::to_vec(&both).unwrap()).unwrap();
        assert_eq!(again, both);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let digest = |n: usize| Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        let mut large = Kept::default();
        (0..5).for_each(|n| large.put(BlobKind::Signatures, &digest(n), &vec![0; 3 << 20]));
        assert!(!large.fits());
        let mut small = Kept::default();
        small.put(BlobKind::Signatures, &digest(9), b"x");
        assert_eq!(small.clone().over(large), small);
    }
}
