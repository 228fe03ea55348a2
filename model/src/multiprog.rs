//! `srun --multi-prog`: a file that says which task runs which program.
//!
//! A line has tasks (`0-3,7`, or `*` for all that no other line names), a program, and its arguments. `%t` stands for the task's
//! number, `%o` for its place among the tasks of its line. Quotes keep blanks together, single ones `%`, too; a backslash takes the
//! next byte as it is, and at the end of a line goes on with the next one. Lines that begin with `#` are comments.

use crate::bytes::ByteStr;
use serde::{Deserialize, Serialize};

/// Largest file, in bytes.
pub const LARGEST: usize = 256 << 10;

/// A line: some tasks and what they run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RankProgram {
    /// First and last task of each range, in order; empty for `*`.
    pub ranks: Vec<(u32, u32)>,
    /// Program and arguments: `%t`, `%o`, and `%%` for a percent sign.
    pub argv: Vec<ByteStr>,
}

/// A file that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct BadProgram {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// A task that no line names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no program is named for task {0}: add a line for it, or one that begins with '*' for all others")]
pub struct NoProgram(pub u32);

/// Reads a file.
///
/// # Errors
/// The first line that cannot be followed: what is no task, a task that is named twice, a quote without an end, no program.
pub fn parse(text: &[u8]) -> Result<Vec<RankProgram>, BadProgram> {
    if text.len() > LARGEST {
        let why = format!("the file has {} bytes, and at most {LARGEST} are taken", text.len());
        return Err(BadProgram { line: 1, why });
    }
    let mut programs: Vec<RankProgram> = Vec::new();
    let mut at = 0;
    let mut line = 1;
    while at < text.len() {
        let bad = |why: String| BadProgram { line, why };
        let (words, next, lines) = words(&text[at..]).map_err(|why| bad(why.to_string()))?;
        at += next;
        if let Some((ranks, argv)) = words.split_first() {
            let ranks = tasks(ranks).map_err(bad)?;
            if argv.is_empty() {
                return Err(bad(format!("no program follows the tasks '{}'", words[0].display())));
            }
            for other in &programs {
                if let Some(task) = common(&other.ranks, &ranks) {
                    let why = match task {
                        Some(task) => format!("task {task} has a program already"),
                        None => "'*' stands in an earlier line already".to_string(),
                    };
                    return Err(bad(why));
                }
            }
            programs.push(RankProgram { ranks, argv: argv.to_vec() });
        }
        line += lines;
    }
    match programs.is_empty() {
        true => Err(BadProgram {
            line: 1,
            why: "the file names no program: write lines such as '0-3 ./worker %t'".into(),
        }),
        false => Ok(programs),
    }
}

/// What the task of this number runs.
///
/// # Errors
/// No line names it.
pub fn argv(programs: &[RankProgram], task: u32) -> Result<Vec<ByteStr>, NoProgram> {
    let of = |program: &RankProgram| place(&program.ranks, task);
    let named = programs.iter().find_map(|program| Some((program, of(program)?)));
    // The place of a task that only '*' names is its number, as Slurm has it.
    let rest = || programs.iter().find(|program| program.ranks.is_empty()).map(|program| (program, task));
    let (program, place) = named.or_else(rest).ok_or(NoProgram(task))?;
    Ok(program.argv.iter().map(|word| filled(&word.0, task, place)).collect())
}

/// Whether each of so many tasks has a program, and each program that is named a task.
///
/// # Errors
/// The first task that has none.
pub fn check(programs: &[RankProgram], tasks: u32) -> Result<(), NoProgram> {
    if programs.iter().any(|program| program.ranks.is_empty()) {
        return Ok(());
    }
    let mut ranges: Vec<(u32, u32)> =
        programs.iter().flat_map(|program| program.ranks.iter().copied()).collect();
    ranges.sort_unstable();
    let mut next = 0;
    for (first, last) in ranges {
        if first > next {
            break;
        }
        next = next.max(last.saturating_add(1));
    }
    if next < tasks { Err(NoProgram(next)) } else { Ok(()) }
}

/// The place of a task among those of its line.
fn place(ranks: &[(u32, u32)], task: u32) -> Option<u32> {
    let mut passed: u32 = 0;
    for (first, last) in ranks {
        if (*first..=*last).contains(&task) {
            return Some(passed.saturating_add(task - first));
        }
        // One that ends before it begins is in no file that was read here, and names no task.
        passed = passed.saturating_add(last.saturating_sub(*first).saturating_add(1));
    }
    None
}

