//! The berth program.
#![forbid(unsafe_code)]

fn main() {}
