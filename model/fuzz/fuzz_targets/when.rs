//! Throws bytes at the grammar of points in time.
#![cfg_attr(fuzzing, no_main)]

use berth_model::Time;
use berth_model::when::{self, Sense};
use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for sense in [Sense::Ahead, Sense::Past] {
        let _ = when::parse(text, Time::from_secs(1_795_216_174), &TimeZone::UTC, sense);
    }
});
