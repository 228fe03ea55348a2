//! Integration tests of the image store: real tools, real registry, hostile archives, killed processes.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test ends at the first surprise, and its sizes are small"
)]

mod support;

mod around;
mod concurrency;
mod erofs;
mod giving;
mod granted;
mod hostile;
mod layouts;
mod many;
mod merging;
mod mirrors;
mod overlay;
mod proxies;
mod push;
mod quota;
mod ranges;
mod registry;
mod room;
mod shared;
mod sif;
mod signatures;
mod squashfs;
mod store;
mod strange;
mod terminal;
mod travel;
mod verify;
mod waiting;
