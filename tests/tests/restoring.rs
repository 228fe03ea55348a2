//! Backups of running clusters, and clusters made of them: while steps run, and whatever is killed.

use berth_tests::{Cmd, Sandbox, Who, each_user, sandbox::wait};
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs until there is a file `go`, and says so.
fn until(go: &str, code: u8) -> String {
    format!("#!/bin/sh\necho begun\nwhile [ ! -e {go} ]; do sleep 0.1; done\necho ended\nexit {code}\n")
}

fn backup(sandbox: &Sandbox) -> PathBuf {
    let file = sandbox.work().join("backup.tar");
    let said = sandbox.cmd("berth").arg("backup").arg(&file).ok().text();
    assert!(said.contains("cluster 'berth'") && said.contains("the next job is"), "{said}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    file
}

fn restore(sandbox: &Sandbox, file: &Path) -> Cmd {
    sandbox.cmd("berth").arg("restore").arg(file)
}

fn reason(sandbox: &Sandbox, job: u64) -> String {
    sandbox.cmd("squeue").args(["-h", "-o", "%r", "-j", &job.to_string()]).ok().text().trim().to_string()
}

/// The only directory in which something replaced is.
fn aside(state: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("replaced-")).collect()
}

each_user! {
    fn steps_run_on_and_no_job_runs_twice(who) {
        let mut sandbox = Sandbox::start(who);
        let small = ["-c1", "--mem=64M"];
        let runs = sandbox.sbatch(&[&small[..], &["--output=runs"]].concat(), &until("go", 6));
        let ends = sandbox.sbatch(&[&small[..], &["--output=ends"]].concat(), &until("end", 0));
        // It tells when it is not alone, and when it is started anew.
        let waits = sandbox.sbatch(
            &[&small[..], &["--hold", "--output=waits"]].concat(),
            "#!/bin/sh\nmkdir alone || touch twice\ntrap 'rmdir alone; exit 1' TERM\necho \"begun ${SLURM_RESTART_COUNT:-0}\"\n\
             while [ ! -e go ]; do sleep 0.1; done\nrmdir alone\n",
        );
        sandbox.wait_file("runs", "begun", 30);
        sandbox.wait_file("ends", "begun", 30);
        let file = backup(&sandbox);
        // With all keys of the cluster: it is on record who has them.
        let entry = format!("saved all records and keys of the cluster in {}", file.display());
        let log = || sandbox.cmd("berth").args(["audit", "-n", "0"]).ok().text();
        assert!(wait(20, || log().contains(&entry).then_some(())).is_some(), "{}", log());

        sandbox.write("end", "");
        sandbox.wait_state(ends, "COMPLETED", 60);
        let since = sandbox.sbatch(&small, "#!/bin/sh\nexit 3\n");
        sandbox.wait_state(since, "FAILED", 60);
        sandbox.cmd("scontrol").args(["release", &waits.to_string()]).ok();
        sandbox.wait_file("waits", "begun 0", 60);
        restore(&sandbox, &file).fails().says(&["a controller runs there", "--keep-jobs"]);

        // The controller, its database and its keys are lost.
        let controller = sandbox.controller();
        sandbox.kill_9(controller);
        std::fs::remove_dir_all(sandbox.state().join("db")).unwrap();
        let key = sandbox.state().join("private/login.key");
        let before = std::fs::read(&key).unwrap();
        std::fs::remove_file(&key).unwrap();
        assert!(restore(&sandbox, &file).ok().text().contains("Cluster 'berth' is restored"));
        assert_eq!(std::fs::read(&key).unwrap(), before);
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        sandbox.up();

        // It was held when the backup was made.
        sandbox.cmd("scontrol").args(["release", &waits.to_string()]).ok();
        sandbox.wait_state(ends, "NODE_FAIL", 60);
        sandbox.wait_file("waits", "begun 100", 60);
        assert_eq!(sandbox.job_state(runs), "RUNNING");
        assert!(wait(30, || sandbox.status()["alarms"].as_array().unwrap().is_empty().then_some(())).is_some());
        let next = sandbox.sbatch(&small, "#!/bin/sh\nexit 0\n");
        assert!(next > since + 1000, "{next} may be {since} or one after it");
        sandbox.write("go", "");
        sandbox.wait_state(runs, "FAILED", 60);
        assert_eq!(sandbox.sacct(runs, "ExitCode")[0], ["6:0"]);
        assert_eq!(sandbox.read("runs"), "begun\nended\n");
        sandbox.wait_state(waits, "COMPLETED", 60);
        sandbox.wait_state(next, "COMPLETED", 60);
        assert!(!sandbox.work().join("twice").exists(), "the job ran twice at a time");
        assert_eq!(sandbox.cmd("sacct").args(["-n", "-j", &since.to_string()]).ok().text(), "");
        let trail = sandbox.cmd("berth").args(["audit", "-n", "0"]).ok().text();
        assert!(trail.contains("a backup was restored"), "{trail}");
    }

    fn what_was_replaced_is_kept_and_what_was_submitted_since_is_ended(who) {
        let mut sandbox = Sandbox::start(who);
        let file = backup(&sandbox);
        let since = sandbox.sbatch(&["-c1", "--mem=64M", "--output=since"], &until("never", 0));
        sandbox.wait_file("since", "begun", 30);
        sandbox.cmd("berth").args(["down", "--keep-jobs"]).ok();
        restore(&sandbox, &file).fails().says(&["there is a database", "--replace"]);
        assert_eq!(aside(&sandbox.state()), Vec::<PathBuf>::new());
        assert!(restore(&sandbox, &file).arg("--replace").ok().text().contains("What it replaced is in"));
        let kept = aside(&sandbox.state());
        assert!(kept.len() == 1 && kept[0].join("db/cluster.db").exists() && kept[0].join("private/login.key").exists());
        sandbox.up();
        // Nothing of it is left on the node, and nothing of it is known.
        let gone = || std::fs::read_dir(sandbox.state().join("spool")).unwrap().next().is_none().then_some(());
        assert!(wait(60, gone).is_some(), "a job of which nothing is known runs on");
        assert!(!sandbox.read("since").contains("ended"));
        let next = sandbox.sbatch(&["--output=next"], "#!/bin/sh\necho here\n");
        assert!(next > since + 1000);
        sandbox.wait_state(next, "COMPLETED", 60);
    }

    fn numbers_of_jobs_that_are_over_are_not_given_again(who) {
        let mut sandbox = Sandbox::start(who);
        let first = sandbox.sbatch(&["--output=/dev/null"], "#!/bin/sh\ntrue\n");
        sandbox.wait_state(first, "COMPLETED", 60);
        let kept = sandbox.state().join("private/agent-highest.json");
        let numbers: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
        assert!(numbers["job"].as_u64().unwrap() >= first, "{numbers}");
        let file = backup(&sandbox);
        sandbox.down();
        // As if so many had run there since, and the machine had booted.
        std::fs::write(&kept, r#"{"job": 50000, "attempt": 0, "step": 0}"#).unwrap();
        restore(&sandbox, &file).arg("--replace").ok();
        sandbox.up();
        let known = || {
            let next = sandbox.sbatch(&["--output=/dev/null"], "#!/bin/sh\ntrue\n");
            (next > 50_000).then_some(next)
        };
        // One that is sent before the node has come has a number of its own, and runs under another attempt.
        let next = wait(60, known).unwrap();
        sandbox.wait_state(next, "COMPLETED", 60);
    }

    fn a_node_that_does_not_come_back_is_declared_down(who) {
        let mut sandbox = Sandbox::start(who);
        let node = sandbox.node();
        let job = sandbox.sbatch(&["--hold", "--output=out"], "#!/bin/sh\necho here\n");
        let file = backup(&sandbox);
        let (agent, controller) = (sandbox.agent(), sandbox.controller());
        sandbox.kill_9(agent);
        sandbox.kill_9(controller);
        restore(&sandbox, &file).arg("--replace").ok();
        let alone = sandbox.cmd("berth").arg("controller").limit(120).spawn();
        assert!(wait(30, || (sandbox.cmd("scontrol").arg("ping").run().rc == 0).then_some(())).is_some());
        sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
        assert_eq!(reason(&sandbox, job), "Restored");
        let status = sandbox.cmd("berth").arg("status").ok().text();
        for word in ["alarm", "a backup was restored", &node, "State=DOWN"] {
            assert!(status.contains(word), "{status}");
        }
        sandbox.cmd("scontrol").args(["update", &format!("NodeName={node}"), "State=DOWN", "Reason=lost"]).ok();
        // Nor is it waited any longer for what the backup does not have.
        let goes_on = wait(60, || (reason(&sandbox, job) != "Restored").then_some(()));
        assert!(goes_on.is_some(), "{}", sandbox.cmd("berth").arg("status").ok().text());
        alone.signal(Signal::SIGTERM);
        alone.finish();
        // It comes after all, and followed another controller of the same backup meanwhile, which had a later term.
        std::fs::write(sandbox.state().join("private/agent-term.json"), "3000000").unwrap();
        sandbox.up();
        sandbox.cmd("scontrol").args(["update", &format!("NodeName={node}"), "State=RESUME"]).ok();
        sandbox.wait_state(job, "COMPLETED", 60);
    }

    fn a_file_that_is_no_whole_backup_of_ours_changes_nothing(who) {
        let mut sandbox = Sandbox::start(who);
        let file = backup(&sandbox);
        let nowhere = sandbox.work().join("nowhere/backup.tar");
        sandbox.cmd("berth").arg("backup").arg(&nowhere).fails().says(&["nowhere/backup.tar: cannot be made", "name a file"]);
        sandbox.down();
        restore(&sandbox, &nowhere).fails().says(&["nowhere/backup.tar: ", "name a file that 'berth backup' wrote"]);
        let whole = std::fs::read(&file).unwrap();
        let listing = || Cmd::new("find").arg(sandbox.state()).args(["-type", "f", "-not", "-name", "lock", "-printf", "%P %s %T@\n"]).ok().text();
        let before = listing();
        let spoilt = sandbox.work().join("spoilt.tar");
        let refused = |content: &[u8], words: &[&str]| {
            std::fs::write(&spoilt, content).unwrap();
            berth_tests::machine::give(&spoilt, sandbox.who());
            restore(&sandbox, &spoilt).arg("--replace").fails().says(words);
            let _ = std::fs::remove_dir_all(sandbox.state().join("db.restoring"));
            assert_eq!(listing(), before, "{words:?}");
        };
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        refused(&bytes, &["is not what was saved", "SHA-256"]);
        refused(&whole[..whole.len() / 2], &["is not what was saved"]);
        refused(b"no backup", &["backup"]);
        let made = |members: &[(&str, &str)]| {
            let mut archive = tar::Builder::new(Vec::new());
            for (name, content) in members {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o600);
                archive.append_data(&mut header, name, content.as_bytes()).unwrap();
            }
            archive.into_inner().unwrap()
        };
        let newer = r#"{"format": 2, "version": "9.1", "sealed": true}"#;
        refused(&made(&[("manifest.json", newer)]), &["format 2", "berth 9.1", "up to format 1"]);
        // A member that leads out of the state directory.
        let outside = r#"{"format": 1, "version": "0.1.0", "cluster": "c", "time": 0, "schema": 1, "term": 1, "next_job": 1,
            "members": [{"name": "private/kept/../../../x", "size": 1, "mode": 511, "sha256": ""}]}"#;
        let long = "x".to_string();
        let mut archive = made(&[("manifest.json", outside), ("private/kept/aa/aa/aa/x", &long)]);
        let at = archive.windows(8).rposition(|w| w == b"aa/aa/aa").unwrap();
        archive[at..at + 8].copy_from_slice(b"../../..");
        let header = at - "private/kept/".len();
        let mut patched = tar::Header::new_gnu();
        patched.as_mut_bytes().copy_from_slice(&archive[header..header + 512]);
        patched.set_cksum();
        archive[header..header + 512].copy_from_slice(patched.as_bytes());
        refused(&archive, &["belongs to no cluster"]);
        sandbox.up();
    }
}

