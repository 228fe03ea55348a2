//! Log lines of the daemons: to stderr, or to a file of the state directory that is kept within bounds.
//!
//! The file is stderr as well, so that a panic's words and those of child processes get there. Each line is one write of a file opened for
//! appending. Before it, one look at the file's name tells whether somebody moved it away (another is begun then) or cut it off (it
//! goes on at its beginning): logrotate's `create` and `copytruncate` both work, with a signal or without.

use crate::daemon::Part;
use berth_client::error::{Failure, Kind};
use berth_client::site::StateDir;
use berth_model::config::LogsConfig;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How a daemon is run and what it tells.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Stay in the foreground and log to standard error, which it does unless 'berth up', 'berth join' or systemd started it
    #[arg(short = 'D')]
    foreground: bool,
    /// Tell more: -v what it does (debug), -vv each message (trace), -vvv what libraries do, too. BERTH_LOG counts before it
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Leave the caller's session, and log to the state directory
    #[arg(long, hide = true, conflicts_with = "foreground")]
    pub background: bool,
}

/// The log of a daemon.
pub fn path(dir: &StateDir, part: Part) -> PathBuf {
    dir.log().join(format!("{}.log", part.name()))
}

/// Opens a log for appending.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// The file of this process, where it has one.
static OWN: OnceLock<LogFile> = OnceLock::new();

/// Begins to log. `BERTH_LOG` chooses what is told: a level, or levels of parts.
///
/// # Errors
/// It does not say that, or the log cannot be opened.
pub fn begin(options: &Options, dir: &StateDir, part: Part) -> Result<(), Failure> {
    let filter = match std::env::var_os("BERTH_LOG").filter(|text| !text.is_empty()) {
        None => verbosity(options.verbose),
        Some(text) => levels(&text.to_string_lossy())?,
    };
    let lines = tracing_subscriber::fmt::layer();
    let lines = if options.background {
        let path = path(dir, part);
        let failed = |e| Failure::new(Kind::Configuration, format!("{}: {e}", path.display()));
        let file = LogFile::open(&path, true).map_err(failed)?;
        // It is the first of this process.
        let _ = OWN.set(file);
        lines.with_writer(|| Lines).with_ansi(false).boxed()
    } else {
        let colours = rustix::termios::isatty(rustix::stdio::stderr());
        let lines = lines.with_writer(io::stderr).with_ansi(colours);
        // The journal has the time of each line itself.
        if to_journal() { lines.without_time().boxed() } else { lines.boxed() }
    };
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}

/// Puts the rules of a configuration in force.
pub fn rules(config: &LogsConfig) {
    if let Some(file) = OWN.get() {
        let mut state = file.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.most, state.keep) = (config.max_bytes(), config.keep);
    }
}

/// Begins the file again under its name on each SIGHUP and SIGUSR2, for those who move logs away and then say so. At a terminal SIGHUP
/// ends the daemon, as everything else there.
///
/// # Errors
/// The signals cannot be had.
pub fn reopen_on_signals() -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    if OWN.get().is_none() && rustix::termios::isatty(rustix::stdio::stderr()) {
        return Ok(());
    }
    let fault = |e: io::Error| Failure::new(Kind::Internal, format!("cannot handle signals: {e}"));
    let mut hangup = signal(SignalKind::hangup()).map_err(fault)?;
    let mut second = signal(SignalKind::user_defined2()).map_err(fault)?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                _ = second.recv() => {}
            }
            if let Some(file) = OWN.get() {
                let again = file.0.lock().unwrap_or_else(PoisonError::into_inner).begin();
                match again {
                    Ok(()) => tracing::info!("the log was opened again"),
                    Err(e) => tracing::error!("the log cannot be opened again: {e}"),
                }
            }
        }
    });
    Ok(())
}

/// A log within bounds.
struct LogFile(Mutex<State>);

struct State {
    path: PathBuf,
    file: File,
    /// Bytes from which on another file is begun.
    most: u64,
    /// How many earlier ones stay.
    keep: u32,
    /// The file is stderr, too.
    stderr: bool,
}

impl LogFile {
    fn open(path: &Path, stderr: bool) -> io::Result<LogFile> {
        let rules = LogsConfig::default();
        let file = open(path)?;
        let (most, keep) = (rules.max_bytes(), rules.keep);
        Ok(LogFile(Mutex::new(State { path: path.to_path_buf(), file, most, keep, stderr })))
    }

    fn write(&self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be begun anew goes on as it is: no line is lost for that.
        let _ = state.look(line.len() as u64);
        state.file.write(line)
    }
}

