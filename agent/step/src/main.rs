//! berth-step: step supervisor, container init, and the client inside containers; static.
#![forbid(unsafe_code)]

fn main() {}
