//! Deterministic simulation of the production cores of controller and agent, from one seed: messages that are lost, late,
//! doubled or out of order, partitions for minutes and one way, controllers that die before, during and after a commit, commits
//! that fail or that nobody knows of, full disks, clocks that jump or stand still, agents and supervisors that die at any
//! moment, machines that reboot, join, leave and are removed, configurations that change. First safety, after each event; then, when the faults stop, liveness: everything ends, and
//! the records say what really ran.
#![forbid(unsafe_code)]

mod agents;
mod carried;
mod check;
mod components;
mod controller;
mod faults;
mod fencing;
mod joining;
mod journal;
mod lies;
mod machine;
mod network;
mod pins;
mod rng;
mod settings;
mod store;
mod truth;
mod unsure;
mod workload;
mod world;

use berth_model::time::Span;
pub use journal::{Entry, Header};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// What a run is like. How big it is and what goes wrong in it is drawn from the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether faults happen at all.
    pub faults: bool,
    /// Whether the controller is lost once and made anew of a backup. No node is declared down in such a run: nothing but the
    /// restore can then make a job run twice at a time.
    pub backups: bool,
    /// Virtual time that everything may take to end after the last fault.
    pub patience: Span,
    /// More events than this mean that something goes round in circles.
    pub max_events: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { faults: true, backups: false, patience: Span::from_mins(120), max_events: 1_000_000 }
    }
}

/// A run in which everything held.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Events that happened.
    pub events: u64,
    /// What was done, suffered and seen, by name.
    pub counts: BTreeMap<&'static str, u64>,
}

/// A run in which something did not hold.
#[derive(Clone, thiserror::Error)]
#[error("seed {seed}: {why}")]
pub struct Failure {
    /// The seed that reproduces it.
    pub seed: u64,
    /// What did not hold.
    pub why: String,
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Every kind of fault that a world can have, by the name under which a report counts it.
pub fn fault_kinds() -> impl Iterator<Item = &'static str> {
    faults::KINDS.iter().map(|(_, name)| *name)
}

/// Runs the world of `seed`. The same seed and options give the same run, on every machine.
///
/// # Errors
/// What did not hold.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    let mut steps = Steps::begin(seed, options, false)?;
    while steps.advance()? {}
    Ok(steps.report())
}

/// A run, event by event.
pub struct Steps {
    seed: u64,
    world: World,
}

impl Steps {
    /// The run of `seed` before its first event. With `log` every event is kept until [`Steps::entry`] takes it.
    ///
    /// # Errors
    /// A world that cannot be made.
    pub fn begin(seed: u64, options: &Options, log: bool) -> Result<Steps, Box<Failure>> {
        let world = World::new(seed, options, log).map_err(|why| Box::new(Failure { seed, why }))?;
        Ok(Steps { seed, world })
    }

    /// The first line of the run's log.
    pub fn header(&self) -> Header {
        Header {
            berth_sim: 1,
            version: env!("CARGO_PKG_VERSION").to_string(),
            seed: self.seed,
            faults: self.world.options.faults,
            backups: self.world.options.backups,
            max_events: self.world.options.max_events,
        }
    }

    /// Lets the next event happen; false when the run is over and everything held.
    ///
    /// # Errors
    /// What did not hold, an assertion of a core included. Nothing more can be made of the run then but [`Steps::entry`] and
    /// [`Steps::state`].
    pub fn advance(&mut self) -> Result<bool, Box<Failure>> {
        let world = AssertUnwindSafe(&mut self.world);
        let result = catch_unwind(|| {
            let world = world;
            world.0.advance()
        });
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(format!("assertion: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
        });
        result.map_err(|why| Box::new(Failure { seed: self.seed, why }))
    }

    /// The event that has just happened, where a log is kept.
    pub fn entry(&mut self) -> Option<Entry> {
        self.world.journal.as_mut()?.entries.pop()
    }

    /// All of the state, for people.
    pub fn state(&self) -> String {
        self.world.in_many_words()
    }

    /// What happened until now.
    pub fn report(&self) -> Report {
        Report { seed: self.seed, events: self.world.events, counts: self.world.counts.clone() }
    }
}

/// Writes the log of a run: its header, and one line for each event. What did not hold is the last line, and returned.
///
/// # Errors
/// As writing.
pub fn write_log(
    seed: u64,
    options: &Options,
    out: &mut dyn std::io::Write,
) -> std::io::Result<Result<Report, Box<Failure>>> {
    let mut steps = match Steps::begin(seed, options, true) {
        Ok(steps) => steps,
        Err(failure) => return Ok(Err(failure)),
    };
    writeln!(out, "{}", serde_json::to_string(&steps.header())?)?;
    loop {
        let result = steps.advance();
        if let Some(entry) = steps.entry() {
            writeln!(out, "{}", entry.line())?;
        }
        match result {
            Ok(true) => {}
            Ok(false) => return Ok(Ok(steps.report())),
            Err(failure) => {
                let last = serde_json::json!({ "broken": failure.why });
                writeln!(out, "{last}")?;
                return Ok(Err(failure));
            }
        }
    }
}
