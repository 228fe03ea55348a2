//! Measures commands for `tests/bench/run.sh`: several in turn, many at once, and the disk's fsync.
#![forbid(unsafe_code)]

mod cost;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: bench-alternate latency ROUNDS (NAME COMMANDLINE)...   median, minimum and p99 of each, in microseconds
       bench-alternate rate TOTAL PARALLEL COMMANDLINE         wall time of all runs, in microseconds
       bench-alternate cost ROUNDS (NAME PREPARATION COMMANDLINE)...   medians of wall and processor time in microseconds,
                                                              and the most memory that a run's processes had together, in KiB
       bench-alternate forget DIRECTORY                        takes its files out of the page cache
       bench-alternate fsync DIRECTORY COUNT                   median of write and fsync of 4 KiB, in microseconds
A command line is split at blanks; a command that fails ends the measurement.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["latency", rounds, commands @ ..] if !commands.is_empty() && commands.len() % 2 == 0 => {
            latency(rounds, commands)
        }
        ["cost", rounds, commands @ ..] if !commands.is_empty() && commands.len() % 3 == 0 => {
            number(rounds).and_then(|rounds| cost::measure(rounds, commands))
        }
        ["rate", total, parallel, command] => rate(total, parallel, command),
        ["forget", directory] => forget(Path::new(directory)).map_err(|e| format!("{directory}: {e}")),
        ["fsync", directory, count] => fsync(directory, count),
        _ => Err(USAGE.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench-alternate: error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("`{text}` is no count"))
}

fn once(line: &str) -> Result<Duration, String> {
    let mut words = line.split_whitespace();
    let program = words.next().ok_or("an empty command line")?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.spawn().and_then(|child| child.wait_with_output());
    let took = start.elapsed();
    let output = output.map_err(|e| format!("`{line}`: {e}"))?;
    if output.status.success() {
        return Ok(took);
    }
    Err(format!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Rounds of one run of each, so that a slow moment of the machine strikes all alike.
fn latency(rounds: &str, commands: &[&str]) -> Result<(), String> {
    let rounds = number(rounds)?;
    let mut times = vec![Vec::new(); commands.len() / 2];
    // A few rounds are meant to be long ones; they warm up nothing.
    let warm_up = if rounds < 10 { 0 } else { 3 };
    for round in 0..rounds + warm_up {
        for (command, times) in commands.chunks(2).zip(&mut times) {
            let took = once(command[1])?;
            if round >= warm_up {
                times.push(took.as_micros());
            }
        }
    }
    for (command, times) in commands.chunks(2).zip(&mut times) {
        times.sort_unstable();
        let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
        println!("{} {} {} {}", command[0], at(50), at(0), at(99));
    }
    Ok(())
}

fn rate(total: &str, parallel: &str, line: &str) -> Result<(), String> {
    let (total, parallel) = (number(total)?, number(parallel)?);
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let worker = || -> Result<(), String> {
            while next.fetch_add(1, Ordering::Relaxed) < total {
                once(line)?;
            }
            Ok(())
        };
        let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|w| w.join().map_err(|_| "a worker panicked".to_string())?)
    })?;
    println!("{}", start.elapsed().as_micros());
    Ok(())
}

/// Has the kernel let go of what it keeps of files in memory, where they are on the disk already.
fn forget(directory: &Path) -> std::io::Result<()> {
    use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
    for entry in std::fs::read_dir(directory)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            forget(&path)?;
        } else if kind.is_file() {
            let flags = OFlag::O_NOFOLLOW.bits();
            let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

fn fsync(directory: &str, count: &str) -> Result<(), String> {
    let path = std::path::Path::new(directory).join("fsync-probe");
    let probe = || -> std::io::Result<Vec<u128>> {
        let mut file = std::fs::File::create(&path)?;
        let mut times = Vec::new();
        for _ in 0..count.parse().unwrap_or(100) {
            let start = Instant::now();
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
            times.push(start.elapsed().as_micros());
        }
        std::fs::remove_file(&path)?;
        Ok(times)
    };
    let mut times = probe().map_err(|e| format!("{}: {e}", path.display()))?;
    times.sort_unstable();
    println!("{}", times[times.len() / 2]);
    Ok(())
}
