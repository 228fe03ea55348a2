//! The one writer: groups of writes in one transaction each, the rows for a restart, and housekeeping.

use crate::DATABASE;
use crate::checkpoint::{Checkpointer, checkpoint};
use crate::content::{Content, PAYLOAD_VERSION};
use crate::encode::{CHUNK, RawRow, decode, decode_all, payload_key, sluid_key, step_number, step_of};
use crate::error::{StoreError, is_full};
use crate::lock::{DirectoryLock, private_directory};
use crate::reader::Reader;
use crate::schema;
use crate::space::{Ballast, Room};
use berth_model::{Attempt, JobId, NodeName, StepKey, Term, Time};
use berth_sched_core::{
    BootClock, CommitError, JobRow, Mark, Phase, ROW_VERSION, StepNode, Store, Stored, Write,
};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The controller's database, opened for writing.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    path: PathBuf,
    term: Term,
    ballast: Ballast,
    /// Cluster time as of the writes to come, below which it must not fall after a restart, and by what it was read.
    mark: Mark,
    /// The disk was full at the last commit: new work waits until there is room.
    full: bool,
    checkpointer: Checkpointer,
    // Last, so that the directory is let go when the rest is closed.
    _lock: DirectoryLock,
}

impl SqliteStore {
    /// Opens the store in `dir`, or makes it, for this process alone; begins a new term.
    ///
    /// # Errors
    /// Names the file, the reason and the next step.
    pub fn open(dir: &Path) -> Result<SqliteStore, StoreError> {
        private_directory(dir)?;
        let ballast = Ballast::new(dir);
        if dir.join(DATABASE).exists() {
            ballast.release_if_full();
        }
        SqliteStore::open_beside(dir, ballast.clone()).map_err(|error| ballast.explain(error))
    }

    fn open_beside(dir: &Path, ballast: Ballast) -> Result<SqliteStore, StoreError> {
        let lock = DirectoryLock::take(dir)?;
        let path = dir.join(DATABASE);
        if !is_there(&path, &ballast)? {
            schema::make(&path)?;
        }
        let connection = match schema::open(&path) {
            Err(StoreError::Database { why, .. }) if why.contains("full") => {
                ballast.release();
                schema::open(&path)
            }
            opened => opened,
        }?;
        let checkpointer =
            Checkpointer::start(&path, ballast.size() / 2).map_err(|e| StoreError::file(&path, e))?;
        let mut store = SqliteStore {
            connection,
            path,
            term: Term(0),
            ballast,
            mark: Mark::default(),
            full: false,
            checkpointer,
            _lock: lock,
        };
        store.term = store.next_term()?;
        store.mark = store.last_mark()?;
        Ok(store)
    }

    fn sqlite(&self, e: &rusqlite::Error) -> StoreError {
        StoreError::from_sqlite(&self.path, e)
    }

    fn next_term(&mut self) -> Result<Term, StoreError> {
        let write = |connection: &mut Connection| -> rusqlite::Result<i64> {
            let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
            let last: Option<i64> = transaction
                .query_row("SELECT value FROM meta WHERE key = 'term'", [], |row| row.get(0))
                .optional()?;
            let term = last.unwrap_or(0) + 1;
            transaction.execute("INSERT OR REPLACE INTO meta VALUES ('term', ?1)", [term])?;
            transaction.commit()?;
            Ok(term)
        };
        let term = match write(&mut self.connection) {
            Err(e) if is_full(&e) => {
                self.full = true;
                self.ballast.release();
                write(&mut self.connection)
            }
            done => done,
        };
        term.map(|term| Term(term.unsigned_abs())).map_err(|e| self.sqlite(&e))
    }

    /// Begins a term above `above`: somebody has followed one of that number.
    ///
    /// # Errors
    /// The database's own.
    pub fn raise_term(&mut self, above: Term) -> Result<(), StoreError> {
        if above > self.term {
            let value = i64::try_from(above.0).unwrap_or(i64::MAX - 1);
            self.connection
                .execute("INSERT OR REPLACE INTO meta VALUES ('term', ?1)", [value])
                .map_err(|e| self.sqlite(&e))?;
            self.term = self.next_term()?;
        }
        Ok(())
    }

