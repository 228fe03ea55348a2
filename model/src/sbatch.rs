//! Batch scripts: what `sbatch` takes for one, and the `#SBATCH` lines in it.
//!
//! Directives are lines that begin with `#SBATCH` before the first line that is neither blank nor a comment.
//! Words may be quoted by `'`, `"` and `\`; an unquoted `#` begins a comment. `#PBS` and `#BSUB` lines are not
//! followed, and each is named in a warning unless `--ignore-pbs` is given.

use crate::bytes::ByteStr;
use crate::options::{Command, OptionError, Setting, Source, parse};

/// Largest script in bytes.
pub const MOST_BYTES: usize = 4 << 20;

/// What the directives of a script say.
#[derive(Clone, Debug, Default)]
pub struct Directives {
    /// The options, in order: of the first component.
    pub settings: Vec<Setting>,
    /// Those of further components, each after a line `#SBATCH hetjob`.
    pub components: Vec<Vec<Setting>>,
    /// One line for each directive of another system; not to be shown under `--ignore-pbs`.
    pub foreign: Vec<String>,
}

/// Refuses what is no script: nothing at all, no interpreter, line ends of DOS, NUL bytes, too large.
pub fn check(text: &[u8]) -> Result<(), OptionError> {
    let refuse =
        |lines: &[&str]| Err(OptionError::error(1, lines.iter().map(|l| (*l).to_string()).collect()));
    if text.is_empty() {
        return refuse(&["Batch script is empty!"]);
    }
    let interpreter = text
        .strip_prefix(b"#!")
        .and_then(|rest| rest.split(|b| *b == b'\n').next())
        .is_some_and(|line| !line.trim_ascii().is_empty());
    if !interpreter {
        return refuse(&[
            "This does not look like a batch script.  The first",
            "line must start with #! followed by the path to an interpreter.",
            "For instance: #!/bin/sh",
        ]);
    }
    if text.contains(&0) {
        return refuse(&[
            "Batch script contains a NUL byte",
            "it is a program or data; submit a script that runs it",
        ]);
    }
    if text.windows(2).any(|pair| pair == b"\r\n") {
        return refuse(&[
            "Batch script contains DOS line breaks (\\r\\n)",
            "instead of expected UNIX line breaks (\\n).",
            "Convert it: sed -i 's/\\r$//' SCRIPT",
        ]);
    }
    if text.len() > MOST_BYTES {
        return refuse(&[
            "Batch script is larger than 4 MiB",
            "keep the data in a file that the script reads",
        ]);
    }
    Ok(())
}

/// The script that `--wrap` makes.
pub fn wrap(command: &ByteStr) -> ByteStr {
    let mut text = b"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n".to_vec();
    text.extend_from_slice(&command.0);
    text.push(b'\n');
    ByteStr(text)
}

/// Reads the directives of a script.
///
/// # Errors
/// An unknown or refused option, a word that is no option, an open quote: each with the number of its line.
pub fn directives(text: &[u8]) -> Result<Directives, OptionError> {
    let mut out = Directives::default();
    for (at, line) in text.split(|b| *b == b'\n').enumerate() {
        let number = u32::try_from(at + 1).unwrap_or(u32::MAX);
        let bare = line.trim_ascii();
        if !bare.is_empty() && !bare.starts_with(b"#") {
            break;
        }
        for foreign in ["#PBS", "#BSUB"] {
            if line
                .strip_prefix(foreign.as_bytes())
                .is_some_and(|rest| rest.starts_with(b" ") || rest.starts_with(b"\t"))
            {
                let shown = String::from_utf8_lossy(bare).into_owned();
                out.foreign.push(format!(
                    "line {number} of the script is not followed: '{shown}'; write it as #SBATCH, or give --ignore-pbs"
                ));
            }
        }
        let Some(rest) = line.strip_prefix(b"#SBATCH") else { continue };
        let here = |line: &str| {
            OptionError::error(
                255,
                vec![line.to_string(), format!("it stands in line {number} of the script")],
            )
        };
        if !rest.is_empty() && !rest[0].is_ascii_whitespace() {
            let shown = String::from_utf8_lossy(line);
            return Err(here(&format!("'{shown}': a blank must follow #SBATCH")));
        }
        let words = split(rest).ok_or_else(|| here("a quote is not closed"))?;
        if let [word] = words.as_slice()
            && (word.0 == b"hetjob" || word.0 == b"packjob")
        {
            out.components.push(Vec::new());
            continue;
        }
        let read = parse(Command::Sbatch, &words, Source::Script(number)).map_err(|mut error| {
            error.lines.push(format!("it stands in line {number} of the script"));
            error
        })?;
        if let Some(word) = read.rest.first() {
            return Err(here(&format!("Invalid directive found in batch script: {}", word.display())));
        }
        out.components.last_mut().unwrap_or(&mut out.settings).extend(read.settings);
    }
    Ok(out)
}

