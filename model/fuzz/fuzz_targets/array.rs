//! Throws bytes at the grammar of index sets of arrays.
#![cfg_attr(fuzzing, no_main)]

use berth_model::spec::ArraySpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(set) = text.parse::<ArraySpec>() {
        assert_eq!(set.len(), set.iter().count() as u64);
        assert!(set.to_string().parse::<ArraySpec>().is_ok());
    }
});
