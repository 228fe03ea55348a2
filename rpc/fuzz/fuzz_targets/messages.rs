//! Throws bytes at the decoders of all messages; the first byte says which.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    berth_rpc::fuzzing::message(input.0, input.1);
});
