//! PMIx, which the system's libpmix serves to the tasks of a node in a process of its own: what that process and the supervisor
//! say to one another, and how the nodes' processes bring together what their tasks tell, and what tasks find in their environment.

mod meetings;
mod pattern;
mod words;

pub use meetings::{Act, Meetings};
pub use pattern::{Pattern, Place, is_of_tasks, same_but_for_the_port, server_address, server_namespace};
pub use words::{BadWord, WORD_MAX, Word, Words};