/// The words of a directive, unquoted; `None` where a quote is not closed.
fn split(line: &[u8]) -> Option<Vec<ByteStr>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'#' => break,
            b if b.is_ascii_whitespace() => words.extend(word.take().map(ByteStr)),
            b'\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next()? {
                        b'\'' => break,
                        b => word.push(b),
                    }
                }
            }
            b'"' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next()? {
                        b'"' => break,
                        // Within double quotes a backslash escapes a quote or itself.
                        b'\\' => match bytes.next()? {
                            b @ (b'"' | b'\\') => word.push(b),
                            b => word.extend_from_slice(&[b'\\', b]),
                        },
                        b => word.push(b),
                    }
                }
            }
            b'\\' => word.get_or_insert_default().push(bytes.next()?),
            b => word.get_or_insert_default().push(b),
        }
    }
    words.extend(word.map(ByteStr));
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use crate::options::{Context, SubmitOptions, resolve};
    use crate::time::Time;
    use proptest::prelude::*;

    fn options(script: &str) -> Result<SubmitOptions, OptionError> {
        check(script.as_bytes())?;
        let context = Context { now: Time(0), zone: jiff::tz::TimeZone::UTC };
        resolve(Command::Sbatch, directives(script.as_bytes())?.settings, &context)
    }

    #[test]
    fn directives_stand_before_the_first_command() {
        let read = options(
            "#!/bin/bash\n# a comment\n##SBATCH -n 9\n#SBATCH -J cjob # trailing comment\n\
             #SBATCH --comment=\"a b \\\"q\\\" c\"\n# SBATCH -n 8\n\n   \n#SBATCH -t 7 -N 1\n#sbatch -n 6\n #SBATCH -n 5\n\
             echo hi\n#SBATCH -n 4\n",
        )
        .unwrap();
        assert_eq!(read.job_name.as_deref(), Some("cjob"));
        assert_eq!(read.comment.as_deref(), Some("a b \"q\" c"));
        assert_eq!(read.time.map(|t| t.to_string()).as_deref(), Some("00:07:00"));
        assert_eq!(read.ntasks, None);
    }

    #[test]
    fn words_are_unquoted_as_in_a_shell() {
        let read = options(
            "#!/bin/bash\n#SBATCH --comment='single quoted # hash' -J 'two words'\n#SBATCH --output=o\\#%j.out\ntrue\n",
        )
        .unwrap();
        assert_eq!(read.comment.as_deref(), Some("single quoted # hash"));
        assert_eq!(read.job_name.as_deref(), Some("two words"));
        assert_eq!(read.output, Some(ByteStr::from("o#%j.out")));
        let read = options("#!/usr/bin/env python3\n#SBATCH -J pyjob -n 2\nimport os\n").unwrap();
        assert_eq!(read.ntasks, Some(2));
    }

    #[test]
    fn what_is_no_script_is_refused_in_slurms_words() {
        for (script, first) in [
            ("", "Batch script is empty!"),
            ("echo hi\n", "This does not look like a batch script.  The first"),
            ("#!\necho\n", "This does not look like a batch script.  The first"),
            ("#!/bin/bash\r\necho hi\r\n", "Batch script contains DOS line breaks (\\r\\n)"),
            ("#!/bin/sh\n\0", "Batch script contains a NUL byte"),
        ] {
            let error = check(script.as_bytes()).unwrap_err();
            assert_eq!((error.lines[0].as_str(), error.exit_code), (first, 1), "{script}");
        }
        assert!(check(&[b"#!/bin/sh\n".as_slice(), &[b'a'; MOST_BYTES]].concat()).is_err());
        assert!(check(wrap(&ByteStr::from("echo a b")).0.as_slice()).is_ok());
    }

    #[test]
    fn a_bad_directive_is_fatal_and_names_its_line() {
        for (directive, first) in [
            ("--bogus=1", "unrecognized option '--bogus=1'"),
            ("-n", "option requires an argument -- 'n'"),
            ("--qos=high", "--qos (line 2 of the script) is not supported by this release"),
            ("word", "Invalid directive found in batch script: word"),
            ("-J x word", "Invalid directive found in batch script: word"),
            ("-J 'x", "a quote is not closed"),
            ("hetjob -n2", "Invalid directive found in batch script: hetjob"),
            ("--help", "--help (line 2 of the script) belongs on the command line"),
        ] {
            let error = options(&format!("#!/bin/sh\n#SBATCH {directive}\n")).unwrap_err();
            assert_eq!((error.lines[0].as_str(), error.exit_code), (first, 255), "{directive}");
            assert!(error.to_string().contains("line 2 of the script"), "{error}");
        }
        let value = options("#!/bin/sh\n\n#SBATCH --time=bad\n").unwrap_err();
        assert_eq!(value.lines[0], "Invalid --time specification");
        assert!(value.lines[1].starts_with("line 3 of the script: 'bad' is not a time limit"));
        assert!(options("#!/bin/sh\n#SBATCH-n 3\n").is_err());
    }

    #[test]
    fn components_are_separated_by_a_line_of_their_own() {
        let script = b"#!/bin/sh\n#SBATCH -n4\n#SBATCH hetjob\n#SBATCH -n1 -c2\n#SBATCH packjob\ntrue\n#SBATCH hetjob\n";
        let read = directives(script).unwrap();
        assert_eq!((read.settings.len(), read.components.len()), (1, 2));
        assert_eq!((read.components[0].len(), read.components[1].len()), (2, 0));
    }

    #[test]
    fn directives_of_other_systems_are_named() {
        let read = directives(b"#!/bin/sh\n#PBS -N x\n#BSUB -J y\n#PBSPRO\necho\n#PBS -N z\n").unwrap();
        assert_eq!(read.foreign.len(), 2);
        assert!(read.foreign[0].starts_with("line 2 of the script is not followed: '#PBS -N x'"));
    }

    proptest! {
        #[test]
        fn no_script_makes_it_panic(lines in proptest::collection::vec(soup(), 0..6)) {
            let script: String = lines.iter().map(|line| format!("#SBATCH {line}\n")).collect();
            let _ = options(&format!("#!/bin/sh\n{script}"));
            let _ = directives(lines.concat().as_bytes());
        }

        #[test]
        fn quoted_words_come_back(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 1..5)) {
            // Each byte is escaped, and an empty word is a pair of quotes.
            let mut line = Vec::new();
            for word in &words {
                line.push(b' ');
                if word.is_empty() {
                    line.extend_from_slice(b"''");
                }
                line.extend(word.iter().flat_map(|b| [b'\\', *b]));
            }
            let expected: Vec<ByteStr> = words.into_iter().map(ByteStr).collect();
            prop_assert_eq!(split(&line), Some(expected));
        }
    }
}
