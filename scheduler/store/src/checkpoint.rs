//! Copies the write-ahead log into the database, off the commit path.

use crate::schema::{self, beside};
use rusqlite::Connection;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From this size the log is copied.
const COPY_FROM: u64 = 4 << 20;
/// From this size the writer is asked to copy the last frames itself, so that its next write begins the log anew:
/// while it writes without a pause, nobody else finds a moment for that, and the log would never end.
const RESTART_FROM: u64 = 64 << 20;

/// Least time between two copies, unless many commits came: each copy costs two fsyncs, for which the next commits
/// wait.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a page, and about those of a frame of the log.
const PAGE: u64 = 4096;
/// How long cutting the log may wait for others, and they for it: it is tried again.
const CUT_WAIT: Duration = Duration::from_millis(50);
/// How many commits are many.
const MANY: u32 = 64;

/// The thread that does it, and its alarm clock.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    restart: Arc<AtomicBool>,
    wipe: Arc<AtomicBool>,
    commits: Arc<AtomicU32>,
    turn: Arc<Turn>,
    /// Most bytes of the log that are not in the database.
    most_behind: u64,
    complaint: Complaint,
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Held while copying. A copy gives up at once where another one runs; on a full disk the writer's must not, for a log that
/// does not begin anew takes the room that ends of jobs need.
#[derive(Debug, Default)]
struct Turn(Mutex<()>);

