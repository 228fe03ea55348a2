//! A driver and a library of different versions, as an upgrade without a reboot leaves them: the node takes no work until they fit.

use super::{Node, VERSION, machine};
use berth_tests::sandbox;
use std::fs;

const NEWER: &str = "550.54.14";

impl Node {
    /// Has the library be of a version from now on.
    fn installs(&mut self, version: &str) {
        let dir = self.sandbox.work().join("tree/usr/lib64");
        let file = dir.join(format!("libnvidia-ml.so.{version}"));
        if !file.exists() {
            fs::copy(self.sandbox.work().join("libnvidia-ml.so.1"), &file).unwrap();
        }
        let link = dir.join("libnvidia-ml.so.1");
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(file.file_name().unwrap(), link).unwrap();
        self.again();
    }

    /// Waits until the node is drained, or is not, and gives what is shown of it.
    fn comes_to(&self, drained: bool) -> String {
        let shown = || self.sandbox.cmd("scontrol").args(["show", "node"]).ok().text();
        let seen = sandbox::wait(30, || Some(shown()).filter(|text| text.contains("DRAIN") == drained));
        seen.unwrap_or_else(|| panic!("drained is to be {drained}: {}", shown()))
    }
}

#[test]
fn a_node_whose_driver_and_library_differ_takes_no_work_until_they_are_of_one_version() {
    if !machine::is_root() {
        return;
    }
    let mut node = Node::start();
    let small = ["-n1", "--mem=50M"];
    let job = node.sandbox.sbatch(&[&small[..], &["-o", "runs"][..]].concat(), "#!/bin/sh\nsleep 77007\n");
    node.sandbox.wait_state(job, "RUNNING", 30);
    let runs = |node: &Node, more: &[&str]| {
        node.sandbox.srun([&small[..], more, &["--immediate=5", "true"][..]].concat()).run().rc == 0
    };
    assert!(runs(&node, &[]), "it is well");
    node.installs(NEWER);
    let shown = node.comes_to(true);
    let why = format!(
        "driver and library are of different versions: the kernel module is {VERSION}, libnvidia-ml is {NEWER}"
    );
    assert!(shown.contains(&format!("Reason={why}")), "{shown}");
    assert!(!runs(&node, &[]), "it takes work");
    let reasons = node.sandbox.cmd("sinfo").args(["-h", "-R", "-o", "%E|%u"]).ok().text();
    assert!(reasons.lines().any(|line| line.starts_with(&why) && line.ends_with("|berth")), "{reasons}");
    // Nobody's word makes them fit.
    let name = node.sandbox.cmd("sinfo").args(["-h", "-N", "-o", "%N"]).ok().text();
    let update = ["update".to_string(), format!("NodeName={}", name.trim()), "State=RESUME".to_string()];
    node.sandbox.cmd("scontrol").args(&update).ok();
    node.comes_to(true);
    // What ran goes on.
    assert_eq!(node.sandbox.job_state(job), "RUNNING");
    node.installs(VERSION);
    node.comes_to(false);
    assert!(runs(&node, &[]) && runs(&node, &["--gres=gpu:1"]), "they fit again");
    // Where the administrator says so the rest of the node works meanwhile.
    let config = "node_timeout_seconds = 6\n[gpus]\nsample_seconds = 1\nserve_mismatched = true\n";
    fs::write(node.sandbox.state().join("berth.toml"), config).unwrap();
    node.sandbox.cmd("scontrol").arg("reconfigure").ok();
    node.installs(NEWER);
    let fenced = sandbox::wait(30, || {
        let shown = node.comes_to(false);
        shown.contains(&format!("GresFault=gpu:0({why}")).then_some(())
    });
    assert!(fenced.is_some(), "{}", node.comes_to(false));
    // Until its agent has heard of that it may be drained once more.
    assert!(sandbox::wait(30, || runs(&node, &[]).then_some(())).is_some(), "{}", node.comes_to(false));
    assert!(!runs(&node, &["--gres=gpu:1"]), "its GPUs are given");
    node.sandbox.cmd("scancel").arg(job.to_string()).ok();
    node.sandbox.wait_state(job, "CANCELLED", 30);
}
