//! The scheduler's decisions: state, event, time in; writes and effects out; pure.
#![forbid(unsafe_code)]
