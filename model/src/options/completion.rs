//! What shells need to complete options, from the table.

use super::row::{Command, ValueKind};

/// One word that can be completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The option, with its dashes.
    pub word: String,
    /// Whether a value must follow.
    pub takes_value: bool,
    /// All possible values, where they are few.
    pub choices: &'static [&'static str],
    /// The help.
    pub help: &'static str,
}

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// The options of a command that work in this release.
pub fn completion(command: Command) -> Vec<Completion> {
    let mut out = Vec::new();
    for row in super::rows(command).filter(|row| row.works()) {
        let takes_value = matches!(row.value, ValueKind::Required(_));
        let letter = row.short.map(|letter| format!("-{}", char::from(letter)));
        for word in row.names().map(|long| format!("--{long}")).chain(letter) {
            out.push(Completion { word, takes_value, choices: row.choices, help: row.help });
        }
    }
    out
}

/// A script that teaches `shell` the options of `command`.
pub fn completion_script(command: Command, shell: Shell) -> String {
    let name = command.name();
    let words = completion(command);
    match shell {
        Shell::Bash => bash(name, &words),
        Shell::Zsh => zsh(name, &words),
        Shell::Fish => fish(name, &words),
    }
}

fn bash(name: &str, words: &[Completion]) -> String {
    let mut out = format!(
        "_berth_{name}() {{\n  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}\n"
    );
    out.push_str("  [[ $cur == = ]] && cur=\n  [[ $prev == = ]] && prev=${COMP_WORDS[COMP_CWORD-2]}\n  case $prev in\n");
    for word in words.iter().filter(|w| !w.choices.is_empty()) {
        let choices = word.choices.join(" ");
        out.push_str(&format!(
            "    {}) COMPREPLY=($(compgen -W '{choices}' -- \"$cur\")); return ;;\n",
            word.word
        ));
    }
    out.push_str("  esac\n");
    let all: Vec<String> =
        words
            .iter()
            .map(|w| {
                if w.takes_value && w.word.starts_with("--") {
                    format!("{}=", w.word)
                } else {
                    w.word.clone()
                }
            })
            .collect();
    out.push_str(&format!(
        "  if [[ $cur == -* ]]; then\n    COMPREPLY=($(compgen -W '{}' -- \"$cur\"))\n    [[ ${{COMPREPLY[0]-}} == *= ]] && \
         compopt -o nospace\n  else\n    COMPREPLY=($(compgen -f -- \"$cur\"))\n  fi\n}}\ncomplete -F _berth_{name} {name}\n",
        all.join(" ")
    ));
    out
}

/// The first sentence of a help text, without what shells would read.
fn first_sentence(help: &str) -> String {
    let end = help.find(". ").unwrap_or(help.len());
    help[..end].trim_end_matches('.').replace(['\'', '[', ']', ':', '\\'], " ")
}

fn zsh(name: &str, words: &[Completion]) -> String {
    let mut out = format!("#compdef {name}\n_arguments -S \\\n");
    for word in words {
        let value = match (word.takes_value, word.choices.is_empty()) {
            (false, _) => String::new(),
            (true, true) => ":value:_files".to_string(),
            (true, false) => format!(":value:({})", word.choices.join(" ")),
        };
        let glue = if word.takes_value && word.word.starts_with("--") { "=" } else { "" };
        out.push_str(&format!("  '*{}{glue}[{}]{value}' \\\n", word.word, first_sentence(word.help)));
    }
    out.push_str("  '*::command:_normal'\n");
    out
}

fn fish(name: &str, words: &[Completion]) -> String {
    let mut out = String::new();
    for word in words {
        let flag = match word.word.strip_prefix("--") {
            Some(long) => format!("-l {long}"),
            None => format!("-s {}", word.word.trim_start_matches('-')),
        };
        let value = match (word.takes_value, word.choices.is_empty()) {
            (false, _) => String::new(),
            (true, true) => " -r".to_string(),
            (true, false) => format!(" -x -a '{}'", word.choices.join(" ")),
        };
        out.push_str(&format!("complete -c {name} {flag}{value} -d '{}'\n", first_sentence(word.help)));
    }
    out
}
