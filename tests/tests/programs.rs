//! The administrator's prolog and epilog: where they run and as whom, what comes of those that fail or hang, and nobody else's hand.

use berth_tests::{Hanging, Hosts, Sandbox, Who, each_user, machine, sandbox};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// A cluster whose prolog and epilog are these lines of shell. `$LOG` is a file that both write.
fn site(who: Who, prolog: &str, epilog: &str, seconds: u32) -> Sandbox {
    let mut sandbox = Sandbox::empty(who);
    let log = sandbox.work().join("log");
    for (name, lines) in [("prolog", prolog), ("epilog", epilog)] {
        sandbox.write(name, format!("#!/bin/sh\nLOG={}\n{lines}\n", log.display()));
    }
    let at = |name: &str| sandbox.work().join(name);
    let config = format!(
        "kill_wait_seconds = 2\n[programs]\nprolog = {:?}\nprolog_seconds = {seconds}\nepilog = {:?}\nepilog_seconds = {seconds}\n",
        at("prolog"),
        at("epilog")
    );
    let path = sandbox.state().join("berth.toml");
    fs::write(&path, config).unwrap();
    machine::give(&path, sandbox.who());
    sandbox.up();
    sandbox
}

fn log(sandbox: &Sandbox) -> Vec<String> {
    let text = fs::read_to_string(sandbox.work().join("log")).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

fn lines(sandbox: &Sandbox, with: &str) -> usize {
    log(sandbox).iter().filter(|line| line.contains(with)).count()
}

fn drained(sandbox: &Sandbox) -> String {
    sandbox.cmd("sinfo").args(["-h", "-R", "-o", "%E|%u|%N"]).ok().text()
}

fn resume(sandbox: &Sandbox) {
    let node = format!("nodename={}", sandbox.node());
    sandbox.cmd("scontrol").args(["update", node.as_str(), "state=resume"]).ok();
}

fn seen(what: &str, seconds: u64, mut is: impl FnMut() -> bool) {
    assert!(sandbox::wait(seconds, || is().then_some(())).is_some(), "not seen: {what}");
}

each_user! {
    fn they_run_once_around_a_job_with_nothing_of_anyones(who) {
        let note = "echo \"$SLURM_SCRIPT_CONTEXT $(id -u) $(pwd) $SLURM_JOB_ID $SLURM_JOB_UID $SLURM_JOB_PARTITION $SLURM_JOB_NODELIST secret=$SECRET input=$(cat | wc -c)\" >> $LOG";
        let sandbox = site(who.clone(), note, note, 60);
        let log_file = sandbox.work().join("log");
        fs::write(&log_file, "").unwrap();
        fs::set_permissions(&log_file, Permissions::from_mode(0o666)).unwrap();
        let script = format!("#!/bin/sh\nsrun sh -c 'echo step >> {0}'\nsrun sh -c 'echo step >> {0}'\n", log_file.display());
        let path = sandbox.write("job.sh", script);
        let job = sandbox.cmd("sbatch").env("SECRET", "of the user").arg("--parsable").arg(path).ok().text();
        sandbox.wait_state(job.parse().unwrap(), "COMPLETED", 30);
        let told = |context: &str| format!("{context} {uid} / {job} {uid} main {} secret= input=0", sandbox.node(), uid = who.uid);
        seen("the epilog", 10, || lines(&sandbox, "epilog_slurmd") == 1);
        assert_eq!(log(&sandbox), [told("prolog_slurmd"), "step".into(), "step".into(), told("epilog_slurmd")]);
        // What they say does not reach the user.
        assert_eq!(sandbox.srun(["echo", "own"]).ok().text(), "own");
        assert_eq!(drained(&sandbox), "");
    }

    fn a_prolog_that_fails_drains_the_node_and_the_job_waits(who) {
        let sandbox = site(who, "echo prolog >> $LOG; [ -e $LOG.bad ] || exit 0; echo one; echo 'no disk left' >&2; exit 3", "echo epilog >> $LOG", 60);
        sandbox.write("log.bad", "");
        let job = sandbox.sbatch(&[], "#!/bin/sh\necho ran >> log\n");
        let reason = format!("prolog {} failed: exit code 3: no disk left", sandbox.work().join("prolog").display());
        seen("a drained node", 20, || drained(&sandbox).contains(&reason));
        let shown = sandbox.cmd("scontrol").args(["show", "node"]).ok().text();
        assert!(shown.contains("DRAIN") && shown.contains(&reason), "{shown}");
        sandbox.wait_state(job, "PENDING", 20);
        assert_eq!((lines(&sandbox, "ran"), lines(&sandbox, "prolog")), (0, 1));
        seen("the epilog after a prolog that failed", 10, || lines(&sandbox, "epilog") == 1);
        fs::remove_file(sandbox.work().join("log.bad")).unwrap();
        resume(&sandbox);
        sandbox.wait_state(job, "COMPLETED", 30);
        assert_eq!((lines(&sandbox, "ran"), lines(&sandbox, "prolog")), (1, 2));
        sandbox.write("log.bad", "");
        // Its user is told at once.
        sandbox.srun(["true"]).fails().says(&[&reason]);
        seen("a drained node", 20, || drained(&sandbox).contains(&reason));
        // No person gave the reason.
        assert!(drained(&sandbox).contains("|berth"), "{}", drained(&sandbox));
    }

    fn an_epilog_that_fails_drains_the_node_and_the_job_is_over(who) {
        let sandbox = site(who, "", "[ -e $LOG.bad ] || exit 0; echo 'still mounted'; exit 1", 60);
        sandbox.write("log.bad", "");
        let job = sandbox.sbatch(&[], "#!/bin/sh\ntrue\n");
        sandbox.wait_state(job, "COMPLETED", 20);
        let reason = format!("epilog {} failed: exit code 1: still mounted", sandbox.work().join("epilog").display());
        seen("a drained node", 20, || drained(&sandbox).contains(&reason));
        fs::remove_file(sandbox.work().join("log.bad")).unwrap();
        resume(&sandbox);
        sandbox.srun(["true"]).ok();
    }

    fn one_that_hangs_is_killed_with_what_it_started_and_holds_nobody_up(who) {
        let hang = "[ \"$SLURM_JOB_ID\" = 1 ] || exit 0; echo 'looking for disks'; sleep 600 & echo $! > $LOG.pid; wait";
        let sandbox = site(who, hang, "", 5);
        let job = sandbox.sbatch(&["--mem=10"], "#!/bin/sh\necho ran >> log\n");
        sandbox.wait_file("log.pid", "\n", 20);
        // Meanwhile.
        sandbox.srun(["--mem=10", "true"]).ok();
        assert_eq!(drained(&sandbox), "");
        let child: i32 = sandbox.read("log.pid").trim().parse().unwrap();
        seen("a drained node", 20, || drained(&sandbox).contains("ran longer than its timeout of 5 s: looking for disks"));
        seen("the end of what it started", 10, || sandbox::gone(child));
        sandbox.wait_state(job, "PENDING", 20);
        assert_eq!(lines(&sandbox, "ran"), 0);
    }

    fn a_job_that_is_cancelled_ends_its_prolog_and_an_agent_runs_what_was_cut_short_again(who) {
        let wait = "echo prolog >> $LOG; [ -e $LOG.go ] && exit 0; sleep 600 & echo $! > $LOG.pid; wait";
        let mut sandbox = site(who, wait, "echo epilog >> $LOG", 600);
        let hangs = |sandbox: &Sandbox| -> i32 {
            sandbox.wait_file("log.pid", "\n", 20);
            let pid = sandbox.read("log.pid").trim().parse().unwrap();
            fs::remove_file(sandbox.work().join("log.pid")).unwrap();
            pid
        };
        let job = sandbox.sbatch(&[], "#!/bin/sh\necho ran >> log\n");
        let child = hangs(&sandbox);
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        sandbox.wait_state(job, "CANCELLED", 20);
        seen("the end of the prolog", 10, || sandbox::gone(child));
        // The job's end is on record before.
        seen("the epilog", 10, || lines(&sandbox, "epilog") == 1);
        assert_eq!(lines(&sandbox, "ran"), 0);
        assert_eq!(drained(&sandbox), "");

        let job = sandbox.sbatch(&[], "#!/bin/sh\necho ran >> log\nuntil [ -e go ]; do sleep 0.1; done\nsrun true\n");
        let child = hangs(&sandbox);
        sandbox.kill_9(sandbox.agent());
        sandbox.write("log.go", "");
        sandbox.up();
        sandbox.wait_file("log", "ran", 30);
        seen("the end of the one before", 10, || sandbox::gone(child));
        assert_eq!(lines(&sandbox, "prolog"), 3, "cut short, and run again");
        // One that ended is not run again.
        sandbox.kill_9(sandbox.agent());
        sandbox.up();
        sandbox.write("go", "");
        sandbox.wait_state(job, "COMPLETED", 30);
        seen("the epilog", 10, || lines(&sandbox, "epilog") == 2);
        assert_eq!(lines(&sandbox, "prolog"), 3);
    }

    fn what_others_could_change_is_refused(who) {
        let sandbox = Sandbox::empty(who);
        let program = sandbox.write("prolog", "#!/bin/sh\ntrue\n");
        let config = sandbox.write("berth.toml", format!("[programs]\nprolog = {program:?}\n"));
        let check = || sandbox.cmd("berth").args(["config", "check"]).arg(&config).run();
        assert_eq!(check().rc, 0, "{}", check());
        for (mode, word) in [(0o777, "chmod go-w"), (0o644, "is no program")] {
            fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
            sandbox.cmd("berth").args(["config", "check"]).arg(&config).fails().says(&["programs.prolog", word]);
        }
        fs::write(&config, "[programs]\nepilog = \"epilog\"\n").unwrap();
        sandbox.cmd("berth").args(["config", "check"]).arg(&config).fails().says(&["programs.epilog", "absolute"]);
    }
}

/// What the kernel does not let die is named with what it waits for. No job's prolog joins it, whatever an administrator says and whichever
/// agent is there, until it is gone.
#[test]
fn one_that_cannot_be_killed_is_named_and_joined_by_none_until_it_is_gone_as_root() {
    // A name of its own, so that it is found among others.
    let own = format!("p{}", std::process::id());
    let hang = format!(
        "echo prolog >> $LOG; [ -e $LOG.bad ] || exit 0; ${{LOG%/log}}/{own} ${{LOG%/log}}/hangs/file"
    );
    let mut sandbox = site(Who::root(), &hang, "echo epilog >> $LOG", 2);
    fs::copy("/bin/cat", sandbox.work().join(&own)).unwrap();
    sandbox.write("log.bad", "");
    let mut hangs = Hanging::mounted(sandbox.work().join("hangs"));
    let job = sandbox.sbatch(&["--mem=50"], "#!/bin/sh\necho ran >> log\n");
    let pid = Hanging::waiting(&own);
    let place = sandbox.work().join("hangs");
    let left = format!(
        "although it was killed: pid {pid} ({own}), state D, waits in request_wait_answer on {} (fuse.hanging)",
        place.display()
    );
    let prolog = format!("prolog {}", sandbox.work().join("prolog").display());
    let late = "failed: it ran longer than its timeout of 2 s; it does not end";
    seen("a node that is drained and says why", 30, || {
        drained(&sandbox).contains(&format!("{prolog} {late} {left}"))
    });
    // What ends has its epilog.
    seen("the epilog", 20, || lines(&sandbox, "epilog") == 1);
    sandbox.kill_9(sandbox.agent());
    sandbox.up();
    resume(&sandbox);
    let earlier = "is not run: a program of an earlier job does not end";
    seen("the word of the next agent", 30, || {
        drained(&sandbox).contains(&format!("{prolog} {earlier} {left}"))
    });
    assert_eq!((lines(&sandbox, "prolog"), lines(&sandbox, "ran")), (1, 0));
    fs::remove_file(sandbox.work().join("log.bad")).unwrap();
    hangs.let_go();
    seen("its end", 20, || sandbox::gone(pid));
    resume(&sandbox);
    // It failed twice: its owner has a say, as soon as the run is over.
    let release = || sandbox.cmd("scontrol").args(["release", &job.to_string()]).run().rc == 0;
    seen("a job that is released", 20, release);
    sandbox.wait_state(job, "COMPLETED", 30);
    assert_eq!((lines(&sandbox, "prolog"), lines(&sandbox, "ran")), (2, 1));
    assert_eq!(drained(&sandbox), "");
}

/// A program that became another user's after the start of the cluster is not run as root.
#[test]
fn what_a_user_could_exchange_is_not_run_as_root() {
    let sandbox = site(Who::root(), "echo prolog >> $LOG", "", 60);
    fs::set_permissions(sandbox.work().join("prolog"), Permissions::from_mode(0o757)).unwrap();
    sandbox.srun(["true"]).fails().says(&["prolog", "can be written by others"]);
    assert_eq!(lines(&sandbox, "prolog"), 0);
    assert!(drained(&sandbox).contains("can be written by others"), "{}", drained(&sandbox));
}

/// Of several nodes the one that refuses is named, and no other is held up or drained.
#[test]
fn a_node_whose_prolog_fails_is_named_by_srun_and_the_others_are_free_as_root() {
    let hosts = Hosts::new(&["n1", "n2", "n3"]);
    let prolog = hosts.state("n1").join("prolog");
    let lines = "[ \"$SLURMD_NODENAME\" != n2 ] || { echo 'no disk left' >&2; exit 3; }";
    fs::write(&prolog, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(&prolog, Permissions::from_mode(0o755)).unwrap();
    hosts.up("n1", &format!("kill_wait_seconds = 2\n[programs]\nprolog = {prolog:?}\n"));
    let token = hosts.token("n1", &["--uses", "2"]);
    for node in ["n2", "n3"] {
        hosts.join(node, &token);
    }
    for node in ["n1", "n2", "n3"] {
        hosts.wait_node(node, "idle", 60);
    }
    let told = hosts.cmd("n1", "srun").args(["-N3", "sleep", "600"]).limit(60).fails();
    let why = format!("n2: prolog {} failed: exit code 3: no disk left", prolog.display());
    let told = told.says(&[&why]);
    let of_it = |line: &&str| line.contains("prolog");
    assert!(told.err().lines().filter(of_it).all(|line| line.contains(" n2: ")), "{told}");
    assert!(told.took < Duration::from_secs(30), "{told}");
    for (node, state) in [("n1", "idle"), ("n2", "drained"), ("n3", "idle")] {
        hosts.wait_node(node, state, 30);
    }
    let reasons = hosts.cmd("n1", "sinfo").args(["-h", "-R", "-o", "%N %E"]).ok().text();
    assert!(reasons.lines().count() == 1 && reasons.starts_with("n2 prolog "), "{reasons}");
    let names = hosts.cmd("n1", "srun").args(["-N2", "hostname"]).limit(60).ok().text();
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["n1", "n3"]);
}
