//! The highest numbers that this node knows of, on the disk: a controller that is made of a backup gives none of them out again, over power cuts of nodes, too.

use crate::paths::Paths;
use berth_model::link::Highest;
use berth_step::spool::{read_json, write_json_durably};
use std::io;

/// Keeps them. When this returns they are on the disk: the power cut that costs a site its controller's disk is the one after which they are asked for.
///
/// # Errors
/// They cannot be written; what was kept before still is.
pub(crate) fn remember(paths: &Paths, highest: Highest) -> io::Result<()> {
    write_json_durably(&paths.highest(), &highest)
}

/// What is kept. Where it cannot be read it is said that something is lost: a controller that is restored then goes on further above. Nothing else runs otherwise.
pub(crate) fn remembered(paths: &Paths) -> Highest {
    read_json(&paths.highest()).unwrap_or_else(|e| {
        if e.kind() == io::ErrorKind::NotFound {
            return Highest::default();
        }
        tracing::warn!(
            "what numbers jobs have had here cannot be read, and a controller that is restored is told that: {e}"
        );
        Highest { lost: true, ..Highest::default() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::JobId;
    use std::fs;

    fn place() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        fs::create_dir(paths.private()).unwrap();
        (dir, paths)
    }

    fn seven() -> Highest {
        Highest { job: JobId(7), ..Highest::default() }
    }

    #[test]
    fn numbers_are_kept_and_those_that_are_damaged_are_not_taken_for_none() {
        let (_dir, paths) = place();
        assert_eq!(remembered(&paths), Highest::default());
        remember(&paths, seven()).unwrap();
        assert_eq!(remembered(&paths), seven());
        // As an earlier version wrote it.
        fs::write(paths.highest(), r#"{"job": 7, "attempt": 0, "step": 0}"#).unwrap();
        assert_eq!(remembered(&paths), seven());
        // As a power cut leaves a file whose bytes were not on the disk when its name was.
        for damaged in ["", "\0\0", "{"] {
            fs::write(paths.highest(), damaged).unwrap();
            assert!(remembered(&paths).lost, "{damaged:?}");
        }
    }

    #[test]
    fn what_is_not_on_the_disk_does_not_take_the_place_of_what_is() {
        let (_dir, paths) = place();
        remember(&paths, seven()).unwrap();
        // A file that takes every byte and cannot be synced.
        std::os::unix::fs::symlink("/dev/null", paths.highest().with_file_name("agent-highest.json.new"))
            .unwrap();
        let more = Highest { job: JobId(8), ..Highest::default() };
        assert_eq!(remember(&paths, more).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(remembered(&paths), seven());
    }
}
