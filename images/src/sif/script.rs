//! What a script puts into the environment, told without running it: assignments and `export` that stand outside of conditions,
//! loops and functions, with quotes and variables as a shell has them. Whatever needs more of a shell is left out.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// What `PATH` is where nobody says it, as in every container.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes that variables may become in all: each line can double what the one before made.
const EXPANDED: usize = 1 << 20;
/// How deep defaults of variables may stand in one another.
const NESTED: u32 = 8;

/// The variables of a shell that reads scripts.
pub(crate) struct Shell {
    variables: BTreeMap<String, Variable>,
    /// Exports so far, for their order.
    exports: usize,
    /// Bytes that variables may still become.
    budget: usize,
}

#[derive(Default)]
struct Variable {
    /// None where only a shell could say it.
    value: Option<String>,
    exported: Option<usize>,
}

impl Shell {
    /// One that begins with variables of these lines `NAME=VALUE`, none of which it exported itself.
    pub(crate) fn starting_with(lines: &[String]) -> Shell {
        let lines = lines.iter().filter_map(|line| line.split_once('='));
        let variables = [("PATH", USUAL_PATH)].into_iter().chain(lines).map(|(name, value)| {
            (name.to_owned(), Variable { value: Some(value.to_owned()), exported: None })
        });
        Shell { variables: variables.collect(), exports: 0, budget: EXPANDED }
    }

    /// Reads a script.
    pub(crate) fn read(&mut self, script: &[u8]) {
        let text = String::from_utf8_lossy(script);
        let mut lexer = Lexer { rest: &text };
        let mut nesting: Vec<&str> = Vec::new();
        let mut words: Vec<&str> = Vec::new();
        // Whether the command runs for certain, and in this shell; whether it goes on in the next line.
        let (mut runs, mut joined) = (true, false);
        loop {
            let token = lexer.next();
            match token {
                Some(Token::Word(word)) => {
                    joined = false;
                    if !words.is_empty() {
                        words.push(word);
                    } else if nesting.last() == Some(&word) {
                        nesting.pop();
                        // What it came to is not known.
                        runs = false;
                    } else {
                        match word {
                            "if" => nesting.push("fi"),
                            "for" | "while" | "until" | "select" => nesting.push("done"),
                            "case" => nesting.push("esac"),
                            "{" => nesting.push("}"),
                            "then" | "else" | "elif" | "do" | "!" => runs = false,
                            // Its name is no command.
                            "function" => drop(lexer.next()),
                            _ => words.push(word),
                        }
                    }
                }
                Some(Token::Open) => {
                    nesting.push(")");
                    words.clear();
                }
                Some(Token::Close) => {
                    nesting.pop_if(|end| *end == ")");
                    words.clear();
                    runs = false;
                }
                Some(Token::Redirection) => runs = false,
                Some(Token::Or | Token::Pipe) if words.is_empty() => (runs, joined) = (false, true),
                Some(Token::Pipe) => {
                    words.clear();
                    (runs, joined) = (false, true);
                }
                Some(Token::Line) if joined => {}
                Some(Token::And | Token::Or | Token::Line | Token::End | Token::Background) | None => {
                    let background = matches!(token, Some(Token::Background));
                    let taken = runs && nesting.is_empty() && !background && self.command(&words);
                    words.clear();
                    (runs, joined) = match token {
                        None => return,
                        Some(Token::And) => (taken, true),
                        Some(Token::Or) => (false, true),
                        _ => (true, false),
                    };
                }
            }
        }
    }

    /// What was exported, in the order of the last exports.
    pub(crate) fn exported(self) -> Vec<(String, String)> {
        let mut all: Vec<_> = self
            .variables
            .into_iter()
            .filter_map(|(name, variable)| Some((variable.exported?, name, variable.value?)))
            .collect();
        all.sort();
        all.into_iter().map(|(_, name, value)| (name, value)).collect()
    }

    /// Does what a command does; false where it does something that is not known.
    fn command(&mut self, words: &[&str]) -> bool {
        let (export, words) = match words {
            ["export", words @ ..] => (true, words),
            words => (false, words),
        };
        let split = |word: &&str| match word.split_once('=') {
            Some((name, _)) => is_name(name),
            None => export && is_name(word),
        };
        if words.is_empty() || !words.iter().all(split) {
            return false;
        }
        for word in words {
            match word.split_once('=') {
                Some((name, value)) => self.assign(name, value, export),
                None => self.export(word),
            }
        }
        true
    }

    fn export(&mut self, name: &str) {
        if let Some(variable) = self.variables.get_mut(name) {
            self.exports += 1;
            variable.exported = Some(self.exports);
        }
    }

    fn assign(&mut self, name: &str, word: &str, export: bool) {
        // Without a value of its own the variable is that of the caller, if there is one.
        if word != format!("\"${{{name}:-}}\"") {
            let value = self.expand(&mut word.chars().peekable(), None, 0);
            let variable = self.variables.entry(name.to_owned()).or_default();
            if value.is_none() && variable.value.is_some() {
                return;
            }
            variable.value = value;
        }
        if export {
            self.export(name);
        }
    }

