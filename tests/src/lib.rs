//! Integration tests live in one binary; this library holds their harness.
#![forbid(unsafe_code)]
