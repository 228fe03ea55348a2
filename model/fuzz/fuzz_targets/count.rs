//! Throws bytes at the grammar of counts.
#![cfg_attr(fuzzing, no_main)]

use berth_model::count::{self, NodeCount};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(nodes) = text.parse::<NodeCount>() {
        assert_eq!(nodes.to_string().parse(), Ok(nodes));
    }
    let _ = (count::positive(text), count::number(text));
});
