//! Throws bytes at the grammar of command lines.
#![cfg_attr(fuzzing, no_main)]

use berth_model::options::{Command, Context, Source, parse, resolve};
use berth_model::{ByteStr, Time};
use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let words: Vec<ByteStr> = text.split(|b| *b == 0).map(ByteStr::from).collect();
    let context = Context { now: Time::from_secs(1_795_216_174), zone: TimeZone::UTC };
    for command in Command::ALL {
        if let Ok(read) = parse(command, &words, Source::CommandLine) {
            let _ = resolve(command, read.settings, &context);
        }
    }
});
