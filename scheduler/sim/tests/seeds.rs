//! Many worlds; `BERTH_SIM_SEED` runs one of them, `BERTH_SIM_SEEDS` says how many.

#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

use berth_sim::{Options, run};
use std::collections::BTreeMap;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn check(seeds: impl Iterator<Item = u64>, options: &Options) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for seed in seeds {
        match run(seed, options) {
            Ok(report) => {
                for (name, n) in report.counts {
                    *counts.entry(name).or_default() += n;
                }
            }
            Err(failure) => {
                let log = std::env::temp_dir().join(format!("berth-sim-{}.log", failure.seed));
                std::fs::write(&log, failure.log.join("\n")).unwrap();
                panic!("{failure}\nevery event is in {}", log.display());
            }
        }
    }
    counts
}

#[test]
fn worlds_with_faults_stay_safe_and_come_to_rest() {
    let options = Options::default();
    if let Some(seed) = number("BERTH_SIM_SEED") {
        check(std::iter::once(seed), &options);
        return;
    }
    let counts = check(0..number("BERTH_SIM_SEEDS").unwrap_or(150), &options);
    println!("{counts:?}");
    // A simulation in which nothing happens proves nothing.
    for what in
        ["controller crashes", "failed commits", "agent crashes", "reboots", "cut connections", "steps run"]
    {
        assert!(counts.get(what).is_some_and(|n| *n > 20), "too little happened: {what} in {counts:?}");
    }
}

#[test]
fn a_controller_that_is_made_of_a_backup_runs_nothing_twice() {
    let options = Options { backups: true, ..Options::default() };
    if let Some(seed) = number("BERTH_SIM_SEED") {
        check(std::iter::once(seed), &options);
        return;
    }
    let counts = check(0..number("BERTH_SIM_SEEDS").unwrap_or(100), &options);
    println!("{counts:?}");
    assert!(counts.get("restored backups").is_some_and(|n| *n > 20), "too few restores: {counts:?}");
}

#[test]
fn worlds_without_faults_come_to_rest() {
    let options = Options { faults: false, ..Options::default() };
    check(1000..1040, &options);
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    let options = Options::default();
    let (a, b) = (run(7, &options).unwrap(), run(7, &options).unwrap());
    assert_eq!((a.events, a.counts), (b.events, b.counts));
}
