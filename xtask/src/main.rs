//! Builds both artefacts and checks the house.
#![forbid(unsafe_code)]

fn main() {}
