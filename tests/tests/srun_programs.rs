//! Programs that `srun` runs where it is itself, around a step: the site's and the user's, and those that fail or hang.

use berth_tests::programs::{self, drained, runs};
use berth_tests::{Hosts, Sandbox, Who, each_user, processes, sandbox};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// A cluster whose programs of `srun` are these lines of shell.
fn site(who: Who, prolog: &str, epilog: &str, seconds: u32) -> Sandbox {
    programs::site(who, "srun", prolog, epilog, seconds)
}

fn lines(sandbox: &Sandbox, name: &str) -> Vec<String> {
    let text = fs::read_to_string(sandbox.work().join(name)).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

each_user! {
    fn they_run_around_a_step_and_know_it(who) {
        let uid = who.uid;
        let note = "echo \"$SLURM_SCRIPT_CONTEXT $(id -u) $SLURM_JOB_ID.$SLURM_STEP_ID $SLURM_STEP_NUM_TASKS $SLURM_JOB_NODELIST input=$(cat | wc -c) $*\" >> log";
        let sandbox = site(who, &format!("echo before; sleep 1; {note}"), &format!("{note}; echo after"), 60);
        sandbox.write("task", "#!/bin/sh\necho task $SLURM_JOB_ID.$SLURM_STEP_ID >> log\necho of the task\n");
        let output = sandbox.srun(["./task", "one", "two"]).stdin("not for them").ok();
        assert_eq!(output.text(), "before\nof the task\nafter", "{output}");
        let node = sandbox.node();
        let log = lines(&sandbox, "log");
        let step = log[1].strip_prefix("task ").unwrap().to_string();
        let told = |context: &str| format!("{context} {uid} {step} 1 {node} input=0 ./task one two");
        assert_eq!(log, [told("prolog_srun"), format!("task {step}"), told("epilog_srun")]);
        // The user's own takes the site's place, and 'none' that of both.
        let own = sandbox.write("own", "#!/bin/sh\necho own of $SLURM_STEP_ID\n");
        let named = format!("--prolog={}", own.display());
        assert_eq!(sandbox.srun([named.as_str(), "--epilog=none", "true"]).ok().text(), "own of 0");
        assert_eq!(sandbox.srun(["true"]).env("SLURM_PROLOG", "./own").env("SLURM_EPILOG", "none").ok().text(), "own of 0");
        assert_eq!(sandbox.srun(["--prolog=none", "--epilog=none", "echo", "alone"]).ok().text(), "alone");
        // One that is not there keeps nothing back, as with Slurm.
        let output = sandbox.srun(["--prolog=./nosuch", "--epilog=none", "echo", "ran"]).ok();
        assert_eq!(output.text(), "ran");
        assert!(output.err().contains("srun: Access denied for ./nosuch: No such file or directory"), "{output}");
        // Steps of a job each have theirs.
        let script = "#!/bin/sh\nfor i in 1 2; do srun --prolog=./own --epilog=./own true; done\n";
        let job = sandbox.sbatch(&["-o", "out"], script);
        sandbox.wait_state(job, "COMPLETED", 30);
        assert_eq!(lines(&sandbox, "out"), ["own of 0", "own of 0", "own of 1", "own of 1"]);
    }

    fn a_step_whose_prolog_fails_is_not_run(who) {
        let sandbox = site(who, "[ -z \"$BAD\" ] || exit 3", "echo after >> log; [ -z \"$BAD\" ] || exit 4", 60);
        let [before, after] = ["srun_prolog", "srun_epilog"].map(|name| sandbox.work().join(name).display().to_string());
        let output = sandbox.srun(["sh", "-c", "echo ran > ran"]).env("BAD", "1").fails().says(&[
            &format!("srun prolog {before} failed: exit code 3; the step is not run"),
            &format!("srun epilog {after} failed: exit code 4"),
        ]);
        assert!(!output.err().contains("before its tasks began"), "said once: {output}");
        assert!(!sandbox.work().join("ran").exists());
        assert_eq!(lines(&sandbox, "log"), ["after"]);
        // Of an epilog that fails is told, and the exit stays.
        let output = sandbox.srun(["--prolog=none", "sh", "-c", "exit 5"]).env("BAD", "1").fails();
        assert_eq!(output.rc, 5, "{output}");
        // No reason for the node to stay away, and the next runs.
        assert_eq!(drained(&sandbox), "");
        assert_eq!(sandbox.srun(["echo", "next"]).ok().text(), "next");
    }

    fn one_that_hangs_is_killed_with_what_it_started(who) {
        let hang = |when: &str| format!("[ \"$HANG\" != {when} ] || {{ ./left_over & wait; }}");
        let sandbox = site(who, &hang("before"), &hang("after"), 2);
        let program = sandbox.write("left_over", "#!/bin/sh\necho x > begun_too\nsleep 600\n");
        let gone = |what: &str| {
            assert_eq!(sandbox.read("begun_too"), "x\n");
            fs::remove_file(sandbox.work().join("begun_too")).unwrap();
            assert!(sandbox::wait(30, || (!runs(&program)).then_some(())).is_some(), "{what}");
        };
        sandbox.srun(["sh", "-c", "echo ran > ran"]).env("HANG", "before").fails().says(&[
            "srun_prolog failed: it did not end within 2 s (srun_prolog_seconds) and was killed; the step is not run",
        ]);
        gone("what the prolog started");
        let output = sandbox.srun(["sh", "-c", "echo told; exit 5"]).env("HANG", "after").fails();
        let output = output.says(&["srun_epilog failed: it did not end within 2 s (srun_epilog_seconds) and was killed"]);
        assert_eq!((output.rc, output.text().as_str()), (5, "told"), "{output}");
        gone("what the epilog started");
        // Who ends the srun, or its job, ends the prolog.
        let forever = sandbox.write("forever", "#!/bin/sh\necho x > begun\nsleep 600\n");
        let begin = || {
            let _ = fs::remove_file(sandbox.work().join("begun"));
            let step = sandbox.srun(["--prolog=./forever", "sh", "-c", "echo ran > ran"]).limit(30).spawn();
            sandbox.wait_file("begun", "x", 20);
            step
        };
        let step = begin();
        step.signal(Signal::SIGINT);
        let output = step.finish();
        assert!(output.rc != 0 && output.err().contains("srun prolog ./forever failed: SIGINT"), "{output}");
        let step = begin();
        step.signal(Signal::SIGTERM);
        let output = step.finish();
        assert!(output.rc != 0 && output.err().contains("srun prolog ./forever failed: SIGKILL"), "{output}");
        let step = begin();
        let job = sandbox.cmd("squeue").args(["-h", "-o", "%A"]).ok().text();
        sandbox.cmd("scancel").arg(job.trim()).ok();
        let output = step.finish();
        assert!(output.rc != 0 && output.err().contains("ending the prolog"), "{output}");
        assert!(sandbox::wait(30, || (!runs(&forever)).then_some(())).is_some(), "the prolog is left");
        assert!(!sandbox.work().join("ran").exists());
        assert_eq!(drained(&sandbox), "");
    }
}

#[test]
fn the_tasks_on_all_nodes_wait_for_the_prolog_where_srun_is_as_root() {
    let hosts = Hosts::new(&["head", "n1", "n2"]);
    hosts.up("head", "");
    let token = hosts.token("head", &["--uses", "2"]);
    for node in ["n1", "n2"] {
        hosts.join(node, &token);
        hosts.wait_node(node, "idle", 60);
    }
    let before = hosts.work().join("before");
    fs::write(&before, "#!/bin/sh\nsleep 2\necho $(hostname) $SLURM_STEP_NODELIST > where\n").unwrap();
    fs::set_permissions(&before, Permissions::from_mode(0o755)).unwrap();
    let output = hosts.cmd("head", "srun").args([
        "-N2",
        "-w",
        "n1,n2",
        "--mem=20M",
        "-l",
        "--prolog=./before",
        "cat",
        "where",
    ]);
    let output = output.ok();
    let mut told: Vec<String> = output.text().lines().map(str::to_string).collect();
    told.sort();
    assert_eq!(told, ["0: head n[1-2]", "1: head n[1-2]"], "{output}");
}

#[test]
fn a_node_that_is_lost_while_the_prolog_runs_is_named_and_the_step_ended_as_root() {
    lost_while_the_prolog_runs(|hosts, lost| hosts.link("n3", !lost));
}

/// The connection to it stands all the while, and the machine answers whoever looks whether it does.
#[test]
fn a_node_whose_agent_hangs_while_the_prolog_runs_is_named_and_the_step_ended_as_root() {
    lost_while_the_prolog_runs(|hosts, lost| {
        let agent = Pid::from_raw(hosts.pid("n3", "agent"));
        kill(agent, if lost { Signal::SIGSTOP } else { Signal::SIGCONT }).unwrap();
    });
}

/// Has n3 be lost, and come back, as a step waits there for what srun runs before it. Its supervisor had taken srun: nothing else than srun itself
/// would notice.
fn lost_while_the_prolog_runs(lose: impl Fn(&Hosts, bool)) {
    let hosts = Hosts::cluster(3, "node_timeout_seconds = 5\nkill_wait_seconds = 2\n");
    let before = hosts.work().join("before");
    fs::write(&before, "#!/bin/sh\necho x > begun\nexec sleep 600\n").unwrap();
    fs::set_permissions(&before, Permissions::from_mode(0o755)).unwrap();
    let words = ["-N3", "--prolog=./before", "sh", "-c", "echo ran > ran"];
    let step = hosts.cmd("n1", "srun").args(words).limit(120).spawn();
    let supervised = |name: &str| !processes::supervisors(&hosts.state(name), "1.0.0").is_empty();
    for name in ["n1", "n2", "n3"] {
        assert!(sandbox::wait(30, || supervised(name).then_some(())).is_some(), "{name} has no supervisor");
    }
    assert!(sandbox::wait(30, || hosts.work().join("begun").exists().then_some(())).is_some());
    // The connections come within a second.
    std::thread::sleep(Duration::from_secs(3));
    lose(&hosts, true);
    let told = step.finish();
    lose(&hosts, false);
    assert!(told.rc != 0, "{told}");
    let told = told
        .says(&["n3: the node was lost before the tasks of its part of the step began", "ending the prolog"]);
    assert!(!told.err().contains("n2: "), "{told}");
    assert!(!hosts.work().join("ran").exists());
    for name in ["n1", "n2", "n3"] {
        hosts.wait_node(name, "idle", 120);
        // A supervisor that has something to tell keeps it for a minute.
        assert!(
            sandbox::wait(90, || (!supervised(name)).then_some(())).is_some(),
            "{name} keeps a supervisor"
        );
    }
}
