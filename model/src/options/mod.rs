//! THE table of submit options, from which the parser, the help, the man pages, the completion, the reader of
//! `#SBATCH` lines and the environment variables of `srun`, `sbatch` and `salloc` all come.
//!
//! A command reads its words with [`parse`], its environment with [`from_environment`] and, for `sbatch`, the
//! script with [`crate::sbatch::directives`]; [`resolve`] joins the three by precedence (command line, then
//! environment, then script) into typed [`SubmitOptions`], which become a `JobSpec` or a `StepSpec`.

mod check;
mod completion;
mod convert;
mod devices;
mod help;
mod het;
mod layer;
mod man;
mod mounts;
mod named;
mod resolve;
mod row;
mod submit;
mod table;
mod words;

#[cfg(test)]
mod tests;

pub use completion::{Completion, Shell, completion, completion_script};
pub use convert::{Converted, Stream, Submitter};
pub use help::{help, usage};
pub use het::{hand_on, parse_components};
pub use layer::parse_layer;
pub use man::man_page;
pub use mounts::{BadMount, parse_mounts};
pub use named::is_container_name;
pub use resolve::{Bad, Context, Given, OptionError, Setting, Severity, Source, from_environment, resolve};
pub use row::{Action, Command, Commands, Info, OptionRow, Section, ValueKind};
pub use submit::{ContainerOptions, DeviceOptions, Explain, Propagate, SubmitOptions};
pub use table::SECTIONS;
pub use words::{Words, parse};

/// The rows of one command, in the order of the table.
pub fn rows(command: Command) -> impl Iterator<Item = &'static OptionRow> {
    SECTIONS.iter().flat_map(|section| section.rows).filter(move |row| row.commands.contains(command))
}
