//! `--help` and `--usage` from the table.

use super::SECTIONS;
use super::row::{Command, OptionRow, ValueKind};

/// Columns of the help.
const WIDTH: usize = 80;
/// Where descriptions begin.
const INDENT: usize = 12;

/// What follows the command's name and options.
pub(super) fn operands(command: Command) -> &'static str {
    match command {
        Command::Srun => "PROGRAM [ARGUMENTS...]",
        Command::Sbatch => "[SCRIPT [ARGUMENTS...]]",
        Command::Salloc => "[COMMAND [ARGUMENTS...]]",
    }
}

/// What the command does, in one sentence or two.
pub(super) fn purpose(command: Command) -> &'static str {
    match command {
        Command::Srun => {
            "Runs a program as a step of a job: inside a job in its allocation, otherwise in a new one. Output and \
             input are connected as they come, and srun ends with the highest exit code of the tasks."
        }
        Command::Sbatch => {
            "Submits a script (from a file, from standard input, or made by --wrap) that runs when its resources \
             are free, and prints the job's id. Lines of the script that begin with #SBATCH hold options."
        }
        Command::Salloc => {
            "Obtains an allocation, runs a command (by default a shell) while it lasts, and gives it back. srun in \
             that command runs steps in the allocation."
        }
    }
}

/// One usage line with the most used options.
pub fn usage(command: Command) -> String {
    let mut out = format!("Usage: {}", command.name());
    let mut line = out.len();
    let common =
        ["nodes", "ntasks", "cpus-per-task", "mem", "gres", "time", "partition", "container-image", "array"];
    let rows = common.iter().filter_map(|long| super::rows(command).find(|row| row.long == *long));
    let words = rows.map(|row| format!("[{}]", short_form(row)));
    for word in words.chain(["[OPTIONS...]".to_string(), operands(command).to_string()]) {
        if line + 1 + word.len() > WIDTH {
            out.push_str("\n      ");
            line = 6;
        }
        out.push(' ');
        out.push_str(&word);
        line += 1 + word.len();
    }
    out.push('\n');
    out
}

fn short_form(row: &OptionRow) -> String {
    match (row.short, row.value) {
        (Some(letter), ValueKind::Required(what)) => format!("-{} {what}", char::from(letter)),
        (_, ValueKind::Required(what)) => format!("--{}={what}", row.long),
        (Some(letter), _) => format!("-{}", char::from(letter)),
        (None, _) => format!("--{}", row.long),
    }
}

/// `-c, --cpus-per-task=CPUS`.
pub(super) fn long_form(row: &OptionRow) -> String {
    let letter = row.short.map_or(String::new(), |letter| format!("-{}, ", char::from(letter)));
    let value = match row.value {
        ValueKind::Flag | ValueKind::Switch => String::new(),
        ValueKind::Required(what) => format!("={what}"),
        ValueKind::Optional(what) => format!("[={what}]"),
    };
    let aliases: String = row.aliases.iter().map(|alias| format!(", --{alias}{value}")).collect();
    format!("{letter}--{}{value}{aliases}", row.long)
}

/// Variables of one row as a sentence, or nothing.
pub(super) fn variables(row: &OptionRow, command: Command) -> String {
    let names: Vec<&str> = row.env_of(command).collect();
    if names.is_empty() { String::new() } else { format!(" [{}]", names.join(", ")) }
}

/// The whole help of a command.
pub fn help(command: Command) -> String {
    let name = command.name();
    let mut out = format!("Usage: {name} [OPTIONS...] {}\n\n", operands(command));
    wrap(&mut out, 0, purpose(command));
    for section in SECTIONS {
        let rows: Vec<&OptionRow> =
            section.rows.iter().filter(|row| row.commands.contains(command)).collect();
        if rows.is_empty() {
            continue;
        }
        out.push_str(&format!("\n{}:\n", section.title));
        if rows.iter().all(|row| !row.works()) {
            let names: Vec<String> = rows.iter().map(|row| format!("--{}", row.long)).collect();
            wrap(&mut out, 2, &names.join(" "));
            wrap(&mut out, 2, "Each of them says what to use instead.");
            continue;
        }
        for row in rows {
            out.push_str(&format!("  {}\n", long_form(row)));
            wrap(&mut out, INDENT, &format!("{}{}", row.help, variables(row, command)));
        }
    }
    out.push('\n');
    wrap(
        &mut out,
        0,
        "The command line comes before the environment (variables in brackets), and the environment before #SBATCH \
         lines. Long options may be shortened as long as they are unambiguous.",
    );
    out
}

/// Appends `text` broken at blanks, each line indented.
fn wrap(out: &mut String, indent: usize, text: &str) {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + line.len() + 1 + word.len() > WIDTH {
            out.push_str(&format!("{:indent$}{line}\n", ""));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        out.push_str(&format!("{:indent$}{line}\n", ""));
    }
}
