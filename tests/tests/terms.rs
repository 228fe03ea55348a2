//! A node obeys a later controller when it has written that down, and so never an earlier one again: also on a full disk, and where it cannot, it says so.

use berth_tests::disk::Disk;
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Hosts};
use std::path::Path;

/// The term in the file that the agent keeps.
fn kept(private: &Path) -> u64 {
    let bytes = std::fs::read(private.join("agent-term.slots")).unwrap();
    let term = |slot: &[u8]| u64::from_le_bytes(slot[16..24].try_into().unwrap());
    bytes.chunks(4096).map(term).max().unwrap()
}

/// The controller's process is gone, and another one leads, with a later term.
fn another_leads(hosts: &Hosts) {
    hosts.kill_9("head", "controller");
    hosts.root("head", "berth").args(["up", "--detach"]).limit(60).ok();
}

fn runs(hosts: &Hosts) -> bool {
    let run = ["-w", "n1", "-t", "1", "-c1", "--mem=64M", "--immediate=5", "hostname"];
    let told = hosts.cmd("head", "srun").args(run).limit(20).run();
    told.rc == 0 && told.text().trim() == "n1"
}

#[test]
fn a_later_controller_is_written_down_on_a_full_disk_or_not_obeyed_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", "");
    let private = hosts.state("n1").join("private");
    let disk = Disk::in_file(&private, 0, 8);
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    assert!(runs(&hosts));
    let first = kept(&private);

    // No byte is free.
    let filled =
        Cmd::new("dd").args(["if=/dev/zero", "bs=1k"]).arg(format!("of={}", private.join("fill").display()));
    filled.fails().says(&["No space left on device"]);
    another_leads(&hosts);
    assert!(wait(60, || runs(&hosts).then_some(())).is_some(), "nothing runs on n1");
    let second = kept(&private);
    assert!(second > first, "{second} is not later than {first}");
    let copy = std::fs::read_to_string(private.join("agent-term.json")).unwrap();
    assert!(copy.trim().parse::<u64>().unwrap() < second, "there was room: {copy}");
    std::fs::remove_file(private.join("fill")).unwrap();

    // The file cannot be written: what runs goes on, and nothing else does.
    let script = "until [ -e go ]; do sleep 0.1; done; echo ended";
    let job = ["-w", "n1", "-c1", "--mem=64M", "-o", "runs", "--parsable", "--wrap", script];
    let job = hosts.cmd("head", "sbatch").args(job).ok().text().trim().to_string();
    let state = || hosts.cmd("head", "squeue").args(["-h", "-t", "all", "-j", &job, "-o", "%T"]).run().text();
    assert!(wait(30, || (state().trim() == "RUNNING").then_some(())).is_some(), "{}", state());
    let fixed = |how: &str| Cmd::new("chattr").arg(how).arg(private.join("agent-term.slots")).ok();
    fixed("+i");
    another_leads(&hosts);
    hosts.wait_node("n1", "drain", 60);
    let why = hosts.cmd("head", "sinfo").args(["-h", "-n", "n1", "-o", "%E"]).ok().text();
    for words in ["Term not kept", "agent-term.slots", "tried again"] {
        assert!(why.contains(words), "{why}");
    }
    assert!(!runs(&hosts));
    assert_eq!((state().trim(), kept(&private)), ("RUNNING", second));
    let log = std::fs::read_to_string(hosts.state("n1").join("log/agent.log")).unwrap();
    assert!(log.contains("cannot keep the controller's term"), "{log}");

    // It comes back by itself.
    fixed("-i");
    assert!(wait(60, || runs(&hosts).then_some(())).is_some(), "nothing runs on n1");
    assert!(kept(&private) > second);
    assert_eq!(state().trim(), "RUNNING");
    std::fs::write(hosts.work().join("go"), "").unwrap();
    assert!(wait(30, || (state().trim() == "COMPLETED").then_some(())).is_some(), "{}", state());
    let down = || (hosts.root("n1", "berth").arg("down").limit(60).run().rc == 0).then_some(());
    assert!(wait(30, down).is_some(), "n1 does not go down");
    disk.unmount();
}
