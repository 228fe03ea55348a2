//! Signals by name and number, and `--signal=[B:]SIGNAL[@SECONDS]`.

use crate::grammar::{BadText, digits};
use crate::spec::WarnSignal;
use crate::time::Span;
use std::fmt;

/// Linux's numbers on x86-64 and AArch64, the short name, and what `strsignal(3)` calls it.
const SIGNALS: &[(i32, &str, &str)] = &[
    (1, "HUP", "Hangup"),
    (2, "INT", "Interrupt"),
    (3, "QUIT", "Quit"),
    (4, "ILL", "Illegal instruction"),
    (5, "TRAP", "Trace/breakpoint trap"),
    (6, "ABRT", "Aborted"),
    (7, "BUS", "Bus error"),
    (8, "FPE", "Floating point exception"),
    (9, "KILL", "Killed"),
    (10, "USR1", "User defined signal 1"),
    (11, "SEGV", "Segmentation fault"),
    (12, "USR2", "User defined signal 2"),
    (13, "PIPE", "Broken pipe"),
    (14, "ALRM", "Alarm clock"),
    (15, "TERM", "Terminated"),
    (16, "STKFLT", "Stack fault"),
    (17, "CHLD", "Child exited"),
    (18, "CONT", "Continued"),
    (19, "STOP", "Stopped (signal)"),
    (20, "TSTP", "Stopped"),
    (21, "TTIN", "Stopped (tty input)"),
    (22, "TTOU", "Stopped (tty output)"),
    (23, "URG", "Urgent I/O condition"),
    (24, "XCPU", "CPU time limit exceeded"),
    (25, "XFSZ", "File size limit exceeded"),
    (26, "VTALRM", "Virtual timer expired"),
    (27, "PROF", "Profiling timer expired"),
    (28, "WINCH", "Window changed"),
    (29, "IO", "I/O possible"),
    (30, "PWR", "Power failure"),
    (31, "SYS", "Bad system call"),
];
/// Largest signal number, the last real-time signal.
pub const LAST: i32 = 64;

/// The number of a signal given as a number, `USR1` or `SIGUSR1`, in either case.
pub fn parse(text: &str) -> Result<i32, BadText> {
    if let Some(n) = digits(text).and_then(|n| i32::try_from(n).ok()).filter(|n| (1..=LAST).contains(n)) {
        return Ok(n);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS.iter().find(|(_, known, _)| *known == name).map(|(n, _, _)| *n).ok_or_else(|| {
        BadText::new(text, "a signal", "write a name such as USR1 or SIGUSR1, or a number from 1 to 64")
    })
}

/// The name without `SIG`, or the number where there is no name.
pub fn name(signal: i32) -> String {
    SIGNALS
        .iter()
        .find(|(n, _, _)| *n == signal)
        .map_or_else(|| signal.to_string(), |(_, name, _)| name.to_string())
}

/// What a shell says of a process that it ended: `Killed`, `Segmentation fault`.
pub fn describe(signal: i32) -> String {
    match SIGNALS.iter().find(|(n, _, _)| *n == signal) {
        Some((_, _, text)) => (*text).to_string(),
        None if (34..=LAST).contains(&signal) => format!("Real-time signal {}", signal - 34),
        None => format!("Unknown signal {signal}"),
    }
}

/// Seconds before the limit when `@SECONDS` is not given.
const DEFAULT_BEFORE: u64 = 60;

/// `[B:]SIGNAL[@SECONDS]`; at most 65,535 seconds before the limit.
pub fn parse_warning(text: &str) -> Result<WarnSignal, BadText> {
    const WHAT: &str = "a warning signal";
    let (flags, rest) = text.split_once(':').unwrap_or(("", text));
    let batch_only = match flags.to_ascii_uppercase().as_str() {
        "" if !text.starts_with(':') => false,
        "B" => true,
        f if f.contains('R') => {
            return Err(BadText::new(
                text,
                WHAT,
                "R: is about reservations, which do not exist here; leave it out",
            ));
        }
        _ => return Err(BadText::new(text, WHAT, "write [B:]SIGNAL[@SECONDS]")),
    };
    let (signal, before) = match rest.split_once('@') {
        Some((signal, seconds)) => (signal, digits(seconds)),
        None => (rest, Some(DEFAULT_BEFORE)),
    };
    let before = before.and_then(|s| i64::try_from(s).ok()).filter(|s| *s <= 65_535).ok_or_else(|| {
        BadText::new(text, WHAT, "after @ stand seconds before the time limit, at most 65535")
    })?;
    let signal = parse(signal).map_err(|e| BadText::new(text, WHAT, e.to_string()))?;
    Ok(WarnSignal { signal, before: Span::from_secs(before), batch_only })
}

impl fmt::Display for WarnSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = if self.batch_only { "B:" } else { "" };
        write!(f, "{flag}{}@{}", name(self.signal), self.before.secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    #[test]
    fn signals_have_names_numbers_and_descriptions() {
        for (text, n) in [("USR1", 10), ("SIGUSR1", 10), ("sigterm", 15), ("9", 9), ("64", 64), ("kill", 9)] {
            assert_eq!(parse(text), Ok(n), "{text}");
        }
        for text in ["", "0", "65", "SIG", "bogus", "-9", "SIGSIGTERM"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(
            (name(11), describe(11), describe(9)),
            ("SEGV".into(), "Segmentation fault".into(), "Killed".into())
        );
        assert_eq!((name(40), describe(40)), ("40".into(), "Real-time signal 6".into()));
    }

    #[test]
    fn warnings_are_read() {
        let warn =
            |signal, secs, batch_only| WarnSignal { signal, before: Span::from_secs(secs), batch_only };
        assert_eq!(parse_warning("USR1"), Ok(warn(10, 60, false)));
        assert_eq!(parse_warning("USR1@50"), Ok(warn(10, 50, false)));
        assert_eq!(parse_warning("B:USR1@50"), Ok(warn(10, 50, true)));
        assert_eq!(parse_warning("b:12@0"), Ok(warn(12, 0, true)));
        for text in ["bogus", "USR1@abc", "USR1@70000", "", ":USR1", "X:USR1", "R:USR1@5", "USR1@"] {
            assert!(parse_warning(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(n in 1..=LAST, secs in 0i64..=65_535, batch_only: bool) {
            prop_assert_eq!(parse(&name(n)), Ok(n));
            let warning = WarnSignal { signal: n, before: Span::from_secs(secs), batch_only };
            prop_assert_eq!(parse_warning(&warning.to_string()), Ok(warning));
        }

        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            if let Ok(warning) = parse_warning(&text) {
                prop_assert_eq!(parse_warning(&warning.to_string()), Ok(warning));
            }
        }
    }
}
