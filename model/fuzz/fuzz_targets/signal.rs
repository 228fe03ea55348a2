//! Throws bytes at the grammar of signals.
#![cfg_attr(fuzzing, no_main)]

use berth_model::signal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(warning) = signal::parse_warning(text) {
        assert_eq!(signal::parse_warning(&warning.to_string()), Ok(warning));
    }
});
