//! `lost_after_seconds` and `--lost-after`: a run that is out of touch for so long ends by itself, and runs again elsewhere when it surely
//! has.

use berth_tests::{Hosts, Sandbox, Who, each_user, machine, sandbox::wait};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const CONFIG: &str = "node_timeout_seconds = 5\nlost_after_seconds = 6\n";

/// Says where it began, and is alive until it may go: the first argument is the name of its files.
const JOB: &str = "#!/bin/sh\ntrap '' TERM\nbeat=$1.$(hostname)\necho \"$(hostname) $SLURM_RESTART_COUNT\" >> $1\n\
                   until [ -e go ]; do : > $beat; sleep 0.05; done\n";

fn begun(work: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(work.join(name)).unwrap_or_default();
    text.lines().map(|line| line.split(' ').next().unwrap().to_string()).collect()
}

fn modified(path: &Path) -> SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

/// Whether what beats twenty times a second has stopped: on a busy machine it may come to nothing for a second.
fn quiet(beat: &Path) -> bool {
    beat.exists() && modified(beat).elapsed().is_ok_and(|passed| passed.as_secs() >= 3)
}

/// Whether it beats from now on.
fn goes_on(beat: &Path) -> bool {
    let now = SystemTime::now();
    wait(30, || (modified(beat) > now).then_some(())).is_some()
}

/// Process ids in the state files of all steps on a node.
fn supervisors(spool: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = vec![spool.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                left.push(path);
            } else if entry.file_name() == "state.json" {
                let state: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
                found.extend(state["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap()));
            }
        }
    }
    found
}

#[test]
fn what_is_cut_off_ends_by_itself_and_runs_again_elsewhere() {
    if !machine::is_root() {
        return; // hosts need namespaces of the network
    }
    let hosts = Hosts::new(&["head", "n1", "n2"]);
    // Long enough for the controller to come back in.
    hosts.up("head", "node_timeout_seconds = 5\nlost_after_seconds = 10\n");
    let token = hosts.token("head", &["--uses", "2"]);
    for node in ["n1", "n2"] {
        hosts.join(node, &token);
        hosts.wait_node(node, "idle", 60);
    }
    std::fs::write(hosts.work().join("job.sh"), JOB).unwrap();
    let work = hosts.work();
    let submit = |options: &[&str], name: &str| {
        let job = hosts.cmd("head", "sbatch").args(["--parsable", "--mem=20M", "-n1"]).args(options);
        let job = job.args(["job.sh", name]).ok().text().trim().to_string();
        assert!(
            wait(20, || (!begun(&work, name).is_empty()).then_some(())).is_some(),
            "job {job} does not begin"
        );
        job
    };
    let state = |job: &str| {
        hosts
            .cmd("head", "sacct")
            .args(["-n", "-X", "-P", "-j", job, "-o", "State"])
            .ok()
            .text()
            .trim()
            .to_string()
    };
    let moved = submit(&["--requeue", "--exclude=head"], "moved");
    let lost = begun(&work, "moved").remove(0);
    let other = if lost == "n1" { "n2" } else { "n1" };
    let failed = submit(&["--no-requeue", "-w", &lost], "failed");
    let stays = submit(&["--requeue", "-w", other], "stays");
    // Neither side is left but the supervisors.
    hosts.link(&lost, false);
    hosts.kill_9(&lost, "agent");
    assert!(
        wait(40, || (begun(&work, "moved").len() > 1).then_some(())).is_some(),
        "{} did not run again",
        state(&moved)
    );
    let again = begun(&work, "moved").remove(1);
    assert_ne!(again, lost);
    for name in ["moved", "failed"] {
        let ended = modified(&work.join(format!("{name}.{lost}")));
        assert!(
            ended < modified(&work.join("moved")),
            "{name} was alive on {lost} when it ran again on {again}"
        );
    }
    assert_eq!(state(&failed), "NODE_FAIL");
    // A controller that restarts, and silence that is shorter, end nothing.
    hosts.kill_9("head", "controller");
    hosts.root("head", "berth").args(["up", "--detach"]).ok();
    hosts.link(&lost, true);
    hosts.root(&lost, "berth").args(["up", "--detach"]).ok();
    hosts.wait_node(&lost, "idle", 30);
    assert_eq!(begun(&work, "stays"), [other]);
    std::fs::write(work.join("go"), "").unwrap();
    for job in [&moved, &stays] {
        assert!(wait(20, || (state(job) == "COMPLETED").then_some(())).is_some(), "{}", state(job));
    }
    assert_eq!(
        (begun(&work, "moved").len(), begun(&work, "failed").len(), begun(&work, "stays").len()),
        (2, 1, 1)
    );
}