    /// The term that began with this opening: higher than any before.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Sets the time that the next commit records as reached.
    pub fn set_clock(&mut self, mark: Mark) {
        if self.mark.time <= mark.time {
            self.mark = mark;
        }
    }

    /// The highest cluster time on record, or the one that was set since.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    fn last_mark(&self) -> Result<Mark, StoreError> {
        let read = || -> rusqlite::Result<Mark> {
            let mut ask = self.connection.prepare("SELECT value FROM meta WHERE key = ?1")?;
            let time: Option<i64> = ask.query_row(["clock"], |row| row.get(0)).optional()?;
            let clock: Option<String> = ask.query_row(["boot"], |row| row.get(0)).optional()?;
            Ok(Mark { time: Time(time.unwrap_or(0)), clock: clock.as_deref().and_then(clock_of) })
        };
        read().map_err(|e| self.sqlite(&e))
    }

    /// The database's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reading beside the writer.
    pub fn reader(&self) -> Reader {
        Reader::new(self.path.clone())
    }

    /// All rows that the core needs.
    ///
    /// # Errors
    /// A row that cannot be read, or of a later version.
    pub fn load(&mut self) -> Result<Stored, StoreError> {
        let meta: Option<Vec<u8>> = self
            .connection
            .query_row("SELECT value FROM meta WHERE key = 'counters'", [], |row| row.get(0))
            .optional()
            .map_err(|e| self.sqlite(&e))?;
        let meta = meta
            .map(|bytes| Content::from_bytes(&bytes))
            .transpose()
            .map_err(|e| StoreError::row(&self.path, "counters", e))?;
        let mut stored = Stored {
            meta,
            specs: self.rows(
                "specs",
                "SELECT version, row FROM specs
                 WHERE job IN (SELECT spec_of FROM jobs WHERE retired = 0) ORDER BY job",
            )?,
            jobs: self.rows("jobs", "SELECT version, row FROM jobs WHERE retired = 0 ORDER BY job")?,
            steps: self.rows(
                "steps",
                "SELECT steps.version, steps.row FROM jobs CROSS JOIN steps USING (job)
                 WHERE jobs.retired = 0 ORDER BY job, attempt, step",
            )?,
            nodes: self.rows("nodes", "SELECT version, row FROM nodes ORDER BY name")?,
            members: self.rows("members", "SELECT version, row FROM members ORDER BY name")?,
            tokens: self.rows("tokens", "SELECT version, row FROM tokens ORDER BY id")?,
        };
        let (parts, left) = (self.parts()?, self.departures()?);
        stored.bring_up_to_date(parts, left);
        Ok(stored)
    }

    /// Parts of steps that were written after their rows.
    fn parts(&self) -> Result<Vec<(StepKey, usize, StepNode)>, StoreError> {
        let sqlite = |e: rusqlite::Error| self.sqlite(&e);
        let mut statement = self
            .connection
            .prepare(
                "SELECT parts.version, parts.row, job, attempt, step, at FROM jobs CROSS JOIN parts USING (job)
                 WHERE jobs.retired = 0",
            )
            .map_err(sqlite)?;
        let mut rows = statement.query([]).map_err(sqlite)?;
        let mut parts = Vec::new();
        while let Some(row) = rows.next().map_err(sqlite)? {
            let key = || -> rusqlite::Result<_> { Ok((row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)) };
            let (job, attempt, step, at) = key().map_err(sqlite)?;
            let part = decode(&self.path, "parts", row)?;
            let Some(step) = step_of(step) else { continue };
            let at: u32 = at;
            parts.push((StepKey { job: JobId(job), attempt: Attempt(attempt), step }, at as usize, part));
        }
        Ok(parts)
    }

    /// Nodes that jobs have left after their rows were written.
    fn departures(&self) -> Result<Vec<(JobId, NodeName)>, StoreError> {
        let read = || -> rusqlite::Result<Vec<(JobId, NodeName)>> {
            self.connection
                .prepare("SELECT job, node FROM departures")?
                .query_map([], |row| Ok((JobId(row.get(0)?), NodeName(row.get(1)?))))?
                .collect()
        };
        read().map_err(|e| self.sqlite(&e))
    }

    /// Reads on this thread and decodes on several: decoding is most of the time of a restart.
    fn rows<T: Content + Send>(&self, table: &str, query: &str) -> Result<Vec<T>, StoreError> {
        let sqlite = |e: rusqlite::Error| self.sqlite(&e);
        let mut statement = self.connection.prepare(query).map_err(sqlite)?;
        let mut rows = statement.query([]).map_err(sqlite)?;
        let path = &self.path;
        decode_all(
            |chunk: &mut Vec<RawRow>| {
                while chunk.len() < CHUNK
                    && let Some(row) = rows.next().map_err(sqlite)?
                {
                    chunk.push(RawRow::take(path, row)?);
                }
                Ok(())
            },
            |raw| raw.decode(path, table),
        )
    }

    /// Opens the database again after a commit that failed or whose outcome is unknown, and makes sure that
    /// whatever is read from now on is on the disk: after a failed fsync, the kernel may show what the disk
    /// does not have.
    ///
    /// # Errors
    /// As for opening; the store must not be used then.
    pub fn reopen(&mut self) -> Result<(), StoreError> {
        self.connection = schema::open(&self.path)?;
        // The checkpointing thread, or a reader, may be at work just now.
        for _ in 0..200 {
            match checkpoint(&self.connection, "TRUNCATE") {
                Ok((0, _, _)) => return Ok(()),
                Ok(_) => std::thread::sleep(Duration::from_millis(50)),
                // The log stays as it is: a write that finds no room was not committed, and what lies before
                // it in the log was flushed.
                Err(e) if is_full(&e) => return Ok(()),
                Err(e) => return Err(self.sqlite(&e)),
            }
        }
        let why = "the log could not be copied for 10 s because readers hold it".to_string();
        Err(StoreError::Database { path: self.path.clone(), why })
    }

    /// Looks at the disk, and puts the ballast back when there is room again.
    pub fn room(&mut self) -> Room {
        let room = self.ballast.check();
        self.full = room != Room::Enough;
        room
    }

    /// Whether the last commits needed the ballast.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Forgets at most `most` finished jobs that ended before `before`, and as many entries of the audit log that are older,
    /// and gives free pages back to the file system. Returns how many of which there were more: fewer than `most`
    /// means that nothing is left to do.
    ///
    /// # Errors
    /// The database's own.
    pub fn purge(&mut self, before: Time, most: u32) -> Result<u32, StoreError> {
        let purge = |connection: &mut Connection| -> rusqlite::Result<u32> {
            let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
            let jobs: Vec<(u32, u32)> = transaction
                .prepare_cached(
                    "SELECT job, spec_of FROM jobs WHERE ended < ?1 AND retired = 1 ORDER BY ended LIMIT ?2",
                )?
                .query_map(params![before.0, most], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            for (job, spec) in &jobs {
                transaction.prepare_cached("DELETE FROM steps WHERE job = ?1")?.execute([job])?;
                transaction.prepare_cached("DELETE FROM parts WHERE job = ?1")?.execute([job])?;
                transaction.prepare_cached("DELETE FROM departures WHERE job = ?1")?.execute([job])?;
                transaction.prepare_cached("DELETE FROM payloads WHERE job = ?1")?.execute([job])?;
                transaction.prepare_cached("DELETE FROM jobs WHERE job = ?1")?.execute([job])?;
                transaction
                    .prepare_cached(
                        "DELETE FROM specs WHERE job = ?1
                         AND NOT EXISTS (SELECT 1 FROM jobs WHERE job = ?1)
                         AND NOT EXISTS (SELECT 1 FROM jobs WHERE spec_of = ?1 AND spec_of <> job)",
                    )?
                    .execute([spec])?;
            }
            let entries = transaction
                .prepare_cached(
                    "DELETE FROM audit WHERE number IN (SELECT number FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)",
                )?
                .execute(params![before.0, most])?;
            transaction.commit()?;
            connection.execute_batch("PRAGMA incremental_vacuum(256)")?;
            Ok(u32::try_from(jobs.len().max(entries)).unwrap_or(u32::MAX))
        };
        let purged = purge(&mut self.connection).map_err(|e| self.sqlite(&e))?;
        self.checkpointer.committed(&self.connection, self.full);
        Ok(purged)
    }

    fn try_apply(&mut self, writes: &[Write]) -> Result<(), (rusqlite::Error, bool)> {
        let transaction =
            Transaction::new(&mut self.connection, TransactionBehavior::Immediate).map_err(|e| (e, false))?;
        for write in writes {
            put(&transaction, write).map_err(|e| (e, false))?;
        }
        // Both or none: the one means nothing beside another one's.
        transaction
            .prepare_cached("INSERT OR REPLACE INTO meta VALUES ('clock', ?1), ('boot', ?2)")
            .and_then(|mut statement| {
                statement.execute(params![self.mark.time.0, text_of(self.mark.clock.as_ref())])
            })
            .map_err(|e| (e, false))?;
        transaction.commit().map_err(|e| {
            // With no room, the frame that makes the commit was not written; any other trouble at this
            // point may have come after it.
            let unknown = !is_full(&e);
            (e, unknown)
        })
    }
}

