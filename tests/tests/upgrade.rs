//! Rolling upgrade between two builds: the controller first, then each node, while steps run through it. `tests/upgrade.sh` builds the
//! earlier one and runs this.

use berth_tests::{Hosts, images, machine, sandbox::wait};
use std::path::PathBuf;

/// Runs until it is told to end, and asks for a step of its own then, by the programs that the node has by that time.
const SCRIPT: &str = "#!/bin/sh
echo begun
while [ $1 = waits ] && [ ! -e $TMPDIR/go ]; do sleep 0.1; done
srun -n1 echo a step after it
exit 5
";

/// Of two nodes, n2 and n3: a step goes on on n3, and one over both begins when it is told to, from a node of the earlier version.
const PAIR: &str = "#!/bin/sh
srun --overlap -N1 -n1 -w n3 sh -c 'echo under it; until [ -e over ]; do sleep 0.1; done; exit 7' > under &
until [ -e two ]; do sleep 0.1; done
srun --overlap -N2 -n2 sh -c 'echo task $SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME' | sort
touch over
wait $!
echo under it: $?
exit 6
";

#[test]
#[ignore = "needs programs of an earlier version: tests/upgrade.sh"]
fn controller_and_nodes_are_upgraded_under_running_steps_as_root() {
    let old = PathBuf::from(
        std::env::var_os("BERTH_OLD").expect("BERTH_OLD names a directory with earlier programs"),
    );
    let new = machine::programs();
    let hosts = Hosts::new(&["head", "n1", "n2", "n3"]);
    for host in ["head", "n1", "n2", "n3"] {
        hosts.install(host, &old);
    }
    hosts.up("head", "");
    let token = hosts.token("head", &["--uses", "3"]);
    for node in ["n1", "n2", "n3"] {
        hosts.join(node, &token);
        hosts.wait_node(node, "idle", 60);
    }
    let script = "echo ready; while read x; do echo got $x; done; exit 8";
    let step = hosts.cmd("head", "srun").args(["-w", "n1", "-c1", "--mem=64M", "sh", "-c", script]);
    let mut step = step.stdin_open().limit(300).spawn();
    step.wait_for("ready", 30);
    std::fs::write(hosts.work().join("job.sh"), SCRIPT).unwrap();
    let image = format!("--container-image={}", images::busybox().display());
    let sbatch = |options: &[&str], argument: &str| {
        let sbatch = hosts.cmd("head", "sbatch").args(["--parsable", "-c1", "--mem=64M"]).args(options);
        sbatch.args(["job.sh", argument]).ok().text().trim().to_string()
    };
    let job = sbatch(&["-w", "n2", "-o", "out", &image], "waits");
    let held = sbatch(&["--hold", "-o", "held"], "goes");
    let read = |name: &str| std::fs::read_to_string(hosts.work().join(name)).unwrap_or_default();
    assert!(wait(30, || read("out").contains("begun").then_some(())).is_some(), "{}", read("out"));
    // What the step on n1 says and hears goes on, whatever is being upgraded.
    let mut said = 0;
    let mut goes_on = |what: &str| {
        said += 1;
        step.write(format!("{said}\n").as_bytes());
        step.wait_for(&format!("got {said}"), 30);
        let states = || hosts.cmd("head", "squeue").args(["-h", "-t", "all", "-o", "%i %T %R"]).ok().text();
        let both = wait(20, || (states().matches("RUNNING").count() == 2).then_some(()));
        assert!(both.is_some(), "after {what}: {}; {}", states(), read("out"));
    };
    goes_on("the start");

    // The controller, and its machine's own agent.
    hosts.upgrade("head", new);
    for node in ["n1", "n2"] {
        hosts.wait_node(node, "mixed", 60);
    }
    goes_on("the controller's upgrade");
    let runs = |node: &str, what: &str| {
        let run = |options: &[&str], said: &str| {
            let step = hosts.cmd("head", "srun").args(["-w", node, "-c1", "--mem=64M"]).args(options);
            assert_eq!(step.args(["echo", said]).limit(60).ok().text().trim(), said, "{node}: {what}");
        };
        run(&[], "on the node's own files");
        run(&[&image], "in a container");
    };
    for node in ["n1", "n2"] {
        runs(node, "an earlier agent and the later controller");
    }
    // The earlier agents are told what they know, and take it. They may have started again for another default before.
    let log = |node: &str| std::fs::read_to_string(hosts.state(node).join("log/agent.log")).unwrap();
    let starts = |node: &str| log(node).matches(" started, state in").count();
    let before = ["n1", "n2"].map(starts);
    let config = "certificate_seconds = 86400\n[images]\nkeep_days = 77\n";
    std::fs::write(hosts.state("head").join("berth.toml"), config).unwrap();
    hosts.root("head", "scontrol").arg("reconfigure").ok();
    for (node, before) in ["n1", "n2"].into_iter().zip(before) {
        let again = wait(60, || (starts(node) > before).then_some(()));
        assert!(again.is_some(), "the agent of {node} did not take the configuration: {}", log(node));
        hosts.wait_node(node, "mixed", 60);
        runs(node, "an earlier agent with the later configuration");
    }
    goes_on("the configuration");

    // The nodes, one after the other: as packages do it, and after a crash.
    hosts.upgrade("n1", new);
    hosts.wait_node("n1", "mixed", 60);
    goes_on("n1's upgrade");
    runs("n1", "the later agent");
    runs("n2", "the other one, an earlier agent still");
    let ended = |job: &str, expected: &str| {
        let row = || {
            hosts.cmd("head", "sacct").args(["-n", "-X", "-P", "-o", "State,ExitCode", "-j", job]).ok().text()
        };
        let ended = wait(60, || (row().trim() == expected).then_some(()));
        assert!(ended.is_some(), "job {job}: {}", row());
    };
    // A third one under a step, whose job has a step over both versions then.
    hosts.wait_node("n3", "idle", 60);
    std::fs::write(hosts.work().join("pair.sh"), PAIR).unwrap();
    let words = ["--parsable", "-N2", "-w", "n2,n3", "-c1", "--mem=64M", "-o", "pair", "pair.sh"];
    let pair = hosts.cmd("head", "sbatch").args(words).ok().text().trim().to_string();
    assert!(wait(30, || read("under").contains("under it").then_some(())).is_some(), "{}", read("pair"));
    hosts.upgrade("n3", new);
    hosts.wait_node("n3", "mixed", 60);
    std::fs::write(hosts.work().join("two"), "").unwrap();
    ended(&pair, "FAILED|6:0");
    let said = "task 0 of 2 on n2\ntask 1 of 2 on n3\nsrun: error: n3: task 0: Exited with exit code 7\nunder it: 7\n";
    assert_eq!(read("pair"), said);
    hosts.wait_node("n3", "idle", 60);
    goes_on("n3's upgrade");
    hosts.install("n2", new);
    hosts.kill_9("n2", "agent");
    hosts.root("n2", "berth").args(["up", "--detach"]).ok();
    hosts.wait_node("n2", "mixed", 60);
    goes_on("n2's upgrade");
    runs("n2", "the later agent");

    // What began under the earlier version ends as it was to.
    step.close();
    assert_eq!(step.finish().rc, 8);
    std::fs::write(hosts.state("n2").join(format!("scratch/{job}/tmp/go")), "").unwrap();
    hosts.cmd("head", "scontrol").args(["release", &held]).ok();
    for (id, out) in [(&job, "out"), (&held, "held")] {
        ended(id, "FAILED|5:0");
        assert_eq!(read(out), "begun\na step after it\n", "job {id}");
    }
}

