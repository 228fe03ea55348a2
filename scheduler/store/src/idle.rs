//! What the database of a cluster that is down says: whether jobs wait for it there.

use crate::DATABASE;
use crate::encode::decode;
use crate::error::StoreError;
use crate::lock::DirectoryLock;
use crate::schema;
use berth_sched_core::{JobRow, Phase};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Whether the database in `dir`, if there is one, has jobs that are not over. Where a controller has it, or may have, it has: it is not
/// opened beside one.
///
/// # Errors
/// It is somebody else's, damaged, or of a later version.
pub fn has_unfinished_jobs(dir: &Path) -> Result<bool, StoreError> {
    let path = dir.join(DATABASE);
    let meta = match std::fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(StoreError::file(&path, e)),
    };
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() != own {
        // What SQLite makes beside the database would be ours, and its owner locked out.
        let why = format!("belongs to user id {}, and this command runs as {own}", meta.uid());
        return Err(StoreError::file(&path, why));
    }
    // A controller that starts meanwhile waits for as long as this takes.
    let Ok(_lock) = DirectoryLock::take_within(dir, Duration::ZERO) else { return Ok(true) };
    let sqlite = |e: rusqlite::Error| StoreError::from_sqlite(&path, &e);
    let connection = schema::connect(&path, false).map_err(sqlite)?;
    schema::known(&path, &connection)?;
    // One that ends may go back to the queue, and has the time of its end already.
    let mut statement =
        connection.prepare("SELECT version, row FROM jobs WHERE retired = 0").map_err(sqlite)?;
    let mut rows = statement.query([]).map_err(sqlite)?;
    while let Some(row) = rows.next().map_err(sqlite)? {
        let job: JobRow = decode(&path, "jobs", row)?;
        if !matches!(job.phase, Phase::Ended { .. }) {
            return Ok(true);
        }
    }
    Ok(false)
}