fn filled(word: &[u8], task: u32, place: u32) -> ByteStr {
    let mut out = Vec::with_capacity(word.len());
    let mut bytes = word.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => match bytes.next() {
                Some(b't') => out.extend_from_slice(task.to_string().as_bytes()),
                Some(b'o') => out.extend_from_slice(place.to_string().as_bytes()),
                Some(b'%') | None => out.push(b'%'),
                Some(other) => out.extend_from_slice(&[b'%', *other]),
            },
            byte => out.push(*byte),
        }
    }
    ByteStr(out)
}

/// A task of both, or `Some(None)` where both are `*`.
fn common(a: &[(u32, u32)], b: &[(u32, u32)]) -> Option<Option<u32>> {
    if a.is_empty() || b.is_empty() {
        return (a.is_empty() && b.is_empty()).then_some(None);
    }
    let both = |(first, last): &(u32, u32)| {
        b.iter().find(|(from, to)| from <= last && first <= to).map(|(from, _)| Some(*first.max(from)))
    };
    a.iter().find_map(both)
}

/// `0-3,7`, or `*`, which gives nothing.
fn tasks(text: &ByteStr) -> Result<Vec<(u32, u32)>, String> {
    let shown = text.display();
    if shown == "*" {
        return Ok(Vec::new());
    }
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for part in shown.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
        let range = range
            .ok_or_else(|| format!("'{part}' is no task: write numbers and ranges such as 0-3,7, or '*'"))?;
        if let Some(Some(task)) = common(&ranges, &[range]) {
            return Err(format!("task {task} is named twice"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// The words of the first line, with the lines that it goes on with: how many bytes and lines it has.
fn words(text: &[u8]) -> Result<(Vec<ByteStr>, usize, usize), &'static str> {
    #[derive(PartialEq)]
    enum In {
        Nothing,
        Single,
        Double,
    }
    let (mut words, mut word): (Vec<ByteStr>, Option<Vec<u8>>) = (Vec::new(), None);
    let (mut within, mut lines, mut at) = (In::Nothing, 0, 0);
    let first = text.iter().position(|b| !matches!(b, b' ' | b'\t')).unwrap_or(text.len());
    if text.get(first) == Some(&b'#') {
        let end = text.iter().position(|b| *b == b'\n').map_or(text.len(), |end| end + 1);
        return Ok((words, end, 1));
    }
    while let Some(&byte) = text.get(at) {
        at += 1;
        let mut put = |bytes: &[u8]| word.get_or_insert_with(Vec::new).extend_from_slice(bytes);
        match (byte, &within) {
            (b'\0', _) => return Err("it has a zero byte, which no argument can have"),
            (b'\'', In::Single) | (b'"', In::Double) => within = In::Nothing,
            (b'\n', In::Nothing) => {
                lines += 1;
                break;
            }
            (b'\n', _) => return Err("a quote has no end in its line"),
            (b'%', In::Single) => put(b"%%"),
            (b'%', _) if !matches!(text.get(at), Some(b't' | b'o')) => put(b"%%"),
            (byte, In::Single) => put(&[byte]),
            (b'\\', _) => match text.get(at) {
                None => {}
                Some(b'\n') => {
                    at += 1;
                    lines += 1;
                }
                Some(b'%') => {
                    at += 1;
                    put(b"%%");
                }
                Some(next) => {
                    at += 1;
                    put(&[*next]);
                }
            },
            (b'\'', In::Nothing) => {
                put(b"");
                within = In::Single;
            }
            (b'"', In::Nothing) => {
                put(b"");
                within = In::Double;
            }
            (b' ' | b'\t' | b'\r', In::Nothing) => words.extend(word.take().map(ByteStr)),
            (byte, _) => put(&[byte]),
        }
    }
    if within != In::Nothing {
        return Err("a quote has no end");
    }
    words.extend(word.take().map(ByteStr));
    Ok((words, at, lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(text: &str, task: u32) -> String {
        let programs = parse(text.as_bytes()).unwrap();
        match argv(&programs, task) {
            Ok(words) => words.iter().map(|w| format!("<{}>", w.display())).collect(),
            Err(e) => e.to_string(),
        }
    }

    /// The example of Slurm's manual, and what it says comes of it.
    #[test]
    fn slurms_example_is_read_as_its_manual_says() {
        let text = "# srun multiple program configuration file\n4-6       hostname\n1,7       echo  task:%t\n0,2-3     echo  offset:%o\n";
        for (task, expected) in [
            (0, "<echo><offset:0>"),
            (1, "<echo><task:1>"),
            (2, "<echo><offset:1>"),
            (3, "<echo><offset:2>"),
            (4, "<hostname>"),
            (7, "<echo><task:7>"),
        ] {
            assert_eq!(run(text, task), expected);
        }
        let programs = parse(text.as_bytes()).unwrap();
        assert_eq!(check(&programs, 8), Ok(()));
        assert_eq!(check(&programs, 9), Err(NoProgram(8)));
        assert!(run(text, 8).contains("no program is named for task 8"));
    }

    #[test]
    fn quotes_comments_and_lines_that_go_on() {
        assert_eq!(
            run("0 echo 'a %t' \"b %t\" c\\ d '' \\%t 100%\n", 0),
            "<echo><a %t><b 0><c d><><%t><100%>"
        );
        assert_eq!(run("  # none\n\n0 sh -c \\\n  'exit 3' \n* true\r\n", 0), "<sh><-c><exit 3>");
        assert_eq!(run("0 a\n* true %o", 5), "<true><5>");
        assert_eq!(run("* a\n3 b %%t", 3), "<b><%3>");
    }

    #[test]
    fn what_cannot_be_followed_is_named_by_its_line() {
        for (text, line, part) in [
            ("", 1, "names no program"),
            ("# nothing\n\n", 1, "names no program"),
            ("0 a\n\nx b\n", 3, "'x' is no task"),
            ("3-1 a\n", 1, "'3-1' is no task"),
            ("0 a \\\n b\n1\n", 3, "no program follows the tasks '1'"),
            ("0-3 a\n2,9 b\n", 2, "task 2 has a program already"),
            ("* a\n* b\n", 2, "'*' stands in an earlier line"),
            ("0,0 a\n", 1, "task 0 is named twice"),
            ("0 'a\n", 1, "a quote has no end"),
            ("0 \"a", 1, "a quote has no end"),
            ("-1 a\n", 1, "'-1' is no task"),
            ("99999999999 a\n", 1, "is no task"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.line == line && error.why.contains(part), "{text:?}: {error}");
        }
        assert!(parse(&vec![b'0'; LARGEST + 1]).is_err());
    }

    #[test]
    fn a_gap_is_found() {
        let check = |text: &str, tasks| check(&parse(text.as_bytes()).unwrap(), tasks);
        assert_eq!(check("0-1 a\n3 b\n", 3), Err(NoProgram(2)));
        assert_eq!(check("0-1 a\n3 b\n", 2), Ok(()));
        assert_eq!(check("3 b\n0-1 a\n2 c\n", 4), Ok(()));
        assert_eq!(check("0-4294967295 a\n", u32::MAX), Ok(()));
        assert_eq!(check("* a\n", u32::MAX), Ok(()));
    }

    /// A client of another make may send any ranges.
    #[test]
    fn ranges_that_no_file_has_name_no_task_twice_and_break_nothing() {
        let program = |ranks: &[(u32, u32)]| RankProgram { ranks: ranks.to_vec(), argv: vec!["a".into()] };
        let odd = [program(&[(5, 2), (7, 0)]), program(&[(u32::MAX, 0), (0, u32::MAX)])];
        assert_eq!(argv(&odd, 3).map(|words| words.len()), Ok(1));
        assert_eq!(argv(&odd[..1], 3), Err(NoProgram(3)));
        assert_eq!(check(&odd[..1], 1), Err(NoProgram(0)));
        assert_eq!(check(&[program(&[(0, 9), (2, 3)])], 10), Ok(()));
    }

    proptest! {
        #[test]
        fn nothing_breaks_the_reader(text in "[0-9*,\\- \\n'\"\\\\%ot#a]{0,60}", task in 0..12_u32) {
            if let Ok(programs) = parse(text.as_bytes()) {
                let all = (0..=task).all(|task| argv(&programs, task).is_ok());
                prop_assert_eq!(all, check(&programs, task + 1).is_ok());
                for program in &programs {
                    prop_assert!(!program.argv.is_empty());
                }
            }
        }
    }
}
