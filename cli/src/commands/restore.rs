//! `berth restore`: makes a cluster of what `berth backup` saved.

use berth_client::error::{Failure, Kind, Outcome};
use berth_client::fmt::time;
use berth_client::out;
use berth_client::site::StateDir;
use std::path::{Path, PathBuf};

/// Make a cluster of what 'berth backup' saved
///
/// No controller may run in the state directory; agents may, and steps run on. After 'berth up', steps that the backup knows are
/// taken over, everything else that nodes run is ended, and jobs start when every node of the backup has come back
/// ('berth status' says which are missing). What was submitted after the backup is lost; its job ids are not given again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file
    file: PathBuf,
    /// Put a database that is there aside, with the keys that are replaced, under the date
    #[arg(long)]
    replace: bool,
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    let dir = StateDir::named_or_own(state)?;
    let label = time::iso(berth_client::now()).replace(':', "-");
    let what = berth_controller::backup::Restore {
        state_dir: &dir.0,
        file: &args.file,
        replace: args.replace,
        label: &label,
    };
    let restored = berth_controller::backup::restore(&what)
        .map_err(|e| Failure::new(Kind::Configuration, e.to_string()))?;
    let saved = &restored.manifest;
    let mut text = format!(
        "Cluster '{}' is restored in {} as it was at {}.\n",
        saved.cluster,
        dir.0.display(),
        time::iso(saved.time)
    );
    if let Some(aside) = &restored.aside {
        text.push_str(&format!("What it replaced is in {}.\n", aside.display()));
    }
    text.push_str(
        "Start it with 'berth up'; jobs start when all of its nodes have come back. Then look at 'berth node ls': machines that \
         were removed since are in it again, and keys that were exchanged are the old ones.\n",
    );
    out::print(&text)?;
    Ok(0)
}
