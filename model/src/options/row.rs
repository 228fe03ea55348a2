//! One row of the table of submit options: a name, the commands that take it, what it reads and what it does.

use super::resolve::{Bad, Given};
use super::submit::SubmitOptions;

/// One of the three commands that submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// `srun`.
    Srun,
    /// `sbatch`.
    Sbatch,
    /// `salloc`.
    Salloc,
}

impl Command {
    /// All three.
    pub const ALL: [Command; 3] = [Command::Srun, Command::Sbatch, Command::Salloc];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Command::Srun => "srun",
            Command::Sbatch => "sbatch",
            Command::Salloc => "salloc",
        }
    }

    /// How it introduces the reason for which a submission failed.
    pub fn failed(self) -> &'static str {
        match self {
            Command::Srun => "Unable to allocate resources",
            Command::Sbatch => "Batch job submission failed",
            Command::Salloc => "Job submit/allocate failed",
        }
    }
}

/// A set of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commands(u8);

impl Commands {
    /// `srun`.
    pub const R: Commands = Commands(1);
    /// `sbatch`.
    pub const B: Commands = Commands(2);
    /// `salloc`.
    pub const A: Commands = Commands(4);
    /// `sbatch` and `srun`.
    pub const BR: Commands = Commands(3);
    /// `salloc` and `srun`.
    pub const AR: Commands = Commands(5);
    /// `sbatch` and `salloc`.
    pub const AB: Commands = Commands(6);
    /// All.
    pub const ABR: Commands = Commands(7);

    /// Whether `command` is in the set.
    pub fn contains(self, command: Command) -> bool {
        let one = match command {
            Command::Srun => Self::R,
            Command::Sbatch => Self::B,
            Command::Salloc => Self::A,
        };
        self.0 & one.0 != 0
    }
}

/// What follows an option's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// Nothing. In the environment: set when empty, `yes` or a number other than 0.
    Flag,
    /// Nothing, but the environment can also switch it off: 1/true/yes/y and 0/false/no/n.
    Switch,
    /// A value, `--name=VALUE` or `--name VALUE`; the text names it in the help.
    Required(&'static str),
    /// A value or nothing: only `--name=VALUE`, or glued to the short letter.
    Optional(&'static str),
}

/// What a row does with its value.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Sets members of the options.
    Set(fn(&mut SubmitOptions, &Given<'_>) -> Result<(), Bad>),
    /// An option of Slurm's that this release does not have: the text says what to do instead.
    Refused(&'static str),
    /// Prints something and ends.
    Info(Info),
}

/// What an informative option prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info {
    /// `--help`.
    Help,
    /// `--usage`.
    Usage,
    /// `--version`.
    Version,
}

/// One option of one or several commands.
#[derive(Clone, Copy, Debug)]
pub struct OptionRow {
    /// Long name, without dashes.
    pub long: &'static str,
    /// Other long names of the same option.
    pub aliases: &'static [&'static str],
    /// Short letter.
    pub short: Option<u8>,
    /// The commands that take it.
    pub commands: Commands,
    /// What it reads.
    pub value: ValueKind,
    /// Words that make up all possible values, for completion.
    pub choices: &'static [&'static str],
    /// Environment variables that set it. Their prefix says for which command: `SBATCH_`, `SALLOC_`, `SLURM_`
    /// and `SRUN_` for srun, `PYXIS_` for all.
    pub env: &'static [&'static str],
    /// Help, with units.
    pub help: &'static str,
    /// Rows with the same key set the same thing, so that the source of one replaces that of the other.
    pub key: &'static str,
    /// What it does.
    pub action: Action,
}

impl OptionRow {
    /// Whether it works in this release.
    pub fn works(&self) -> bool {
        !matches!(self.action, Action::Refused(_))
    }

    /// Its environment variables for one command.
    pub fn env_of(&self, command: Command) -> impl Iterator<Item = &'static str> + use<> {
        self.env.iter().copied().filter(move |name| match command {
            Command::Sbatch => name.starts_with("SBATCH_") || name.starts_with("PYXIS_"),
            Command::Salloc => name.starts_with("SALLOC_") || name.starts_with("PYXIS_"),
            Command::Srun => ["SLURM_", "SRUN_", "PYXIS_"].iter().any(|p| name.starts_with(p)),
        })
    }

    /// All its long names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.long).chain(self.aliases.iter().copied())
    }

    pub(super) const fn short(mut self, letter: u8) -> Self {
        self.short = Some(letter);
        self
    }
    pub(super) const fn alias(mut self, names: &'static [&'static str]) -> Self {
        self.aliases = names;
        self
    }
    pub(super) const fn takes(mut self, what: &'static str) -> Self {
        self.value = ValueKind::Required(what);
        self
    }
    pub(super) const fn may_take(mut self, what: &'static str) -> Self {
        self.value = ValueKind::Optional(what);
        self
    }
    pub(super) const fn switch(mut self) -> Self {
        self.value = ValueKind::Switch;
        self
    }
    pub(super) const fn choices(mut self, words: &'static [&'static str]) -> Self {
        self.choices = words;
        self
    }
    pub(super) const fn env(mut self, names: &'static [&'static str]) -> Self {
        self.env = names;
        self
    }
    pub(super) const fn key(mut self, key: &'static str) -> Self {
        self.key = key;
        self
    }
    pub(super) const fn help(mut self, text: &'static str) -> Self {
        self.help = text;
        self
    }
    pub(super) const fn set(mut self, setter: fn(&mut SubmitOptions, &Given<'_>) -> Result<(), Bad>) -> Self {
        self.action = Action::Set(setter);
        self
    }
    pub(super) const fn info(mut self, info: Info) -> Self {
        self.action = Action::Info(info);
        self
    }
}

/// A row without a value, refused until it is given an action.
pub(super) const fn row(long: &'static str, commands: Commands) -> OptionRow {
    OptionRow {
        long,
        aliases: &[],
        short: None,
        commands,
        value: ValueKind::Flag,
        choices: &[],
        env: &[],
        help: "",
        key: long,
        action: Action::Refused(""),
    }
}

/// A row of an option that this release refuses by name.
pub(super) const fn refused(long: &'static str, commands: Commands, instead: &'static str) -> OptionRow {
    let mut row = row(long, commands);
    row.action = Action::Refused(instead);
    row
}

/// Rows under one heading of the help.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// The rows in the order of the help.
    pub rows: &'static [OptionRow],
}
