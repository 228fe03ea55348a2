//! Tables, and how older ones become today's. A migration only ever adds; what it makes superfluous goes a
//! release later.

use crate::error::StoreError;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::path::Path;
use std::time::Duration;

/// "Brth": tells our database from another program's.
const APPLICATION: i32 = 0x4272_7468;

/// Each entry brings the schema from its index to the next version.
const MIGRATIONS: &[&str] = &["
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
"];

/// Opens a connection with the settings that every connection has.
pub(crate) fn connect(path: &Path, write: bool) -> rusqlite::Result<Connection> {
    let mode = if write {
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
    } else {
        // Read-only connections still take part in the write-ahead log's bookkeeping.
        OpenFlags::SQLITE_OPEN_READ_WRITE
    };
    let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(30))?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    // The checkpointing thread decides when.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    if write {
        connection.pragma_update(None, "cache_size", -16_384)?;
    } else {
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "cache_size", -4_096)?;
    }
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Opens the database for writing: makes it, or brings it up to date, or refuses it.
pub(crate) fn open(path: &Path) -> Result<Connection, StoreError> {
    let sqlite = |e: rusqlite::Error| StoreError::from_sqlite(path, &e);
    let mut connection = connect(path, true).map_err(sqlite)?;
    let number = |name: &str, connection: &Connection| {
        connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0))
    };
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sqlite)?;
    if tables == 0 {
        // Only possible before the first table.
        connection.pragma_update(None, "auto_vacuum", "incremental").map_err(sqlite)?;
    } else {
        let application = number("application_id", &connection).map_err(sqlite)?;
        if application != i64::from(APPLICATION) {
            let why = "it is another program's database".to_string();
            return Err(StoreError::Damaged { path: path.to_path_buf(), why });
        }
        let found = number("user_version", &connection).map_err(sqlite)?;
        let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        if found > known {
            return Err(StoreError::Newer { path: path.to_path_buf(), what: "schema", found, known });
        }
    }
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