each_user! {
    fn a_run_ends_by_itself_without_a_controller_and_is_on_record_when_there_is_one(who) {
        let mut sandbox = Sandbox::with_config(who, CONFIG);
        let job = sandbox.sbatch(&["--requeue", "--mem=20M"], "#!/bin/sh\necho x >> begun\nuntil [ -e go ]; do : > beat; sleep 0.05; done\n");
        sandbox.wait_file("begun", "x", 20);
        sandbox.kill_9(sandbox.controller());
        let beat = sandbox.work().join("beat");
        assert!(wait(60, || quiet(&beat).then_some(())).is_some(), "it goes on");
        assert_eq!(sandbox.read("begun"), "x\n");
        sandbox.up();
        // It said how it ended, and runs again at once.
        assert!(wait(20, || (sandbox.read("begun") == "x\nx\n").then_some(())).is_some());
        sandbox.write("go", "");
        sandbox.wait_state(job, "COMPLETED", 20);
        let output = sandbox.read(&format!("slurm-{job}.out"));
        assert!(output.contains("nothing was heard of the controller"), "{output}");
    }
}

/// Where the site says nothing, a job may ask for it itself; others are left alone.
#[test]
fn a_job_that_asks_for_it_ends_out_of_touch_and_no_other_does_as_root() {
    let hosts = Hosts::new(&["head", "n1", "n2"]);
    hosts.up("head", "node_timeout_seconds = 5\n");
    let token = hosts.token("head", &["--uses", "2"]);
    for node in ["n1", "n2"] {
        hosts.join(node, &token);
        hosts.wait_node(node, "idle", 60);
    }
    let work = hosts.work();
    let with_own = JOB.replacen("#!/bin/sh\n", "#!/bin/sh\n#SBATCH --lost-after=6\n", 1);
    std::fs::write(work.join("own.sh"), with_own).unwrap();
    std::fs::write(work.join("plain.sh"), JOB).unwrap();
    let sbatch = |options: &[&str]| {
        hosts.cmd("head", "sbatch").args(["--parsable", "--mem=20M", "-n1", "--requeue"]).args(options)
    };
    let begins = |name: &str, times: usize, seconds: u64| {
        let begun = wait(seconds, || (begun(&work, name).len() == times).then_some(()));
        assert!(begun.is_some(), "{name} did not begin {times} times");
    };
    sbatch(&["--lost-after=4", "plain.sh", "short"]).fails().says(&[
        "--lost-after",
        "5 at least",
        "node_timeout_seconds",
    ]);
    let moved = sbatch(&["--exclude=head", "own.sh", "moved"]).ok().text();
    begins("moved", 1, 20);
    let lost = begun(&work, "moved").remove(0);
    let shown = hosts.cmd("head", "scontrol").args(["show", "job", moved.trim()]).ok().text();
    assert!(shown.contains("LostAfter=00:00:06"), "{shown}");
    let plain = sbatch(&["-w", &lost, "plain.sh", "plain"]).ok().text();
    begins("plain", 1, 20);
    let shown = hosts.cmd("head", "scontrol").args(["show", "job", plain.trim()]).ok().text();
    assert!(!shown.contains("LostAfter"), "{shown}");
    // Neither side is left but the supervisors.
    hosts.link(&lost, false);
    hosts.kill_9(&lost, "agent");
    begins("moved", 2, 40);
    let again = begun(&work, "moved").remove(1);
    assert_ne!(again, lost);
    let ended = modified(&work.join(format!("moved.{lost}")));
    assert!(ended < modified(&work.join("moved")), "it was alive on {lost} when it ran again on {again}");
    assert!(goes_on(&work.join(format!("plain.{lost}"))), "nobody asked for its end");
    hosts.link(&lost, true);
    hosts.root(&lost, "berth").args(["up", "--detach"]).ok();
    std::fs::write(work.join("go"), "").unwrap();
    hosts.wait_node(&lost, "idle", 30);
    let counts = ["moved", "plain"].map(|name| begun(&work, name).len());
    assert_eq!(counts, [2, 1]);
}

