//! What administrators make of nodes, and how that is shown: as a real Slurm does, by its recorded answers.

use berth_tests::{Sandbox, each_user, sandbox::wait};

fn update(sandbox: &Sandbox, words: &[&str]) -> berth_tests::Output {
    let node = format!("nodename={}", sandbox.node());
    sandbox.cmd("scontrol").args(["update", node.as_str()]).args(words).run()
}

fn shown(sandbox: &Sandbox) -> String {
    let text = sandbox.cmd("sinfo").args(["-h", "-N", "-o", "%T|%t|%E"]).ok().text();
    let record = sandbox.cmd("scontrol").args(["show", "node"]).ok().text();
    let state = record.split("State=").nth(1).unwrap().split(' ').next().unwrap().to_string();
    format!("{}|{state}", text.trim())
}

fn fine(sandbox: &Sandbox, words: &[&str], expected: &str) {
    let output = update(sandbox, words);
    assert_eq!((output.rc, output.err()), (0, String::new()), "{words:?}");
    // What ran there takes a moment to go.
    let seen = wait(30, || (shown(sandbox) == expected).then_some(()));
    assert!(seen.is_some(), "{} is not {expected} after {words:?}", shown(sandbox));
}

fn refused(sandbox: &Sandbox, words: &[&str], lines: &[&str]) {
    let output = update(sandbox, words);
    assert_eq!(output.rc, 1, "{output}");
    let said = output.err();
    let mut said = said.lines();
    for line in lines {
        assert!(said.any(|l| l == *line), "'{line}' is not in: {output}");
    }
}

each_user! {
    fn states_are_set_refused_and_shown_as_in_slurm(who) {
        let sandbox = Sandbox::start(who);
        let sandbox = &sandbox;
        let reason = ["You must specify a reason when DOWNING or DRAINING a node. Request denied"];
        for state in ["state=drain", "state=down", "state=fail"] {
            refused(sandbox, &[state], &reason);
        }
        refused(sandbox, &["state=bogus"], &["Invalid input: state=bogus", "Request aborted", "Not all states are valid given a node's prior state"]);
        fine(sandbox, &["state=drain", "reason=test"], "drained|drain|test|IDLE+DRAIN");
        fine(sandbox, &["state=idle"], "idle|idle|none|IDLE");
        fine(sandbox, &["state=undrain"], "idle|idle|none|IDLE");
        fine(sandbox, &["state=fail", "reason=failing"], "fail|fail|failing|IDLE+FAIL");
        fine(sandbox, &["state=down", "reason=kernel panic"], "down|down|kernel panic|DOWN+FAIL");
        fine(sandbox, &["state=resume"], "idle|idle|none|IDLE");
        // With work on it.
        let job = sandbox.sbatch(&["--mem=10M", "-n1", "--no-requeue"], "#!/bin/sh\necho x > begun\nuntil [ -e go ]; do sleep 0.1; done\n");
        sandbox.wait_file("begun", "x", 20);
        let busy = shown(sandbox);
        let (long, short, base) = if busy.starts_with("mixed|") { ("mixed", "mix", "MIXED") } else { ("allocated", "alloc", "ALLOCATED") };
        assert_eq!(busy, format!("{long}|{short}|none|{base}"));
        refused(sandbox, &["state=idle"], &["slurm_update error: Invalid node state transition"]);
        fine(sandbox, &["state=drain", "reason=test"], &format!("draining|drng|test|{base}+DRAIN"));
        fine(sandbox, &["state=undrain"], &busy);
        fine(sandbox, &["state=fail", "reason=failing"], &format!("failing|failg|failing|{base}+FAIL"));
        fine(sandbox, &["state=resume"], &busy);
        assert_eq!(sandbox.job_state(job), "RUNNING");
        fine(sandbox, &["state=down", "reason=kernel panic"], "down|down|kernel panic|DOWN");
        sandbox.wait_state(job, "NODE_FAIL", 20);
        fine(sandbox, &["state=idle"], "idle|idle|none|IDLE");
    }

    fn a_job_of_a_connected_node_that_is_given_up_has_ended_before_it_waits_again(who) {
        let sandbox = Sandbox::with_config(who, "kill_wait_seconds = 10\n");
        let sandbox = &sandbox;
        // The kernel lets the lock go with the last process that has it.
        let script = "#!/bin/sh\ntrap '' TERM\nexec 9> lock\nflock -n 9 || touch twice\necho x > begun\nuntil [ -e go ]; do sleep 0.1; done\n";
        let job = sandbox.sbatch(&["--mem=10M", "-n1", "--requeue"], script);
        sandbox.wait_file("begun", "x", 20);
        let state = || sandbox.cmd("squeue").args(["-h", "-o", "%T", "-j", &job.to_string()]).ok().text().trim().to_string();
        assert_eq!(update(sandbox, &["state=down", "reason=lost"]).rc, 0);
        assert_eq!(state(), "COMPLETING", "what still runs there is not over");
        assert!(wait(60, || (state() == "PENDING").then_some(())).is_some(), "{}", state());
        sandbox.cmd("flock").arg("-n").arg(sandbox.work().join("lock")).arg("true").ok();
        sandbox.write("go", "");
        assert_eq!(update(sandbox, &["state=resume"]).rc, 0);
        sandbox.wait_state(job, "COMPLETED", 60);
        assert!(!sandbox.work().join("twice").exists(), "two runs at a time");
    }

    fn a_silent_node_is_down_where_nothing_runs_and_says_why(who) {
        let mut sandbox = Sandbox::with_config(who, "node_timeout_seconds = 5\n");
        let seen = |sandbox: &Sandbox, expected: &str| {
            assert!(wait(30, || (shown(sandbox) == expected).then_some(())).is_some(), "{} is not {expected}", shown(sandbox));
        };
        sandbox.kill_9(sandbox.agent());
        seen(&sandbox, "down*|down*|Not responding|DOWN+NOT_RESPONDING");
        let why = sandbox.cmd("sinfo").args(["-h", "-R", "-o", "%E|%u|%t"]).ok().text();
        assert_eq!(why.trim(), "Not responding|berth|down*");
        assert_eq!(sandbox.cmd("sinfo").args(["-h", "-t", "down", "-o", "%D"]).ok().text().trim(), "1");
        sandbox.up();
        seen(&sandbox, "idle|idle|none|IDLE");
        let job = sandbox.sbatch(&["--mem=10M", "-n1"], "#!/bin/sh\necho x > begun\nuntil [ -e go ]; do sleep 0.1; done\n");
        sandbox.wait_file("begun", "x", 20);
        let busy = shown(&sandbox);
        sandbox.kill_9(sandbox.agent());
        let (long, short, base) = if busy.starts_with("mixed|") { ("mixed", "mix", "MIXED") } else { ("allocated", "alloc", "ALLOCATED") };
        seen(&sandbox, &format!("{long}*|{short}*|Not responding|{base}+NOT_RESPONDING"));
        assert_eq!(sandbox.job_state(job), "RUNNING");
        sandbox.write("go", "");
        sandbox.up();
        sandbox.wait_state(job, "COMPLETED", 20);
        seen(&sandbox, "idle|idle|none|IDLE");
    }
}
