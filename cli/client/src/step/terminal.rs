//! The caller's terminal for `--pty`: raw while the step runs, as it was afterwards.

use berth_model::spec::TermSize;
use rustix::termios::{self, OptionalActions, Termios};

/// Puts the terminal of stdin back when dropped.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal of stdin raw. `None` where stdin is no terminal.
    pub fn enter() -> Option<Raw> {
        let stdin = rustix::stdio::stdin();
        let before = termios::tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin, OptionalActions::Drain, &raw).ok()?;
        Some(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing put back.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The size of the caller's terminal.
pub fn size() -> Option<TermSize> {
    let size = termios::tcgetwinsize(rustix::stdio::stdin())
        .or_else(|_| termios::tcgetwinsize(rustix::stdio::stdout()))
        .ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(TermSize { rows: size.ws_row, cols: size.ws_col })
}

/// Whether stdin is a terminal.
pub fn is_terminal() -> bool {
    termios::isatty(rustix::stdio::stdin())
}