/// What each renewal came to is on the node: an agent that starts again waits for no supervisor that is stopped.
#[test]
fn a_supervisor_that_is_stopped_when_the_agent_starts_again_keeps_nothing_alive_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", CONFIG);
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    std::fs::write(hosts.work().join("job.sh"), JOB).unwrap();
    hosts.cmd("head", "sbatch").args(["--no-requeue", "--mem=20M", "-w", "n1", "job.sh", "it"]).ok();
    let work = hosts.work();
    assert!(wait(20, || (!begun(&work, "it").is_empty()).then_some(())).is_some());
    let stopped = supervisors(&hosts.state("n1").join("spool"));
    assert_eq!(stopped.len(), 1);
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(stopped[0]), signal).unwrap();
    hosts.link("n1", false);
    signal(nix::sys::signal::Signal::SIGSTOP);
    hosts.kill_9("n1", "agent");
    let up = hosts.root("n1", "berth").args(["up", "--detach"]).limit(90).spawn();
    let beat = work.join("it.n1");
    assert!(wait(60, || quiet(&beat).then_some(())).is_some(), "it goes on");
    signal(nix::sys::signal::Signal::SIGCONT);
    hosts.link("n1", true);
    assert_eq!(up.finish().rc, 0);
    hosts.wait_node("n1", "idle", 60);
}

/// Nor does one that is stopped while there is no agent, for as long as there is none.
#[test]
fn a_supervisor_that_is_stopped_keeps_nothing_alive_without_an_agent_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", CONFIG);
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    std::fs::write(hosts.work().join("job.sh"), JOB).unwrap();
    hosts.cmd("head", "sbatch").args(["--requeue", "--mem=20M", "-w", "n1", "job.sh", "it"]).ok();
    let work = hosts.work();
    assert!(wait(20, || (!begun(&work, "it").is_empty()).then_some(())).is_some());
    let beat = work.join("it.n1");
    // With an agent it goes on past its first deadline.
    std::thread::sleep(std::time::Duration::from_secs(9));
    assert!(goes_on(&beat), "it has ended");
    let stopped = supervisors(&hosts.state("n1").join("spool"));
    assert_eq!(stopped.len(), 1);
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(stopped[0]), signal).unwrap();
    hosts.kill_9("n1", "agent");
    signal(nix::sys::signal::Signal::SIGSTOP);
    assert!(wait(60, || quiet(&beat).then_some(())).is_some(), "it goes on");
    signal(nix::sys::signal::Signal::SIGCONT);
    hosts.root("n1", "berth").args(["up", "--detach"]).limit(60).ok();
    // It runs again there, and is left alone by whoever ended it before.
    assert!(wait(60, || (begun(&work, "it").len() == 2).then_some(())).is_some());
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert!(goes_on(&beat), "it has ended");
    std::fs::write(work.join("go"), "").unwrap();
    hosts.wait_node("n1", "idle", 60);
}

/// Whoever can stop a supervisor does not keep its step alive by that.
#[test]
fn a_stopped_supervisor_keeps_nothing_alive() {
    if !machine::is_root() {
        return; // only in system mode there is a control group to kill
    }
    let sandbox = Sandbox::with_config(Who::root(), CONFIG);
    let job = sandbox.sbatch(
        &["--no-requeue", "--mem=20M"],
        "#!/bin/sh\necho x > begun\nwhile :; do : > beat; sleep 0.05; done\n",
    );
    sandbox.wait_file("begun", "x", 20);
    let stopped = supervisors(&sandbox.state().join("spool"));
    assert_eq!(stopped.len(), 1);
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(stopped[0]), signal).unwrap();
    let controller = sandbox.controller();
    signal(nix::sys::signal::Signal::SIGSTOP);
    sandbox.kill_9(controller);
    let beat = sandbox.work().join("beat");
    assert!(wait(60, || quiet(&beat).then_some(())).is_some(), "it goes on");
    signal(nix::sys::signal::Signal::SIGCONT);
    let mut sandbox = sandbox;
    sandbox.up();
    sandbox.wait_state(job, "NODE_FAIL", 20);
}
