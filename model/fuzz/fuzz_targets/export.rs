//! Throws bytes at the grammar of lists of variables.
#![cfg_attr(fuzzing, no_main)]

use berth_model::export::ExportSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(spec) = ExportSpec::parse(text) {
        spec.apply(&[("A".into(), "1".into()), ("B".into(), "2".into())]);
    }
});
