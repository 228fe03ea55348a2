//! Fatal errors of GPUs in the kernel's log: how long they fence, and who ends that.

use super::{Node, machine};
use berth_tests::sandbox;
use std::fs;

const XID: &str = "4,700,1,-;NVRM: Xid (PCI:0000:70:00): 119, pid=77, Timeout waiting for RPC from GSP!\n";

impl Node {
    /// What the kernel's log holds from now on.
    fn logs(&self, log: &str) {
        fs::write(self.sandbox.work().join("tree/kmsg"), log).unwrap();
    }

    /// What is said of fenced devices.
    fn fenced(&self) -> String {
        let show = self.sandbox.cmd("scontrol").args(["show", "node"]).ok().text();
        show.lines().filter(|line| line.contains("GresFault")).collect()
    }
}

#[test]
fn a_fatal_error_fences_its_gpu_when_the_log_has_forgotten_it_until_the_administrator_says_it_is_over() {
    if !machine::is_root() {
        return;
    }
    let mut node = Node::with(|tree, _| fs::write(tree.join("kmsg"), XID).unwrap());
    assert!(node.fenced().contains("Xid 119"), "{}", node.fenced());
    // The ring has gone on, and the agent begins anew.
    node.logs("6,9000,1,-;eth0: link up\n");
    node.again();
    assert!(node.fenced().contains("Xid 119"), "{}", node.fenced());
    let name = node.sandbox.cmd("sinfo").args(["-h", "-N", "-o", "%N"]).ok().text();
    let update = ["update", &format!("NodeName={}", name.trim()), "State=RESUME"].map(str::to_string);
    // Once: an agent that is not back yet is told when it is.
    node.sandbox.cmd("scontrol").args(&update).ok();
    let well = sandbox::wait(60, || node.fenced().is_empty().then_some(()));
    assert!(well.is_some(), "{}", node.fenced());
    assert_eq!(node.srun(&["--gres=gpu:2", "true"]).run().rc, 0);
    // What was lifted is not read again.
    node.logs(XID);
    node.again();
    assert_eq!(node.fenced(), "");
}
