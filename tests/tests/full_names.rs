//! The full name of a node's machine, as its name service says it: shown beside the node's own name, and understood where nodes are named.

use berth_tests::Hosts;
use berth_tests::sandbox::wait;

#[test]
fn a_node_is_shown_and_found_by_its_machines_full_name_too_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", "");
    let token = hosts.token("head", &[]);
    // The node's own list of hosts.
    let list = hosts.state("n1").join("hosts");
    std::fs::write(&list, "127.0.0.1 localhost\n10.77.0.2 n1.example.org n1\n").unwrap();
    let join =
        format!("mount --bind {} /etc/hosts && exec berth join 10.77.0.1 {token} --detach", list.display());
    hosts.root("n1", "unshare").args(["--mount", "sh", "-c", &join]).ok();
    hosts.wait_node("n1", "idle", 60);

    // It is the same node, under the same name.
    let show = |name: &str| hosts.root("head", "scontrol").args(["show", "node", name]).run();
    let shown = wait(30, || Some(show("n1.example.org")).filter(|shown| shown.rc == 0)).unwrap().text();
    assert!(shown.contains("NodeName=n1 ") && shown.contains("NodeHostName=n1.example.org "), "{shown}");
    let json = hosts.root("head", "scontrol").args(["--json", "show", "node", "n1"]).ok().text();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["nodes"][0]["hostname"], "n1.example.org");
    assert_eq!(json["nodes"][0]["name"], "n1");
    let machines = || hosts.root("head", "berth").args(["node", "ls"]).ok().text();
    assert!(machines().contains("n1.example.org"), "{}", machines());

    // People write either.
    let named = ["-w", "n1.example.org", "-t", "1"];
    assert_eq!(hosts.cmd("head", "srun").args(named).arg("hostname").ok().text(), "n1");
    let other = hosts.cmd("head", "srun").args(["-x", "n1.example.org", "-t", "1", "hostname"]).ok();
    assert_eq!(other.text(), "head");
    let listed = |program: &str, option: &str, format: &str| {
        let asked = ["-h", option, "n1.example.org", "-o", format];
        hosts.cmd("head", program).args(asked).ok().text().trim().to_string()
    };
    assert_eq!(listed("sinfo", "-n", "%N"), "n1");
    let job = hosts.cmd("head", "sbatch").args(["--parsable", "-o", "/dev/null"]).args(named);
    let job = job.args(["--wrap", "sleep 600"]).ok().text().trim().to_string();
    let seen = wait(30, || (listed("squeue", "-w", "%i %N") == format!("{job} n1")).then_some(()));
    assert!(seen.is_some(), "{}", listed("squeue", "-w", "%i %N"));
    hosts.cmd("head", "scancel").arg(&job).ok();
    let update = ["update", "NodeName=n1.example.org", "State=DRAIN", "Reason=look"];
    hosts.root("head", "scontrol").args(update).ok();
    hosts.wait_node("n1", "drain", 30);
    let wrong = hosts.cmd("head", "srun").args(["-w", "n2.example.org", "hostname"]).fails();
    wrong.says(&["n2.example.org"]);

    let down = || (hosts.root("n1", "berth").arg("down").limit(60).run().rc == 0).then_some(());
    assert!(wait(30, down).is_some(), "n1 does not go down");
    hosts.root("head", "berth").args(["node", "remove", "n1.example.org"]).ok();
    assert!(!machines().contains("n1"), "{}", machines());
}
