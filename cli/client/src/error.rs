//! The one error of the commands, and the one place where exit codes are decided.

use berth_model::request::{Refusal, RefusalCode};
use berth_rpc::RpcError;
use std::fmt;

/// What kind of failure it is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line, a script or a value in it is wrong.
    User,
    /// An option is unknown or its value malformed.
    Usage,
    /// As [`Kind::Usage`] or [`Kind::User`], with the exit code that was decided with the text.
    Options(u8),
    /// Configuration or environment are wrong.
    Configuration,
    /// The cluster refuses.
    Refused(RefusalCode),
    /// The cluster cannot be reached.
    Unreachable,
    /// A fault of ours, or of the machine.
    Internal,
    /// Not a failure of ours: the exit code of what was run. Nothing is printed.
    Exit(u8),
    /// The reader of our output is gone.
    ClosedPipe,
}

/// A command's failure: what, why and what to do, in lines for stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub kind: Kind,
    /// The text; may be empty when everything was said before.
    pub text: String,
    /// Whether the text is complete: no `NAME: error: ` is put before it.
    pub raw: bool,
}

/// What a command ends with: its exit code, or a failure.
pub type Outcome = Result<u8, Failure>;

impl Failure {
    /// A failure with `NAME: error: ` before each line.
    pub fn new(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into(), raw: false }
    }

    /// A wrong value or combination.
    pub fn user(text: impl Into<String>) -> Failure {
        Failure::new(Kind::User, text)
    }

    /// A malformed option.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, text)
    }

    /// A failure whose text is printed as it is.
    pub fn raw(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into(), raw: true }
    }

    /// Ends with a code; all was said.
    pub fn exit(code: u8) -> Failure {
        Failure::raw(Kind::Exit(code), "")
    }

    /// The exit code. `submits` is for srun, sbatch and salloc, where malformed options give 255.
    pub fn exit_code(&self, submits: bool) -> u8 {
        match self.kind {
            Kind::Usage if submits => 255,
            Kind::Exit(code) | Kind::Options(code) => code,
            Kind::ClosedPipe => 141,
            Kind::User
            | Kind::Usage
            | Kind::Configuration
            | Kind::Refused(_)
            | Kind::Unreachable
            | Kind::Internal => 1,
        }
    }

    /// The lines for stderr.
    pub fn report(&self, program: &str) -> String {
        let mut out = String::new();
        for line in self.text.lines() {
            if !self.raw {
                out.push_str(program);
                out.push_str(": error: ");
            }
            out.push_str(line);
            out.push('\n');
        }
        out
    }

    /// Puts what was being tried before the text.
    #[must_use]
    pub fn while_trying(mut self, what: &str) -> Failure {
        if !self.text.is_empty() {
            self.text = format!("{what}: {}", self.text);
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::new(Kind::Refused(refusal.code), refusal.message)
    }
}

impl From<RpcError> for Failure {
    fn from(e: RpcError) -> Failure {
        match e {
            RpcError::Refused(refusal) => refusal.into(),
            RpcError::Unreachable { .. } | RpcError::Lost(_) => {
                Failure::new(Kind::Unreachable, e.to_string())
            }
            RpcError::Protocol(_) => Failure::new(Kind::Internal, e.to_string()),
        }
    }
}

impl From<crate::getopt::Stop> for Failure {
    fn from(stop: crate::getopt::Stop) -> Failure {
        match stop {
            crate::getopt::Stop::Print(text) => match crate::out::print(&text) {
                Ok(()) => Failure::exit(0),
                Err(e) => e,
            },
            crate::getopt::Stop::Bad(text) => Failure::raw(Kind::Usage, text),
        }
    }
}

impl From<berth_model::grammar::BadText> for Failure {
    fn from(e: berth_model::grammar::BadText) -> Failure {
        Failure::usage(e.to_string())
    }
}

/// The system's reason without its number.
pub fn io_text(e: &std::io::Error) -> String {
    let text = e.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_lines() {
        let bad = Failure::usage("Invalid --time specification\nnext step");
        assert_eq!((bad.exit_code(true), bad.exit_code(false)), (255, 1));
        assert_eq!(
            bad.report("sbatch"),
            "sbatch: error: Invalid --time specification\nsbatch: error: next step\n"
        );
        assert_eq!(
            Failure::raw(Kind::User, "slurm_load_jobs error: x").report("q"),
            "slurm_load_jobs error: x\n"
        );
        assert_eq!(Failure::exit(7).exit_code(true), 7);
        assert_eq!(Failure::exit(7).report("srun"), "");
    }
}
