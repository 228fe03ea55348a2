//! `sattach`: hearing a step beside the `srun` that started it, and giving its tasks input.

use berth_tests::{Hosts, Sandbox, Who, each_user, images};
use nix::sys::signal::Signal;

/// Says what it reads with its task's number; `end` ends it, with three times that number.
const SAYS: &str = "while read x; do echo $SLURM_PROCID got $x; [ \"$x\" = end ] && exit $((SLURM_PROCID * 3)); done; exit 9";

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(|l| l.trim().to_string()).collect();
    lines.sort();
    lines
}

each_user! {
    fn a_running_step_is_heard_and_spoken_to_beside_its_srun(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::busybox().display());
        for (job, options) in [(1, &["-n2"][..]), (2, &["-n2", &image])] {
            let step = format!("{job}.0");
            let mut srun = sandbox.srun(options).args(["-N1", "sh", "-c", SAYS]).stdin_open().spawn();
            srun.write(b"one\n");
            srun.wait_for("1 got one", 60);
            let mut all = sandbox.cmd("sattach").args(["-l", &step]).stdin_open().spawn();
            all.write(b"two\n");
            all.wait_for("1 got two", 20);
            srun.wait_for("1 got two", 20);
            let filters = ["--output-filter=1", "--input-filter=1", "--error-filter=1"];
            let mut one = sandbox.cmd("sattach").args(filters).arg(&step).stdin_open().spawn();
            one.write(b"three\n");
            one.wait_for("1 got three", 20);
            srun.write(b"four\n");
            for heard in [&mut all, &mut one, &mut srun] {
                heard.wait_for("1 got four", 20);
            }
            // Its input ends, and that of the tasks does not; it leaves, and they do not.
            one.close();
            all.signal(Signal::SIGINT);
            assert_eq!(all.finish().rc, 130);
            srun.write(b"end\n");
            let (one, srun) = (one.finish(), srun.finish());
            assert_eq!((one.rc, srun.rc), (3, 3), "{one}{srun}");
            assert_eq!(sorted(&one.text()), ["1 got end", "1 got four", "1 got three"], "{one}");
            let srun_heard = sorted(&srun.text());
            assert!(!srun_heard.contains(&"0 got three".to_string()) && srun_heard.len() == 9, "{srun}");
            one.says(&[&format!("sattach: error: {}: task 1: Exited with exit code 3", sandbox.node())]);
        }
        sandbox.cmd("sattach").arg("1.0").fails().says(&["job 1 is over (failed)"]);
        sandbox.cmd("sattach").arg("9.0").fails().says(&["there is no job 9"]);
        sandbox.cmd("sattach").arg("9").fails().says(&["names no step", "write job.step"]);
        sandbox.cmd("sattach").fails().says(&["name one step"]);
    }

    fn what_cannot_be_attached_to_is_named_and_layouts_are_shown(who) {
        let sandbox = Sandbox::start(who);
        let script = "#!/bin/sh\nsrun -o file sh -c 'echo begun >&2; read x <fifo; exit 4' 2>err\necho rc $? >>err\n";
        sandbox.cmd("mkfifo").arg("fifo").ok();
        let job = sandbox.sbatch(&["-o", "out"], script);
        sandbox.wait_file("file", "begun", 60);
        let at = |step: &str| format!("{job}.{step}");
        let sattach = |words: &[&str]| sandbox.cmd("sattach").args(words);
        sattach(&[&at("batch")]).fails().says(&["takes no client"]);
        sattach(&[&at("7")]).fails().says(&["has no step 7", "these run: ", "batch"]);
        sattach(&["--output-filter=1", &at("0")]).fails().says(&["--output-filter=1", "name one of them"]);
        sattach(&["--pty", "--input-filter=0", &at("0")]).fails().says(&["leave the filters out"]);
        let layout = sattach(&["--layout", &at("0")]).ok().text();
        let node = sandbox.node();
        assert_eq!(layout, format!("Job step layout:\n\t1 tasks, 1 nodes ({node})\n\n\tNode 0 ({node}), 1 task(s): 0 "));
        let line = format!("sattach --pty {}", at("0"));
        let told = sandbox.cmd("script").args(["-qec", &line, "/dev/null"]).fails();
        assert!(told.text().contains("none of its tasks has a terminal"), "{told}");
        // Output that goes to a file is not heard; the end is.
        let line = format!("sattach -v {} 2>&1", at("0"));
        let mut heard = sandbox.cmd("sh").args(["-c", &line]).stdin_open().spawn();
        heard.wait_for("standard output of the step goes to file", 20);
        sandbox.cmd("sh").args(["-c", "echo > fifo"]).ok();
        let told = heard.finish();
        assert_eq!(told.rc, 4, "{told}");
        sandbox.wait_file("err", "rc 4", 20);
    }

    fn a_terminal_is_shared(who) {
        let sandbox = Sandbox::start(who);
        let inner = "test -t 0 && echo ready; read x; echo got $x; read x; echo got $x";
        let line = format!("srun --pty sh -c '{inner}'");
        let mut srun = sandbox.cmd("script").args(["-qec", &line, "/dev/null"]).stdin_open().spawn();
        srun.wait_for("ready", 60);
        let mut other = sandbox.cmd("script").args(["-qec", "sattach --pty 1.0", "/dev/null"]).stdin_open().spawn();
        other.write(b"one\r");
        other.wait_for("got one", 20);
        srun.wait_for("got one", 20);
        srun.write(b"two\r");
        other.wait_for("got two", 20);
        assert_eq!((srun.finish().rc, other.finish().rc), (0, 0));
    }
}

