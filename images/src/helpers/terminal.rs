//! What becomes a user's process leaves the terminal of whoever started it.

use std::fs::OpenOptions;

use crate::error::{Error, Result};

/// Leaves the terminal, and has no descriptor of it: a user may trace what their process runs, and would type there, where root repairs an
/// image of theirs. What there is to say goes to standard output from here on.
///
/// # Errors
/// The kernel refuses.
pub(super) fn leave_terminal() -> Result<()> {
    let failed = |e: std::io::Error| Error::io("terminal of whoever started what fetches an image", e);
    rustix::process::setsid().map_err(|e| failed(e.into()))?;
    let errors = std::io::stderr();
    if rustix::termios::isatty(&errors) {
        let null = OpenOptions::new().write(true).open("/dev/null").map_err(failed)?;
        rustix::stdio::dup2_stderr(&null).map_err(|e| failed(e.into()))?;
    }
    Ok(())
}
