//! Throws bytes at the grammar of hostlists.
#![cfg_attr(fuzzing, no_main)]

use berth_model::hostlist;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(names) = hostlist::expand(text) {
        assert_eq!(hostlist::expand(&hostlist::compress(&names)), Ok(names));
    }
});
