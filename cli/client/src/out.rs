//! Writing to stdout so that a reader who leaves (`squeue | head`) ends the command without a word.

use crate::error::{Failure, Kind};
use std::io::{self, Write};

/// Writes the whole text to stdout.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| failed(&e))
}

/// Writes a line to stderr; when that is gone, there is nobody to tell.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// The failure of a write to stdout.
pub fn failed(e: &io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::raw(Kind::ClosedPipe, ""),
        _ => Failure::new(Kind::Internal, format!("cannot write to standard output: {e}")),
    }
}
