//! The core from without, one event at a time: one program, so that what they share is compiled and linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // what fails here fails the test

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod admission;
mod ahead;
mod busy;
mod called;
mod devices;
mod features;
mod fenced;
mod fencing;
mod forms;
mod found;
mod given_up;
mod gpus;
mod het;
mod imex;
mod layouts;
mod leaps;
mod leases;
mod life;
mod listing;
mod members;
mod names;
mod needed;
mod programs;
mod pulls;
mod reboots;
mod reconfigure;
mod restore;
mod restored;
mod rights;
mod signals;
mod sluids;
mod tree;
mod troubles;
mod warm;
mod wide;

/// A module that nobody names here would never be run.
#[test]
fn no_module_is_forgotten() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let main = std::fs::read_to_string(directory.join("main.rs")).unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let module = name.trim_end_matches(".rs");
        if module != "main" {
            assert!(main.contains(&format!("\nmod {module};")), "tests/it/{name} is not named in main.rs");
            seen += 1;
        }
    }
    assert!(seen > 5);
}