impl Store for SqliteStore {
    fn apply(&mut self, writes: &[Write]) -> Result<(), CommitError> {
        let applied = match self.try_apply(writes) {
            Err((e, false)) if is_full(&e) => {
                self.full = true;
                self.ballast.release();
                self.try_apply(writes)
            }
            done => done,
        };
        match applied {
            Ok(()) => {
                if writes.iter().any(|w| matches!(w, Write::DeletePayload(key) if key.is_login())) {
                    self.checkpointer.wipe();
                }
                self.checkpointer.committed(&self.connection, self.full);
                Ok(())
            }
            Err((e, unknown)) => {
                let why = format!("{}: {e}", self.path.display());
                Err(if unknown { CommitError::Unknown(why) } else { CommitError::Failed(why) })
            }
        }
    }
}

/// Whether the database is there; `false` where there never was one. A database that was lost is refused: a new one
/// would give jobs' numbers again, and SQLite would remove the log of the old one, in which jobs may still be.
fn is_there(path: &Path, ballast: &Ballast) -> Result<bool, StoreError> {
    let lost = |why: String| Err(StoreError::Lost { path: path.to_path_buf(), why });
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > 0 => Ok(true),
        Ok(_) => lost("is empty".to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let log = schema::beside(path, "-wal");
            match [log.as_path(), ballast.path()].into_iter().find(|left| left.exists()) {
                Some(left) => lost(format!("is gone, its {} is still there", left.display())),
                None => Ok(false),
            }
        }
        Err(e) => Err(StoreError::file(path, e)),
    }
}

