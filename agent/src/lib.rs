//! The node agent: hardware probe, link to the controller, images, zygote and supervisors.
//!
//! [`run`] is the whole agent: it adopts the steps that an earlier agent left, dials the controller, and does
//! what [`berth_agent_core`] decides. It may be killed at any instant; steps and their streams live on.
#![forbid(unsafe_code)]

pub mod admission;
mod adopt;
mod after;
mod ahead;
pub mod around;
pub mod cdi;
mod cgroups;
mod clients;
mod confine;
mod dial;
mod direct;
mod drift;
mod driver;
mod enter;
mod fabrics;
mod full_name;
mod gpus;
mod gres;
mod highest;
mod holders;
pub mod hooks;
mod images;
mod imex;
mod imports;
mod jobs;
mod kept;
mod left;
mod link;
pub mod login;
mod memory;
mod mine;
mod names;
mod notes;
mod paths;
mod peers;
mod place;
mod places;
mod pmix;
mod probe;
mod programs;
mod registry;
mod removals;
mod room;
mod scope;
mod sessions;
mod shown;
pub mod signatures;
mod standby;
mod start;
mod stuck;
mod supervisors;
mod term;
mod threads;
mod used;
pub mod visit;
mod xids;
mod zygote;

pub use cgroups::tree_name;
pub use gpus::{narrow as narrow_gpus, watch as watch_gpus};
pub use images::{STORE_ID, layer_form, pinned, registries, resolved_image};
pub use mine::{ImagesAnswer, ListedImage};
pub use names::has_gateways;
pub use paths::Paths;
pub use peers::FindIdentity;
pub use place::{StoreMemory, store_memory, store_place};
pub use removals::Others;
pub use room::{kept_images, rules as room_rules};
pub use shown::hardware_in_words;
pub use start::{
    AgentError, AgentOptions, Ended, ReadAgain, Running, Shutdown, holds_steps, host_name, is_connected,
    is_swept, release_memory, remove_groups, run,
};
