//! The agent's core, one event at a time.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod carried;
mod images;
mod leases;
mod machine;
mod node;
mod numbers;
mod programs;
mod signals;
mod starts;
mod steps;
mod term;
