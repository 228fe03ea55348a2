//! Throws bytes at the grammar of generic resources.
#![cfg_attr(fuzzing, no_main)]

use berth_model::gres;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for wanted in [gres::parse(text), gres::parse_gpus(text)].into_iter().flatten() {
        assert_eq!(gres::parse(&gres::print(&wanted)), Ok(wanted));
    }
});
