//! Writing to the standard streams, and what the parser of options has to say.

use crate::{NAME, Stop};
use std::io::{self, Write};
use std::process::ExitCode;

/// Writes the whole text to stdout.
pub fn print(text: &str) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Stop::ReaderGone,
        _ => Stop::Failed(format!("cannot write to standard output: {e}")),
    })
}

/// Writes a line to stderr; when that is gone, there is nobody to tell.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Prints help, or what is wrong with the options, where it belongs.
pub fn usage(e: &clap::Error) -> ExitCode {
    let text = e.render().to_string();
    if !e.use_stderr() {
        return match print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(141),
        };
    }
    match text.trim_end().strip_prefix("error: ") {
        Some(what) => complain(&format!("{NAME}: error: {what}")),
        // Without any word: the help.
        None => complain(text.trim_end()),
    }
    ExitCode::from(2)
}
