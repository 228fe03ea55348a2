//! What is remembered of a layer until its end, in as few bytes as can be, and how they are counted: a layer may have millions
//! of entries.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::form::{Form, IMPLIED_MODE, Meta};
use super::path::CleanPath;
use super::{Unpacker, over};
use crate::error::Result;

/// Bytes of memory that are asked for at once, so that it is not done for each name.
const STEP: u64 = 256 << 10;

/// What a path in a set takes besides its bytes: a place in a tree whose nodes are half full, and an allocation.
const PATH: usize = 72;
/// The same where something describes the path.
const DESCRIBED: usize = 120;
/// What an attribute takes besides its bytes.
const ATTRIBUTE: usize = 80;

/// Attributes of a directory, of which most have none.
struct Attributes(Vec<(Vec<u8>, Vec<u8>)>);

/// [`Meta`] of a directory, in less room.
pub(super) struct Described {
    seconds: i64,
    nanoseconds: u32,
    mode: u32,
    attributes: Option<Box<Attributes>>,
}

impl From<Meta> for Described {
    fn from(Meta { mode, mtime: (seconds, nanoseconds), xattrs }: Meta) -> Self {
        let attributes = (!xattrs.is_empty()).then(|| Box::new(Attributes(xattrs)));
        Self { seconds, nanoseconds, mode, attributes }
    }
}

impl From<Described> for Meta {
    fn from(Described { seconds, nanoseconds, mode, attributes }: Described) -> Self {
        let xattrs = attributes.map(|attributes| attributes.0).unwrap_or_default();
        Self { mode, mtime: (seconds, nanoseconds), xattrs }
    }
}

impl Meta {
    /// That of a directory which the archive implies.
    pub(super) fn implied() -> Self {
        Self { mode: IMPLIED_MODE, ..Self::default() }
    }
}

/// Paths of which is only asked whether they are among them. 128 bits stand for each, by keys that nobody can know.
pub(super) struct Paths {
    hashes: HashSet<(u64, u64)>,
    keys: (RandomState, RandomState),
}

impl Paths {
    /// Bytes of memory for each, while the set moves into twice its room.
    pub(super) const EACH: usize = 64;

    pub(super) fn new() -> Self {
        Self { hashes: HashSet::new(), keys: (RandomState::new(), RandomState::new()) }
    }

    pub(super) fn insert(&mut self, path: &[u8]) {
        let hash = self.hash(path);
        self.hashes.insert(hash);
    }

    pub(super) fn contains(&self, path: &[u8]) -> bool {
        !self.hashes.is_empty() && self.hashes.contains(&self.hash(path))
    }

    /// Whether it was among them; it is not any more.
    pub(super) fn remove(&mut self, path: &[u8]) -> bool {
        if self.hashes.is_empty() {
            return false;
        }
        let hash = self.hash(path);
        self.hashes.remove(&hash)
    }

    pub(super) fn clear(&mut self) {
        self.hashes.clear();
    }

    fn hash(&self, path: &[u8]) -> (u64, u64) {
        (self.keys.0.hash_one(path), self.keys.1.hash_one(path))
    }
}

impl<F: Form> Unpacker<'_, F> {
    /// Accounts for memory that is taken until the end.
    pub(super) fn remember(&mut self, bytes: usize) -> Result<()> {
        self.names += bytes as u64;
        if self.names > self.limits.name_bytes {
            return Err(over(format!("its names need more than {} bytes of memory", self.limits.name_bytes)));
        }
        if self.names > self.granted
            && let Some(charge) = self.charge
        {
            let more = (self.names - self.granted).next_multiple_of(STEP);
            charge.memory(more)?;
            self.granted += more;
        }
        Ok(())
    }

    /// Accounts for a name in the form.
    pub(super) fn remember_name(&mut self, name: &[u8]) -> Result<()> {
        if F::ENTRY > 0 { self.remember(F::ENTRY + name.len()) } else { Ok(()) }
    }

    /// Accounts for a path in a set of them.
    pub(super) fn remember_path(&mut self, path: &CleanPath) -> Result<()> {
        self.remember(PATH + path.as_bytes().len())
    }

    /// Gives a directory what describes it, or keeps it for the end.
    pub(super) fn describe(&mut self, path: &CleanPath, mut meta: Meta) -> Result<()> {
        let size = |(name, value): &(Vec<u8>, Vec<u8>)| ATTRIBUTE + name.len() + value.len();
        let attributes: usize = meta.xattrs.iter().map(size).sum();
        if F::DIRECTORY > 0 {
            self.remember(F::DIRECTORY)?;
            // Attributes come behind marks, which have the first room.
            let xattrs = std::mem::take(&mut meta.xattrs);
            self.form.describe(path, &meta)?;
            if xattrs.is_empty() {
                // Another one may have been here.
                self.directories.remove(path.as_bytes());
                return Ok(());
            }
            meta.xattrs = xattrs;
        }
        self.remember(DESCRIBED + path.as_bytes().len() + attributes)?;
        self.directories.insert(path.clone().into_kept(), meta.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_a_directory_is_as_small_as_is_counted() {
        // A node of a BTreeMap has room for eleven; those of one that grows in order have six, and there is one above six.
        let each = |bytes: usize| (11 * bytes + 32) / 6 + (11 * bytes + 128) / 36;
        // What an allocator puts in front of the path, and up to sixteen bytes.
        let allocated = 8 + 15;
        assert_eq!(size_of::<Described>(), 24);
        assert!(each(size_of::<(Box<[u8]>, Described)>()) + allocated <= DESCRIBED);
        assert!(each(size_of::<Box<[u8]>>()) + allocated <= PATH);
        // A table of at most seven eighths, and one of half its size beside it while it grows.
        assert!((size_of::<(u64, u64)>() + 1) * 3 * 8 / 7 <= Paths::EACH);
    }

    #[test]
    fn what_is_described_comes_back_as_it_was() {
        for xattrs in [vec![], vec![(b"user.a".to_vec(), b"1".to_vec())]] {
            let described = Described::from(Meta { mode: 0o1777, mtime: (-5, 7), xattrs: xattrs.clone() });
            let meta = Meta::from(described);
            assert_eq!((meta.mode, meta.mtime, meta.xattrs), (0o1777, (-5, 7), xattrs));
        }
    }

    #[test]
    fn paths_are_known_until_they_go() {
        let mut paths = Paths::new();
        assert!(!paths.remove(b"a"));
        paths.insert(b"a");
        paths.insert(b"a/b");
        assert!(paths.contains(b"a") && paths.remove(b"a") && !paths.remove(b"a") && !paths.remove(b""));
        assert!(!paths.contains(b"a") && paths.contains(b"a/b"));
        paths.clear();
        assert!(!paths.contains(b"a/b"));
    }
}
