//! A filesystem whose server reads requests and answers none: processes that do not end although they were killed, in state D, and
//! jobs that lead the cluster itself there.

use berth_tests::{Cmd, Hanging, Sandbox, Who, each_user, images, machine, sandbox};
use std::fs;
use std::time::Duration;

fn drained(sandbox: &Sandbox) -> String {
    sandbox.cmd("sinfo").args(["-h", "-R", "-o", "%E|%u|%N"]).ok().text()
}

fn seen(what: &str, seconds: u64, mut is: impl FnMut() -> bool) {
    assert!(sandbox::wait(seconds, || is().then_some(())).is_some(), "not seen: {what}");
}

each_user! {
    fn a_job_ends_without_what_cannot_die(who) {
        if !machine::is_root() {
            return; // only root can mount what hangs
        }
        let system = who.is_root();
        let mut sandbox = Sandbox::with_config(who, "kill_wait_seconds = 1\nunkillable_seconds = 2\n");
        let mut hangs = Hanging::mounted(sandbox.work().join("hangs"));
        // A name of its own, so that it is found among others.
        let own = format!("h{}", std::process::id());
        fs::copy("/bin/cat", sandbox.work().join(&own)).unwrap();
        // In user mode only the processes of containers are known when their parents are gone.
        let image = format!("--container-image={}", images::busybox().display());
        let seen_inside = format!("--container-mounts={}", sandbox.work().display());
        let place = format!("--container-workdir={}", sandbox.work().display());
        let (name, run, options) = match system {
            true => (own.as_str(), format!("./{own}"), vec!["--mem=50"]),
            false => ("cat", "cat".to_string(), vec!["--mem=50", &image, &seen_inside, &place]),
        };
        let job = sandbox.sbatch(&options, &format!("#!/bin/sh\n{run} hangs/file\n"));
        let pid = Hanging::waiting(name);
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        // For its user it is over.
        sandbox.wait_state(job, "CANCELLED", 60);
        let place = sandbox.work().join("hangs");
        let why = format!("pid {pid} ({name}), state D, waits in request_wait_answer on {} (fuse.hanging)", place.display());
        seen("a node that is drained and says why", 60, || drained(&sandbox).contains(&why));
        let told = drained(&sandbox);
        assert!(told.contains(&format!("Kill task failed: job {job}: ")) && told.contains("|berth"), "{told}");
        assert_eq!(sandbox.cmd("squeue").args(["-h", "-j", &job.to_string()]).run().text(), "");
        // Nothing new starts there, whatever an administrator says of it.
        let node = format!("nodename={}", sandbox.node());
        sandbox.cmd("scontrol").args(["update", node.as_str(), "state=resume"]).ok();
        let next = sandbox.sbatch(&["--mem=50"], "#!/bin/sh\necho ran > ran\n");
        // The agent may come and go.
        sandbox.kill_9(sandbox.agent());
        sandbox.up();
        seen("the word of the next agent", 60, || drained(&sandbox).contains(&why));
        assert_eq!(sandbox.job_state(next), "PENDING");
        assert!(!sandbox.work().join("ran").exists());
        // The last one goes, and the node is back by itself.
        hangs.let_go();
        sandbox.wait_state(next, "COMPLETED", 60);
        seen("a node without a word", 20, || drained(&sandbox).is_empty());

        // What an administrator says stays.
        drop(hangs);
        let mut hangs = Hanging::mounted(sandbox.work().join("hangs"));
        let job = sandbox.sbatch(&options, &format!("#!/bin/sh\n{run} hangs/file &\nuntil [ -e go ]; do sleep 0.1; done\nexit 3\n"));
        Hanging::waiting(name);
        sandbox.write("go", "");
        // It ended by itself, and its exit is its own.
        sandbox.wait_state(job, "FAILED", 60);
        assert_eq!(sandbox.sacct(job, "ExitCode")[0], ["3:0"]);
        seen("a node that is drained", 60, || drained(&sandbox).contains("Kill task failed"));
        sandbox.cmd("scontrol").args(["update", node.as_str(), "state=drain", "reason=new disk"]).ok();
        seen("the administrator's reason", 10, || drained(&sandbox).starts_with("new disk|"));
        hangs.let_go();
        seen("its end", 60, || !sandbox.cmd("scontrol").args(["show", "node"]).ok().text().contains("COMPLETING"));
        assert!(drained(&sandbox).starts_with("new disk|"), "{}", drained(&sandbox));
    }
}

