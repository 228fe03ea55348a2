//! Copies of the database: made beside a controller that writes, and made fit for a controller that takes one over.

use crate::error::StoreError;
use crate::lock::private_directory;
use crate::schema;
use crate::writer::SqliteStore;
use crate::{DATABASE, content::Content};
use berth_model::Term;
use berth_sched_core::{MetaRow, commit, go_on_from};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OptionalExtension};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What a copy of the database says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Version of its tables.
    pub schema: i64,
    /// The last term that began.
    pub term: u64,
    /// The id of the next job.
    pub next_job: u32,
}

/// Copies the database in `dir` into the new file `to` (0600), as it is at one moment. Commits go on meanwhile; the log is
/// not begun anew before the copy is done. Returns what the copy says, after it was looked through.
///
/// # Errors
/// There is no database, it is somebody else's, it or the copy is damaged, or the file cannot be written.
pub fn copy(dir: &Path, to: &Path) -> Result<Facts, StoreError> {
    let from = dir.join(DATABASE);
    let meta = std::fs::metadata(&from).map_err(|e| match e.kind() {
        ErrorKind::NotFound => StoreError::file(
            &from,
            "there is none, and so no cluster: name its state directory with --state or BERTH_STATE, on the machine of its controller",
        ),
        ErrorKind::PermissionDenied => {
            StoreError::file(&from, format!("{e}; use the user that made the cluster"))
        }
        _ => StoreError::file(&from, e),
    })?;
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() != own {
        // What SQLite makes beside the database would be ours, and its owner locked out.
        let why = format!(
            "belongs to user id {}, and this command runs as {own}; use the user that made the cluster",
            meta.uid()
        );
        return Err(StoreError::file(&from, why));
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|e| StoreError::file(to, e))?;
    let source = schema::connect(&from, false).map_err(|e| StoreError::from_sqlite(&from, &e))?;
    let copied = |e: rusqlite::Error| StoreError::from_sqlite(to, &e);
    let mut target = Connection::open(to).map_err(copied)?;
    // All at once: one view of the database, whoever writes meanwhile.
    let outcome = Backup::new(&source, &mut target).and_then(|backup| backup.step(-1)).map_err(copied)?;
    if outcome != StepResult::Done {
        let why = "it was locked for 30 s; try again".to_string();
        return Err(StoreError::Database { path: from, why });
    }
    // The copy is one file.
    target.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(())).map_err(copied)?;
    target.close().map_err(|(_, e)| copied(e))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(|e| StoreError::file(to, e))?;
    check(to)
}

/// Looks a copy through: that it is ours, whole, and of tables that this version knows.
///
/// # Errors
/// What it is instead.
pub fn check(path: &Path) -> Result<Facts, StoreError> {
    let connection = schema::connect(path, false).map_err(|e| StoreError::from_sqlite(path, &e))?;
    schema::known(path, &connection)?;
    let sqlite = |e: rusqlite::Error| StoreError::from_sqlite(path, &e);
    let whole: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
    if whole != "ok" {
        return Err(StoreError::Damaged { path: path.to_path_buf(), why: whole });
    }
    facts(path, &connection)
}

/// What the database in `dir` says of itself; `None` where that cannot be read.
pub fn look(dir: &Path) -> Option<Facts> {
    let path = dir.join(DATABASE);
    let connection = schema::connect(&path, false).ok()?;
    facts(&path, &connection).ok()
}

fn facts(path: &Path, connection: &Connection) -> Result<Facts, StoreError> {
    let sqlite = |e: rusqlite::Error| StoreError::from_sqlite(path, &e);
    let schema = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
    let term: Option<i64> = connection
        .query_row("SELECT value FROM meta WHERE key = 'term'", [], |row| row.get(0))
        .optional()
        .map_err(sqlite)?;
    let counters: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE key = 'counters'", [], |row| row.get(0))
        .optional()
        .map_err(sqlite)?;
    let counters: Option<MetaRow> = counters
        .map(|bytes| Content::from_bytes(&bytes))
        .transpose()
        .map_err(|e| StoreError::row(path, "counters", e))?;
    Ok(Facts {
        schema,
        term: term.unwrap_or(0).unsigned_abs(),
        next_job: counters.map_or(1, |meta| meta.next_job),
    })
}

/// How far the term goes on above every one that is known: more controllers have not begun since a backup.
const TERMS: u64 = 1_000;
/// By how much more, at most: one backup may be restored on two machines, and no node is to take the one's controller for the other's.
const APART: u64 = 1 << 20;

/// Makes the copy in `dir` fit to be taken over by a controller: term and counters go on above all that was given out since
/// it was made, of which `beyond` is what is known otherwise. `random` is a number that no other restore has: of two of the same backup one has the
/// later term, and not both the same.
///
/// # Errors
/// As of [`SqliteStore::open`] and of its commits.
pub fn make_fit(dir: &Path, beyond: Facts, random: u64) -> Result<(), StoreError> {
    private_directory(dir)?;
    let mut store = SqliteStore::open(dir)?;
    let term = store.term().0.max(beyond.term).saturating_add(TERMS + random % APART);
    store.raise_term(Term(term))?;
    let writes = go_on_from(&store.load()?, beyond.next_job);
    commit(&mut store, &writes)
        .map_err(|e| StoreError::Database { path: store.path().to_path_buf(), why: e.to_string() })?;
    store.reopen()
}
