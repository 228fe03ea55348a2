//! podman with `berth oci` as its runtime: a real image, through an engine and its monitor.

use berth_tests::{Cmd, Sandbox, Who, each_user, images, machine, sandbox::wait};
use std::os::unix::fs::symlink;

/// podman with a store of its own.
struct Podman {
    sandbox: Sandbox,
}

const IMAGE: &str = "localhost/box";

impl Podman {
    fn new(who: Who) -> Podman {
        let sandbox = Sandbox::empty(who);
        symlink(machine::programs().join("berth"), sandbox.work().join("berth-oci")).unwrap();
        let podman = Podman { sandbox };
        let image = podman.cmd(&["pull", "-q", &format!("oci:{}", images::busybox().display())]).ok().text();
        podman.cmd(&["tag", image.trim(), IMAGE]).ok();
        podman
    }

    fn cmd(&self, words: &[&str]) -> Cmd {
        let own = |name: &str| self.sandbox.work().join(name);
        self.sandbox
            .cmd("podman")
            .arg("--root")
            .arg(own("storage"))
            .arg("--runroot")
            .arg(own("run"))
            .arg("--tmpdir")
            .arg(own("tmp"))
            .arg("--runtime")
            .arg(own("berth-oci"))
            .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"])
            .args(words)
            .limit(120)
    }

    /// A container without a network, and with limits that any machine has.
    fn container(&self, command: &str, options: &[&str], program: &[&str]) -> Cmd {
        let limits = ["--network", "none", "--ulimit", "nofile=512:512", "--ulimit", "nproc=512:512"];
        self.cmd(&[&[command], &limits[..], options, &[IMAGE], program].concat())
    }

    fn status(&self, name: &str) -> String {
        self.cmd(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name]).ok().text()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.cmd(&["rm", "--force", "--all", "--time", "0"]).run();
        // Files of mapped ids are removed as root of the user namespace that maps them.
        if self.sandbox.who().is_root() {
            let _ = self.cmd(&["rmi", "--force", "--all"]).run();
        } else {
            let storage = self.sandbox.work().join("storage");
            let _ = self.cmd(&["unshare", "rm", "-rf"]).arg(storage).run();
            // The process that keeps the user's namespaces between two commands.
            let _ = self.cmd(&["system", "migrate"]).run();
        }
    }
}

each_user! {
    fn podman_runs_an_image(who) {
        let p = Podman::new(who);
        assert_eq!(p.container("run", &["--rm"], &["echo", "hello"]).ok().text(), "hello");
        assert_eq!(p.container("run", &["--rm"], &["sh", "-c", "exit 7"]).run().rc, 7);
        assert_eq!(p.container("run", &["--rm", "-t"], &["tty"]).ok().text().trim(), "/dev/pts/0");
        let missing = p.container("run", &["--rm"], &["nothing-here"]).run();
        assert_eq!(missing.rc, 127, "{missing}");
        p.container("run", &["--detach", "--name", "c"], &["sleep", "1000"]).ok();
        assert_eq!(p.cmd(&["exec", "c", "cat", "/proc/1/comm"]).ok().text(), "sleep");
        assert_eq!(p.cmd(&["exec", "c", "sh", "-c", "exit 5"]).run().rc, 5);
        assert_eq!(p.cmd(&["exec", "-t", "c", "tty"]).ok().text().trim(), "/dev/pts/0");
        p.cmd(&["kill", "--signal", "KILL", "c"]).ok();
        wait(30, || (p.status("c") == "exited 137").then_some(())).expect("the container did not end");
        p.cmd(&["rm", "c"]).ok();
    }
}

#[test]
fn podman_limits_pauses_and_measures_as_root() {
    let p = Podman::new(Who::root());
    let limits = ["--detach", "--name", "c", "--memory", "64m", "--pids-limit", "20"];
    p.container("run", &limits, &["sleep", "1000"]).ok();
    let said = p.cmd(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "c"]).ok().text();
    assert!(said.contains("/ 67.11MB") && said.ends_with(" 1"), "{said}");
    p.cmd(&["pause", "c"]).ok();
    assert!(p.status("c").starts_with("paused"));
    p.cmd(&["unpause", "c"]).ok();
    assert_eq!(p.cmd(&["exec", "c", "echo", "again"]).ok().text(), "again");
    p.cmd(&["stop", "--time", "1", "c"]).ok();
    assert!(p.status("c").starts_with("exited"));
    p.cmd(&["start", "c"]).ok();
    assert!(p.status("c").starts_with("running"));
}
