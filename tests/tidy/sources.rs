//! Rules for Rust sources: size, unsafe, unwrap, first lines, unfinished words, dead code in comments.

use crate::lexer::{Line, lines};
use crate::{Complaints, files, workspace};
use std::path::Path;

const MOST_LINES: usize = 800;

struct Source {
    name: String,
    text: String,
    lines: Vec<Line>,
    all_test: bool,
}

fn sources() -> Vec<Source> {
    let mut result = Vec::new();
    // What a program wrote, a test compares with what it would write now.
    for name in files(|n| n.ends_with(".rs") && !n.contains("/generated/")) {
        let text = std::fs::read_to_string(workspace().join(&name)).unwrap();
        let stem_is_test = Path::new(&name).file_name().is_some_and(|f| f == "tests.rs");
        // A panic is how a fuzz target tells what it found.
        let fuzz = name.contains("/fuzz_targets/");
        let all_test = name.starts_with("tests/") || name.contains("/tests/") || stem_is_test || fuzz;
        result.push(Source { lines: lines(&text), name, text, all_test });
    }
    assert!(result.len() > 20, "the walk found only {} sources", result.len());
    result
}

fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let letter = |c: char| c.is_alphanumeric() || c == '_';
        !code[..at].ends_with(letter) && !code[at + word.len()..].starts_with(letter)
    })
}

#[test]
fn no_file_is_two_things() {
    let mut complaints = Complaints::default();
    for source in sources() {
        let count = source.lines.iter().filter(|l| !l.code.trim().is_empty()).count();
        if count > MOST_LINES {
            complaints.add(&source.name, 1, format!("{count} lines of code; at most {MOST_LINES}"));
        }
    }
}

#[test]
fn unsafe_is_in_one_place_and_explained() {
    let mut complaints = Complaints::default();
    for source in sources() {
        let at_home = source.name.starts_with("runtime/src/sys");
        for (at, line) in source.lines.iter().enumerate() {
            if !has_word(&line.code, "unsafe") {
                continue;
            }
            if !at_home {
                complaints.add(&source.name, at + 1, "unsafe outside runtime/src/sys");
                continue;
            }
            let near = &source.lines[at.saturating_sub(8)..=at];
            let block = has_word(&line.code, "unsafe") && line.code.contains("unsafe {");
            if block && !near.iter().any(|l| l.comment.contains("SAFETY:")) {
                complaints.add(&source.name, at + 1, "an unsafe block without a SAFETY: line");
            }
        }
        let root = source.name.ends_with("src/lib.rs") || source.name.ends_with("src/main.rs");
        let forbids = source.text.contains("#![forbid(unsafe_code)]");
        if root && !source.name.starts_with("runtime/") && !forbids {
            complaints.add(&source.name, 1, "a crate root without #![forbid(unsafe_code)]");
        }
    }
}

#[test]
fn nothing_unwraps_outside_tests() {
    let mut complaints = Complaints::default();
    for source in sources().iter().filter(|s| !s.all_test) {
        for (at, line) in source.lines.iter().enumerate().filter(|(_, l)| !l.test) {
            let unwraps = line.code.contains(".unwrap()") || line.code.contains(".expect(\"");
            let excused =
                source.lines[at.saturating_sub(1)..=at].iter().any(|l| l.comment.trim().starts_with("ok: "));
            if unwraps && !excused {
                complaints.add(
                    &source.name,
                    at + 1,
                    "unwrap or expect outside tests without `// ok: reason`",
                );
            }
        }
    }
}

