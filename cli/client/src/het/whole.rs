//! Options that say something of a whole step over several components: what a later part says otherwise of them would be lost.

use crate::error::Failure;
use berth_model::ByteStr;
use berth_model::options::SubmitOptions;

/// Whether two parts say different things.
type Differs = fn(&SubmitOptions, &SubmitOptions) -> bool;

/// By name, and as what they are compared. A part has what the one before it says, unless it says otherwise itself.
const WHOLE: &[(&str, Differs)] = &[
    ("--disable-status", |a, b| a.disable_status != b.disable_status),
    ("--immediate", |a, b| a.immediate != b.immediate),
    ("--jobid", |a, b| a.jobid != b.jobid),
    ("--kill-on-bad-exit", |a, b| a.kill_on_bad_exit != b.kill_on_bad_exit),
    ("--label", |a, b| a.label != b.label),
    ("--pty", |a, b| (a.pty, a.pty_from) != (b.pty, b.pty_from)),
    ("--quiet", |a, b| a.quiet != b.quiet),
    ("--quit-on-interrupt", |a, b| a.quit_on_interrupt != b.quit_on_interrupt),
    ("--test-only", |a, b| a.test_only != b.test_only),
    ("--unbuffered", |a, b| a.unbuffered != b.unbuffered),
    ("--wait", |a, b| a.wait_seconds != b.wait_seconds),
    // One without runs with the first part's: these are handed on to nobody.
    ("--prolog", |a, b| b.prolog.is_some() && a.prolog != b.prolog),
    ("--epilog", |a, b| b.epilog.is_some() && a.epilog != b.epilog),
    ("--input", |a, b| lost(a.input.as_ref(), b.input.as_ref())),
    ("--output", |a, b| lost(a.output.as_ref(), b.output.as_ref())),
    ("--error", |a, b| lost(a.error.as_ref(), b.error.as_ref())),
];

/// The number of the one task whose stream passes through `srun`.
fn task(stream: Option<&ByteStr>) -> Option<&ByteStr> {
    stream.filter(|name| name.0.iter().all(u8::is_ascii_digit))
}

/// Whether a later part has another task's stream pass through `srun` than the first part, which decides that for all. What goes to a file
/// or nowhere, the part's nodes see to themselves.
fn lost(first: Option<&ByteStr>, later: Option<&ByteStr>) -> bool {
    let passes = later.is_none_or(|name| name.0 == b"all") || task(later).is_some();
    passes && task(first) != task(later)
}

/// Refuses a later part that says something of the whole step which the first one does not say.
///
/// # Errors
/// Which option, in which part.
pub(crate) fn refuse_in_later_parts(all: &[SubmitOptions]) -> Result<(), Failure> {
    let Some((first, later)) = all.split_first() else { return Ok(()) };
    for (part, options) in later.iter().enumerate() {
        if let Some((name, _)) = WHOLE.iter().find(|(_, differs)| differs(first, options)) {
            return Err(Failure::user(format!(
                "{name} is about the whole step, and part {} says otherwise of it than the first one: write it in the first part alone, \
                 before the first ':'",
                part + 2
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::het;
    use berth_model::options::{self, Command, Source};

    fn said(line: &str) -> Option<String> {
        let words: Vec<ByteStr> = line.split(' ').map(ByteStr::from).collect();
        let parts = options::parse_components(Command::Srun, &words, Source::CommandLine).unwrap();
        let all = het::resolve(Command::Srun, parts, Vec::new()).unwrap();
        refuse_in_later_parts(&all).err().map(|failure| failure.text)
    }

    #[test]
    fn what_is_about_the_whole_step_stands_in_its_first_part() {
        for option in [
            "--label",
            "--unbuffered",
            "--kill-on-bad-exit",
            "--wait=5",
            "--disable-status",
            "--quit-on-interrupt",
            "--pty",
            "--quiet",
            "--test-only",
            "--immediate=3",
            "--jobid=12",
            "--prolog=/bin/true",
            "--epilog=/bin/true",
            "--input=1",
            "--output=1",
            "--error=0",
        ] {
            let name = option.split('=').next().unwrap();
            let why = said(&format!("-n1 a : {option} b")).unwrap_or_default();
            assert!(why.starts_with(name) && why.contains("part 2"), "{option}: {why}");
            let why = said(&format!("-n1 a : b : {option} c")).unwrap_or_default();
            assert!(why.starts_with(name) && why.contains("part 3"), "{option}: {why}");
            assert_eq!(said(&format!("{option} a : -n2 b : -n1 c")), None, "{option}: all parts have it");
            assert_eq!(said(&format!("{option} a : {option} b")), None, "{option}: it says the same");
        }
        assert!(said("-K a : -K0 b").is_some_and(|why| why.contains("--kill-on-bad-exit")));
        assert!(
            said("-o 0 a : -o all b").is_some_and(|why| why.contains("--output")),
            "it would not be seen"
        );
    }

    #[test]
    fn what_is_about_a_part_stands_in_each() {
        for line in [
            "-n1 -o one a : -n2 -o two b",
            "-o 0 a : -o two b",
            "-n1 a : -o none -i /dev/null b",
            "-n1 -c1 -w n1 a : -N2 --mem=10 --cpu-bind=cores --overlap b",
            "--export=A a : --export=B --chdir=/ -J other b",
        ] {
            assert_eq!(said(line), None, "{line}");
        }
    }
}
