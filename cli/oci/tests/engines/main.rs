//! The same cases with both engines behind the command line. Where they differ, tests/oci/engines.tsv says how, and which
//! clause of the runtime specification decides; a difference that is not there, or is no longer one, fails.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod config;
mod lifecycle;
mod linux;

use berth_tests::{Bundle, Output, Who, machine, sandbox};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::PathBuf;

/// Makes of each case in `both` a test for root and one for an ordinary user; of one in `as_root` only root's. What stands behind `=`
/// is what the specification wants to be seen.
macro_rules! cases {
    (both { $($name:ident($b:ident) = $want:literal $body:block)* } as_root { $($root_name:ident($rb:ident) = $root_want:literal $root_body:block)* }) => {
        pub const NAMES: &[&str] = &[$(stringify!($name),)* $(stringify!($root_name)),*];
        $(mod $name {
            use super::*;
            fn see($b: &mut Bundle) -> String $body
            #[test]
            fn as_root() {
                compare(stringify!($name), $want, &Who::root(), see);
            }
            #[test]
            fn as_user() {
                compare(stringify!($name), $want, &Who::user(), see);
            }
        })*
        $(mod $root_name {
            use super::*;
            fn see($rb: &mut Bundle) -> String $root_body
            #[test]
            fn as_root() {
                compare(stringify!($root_name), $root_want, &Who::root(), see);
            }
        })*
    };
}
pub(crate) use cases;

const ENGINES: [&str; 2] = ["own", "libcontainer"];

/// What the ledger says of a case: what each engine shows.
struct Row {
    case: String,
    seen: [String; 2],
}

fn ledger() -> Vec<Row> {
    let text = std::fs::read_to_string(machine::workspace().join("tests/oci/engines.tsv")).unwrap();
    text.lines()
        .filter(|l| !l.starts_with('#'))
        .map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            let [case, own, other, clause, remark] = cells[..] else {
                panic!("engines.tsv: this line has {} cells and not 5: {line}", cells.len());
            };
            assert!(!clause.is_empty() && !remark.is_empty(), "engines.tsv: nothing decides in: {line}");
            assert_ne!(own, other, "engines.tsv: no difference in: {line}");
            Row { case: case.into(), seen: [own.into(), other.into()] }
        })
        .collect()
}

/// The program with both engines, where every user can run it.
fn program() -> PathBuf {
    let built = std::path::Path::new(env!("CARGO_BIN_EXE_berth-oci"));
    let age = built.metadata().unwrap().modified().unwrap();
    let stamp = age.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let path = machine::cache().join(format!("berth-oci-{stamp}"));
    let _guard = machine::lock("berth-oci.lock");
    if !path.exists() {
        for entry in std::fs::read_dir(machine::cache()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("berth-oci-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let fresh = machine::cache().join("berth-oci.new");
        std::fs::copy(built, &fresh).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
    }
    path
}

/// Runs a case, and holds what is seen against the specification or the ledger: as root with both engines, as an ordinary
/// user with our own. libcontainer makes no container without a control group, and a user can make none here.
fn compare(case: &str, want: &str, who: &Who, see: fn(&mut Bundle) -> String) {
    let row = ledger().into_iter().find(|r| r.case == case);
    let expected = row.map_or([want.to_string(), want.to_string()], |r| r.seen);
    let engines = if who.is_root() { &ENGINES[..] } else { &ENGINES[..1] };
    let seen: Vec<String> = engines.iter().map(|engine| with(engine, who, see)).collect();
    assert_eq!(
        seen,
        expected[..engines.len()],
        "{case} as {} with the engines {engines:?}: left is what was seen, right what the specification wants, or what \
         tests/oci/engines.tsv says",
        who.name
    );
}

/// What is seen in a bundle of its own with one engine.
fn with(engine: &str, who: &Who, see: fn(&mut Bundle) -> String) -> String {
    let words: Vec<OsString> = vec![program().into(), "--engine".into(), engine.into()];
    let mut bundle = Bundle::of(who.clone(), &words);
    for applet in ["readlink", "uname", "sort", "wc", "pwd", "kill", "tr"] {
        std::os::unix::fs::symlink("busybox", bundle.path("rootfs/bin").join(applet)).unwrap();
    }
    see(&mut bundle).replace(['\t', '\n'], " ")
}

/// What a call came to: what was printed; or that the engine refused; or the program's exit code.
fn told(output: &Output) -> String {
    if output.err().contains("berth-oci: error: ") {
        "error".into()
    } else if output.rc != 0 {
        format!("exit {}", output.rc)
    } else if output.text().is_empty() {
        "ok".into()
    } else {
        output.text()
    }
}

/// What a call of the runtime came to.
fn call(b: &Bundle, words: &[&str]) -> String {
    told(&b.oci(words).run())
}

/// What running the container came to.
fn run(b: &Bundle) -> String {
    call(b, &["run", "c"])
}

/// The status of the container, or that there is none.
fn status(b: &Bundle) -> String {
    let output = b.oci(&["state", "c"]).run();
    if output.rc != 0 {
        return "gone".into();
    }
    let state: Value = serde_json::from_str(&output.text()).unwrap();
    state["status"].as_str().unwrap().into()
}

/// Waits until the container has this status.
fn until(b: &Bundle, wanted: &str) {
    let seen = sandbox::wait(20, || (status(b) == wanted).then_some(()));
    assert!(seen.is_some(), "the container is {} and not {wanted}", status(b));
}

/// A container that runs until it is killed.
fn sleeping(b: &mut Bundle) {
    b.script("exec sleep 1000");
    b.oci(&["run", "--detach", "c"]).ok();
}

/// A hook of the node: a line of shell with these variables.
fn hook(script: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 20}])
}

