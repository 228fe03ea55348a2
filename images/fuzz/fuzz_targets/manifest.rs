//! Throws bytes at the reader of manifests and indexes.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (content_type, bytes) = input;
    let _ = berth_images::fuzzing::manifest(bytes, None);
    let _ = berth_images::fuzzing::manifest(bytes, Some(content_type));
});
