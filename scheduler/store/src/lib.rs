//! Durable state of the controller in SQLite.
//!
//! One writer, [`SqliteStore`], owned by the thread that owns the core; any number of [`Reader`]s beside it.
//! A commit costs one fsync; copying the write-ahead log into the database happens on a thread of its own.
#![forbid(unsafe_code)]

pub mod backup;
mod checkpoint;
mod content;
mod encode;
mod error;
mod idle;
mod lock;
mod reader;
mod schema;
mod space;
mod writer;

pub use content::Content;
pub use error::StoreError;
pub use idle::has_unfinished_jobs;
pub use lock::DirectoryLock;
pub use reader::{Reader, Stop};
pub use space::Room;
pub use writer::SqliteStore;

/// Name of the database file in its directory.
pub const DATABASE: &str = "cluster.db";
