//! Command lines by the conventions of GNU `getopt_long`, driven by the table.

use super::resolve::{OptionError, Setting, Source, refusal};
use super::row::{Action, Command, Info, OptionRow, ValueKind};
use crate::bytes::ByteStr;

/// What a list of words says.
#[derive(Clone, Debug)]
pub struct Words {
    /// The options, in order.
    pub settings: Vec<Setting>,
    /// `--help`, `--usage` or `--version`: nothing after it was read.
    pub info: Option<Info>,
    /// The first word that is no option, and all after it.
    pub rest: Vec<ByteStr>,
}

/// Reads `words` (without the program's name) up to the first one that is no option.
pub fn parse(command: Command, words: &[ByteStr], source: Source) -> Result<Words, OptionError> {
    let mut out = Words { settings: Vec::new(), info: None, rest: Vec::new() };
    let mut at = 0;
    while let Some(word) = words.get(at) {
        at += 1;
        let bytes = word.0.as_slice();
        if bytes == b"--" {
            out.rest = words[at..].to_vec();
            break;
        }
        if bytes.len() < 2 || bytes[0] != b'-' {
            out.rest = words[at - 1..].to_vec();
            break;
        }
        let mut next = || {
            let value = words.get(at).cloned();
            at += usize::from(value.is_some());
            value
        };
        let done = match bytes.strip_prefix(b"--") {
            Some(body) => long(command, word, body, source, &mut next, &mut out)?,
            None => shorts(command, &bytes[1..], source, &mut next, &mut out)?,
        };
        if done {
            return Ok(out);
        }
    }
    Ok(out)
}

/// Takes one long option; whether reading ends with it.
fn long(
    command: Command,
    word: &ByteStr,
    body: &[u8],
    source: Source,
    next: &mut dyn FnMut() -> Option<ByteStr>,
    out: &mut Words,
) -> Result<bool, OptionError> {
    let (name, glued) = match body.iter().position(|b| *b == b'=') {
        Some(at) => (&body[..at], Some(ByteStr::from(&body[at + 1..]))),
        None => (body, None),
    };
    let row = find_long(command, &String::from_utf8_lossy(name), &word.display())?;
    let value = match (row.value, glued) {
        _ if !row.works() => None,
        (ValueKind::Flag | ValueKind::Switch, None) | (ValueKind::Optional(_), None) => None,
        (ValueKind::Flag | ValueKind::Switch, Some(_)) => {
            return Err(OptionError::usage(format!("option '--{}' doesn't allow an argument", row.long)));
        }
        (ValueKind::Required(_) | ValueKind::Optional(_), Some(value)) => Some(value),
        (ValueKind::Required(_), None) => Some(
            next()
                .ok_or_else(|| OptionError::usage(format!("option '--{}' requires an argument", row.long)))?,
        ),
    };
    push(row, value, source, out)
}

/// The row with this name, or the only one whose name begins so.
fn find_long(command: Command, name: &str, word: &str) -> Result<&'static OptionRow, OptionError> {
    let mut begin: Vec<(&'static str, &'static OptionRow)> = Vec::new();
    for row in super::rows(command) {
        for long in row.names() {
            if long == name {
                return Ok(row);
            }
            if long.starts_with(name) {
                begin.push((long, row));
            }
        }
    }
    match begin.as_slice() {
        [] => Err(OptionError::usage(format!("unrecognized option '{word}'"))),
        [(_, row), others @ ..] if others.iter().all(|(_, other)| std::ptr::eq(*other, *row)) => Ok(row),
        many => {
            let mut names: Vec<String> = many.iter().map(|(long, _)| format!("'--{long}'")).collect();
            names.sort();
            let line = format!("option '{word}' is ambiguous; possibilities: {}", names.join(" "));
            Err(OptionError::usage(line))
        }
    }
}

/// Takes a word of short options; whether reading ends with it.
fn shorts(
    command: Command,
    letters: &[u8],
    source: Source,
    next: &mut dyn FnMut() -> Option<ByteStr>,
    out: &mut Words,
) -> Result<bool, OptionError> {
    let mut rest = letters;
    while let Some((letter, after)) = rest.split_first() {
        let shown = char::from(*letter);
        let row = super::rows(command)
            .find(|row| row.short == Some(*letter))
            .ok_or_else(|| OptionError::usage(format!("invalid option -- '{shown}'")))?;
        rest = after;
        let value = match row.value {
            _ if !row.works() => None,
            ValueKind::Flag | ValueKind::Switch => None,
            ValueKind::Optional(_) if rest.is_empty() => None,
            ValueKind::Required(_) if rest.is_empty() => Some(
                next()
                    .ok_or_else(|| OptionError::usage(format!("option requires an argument -- '{shown}'")))?,
            ),
            ValueKind::Optional(_) | ValueKind::Required(_) => Some(ByteStr::from(std::mem::take(&mut rest))),
        };
        if push(row, value, source, out)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn push(
    row: &'static OptionRow,
    value: Option<ByteStr>,
    source: Source,
    out: &mut Words,
) -> Result<bool, OptionError> {
    match row.action {
        Action::Refused(instead) => Err(refusal(row, source, instead)),
        Action::Info(info) if source == Source::CommandLine => {
            out.info = Some(info);
            Ok(true)
        }
        _ => {
            out.settings.push(Setting { row, value, source });
            Ok(false)
        }
    }
}
