//! Real containers, as root and as an ordinary user: one function a promise, real roots, real attacks.
//!
//! Needs busybox-static (Debian). Run by root, every test runs in system mode and again as an ordinary
//! user; run by an ordinary user, only the latter.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says why it fails by panicking"
)]

mod cgroups;
mod disguises;
mod escape;
mod helper;
mod job;
mod options;
mod races;
mod rights;
mod tasks;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// A test's name and function.
type Test = (&'static str, fn());

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == helper::FLAG) {
        helper::child_main(&args[1]);
    }
    let tests: Vec<Test> = [
        tasks::TESTS,
        options::TESTS,
        escape::TESTS,
        disguises::TESTS,
        races::TESTS,
        rights::TESTS,
        cgroups::TESTS,
        job::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
    .collect();
    if args.iter().any(|a| a == "--list") {
        // The part of libtest's protocol that nextest speaks; no test is ignored.
        if !args.iter().any(|a| a == "--ignored") {
            for (name, _) in &tests {
                println!("{name}: test");
            }
        }
        return;
    }
    let exact = args.iter().any(|a| a == "--exact");
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| if exact { name == *f } else { name.contains(f.as_str()) })
    };
    let mut failed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += i32::from(!passed);
    }
    std::process::exit(i32::from(failed > 0) * 101);
}
