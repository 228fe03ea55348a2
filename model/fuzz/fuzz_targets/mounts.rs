//! Throws bytes at the grammar of container mounts.
#![cfg_attr(fuzzing, no_main)]

use berth_model::options::parse_mounts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let _ = parse_mounts(text);
});
