//! Nodes that are powered off by the site's program when nothing is heard of them.

use berth_tests::{Hanging, Hosts, Sandbox, each_user, machine, sandbox::wait};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

/// Says where it began, and goes on until it may end.
const JOB: &str = "#!/bin/sh\necho \"$(hostname)\" >> $1\nuntil [ -e go ]; do sleep 0.1; done\n";

#[test]
fn a_silent_node_is_powered_off_and_its_job_runs_elsewhere_as_root() {
    let hosts = Hosts::new(&["head", "n1", "n2"]);
    // What it does is noted, and not whether it would have worked: that there is evidence is the program's word.
    let state = hosts.state("head");
    let (program, log, broken) = (state.join("fence"), state.join("fence.log"), state.join("broken"));
    let script = format!(
        "#!/bin/sh\necho \"$1 $SLURMD_NODENAME $SLURM_SCRIPT_CONTEXT $(id -u) $(pwd)\" >> {}\n[ ! -e {} ] || {{ echo no outlet >&2; exit 3; }}\n",
        log.display(),
        broken.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    fs::write(&broken, "").unwrap();
    let config =
        format!("node_timeout_seconds = 5\n[programs]\nfence = {program:?}\nfence_after_seconds = 6\n");
    hosts.up("head", &config);
    let token = hosts.token("head", &["--uses", "2"]);
    for node in ["n1", "n2"] {
        hosts.join(node, &token);
        hosts.wait_node(node, "idle", 60);
    }
    let work = hosts.work();
    fs::write(work.join("job.sh"), JOB).unwrap();
    let begun = || -> Vec<String> {
        let text = fs::read_to_string(work.join("begun")).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    };
    let fences = || fs::read_to_string(&log).unwrap_or_default();
    let sbatch =
        hosts.cmd("head", "sbatch").args(["--parsable", "--mem=20M", "-n1", "--requeue", "--exclude=head"]);
    let job = sbatch.args(["job.sh", "begun"]).ok().text();
    assert!(wait(20, || (begun().len() == 1).then_some(())).is_some(), "job {job} does not begin");
    let lost = begun().remove(0);
    hosts.link(&lost, false);
    // A program that fails is no evidence, is named, and is run again.
    assert!(wait(60, || (fences().lines().count() >= 2).then_some(())).is_some(), "{}", fences());
    assert_eq!(begun().len(), 1);
    let status = hosts.root("head", "berth").arg("status").run();
    assert!(format!("{status}").contains("could not be powered off"), "{status}");
    fs::remove_file(&broken).unwrap();
    assert!(wait(40, || (begun().len() == 2).then_some(())).is_some(), "{}", fences());
    assert_ne!(begun()[1], lost);
    assert!(fences().lines().all(|line| line == format!("{lost} {lost} fence 0 /")), "{}", fences());
    let trail = hosts.root("head", "berth").arg("audit").ok().text();
    assert!(
        trail.contains(&format!("could not fence {lost}"))
            && trail.contains(&format!("fenced {lost}: what ran")),
        "{trail}"
    );
    // What is there all the same when it comes back is ended before it takes work again.
    hosts.link(&lost, true);
    hosts.wait_node(&lost, "idle", 60);
    fs::write(work.join("go"), "").unwrap();
    let state =
        || hosts.cmd("head", "sacct").args(["-n", "-X", "-P", "-j", job.trim(), "-o", "State"]).ok().text();
    assert!(wait(20, || (state().trim() == "COMPLETED").then_some(())).is_some(), "{}", state());
    assert_eq!(begun().len(), 2);
}

/// What the kernel does not let die is named with what it waits for, over controllers too. No other program is started for the node beside
/// it, and one is when it is gone.
#[test]
fn a_program_that_cannot_be_killed_is_joined_by_no_other_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    let state = hosts.state("head");
    let (program, log, bad) = (state.join("fence"), state.join("fence.log"), state.join("bad"));
    // A name of its own, so that it is found among others.
    let own = format!("f{}", std::process::id());
    let (reads, place) = (state.join(&own), hosts.work().join("hangs"));
    fs::copy("/bin/cat", &reads).unwrap();
    let script = format!(
        "#!/bin/sh\necho $1 >> {}\n[ ! -e {} ] || {} {}/file\n",
        log.display(),
        bad.display(),
        reads.display(),
        place.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    fs::write(&bad, "").unwrap();
    let config = format!(
        "node_timeout_seconds = 5\n[programs]\nfence = {program:?}\nfence_seconds = 2\nfence_after_seconds = 6\n"
    );
    hosts.up("head", &config);
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 20);
    let mut hangs = Hanging::mounted(place.clone());
    let options =
        ["--parsable", "--mem=20M", "-w", "n1", "--no-requeue", "-o", "/dev/null", "--wrap", "sleep 600"];
    let job = hosts.cmd("head", "sbatch").args(options).ok().text();
    let job_state =
        || hosts.cmd("head", "squeue").args(["-h", "-t", "all", "-o", "%T", "-j", job.trim()]).run().text();
    assert!(wait(20, || (job_state().trim() == "RUNNING").then_some(())).is_some(), "{}", job_state());
    hosts.link("n1", false);
    let pid = Hanging::waiting(&own);
    let begun = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    let status = || hosts.root("head", "berth").arg("status").run().to_string();
    let named = format!(
        "it does not end although it was killed: pid {pid} ({own}), state D, waits in request_wait_answer on {} (fuse.hanging)",
        place.display()
    );
    assert!(wait(60, || status().contains(&named).then_some(())).is_some(), "{}", status());
    let again = format!("is not run: the one before does not end although it was killed: pid {pid} ({own})");
    assert!(wait(60, || status().contains(&again).then_some(())).is_some(), "{}", status());
    hosts.kill_9("head", "controller");
    hosts.root("head", "berth").args(["up", "--detach"]).limit(60).ok();
    assert!(wait(90, || status().contains(&again).then_some(())).is_some(), "{}", status());
    assert_eq!(begun(), 1, "{}", status());
    assert_eq!(job_state().trim(), "RUNNING");
    // It is gone: the next one says that the node is off.
    fs::remove_file(&bad).unwrap();
    hangs.let_go();
    assert!(wait(60, || (begun() == 2).then_some(())).is_some(), "{}", status());
    assert!(wait(30, || (job_state().trim() == "NODE_FAIL").then_some(())).is_some(), "{}", job_state());
    hosts.link("n1", true);
    hosts.wait_node("n1", "idle", 60);
}

