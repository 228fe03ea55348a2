//! The site's check of a node's health: what fails keeps new work away, with its first line as the reason, until it passes.

use berth_tests::{Hanging, Sandbox, Who, each_user, machine, sandbox};
use std::fs;
use std::time::Duration;

/// A cluster whose health check is these lines of shell. `$LOG` is a file of the cluster's user.
fn site(who: Who, lines: &str, more: &str) -> Sandbox {
    let mut sandbox = Sandbox::empty(who);
    let log = sandbox.work().join("log");
    let program = sandbox.write("check", format!("#!/bin/sh\nLOG={}\n{lines}\n", log.display()));
    let config =
        format!("[programs]\nhealth_check = {program:?}\nhealth_check_interval_seconds = 1\n{more}\n");
    let path = sandbox.state().join("berth.toml");
    fs::write(&path, config).unwrap();
    machine::give(&path, sandbox.who());
    sandbox.up();
    sandbox
}

fn drained(sandbox: &Sandbox) -> String {
    sandbox.cmd("sinfo").args(["-h", "-R", "-o", "%E|%u"]).ok().text()
}

fn seen(what: &str, seconds: u64, mut is: impl FnMut() -> bool) {
    assert!(sandbox::wait(seconds, || is().then_some(())).is_some(), "not seen: {what}");
}

fn checks(sandbox: &Sandbox) -> usize {
    fs::read_to_string(sandbox.work().join("log")).unwrap_or_default().lines().count()
}

each_user! {
    fn a_check_that_fails_drains_the_node_and_one_that_passes_returns_it(who) {
        let lines = "echo \"$(id -u) $(pwd) $SLURM_SCRIPT_CONTEXT $SLURMD_NODENAME $SECRET\" >> $LOG\n\
                     [ ! -e $LOG.bad ] || { echo; echo 'no GPU'; echo 'call somebody' >&2; exit 1; }";
        let mut sandbox = site(who.clone(), lines, "");
        seen("checks, one after the other", 20, || checks(&sandbox) > 2);
        let log = fs::read_to_string(sandbox.work().join("log")).unwrap();
        assert_eq!(log.lines().next().unwrap().trim(), format!("{} / health_check {}", who.uid, sandbox.node()));
        assert_eq!(drained(&sandbox), "");
        sandbox.write("log.bad", "");
        seen("a drained node", 20, || drained(&sandbox) == "no GPU|berth");
        let job = sandbox.sbatch(&[], "#!/bin/sh\necho ran > ran\n");
        // What the check said is known before it has run again.
        sandbox.kill_9(sandbox.agent());
        sandbox.up();
        assert_eq!(drained(&sandbox), "no GPU|berth");
        assert_eq!(sandbox.job_state(job), "PENDING");
        fs::remove_file(sandbox.work().join("log.bad")).unwrap();
        sandbox.wait_state(job, "COMPLETED", 30);
        assert_eq!(drained(&sandbox), "");
        // An administrator's word stands beside it and stays.
        let node = format!("nodename={}", sandbox.node());
        sandbox.cmd("scontrol").args(["update", node.as_str(), "state=drain", "reason=new disk"]).ok();
        sandbox.write("log.bad", "");
        let before = checks(&sandbox);
        seen("a check that fails", 20, || checks(&sandbox) > before + 1);
        fs::remove_file(sandbox.work().join("log.bad")).unwrap();
        let before = checks(&sandbox);
        seen("a check that passes", 20, || checks(&sandbox) > before + 1);
        assert!(drained(&sandbox).starts_with("new disk|"), "{}", drained(&sandbox));
        sandbox.cmd("scontrol").args(["update", node.as_str(), "state=resume"]).ok();
        sandbox.srun(["true"]).ok();
    }

    fn one_that_hangs_is_killed_and_named_and_never_runs_twice(who) {
        let lines = "echo begun >> $LOG\nmkdir $LOG.runs 2>/dev/null || echo twice > $LOG.twice\n\
                     if [ -e $LOG.bad ]; then sleep 600 & echo $! > $LOG.pid; wait; fi\nrmdir $LOG.runs";
        let sandbox = site(who, lines, "health_check_seconds = 2");
        seen("a check", 20, || checks(&sandbox) > 0);
        sandbox.write("log.bad", "");
        sandbox.wait_file("log.pid", "\n", 20);
        // Meanwhile the node does what it is there for.
        sandbox.srun(["true"]).ok();
        let child: i32 = sandbox.read("log.pid").trim().parse().unwrap();
        let why = format!("health check {} failed: it ran longer than its timeout of 2 s", sandbox.work().join("check").display());
        seen("a drained node", 20, || drained(&sandbox).starts_with(&why));
        seen("the end of what it started", 10, || sandbox::gone(child));
        assert!(!sandbox.work().join("log.twice").exists());
        let _ = fs::remove_dir(sandbox.work().join("log.runs"));
        fs::remove_file(sandbox.work().join("log.bad")).unwrap();
        seen("a node in service", 20, || { let _ = fs::remove_dir(sandbox.work().join("log.runs")); drained(&sandbox).is_empty() });
    }
}

/// What the kernel does not let die is named with what it waits for, over agents too. No other check is started beside it, and the node is
/// back by itself when it is gone.
#[test]
fn one_that_cannot_be_killed_is_named_and_runs_alone_until_it_is_gone_as_root() {
    // A name of its own, so that it is found among others.
    let own = format!("c{}", std::process::id());
    let lines =
        format!("echo begun >> $LOG\n[ ! -e $LOG.bad ] || ${{LOG%/log}}/{own} ${{LOG%/log}}/hangs/file");
    let mut sandbox = site(Who::root(), &lines, "health_check_seconds = 2");
    fs::copy("/bin/cat", sandbox.work().join(&own)).unwrap();
    let mut hangs = Hanging::mounted(sandbox.work().join("hangs"));
    seen("a check", 20, || checks(&sandbox) > 0);
    sandbox.write("log.bad", "");
    let pid = Hanging::waiting(&own);
    let why = format!(
        "health check {} does not end although it was killed: pid {pid} ({own}), state D, waits in request_wait_answer on {} (fuse.hanging)",
        sandbox.work().join("check").display(),
        sandbox.work().join("hangs").display()
    );
    seen("a node that is drained and says why", 30, || drained(&sandbox).starts_with(&why));
    let before = checks(&sandbox);
    let job = sandbox.sbatch(&[], "#!/bin/sh\n:\n");
    sandbox.kill_9(sandbox.agent());
    sandbox.up();
    // Several times as long as from one check to the next.
    std::thread::sleep(Duration::from_secs(4));
    assert!(drained(&sandbox).starts_with(&why), "{}", drained(&sandbox));
    assert_eq!((checks(&sandbox), sandbox.job_state(job).as_str()), (before, "PENDING"));
    fs::remove_file(sandbox.work().join("log.bad")).unwrap();
    hangs.let_go();
    sandbox.wait_state(job, "COMPLETED", 30);
    assert_eq!(drained(&sandbox), "");
    assert!(checks(&sandbox) > before);
}
