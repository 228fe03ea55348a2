//! `scontrol reboot`: the site's program runs when the node is free, and the node is back with another boot id.

use berth_tests::{Hanging, Sandbox, Who, each_user, machine, sandbox};
use std::fs;
use std::path::Path;

fn site(who: Who, lines: &str, more: &str) -> Sandbox {
    let mut sandbox = Sandbox::empty(who);
    let program = sandbox.write("reboot", format!("#!/bin/sh\ncd {}\n{lines}\n", sandbox.work().display()));
    let path = sandbox.state().join("berth.toml");
    fs::write(&path, format!("[programs]\nreboot = {program:?}\n{more}\n")).unwrap();
    machine::give(&path, sandbox.who());
    sandbox.up();
    sandbox
}

fn state(sandbox: &Sandbox) -> String {
    sandbox.cmd("sinfo").args(["-h", "-N", "-o", "%t|%T|%E"]).ok().text()
}

fn seen(what: &str, sandbox: &Sandbox, is: impl Fn(&str) -> bool) {
    assert!(
        sandbox::wait(30, || is(&state(sandbox)).then_some(())).is_some(),
        "not seen: {what}: {}",
        state(sandbox)
    );
}

each_user! {
    fn a_node_is_rebooted_when_it_is_free_and_named_where_it_stays_away(who) {
        let sandbox = site(who, "echo \"$SLURM_SCRIPT_CONTEXT $SLURMD_NODENAME\" >> rebooted", "reboot_timeout_seconds = 3");
        let job = sandbox.sbatch(&["--mem=10"], "#!/bin/sh\nuntil [ -e go ]; do sleep 0.1; done\n");
        sandbox.wait_state(job, "RUNNING", 20);
        sandbox.cmd("scontrol").args(["reboot", "ASAP", "reason=new kernel", &sandbox.node()]).ok();
        assert_eq!(state(&sandbox), "drng@|draining@|new kernel");
        let shown = sandbox.cmd("scontrol").args(["show", "node"]).ok().text();
        assert!(shown.contains("DRAIN+REBOOT_REQUESTED") && shown.contains("Reason=new kernel ["), "{shown}");
        // Nothing new comes, and a wish can be taken back.
        let next = sandbox.sbatch(&["--mem=10"], "#!/bin/sh\ntrue\n");
        sandbox.cmd("scontrol").args(["cancel_reboot", &sandbox.node()]).ok();
        sandbox.wait_state(next, "COMPLETED", 20);
        sandbox.cmd("scontrol").args(["reboot", "ALL"]).ok();
        assert!(state(&sandbox).starts_with("mix@|mixed@|") || state(&sandbox).starts_with("alloc@|allocated@|"), "{}", state(&sandbox));
        assert!(!sandbox.work().join("rebooted").exists());
        sandbox.write("go", "");
        sandbox.wait_file("rebooted", &format!("reboot {}", sandbox.node()), 20);
        sandbox.wait_state(job, "COMPLETED", 20);
        seen("a node that is told to reboot", &sandbox, |s| s.starts_with("boot^|reboot^|"));
        sandbox.cmd("scontrol").args(["cancel_reboot", &sandbox.node()]).fails().says(&["cannot be cancelled"]);
        // The program did nothing.
        seen("a word about it", &sandbox, |s| s.contains("reboot: not back within 3 s"));
        let node = format!("nodename={}", sandbox.node());
        sandbox.cmd("scontrol").args(["update", node.as_str(), "state=resume"]).ok();
        sandbox.srun(["true"]).ok();
        assert_eq!(sandbox.read("rebooted").lines().count(), 1);
    }

    fn a_program_that_fails_is_named_and_so_is_a_machine_that_cannot(who) {
        let sandbox = site(who.clone(), "echo 'locked' >&2; exit 4", "");
        sandbox.cmd("scontrol").args(["reboot", &sandbox.node()]).ok();
        seen("a drained node", &sandbox, |s| s.starts_with("drain|drained|reboot failed: ") && s.contains("exit code 4: locked"));
        if who.is_root() {
            // Nobody else uses an ordinary user's cluster.
            sandbox.cmd_as(&Who::stranger(), "scontrol").args(["reboot", &sandbox.node()]).fails().says(&["administrator"]);
        } else {
            let sandbox = Sandbox::start(who);
            let node = sandbox.node();
            let refused = || {
                let words = [node.as_str(), " cannot be rebooted", "user mode", "/sbin/reboot takes root", "programs.reboot"];
                sandbox.cmd("scontrol").args(["reboot", &node]).fails().says(&words);
                sandbox.cmd("scontrol").args(["reboot", "ASAP", "ALL"]).fails().says(&words);
            };
            refused();
            // The file says nothing of the mode.
            sandbox.cmd("scontrol").arg("reconfigure").ok();
            refused();
            assert_eq!(state(&sandbox), "idle|idle|none");
        }
    }
}

