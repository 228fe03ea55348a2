//! Reads transcripts: blocks of a command, what it was given, and what it printed.

use std::path::Path;

/// One thing of a transcript, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file made before the next command.
    File {
        /// Its name in the working directory.
        name: String,
        /// Permission bits.
        mode: u32,
        /// Its content.
        data: Vec<u8>,
    },
    /// A command and what it did.
    Command(Block),
}

/// A command and what it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Line of the transcript at which it stands.
    pub line: usize,
    /// What the shell was given.
    pub command: String,
    /// Who ran it, when it was not the usual user.
    pub user: Option<String>,
    /// Variables that were set.
    pub env: Vec<(String, String)>,
    /// Where it ran, when not in the usual directory.
    pub cwd: Option<String>,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// Exit status, or a word where there is none.
    pub rc: String,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Reads a transcript.
pub fn read(path: &Path) -> std::io::Result<Vec<Entry>> {
    Ok(parse(&String::from_utf8_lossy(&std::fs::read(path)?)))
}

/// The entries of a transcript's text.
pub fn parse(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut current: Vec<(usize, &str)> = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        // Lines of streams have a mark, so an empty line always separates.
        if line.is_empty() {
            entries.extend(entry(&current));
            current.clear();
        } else {
            current.push((number + 1, line));
        }
    }
    entries.extend(entry(&current));
    entries
}

fn entry(lines: &[(usize, &str)]) -> Option<Entry> {
    let start = lines.iter().position(|(_, l)| l.starts_with("$ ") || l.starts_with("file: "))?;
    let (number, first) = lines[start];
    let rest = &lines[start + 1..];
    if let Some(head) = first.strip_prefix("file: ") {
        let (name, mode) = head.rsplit_once(" mode ")?;
        let cut = rest.iter().any(|(_, l)| *l == "noeol: data");
        let mut data = bytes(&stream(rest, "% "));
        if cut {
            data.pop();
        }
        let mode = u32::from_str_radix(mode, 8).ok()?;
        return Some(Entry::File { name: name.to_string(), mode, data });
    }
    let mut block = Block { line: number, command: first[2..].to_string(), ..Block::default() };
    let mut header = true;
    for (_, line) in rest {
        if let Some(more) = line.strip_prefix("> ").filter(|_| header) {
            block.command.push('\n');
            block.command.push_str(more);
            continue;
        }
        header = false;
        if let Some((key, value)) = line.split_once(": ") {
            match key {
                "user" => block.user = Some(value.to_string()),
                "cwd" => block.cwd = Some(value.to_string()),
                "rc" => block.rc = value.to_string(),
                "env" => block.env.extend(value.split_once('=').map(|(k, v)| (k.to_string(), v.to_string()))),
                _ => {}
            }
        }
    }
    let ends = |name: &str| !rest.iter().any(|(_, l)| *l == format!("noeol: {name}"));
    let text = |mark: &str, name: &str| {
        let mut text = stream(rest, mark);
        if !ends(name) {
            text.pop();
        }
        text
    };
    block.stdin = text("< ", "in").into_bytes();
    block.out = text("| ", "out");
    block.err = text("! ", "err");
    Some(Entry::Command(block))
}

/// The lines with this mark, each with its line end.
fn stream(lines: &[(usize, &str)], mark: &str) -> String {
    lines.iter().filter_map(|(_, l)| l.strip_prefix(mark)).map(|l| format!("{l}\n")).collect()
}

/// Text with `\xNN` for bytes that are none.
fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = (rest.starts_with(b"\\x") && rest.len() >= 4)
            .then(|| std::str::from_utf8(&rest[2..4]).ok().and_then(|h| u8::from_str_radix(h, 16).ok()))
            .flatten();
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &rest[4..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_files_and_streams() {
        let text = "file: a b mode 755\ndata:\n% #!/bin/sh\n% \n% \\x7fx\nnoeol: data\n\n# said\n$ one\n> two\nuser: bob\nenv: A=b=c\nin:\n< x\nrc: 3\nout:\n| a \n| \n| b\nerr:\n! e\nnoeol: err\n";
        let entries = parse(text);
        let data = b"#!/bin/sh\n\n\x7fx".to_vec();
        assert_eq!(entries[0], Entry::File { name: "a b".into(), mode: 0o755, data });
        let Entry::Command(block) = &entries[1] else { panic!("{entries:?}") };
        assert_eq!((block.command.as_str(), block.line, block.rc.as_str()), ("one\ntwo", 9, "3"));
        assert_eq!((block.user.as_deref(), block.env.len()), (Some("bob"), 1));
        assert_eq!(
            (block.stdin.as_slice(), block.out.as_str(), block.err.as_str()),
            (&b"x\n"[..], "a \n\nb\n", "e")
        );
        assert_eq!(entries.len(), 2);
    }
}
