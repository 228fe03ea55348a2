//! Frames between srun, the agent and a step's supervisor; no async runtime.
#![forbid(unsafe_code)]
