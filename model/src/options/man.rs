//! Man pages from the table.

use super::SECTIONS;
use super::help::{long_form, operands, purpose, variables};
use super::row::{Action, Command, OptionRow};

/// The page of a command in the `man` macros; `version` stands in its footer.
pub fn man_page(command: Command, version: &str) -> String {
    let name = command.name();
    let mut out = format!(".TH {} 1 \"\" \"Berth {}\" \"Berth\"\n", name.to_uppercase(), escape(version));
    let summary = match command {
        Command::Srun => "run a program as a step of a job",
        Command::Sbatch => "submit a script as a job",
        Command::Salloc => "obtain an allocation and run a command in it",
    };
    out.push_str(&format!(".SH NAME\n{name} \\- {summary}\n"));
    out.push_str(&format!(".SH SYNOPSIS\n.B {name}\n[OPTIONS...] {}\n", escape(operands(command))));
    out.push_str(&format!(".SH DESCRIPTION\n{}\n", escape(purpose(command))));
    for section in SECTIONS {
        let rows: Vec<&OptionRow> =
            section.rows.iter().filter(|row| row.commands.contains(command)).collect();
        if rows.is_empty() {
            continue;
        }
        out.push_str(&format!(".SH {}\n", section.title.to_uppercase()));
        if rows.iter().all(|row| !row.works()) {
            out.push_str("These options of Slurm are refused by name.\n");
        }
        for row in rows {
            let text = match row.action {
                Action::Refused(instead) => format!("Instead: {instead}."),
                _ => format!("{}{}", row.help, variables(row, command)),
            };
            out.push_str(&format!(".TP\n.B {}\n{}\n", escape(&long_form(row)), escape(&text)));
        }
    }
    out.push_str(
        ".SH ENVIRONMENT\nThe variables in brackets set their option when it is not on the command line. They come \
         before the lines of a script that begin with #SBATCH. A variable of an option without a value counts as \
         set when it is empty, yes, or a number other than 0.\n",
    );
    out.push_str(
        ".SH EXIT STATUS\n255 for options that cannot be followed, 1 when the job or step was refused, and \
         otherwise that of the job, of the command or of the tasks.\n",
    );
    out
}

/// Keeps hyphens, backslashes and leading dots and quotes as they are.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
