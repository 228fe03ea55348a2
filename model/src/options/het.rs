//! Components of a job: a command line in parts, separated by a lone `:`, and what a later part has of an earlier one.

use super::resolve::{OptionError, Setting, Source};
use super::row::Command;
use super::words::{Words, parse};
use crate::bytes::ByteStr;

/// Options of one component that the next ones have, too, unless they say otherwise: Slurm's list. What a component
/// needs (tasks, nodes, CPUs, memory, devices, partition) and its container are its own.
const HANDED_ON: &[&str] = &[
    "account",
    "begin",
    "bell",
    "chdir",
    "comment",
    "disable-status",
    "distribution",
    "error",
    "exclude",
    "explain",
    "export",
    "export-file",
    "get-user-env",
    "hold",
    "ignore-pbs",
    "immediate",
    "input",
    "job-name",
    "jobid",
    "kill-command",
    "kill-on-bad-exit",
    "label",
    "lost-after",
    "mpi",
    "nice",
    "no-bell",
    "no-requeue",
    "no-shell",
    "open-mode",
    "output",
    "parsable",
    "propagate",
    "pty",
    "pytorch",
    "quiet",
    "quit-on-interrupt",
    "requeue",
    "signal",
    "task-epilog",
    "task-prolog",
    "test-only",
    "time",
    "unbuffered",
    "verbose",
    "wait",
];

fn is_colon(word: &ByteStr) -> bool {
    word.0 == b":"
}

/// Reads a command line in parts. Of `sbatch` and `salloc` a part is options alone, and what follows those of the last one is
/// the script or the command, with every `:` that it has; of `srun` each part may have a program, whose words end at the
/// next `:`.
///
/// # Errors
/// As [`parse`]; and of a part that nothing follows.
pub fn parse_components(
    command: Command,
    words: &[ByteStr],
    source: Source,
) -> Result<Vec<Words>, OptionError> {
    let mut parts = Vec::new();
    let mut left = words.to_vec();
    loop {
        let mut part = parse(command, &left, source)?;
        let colon = match command {
            // The last word of all is an argument, as in `sh -c :`.
            Command::Srun => part.rest.iter().position(is_colon).filter(|at| at + 1 < part.rest.len()),
            Command::Sbatch | Command::Salloc => part.rest.first().filter(|word| is_colon(word)).map(|_| 0),
        };
        let Some(at) = colon.filter(|_| part.info.is_none()) else {
            parts.push(part);
            return Ok(parts);
        };
        left = part.rest.split_off(at).split_off(1);
        parts.push(part);
        if left.is_empty() {
            let lines = vec![
                "nothing follows the last ':'".to_string(),
                "a ':' alone separates the components of a job: write the options of the next one behind it"
                    .to_string(),
            ];
            return Err(OptionError::error(255, lines));
        }
    }
}

/// Gives each part what the ones before it hand on.
pub fn hand_on(parts: &mut [Vec<Setting>]) {
    for at in 1..parts.len() {
        let (before, rest) = parts.split_at_mut(at);
        let (Some(before), Some(part)) = (before.last(), rest.first_mut()) else { continue };
        let own = |setting: &&Setting| {
            HANDED_ON.contains(&setting.row.long) && !part.iter().any(|s| s.row.key == setting.row.key)
        };
        let mut all: Vec<Setting> = before.iter().filter(own).cloned().collect();
        all.append(part);
        *part = all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Context, SubmitOptions, resolve};
    use crate::time::Time;

    fn words(line: &str) -> Vec<ByteStr> {
        line.split(' ').map(ByteStr::from).collect()
    }

    fn read(command: Command, line: &str) -> Vec<(SubmitOptions, String)> {
        let mut parts = parse_components(command, &words(line), Source::CommandLine).unwrap();
        let mut settings: Vec<Vec<Setting>> =
            parts.iter_mut().map(|part| std::mem::take(&mut part.settings)).collect();
        hand_on(&mut settings);
        let context = Context { now: Time(0), zone: jiff::tz::TimeZone::UTC };
        let resolved = settings.into_iter().map(|s| resolve(command, s, &context).unwrap());
        let rest = parts
            .iter()
            .map(|p| p.rest.iter().map(|w| w.display().into_owned()).collect::<Vec<_>>().join(" "));
        resolved.zip(rest).collect()
    }

    #[test]
    fn a_line_without_components_is_one_part() {
        let one = read(Command::Srun, "-n2 echo a");
        assert_eq!((one.len(), one[0].0.ntasks, one[0].1.as_str()), (1, Some(2), "echo a"));
    }

    #[test]
    fn each_part_has_its_own_needs_and_shares_the_rest() {
        let parts = read(Command::Sbatch, "-J x -t 7 -n4 -c2 : -n1 : -J y -N2 job.sh a : b");
        let seen: Vec<_> =
            parts.iter().map(|(o, _)| (o.job_name.as_deref(), o.ntasks, o.cpus_per_task)).collect();
        assert_eq!(
            seen,
            [(Some("x"), Some(4), Some(2)), (Some("x"), Some(1), None), (Some("y"), None, None)]
        );
        assert!(parts.iter().all(|(o, _)| o.time.is_some_and(|t| t.to_string() == "00:07:00")));
        assert_eq!(parts[2].1, "job.sh a : b", "what the script is given is its own");
    }

    #[test]
    fn each_part_of_srun_may_have_a_program() {
        let parts = read(Command::Srun, "--label -n2 : -n1 hostname -f : date");
        assert_eq!(
            parts.iter().map(|(_, rest)| rest.as_str()).collect::<Vec<_>>(),
            ["", "hostname -f", "date"]
        );
        assert!(parts.iter().all(|(o, _)| o.label));
        assert_eq!(parts.iter().map(|(o, _)| o.ntasks).collect::<Vec<_>>(), [Some(2), Some(1), None]);
    }

    #[test]
    fn a_part_without_anything_is_an_error() {
        let error = parse_components(Command::Sbatch, &words("-n2 :"), Source::CommandLine).unwrap_err();
        assert_eq!((error.lines[0].as_str(), error.exit_code), ("nothing follows the last ':'", 255));
        assert_eq!(read(Command::Srun, "sh -c :")[0].1, "sh -c :");
    }
}