#[test]
fn nobody_but_its_owner_and_root_attaches_to_a_step_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let (user, stranger) = (Who::user(), Who::stranger());
    let mut srun = sandbox.cmd_as(&user, "srun").dir("/").args(["sh", "-c", SAYS]).stdin_open().spawn();
    srun.write(b"one\n");
    srun.wait_for("got one", 60);
    let sattach = |who: &Who| sandbox.cmd_as(who, "sattach").dir("/").arg("1.0");
    sattach(&stranger).stdin(b"end\n").fails().says(&["belongs to uid"]);
    let mut own = sattach(&user).stdin_open().spawn();
    own.write(b"two\n");
    own.wait_for("got two", 20);
    let mut root = sattach(&Who::root()).stdin_open().spawn();
    root.write(b"three\n");
    root.wait_for("got three", 20);
    srun.write(b"end\n");
    assert_eq!((srun.finish().rc, own.finish().rc, root.finish().rc), (0, 0, 0));
}

#[test]
fn a_step_on_several_nodes_is_attached_to_as_root() {
    let hosts = Hosts::cluster(3, "");
    let mut srun =
        hosts.cmd("n1", "srun").args(["-N3", "-l", "sh", "-c", SAYS]).stdin_open().limit(90).spawn();
    srun.write(b"one\n");
    for task in 0..3 {
        srun.wait_for(&format!("{task}: {task} got one"), 60);
    }
    // Also from inside of its job, where that has no controller.
    let inside = ["--jobid=1", "--overlap", "-N1", "-n1", "-w", "n3", "sattach", "--layout", "1.0"];
    let layout = hosts.cmd("n1", "srun").args(inside).ok().text();
    assert!(
        layout.contains("3 tasks, 3 nodes (n[1-3])") && layout.contains("\tNode 2 (n3), 1 task(s): 2"),
        "{layout}"
    );
    let mut all = hosts.cmd("n1", "sattach").args(["-l", "1.0"]).stdin_open().spawn();
    // Of nodes to which there is no connection yet nothing is heard: until all three answer.
    let heard = berth_tests::sandbox::wait(20, || {
        all.write(b"again\n");
        let text = String::from_utf8_lossy(&all.stdout()).into_owned();
        (0..3).all(|task| text.contains(&format!("{task}: {task} got again"))).then_some(())
    });
    assert!(heard.is_some(), "{}", String::from_utf8_lossy(&all.stdout()));
    srun.write(b"end\n");
    let (srun, all) = (srun.finish(), all.finish());
    assert_eq!((srun.rc, all.rc), (6, 6), "{srun}{all}");
    all.says(&["n2: task 1: Exited with exit code 3", "n3: task 2: Exited with exit code 6"]);
}