each_user! {
    fn the_controllers_own_machine_is_left_on_when_its_agent_is_away(who) {
        let mut sandbox = Sandbox::empty(who);
        let fenced = sandbox.work().join("fenced");
        let program = sandbox.write("fence", format!("#!/bin/sh\ntouch {}\n", fenced.display()));
        let config =
            format!("node_timeout_seconds = 5\n[programs]\nfence = {program:?}\nfence_after_seconds = 6\n");
        let path = sandbox.state().join("berth.toml");
        fs::write(&path, config).unwrap();
        machine::give(&path, sandbox.who());
        sandbox.up();
        let job = sandbox.sbatch(&["--mem=20M"], "#!/bin/sh\nuntil [ -e go ]; do sleep 0.1; done\n");
        sandbox.wait_state(job, "RUNNING", 20);
        sandbox.kill_9(sandbox.agent());
        let status = || format!("{}", sandbox.cmd("berth").arg("status").run());
        let told = wait(60, || status().contains("the controller's own machine").then_some(()));
        assert!(told.is_some(), "{}", status());
        assert!(!fenced.exists(), "the controller's machine is powered off");
        assert_eq!(sandbox.job_state(job), "RUNNING");
        sandbox.up();
        sandbox.write("go", "");
        sandbox.wait_state(job, "COMPLETED", 60);
    }
}
