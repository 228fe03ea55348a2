//! Deterministic simulation of the production cores of controller and agent, from one seed: messages that are
//! lost, late, doubled or out of order; controllers that die before and after a commit; commits that fail or
//! that nobody knows of; agents that die and find their steps again; machines that reboot. First safety, after
//! each event; then, when the faults stop, liveness: everything ends, and the records say what really ran.
#![forbid(unsafe_code)]

mod check;
mod machine;
mod rng;
mod store;
mod workload;
mod world;

use berth_model::time::Span;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// What a run is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many things clients do.
    pub operations: u32,
    /// The time in which they do them, and in which faults happen.
    pub busy: Span,
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
        Options {
            operations: 60,
            busy: Span::from_mins(5),
            faults: true,
            backups: false,
            patience: Span::from_mins(240),
            max_events: 2_000_000,
        }
    }
}

/// A run in which everything held.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Events that happened.
    pub events: u64,
    /// What was done and what was suffered, by name.
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
    /// Every event up to there, one a line.
    pub log: Vec<String>,
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self} ({} lines of log)", self.log.len())
    }
}

/// Runs the world of `seed`. The same seed and options give the same run, on every machine.
///
/// # Errors
/// What did not hold, with the log of all events.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    match attempt(seed, options, false) {
        Ok(report) => Ok(report),
        // The log is written only for a run that fails: the run is the same a second time.
        Err(_) => match attempt(seed, options, true) {
            Err(failure) => Err(failure),
            Ok(report) => Err(Box::new(Failure {
                seed,
                why: format!(
                    "it failed once and passed once: the run depends on something else ({} events)",
                    report.events
                ),
                log: Vec::new(),
            })),
        },
    }
}

fn attempt(seed: u64, options: &Options, log: bool) -> Result<Report, Box<Failure>> {
    let fail = |why: String| Box::new(Failure { seed, why, log: Vec::new() });
    let mut world = World::new(seed, options, log).map_err(fail)?;
    // An assertion of a core is a finding like any other, and must leave the log behind.
    let result = catch_unwind(AssertUnwindSafe(|| both_phases(&mut world)));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("assertion: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
    });
    match result {
        Ok(()) => Ok(Report { seed, events: world.events, counts: world.counts }),
        Err(why) => Err(Box::new(world.failure(seed, why))),
    }
}

fn both_phases(world: &mut World) -> Result<(), String> {
    let start = world.now;
    world.run(start + world.options.busy, |_| false)?;
    world.calm()?;
    // What is down comes back, then clients ask for everything to end.
    world.run(world.now + Span::from_mins(3), |_| false)?;
    world.wishes_for_the_end();
    let settled = world.now + Span::from_secs(30);
    world.run(settled, |_| false)?;
    let end = world.now + world.options.patience;
    if !world.run(end, World::all_quiet)? {
        return Err(format!("not everything ended: {}", world.what_is_left()));
    }
    // The last changes are committed.
    world.run(world.now + Span::from_secs(1), |_| false)?;
    world.compare_records()
}
