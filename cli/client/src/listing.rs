//! What `squeue` and `sinfo` have in common: options in the same words, and a list that is shown again and again.

use crate::error::Failure;
use crate::getopt::{Arg, Opt, Parsed};
use std::time::Duration;

/// `-o`.
pub(crate) const FORMAT: Opt = Opt {
    long: "format",
    short: Some('o'),
    arg: Arg::Required("FORMAT"),
    help: "Columns: %[.][WIDTH]LETTER, '.' aligns right; %all: every one",
};

/// `-O`.
pub(crate) const FIELDS: Opt = Opt {
    long: "Format",
    short: Some('O'),
    arg: Arg::Required("FIELDS"),
    help: "Columns by name: NAME[:[.]WIDTH[SUFFIX]],...; all: every one",
};

/// `-S`.
pub(crate) const SORT: Opt = Opt {
    long: "sort",
    short: Some('S'),
    arg: Arg::Required("KEYS"),
    help: "Order: letters of -o, '-' before one for descending",
};

/// `-l`.
pub(crate) const LONG: Opt =
    Opt { long: "long", short: Some('l'), arg: Arg::None, help: "More columns, and the date" };

/// `-h`.
pub(crate) const NOHEADER: Opt =
    Opt { long: "noheader", short: Some('h'), arg: Arg::None, help: "No header" };

/// `-i`.
pub(crate) const ITERATE: Opt = Opt {
    long: "iterate",
    short: Some('i'),
    arg: Arg::Required("SECONDS"),
    help: "Show again after this many seconds, until interrupted",
};

/// After how long the list is shown again, where it is.
///
/// # Errors
/// [`ITERATE`] says no number of seconds.
pub(crate) fn pause(parsed: &Parsed) -> Result<Option<Duration>, Failure> {
    let Some(text) = parsed.text(ITERATE.long) else { return Ok(None) };
    match text.parse::<u64>() {
        Ok(seconds) if seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(Failure::user(format!("--iterate={text}: expected a number of seconds, at least 1"))),
    }
}