    /// What a shell makes of a word, or of one in braces (`within`: whether these stand in double quotes); nothing, where that
    /// takes more than quotes and variables.
    fn expand(&mut self, rest: &mut Peekable<Chars<'_>>, within: Option<bool>, depth: u32) -> Option<String> {
        let always = within == Some(true);
        let (mut out, mut double) = (String::new(), always);
        while let Some(c) = rest.next() {
            match c {
                '\0' => return None,
                '}' if within.is_some() && double == always => return Some(out),
                '"' => double = always || !double,
                '\'' if !double => loop {
                    match rest.next()? {
                        '\'' => break,
                        c => out.push(c),
                    }
                },
                '\\' => match rest.next()? {
                    '\n' => {}
                    next @ ('"' | '\\' | '$' | '`') => out.push(next),
                    next if double => out.extend(['\\', next]),
                    next => out.push(next),
                },
                '$' => {
                    let value = self.parameter(rest, double, depth)?;
                    self.budget = self.budget.checked_sub(value.len())?;
                    out.push_str(&value);
                }
                '`' => return None,
                '*' | '?' | '[' | '~' | '(' | ')' if !double => return None,
                _ => out.push(c),
            }
        }
        (within.is_none() && !double).then_some(out)
    }

    /// The value of a variable: `NAME`, `{NAME}`, or with a default, `{NAME:-WORD}`, or a replacement, `{NAME:+WORD}`.
    fn parameter(&mut self, rest: &mut Peekable<Chars<'_>>, double: bool, depth: u32) -> Option<String> {
        let braced = rest.next_if_eq(&'{').is_some();
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
        if !is_name(&name) {
            return None;
        }
        let value = match self.variables.get(&name) {
            Some(Variable { value: None, .. }) => return None,
            Some(Variable { value: Some(value), .. }) => Some(value.clone()),
            None => None,
        };
        if !braced || rest.next_if_eq(&'}').is_some() {
            return Some(value.unwrap_or_default());
        }
        let empty = rest.next_if_eq(&':').is_some();
        let operator = rest.next()?;
        if depth == NESTED || !matches!(operator, '-' | '+') {
            return None;
        }
        let word = self.expand(rest, Some(double), depth + 1)?;
        let value = value.filter(|value| !(empty && value.is_empty()));
        Some(match operator {
            '-' => value.unwrap_or(word),
            _ => value.map_or(String::new(), |_| word),
        })
    }
}

fn is_name(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.bytes().next().is_some_and(|b| !b.is_ascii_digit()) && text.bytes().all(letter)
}

enum Token<'a> {
    Word(&'a str),
    /// The end of a line.
    Line,
    /// `;`.
    End,
    And,
    Or,
    Pipe,
    Background,
    Open,
    Close,
    Redirection,
}

/// Divides a script into words, as they are written, and what stands between them.
struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let rest = self.rest.trim_start_matches([' ', '\t', '\r']);
            self.rest = match (rest.strip_prefix("\\\n"), rest.starts_with('#')) {
                (Some(rest), _) => rest,
                (None, true) => rest.find('\n').map_or("", |end| &rest[end..]),
                (None, false) => rest,
            };
            if self.rest.len() == rest.len() {
                break;
            }
        }
        // Its text is no script, and where it ends is for a shell to say.
        if self.rest.starts_with("<<") && !self.rest.starts_with("<<<") {
            self.rest = "";
            return Some(Token::Redirection);
        }
        for (text, token) in [
            ("\n", Token::Line),
            (";", Token::End),
            ("&&", Token::And),
            ("&>", Token::Redirection),
            ("&", Token::Background),
            ("||", Token::Or),
            ("|", Token::Pipe),
            ("(", Token::Open),
            (")", Token::Close),
            ("<&", Token::Redirection),
            (">&", Token::Redirection),
            ("<", Token::Redirection),
            (">", Token::Redirection),
        ] {
            if let Some(rest) = self.rest.strip_prefix(text) {
                self.rest = rest;
                return Some(token);
            }
        }
        let (word, rest) = self.rest.split_at(word(self.rest));
        self.rest = rest;
        (!word.is_empty()).then_some(Token::Word(word))
    }
}

