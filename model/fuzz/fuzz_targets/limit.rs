//! Throws bytes at the grammar of time limits.
#![cfg_attr(fuzzing, no_main)]

use berth_model::spec::TimeLimit;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(limit) = text.parse::<TimeLimit>() {
        assert_eq!(limit.to_string().parse(), Ok(limit));
    }
});
