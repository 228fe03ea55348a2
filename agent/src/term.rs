//! The controller's term on the disk: what an agent has obeyed once, it obeys no earlier controller after, over power cuts too.

use crate::paths::Paths;
use berth_model::ids::Term;
use berth_step::spool::{read_json, write_json_durably};
use std::io;

/// Keeps a term. When this returns it is on the disk: an empty file after a power cut would let an older controller command.
///
/// # Errors
/// It cannot be written; what was kept before still is.
pub(crate) fn remember(paths: &Paths, term: Term) -> io::Result<()> {
    write_json_durably(&paths.term(), &term)
}

/// The highest term that was obeyed.
///
/// # Errors
/// What was kept cannot be read: nobody knows then whom not to obey.
pub(crate) fn remembered(paths: &Paths) -> io::Result<Term> {
    match read_json(&paths.term()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Term(0)),
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn place() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        fs::create_dir(paths.private()).unwrap();
        (dir, paths)
    }

    #[test]
    fn a_term_is_kept_and_one_that_is_damaged_is_not_taken_for_none() {
        let (_dir, paths) = place();
        assert_eq!(remembered(&paths).unwrap(), Term(0));
        remember(&paths, Term(7)).unwrap();
        assert_eq!(remembered(&paths).unwrap(), Term(7));
        // As a power cut leaves a file whose bytes were not on the disk when its name was.
        for damaged in ["", "\0\0", "{"] {
            fs::write(paths.term(), damaged).unwrap();
            let why = remembered(&paths).unwrap_err().to_string();
            assert!(why.contains("agent-term.json is damaged"), "{why}");
        }
    }

    #[test]
    fn what_is_not_on_the_disk_does_not_take_the_place_of_what_is() {
        let (_dir, paths) = place();
        remember(&paths, Term(7)).unwrap();
        // A file that takes every byte and cannot be synced.
        std::os::unix::fs::symlink("/dev/null", paths.term().with_file_name("agent-term.json.new")).unwrap();
        assert_eq!(remember(&paths, Term(8)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(remembered(&paths).unwrap(), Term(7));
    }
}
