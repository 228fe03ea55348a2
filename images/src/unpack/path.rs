//! Names of entries: cleaned, bounded, and refused where they could mean a place outside the layer.

use crate::archive::{refused, show};
use crate::error::{Error, ErrorKind, Result};

/// Longest path that the kernel takes, without its NUL.
pub(super) const PATH_MAX: usize = 4095;

/// A relative path of plain components joined by single slashes; empty for the root of the layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CleanPath(Vec<u8>);

impl CleanPath {
    /// Cleans a name from an archive. A leading `/` and `.` components are dropped, as other tools do; `..` is
    /// refused wherever it stands.
    pub(crate) fn new(raw: &[u8], depth: usize) -> Result<Self> {
        if raw.len() > PATH_MAX {
            return Err(refused(raw, "its name is longer than 4095 bytes"));
        }
        if raw.contains(&0) {
            return Err(refused(raw, "its name holds a NUL"));
        }
        let mut clean = Vec::with_capacity(raw.len());
        let mut components = 0;
        for component in raw.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    return Err(refused(
                        raw,
                        "its name has a .. component, which could lead outside the image",
                    ));
                }
                _ => {
                    components += 1;
                    if component.len() > 255 {
                        return Err(refused(raw, "a component of its name is longer than 255 bytes"));
                    }
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(component);
                }
            }
        }
        if components > depth {
            return Err(refused(raw, format!("its name has more than {depth} components")));
        }
        Ok(Self(clean))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// To be kept, in no more bytes than it has.
    pub(super) fn into_kept(self) -> Box<[u8]> {
        self.0.into()
    }

    pub(super) fn of_kept(kept: Box<[u8]>) -> Self {
        Self(kept.into_vec())
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of components.
    pub(crate) fn depth(&self) -> usize {
        if self.0.is_empty() { 0 } else { self.0.iter().filter(|b| **b == b'/').count() + 1 }
    }

    /// Parent and last component; the root has none.
    pub(crate) fn split(&self) -> Option<(CleanPath, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => (CleanPath(self.0[..slash].to_vec()), &self.0[slash + 1..]),
            None => (CleanPath::default(), &self.0[..]),
        })
    }

    /// The last component and the bytes of the parent, without a copy.
    pub(crate) fn split_bytes(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[], &self.0[..]),
        }
    }

    pub(crate) fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|c| !c.is_empty())
    }

    /// Appends one plain component.
    pub(crate) fn push(&mut self, component: &[u8]) {
        if !self.0.is_empty() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(component);
    }

    /// Drops the last component.
    pub(crate) fn pop(&mut self) {
        let keep = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        self.0.truncate(keep);
    }

    /// An error of the machine while this entry was made.
    pub(crate) fn io(&self, errno: rustix::io::Errno) -> Error {
        use rustix::io::Errno;
        if matches!(errno, Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ) {
            return refused(&self.0, format!("the store's file system does not take it: {errno}"));
        }
        let error = Error::io(format!("entry {}", show(&self.0)), errno);
        // What is missing or forbidden here is the store's fault and not the image's.
        if error.kind() == ErrorKind::NotFound {
            Error::new(ErrorKind::Io, error.what(), "a directory vanished while the layer was unpacked")
        } else {
            error
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(raw: &str) -> Option<String> {
        CleanPath::new(raw.as_bytes(), 4).ok().map(|p| String::from_utf8_lossy(p.as_bytes()).into_owned())
    }

    #[test]
    fn names() {
        assert_eq!(clean("./a//b/./c/").as_deref(), Some("a/b/c"));
        assert_eq!(clean("/etc/passwd").as_deref(), Some("etc/passwd"));
        assert_eq!(clean("./").as_deref(), Some(""));
        assert_eq!(clean("..a/b..").as_deref(), Some("..a/b.."));
        for bad in ["..", "a/../b", "/..", "a/b/..", "a/b/c/d/e", &"x".repeat(256), &"x/".repeat(3000)] {
            assert_eq!(clean(bad), None, "{bad}");
        }
        assert!(CleanPath::new(b"a\0b", 4).is_err());
    }
}
