//! Throws bytes at the readers of the store's records: what is read is written and read again as the same.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    berth_images::fuzzing::records(bytes);
});
