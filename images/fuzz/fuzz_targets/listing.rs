//! Compares a tree with any listing: a listing of the tree itself finds nothing, any other is read to its end or refused.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;
use std::os::fd::OwnedFd;

fuzz_target!(|bytes: &[u8]| {
    let place = tempfile::tempdir_in(berth_images::fuzzing::place()).unwrap();
    std::fs::create_dir(place.path().join("a")).unwrap();
    std::fs::write(place.path().join("a/b"), b"content").unwrap();
    let directory = OwnedFd::from(std::fs::File::open(place.path()).unwrap());
    let changes = berth_images::fuzzing::listing(bytes, &directory);
    if let Ok(changes) = changes {
        // Everything that is there was listed, or is told of; what is told of has a name in one of the two.
        assert!(changes <= 3 + bytes.iter().filter(|b| **b == 0).count());
    }
});
