//! PMIx, which the system's libpmix serves to the tasks of a node in a process of its own: what that process and the supervisor
//! say to one another, and how the nodes' processes bring together what their tasks tell.

mod meetings;
mod words;

pub use meetings::{Act, Meetings};
pub use words::{BadWord, WORD_MAX, Word, Words};
