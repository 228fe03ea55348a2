//! Tables, and how older ones become today's. A migration only ever adds; what it makes superfluous goes a
//! release later.

use crate::checkpoint::checkpoint;
use crate::error::StoreError;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// "Brth": tells our database from another program's.
const APPLICATION: i32 = 0x4272_7468;

/// Each entry brings the schema from its index to the next version.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;

    -- What was submitted: immutable, one for a whole array.
    CREATE TABLE specs (job INTEGER PRIMARY KEY, version INTEGER NOT NULL, row BLOB NOT NULL);

    -- Where jobs are. `retired`: not in the core's memory any more.
    CREATE TABLE jobs (
        job INTEGER PRIMARY KEY,
        version INTEGER NOT NULL,
        spec_of INTEGER NOT NULL,
        ended INTEGER,
        retired INTEGER NOT NULL DEFAULT 0,
        row BLOB NOT NULL
    );
    CREATE INDEX jobs_live ON jobs (job) WHERE retired = 0;
    CREATE INDEX jobs_ended ON jobs (ended) WHERE ended IS NOT NULL;
    CREATE INDEX jobs_unended ON jobs (job) WHERE ended IS NULL;
    CREATE INDEX jobs_of_arrays ON jobs (spec_of) WHERE spec_of <> job;

    -- `step`: -2 batch, -1 interactive, else the number.
    CREATE TABLE steps (
        job INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        step INTEGER NOT NULL,
        version INTEGER NOT NULL,
        row BLOB NOT NULL,
        PRIMARY KEY (job, attempt, step)
    ) WITHOUT ROWID;

    -- Scripts and environments. `step`: -3 for the job's own, else as above.
    CREATE TABLE payloads (
        job INTEGER NOT NULL,
        step INTEGER NOT NULL,
        version INTEGER NOT NULL,
        row BLOB NOT NULL
    );
    CREATE UNIQUE INDEX payloads_key ON payloads (job, step);

    CREATE TABLE nodes (name TEXT PRIMARY KEY, version INTEGER NOT NULL, row BLOB NOT NULL) WITHOUT ROWID;
",
    "
    -- Machines that joined, and the tokens with which others may.
    CREATE TABLE members (name TEXT PRIMARY KEY, version INTEGER NOT NULL, row BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE tokens (id TEXT PRIMARY KEY, version INTEGER NOT NULL, row BLOB NOT NULL) WITHOUT ROWID;

    -- Who decided what. `at`: cluster time, for purging.
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY,
        version INTEGER NOT NULL,
        at INTEGER NOT NULL,
        row BLOB NOT NULL
    );
    CREATE INDEX audit_at ON audit (at);
",
    "
    -- What changed in steps and jobs over many nodes since their rows were written, which are as long as those are many.
    -- `step` as in steps, `at`: place in the step's nodes.
    CREATE TABLE parts (
        job INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        step INTEGER NOT NULL,
        at INTEGER NOT NULL,
        version INTEGER NOT NULL,
        row BLOB NOT NULL,
        PRIMARY KEY (job, attempt, step, at)
    ) WITHOUT ROWID;
    CREATE TABLE departures (
        job INTEGER NOT NULL,
        node TEXT NOT NULL,
        PRIMARY KEY (job, node)
    ) WITHOUT ROWID;
",
    "
    -- By which jobs are found that are not in memory any more. Written with a row's first form alone: what a row says of itself counts.
    ALTER TABLE jobs ADD COLUMN sluid INTEGER;
    CREATE INDEX jobs_sluid ON jobs (sluid) WHERE sluid IS NOT NULL;
",
];

/// Opens a connection with the settings that every connection has.
pub(crate) fn connect(path: &Path, write: bool) -> rusqlite::Result<Connection> {
    // Read-only connections still take part in the write-ahead log's bookkeeping.
    let mode = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, mode)?;
    connection.busy_timeout(Duration::from_secs(30))?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    // The checkpointing thread decides when.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    if write {
        // Of a deleted row no byte stays: logins were in some.
        connection.pragma_update(None, "secure_delete", true)?;
        connection.pragma_update(None, "cache_size", -16_384)?;
    } else {
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "cache_size", -4_096)?;
    }
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Makes an empty database. It gets its name when it is whole, so that what bears the name was whole once: a
/// database that is empty or gone was not left so by a first start that was cut short.
pub(crate) fn make(path: &Path) -> Result<(), StoreError> {
    let sqlite = |e: rusqlite::Error| StoreError::from_sqlite(path, &e);
    let new = beside(path, ".new");
    for end in [".new", ".new-wal", ".new-shm", ".new-journal"] {
        let old = beside(path, end);
        match std::fs::remove_file(&old) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(StoreError::file(&old, e)),
            _ => {}
        }
    }
    // SQLite gives the log and the index the same permissions as the database.
    let file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(|e| StoreError::file(&new, e))?;
    let connection = connect(&new, true).map_err(sqlite)?;
    // Only possible before the first table.
    connection.pragma_update(None, "auto_vacuum", "incremental").map_err(sqlite)?;
    let connection = prepare(path, connection)?;
    // The log has the other name: nothing may be left in it.
    checkpoint(&connection, "TRUNCATE").map_err(sqlite)?;
    connection.close().map_err(|(_, e)| sqlite(e))?;
    let named = file.sync_all().and_then(|()| std::fs::rename(&new, path));
    let durable = named.and_then(|()| File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all());
    durable.map_err(|e| StoreError::file(path, e))
}

/// The file whose name goes on after the database's.
pub(crate) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(end);
    PathBuf::from(name)
}

/// Opens the database for writing and brings it up to date, or refuses it.
pub(crate) fn open(path: &Path) -> Result<Connection, StoreError> {
    let connection = connect(path, true).map_err(|e| StoreError::from_sqlite(path, &e))?;
    known(path, &connection)?;
    prepare(path, connection)
}

/// Refuses a database that is not ours, or of a later version.
pub(crate) fn known(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let sqlite = |e: rusqlite::Error| StoreError::from_sqlite(path, &e);
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let application = number("application_id").map_err(sqlite)?;
    if application != i64::from(APPLICATION) {
        let why = "it is another program's database".to_string();
        return Err(StoreError::Damaged { path: path.to_path_buf(), why });
    }
    let found = number("user_version").map_err(sqlite)?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::Newer { path: path.to_path_buf(), what: "schema", found, known });
    }
    Ok(())
}

/// What holds for the writer's connection alone: the log, and that commits are durable; then the tables.
fn prepare(path: &Path, mut connection: Connection) -> Result<Connection, StoreError> {
    let sqlite = |e: rusqlite::Error| StoreError::from_sqlite(path, &e);
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(sqlite)?;
    if mode != "wal" {
        let why =
            format!("the file system allows no write-ahead log (journal mode '{mode}'); use a local disk");
        return Err(StoreError::Database { path: path.to_path_buf(), why });
    }
    connection.pragma_update(None, "synchronous", "full").map_err(sqlite)?;
    migrate(&mut connection).map_err(sqlite)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    let have: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (version, migration) in (1_i64..).zip(MIGRATIONS) {
        if version > have {
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", version)?;
        }
    }
    transaction.commit()
}
