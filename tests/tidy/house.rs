//! Rules for the house: dependencies and their reasons, arrows between packages, scripts, links, formatting.

use crate::{Complaints, files, workspace};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const MOST_PACKAGES: usize = 400;

/// What each of our packages may depend on among our own, tests aside. `model` ← `rpc` ← whatever talks;
/// `images`, `runtime` ← `agent`; the scheduler never sees them; `cli` sees all. Nothing points back.
const ARROWS: &[(&str, &[&str])] = &[
    ("berth-model", &[]),
    ("berth-samples", &["berth-model"]),
    ("berth-inputs", &[]),
    ("berth-stream", &["berth-model"]),
    ("berth-seal", &[]),
    ("berth-trust", &[]),
    ("berth-rpc", &["berth-model", "berth-stream", "berth-trust"]),
    ("berth-tar", &[]),
    ("berth-oci-json", &[]),
    ("berth-images", &["berth-model", "berth-tar", "berth-oci-json"]),
    ("berth-runtime", &["berth-model", "berth-tar", "berth-oci-json"]),
    ("berth-libcontainer", &["berth-runtime"]),
    ("berth-oci", &["berth-runtime", "berth-libcontainer"]),
    ("berth-sched-core", &["berth-model"]),
    ("berth-store", &["berth-model", "berth-sched-core"]),
    (
        "berth-controller",
        &[
            "berth-model",
            "berth-rpc",
            "berth-seal",
            "berth-stream",
            "berth-trust",
            "berth-sched-core",
            "berth-store",
        ],
    ),
    ("berth-sim", &["berth-model", "berth-sched-core", "berth-agent-core", "berth-store"]),
    ("berth-agent-core", &["berth-model"]),
    ("berth-pmi", &[]),
    ("berth-gpus", &["berth-model"]),
    (
        "berth-agent",
        // Of berth-step the agent uses the protocol and the spool's form, not the program.
        &[
            "berth-model",
            "berth-rpc",
            "berth-stream",
            "berth-images",
            "berth-runtime",
            "berth-agent-core",
            "berth-gpus",
            "berth-step",
        ],
    ),
    ("berth-step", &["berth-model", "berth-stream", "berth-pmi", "berth-runtime", "berth-client"]),
    ("berth-client", &["berth-model", "berth-rpc", "berth-stream"]),
    (
        "berth",
        &[
            "berth-model",
            "berth-rpc",
            "berth-trust",
            "berth-seal",
            "berth-stream",
            "berth-client",
            "berth-oci",
            "berth-images",
            "berth-runtime",
            "berth-agent",
            "berth-gpus",
            "berth-controller",
            "berth-store",
            "berth-sched-core",
            "berth-agent-core",
            "berth-sim",
            "berth-step",
        ],
    ),
    ("berth-tests", &[]),
    ("xtask", &[]),
];

/// Packages that must stay free of an asynchronous runtime, with what else they may not see.
const WITHOUT: &[(&str, &[&str])] = &[
    ("berth-model", &["tokio", "nix", "rustix", "libc"]),
    ("berth-tar", &["tokio", "nix", "rustix", "libc"]),
    ("berth-trust", &["tokio"]),
    ("berth-sched-core", &["tokio", "nix", "rustix", "libc"]),
    ("berth-agent-core", &["tokio", "nix", "rustix", "libc"]),
    ("berth-pmi", &["tokio", "nix", "rustix", "libc"]),
    ("berth-gpus", &["tokio"]),
    ("berth-runtime", &["tokio"]),
    ("berth-images", &["tokio"]),
];

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Dependencies by package, development ones left out.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let mut result = BTreeMap::new();
    for package in metadata()["packages"].as_array().unwrap() {
        let list = package["dependencies"].as_array().unwrap();
        let names =
            list.iter().filter(|d| d["kind"] != "dev").map(|d| d["name"].as_str().unwrap().to_string());
        result.insert(package["name"].as_str().unwrap().to_string(), names.collect());
    }
    result
}