/// Bytes of the word that a text begins with.
fn word(text: &str) -> usize {
    let mut bytes = text.bytes().enumerate().peekable();
    // Braces that are open, and whether they stand in double quotes: what is in such is quoted, whatever stands in it.
    let mut braces: Vec<bool> = Vec::new();
    let (mut double, mut parentheses, mut command) = (false, 0_usize, false);
    while let Some((at, byte)) = bytes.next() {
        let within = braces.last() == Some(&true);
        let quoted = double || within;
        match byte {
            b'\\' => drop(bytes.next()),
            b'\'' if !quoted => drop(bytes.find(|(_, byte)| *byte == b'\'')),
            b'"' if !within => double = !double,
            b'`' => command = !command,
            b'$' if bytes.next_if(|(_, byte)| *byte == b'{').is_some() => braces.push(quoted),
            b'$' if bytes.next_if(|(_, byte)| *byte == b'(').is_some() => parentheses += 1,
            b'}' if within || !double => drop(braces.pop()),
            b'(' if parentheses > 0 => parentheses += 1,
            b')' if parentheses > 0 => parentheses -= 1,
            b' ' | b'\t' | b'\r' | b'\n' | b';' | b'&' | b'|' | b'(' | b')' | b'<' | b'>'
                if !quoted && braces.is_empty() && parentheses == 0 && !command =>
            {
                return at;
            }
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exported(before: &[&str], scripts: &[&str]) -> Vec<String> {
        let lines: Vec<String> = before.iter().map(ToString::to_string).collect();
        let mut shell = Shell::starting_with(&lines);
        scripts.iter().for_each(|script| shell.read(script.as_bytes()));
        shell.exported().into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn variables_as_a_shell_would_have_them() {
        let docker = "#!/bin/sh\nexport PATH=\"/usr/local/bin:/usr/bin\"\nexport LANG=\"${LANG:-\"C.UTF-8\"}\"\n\
            export EMPTY=\"${EMPTY:-}\"\nexport QUOTE=\"${QUOTE:-\"a \\\"b\\\" \\$c \\\\ \\`d it's\"}\"\nexport GONE=\"${GONE:-\"\"}\"\n";
        let own = "# what the definition says\n    export PATH=/opt/bin:$PATH\n\texport A='x $y'\r\n export B=${A}z # why\nC=1\n\
            export D=1; export E=$(date; echo \"a b\")\nexport F=`date +%s`\nexport G=a H=\"$C\"\nexport 1I=x\nexport J-K=x\n\
            export L=${PATH%:*}\nexport M=\nN=2 O='3\n4'\nexport N O NONE\nP=1 command\nexport P \\\n  Q=5\n\
            export R=/lib:${LD_LIBRARY_PATH:-/usr/lib}${C:+:more}${S+x}\nS=$(uname)\nexport T=$S";
        assert_eq!(
            exported(&[], &[docker, own]),
            [
                "LANG=C.UTF-8",
                "QUOTE=a \"b\" $c \\ `d it's",
                "GONE=",
                "PATH=/opt/bin:/usr/local/bin:/usr/bin",
                "A=x $y",
                "B=x $yz",
                "D=1",
                "G=a",
                "H=1",
                "M=",
                "N=2",
                "O=3\n4",
                "Q=5",
                "R=/lib:/usr/lib:more"
            ]
        );
        assert_eq!(exported(&[], &["export A=1\nexport B=\"open\nexport C=1\n"]), ["A=1"]);
    }

    #[test]
    fn what_was_known_before_is_used_and_not_given_back() {
        let conda = "    export PATH=/opt/conda/bin:$PATH\n";
        assert_eq!(exported(&[], &[conda]), [format!("PATH=/opt/conda/bin:{USUAL_PATH}")]);
        assert_eq!(
            exported(&["PATH=/own", "A=1"], &[conda, "export B=$A"]),
            ["PATH=/opt/conda/bin:/own", "B=1"]
        );
    }

    #[test]
    fn what_may_not_run_is_left_out_to_its_end() {
        let script = "if [ -d /x ]; then\n  export A=1\n  if true; then export B=1; fi\n  export C=1\nelse export D=1\nfi\n\
            for x in a b; do export E=$x; done\ncase $y in\n  a) export F=1 ;;\n  (b)\n    export G=1;;\nesac\n\
            f() {\n  export H=1\n}\nfunction g {\nexport I=1\n}\n{ export J=1; }\n(export K=1)\ntrue && export L=1\n\
            false ||\n  export M=1\nexport N=1 | cat\nexport O=1 &\nwhile false; do\nexport P=1\ndone\nlist=(a b)\n\
            [ -x if ] && export Q=1\n! export R=1\nexport S=1 > /x\nexport Y=1 && export Z=\"if {\"\n";
        assert_eq!(exported(&[], &[script]), ["Y=1", "Z=if {"]);
        assert_eq!(exported(&[], &["export A=1\ncat <<END\nexport B=1\nEND\n"]), ["A=1"]);
        // Unbalanced, as no shell takes it.
        assert_eq!(exported(&[], &["fi\n}\n)\nexport A=1\ndone esac\nif if if { ( (\nexport B=1"]), ["A=1"]);
    }

    #[test]
    fn a_script_cannot_take_memory_or_the_stack() {
        let doubled = format!("export A=0123456789abcdef\n{}", "export A=$A$A\n".repeat(100));
        let all = exported(&[], &[&doubled]);
        assert!(all.len() == 1 && all[0].len() <= EXPANDED, "{}", all[0].len());
        let deep = format!("export B={}x{}\nexport C=1", "${A:-".repeat(50_000), "}".repeat(50_000));
        assert_eq!(exported(&[], &[&deep]), ["C=1"]);
        let many: String = (0..20_000).map(|n| format!("export V{n}=$V0\n")).collect();
        assert_eq!(exported(&["V0=x"], &[&many]).len(), 20_000);
        exported(&[], &[&"if (".repeat(100_000)]);
    }
}
