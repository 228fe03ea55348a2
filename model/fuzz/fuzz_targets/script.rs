//! Throws bytes at the grammar of batch scripts.
#![cfg_attr(fuzzing, no_main)]

use berth_model::options::{Command, Context, resolve};
use berth_model::{Time, sbatch};
use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let _ = sbatch::check(text);
    if let Ok(read) = sbatch::directives(text) {
        let context = Context { now: Time::from_secs(1_795_216_174), zone: TimeZone::UTC };
        let _ = resolve(Command::Sbatch, read.settings, &context);
    }
});
