//! The node agent's decisions; pure.
#![forbid(unsafe_code)]