#[test]
fn what_is_killed_leaves_old_or_new() {
    let who = Who::user();
    let mut sandbox = Sandbox::start(who);
    sandbox.sbatch(&["--hold"], "#!/bin/sh\ntrue\n");
    let file = backup(&sandbox);
    let old = std::fs::read(&file).unwrap();
    let rounds: u64 = std::env::var("BERTH_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(15);
    let kill = |command: Cmd, round: u64| {
        let running = command.spawn();
        std::thread::sleep(Duration::from_micros(round * 150_000 / rounds));
        running.signal(Signal::SIGKILL);
        running.finish();
    };
    for round in 0..rounds {
        kill(sandbox.cmd("berth").arg("backup").arg(&file), round);
        // The old one, or a new one that is whole.
        let now = std::fs::read(&file).unwrap();
        if now != old {
            let other = sandbox.work().join(format!("state{round}"));
            sandbox.cmd("berth").arg("--state").arg(&other).arg("restore").arg(&file).ok();
        }
    }
    backup(&sandbox);
    let left = |end: &str| sandbox.work().join(format!("backup.tar{end}")).exists();
    assert!(!left(".part") && !left(".part.db"));

    sandbox.cmd("berth").arg("down").ok();
    let key = std::fs::read(sandbox.state().join("private/login.key")).unwrap();
    let (mut new, mut next) = (0, 2);
    for round in 0..rounds {
        kill(restore(&sandbox, &file).arg("--replace"), round);
        // The database is whole, and the old one or the new one.
        let probe = sandbox.work().join("probe.tar");
        let said = sandbox.cmd("berth").arg("backup").arg(&probe).ok().text();
        let is: u64 = said.rsplit(' ').next().unwrap().trim().parse().unwrap();
        assert!(is == next || is == next + 10_000, "{said}");
        new += u64::from(is != next);
        next = is;
        // No key is lost.
        let places = aside(&sandbox.state()).into_iter().map(|p| p.join("private/login.key"));
        let mut places = places.chain([sandbox.state().join("private/login.key")]);
        assert!(places.any(|p| std::fs::read(p).is_ok_and(|k| k == key)), "the key is gone");
    }
    assert!(new > 0, "no restore came to its end: longer delays are needed");
    sandbox.up();
    assert!(!sandbox.state().join("db/restored").exists(), "the controller left a restore unfinished");
    assert_eq!(std::fs::read(sandbox.state().join("private/login.key")).unwrap(), key);
}
