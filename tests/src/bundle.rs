//! A bundle of busybox for an OCI runtime, and the containers that are made from it.

use crate::{Cmd, Output, Sandbox, Who, leftovers, machine};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

/// A bundle of busybox, and the containers that are made from it.
pub struct Bundle {
    /// The directory, its owner, and commands.
    pub sandbox: Sandbox,
    /// Its config.json; written before each call of the runtime.
    pub config: Value,
    runtime: Vec<OsString>,
}

impl Bundle {
    /// A bundle for `berth oci`.
    pub fn new(who: Who) -> Bundle {
        Bundle::of(who, &["berth".into(), "oci".into()])
    }

    /// A bundle for another runtime: its program and first words.
    pub fn of(who: Who, runtime: &[OsString]) -> Bundle {
        let sandbox = Sandbox::empty(who);
        let rootfs = sandbox.work().join("rootfs");
        for dir in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
            std::fs::create_dir_all(rootfs.join(dir)).unwrap();
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| std::fs::metadata(p).is_ok()).unwrap();
        std::fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "id", "ls", "sleep", "stat", "grep", "echo", "true", "touch", "hostname", "umount",
            "head", "dd", "tty", "test", "mkdir", "env",
        ] {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        give_all(&rootfs, sandbox.who());
        let rootless: &[&str] = if sandbox.who().is_root() { &[] } else { &["--rootless"] };
        sandbox.cmd("berth").args(["oci", "spec"]).args(rootless).ok();
        let mut config: Value = serde_json::from_str(&sandbox.read("config.json")).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["rlimits"] = json!([]);
        config["root"]["readonly"] = json!(false);
        // Tests run side by side, and all name their container alike.
        config["linux"]["cgroupsPath"] = json!(format!("/{}", group(&sandbox)));
        Bundle { sandbox, config, runtime: runtime.to_vec() }
    }

    /// Lets the container run these lines of shell.
    pub fn script(&mut self, text: &str) -> &mut Bundle {
        self.config["process"]["args"] = json!(["sh", "-c", text]);
        self
    }

    /// Changes the configuration.
    pub fn set(&mut self, change: impl FnOnce(&mut Value)) -> &mut Bundle {
        change(&mut self.config);
        self
    }

    /// A path in the bundle.
    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.work().join(name)
    }

    /// A call of the runtime.
    pub fn oci(&self, words: &[&str]) -> Cmd {
        self.sandbox.write("config.json", self.config.to_string());
        let root = self.sandbox.work().join("containers");
        let (program, first) = self.runtime.split_first().expect("a runtime has a program");
        self.sandbox.cmd(program).args(first).arg("--root").arg(root).args(words)
    }

    /// Runs the container `c` to its end.
    pub fn run(&self) -> Output {
        self.oci(&["run", "c"]).run()
    }

    /// What the container prints; nothing may be said on stderr.
    pub fn says(&self) -> String {
        let output = self.run();
        assert!(output.err().is_empty(), "{output}");
        output.text()
    }

    /// The status of the container `c`.
    pub fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.oci(&["state", "c"]).ok().text()).unwrap();
        state["status"].as_str().unwrap().to_string()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.oci(&["delete", "--force", "c"]).run();
        let left = leftovers::control_groups_named(&group(&self.sandbox));
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<PathBuf>::new(), "control groups are left");
        }
    }
}

/// Name of the control group of a bundle's container.
fn group(sandbox: &Sandbox) -> String {
    format!("bt-oci{}", sandbox.work().to_string_lossy().replace('/', "_"))
}

/// Gives a tree to someone.
pub fn give_all(path: &std::path::Path, who: &Who) {
    Cmd::new("chown").args(["-hR", &format!("{}:{}", who.uid, who.gid)]).arg(path).run();
    machine::give(path, who);
}