fn bytes(row: &impl Content) -> rusqlite::Result<Vec<u8>> {
    row.to_bytes().map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

fn put(transaction: &Transaction<'_>, write: &Write) -> rusqlite::Result<()> {
    let changed = match write {
        Write::PutSpec(spec) => transaction
            .prepare_cached("INSERT OR REPLACE INTO specs VALUES (?1, ?2, ?3)")?
            .execute(params![spec.job.0, spec.version, bytes(&**spec)?])?,
        Write::PutJob(job) => {
            forget_beside(transaction, job)?;
            transaction
                .prepare_cached(
                    "INSERT INTO jobs (job, version, spec_of, ended, row, sluid) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (job) DO UPDATE SET
                 version = ?2, spec_of = ?3, ended = ?4, retired = 0, row = ?5",
                )?
                .execute(params![
                    job.job.0,
                    job.version,
                    job.spec_of.0,
                    ended(job),
                    bytes(&**job)?,
                    job.sluid.map(sluid_key)
                ])?
        }
        Write::DeleteJob(job) => {
            transaction.prepare_cached("DELETE FROM jobs WHERE job = ?1")?.execute([job.0])?
        }
        Write::PutPart { key, at, part } => transaction
            .prepare_cached("INSERT OR REPLACE INTO parts VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![
                key.job.0,
                key.attempt.0,
                step_number(key.step),
                number(*at as u64),
                ROW_VERSION,
                bytes(&**part)?
            ])?,
        Write::LeaveNode { job, node } => transaction
            .prepare_cached("INSERT OR REPLACE INTO departures VALUES (?1, ?2)")?
            .execute(params![job.0, node.0])?,
        Write::PutStep(step) => {
            if step.nodes.len() > 1 {
                transaction
                    .prepare_cached("DELETE FROM parts WHERE job = ?1 AND attempt = ?2 AND step = ?3")?
                    .execute(params![step.key.job.0, step.key.attempt.0, step_number(step.key.step)])?;
            }
            transaction.prepare_cached("INSERT OR REPLACE INTO steps VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(
                params![
                    step.key.job.0,
                    step.key.attempt.0,
                    step_number(step.key.step),
                    step.version,
                    bytes(&**step)?
                ],
            )?
        }
        Write::PutPayload { key, payload } => {
            let (job, step) = payload_key(*key);
            transaction
                .prepare_cached(
                    "INSERT INTO payloads VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (job, step) DO UPDATE SET version = ?3, row = ?4",
                )?
                .execute(params![job, step, PAYLOAD_VERSION, bytes(&**payload)?])?
        }
        Write::DeletePayload(key) => transaction
            .prepare_cached("DELETE FROM payloads WHERE job = ?1 AND step = ?2")?
            .execute(payload_key(*key))?,
        Write::PutNode(node) => transaction
            .prepare_cached("INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3)")?
            .execute(params![node.name.0, node.version, bytes(&**node)?])?,
        Write::DeleteNode(name) => {
            transaction.prepare_cached("DELETE FROM nodes WHERE name = ?1")?.execute([&name.0])?
        }
        Write::PutMember(member) => transaction
            .prepare_cached("INSERT OR REPLACE INTO members VALUES (?1, ?2, ?3)")?
            .execute(params![member.name.0, member.version, bytes(&**member)?])?,
        Write::DeleteMember(name) => {
            transaction.prepare_cached("DELETE FROM members WHERE name = ?1")?.execute([&name.0])?
        }
        Write::PutToken(token) => transaction
            .prepare_cached("INSERT OR REPLACE INTO tokens VALUES (?1, ?2, ?3)")?
            .execute(params![token.id, token.version, bytes(&**token)?])?,
        Write::DeleteToken(id) => {
            transaction.prepare_cached("DELETE FROM tokens WHERE id = ?1")?.execute([id])?
        }
        Write::AddAudit(entry) => transaction
            .prepare_cached("INSERT INTO audit VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![number(entry.number), entry.version, entry.at.0, bytes(&**entry)?])?,
        Write::PutMeta(meta) => transaction
            .prepare_cached("INSERT OR REPLACE INTO meta VALUES ('counters', ?1)")?
            .execute(params![bytes(meta)?])?,
        Write::Retire(job) => {
            transaction.prepare_cached("UPDATE jobs SET retired = 1 WHERE job = ?1")?.execute([job.0])?
        }
    };
    tracing::trace!(changed, "write");
    Ok(())
}

/// A clock since boot, as it is on record: what it shows, and its boot.
fn text_of(clock: Option<&BootClock>) -> String {
    clock.map(|clock| format!("{} {}", clock.shows.0, clock.boot)).unwrap_or_default()
}

/// The same, read; none where none was known.
fn clock_of(text: &str) -> Option<BootClock> {
    let (shows, boot) = text.split_once(' ')?;
    Some(BootClock { boot: boot.to_string(), shows: Time(shows.parse().ok()?) })
}

/// An entry's number as SQLite has it. There are never so many.
pub(crate) fn number(of_entry: u64) -> i64 {
    i64::try_from(of_entry).unwrap_or(i64::MAX)
}

/// What was written beside the job's row is in the new one.
fn forget_beside(transaction: &Transaction<'_>, job: &JobRow) -> rusqlite::Result<()> {
    if job.may_have_departures() {
        transaction.prepare_cached("DELETE FROM departures WHERE job = ?1")?.execute([job.job.0])?;
    }
    Ok(())
}

fn ended(job: &JobRow) -> Option<i64> {
    match &job.phase {
        Phase::Pending | Phase::Running(_) => None,
        Phase::Ending { result, .. } | Phase::Ended { result, .. } => Some(result.ended.0),
    }
}
