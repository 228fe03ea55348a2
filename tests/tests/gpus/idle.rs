//! Jobs that leave their GPUs idle: what they read, and what becomes of them.

use super::Node;
use berth_tests::{machine, sandbox};
use std::fs;

#[test]
fn a_job_that_leaves_its_gpu_idle_reads_a_warning_and_is_cancelled_and_one_that_works_goes_on() {
    if !machine::is_root() {
        return;
    }
    let node = Node::configured("idle_warn_seconds = 3\n", |_, _| ());
    let start = |name: &str| {
        let (out, err) = (format!("{name}.out"), format!("{name}.err"));
        let words = ["--gres=gpu:1", "-n1", "--mem=50M", "-o", &out, "-e", &err];
        let job = node.sandbox.sbatch(
            &words,
            "#!/bin/sh\necho \"gpu $SLURM_JOB_GPUS.\"; echo \"gpu $SLURM_JOB_GPUS.\" >&2\nsleep 600\n",
        );
        node.sandbox.wait_file(&out, ".", 30);
        // GPUs are in the order of their addresses, and the library's in the other one.
        let at = match node.sandbox.read(&out).trim() {
            "gpu 0." => 1,
            "gpu 1." => 0,
            other => panic!("{other}"),
        };
        (job, at)
    };
    // Until something else is said both are busy.
    let ((idle, at), (works, other)) = (start("idle"), start("works"));
    let does = |busy: u32| node.does(&format!("device {at} {busy} 100\ndevice {other} 80 100\n"));
    let show = || node.sandbox.cmd("scontrol").args(["show", "job", &idle.to_string()]).ok().text();
    let comment = format!("SystemComment=the GPUs of job {idle} are idle");
    does(4);
    let warned = format!("*** the GPUs of job {idle} are idle: all of them below 5% for 3 seconds ***\n");
    node.sandbox.wait_file("idle.err", &warned, 60);
    assert!(show().contains(&comment), "{}", show());
    // Without a second time it is left at that. What is at work again has no warning.
    does(5);
    let taken_back = sandbox::wait(60, || (!show().contains(&comment)).then_some(()));
    assert!(taken_back.is_some(), "{}", show());
    let config = "node_timeout_seconds = 6\n[gpus]\nsample_seconds = 1\nidle_warn_seconds = 3\nidle_release_seconds = 3\n";
    fs::write(node.sandbox.state().join("berth.toml"), config).unwrap();
    node.sandbox.cmd("scontrol").arg("reconfigure").ok();
    does(0);
    node.sandbox.wait_state(idle, "CANCELLED", 90);
    let said = node.sandbox.read("idle.err");
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("GPUs")).collect();
    let last = format!("*** job {idle} is ended: its GPUs were idle, all of them below 5% for 6 seconds ***");
    assert!(lines.len() == 3 && lines[2].ends_with(&last), "{said}");
    assert!(lines[1].ends_with("; the job is ended in 3 seconds unless it uses them ***"), "{said}");
    assert!(show().contains("Reason=GpusIdle"), "{}", show());
    assert_eq!(node.sandbox.sacct(idle, "reason")[0], ["GpusIdle"]);
    // The other one is not their affair.
    assert_eq!(node.sandbox.job_state(works), "RUNNING");
    assert_eq!(node.sandbox.read("works.err").trim(), format!("gpu {}.", 1 - other));
    node.sandbox.cmd("scancel").arg(works.to_string()).ok();
    node.sandbox.wait_state(works, "CANCELLED", 30);
}
