//! `berth sim`: runs both cores in the simulator.

use berth_client::error::Outcome;
use berth_client::out;

/// Run the cores of controller and agent in a simulated cluster with lost messages, delays and crashes
///
/// The same seed gives the same run. On a broken promise the log of events is printed with the seed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// First seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1)]
    runs: u64,
}

pub fn run(args: &Args) -> Outcome {
    for seed in args.seed..args.seed.saturating_add(args.runs) {
        match berth_sim::run(seed, &berth_sim::Options::default()) {
            Ok(report) => {
                let counts: Vec<String> =
                    report.counts.iter().map(|(what, n)| format!("{what} {n}")).collect();
                out::print(&format!("seed {seed}: good, {} events: {}\n", report.events, counts.join(", ")))?;
            }
            Err(failure) => {
                out::print(&format!("{}\n{failure}\n", failure.log.join("\n")))?;
                out::complain(&format!(
                    "berth: error: seed {seed} breaks a promise; repeat it with 'berth sim --seed {seed}'"
                ));
                return Ok(1);
            }
        }
    }
    Ok(0)
}
