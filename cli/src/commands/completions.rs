//! `berth completions`: prints a shell's completions.

use berth_client::error::Outcome;
use berth_model::options::{Command, Shell, completion_script};
use clap::ValueEnum;

/// Print the completion of berth, srun, sbatch and salloc for a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print those of apptainer, singularity, docker and enroot, too
    #[arg(long)]
    front_doors: bool,
    /// The shell
    shell: Kind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Bash,
    Zsh,
    Fish,
}

pub fn run(args: &Args) -> Outcome {
    let (shell, table) = match args.shell {
        Kind::Bash => (clap_complete::Shell::Bash, Shell::Bash),
        Kind::Zsh => (clap_complete::Shell::Zsh, Shell::Zsh),
        Kind::Fish => (clap_complete::Shell::Fish, Shell::Fish),
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut crate::definition(), "berth", &mut text);
    for door in crate::doors::DOORS.iter().filter(|_| args.front_doors) {
        clap_complete::generate(shell, &mut (door.definition)(), door.name, &mut text);
    }
    let mut text = String::from_utf8_lossy(&text).into_owned();
    for command in Command::ALL {
        text.push('\n');
        text.push_str(&completion_script(command, table));
    }
    berth_client::out::print(&text).map(|()| 0)
}
