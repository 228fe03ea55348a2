//! Time limits (`--time`): the grammar of `sbatch(1)`, in whole minutes.

use crate::elapsed;
use crate::grammar::{BadText, digits};
use crate::spec::TimeLimit;
use std::fmt;
use std::str::FromStr;

const WHAT: &str = "a time limit";
const FORMS: &str = "write MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES, \
                     DAYS-HOURS:MINUTES:SECONDS or UNLIMITED";

impl TimeLimit {
    /// The limit as `squeue` prints it: without leading zeros (`30:00`, `1:30:00`, `1-02:00:00`).
    pub fn short(self) -> String {
        match self {
            TimeLimit::Minutes(m) => elapsed::short(u64::from(m) * 60),
            TimeLimit::Unlimited => "UNLIMITED".to_string(),
        }
    }

    /// The limit as a span, or `None` without one.
    pub fn span(self) -> Option<crate::time::Span> {
        match self {
            TimeLimit::Minutes(m) => Some(crate::time::Span::from_mins(i64::from(m))),
            TimeLimit::Unlimited => None,
        }
    }
}

impl fmt::Display for TimeLimit {
    /// As `scontrol` and `sacct` print it: `00:30:00`, `1-02:00:00`, `UNLIMITED`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimeLimit::Minutes(m) => f.pad(&elapsed::long(u64::from(*m) * 60)),
            TimeLimit::Unlimited => f.pad("UNLIMITED"),
        }
    }
}

impl FromStr for TimeLimit {
    type Err = BadText;

    /// Seconds are rounded up to whole minutes. `0`, `-1`, `infinite` and `UNLIMITED` ask for no limit.
    fn from_str(text: &str) -> Result<TimeLimit, BadText> {
        let bad = || BadText::new(text, WHAT, FORMS);
        let unlimited = ["unlimited", "infinite", "-1", "4294967295"];
        if unlimited.iter().any(|word| text.eq_ignore_ascii_case(word)) {
            return Ok(TimeLimit::Unlimited);
        }
        let (days, clock) = match text.split_once('-') {
            Some((days, clock)) => (Some(digits(days).ok_or_else(bad)?), clock),
            None => (None, text),
        };
        let mut parts = Vec::with_capacity(3);
        // `1-` is one day.
        if !(days.is_some() && clock.is_empty()) {
            for part in clock.split(':') {
                parts.push(digits(part).ok_or_else(bad)?);
            }
        }
        let at = |i: usize| parts.get(i).copied().unwrap_or(0);
        let (hours, minutes, seconds) = match (days.is_some(), parts.len()) {
            (true, 0..=3) | (false, 3) => (at(0), at(1), at(2)),
            (false, 1) => (0, at(0), 0),
            (false, 2) => (0, at(0), at(1)),
            _ => return Err(bad()),
        };
        let total = [(days.unwrap_or(0), 86_400), (hours, 3_600), (minutes, 60), (seconds, 1)]
            .iter()
            .try_fold(0u64, |sum, (n, unit)| n.checked_mul(*unit).and_then(|s| sum.checked_add(s)))
            .map(|seconds| seconds.div_ceil(60))
            .and_then(|minutes| u32::try_from(minutes).ok())
            .filter(|minutes| *minutes < u32::MAX)
            .ok_or_else(|| BadText::new(text, WHAT, "it is too long; write UNLIMITED for no limit"))?;
        Ok(if total == 0 { TimeLimit::Unlimited } else { TimeLimit::Minutes(total) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    fn minutes(text: &str) -> u32 {
        match text.parse() {
            Ok(TimeLimit::Minutes(m)) => m,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn every_form_has_slurms_meaning() {
        for (text, expected) in [
            ("30", 30),
            ("30:00", 30),
            ("0:30", 1),
            ("0:00:01", 1),
            ("1:30:00", 90),
            ("90", 90),
            ("5:61", 7),
            ("00:90:00", 90),
            ("100:00:00", 6000),
            ("1-0", 1440),
            ("1-", 1440),
            ("1-2", 1560),
            ("1-2:30", 1590),
            ("1-2:30:15", 1591),
            ("0-0:10", 10),
            ("1-25", 2940),
            ("365-0", 525_600),
        ] {
            assert_eq!(minutes(text), expected, "{text}");
        }
        for text in ["0", "-1", "UNLIMITED", "unlimited", "infinite", "INFINITE"] {
            assert_eq!(text.parse(), Ok(TimeLimit::Unlimited), "{text}");
        }
    }

    #[test]
    fn bad_limits_are_refused_with_the_forms() {
        for text in [
            "",
            "abc",
            "1:2:3:4",
            "5m",
            "1h",
            "10.5",
            "1-2-3",
            " 10",
            "-5",
            "1:",
            ":1",
            "99999999999",
            "1-2:3:4:5",
        ] {
            let error = text.parse::<TimeLimit>().unwrap_err().to_string();
            assert!(error.contains("UNLIMITED"), "{text}: {error}");
        }
    }

    #[test]
    fn limits_print_as_scontrol_and_squeue_do() {
        for (m, long, short) in [
            (1, "00:01:00", "1:00"),
            (30, "00:30:00", "30:00"),
            (90, "01:30:00", "1:30:00"),
            (1560, "1-02:00:00", "1-02:00:00"),
        ] {
            assert_eq!(TimeLimit::Minutes(m).to_string(), long);
            assert_eq!(TimeLimit::Minutes(m).short(), short);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(m in 1u32..u32::MAX) {
            let limit = TimeLimit::Minutes(m);
            prop_assert_eq!(limit.to_string().parse(), Ok(limit));
            prop_assert_eq!(limit.short().parse(), Ok(limit));
        }

        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            if let Ok(limit) = text.parse::<TimeLimit>() {
                prop_assert_eq!(limit.to_string().parse(), Ok(limit));
            }
        }
    }
}
