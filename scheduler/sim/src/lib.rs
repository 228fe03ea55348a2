//! Deterministic simulation of the controller's and the agent's cores.
#![forbid(unsafe_code)]
