//! From settings (an option and its text, from one source) to typed options, with the errors on the way.

use super::row::{Action, Command, OptionRow, ValueKind};
use super::submit::SubmitOptions;
use crate::bytes::ByteStr;
use crate::grammar::BadText;
use crate::time::Time;
use jiff::tz::TimeZone;
use std::fmt;

/// Where a setting came from. A greater source wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A `#SBATCH` line of the script, by number.
    Script(u32),
    /// An environment variable.
    Environment(&'static str),
    /// The command line.
    CommandLine,
}

impl Source {
    /// Settings of one rank belong together: a list in one replaces a list in a lower one.
    pub(super) fn rank(self) -> u8 {
        match self {
            Source::Script(_) => 0,
            Source::Environment(_) => 1,
            Source::CommandLine => 2,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Script(line) => write!(f, "line {line} of the script"),
            Source::Environment(name) => write!(f, "environment variable {name}"),
            Source::CommandLine => f.write_str("command line"),
        }
    }
}

/// An option with its text, not yet understood.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The row.
    pub row: &'static OptionRow,
    /// The value's text, where there is one.
    pub value: Option<ByteStr>,
    /// Where it stands.
    pub source: Source,
}

/// What values mean depends on.
#[derive(Clone, Debug)]
pub struct Context {
    /// The moment at which `now` is now.
    pub now: Time,
    /// The time zone of the user.
    pub zone: TimeZone,
}

/// What a setter is given.
#[derive(Debug)]
pub struct Given<'a> {
    /// The row.
    pub row: &'static OptionRow,
    /// The value's bytes.
    pub value: Option<&'a [u8]>,
    /// Clock and zone.
    pub context: &'a Context,
    /// Whether nothing of the same key came from the same kind of source before.
    pub first: bool,
}

impl<'a> Given<'a> {
    /// The bytes of the value; empty where there is none.
    pub fn bytes(&self) -> &'a [u8] {
        self.value.unwrap_or_default()
    }

    /// The value as text.
    pub fn text(&self) -> Result<&'a str, Bad> {
        let next =
            "the value is not UTF-8 text: write it so; a file of such a name needs a link with another one";
        std::str::from_utf8(self.bytes()).map_err(|_| Bad::Spec(next.to_string()))
    }

    /// The value read by a grammar.
    pub fn parse<T>(&self, grammar: impl FnOnce(&str) -> Result<T, BadText>) -> Result<T, Bad> {
        grammar(self.text()?).map_err(|e| Bad::Spec(e.to_string()))
    }

    /// The value read by a grammar of generic resources. What follows none is refused as what no node has is: Slurm finds both in one
    /// place, when it submits.
    pub fn resources<T>(&self, grammar: impl FnOnce(&str) -> Result<T, BadText>) -> Result<T, Bad> {
        grammar(self.text()?)
            .map_err(|e| Bad::Wrong(vec![INVALID_RESOURCES.to_string(), format!("--{}: {e}", self.row.long)]))
    }

    /// The value as a count from 1.
    pub fn count(&self) -> Result<u32, Bad> {
        crate::count::positive(self.text()?).map_err(|e| Bad::Number(e.why))
    }

    /// Of a switch: whether it is on.
    pub fn is_on(&self) -> bool {
        self.value != Some(OFF)
    }
}

/// How Slurm ends what it says of wrong generic resources.
pub(super) const INVALID_RESOURCES: &str = "Invalid generic resource (gres) specification";

/// The value that stands for a switch that the environment puts off.
const OFF: &[u8] = b"0";

/// Why a setter refuses its value.
#[derive(Clone, Debug)]
pub enum Bad {
    /// `Invalid --x specification`, and the detail.
    Spec(String),
    /// `Invalid numeric value "x" for --x.`, and the detail.
    Number(String),
    /// Lines of its own; the exit code is 255.
    Own(Vec<String>),
    /// The same, and the exit code is 1.
    Wrong(Vec<String>),
    /// The same, the first line as an error and the others as what made the command give up.
    GivenUp(Vec<String>),
    /// What Slurm finds only when it submits: introduced by what failed, as the cluster's own refusals; the exit code is 1.
    Submission(String),
    /// `fatal`, with lines of its own; the exit code is 1.
    Fatal(Vec<String>),
    /// No error: the value asks for help, which is printed instead of doing anything.
    Help(&'static str),
}

/// How an error is introduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// `sbatch: ...` and a pointer to `--help`.
    Usage,
    /// `sbatch: error: ...`.
    Error,
    /// `sbatch: fatal: ...`.
    Fatal,
    /// The first line as an error, the others as fatal.
    GivenUp,
    /// No error: the lines are what was asked for.
    Help,
}

/// Options that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .lines.join("; "))]
pub struct OptionError {
    /// How it is introduced.
    pub severity: Severity,
    /// What is wrong, then what to do.
    pub lines: Vec<String>,
    /// The command's exit code.
    pub exit_code: i32,
}

impl OptionError {
    pub(crate) fn usage(line: String) -> OptionError {
        OptionError { severity: Severity::Usage, lines: vec![line], exit_code: 255 }
    }

    pub(crate) fn error(exit_code: i32, lines: Vec<String>) -> OptionError {
        OptionError { severity: Severity::Error, lines, exit_code }
    }

    pub(crate) fn fatal(line: &str) -> OptionError {
        OptionError { severity: Severity::Fatal, lines: vec![line.to_string()], exit_code: 1 }
    }

