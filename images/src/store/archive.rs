//! What stands beside a layer so that its archive can be made again, and sums by which is told later whether it was changed: the files
//! of a layer, or its image, may be as they were, and export, push and giving it to other nodes fail all the same.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::layer::{REPLACED, SKELETON};
use super::pipeline::read_chunk;
use crate::digest::{Algorithm, Digest, Hasher};

/// Sums of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ArchiveSums {
    skeleton: Digest,
    /// Of what others took the place of, where there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaced: Option<Digest>,
}

impl ArchiveSums {
    /// Of the layer whose files are in `directory`.
    pub(super) fn of(directory: impl AsFd) -> io::Result<ArchiveSums> {
        let skeleton = sum_of(&directory, SKELETON)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(ArchiveSums { skeleton, replaced: sum_of(&directory, REPLACED)? })
    }

    /// What is wrong with those in `directory`, in words.
    pub(super) fn problems(&self, directory: impl AsFd) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, before) in [(SKELETON, Some(&self.skeleton)), (REPLACED, self.replaced.as_ref())] {
            let what = match (sum_of(&directory, name), before) {
                (Ok(now), before) if now.as_ref() == before => continue,
                (Ok(Some(_)), Some(_)) => "was changed".to_owned(),
                (Ok(Some(_)), None) => "was added".to_owned(),
                (Ok(None), _) => "is missing".to_owned(),
                (Err(e), _) => format!("cannot be read: {e}"),
            };
            problems.push(format!("{name}, of which its archive is made again, {what}"));
        }
        problems
    }
}

/// The sum of a file; `None` where there is none.
fn sum_of(directory: impl AsFd, name: &str) -> io::Result<Option<Digest>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut hasher = Hasher::new(Algorithm::Sha256);
    loop {
        let chunk = read_chunk(&mut file)?;
        if chunk.is_empty() {
            return Ok(Some(hasher.finish()));
        }
        hasher.update(&chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_them_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &str| std::fs::write(dir.path().join(name), bytes).unwrap();
        let open = || File::open(dir.path()).unwrap();
        assert_eq!(ArchiveSums::of(open()).unwrap_err().kind(), io::ErrorKind::NotFound);
        write(SKELETON, "skeleton");
        let alone = ArchiveSums::of(open()).unwrap();
        assert_eq!(alone.problems(open()), Vec::<String>::new());
        write(REPLACED, "replaced");
        let said = |sums: &ArchiveSums| sums.problems(open()).join("; ");
        assert!(said(&alone).starts_with("replaced, ") && said(&alone).ends_with("was added"));
        let both = ArchiveSums::of(open()).unwrap();
        assert_eq!(said(&both), "");
        write(SKELETON, "Skeleton");
        std::fs::remove_file(dir.path().join(REPLACED)).unwrap();
        let found = both.problems(open());
        assert!(found.len() == 2 && found[0].starts_with(SKELETON) && found[0].ends_with("was changed"));
        assert!(found[1].starts_with(REPLACED) && found[1].ends_with("is missing"), "{found:?}");
        std::fs::remove_file(dir.path().join(SKELETON)).unwrap();
        std::fs::create_dir(dir.path().join(SKELETON)).unwrap();
        assert!(said(&both).contains("cannot be read"));
    }
}
