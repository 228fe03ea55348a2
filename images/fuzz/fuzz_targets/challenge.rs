//! Throws text at the reader of a registry's demand for a login.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &str| {
    berth_images::fuzzing::challenge(header);
});