/// A thread that cannot be had, and a reader or a disk that takes no more words, are the world's: no process dies of them.
#[test]
fn nothing_panics_for_want_of_a_thread_or_of_a_reader() {
    let mut complaints = Complaints::default();
    // What people run themselves, to build or to measure, may.
    let tool =
        |name: &str| name.starts_with("xtask/") || name.ends_with("build.rs") || name.contains("/examples/");
    for source in sources().iter().filter(|s| !s.all_test && !tool(&s.name)) {
        for (at, line) in source.lines.iter().enumerate().filter(|(_, l)| !l.test) {
            let macros = ["println!(", "eprintln!(", "print!(", "eprint!("];
            let says = macros
                .iter()
                .any(|name| has_word(&line.code, &name[..name.len() - 2]) && line.code.contains(name));
            let starts = ["thread::spawn(", "scope.spawn("].iter().any(|call| line.code.contains(call));
            let excused =
                source.lines[at.saturating_sub(1)..=at].iter().any(|l| l.comment.trim().starts_with("ok: "));
            if (says || starts) && !excused {
                let instead =
                    if starts { "thread::Builder" } else { "writeln!, whose error may be nobody's" };
                complaints.add(
                    &source.name,
                    at + 1,
                    format!("it panics where the world refuses it: use {instead}"),
                );
            }
        }
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    let mut complaints = Complaints::default();
    for source in sources() {
        let first = source.text.lines().next().unwrap_or("");
        if !first.starts_with("//! ") || first.len() < 20 {
            complaints.add(
                &source.name,
                1,
                "the first line is no `//!` line that says what the module is for",
            );
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let macros = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!(")];
    let mut complaints = Complaints::default();
    for source in sources() {
        for (at, line) in source.lines.iter().enumerate() {
            for word in words.iter().filter(|w| has_word(&line.comment, w) || has_word(&line.code, w)) {
                complaints.add(&source.name, at + 1, format!("{word}: finish it, or open an issue"));
            }
            for word in macros.iter().filter(|w| line.code.contains(**w)) {
                complaints.add(&source.name, at + 1, format!("{word}…)"));
            }
        }
    }
    for name in
        files(|n| n.ends_with(".md") || n.ends_with(".sh") || n.ends_with(".toml") || n.ends_with(".proto"))
    {
        let text = std::fs::read_to_string(workspace().join(&name)).unwrap();
        for (at, line) in text.lines().enumerate() {
            for word in words.iter().filter(|w| has_word(line, w)) {
                complaints.add(&name, at + 1, format!("{word}: finish it, or open an issue"));
            }
        }
    }
}

/// cargo-fuzz goes by the manifest, and test runs by `mod.rs`: a target that is not in both does not run.
#[test]
fn every_fuzz_target_is_run() {
    let mut complaints = Complaints::default();
    let mut seen = 0;
    for source in sources().iter().filter(|s| s.text.contains("fuzz_target!(")) {
        let Some((directory, file)) = source.name.split_once("/fuzz_targets/") else { continue };
        seen += 1;
        let read = |name: &str| std::fs::read_to_string(workspace().join(directory).join(name)).unwrap();
        let module = format!("mod {};", file.trim_end_matches(".rs"));
        if !read("fuzz_targets/mod.rs").lines().any(|line| line == module) {
            complaints.add(&source.name, 1, "a fuzz target that is not in mod.rs, so that no test runs it");
        }
        if !read("Cargo.toml").contains(&format!("path = \"fuzz_targets/{file}\"")) {
            complaints.add(&source.name, 1, "a fuzz target that the manifest does not name to cargo-fuzz");
        }
    }
    assert!(seen > 30, "the walk found only {seen} fuzz targets");
}

#[test]
fn no_code_sleeps_in_comments() {
    let mut complaints = Complaints::default();
    for source in sources() {
        for (at, line) in source.lines.iter().enumerate() {
            let comment = line.comment.trim();
            let documentation = line.comment.starts_with('/') || line.comment.starts_with('!');
            let looks = comment.ends_with(';') && (comment.contains(" = ") || comment.contains('('))
                || comment.starts_with("let ")
                || comment.starts_with("use ") && comment.ends_with(';');
            if looks && !documentation {
                complaints.add(&source.name, at + 1, "this comment looks like code that was commented out");
            }
        }
    }
}

#[test]
fn every_exception_from_a_lint_has_its_reason() {
    let mut complaints = Complaints::default();
    for source in sources() {
        for (at, line) in source.lines.iter().enumerate() {
            let allows = line.code.contains("#[allow(") || line.code.contains("#![allow(");
            let expects = line.code.contains("#[expect(") || line.code.contains("#[ignore]");
            let near = &source.lines[at.saturating_sub(1)..=(at + 9).min(source.lines.len() - 1)];
            let reason = near.iter().any(|l| l.code.contains("reason ="))
                || near[..2.min(near.len())].iter().any(|l| {
                    let comment = l.comment.trim();
                    !comment.is_empty() && !l.comment.starts_with('/')
                });
            if (allows || expects) && !reason {
                complaints.add(&source.name, at + 1, "an exception from a lint without its reason");
            }
        }
    }
}
