//! What a node says of the containers that are kept there under names, and what can be asked.

use berth_model::ids::{JobId, Uid};
use berth_model::time::Time;
use serde::{Deserialize, Serialize};

/// What is asked of the node about its kept containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptQuery {
    /// The caller's; root may ask for everybody's.
    List {
        /// Everybody's.
        all: bool,
    },
    /// Remove one that later jobs would find, with all that was written in it.
    Remove {
        /// Its name.
        name: String,
        /// Whose, where that is not the caller: root's alone to say.
        #[serde(default)]
        uid: Option<Uid>,
    },
    /// Remove those that nothing ran in for so many seconds. Answered by their names.
    Prune {
        /// Seconds.
        unused: u64,
        /// Everybody's: root's alone to say.
        all: bool,
    },
}

/// A container that is kept under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptContainer {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub uid: Uid,
    /// The job with which it goes; absent: later jobs find it.
    pub job: Option<JobId>,
    /// The image it was made of, as it was named.
    pub image: String,
    /// When it was made.
    pub created: Time,
    /// When something last began or ended in it.
    pub used: Time,
    /// What it does.
    pub state: KeptState,
}

/// What a kept container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptState {
    /// Nothing runs in it.
    Idle,
    /// Claimed by a step that starts.
    Starting,
    /// Steps of this job run in it.
    Running(JobId),
}
