//! Manifests and indexes that one user has read before, by digest: a tag that still means the same costs a registry no
//! more than a HEAD request, which does not count against its limits.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::process::geteuid;

use crate::digest::Digest;
use crate::source::{open_regular, verify};
use crate::unseen::Unseen;

/// Most of them that are kept.
const MOST: usize = 256;
/// Larger ones are not.
const BYTES: usize = 256 << 10;

/// A directory with manifests, of one user alone. What is in it has its digest or is nothing: it may be damaged, or go, at
/// any time, and whatever goes wrong with it, registries are asked.
#[derive(Clone, Debug, Default)]
pub struct Manifests(Option<PathBuf>);

impl Manifests {
    /// The user's own: `$XDG_CACHE_HOME/berth/manifests`, or below `~/.cache`.
    pub fn from_env() -> Self {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        caches.map_or_else(Self::default, |caches| Self::at(&caches.join("berth/manifests")))
    }

    /// In this directory, which is made when it is needed. None where it is, or would be, somebody else's: `sudo` may leave the
    /// user's HOME, and root writes nothing there.
    pub fn at(directory: &Path) -> Self {
        let there = directory.ancestors().find_map(|d| std::fs::metadata(d).ok());
        let own = there.is_some_and(|found| found.uid() == geteuid().as_raw());
        Self(own.then(|| directory.to_path_buf()))
    }

    /// Whether anything can be known.
    pub(crate) fn any(&self) -> bool {
        self.0.is_some()
    }

    /// The document of this digest.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = self.0.as_ref()?.join(digest.file_name());
        let file = open_regular(&path).ok()?;
        let mut bytes = Vec::new();
        (&file).take(BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
        verify("known manifest", &bytes, digest).ok()?;
        // Those that are used stay.
        let _ = File::options().write(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        Some(bytes)
    }

    /// Keeps a document.
    pub(crate) fn put(&self, digest: &Digest, bytes: &[u8]) {
        let Some(directory) = self.0.as_ref().filter(|_| bytes.len() <= BYTES) else { return };
        let keep = || -> std::io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let unseen = Unseen::create_as(&directory.join(digest.file_name()), 0o600)?;
            unseen.file().write_all(bytes)?;
            unseen.publish()?;
            shrink(directory, MOST)
        };
        // Without it, the next one asks again.
        let _ = keep();
    }
}

/// Removes what was not used for longest, until no more than `most` are left.
fn shrink(directory: &Path, most: usize) -> std::io::Result<()> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        all.push((entry.metadata()?.modified()?, entry.path()));
    }
    all.sort();
    for (_, path) in all.iter().take(all.len().saturating_sub(most)) {
        // Another process may have been faster.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn what_is_known_is_whole_or_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("berth/manifests");
        let known = Manifests::at(&place);
        let digest = Digest::of(Algorithm::Sha256, b"text");
        assert_eq!(known.get(&digest), None);
        known.put(&digest, b"text");
        assert_eq!(known.get(&digest).as_deref(), Some(&b"text"[..]));
        assert_eq!(std::fs::metadata(&place).unwrap().mode() & 0o777, 0o700);
        let file = place.join(digest.file_name());
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        std::fs::write(&file, "tex").unwrap();
        assert_eq!(known.get(&digest), None);
        known.put(&digest, b"text");
        assert!(known.get(&digest).is_some());
        // What is no file stops nobody.
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(known.get(&digest), None);
        known.put(&digest, b"text");
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let known = Manifests::at(dir.path());
        let digest = |n: usize| Digest::of(Algorithm::Sha256, n.to_string().as_bytes());
        for n in 0..MOST + 20 {
            known.put(&digest(n), n.to_string().as_bytes());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), MOST);
        assert!(known.get(&digest(MOST + 19)).is_some());
        let large = vec![7; BYTES + 1];
        known.put(&Digest::of(Algorithm::Sha256, &large), &large);
        assert_eq!(known.get(&Digest::of(Algorithm::Sha256, &large)), None);
    }

    #[test]
    fn nothing_is_kept_where_somebody_else_could_change_it() {
        if geteuid().is_root() {
            let dir = tempfile::tempdir().unwrap();
            std::os::unix::fs::chown(dir.path(), Some(54_001), None).unwrap();
            assert!(!Manifests::at(&dir.path().join("berth/manifests")).any());
        } else {
            assert!(!Manifests::at(Path::new("/etc/berth/manifests")).any());
        }
    }
}
