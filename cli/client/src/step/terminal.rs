//! The caller's terminal for `--pty`: raw while the step runs, as it was afterwards.

use crate::error::Failure;
use berth_model::spec::TermSize;
use rustix::fs::{Mode, OFlags};
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

/// Has the terminal on which we have a descriptor open serve as our standard input and output (`--pty=FD`). It is opened anew: the number is
/// the caller's, and whose it is otherwise we do not know.
///
/// # Errors
/// Nothing is open there, it is no terminal, or it is not ours to read and write.
pub fn take(descriptor: u32) -> Result<(), Failure> {
    let failed = |why: String| {
        Failure::user(format!(
            "--pty={descriptor}: {why}: have a terminal open there for reading and writing (srun --pty={descriptor} sh {descriptor}<>/dev/pts/7), \
             or leave the number out"
        ))
    };
    let path = format!("/proc/self/fd/{descriptor}");
    let named = std::fs::read_link(&path).map_err(|_| failed("no such descriptor is open".to_string()))?;
    // Of a pipe, opening it would wait for its other end.
    if !named.starts_with("/dev") {
        return Err(failed(format!("{} is no terminal", named.display())));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = rustix::fs::open(&path, flags, Mode::empty());
    let terminal = open.map_err(|e| failed(format!("{} cannot be opened: {e}", named.display())))?;
    if !termios::isatty(&terminal) {
        return Err(failed(format!("{} is no terminal", named.display())));
    }
    let taken = rustix::stdio::dup2_stdin(&terminal).and_then(|()| rustix::stdio::dup2_stdout(&terminal));
    taken.map_err(|e| failed(format!("{} cannot be used: {e}", named.display())))
}

/// Whether stdin is a terminal.
pub fn is_terminal() -> bool {
    termios::isatty(rustix::stdio::stdin())
}
