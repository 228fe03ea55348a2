//! Throws bytes at the grammar of amounts of memory.
#![cfg_attr(fuzzing, no_main)]

use berth_model::memory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(mib) = memory::parse(text) {
        assert_eq!(memory::parse(&memory::print(mib)), Ok(mib));
    }
});
