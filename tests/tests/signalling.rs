//! `scancel -s` reaches every node of a step: those too whose agents are away, and those on which it does not run yet.

use berth_tests::Hosts;
use berth_tests::sandbox::wait;
use std::os::unix::fs::PermissionsExt;

/// The only job that there is.
fn job(hosts: &Hosts) -> String {
    hosts.cmd("n1", "squeue").args(["-h", "-o", "%i"]).ok().text().trim().to_string()
}

/// Waits for a file that a task writes, and gives what is in it.
fn told(hosts: &Hosts, name: &str) -> String {
    let path = hosts.work().join(name);
    let text = || std::fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'));
    wait(60, text).unwrap_or_else(|| panic!("there is no {name}"))
}

#[test]
fn a_signal_reaches_a_node_whose_agent_was_away_as_root() {
    let hosts = Hosts::cluster(3, "kill_wait_seconds = 2\n");
    let task = "trap 'echo heard >> heard.$SLURM_PROCID' USR1; trap 'exit 7' USR2; echo up > up.$SLURM_PROCID; \
                while :; do sleep 1; done";
    let step = hosts.cmd("n1", "srun").args(["-N3", "-n3", "sh", "-c", task]).limit(200).spawn();
    (0..3).for_each(|n| drop(told(&hosts, &format!("up.{n}"))));
    let step_id = format!("{}.0", job(&hosts));
    hosts.kill_9("n3", "agent");
    hosts.cmd("n1", "scancel").args(["-s", "USR1", &step_id]).ok();
    (0..2).for_each(|n| drop(told(&hosts, &format!("heard.{n}"))));
    hosts.root("n3", "berth").args(["up", "--detach"]).limit(60).ok();
    told(&hosts, "heard.2");
    // It is not heard again by who comes once more, and what is sent later comes behind it.
    hosts.kill_9("n3", "agent");
    hosts.root("n3", "berth").args(["up", "--detach"]).limit(60).ok();
    hosts.cmd("n1", "scancel").args(["-s", "USR2", &step_id]).ok();
    let ended = step.finish();
    assert_eq!(ended.rc, 7, "{ended}");
    for n in 0..3 {
        assert_eq!(told(&hosts, &format!("heard.{n}")), "heard\n", "task {n}");
    }
}

#[test]
fn a_signal_reaches_a_node_whose_prolog_still_runs_as_root() {
    let hosts = Hosts::new(&["n1", "n2"]);
    let place = hosts.state("n1");
    let (prolog, begun, go) = (place.join("prolog"), place.join("begun"), place.join("go"));
    let lines = format!(
        "#!/bin/sh\n[ \"$SLURMD_NODENAME\" = n2 ] || exit 0\necho here > {}\nwhile [ ! -e {} ]; do sleep 0.1; done\n",
        begun.display(),
        go.display()
    );
    std::fs::write(&prolog, lines).unwrap();
    std::fs::set_permissions(&prolog, std::fs::Permissions::from_mode(0o755)).unwrap();
    hosts.up("n1", &format!("kill_wait_seconds = 2\n[programs]\nprolog = {prolog:?}\n"));
    hosts.join("n2", &hosts.token("n1", &[]));
    ["n1", "n2"].iter().for_each(|node| hosts.wait_node(node, "idle", 20));
    let task = "trap 'echo heard >> heard.$SLURM_PROCID; exit 0' USR1; echo up > up.$SLURM_PROCID; while :; do sleep 1; done";
    let step = hosts.cmd("n1", "srun").args(["-N2", "-n2", "sh", "-c", task]).limit(100).spawn();
    told(&hosts, "up.0");
    assert!(wait(60, || begun.exists().then_some(())).is_some(), "no prolog runs on n2");
    hosts.cmd("n1", "scancel").args(["-s", "USR1", &format!("{}.0", job(&hosts))]).ok();
    told(&hosts, "heard.0");
    std::fs::write(&go, "").unwrap();
    // Who hears it before the trap is set ends by it; who does not hear it at all never ends.
    let ended = step.finish();
    let heard = hosts.work().join("heard.1").exists();
    assert!(ended.rc == 128 + 10 || heard, "{ended}");
}
