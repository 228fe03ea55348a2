//! Throws bytes at the grammar of run-length lists.
#![cfg_attr(fuzzing, no_main)]

use berth_model::runs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(numbers) = runs::parse(text) {
        assert_eq!(runs::parse(&runs::print(&numbers)), Ok(numbers));
    }
});