#[test]
fn a_user_without_control_groups_needs_the_own_engine() {
    let see = |b: &mut Bundle| {
        b.script("echo ran").set(|c| {
            let linux = c["linux"].as_object_mut().unwrap();
            linux.remove("cgroupsPath");
            linux.remove("resources");
        });
        run(b)
    };
    let who = Who::user();
    assert_eq!(with("own", &who, see), "ran");
    let said = with("libcontainer", &who, |b| b.oci(&["run", "c"]).run().err());
    assert!(said.contains("cgroup") && said.contains("see whether --engine own takes it"), "{said}");
}

#[test]
fn what_libcontainer_does_not_do_is_refused_by_name_as_root() {
    let words: Vec<OsString> = vec![program().into(), "--engine".into(), "libcontainer".into()];
    let mut b = Bundle::of(Who::root(), &words);
    sleeping(&mut b);
    for (call, word) in [
        (&["ps", "c"][..], "ps with another engine is not supported"),
        (&["update", "--pids-limit", "9", "c"], "update with another engine is not supported"),
        (&["events", "--stats", "c"], "events with another engine is not supported"),
        (&["features"], "features with another engine is not supported"),
        (
            &["exec", "--tty", "--console-socket", "/none", "c", "true"],
            "exec with a terminal with --engine libcontainer is not supported",
        ),
        (
            &["exec", "--cgroup", "/x", "c", "true"],
            "exec with --cgroup with --engine libcontainer is not supported",
        ),
        (&["exec", "--user", "root", "c", "true"], "--user \"root\"; it is UID[:GID]"),
        (&["exec", "none", "true"], "container none does not exist"),
    ] {
        b.oci(call).fails().says(&[word]);
    }
    b.oci(&["delete", "--force", "c"]).ok();
    b.set(|c| c["process"]["terminal"] = json!(true));
    b.oci(&["run", "c"]).fails().says(&["a terminal in the foreground", "--console-socket"]);
    b.set(|c| {
        c["process"]["terminal"] = json!(false);
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    });
    b.oci(&["run", "c"]).fails().says(&["linux.seccomp with --engine libcontainer is not supported"]);
}

#[test]
fn the_ledger_names_cases_that_there_are() {
    let all: Vec<&str> = [lifecycle::NAMES, config::NAMES, linux::NAMES].concat();
    for row in ledger() {
        assert!(all.contains(&row.case.as_str()), "engines.tsv: there is no case {}", row.case);
    }
    for (at, name) in all.iter().enumerate() {
        assert!(!all[..at].contains(name), "two cases are called {name}");
    }
}
