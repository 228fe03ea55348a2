//! Sites with programs of their own around steps or tasks, and what such programs leave behind.

use crate::{Sandbox, Who, machine};
use std::fs;
use std::path::Path;

/// A cluster whose prolog and epilog of a kind (`task`, `srun`) are these lines of shell; empty ones are none.
pub fn site(who: Who, kind: &str, prolog: &str, epilog: &str, seconds: u32) -> Sandbox {
    let mut sandbox = Sandbox::empty(who);
    let mut config = String::from("kill_wait_seconds = 2\n[programs]\n");
    for (when, lines) in [("prolog", prolog), ("epilog", epilog)] {
        if !lines.is_empty() {
            let name = format!("{kind}_{when}");
            let path = sandbox.write(&name, format!("#!/bin/sh\n{lines}\n"));
            config.push_str(&format!("{name} = {path:?}\n{name}_seconds = {seconds}\n"));
        }
    }
    let path = sandbox.state().join("berth.toml");
    fs::write(&path, config).unwrap();
    machine::give(&path, sandbox.who());
    sandbox.up();
    sandbox
}

/// Whether any process of the machine runs this script, from the directory in which it is.
pub fn runs(program: &Path) -> bool {
    let name = program.file_name().unwrap().as_encoded_bytes();
    let here = |process: &Path| {
        fs::read_link(process.join("cwd")).is_ok_and(|cwd| Some(cwd.as_path()) == program.parent())
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    processes.filter(|process| here(process)).any(|process| {
        fs::read(process.join("cmdline")).is_ok_and(|line| line.windows(name.len()).any(|part| part == name))
    })
}

/// Why nodes of a cluster are drained.
pub fn drained(sandbox: &Sandbox) -> String {
    sandbox.cmd("sinfo").args(["-h", "-R", "-o", "%E"]).ok().text()
}
