//! The node agent's decisions: events and time on the node's boot-time clock in; effects out. Pure: no clock,
//! no file, no socket. It works without a controller: limits are kept and exits are kept until they can be
//! told.
//!
//! The shell around it does the effects in the order in which they come. It delivers a message of the
//! controller only while the connection on which it came is the current one.
#![forbid(unsafe_code)]

mod core;
mod event;
mod state;

pub use crate::core::AgentCore;
pub use event::{
    Adopted, AdoptedJob, AdoptedPhase, AgentConfig, AgentEffect, AgentEvent, Fetched, HealthPlan, ImageEvent,
    ProcessTarget, StepTimers, SupervisorEvent,
};
