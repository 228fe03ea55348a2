//! Copies the write-ahead log into the database, off the commit path.

use crate::schema;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From this size the log is copied.
const COPY_FROM: u64 = 4 << 20;
/// From this size the writer is asked to copy the last frames itself, so that the log can begin anew:
/// while it writes without a pause, nobody else finds a moment for that, and the log would never end.
const RESTART_FROM: u64 = 64 << 20;

/// Least time between two copies, unless many commits came: each copy costs two fsyncs, for which the next commits
/// wait.
const PAUSE: Duration = Duration::from_secs(1);
/// How many commits are many.
const MANY: u32 = 64;

/// The thread that does it, and its alarm clock.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    restart: Arc<AtomicBool>,
    commits: Arc<AtomicU32>,
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(crate) fn start(database: &Path) -> std::io::Result<Checkpointer> {
        let (wake, woken) = sync_channel(1);
        let database = database.to_path_buf();
        let restart = Arc::new(AtomicBool::new(false));
        let wanted = Arc::clone(&restart);
        let commits = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&commits);
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_string())
            .spawn(move || work(&database, &woken, &wanted, &counted))?;
        Ok(Checkpointer { restart, commits, wake: Some(wake), thread: Some(thread) })
    }

    /// Says that something was committed on `writer`; lets the log begin anew when that is asked for. `full`: the
    /// disk has no room for a log that grows, so it begins anew each time.
    pub(crate) fn committed(&self, writer: &Connection, full: bool) {
        if full || self.restart.load(Ordering::Acquire) {
            // Only what came after the last copy is left to do.
            if let Err(e) = checkpoint(writer, "RESTART") {
                tracing::warn!("checkpoint: {e}");
            }
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

fn work(database: &Path, woken: &Receiver<()>, restart: &AtomicBool, commits: &AtomicU32) {
    let log = log_of(database);
    let size = || std::fs::metadata(&log).map_or(0, |meta| meta.len());
    let mut connection: Option<Connection> = None;
    // Frames already copied when the log was last looked at: an idle log is copied once.
    let mut done = 0;
    let mut last: Option<Instant> = None;
    loop {
        match woken.recv_timeout(Duration::from_secs(5)) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
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
        match checkpoint(open, "PASSIVE") {
            Ok((_, frames, copied)) => {
                if copied > 0 && size() >= RESTART_FROM && frames != done {
                    restart.store(true, Ordering::Release);
                }
                done = frames;
            }
            Err(e) => {
                tracing::warn!("{}: checkpoint: {e}", database.display());
                connection = None;
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// Whether it was hindered, frames in the log, frames copied.
pub(crate) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<(i64, i64, i64)> {
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })
}

fn log_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_os_string();
    name.push("-wal");
    PathBuf::from(name)
}
