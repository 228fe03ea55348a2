//! Throws bytes at the grammar of file-name patterns.
#![cfg_attr(fuzzing, no_main)]

use berth_model::pattern::{self, Place};
use berth_model::{JobId, StepId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pattern: &[u8]| {
    let place = Place {
        job: JobId(12),
        array: Some((JobId(10), 3)),
        step: StepId::Number(0),
        restarts: 0,
        sluid: None,
        task: 1,
        node_index: 0,
        node: "n1.site",
        user: "alice",
        job_name: "name",
    };
    pattern::expand(pattern, &place);
    pattern::spread(pattern);
});