    /// The lines for standard error, without the last line end.
    pub fn render(&self, program: &str) -> String {
        let (first, others) = match self.severity {
            Severity::Help => return self.lines.join("\n"),
            Severity::Usage => ("", ""),
            Severity::Error => ("error: ", "error: "),
            Severity::Fatal => ("fatal: ", "fatal: "),
            Severity::GivenUp => ("error: ", "fatal: "),
        };
        let mark = |at: usize| if at == 0 { first } else { others };
        let lines = self.lines.iter().enumerate();
        let mut out: Vec<String> = lines.map(|(at, line)| format!("{program}: {}{line}", mark(at))).collect();
        if self.severity == Severity::Usage {
            out.push(format!("Try \"{program} --help\" for more information"));
        }
        out.join("\n")
    }
}

/// The error of an option that this release does not have.
pub(super) fn refusal(row: &OptionRow, source: Source, instead: &str) -> OptionError {
    let from = match source {
        Source::CommandLine => String::new(),
        other => format!(" ({other})"),
    };
    OptionError::error(
        255,
        vec![format!("--{}{from} is not supported by this release", row.long), instead.to_string()],
    )
}

/// Follows all settings, lesser sources first, and checks the result for contradictions.
pub fn resolve(
    command: Command,
    mut settings: Vec<Setting>,
    context: &Context,
) -> Result<SubmitOptions, OptionError> {
    settings.sort_by_key(|setting| setting.source.rank());
    let mut options = SubmitOptions::new(command);
    for setting in &settings {
        let row = setting.row;
        let apply = match row.action {
            Action::Set(apply) => apply,
            Action::Refused(instead) => return Err(refusal(row, setting.source, instead)),
            Action::Info(_) => {
                let line = format!("--{} ({}) belongs on the command line", row.long, setting.source);
                return Err(OptionError::error(255, vec![line]));
            }
        };
        let before = options.sources.get(row.key).map(|source| source.rank());
        let given = Given {
            row,
            value: setting.value.as_ref().map(|v| v.0.as_slice()),
            context,
            first: before != Some(setting.source.rank()),
        };
        apply(&mut options, &given).map_err(|bad| explain(command, setting, bad))?;
        options.sources.insert(row.key, setting.source);
    }
    super::check::contradictions(&options)?;
    Ok(options)
}

fn explain(command: Command, setting: &Setting, bad: Bad) -> OptionError {
    let long = setting.row.long;
    let value = setting.value.as_ref().map(|v| v.display()).unwrap_or_default();
    let place = match setting.source {
        Source::CommandLine => String::new(),
        other => format!("{other}: "),
    };
    let and_where = |mut lines: Vec<String>| {
        if setting.source != Source::CommandLine {
            lines.push(format!("it stands in {}", setting.source));
        }
        lines
    };
    match bad {
        Bad::Spec(detail) => OptionError::error(
            255,
            vec![format!("Invalid --{long} specification"), format!("{place}{detail}")],
        ),
        Bad::Number(detail) => OptionError::error(
            1,
            vec![format!("Invalid numeric value \"{value}\" for --{long}."), format!("{place}{detail}")],
        ),
        Bad::Own(lines) => OptionError::error(255, and_where(lines)),
        Bad::Wrong(lines) => OptionError::error(1, and_where(lines)),
        Bad::GivenUp(lines) => {
            OptionError { severity: Severity::GivenUp, lines: and_where(lines), exit_code: 1 }
        }
        Bad::Submission(why) => {
            OptionError::error(1, and_where(vec![format!("{}: {why}", command.failed())]))
        }
        Bad::Help(text) => {
            OptionError { severity: Severity::Help, lines: vec![text.trim_end().to_string()], exit_code: 0 }
        }
        Bad::Fatal(lines) => OptionError { severity: Severity::Fatal, lines: and_where(lines), exit_code: 1 },
    }
}

/// The settings that environment variables make. An empty variable counts as unset where a value is needed.
pub fn from_environment(
    command: Command,
    get: impl Fn(&str) -> Option<ByteStr>,
) -> Result<Vec<Setting>, OptionError> {
    let mut settings = Vec::new();
    for row in super::rows(command) {
        for name in row.env_of(command) {
            let Some(value) = get(name) else { continue };
            let source = Source::Environment(name);
            let value = match row.value {
                ValueKind::Flag if flag_is_set(&value.0) => None,
                ValueKind::Flag => continue,
                ValueKind::Switch => match value.display().to_ascii_lowercase().as_str() {
                    "1" | "true" | "yes" | "y" => None,
                    "0" | "false" | "no" | "n" => Some(ByteStr::from(OFF)),
                    _ => {
                        let lines = vec![
                            format!("{name}: '{}' is neither yes nor no", value.display()),
                            "write 1, true, yes or y, or 0, false, no or n".to_string(),
                        ];
                        return Err(OptionError::error(255, lines));
                    }
                },
                ValueKind::Required(_) if value.is_empty() => continue,
                ValueKind::Optional(_) if value.is_empty() => None,
                ValueKind::Required(_) | ValueKind::Optional(_) => Some(value),
            };
            settings.push(Setting { row, value, source });
            // The first of several names of one option counts.
            break;
        }
    }
    Ok(settings)
}

/// Slurm's rule for boolean variables: set when empty, `yes` or a number other than 0.
fn flag_is_set(value: &[u8]) -> bool {
    value.is_empty()
        || value.eq_ignore_ascii_case(b"yes")
        || std::str::from_utf8(value).ok().and_then(|v| v.parse::<i64>().ok()).is_some_and(|n| n != 0)
}
