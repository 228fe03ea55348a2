//! A file that a step's tasks receive on their nodes (`sbcast`, `srun --bcast`).

use crate::bytes::ByteStr;
use serde::{Deserialize, Serialize};

/// What each task of the step makes of its standard input, with its user's rights, in place of running a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Receive {
    /// The file's name from `/` on, as tasks of the step see it.
    pub path: ByteStr,
    /// How many bytes come.
    pub size: u64,
    /// Mode; of it only the rights of owner, group and others count.
    pub mode: u32,
    /// Times of access and modification in nanoseconds since 1970, where they are to be the source's.
    pub times: Option<(i64, i64)>,
    /// What stands under the name is replaced.
    pub force: bool,
}
