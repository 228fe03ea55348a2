//! Throws bytes at the grammar of names of jobs, tasks and steps.
#![cfg_attr(fuzzing, no_main)]

use berth_model::jobid;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok((job, _)) = jobid::with_step(text) {
        assert_eq!(job.to_string().parse(), Ok(job));
    }
    let _ = jobid::list(text);
});
