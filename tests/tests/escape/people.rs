//! What other users of the machine can see of one's jobs: nothing that is private.

use berth_tests::{Cmd, Sandbox, Who};

#[test]
fn another_user_cannot_read_what_is_private_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let (alice, bob) = (Who::user(), Who::stranger());
    let script = "#!/bin/sh\n# secret-of-the-script\nsleep 60\n";
    let line = sandbox
        .cmd_as(&alice, "sbatch")
        .dir("/tmp")
        .args(["--parsable", "-o", "/dev/null"])
        .env("SECRET", "secret-of-the-environment");
    let job = line.stdin(script).ok().text();
    sandbox.wait_state(job.parse().unwrap(), "RUNNING", 20);
    let state = sandbox.state();
    let found = Cmd::new("grep").args(["-r", "-s", "-l", "secret-of-the"]).arg(&state).who(&bob).run();
    assert_eq!(found.text(), "");
    let show = sandbox.cmd_as(&bob, "scontrol").dir("/").args(["show", "job", &job]).ok().text();
    assert!(!show.contains("secret-of-the-environment"), "{show}");
    let supervised: Vec<i32> =
        berth_tests::leftovers::processes(&state).into_iter().map(|(pid, _)| pid).collect();
    for pid in supervised {
        let read = Cmd::new("cat").arg(format!("/proc/{pid}/environ")).who(&bob).run();
        assert!(
            !read.text().contains("secret-of-the-environment"),
            "environment of {pid} is readable by others"
        );
        let signal = Cmd::new("kill").args(["-0", &pid.to_string()]).who(&bob).run();
        assert_ne!(signal.rc, 0, "another user may signal {pid}");
    }
    sandbox.cmd_as(&alice, "scancel").dir("/").arg(&job).ok();
}