#[test]
fn arrows_between_packages_point_one_way() {
    let mut complaints = Complaints::default();
    let all = dependencies();
    for (package, names) in &all {
        let Some((_, allowed)) = ARROWS.iter().find(|(p, _)| p == package) else {
            complaints.add(
                "Cargo.toml",
                1,
                format!("{package} is not in the table of arrows of tests/tidy/house.rs"),
            );
            continue;
        };
        for name in names.iter().filter(|n| all.contains_key(*n)) {
            if !allowed.contains(&name.as_str()) {
                complaints.add("Cargo.toml", 1, format!("{package} may not depend on {name}"));
            }
        }
    }
    for (package, banned) in WITHOUT {
        for name in all.get(*package).into_iter().flatten() {
            if banned.contains(&name.as_str()) {
                complaints.add("Cargo.toml", 1, format!("{package} may not depend on {name}"));
            }
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let mut complaints = Complaints::default();
    let text = std::fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    let (mut inside, mut reason) = (false, false);
    for (at, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            inside = line == "[workspace.dependencies]";
        }
        if !inside {
            continue;
        }
        if line.trim().is_empty() || line.starts_with("# ---") {
            reason = false;
        } else if line.starts_with('#') {
            reason = true;
        } else if line.contains(" = ") && !line.contains("path = ") && !reason {
            complaints.add("Cargo.toml", at + 1, "a dependency without a reason above it");
        }
    }
}

#[test]
fn the_lock_file_stays_small() {
    let lock = std::fs::read_to_string(workspace().join("Cargo.lock")).unwrap();
    let count = lock.lines().filter(|l| l.starts_with("name = ")).count();
    assert!((1..=MOST_PACKAGES).contains(&count), "{count} packages in Cargo.lock; at most {MOST_PACKAGES}");
}

#[test]
fn scripts_parse_and_can_be_run() {
    let mut complaints = Complaints::default();
    let mut seen = 0;
    for name in files(|_| true) {
        let path = workspace().join(&name);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let first = text.lines().next().unwrap_or("");
        if !(first.starts_with("#!") && first.ends_with("sh")) {
            continue;
        }
        seen += 1;
        if std::fs::metadata(&path).unwrap().permissions().mode() & 0o111 == 0 {
            complaints.add(&name, 1, "a script that cannot be executed");
        }
        let output = Command::new("bash").arg("-n").arg(&path).output().unwrap();
        if !output.status.success() {
            complaints.add(&name, 1, String::from_utf8_lossy(&output.stderr));
        }
        for (at, line) in text.lines().enumerate() {
            if line.contains("|| true") && !line.contains('#') {
                complaints.add(&name, at + 1, "a swallowed failure without its reason behind a #");
            }
        }
    }
    assert!(seen >= 3, "the walk found only {seen} scripts");
}

#[test]
fn every_defence_can_still_be_taken_out() {
    can_be_taken_out("tests/escape/mutations.sh", "docs/security.md");
}

#[test]
fn every_guard_of_the_cores_can_still_be_taken_out() {
    can_be_taken_out("tests/sim/guards.sh", "docs/simulator.md");
}

/// The texts that the script changes are in the sources, and what it takes out is in the page's table.
fn can_be_taken_out(script: &str, page: &str) {
    let output = Command::new(workspace().join(script)).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = std::fs::read_to_string(workspace().join(page)).unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    assert!(names.lines().count() >= 10, "{script} names {names}");
    for name in names.lines() {
        assert!(table.contains(&format!("\n| {name} |")), "{name} is not in the table of {page}");
    }
}

/// A job that runs twice is seen once in many runs, and a second attempt would hide it.
#[test]
fn what_shows_a_job_that_runs_twice_is_not_tried_again() {
    let text = std::fs::read_to_string(workspace().join(".config/nextest.toml")).unwrap();
    let once: Vec<&str> = text
        .split("[[profile.default.overrides]]")
        // What stands behind the last of them is not its own.
        .filter_map(|block| block.split("\n[").next())
        .filter(|block| block.lines().any(|line| line.trim() == "retries = 0"))
        .filter_map(|block| block.lines().find(|line| line.starts_with("filter = ")))
        .collect();
    for name in ["under_load", "faults", "joining", "leases", "restoring", "simulating", "package(berth-sim)"]
    {
        assert!(once.iter().any(|filter| filter.contains(name)), "{name} is tried again: {once:?}");
    }
}

#[test]
fn the_page_has_the_commands_that_two_emulated_machines_try() {
    let output = Command::new(workspace().join("tests/vm/join.sh")).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn links_in_the_documentation_resolve() {
    let mut complaints = Complaints::default();
    for name in files(|n| n.ends_with(".md")) {
        let path = workspace().join(&name);
        let text = std::fs::read_to_string(&path).unwrap();
        for (at, link) in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            if !target.exists() {
                complaints.add(&name, at, format!("{link} does not exist"));
            } else if !anchor.is_empty() && !has_heading(&target, anchor) {
                complaints.add(&name, at, format!("{link}: no such heading"));
            }
        }
    }
}

/// Relative links with their lines, fenced code left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let (mut result, mut fenced) = (Vec::new(), false);
    for (at, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        for piece in line.split("](").skip(1).filter(|_| !fenced) {
            let Some((link, _)) = piece.split_once(')') else { continue };
            if !link.contains("://") && !link.starts_with("mailto:") && !link.contains(' ') {
                result.push((at + 1, link.to_string()));
            }
        }
    }
    result
}

fn has_heading(path: &Path, anchor: &str) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|l| l.starts_with('#')).any(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>() == anchor
    })
}

#[test]
fn the_sources_are_formatted() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string());
    let output =
        Command::new(cargo).args(["fmt", "--all", "--check"]).current_dir(workspace()).output().unwrap();
    assert!(output.status.success(), "run cargo fmt --all:\n{}", String::from_utf8_lossy(&output.stdout));
}
