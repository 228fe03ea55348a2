//! Durable state of the controller in SQLite.
#![forbid(unsafe_code)]