/// A job whose options lead to a file server that does not answer waits for it. Another one on the same node has new steps and ends,
/// others start, and the node stays in touch. When those who wait are let go, all is as before by itself.
fn only_its_own_job_waits(options: impl Fn(&str) -> Vec<String>) {
    let sandbox = Sandbox::with_config(Who::root(), "node_timeout_seconds = 5\n");
    let place = sandbox.work().join("hangs");
    fs::create_dir_all(place.join("directory")).unwrap();
    Cmd::new("cp").arg("-r").arg(images::layers()).arg(place.join("image")).ok();
    // What it names is there when it is submitted.
    let own = options(&place.display().to_string());
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let few = ["-c1", "--mem=50"];
    let waits = sandbox.sbatch(&[&few[..], &["--hold"], &own].concat(), "#!/bin/sh\n:\n");
    let steps = "until [ -e go ]; do sleep 0.1; done; for n in 1 2 3; do srun --overlap echo step $n; done";
    let script = format!("#!/bin/sh\necho ready\n{steps}\n");
    let runs = sandbox.sbatch(&[&few[..], &["--output=out"]].concat(), &script);
    sandbox.wait_file("out", "ready", 20);
    let daemons = (sandbox.controller(), sandbox.agent());
    let mut hangs = Hanging::mounted(place);
    let before = hangs.asked();
    sandbox.cmd("scontrol").args(["release", &waits.to_string()]).ok();
    seen("somebody who waits for the file server", 30, || hangs.asked() > before);
    // For longer than a node may be silent.
    std::thread::sleep(Duration::from_secs(6));
    sandbox.write("go", "");
    sandbox.wait_state(runs, "COMPLETED", 20);
    assert_eq!(sandbox.read("out"), "ready\nstep 1\nstep 2\nstep 3\n");
    let state = || sandbox.cmd("sinfo").args(["-h", "-o", "%T"]).ok().text().trim().to_string();
    assert!(["mixed", "allocated"].contains(&state().as_str()), "{}", state());
    let next = sandbox.srun([&few[..], &["echo", "next"]].concat()).limit(60).ok();
    assert_eq!(next.text(), "next", "{next}");
    assert_eq!((sandbox.controller(), sandbox.agent()), daemons);
    assert_eq!(sandbox.job_state(waits), "RUNNING");
    hangs.let_go();
    seen("its end", 30, || sandbox.cmd("squeue").arg("-h").ok().text().is_empty());
    seen("a node without work", 20, || state() == "idle");
    assert_eq!(drained(&sandbox), "");
    assert_eq!((sandbox.controller(), sandbox.agent()), daemons);
}

#[test]
fn a_working_directory_that_hangs_holds_up_its_own_job_alone_as_root() {
    only_its_own_job_waits(|place| vec![format!("--chdir={place}/directory"), "--output=/dev/null".into()]);
}

#[test]
fn an_output_that_hangs_holds_up_its_own_job_alone_as_root() {
    only_its_own_job_waits(|place| vec![format!("--output={place}/out")]);
}

#[test]
fn a_mount_that_hangs_holds_up_its_own_job_alone_as_root() {
    only_its_own_job_waits(|place| {
        let image = format!("--container-image={}", images::busybox().display());
        vec![image, format!("--container-mounts={place}/directory:/mnt"), "--output=/dev/null".into()]
    });
}

#[test]
fn an_image_that_hangs_holds_up_its_own_job_alone_as_root() {
    only_its_own_job_waits(|place| {
        vec![format!("--container-image={place}/image"), "--output=/dev/null".into()]
    });
}
