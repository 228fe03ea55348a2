//! `berth sim`: runs both cores in the simulator, writes what happened, and steps through it.

use berth_client::error::{Failure, Outcome};
use berth_client::out;
use berth_sim::{Entry, Header, Options, Steps};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Run the cores of controller and agent in a simulated cluster with lost messages, partitions, full disks and crashes
///
/// The same seed gives the same run, and the same log. On a broken promise the seed is printed, and how to step through what led
/// there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// First seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Without any fault
    #[arg(long)]
    calm: bool,
    /// With a controller that is lost once and made anew of a backup
    #[arg(long)]
    backups: bool,
    /// A run of more events than this counts as one that goes round in circles
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    most_events: u64,
    /// Write every event of the seed into FILE: one line of JSON each, with time, sender, receiver, what was done upon it, and the
    /// state after it
    #[arg(long, value_name = "FILE", conflicts_with = "runs")]
    log: Option<PathBuf>,
    /// Read such a log and show it for people; the run is made again beside it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "runs", "calm", "backups", "most_events", "log"])]
    replay: Option<PathBuf>,
    /// Stop after event N, and show all of the state there
    #[arg(long, value_name = "N", requires = "replay")]
    until: Option<u64>,
    /// Wait after each event: Enter goes on, a number goes on to that event, /TEXT to the next event with that text, s shows all
    /// of the state, q ends. With --until from that event on
    #[arg(long, requires = "replay")]
    step: bool,
}

pub fn run(args: &Args) -> Outcome {
    if let Some(path) = &args.replay {
        return replay(path, args.until, args.step);
    }
    let options = Options {
        faults: !args.calm,
        backups: args.backups,
        max_events: args.most_events,
        ..Options::default()
    };
    for seed in args.seed..args.seed.saturating_add(args.runs) {
        let result = match &args.log {
            Some(path) => write_log(seed, &options, path)?,
            None => berth_sim::run(seed, &options),
        };
        match result {
            Ok(report) => {
                let counts: Vec<String> =
                    report.counts.iter().map(|(what, n)| format!("{what} {n}")).collect();
                out::print(&format!("seed {seed}: good, {} events: {}\n", report.events, counts.join(", ")))?;
            }
            Err(failure) => {
                out::complain(&format!("berth: error: a promise is broken: {failure}"));
                out::complain(&match &args.log {
                    Some(path) => {
                        format!("step through it with 'berth sim --replay {} --step'", path.display())
                    }
                    None => {
                        format!("write down what led there with '{}'", written_by(seed, &options))
                    }
                });
                return Ok(1);
            }
        }
    }
    Ok(0)
}

/// The command that writes the log of a run.
fn written_by(seed: u64, options: &Options) -> String {
    let mut command = format!("berth sim --seed {seed}");
    if !options.faults {
        command += " --calm";
    }
    if options.backups {
        command += " --backups";
    }
    if options.max_events != Options::default().max_events {
        command += &format!(" --most-events {}", options.max_events);
    }
    command + " --log FILE"
}

type Result<T> = std::result::Result<T, Failure>;

fn write_log(
    seed: u64,
    options: &Options,
    path: &Path,
) -> Result<std::result::Result<berth_sim::Report, Box<berth_sim::Failure>>> {
    let failed = |e| Failure::user(format!("cannot write {}: {e}; give --log another file", path.display()));
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    let result = berth_sim::write_log(seed, options, &mut file).map_err(failed)?;
    file.flush().map_err(failed)?;
    Ok(result)
}

/// Shows a log, with the run beside it for what the log does not have.
fn replay(path: &Path, until: Option<u64>, step: bool) -> Outcome {
    let failed =
        |e| Failure::user(format!("cannot read {}: {e}; 'berth sim --log FILE' writes one", path.display()));
    let mut lines = BufReader::new(File::open(path).map_err(failed)?).lines();
    let first = lines.next().transpose().map_err(failed)?.unwrap_or_default();
    let header: Header = serde_json::from_str(&first).map_err(|_| {
        Failure::user(format!(
            "{} is no log of the simulator; 'berth sim --log FILE' writes one",
            path.display()
        ))
    })?;
    let options = Options {
        faults: header.faults,
        backups: header.backups,
        max_events: header.max_events,
        ..Options::default()
    };
    let mut steps =
        Steps::begin(header.seed, &options, true).map_err(|failure| Failure::user(failure.to_string()))?;
    out::print(&format!("seed {}, written by version {}\n", header.seed, header.version))?;
    let mut wanted = match until {
        Some(n) => Wanted::Number(n),
        None if step => Wanted::Next,
        None => Wanted::Number(u64::MAX),
    };
    // Up to the event that was asked for there is nothing to look at.
    let mut silent = until.is_some();
    loop {
        let result = steps.advance();
        if let Some(entry) = steps.entry() {
            let line = lines.next().transpose().map_err(failed)?;
            if line.as_deref() != Some(&entry.line()) {
                return Err(Failure::user(format!(
                    "from event {} on this program runs otherwise than that which wrote the log: read it with that version {}, \
                     or write it anew with '{}'",
                    entry.n,
                    header.version,
                    written_by(header.seed, &options)
                )));
            }
            let here = wanted.is(&entry);
            if !silent || here {
                out::print(&shown(&entry))?;
            }
            if here {
                if silent {
                    out::print(&format!("{}\n", steps.state()))?;
                }
                silent = false;
                if !step {
                    return Ok(0);
                }
                match ask(&steps)? {
                    Some(next) => wanted = next,
                    None => return Ok(0),
                }
            }
        }
        match result {
            Ok(true) => {}
            Ok(false) => {
                out::print("the end: everything held\n")?;
                return Ok(0);
            }
            Err(failure) => {
                out::print(&format!("{}\nbroken: {}\n", steps.state(), failure.why))?;
                return Ok(1);
            }
        }
    }
}

/// Up to which event the run goes on.
enum Wanted {
    Next,
    Number(u64),
    Text(String),
}

impl Wanted {
    fn is(&self, entry: &Entry) -> bool {
        match self {
            Wanted::Next => true,
            Wanted::Number(n) => entry.n >= *n,
            Wanted::Text(text) => entry.line().contains(text),
        }
    }
}

fn shown(entry: &Entry) -> String {
    let mut text =
        format!("{:>6} {:>12} {} -> {}: {}\n", entry.n, entry.at, entry.from, entry.to, entry.event);
    for line in &entry.does {
        text += &format!("                      {line}\n");
    }
    text + &format!("                    = {}\n", entry.state)
}

/// What whoever steps through wants next; `None` when that is the end.
fn ask(steps: &Steps) -> Result<Option<Wanted>> {
    loop {
        out::print("> ")?;
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        match read.map_err(|e| Failure::user(format!("cannot read what to do next: {e}")))? {
            0 => return Ok(None),
            _ => match line.trim() {
                "" => return Ok(Some(Wanted::Next)),
                "q" => return Ok(None),
                "s" => out::print(&format!("{}\n", steps.state()))?,
                word => match (word.strip_prefix('/'), word.parse()) {
                    (Some(text), _) => return Ok(Some(Wanted::Text(text.to_string()))),
                    (None, Ok(n)) => return Ok(Some(Wanted::Number(n))),
                    (None, Err(_)) => out::print("Enter, a number, /TEXT, s or q\n")?,
                },
            },
        }
    }
}
