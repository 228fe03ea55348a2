//! Front doors: called as `docker`, `apptainer`, `singularity` or `enroot` the program takes what scripts say to those
//! tools and runs it with its own engine. What has no meaning here is refused by name, with what to use instead.

mod apptainer;
mod docker;
mod enroot;
mod refused;

use crate::commands::run::image_and_command;
use crate::{images, local};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command};
use std::ffi::OsString;
use std::process::ExitCode;

/// One tool's name and grammar.
pub struct Door {
    /// The name it is called by.
    pub name: &'static str,
    /// What it understands.
    pub definition: fn() -> Command,
    /// What it understands by name and refuses.
    refused: &'static [refused::Row],
    /// Does what was asked.
    run: fn(&'static str, &ArgMatches) -> Outcome,
}

/// All of them.
pub const DOORS: &[Door] = &[apptainer::DOOR, apptainer::SINGULARITY, docker::DOOR, enroot::DOOR];

/// The door of that name.
pub fn find(name: &str) -> Option<&'static Door> {
    DOORS.iter().find(|d| d.name == name)
}

/// Runs a command in a container of this machine that runs: the first of the words names that, the others are the command.
fn exec(
    door: &str,
    words: Vec<OsString>,
    env: &[OsString],
    workdir: Option<OsString>,
    terminal: bool,
) -> Outcome {
    let (what, command) = image_and_command(words)?;
    let mut variables = Vec::new();
    for text in env {
        variables.extend(local::variable("--env", text)?);
    }
    let state = images::local_dir(None)?;
    let record = local::exec::find(&state, &what)?;
    let asked = local::exec::Asked::new(command, variables, workdir, terminal);
    local::exec::enter(door, &state, &record, &asked)
}

impl Door {
    /// Reads the command line, does what it says, and gives the exit code.
    pub fn main(&self, argv: Vec<OsString>) -> ExitCode {
        let argv = std::iter::once(OsString::from(self.name)).chain(argv.into_iter().skip(1));
        let outcome = match (self.definition)().try_get_matches_from(argv) {
            Ok(matches) => (self.run)(self.name, &matches),
            Err(e) => self.misread(&e),
        };
        berth_client::finish(self.name, false, outcome)
    }

    /// What clap has to say: help and version as they are, an option or command of the tool's by the table.
    fn misread(&self, e: &clap::Error) -> Outcome {
        if !e.use_stderr() {
            return out::print(&e.render().to_string()).map(|()| 0);
        }
        let context = |kind| match e.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            _ => None,
        };
        let word = match e.kind() {
            ErrorKind::UnknownArgument => context(ContextKind::InvalidArg),
            ErrorKind::InvalidSubcommand => context(ContextKind::InvalidSubcommand),
            _ => None,
        };
        // The usage line says in which of the commands we are: `Usage: docker run …`.
        let usage = match e.get(ContextKind::Usage) {
            Some(ContextValue::StyledStr(text)) => text.to_string(),
            _ => String::new(),
        };
        let place =
            usage.trim_start_matches("Usage: ").split_whitespace().nth(1).unwrap_or_default().to_string();
        if let Some(word) = &word
            && let Some(row) = self.refused.iter().find(|r| r.is(&place, word))
        {
            return Err(refusal(word, row.instead));
        }
        let text = e.render().to_string();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let code = if self.name == "docker" { 125 } else { 2 };
        match lines.first().and_then(|first| first.strip_prefix("error: ")) {
            Some(what) => {
                // What is missing or meant stands in the lines that follow; usage and a hint at the help end it.
                let more = lines[1..]
                    .iter()
                    .take_while(|l| !["Usage:", "For more", "tip:"].iter().any(|end| l.starts_with(end)));
                let said: Vec<&str> = std::iter::once(what).chain(more.copied()).collect();
                let place = if place.starts_with(|c: char| c.is_ascii_lowercase()) {
                    format!(" {place}")
                } else {
                    String::new()
                };
                Err(Failure::new(
                    Kind::Options(code),
                    format!("{}\nsee '{}{place} --help'", said.join(" "), self.name),
                ))
            }
            // Without any word: the help.
            None => Err(Failure::raw(Kind::Options(2), text.trim_end())),
        }
    }
}

/// The failure of an option or command that is known and not done.
pub fn refusal(word: &str, instead: &str) -> Failure {
    Failure::new(Kind::Options(125), format!("{word} is not done here: {instead}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound_and_refuse_nothing_that_they_do() {
        for door in DOORS {
            let mut definition = (door.definition)();
            definition.build();
            definition.clone().debug_assert();
            for row in door.refused {
                assert!(row.instead.len() > 10, "{} {}", door.name, row.word);
                let taken = |c: &Command| {
                    c.get_arguments().any(|a| {
                        a.get_long().is_some_and(|l| row.word == format!("--{l}"))
                            || a.get_short().is_some_and(|s| row.word == format!("-{s}"))
                            || a.get_all_aliases()
                                .is_some_and(|all| all.iter().any(|l| row.word == format!("--{l}")))
                    })
                };
                if row.word.starts_with('-') {
                    let places: Vec<&Command> = definition
                        .get_subcommands()
                        .filter(|c| row.place.is_empty() || c.get_name() == row.place)
                        .collect();
                    assert!(!places.is_empty(), "{}: no command '{}'", door.name, row.place);
                    if !row.place.is_empty() {
                        assert!(!places.iter().any(|c| taken(c)), "{} {} {}", door.name, row.place, row.word);
                    }
                } else {
                    assert!(definition.find_subcommand(row.word).is_none(), "{} {}", door.name, row.word);
                }
            }
        }
    }
}
