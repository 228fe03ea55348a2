//! What can be wrong with the store: names the file, the reason and the next step.

use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};

/// The store cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A directory or file cannot be made, opened or locked.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Another controller has it open.
    #[error("{} is in use by a controller with process id {pid}; stop it first with 'berth down'", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who.
        pid: String,
    },
    /// A later version wrote it.
    #[error(
        "{} was written by a newer version of berth ({what} {found}, this version knows up to {known}); \
         start that version, or restore a backup from before the upgrade", path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// What is newer.
        what: &'static str,
        /// Its version.
        found: i64,
        /// The newest we know.
        known: i64,
    },
    /// Not ours, or damaged.
    #[error(
        "the database {} is damaged ({why}); restore it from a backup, or save what can be read with \
         'sqlite3 {} .recover', or move the directory away to begin with an empty cluster",
        path.display(), path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// There was one, and its content is gone.
    #[error(
        "the database {} {why}; restore it from a backup, or move the directory {} away to begin with an empty cluster",
        path.display(), path.parent().unwrap_or(path).display()
    )]
    Lost {
        /// The database.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The disk is full.
    #[error(
        "the disk of {} is full ({} KiB free), and the database cannot be opened ({why}): free at least {} MiB there and run \
         'berth up' again; what is recorded is whole", dir.display(), free / 1024, needed.div_ceil(1 << 20)
    )]
    Full {
        /// The directory.
        dir: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes with which new work is taken again.
        needed: u64,
        /// What refused.
        why: String,
    },
    /// The file system or SQLite refuses.
    #[error("the database {}: {why}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What it says.
        why: String,
    },
}

impl StoreError {
    pub(crate) fn file(path: &Path, e: impl std::fmt::Display) -> StoreError {
        StoreError::File { path: path.to_path_buf(), why: e.to_string() }
    }

    pub(crate) fn from_sqlite(path: &Path, e: &rusqlite::Error) -> StoreError {
        let path = path.to_path_buf();
        let why = e.to_string();
        match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged { path, why },
            _ => StoreError::Database { path, why },
        }
    }

    pub(crate) fn row(path: &Path, row: &str, e: impl std::fmt::Display) -> StoreError {
        StoreError::Damaged { path: path.to_path_buf(), why: format!("{row}: {e}") }
    }
}

/// Whether the disk, not the database, is the trouble.
pub(crate) fn is_full(e: &rusqlite::Error) -> bool {
    e.sqlite_error_code() == Some(ErrorCode::DiskFull)
}
