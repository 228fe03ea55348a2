//! Style is a test: the rules of the house, checked over every source, manifest, script and page.
#![forbid(unsafe_code)]

#[path = "tidy/house.rs"]
mod house;
#[path = "tidy/lexer.rs"]
mod lexer;
#[path = "tidy/sources.rs"]
mod sources;

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Root of the workspace.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Names of the workspace's files below its root, build output and version control left out.
fn files(wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut result = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(workspace().join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = directory.join(&name);
            let kind = entry.file_type().unwrap();
            if kind.is_dir()
                && !matches!(name.as_str(), "target" | ".git" | "proptest-regressions" | "corpus")
            {
                left.push(path);
            } else if kind.is_file() && wanted(&path.to_string_lossy()) {
                result.push(path.to_string_lossy().into_owned());
            }
        }
    }
    result.sort();
    result
}

/// What a rule found; the test fails at the end with all of it at once.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn add(&mut self, file: &str, line: usize, what: impl Display) {
        self.0.push(format!("{file}:{line}: {what}"));
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        if !self.0.is_empty() && !std::thread::panicking() {
            panic!("{} complaints:\n{}", self.0.len(), self.0.join("\n"));
        }
    }
}
