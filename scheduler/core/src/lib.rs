//! The scheduler's decisions: state, event and time in; writes and effects out. Pure: no clock, no
//! randomness, no file, no socket, and nothing whose order depends on a hash.
//!
//! The shell around it hands every event to [`Cluster::handle`], commits the writes, and only then opens the
//! effects with the store's [`Committed`] token. After a failed or unknown commit it drops the core and
//! builds a new one from the rows ([`Cluster::restore`]): effects are not stored, they are derived again by
//! comparing the state with what each agent says when it connects.
#![forbid(unsafe_code)]

mod cluster;
mod config;
mod event;
mod exchange;
mod forms;
mod gpus;
mod job;
mod launch;
mod listing;
mod node;
mod pace;
mod parts;
mod place;
mod rows;
mod shrunk;
mod snapshot;
mod spec;
mod store;
mod tasks;

pub use cluster::{Cluster, RestoreError, go_on_from};
pub use config::{ConfigError, CoreConfig, FenceRules, NodeRules, PartitionRules};
pub use event::{AfterCommit, Effect, Event, LoginOf, Outcome, RequestId};
pub use job::{View, job_info};
pub use pace::Pace;
pub use parts::Parts;
pub use rows::{
    Allocation, AuditRow, Awaited, Hold, JobResult, JobRow, MemberRow, MetaRow, NodeRow, NodeSize, Phase,
    ROW_VERSION, Restored, Run, SpecRow, StepNode, StepResult, StepRow, TokenRow,
};
pub use snapshot::Snapshot;
pub use store::{CommitError, Committed, PayloadKey, Store, Stored, Write, commit, fill_payload};
pub use tasks::{TaskSet, Tasks};
