//! `berth man`: writes the man pages.

use berth_client::error::{Failure, Outcome};
use berth_model::options::{Command, man_page};
use std::path::{Path, PathBuf};

/// Write the man pages of berth and of the cluster's commands into a directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write those of apptainer, singularity, docker and enroot, too
    #[arg(long)]
    front_doors: bool,
    /// Directory for the pages; made if it is not there
    dir: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let dir = &args.dir;
    let failed = |e: std::io::Error| {
        Failure::user(format!("{}: {e}; choose a directory that you may write", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(crate::definition(), dir).map_err(failed)?;
    for door in crate::doors::DOORS.iter().filter(|_| args.front_doors) {
        clap_mangen::generate_to((door.definition)(), dir).map_err(failed)?;
    }
    for command in Command::ALL {
        write(dir, command.name(), &man_page(command, berth_client::VERSION))?;
    }
    for command in berth_client::COMMANDS.iter().filter(|c| !c.submits) {
        write(dir, command.name, &page(command.name, &(command.help)()))?;
    }
    Ok(0)
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, text)
        .map_err(|e| Failure::user(format!("{}: {e}; choose a directory that you may write", path.display())))
}

/// A help text as a man page.
fn page(name: &str, help: &str) -> String {
    let escaped = |line: &str| {
        let text = line.replace('\\', "\\e").replace('-', "\\-");
        if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
    };
    let (about, options) = help.split_once("\nOptions:\n").unwrap_or((help, ""));
    let mut lines = about.lines();
    let first = lines.next().unwrap_or_default();
    let mut out = format!(
        ".TH {} 1 \"\" \"berth {}\"\n.SH NAME\n{name} \\- {}\n.SH DESCRIPTION\n.nf\n",
        name.to_uppercase(),
        berth_client::VERSION,
        escaped(first)
    );
    lines.for_each(|l| out.push_str(&(escaped(l) + "\n")));
    out.push_str(".SH OPTIONS\n.nf\n");
    options.lines().for_each(|l| out.push_str(&(escaped(l) + "\n")));
    out
}
