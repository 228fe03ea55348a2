//! Words for a log that may have nobody who reads it any more, or no room: a supervisor goes on without them, as its step needs it.

use std::io::{self, Write};

/// Says it on standard error, where the log is.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "berth-step: {text}");
}