/// As an agent that was upgraded and taken back: it was told what it does not know.
#[test]
fn an_agent_goes_without_what_it_does_not_know_and_says_so_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", "[images]\nkeep_days = 77\n");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    let settings = hosts.state("n1").join("private/settings.json");
    let told = std::fs::read_to_string(&settings).unwrap();
    assert_eq!(told, "{\"images\":{\"keep_days\":77}}");
    hosts.link("n1", false);
    hosts.kill_9("n1", "agent");
    let later = "{\"images\":{\"keep_days\":77,\"deny\":[{\"of\":\"tomorrow\"}]},\"peers\":{\"port\":1}}";
    std::fs::write(&settings, later).unwrap();
    let up = hosts.root("n1", "berth").args(["up", "--detach"]).limit(60).spawn();
    let log = || std::fs::read_to_string(hosts.state("n1").join("log/agent.log")).unwrap();
    let says = "does not know what the controller has configured as images.deny[0], images.deny, peers";
    assert!(wait(30, || log().contains(says).then_some(())).is_some(), "{}", log());
    hosts.link("n1", true);
    assert_eq!(up.finish().rc, 0);
    // What the controller says now it knows: it starts again with that.
    let again = || (log().matches(" started, state in").count() == 3).then_some(());
    assert!(wait(30, again).is_some(), "{}", log());
    hosts.wait_node("n1", "idle", 30);
    assert_eq!(
        hosts.cmd("head", "srun").args(["-w", "n1", "echo", "there"]).limit(60).ok().text().trim(),
        "there"
    );
}
