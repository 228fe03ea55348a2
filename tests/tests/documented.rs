//! The tables of `docs/containers.md`, read from that page and compared with what `--explain` says and a container has.

use berth_tests::{Output, Sandbox, each_user, images, machine};
use serde_json::Value;
use std::collections::BTreeMap;

const PAGE: &str = include_str!("../../docs/containers.md");

/// Rows of the table whose head starts like this, as cells.
fn table(head: &str) -> Vec<Vec<String>> {
    let start = PAGE.find(&format!("\n{head}")).unwrap_or_else(|| panic!("no table starts with {head}"));
    let lines = PAGE[start + 1..].lines().take_while(|l| l.starts_with('|')).skip(2);
    let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_string()).collect();
    lines.map(cells).collect()
}

/// What stands between backquotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_string).collect()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{output}"))
}

/// The last mount at each place: its flags, and those of its filesystem.
fn mounted(mountinfo: &str) -> BTreeMap<String, Vec<String>> {
    let fields = mountinfo.lines().map(|l| l.split(' ').collect::<Vec<_>>()).filter(|f| f.len() > 6);
    fields.map(|f| (f[4].to_string(), f[5].split(',').map(str::to_string).collect())).collect()
}

each_user! {
    fn mounts_are_in_the_order_and_with_the_flags_of_the_table(who) {
        let sandbox = Sandbox::start(who.clone());
        let options = ["--container-mount-home", "--container-mounts=/usr:/mnt/usr"];
        let image = images::busybox();
        let run = |words: &[&str]| sandbox.srun_in(&image, options.iter().chain(words)).ok();
        let plan = json(&run(&["--explain=json", "true"]))["plan"].clone();
        let real = mounted(&run(&["cat", "/proc/self/mountinfo"]).text());
        let told: Vec<&str> = plan["mounts"].as_array().unwrap().iter().map(|m| m["target"].as_str().unwrap()).collect();
        let home = who.home.display().to_string();
        let mut last = None;
        let mut rows = 0;
        for row in table("| target | what | flags |") {
            let targets = match row[0].as_str() {
                "home" => vec![home.clone()],
                "yours" => vec!["/mnt/usr".to_string()],
                text => quoted(text),
            };
            for target in targets {
                // `nosuid, noexec (shm: nosuid, nodev)`: what is in parentheses is said of the one that it names.
                let (all, special) = row[2].split_once(" (").unwrap_or((&row[2], ""));
                let own = special.trim_end_matches(')').split_once(": ").filter(|(name, _)| target.ends_with(name));
                let flags = own.map_or(all, |(_, flags)| flags);
                if target.starts_with('/') && !target.starts_with("/etc") && target != "/" {
                    let at = told.iter().position(|t| *t == target).unwrap_or_else(|| panic!("{target} is not explained: {told:?}"));
                    assert!(last.is_none_or(|l| l <= at), "{target} is not in the order of the table: {told:?}");
                    last = Some(at);
                }
                let path = match target.as_str() {
                    name if !name.starts_with('/') => format!("/etc/{name}"),
                    path => path.to_string(),
                };
                let there = match real.get(&path) {
                    Some(flags) => flags,
                    // The node has no such file.
                    None if path.starts_with("/etc") && !std::path::Path::new(&path).exists() => continue,
                    None => panic!("{path} is not mounted: {real:?}"),
                };
                for flag in flags.replace(';', ",").split(',').map(str::trim) {
                    let flag = match flag {
                        "read-only" => "ro",
                        // nodev unless from `/dev`
                        text => text.split(' ').next().unwrap(),
                    };
                    assert!(there.iter().any(|f| f == flag), "{path} is not {flag}: {there:?}");
                }
                rows += 1;
            }
        }
        assert!(rows > 12, "only {rows} places were looked at");
    }

    fn roots_are_written_as_the_table_says(who) {
        let sandbox = Sandbox::start(who);
        let (head, columns) = ("| root | `--container-writable` | neither | `--container-readonly` |", ["--container-writable", "", "--container-readonly"]);
        let rows = table(head);
        assert_eq!(rows.len(), 2);
        let place = sandbox.work().join("root");
        let make = "mkdir -p bin etc tmp proc sys dev .$HOME && cp $(command -v busybox) bin/busybox && for a in sh touch echo rm; do ln -sf busybox bin/$a; done";
        std::fs::create_dir(&place).unwrap();
        machine::give(&place, sandbox.who());
        sandbox.cmd("sh").args(["-c", make]).dir(&place).ok();
        let look = "touch /probe 2>/dev/null && echo root; touch /tmp/probe && echo tmp; touch $HOME/probe && echo home";
        for (row, image) in rows.iter().zip([images::busybox(), place.clone()]) {
            for (cell, option) in row[1..].iter().zip(columns) {
                let cell = if cell == "as neither" { &row[2] } else if cell == "read-only, as above" { &rows[0][3] } else { cell };
                let words: Vec<&str> = [option, "sh", "-c", look].into_iter().filter(|w| !w.is_empty()).collect();
                let text = sandbox.srun_in(&image, &words).ok().text();
                let kept = place.join("probe").exists();
                let expected = match cell.as_str() {
                    "writable, lost at the end" => ("root\ntmp\nhome", false),
                    "the directory itself is written" => ("root\ntmp\nhome", true),
                    "read-only; `/tmp` and HOME are writable, in memory" => ("tmp\nhome", false),
                    other => panic!("the page says {other}, and nothing here knows what that is"),
                };
                assert_eq!((text.as_str(), kept), expected, "{} with {option}", row[0]);
                let _ = std::fs::remove_file(place.join("probe"));
            }
        }
    }

    fn every_flag_of_a_mount_is_taken_and_no_other(who) {
        let sandbox = Sandbox::empty(who);
        let plan = |mount: &str| {
            let line = sandbox.cmd("berth").args(["run", "--explain", &format!("--container-mounts={mount}")]);
            line.arg(images::busybox()).arg("true").run()
        };
        let mut taken = 0;
        for row in table("| flag | of | meaning |") {
            for flag in row[0].split('`').skip(1).step_by(2).flat_map(|f| f.split('+').collect::<Vec<_>>()) {
                let flag = flag.replace("N[k,m,g]", "1m").replace("OCTAL", "700");
                let kinds: &[&str] = match row[1].as_str() {
                    "paths" => &["/usr:/m"],
                    "tmpfs" => &["tmpfs:/m"],
                    "paths, tmpfs" => &["/usr:/m", "tmpfs:/m"],
                    "umount" => &["umount:/tmp"],
                    "all" => &["/usr:/m", "tmpfs:/m", "umount:/tmp"],
                    other => panic!("of {other}?"),
                };
                for kind in kinds {
                    // `silent` only means something beside `nofail`; a file's target is for files.
                    let flag = if flag == "silent" { "nofail+silent" } else { flag.as_str() };
                    let kind = if flag == "file" || flag == "x-create=file" { "/etc/passwd:/m" } else { kind };
                    let flag = if ["dir", "file"].contains(&flag) { format!("x-create={flag}") } else { flag.to_string() };
                    let output = plan(&format!("{kind}:{flag}"));
                    assert_eq!(output.rc, 0, "{kind}:{flag}: {output}");
                    taken += 1;
                }
            }
        }
        assert!(taken > 25, "only {taken} combinations were tried");
        for flag in ["shared", "suid", "remount", "x-move", "noatime", "bogus"] {
            let output = plan(&format!("/usr:/m:{flag}"));
            assert_ne!(output.rc, 0, "{flag} is taken");
            output.says(&[flag]);
        }
    }

    fn limits_are_explained_as_the_table_says(who) {
        let sandbox = Sandbox::start(who);
        let explain = |command: &[&str], option: Option<&str>| {
            let words = command.iter().copied().chain(option).chain(["--explain=json", "true"]);
            let line = sandbox.cmd("sh").args(["-c", "ulimit -Ss 2048; exec \"$@\"", "sh"]);
            json(&line.args(words).ok())["plan"]["limits"].clone()
        };
        let image = format!("--container-image={}", images::busybox().display());
        let mut rows = 0;
        for row in table("| options | limits that travel | where the node allows less |") {
            let options = match quoted(&row[0]) {
                list if list.is_empty() => vec![None],
                list => list.into_iter().map(|o| Some(o.replace("NAME,...", "STACK,NOFILE"))).collect(),
            };
            if row[0] == "none, inside a job" {
                continue; // ulimits::limits_travel_with_the_job_and_its_steps
            }
            for option in options {
                for command in [&["srun", "-n1"][..], &["srun", &image]] {
                    let limits = explain(command, option.as_deref());
                    let soft: Vec<String> = limits["soft"].as_object().unwrap().keys().map(|k| k.to_uppercase()).collect();
                    let expected = match row[1].as_str() {
                        "all" => 16,
                        "these" => 2,
                        "none" => 0,
                        all_but => 16 - quoted(all_but).len(),
                    };
                    assert_eq!(soft.len(), expected, "{option:?}: {soft:?}");
                    let stay: Vec<String> = if row[1].starts_with("all but") { quoted(&row[1]) } else { vec![] };
                    assert!(stay.iter().all(|name| !soft.contains(name)), "{option:?}: {soft:?}");
                    let required = limits["required"].as_array().unwrap().len();
                    assert_eq!(required, if row[2].contains("error") { expected } else { 0 }, "{option:?}");
                    if expected > 0 {
                        assert_eq!(limits["soft"]["stack"]["at"], 2 << 20, "{option:?}: {limits}");
                    }
                }
            }
            rows += 1;
        }
        assert_eq!(rows, 4);
        let text = sandbox.cmd("sh").args(["-c", "ulimit -Ss 2048; exec srun --propagate=STACK --explain true"]).ok().text();
        assert!(text.contains("limit: stack 2097152, or the start fails"), "{text}");
    }

    fn namespaces_are_whose_the_table_says(who) {
        let sandbox = Sandbox::start(who.clone());
        let image = format!("--container-image={}", images::busybox().display());
        let kinds = ["user", "pid", "ipc", "mnt", "cgroup", "net"];
        let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
        let look = format!("for n in {}; do readlink /proc/self/ns/$n; done", kinds.join(" "));
        let columns: [(&str, Vec<&str>); 3] = [
            ("a container of a job", vec!["srun", &image]),
            ("`berth run`", vec!["berth", "run", image.split_once('=').unwrap().1]),
            ("`host:`", vec!["srun", "-n1"]),
        ];
        let rows = table("| | a container of a job | `berth run` | `host:` |");
        let words = |column: usize| {
            let mut words: BTreeMap<&str, String> = BTreeMap::new();
            for row in &rows {
                for (kind, name) in kinds.iter().zip(["user", "pid", "ipc", "mount", "cgroup", "network"]) {
                    if row[0].split(", ").any(|n| n == name) {
                        let cell = &row[column + 1];
                        // `pid: own in system mode; ipc: the node's`
                        let one = cell.split("; ").find_map(|part| part.strip_prefix(&format!("{name}: ")));
                        words.insert(kind, one.unwrap_or(cell).to_string());
                    }
                }
            }
            words
        };
        for (column, (name, command)) in columns.iter().enumerate() {
            let said = words(column);
            assert_eq!(said.len(), kinds.len(), "{said:?}");
            let explained = {
                let (first, rest) = command.split_at(if command[0] == "berth" { 2 } else { 1 });
                let line = sandbox.cmd(first[0]).args(&first[1..]).arg("--explain=json").args(rest).arg("true").ok();
                let all = json(&line);
                if all["plan"].is_null() { all } else { all["plan"].clone() }
            };
            let text = sandbox.cmd(command[0]).args(&command[1..]).args(["sh", "-c", &look]).ok().text();
            for (kind, there) in kinds.iter().zip(text.lines()) {
                let shared = there == own(kind);
                let said = said[kind].as_str();
                let node = match said {
                    s if s.starts_with("the node's") => true,
                    s if s.ends_with("in system mode") => !who.is_root(),
                    _ => false,
                };
                assert_eq!(shared, node, "{name}: {kind} is {said}");
                let told = &explained["namespaces"][match *kind { "mnt" => "mount", other => other }];
                let whose = match told {
                    Value::Bool(true) => "own",
                    Value::String(whose) => whose.as_str(),
                    // The network is always the node's, and nothing is said of it.
                    _ => "node",
                };
                let expected = if node { "node" } else if said.starts_with("the job's") { "job" } else { "own" };
                assert_eq!(whose, expected, "{name}: {kind} is explained otherwise");
            }
        }
    }
}
