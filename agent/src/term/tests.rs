//! Terms that are kept, cut off, damaged, and of other versions.

use super::*;

fn place() -> (tempfile::TempDir, Paths) {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::new(dir.path());
    fs::create_dir(paths.private()).unwrap();
    (dir, paths)
}

fn term(paths: &Paths) -> Term {
    let found = Terms::open(paths).unwrap();
    assert_eq!(found.unkept, None);
    found.term
}

/// Another one in the place of the bytes of the slot that was written last.
fn damage(paths: &Paths, kept: &Terms) {
    let file = OpenOptions::new().write(true).open(paths.term_slots()).unwrap();
    file.write_all_at(&[0xff; 9], (kept.last.unwrap().at * BLOCK + 12) as u64).unwrap();
}

#[test]
fn a_term_is_kept_for_this_version_and_for_those_before() {
    let (_dir, paths) = place();
    let mut kept = Terms::open(&paths).unwrap().terms;
    for n in [7, 8, 9] {
        kept.keep(Term(n)).unwrap();
        assert_eq!(term(&paths), Term(n));
        assert_eq!(read_json::<Term>(&paths.term()).unwrap(), Term(n));
    }
    // An agent of an earlier version comes between, and goes.
    write_json_durably(&paths.term(), &Term(12)).unwrap();
    assert_eq!(term(&paths), Term(12));
    write_json_durably(&paths.term(), &Term(3)).unwrap();
    assert_eq!(term(&paths), Term(12));
}

#[test]
fn what_an_earlier_version_kept_counts_and_is_not_taken_for_none_where_it_is_damaged() {
    let (_dir, paths) = place();
    // As a power cut leaves a file whose bytes were not on the disk when its name was.
    for damaged in ["", "\0\0", "{"] {
        fs::write(paths.term(), damaged).unwrap();
        let why = Terms::open(&paths).unwrap_err().to_string();
        assert!(why.contains("agent-term.json is damaged"), "{why}");
    }
    fs::write(paths.term(), "7").unwrap();
    assert_eq!(term(&paths), Term(7));
    // From now on it is a copy.
    fs::write(paths.term(), "{").unwrap();
    assert_eq!(term(&paths), Term(7));
}

#[test]
fn a_write_that_was_cut_off_leaves_the_term_before() {
    let (_dir, paths) = place();
    let mut kept = Terms::open(&paths).unwrap().terms;
    kept.keep(Term(7)).unwrap();
    kept.keep(Term(8)).unwrap();
    fs::remove_file(paths.term()).unwrap();
    damage(&paths, &kept);
    assert_eq!(term(&paths), Term(7));
    // With both of them gone nobody knows.
    let kept = Terms::open(&paths).unwrap().terms;
    fs::remove_file(paths.term()).unwrap();
    damage(&paths, &kept);
    damage(&paths, &Terms { last: kept.last.map(|slot| Slot { at: 1 - slot.at, ..slot }), ..kept });
    let why = Terms::open(&paths).unwrap_err().to_string();
    assert!(why.contains("agent-term.slots is damaged"), "{why}");
}

#[test]
fn what_is_not_on_the_disk_does_not_take_the_place_of_what_is() {
    let (_dir, paths) = place();
    let mut kept = Terms::open(&paths).unwrap().terms;
    kept.keep(Term(7)).unwrap();
    let (slots, aside) = (paths.term_slots(), paths.private().join("aside"));
    fs::rename(&slots, &aside).unwrap();
    // A file that takes every byte and cannot be synced.
    std::os::unix::fs::symlink("/dev/null", &slots).unwrap();
    let before = kept.last;
    for _ in 0..2 {
        let why = kept.keep(Term(8)).unwrap_err();
        assert_eq!(why.kind(), ErrorKind::InvalidInput);
        assert!(why.to_string().contains("agent-term.slots: "), "{why}");
        assert_eq!(kept.last, before);
    }
    fs::rename(&aside, &slots).unwrap();
    assert_eq!(term(&paths), Term(7));
    kept.keep(Term(8)).unwrap();
    assert_eq!(term(&paths), Term(8));
}

#[test]
fn what_takes_a_term_is_there_before_one_comes() {
    let (_dir, paths) = place();
    let mut kept = Terms::open(&paths).unwrap().terms;
    let size = || fs::metadata(paths.term_slots()).unwrap().len();
    assert_eq!(size(), 2 * BLOCK as u64);
    // No file can be made any more, as on a full disk.
    fs::create_dir(paths.term().with_extension("json.new")).unwrap();
    fs::create_dir(paths.term_slots().with_extension("slots.new")).unwrap();
    kept.keep(Term(5)).unwrap();
    assert_eq!((term(&paths), size()), (Term(5), 2 * BLOCK as u64));
    // One that was taken away cannot be made anew, and is told of.
    fs::remove_file(paths.term_slots()).unwrap();
    kept.keep(Term(6)).unwrap_err();
}
