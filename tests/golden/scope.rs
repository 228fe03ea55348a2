//! Which recorded commands this release can be held to, in which words, and where it differs on purpose: `scope.tsv`.

use regex::Regex;
use std::cell::Cell;

/// A line of the table.
#[derive(Debug)]
struct Rule {
    file: Regex,
    command: Regex,
    kind: Kind,
    reason: String,
    /// Its line in the table.
    number: usize,
    /// Whether there was a command for it.
    used: Cell<bool>,
}

/// What a line says of the commands that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not run: it is about something that this release does not have.
    Later,
    /// Not run: the release has it, and the replay cannot show it, on other nodes and with other jobs than were recorded.
    Replay,
    /// A difference that is meant, and documented.
    Purpose,
    /// Run in other words, which the reason column holds: what is to be shown does not depend on the difference.
    Instead,
    /// A script that root runs just before, which makes what the transcript takes for granted; it prints their id and ours.
    Before,
    /// Jobs, by number, whose lines are left out of both outputs: they are about something that this release does not have.
    Without,
    /// Lines of both outputs, by regular expression, that are left out: they differ on purpose, or are of a later release.
    Lines,
}

/// The table.
#[derive(Debug)]
pub struct Scope(Vec<Rule>);

impl Scope {
    /// Reads the table: file, command, kind and reason, separated by tabs; files and commands are regular expressions.
    ///
    /// # Errors
    /// A line that is none of that.
    pub fn parse(text: &str) -> Result<Scope, String> {
        let lines = text.lines().enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
        let rule = |(number, line): (usize, &str)| {
            let at = |what: &str| format!("scope.tsv:{}: {what}", number + 1);
            let mut cells = line.split('\t');
            let mut cell = |name: &str| cells.next().ok_or_else(|| at(&format!("it has no {name}")));
            let (file, command, kind, reason) =
                (cell("file")?, cell("command")?, cell("kind")?, cell("reason")?);
            let pattern = |text: &str| Regex::new(text).map_err(|e| at(&e.to_string()));
            let kind = match kind {
                "later" => Kind::Later,
                "replay" => Kind::Replay,
                "purpose" => Kind::Purpose,
                "instead" => Kind::Instead,
                "without" => Kind::Without,
                "lines" => Kind::Lines,
                "before" => Kind::Before,
                other => {
                    return Err(at(&format!(
                        "{other} is no kind: later, replay, purpose, instead, before, without or lines"
                    )));
                }
            };
            let file = pattern(&format!("^(?:{file})$"))?;
            let reason = reason.to_string();
            Ok(Rule {
                file,
                command: pattern(command)?,
                kind,
                reason,
                number: number + 1,
                used: Cell::new(false),
            })
        };
        lines.map(rule).collect::<Result<_, _>>().map(Scope)
    }

    /// Whether a command is not compared, by the first line that says so, and why.
    pub fn left_out(&self, file: &str, command: &str) -> Option<(Kind, &str)> {
        self.first(&[Kind::Later, Kind::Replay], file, command).map(|rule| (rule.kind, rule.reason.as_str()))
    }

    /// What a line of this kind says of a command: why it may differ, as a rule.
    pub fn reason(&self, kind: Kind, file: &str, command: &str) -> Option<&str> {
        self.first(&[kind], file, command).map(|rule| rule.reason.as_str())
    }

    fn first(&self, kinds: &[Kind], file: &str, command: &str) -> Option<&Rule> {
        let mut rules = self.0.iter().filter(|r| kinds.contains(&r.kind));
        let rule = rules.find(|r| r.file.is_match(file) && r.command.is_match(command))?;
        rule.used.set(true);
        Some(rule)
    }

    /// The lines that no command was for; to be asked when all were run.
    pub fn idle(&self) -> Vec<String> {
        let idle = self.0.iter().filter(|rule| !rule.used.get());
        idle.map(|r| format!("scope.tsv:{}: no command needs it: {} {}", r.number, r.file, r.command))
            .collect()
    }

    /// The command as it is run here.
    pub fn instead(&self, file: &str, command: &str) -> String {
        let rules = self.0.iter().filter(|r| r.kind == Kind::Instead && r.file.is_match(file));
        rules.fold(command.to_string(), |text, rule| {
            rule.used.set(rule.used.get() || rule.command.is_match(&text));
            rule.command.replace_all(&text, &rule.reason).into_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_well_formed() {
        Scope::parse(include_str!("scope.tsv")).unwrap();
    }

    #[test]
    fn a_rule_names_files_and_commands() {
        let scope =
            Scope::parse("# said\nsbatch|srun\t-A \\S+\tlater\taccounts\n.*\t-V$\tpurpose\tour version\n")
                .unwrap();
        assert_eq!(scope.left_out("sbatch", "sbatch -A x"), Some((Kind::Later, "accounts")));
        assert_eq!(scope.left_out("salloc", "sbatch -A x"), None);
        assert_eq!(scope.reason(Kind::Purpose, "salloc", "salloc -V"), Some("our version"));
        assert!(Scope::parse("a\tb\tnever\tc").is_err());
        assert_eq!(scope.idle(), Vec::<String>::new());
        // The first line counts, of whichever of the two kinds it is.
        let both = Scope::parse("a\tb\treplay\tone node\n.*\tb\tlater\tnot there\n").unwrap();
        assert_eq!(both.left_out("a", "b"), Some((Kind::Replay, "one node")));
        assert_eq!(both.left_out("c", "b"), Some((Kind::Later, "not there")));
        assert_eq!(Scope::parse("a\tb\tlater\tc").unwrap().idle().len(), 1);
    }
}