impl State {
    /// Begins another file where somebody moved this one, or where it is full.
    fn look(&mut self, more: u64) -> io::Result<()> {
        let own = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(named) if (named.dev(), named.ino()) == (own.dev(), own.ino()) => {}
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => return self.begin(),
        }
        if own.len() == 0 || own.len().saturating_add(more) <= self.most {
            return Ok(());
        }
        let numbered = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        if self.keep == 0 {
            std::fs::remove_file(&self.path)?;
            return self.begin();
        }
        // Fewer may stay than before.
        for n in (self.keep..).take_while(|n| *n == self.keep || numbered(*n).exists()) {
            match std::fs::remove_file(numbered(n)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        for n in (1..self.keep).rev() {
            match std::fs::rename(numbered(n), numbered(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::rename(&self.path, numbered(1))?;
        self.begin()
    }

    /// Opens the file of the name.
    fn begin(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        if self.stderr {
            rustix::stdio::dup2_stdout(&self.file)?;
            rustix::stdio::dup2_stderr(&self.file)?;
        }
        Ok(())
    }
}

/// Writes lines to the file of this process.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        OWN.get().map_or(Ok(line.len()), |file| file.write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn verbosity(count: u8) -> Targets {
    let (all, own) = match count {
        0 => (LevelFilter::INFO, LevelFilter::INFO),
        1 => (LevelFilter::INFO, LevelFilter::DEBUG),
        2 => (LevelFilter::INFO, LevelFilter::TRACE),
        _ => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    // The names of all our packages begin so.
    Targets::new().with_default(all).with_target("berth", own)
}

fn levels(text: &str) -> Result<Targets, Failure> {
    // A word alone would be taken for a part of which everything is told, and nothing of the rest.
    let strange = text.split(',').find(|part| !part.contains('=') && part.parse::<LevelFilter>().is_err());
    let read = match strange {
        Some(word) => Err(format!("{word:?} is no level")),
        None => text.parse::<Targets>().map_err(|e| e.to_string()),
    };
    read.map_err(|e| {
        Failure::user(format!(
            "BERTH_LOG={text}: {e}; write a level (error, warn, info, debug, trace, off), or levels of parts such as \
             info,berth_agent=debug"
        ))
    })
}

/// Whether stderr goes to systemd's journal.
fn to_journal() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let own =
        rustix::fs::fstat(rustix::stdio::stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    own.is_ok_and(|own| named == *own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn levels_are_for_all_or_for_parts() {
        let of = |text: &str, target: &str, level| levels(text).unwrap().would_enable(target, &level);
        assert!(of("debug", "berth_agent", Level::DEBUG) && !of("warn", "berth_agent", Level::INFO));
        assert!(of("info,berth_agent=trace", "berth_agent::kept", Level::TRACE));
        assert!(!of("info,berth_agent=trace", "berth_controller", Level::DEBUG));
        for bad in ["loud", "info,berth_agent=loud"] {
            let text = levels(bad).unwrap_err().text;
            assert!(text.contains(bad) && text.contains("info,berth_agent=debug"), "{text}");
        }
    }

    #[test]
    fn each_v_tells_more() {
        let told = |count, target: &str, level| verbosity(count).would_enable(target, &level);
        assert!(told(0, "berth_agent", Level::INFO) && !told(0, "berth_agent", Level::DEBUG));
        assert!(told(1, "berth_sched_core::x", Level::DEBUG) && !told(1, "h2", Level::DEBUG));
        assert!(told(2, "berth_controller", Level::TRACE) && !told(2, "h2", Level::TRACE));
        assert!(told(3, "h2", Level::TRACE));
    }

    fn log(most: u64, keep: u32) -> (tempfile::TempDir, PathBuf, LogFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let log = LogFile::open(&path, false).unwrap();
        {
            let mut state = log.0.lock().unwrap();
            (state.most, state.keep) = (most, keep);
        }
        (dir, path, log)
    }

    /// All lines of all files, those of the oldest first.
    fn lines(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        let number =
            |path: &PathBuf| path.extension().and_then(|n| n.to_str()?.parse::<u32>().ok()).unwrap_or(0);
        names.sort_by_key(|path| std::cmp::Reverse(number(path)));
        names
            .iter()
            .flat_map(|p| std::fs::read_to_string(p).unwrap().lines().map(str::to_string).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn a_full_file_makes_room_and_no_line_is_lost_or_torn() {
        let (dir, path, log) = log(1000, 400);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let log = &log;
                scope.spawn(move || {
                    for n in 0..500 {
                        log.write(format!("writer {writer} line {n:04}\n").as_bytes()).unwrap();
                    }
                });
            }
        });
        let found = lines(dir.path());
        assert_eq!(found.len(), 2000);
        for writer in 0..4 {
            let own: Vec<&String> =
                found.iter().filter(|l| l.starts_with(&format!("writer {writer} "))).collect();
            let expected: Vec<String> = (0..500).map(|n| format!("writer {writer} line {n:04}")).collect();
            assert!(own.iter().copied().eq(expected.iter()), "lines of writer {writer} are not in order");
        }
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            assert!(entry.unwrap().metadata().unwrap().len() <= 1000);
        }
        // Fewer may stay from now on: all others go.
        log.0.lock().unwrap().keep = 2;
        for n in 0..100 {
            log.write(format!("later line {n}\n").as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        log.0.lock().unwrap().keep = 0;
        for n in 0..100 {
            log.write(format!("at last line {n}\n").as_bytes()).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("line 99\n"));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_line_longer_than_a_file_is_whole() {
        let (dir, _, log) = log(100, 3);
        let long = format!("{}\n", "x".repeat(300));
        for line in ["short\n", &long, "short\n"] {
            assert_eq!(log.write(line.as_bytes()).unwrap(), line.len());
        }
        assert_eq!(lines(dir.path()), ["short", long.trim_end(), "short"]);
    }

    #[test]
    fn logrotate_may_move_it_or_cut_it_off() {
        let (dir, path, log) = log(1 << 20, 3);
        log.write(b"one\n").unwrap();
        std::fs::rename(&path, dir.path().join("agent.log-moved")).unwrap();
        log.write(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("agent.log-moved")).unwrap(), "one\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        // As copytruncate does; what follows is at the beginning and not behind a hole.
        std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        log.write(b"three\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");
    }

    #[test]
    fn what_cannot_be_begun_anew_goes_on() {
        let (dir, path, log) = log(10, 1);
        // In the way of the earlier file.
        std::fs::create_dir(dir.path().join("agent.log.1")).unwrap();
        for _ in 0..5 {
            log.write(b"a line\n").unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 5);
    }
}