/// The machine is its agent here, which comes back with another boot id.
#[test]
fn a_node_comes_back_by_itself_with_another_boot_id() {
    if !machine::is_root() {
        return; // only root can show the agent another boot id
    }
    let mut sandbox = site(Who::root(), "echo x > rebooted", "");
    let node = sandbox.node();
    let job = sandbox.sbatch(&["--requeue", "--mem=10"], "#!/bin/sh\n[ -e go ] || { touch go; exit 0; }\n");
    sandbox.wait_state(job, "COMPLETED", 20);
    let update = format!("nodename={node}");
    sandbox.cmd("scontrol").args(["update", update.as_str(), "state=drain", "reason=old kernel"]).ok();
    sandbox.cmd("scontrol").args(["reboot", "nextstate=RESUME", &node]).ok();
    sandbox.wait_file("rebooted", "x", 20);
    sandbox.kill_9(sandbox.agent());
    let waits = sandbox.sbatch(&["--mem=10"], "#!/bin/sh\ntrue\n");
    assert!(state(&sandbox).starts_with("boot^|reboot^|"), "{}", state(&sandbox));
    let id = sandbox.write("boot_id", "11111111-2222-3333-4444-555555555555\n");
    let script =
        format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec berth up --detach", id.display());
    sandbox.up_by("unshare", &["-m", "sh", "-c", &script].map(String::from));
    sandbox.wait_state(waits, "COMPLETED", 30);
    seen("a node in service", &sandbox, |s| s.starts_with("idle|idle|none"));
}

/// What the kernel does not let die is named with what it waits for, and no other wish has a program beside it, over agents too.
#[test]
fn a_program_that_cannot_be_killed_is_named_and_joined_by_none_as_root() {
    // A name of its own, so that it is found among others.
    let own = format!("r{}", std::process::id());
    let lines = format!("echo begun >> rebooted\n[ ! -e bad ] || ./{own} hangs/file");
    let mut sandbox = site(Who::root(), &lines, "reboot_seconds = 2");
    fs::copy("/bin/cat", sandbox.work().join(&own)).unwrap();
    let mut hangs = Hanging::mounted(sandbox.work().join("hangs"));
    sandbox.write("bad", "");
    let (node, update) = (sandbox.node(), format!("nodename={}", sandbox.node()));
    sandbox.cmd("scontrol").args(["reboot", &node]).ok();
    let pid = Hanging::waiting(&own);
    let left = format!(
        "it does not end although it was killed: pid {pid} ({own}), state D, waits in request_wait_answer on {} (fuse.hanging)",
        sandbox.work().join("hangs").display()
    );
    seen("a node that is drained and says why", &sandbox, |s| s.contains(&left));
    sandbox.kill_9(sandbox.agent());
    sandbox.up();
    sandbox.cmd("scontrol").args(["update", update.as_str(), "state=resume"]).ok();
    sandbox.cmd("scontrol").args(["reboot", &node]).ok();
    let again = format!("is not run: the one before does not end although it was killed: pid {pid} ({own})");
    seen("a wish that is not fulfilled", &sandbox, |s| s.contains(&again));
    assert_eq!(sandbox.read("rebooted").lines().count(), 1);
    fs::remove_file(sandbox.work().join("bad")).unwrap();
    hangs.let_go();
    let process = format!("/proc/{pid}");
    assert!(sandbox::wait(30, || (!Path::new(&process).exists()).then_some(())).is_some(), "{pid} is there");
    sandbox.cmd("scontrol").args(["update", update.as_str(), "state=resume"]).ok();
    sandbox.cmd("scontrol").args(["reboot", &node]).ok();
    sandbox.wait_file("rebooted", "begun\nbegun", 20);
}