impl Turn {
    fn take(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the first failure in a row, for a full disk would make one of each commit.
#[derive(Debug, Default)]
struct Complaint {
    told: bool,
}

impl Complaint {
    fn hear<T>(&mut self, what: &Path, outcome: &rusqlite::Result<T>) {
        match outcome {
            Ok(_) => self.told = false,
            Err(e) if !std::mem::replace(&mut self.told, true) => {
                tracing::warn!("{}: its log cannot be copied into it, and grows: {e}", what.display());
            }
            Err(_) => {}
        }
    }
}

impl Checkpointer {
    /// `most_behind`: most bytes of the log that are not yet in the database, which grows by no more when they are
    /// copied: as much must be had when the disk is full.
    pub(crate) fn start(database: &Path, most_behind: u64) -> std::io::Result<Checkpointer> {
        let (wake, woken) = sync_channel(1);
        let database = database.to_path_buf();
        let restart = Arc::new(AtomicBool::new(false));
        let wanted = Arc::clone(&restart);
        let wipe = Arc::new(AtomicBool::new(false));
        let to_wipe = Arc::clone(&wipe);
        let commits = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&commits);
        let turn = Arc::new(Turn::default());
        let shared = Arc::clone(&turn);
        let thread = std::thread::Builder::new().name("checkpoint".to_string()).spawn(move || {
            work(&database, &woken, &Wishes { restart: &wanted, wipe: &to_wipe }, &counted, &shared)
        })?;
        let complaint = Complaint::default();
        Ok(Checkpointer {
            restart,
            wipe,
            commits,
            turn,
            most_behind,
            complaint,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// Says that the next commit deleted what is to be in no file any more: the log is copied and cut to nothing soon.
    pub(crate) fn wipe(&self) {
        self.wipe.store(true, Ordering::Release);
    }

    /// Says that something was committed on `writer`; copies the rest of the log when that is asked for. `full`: the
    /// disk has no room for a log that grows, so it is copied each time. The next write begins the log anew when
    /// all of it was copied and nobody reads it. No reader is waited for: a slow one would keep commits waiting.
    pub(crate) fn committed(&mut self, writer: &Connection, full: bool) {
        if full || self.restart.load(Ordering::Acquire) || self.is_behind(writer) {
            // Only what came after the last copy is left to do.
            let turn = self.turn.take();
            let copied = checkpoint(writer, "PASSIVE");
            drop(turn);
            self.complaint.hear(Path::new(writer.path().unwrap_or_default()), &copied);
            self.restart.store(false, Ordering::Release);
        }
        self.commits.fetch_add(1, Ordering::Relaxed);
        if let Some(wake) = &self.wake
            && let Err(TrySendError::Disconnected(())) = wake.try_send(())
        {
            tracing::error!("the checkpointing thread is gone; the log grows until the next start");
        }
    }
}

impl Checkpointer {
    /// Whether the thread does not keep up with what is written.
    fn is_behind(&self, writer: &Connection) -> bool {
        checkpoint(writer, "NOOP").is_ok_and(|(_, frames, copied)| {
            u64::try_from(frames - copied).unwrap_or(0) * PAGE > self.most_behind
        })
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpointing thread ended with a panic");
        }
    }
}

/// What is asked of the thread and of the writer.
struct Wishes<'a> {
    restart: &'a AtomicBool,
    wipe: &'a AtomicBool,
}

/// Cuts the log to nothing; false while a reader or the writer is at work.
fn cut(database: &Path, turn: &Turn) -> rusqlite::Result<bool> {
    let connection = schema::connect(database, true)?;
    connection.busy_timeout(CUT_WAIT)?;
    let _turn = turn.take();
    match checkpoint(&connection, "TRUNCATE") {
        Ok((hindered, _, _)) => Ok(hindered == 0),
        Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(false),
        Err(e) => Err(e),
    }
}

fn work(database: &Path, woken: &Receiver<()>, wishes: &Wishes<'_>, commits: &AtomicU32, turn: &Turn) {
    let Wishes { restart, wipe } = *wishes;
    let log = beside(database, "-wal");
    let size = || std::fs::metadata(&log).map_or(0, |meta| meta.len());
    let mut connection: Option<Connection> = None;
    let mut complaint = Complaint::default();
    // Frames already copied when the log was last looked at: an idle log is copied once.
    let mut done = 0;
    let mut last: Option<Instant> = None;
    loop {
        match woken.recv_timeout(Duration::from_secs(5)) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if wipe.swap(false, Ordering::AcqRel) {
            let outcome = cut(database, turn);
            complaint.hear(database, &outcome);
            if matches!(outcome, Ok(true)) {
                done = 0;
            } else {
                wipe.store(true, Ordering::Release);
            }
        }
        let early = last.is_some_and(|at| at.elapsed() < PAUSE);
        let few = commits.load(Ordering::Relaxed) < MANY;
        if (early && few) || restart.load(Ordering::Acquire) || size() < COPY_FROM {
            continue;
        }
        last = Some(Instant::now());
        commits.store(0, Ordering::Relaxed);
        if connection.is_none() {
            connection = schema::connect(database, true).map_err(|e| tracing::error!("checkpoint: {e}")).ok();
        }
        let Some(open) = &connection else { continue };
        let copying = turn.take();
        let outcome = checkpoint(open, "PASSIVE");
        drop(copying);
        complaint.hear(database, &outcome);
        match outcome {
            Ok((_, frames, copied)) => {
                if copied > 0 && size() >= RESTART_FROM && frames != done {
                    restart.store(true, Ordering::Release);
                }
                done = frames;
            }
            Err(_) => {
                connection = None;
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// Whether it was hindered, frames in the log, frames copied.
pub(crate) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<(i64, i64, i64)> {
    connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    static WAITED: AtomicBool = AtomicBool::new(false);

    #[test]
    fn a_reader_keeps_no_commit_on_a_full_disk_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        schema::make(&path).unwrap();
        let writer = schema::open(&path).unwrap();
        // Called in place of waiting for others' locks.
        let refuse_to_wait = |_| {
            WAITED.store(true, Ordering::Relaxed);
            false
        };
        writer.busy_handler(Some(refuse_to_wait)).unwrap();
        let mut checkpointer = Checkpointer::start(&path, u64::MAX).unwrap();
        let mut write = |n: i64| {
            writer.execute("INSERT OR REPLACE INTO meta VALUES ('clock', ?1)", [n]).unwrap();
            checkpointer.committed(&writer, true);
        };
        write(1);
        write(2);
        let reader = schema::connect(&path, false).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        let seen = || reader.query_row("SELECT value FROM meta", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(seen(), 2);
        (3..10).for_each(&mut write);
        assert_eq!(seen(), 2, "the reader's view is held");
        assert!(!WAITED.load(Ordering::Relaxed), "a commit waited for a reader");
        reader.execute_batch("COMMIT").unwrap();
        // With nobody reading, the log begins anew each time instead of growing.
        write(10);
        let size = || std::fs::metadata(beside(&path, "-wal")).unwrap().len();
        let before = size();
        (11..50).for_each(&mut write);
        assert_eq!((size(), seen()), (before, 49));
    }
}
