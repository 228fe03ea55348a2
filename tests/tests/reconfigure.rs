//! `scontrol reconfigure`: another configuration in force while everything runs.

use berth_tests::{Hosts, Sandbox, Who, each_user, images, machine, sandbox::wait};

fn configure(sandbox: &Sandbox, text: &str) {
    let path = sandbox.state().join("berth.toml");
    std::fs::write(&path, text).unwrap();
    machine::give(&path, sandbox.who());
}

/// Something of the controller's, and something of the agents'.
const TWO: &str = "[container]\nkeep_days = 29\n[[partition]]\nname = \"main\"\ndefault = true\n[[partition]]\nname = \"new\"\n";

each_user! {
    fn what_runs_and_waits_notices_nothing(who) {
        let sandbox = Sandbox::start(who);
        let (controller, agent) = (sandbox.controller(), sandbox.agent());
        let mut step = sandbox.srun(["-c1", "--mem=64M", "sh", "-c", "echo ready; while read x; do echo got $x; done; exit 8"]).stdin_open().limit(90).spawn();
        step.wait_for("ready", 30);
        let runs = sandbox.sbatch(&["-c1", "--mem=64M", "--output=out"], "#!/bin/sh\necho begun\nwhile [ ! -e go ]; do sleep 0.1; done\nexit 6\n");
        sandbox.wait_file("out", "begun", 30);
        let waits = sandbox.srun(["--exclusive", "echo", "had its turn"]).limit(90).spawn();
        assert!(wait(30, || sandbox.cmd("squeue").args(["-h", "-t", "PD"]).ok().text().contains("srun").then_some(()).or(
            (!sandbox.cmd("squeue").args(["-h", "-t", "PD"]).ok().text().is_empty()).then_some(()))).is_some());
        configure(&sandbox, TWO);
        sandbox.cmd("scontrol").arg("reconfigure").ok();
        let file = |sandbox: &Sandbox| std::fs::read_to_string(sandbox.state().join("log/agent.log")).unwrap();
        assert!(wait(30, || file(&sandbox).contains("the configuration has changed").then_some(())).is_some());
        assert!(wait(30, || (file(&sandbox).matches(" started, state in").count() == 2).then_some(())).is_some(), "the agent did not start again");
        assert!(wait(30, || sandbox.status()["agents"][0]["pid"].as_i64().is_some().then_some(())).is_some());
        assert_eq!((sandbox.controller(), sandbox.agent()), (controller, agent));
        step.write(b"after\n");
        step.wait_for("got after", 30);
        step.close();
        assert_eq!(step.finish().rc, 8);
        sandbox.write("go", "");
        sandbox.wait_state(runs, "FAILED", 60);
        assert_eq!(sandbox.sacct(runs, "ExitCode")[0], ["6:0"]);
        assert_eq!(waits.finish().text(), "had its turn");
        assert_eq!(sandbox.srun(["-p", "new", "echo", "there"]).ok().text(), "there");
        assert!(sandbox.cmd("berth").args(["config", "show"]).ok().text().contains("\"new\""));
        // The same once more changes nothing, and the agent stays as it is, as it does when only the controller is concerned.
        configure(&sandbox, &TWO.replace("\"new\"", "\"other\""));
        sandbox.cmd("scontrol").arg("reconfigure").ok();
        assert_eq!(sandbox.srun(["-p", "other", "echo", "again"]).ok().text(), "again");
        assert_eq!(file(&sandbox).matches(" started, state in").count(), 2);
    }

    fn a_wrong_file_changes_nothing(who) {
        let sandbox = Sandbox::start(who);
        let reconfigure = || sandbox.cmd("scontrol").arg("reconfigure");
        configure(&sandbox, "kill_wait_secs = 3\n");
        reconfigure().fails().says(&["berth.toml", "line 1", "kill_wait_secs", "nothing was changed"]);
        configure(&sandbox, "[[partition]]\nname = \"main\"\nmax_time = \"soon\"\n");
        reconfigure().fails().says(&["berth.toml", "partition[1].max_time", "nothing was changed"]);
        configure(&sandbox, "[container]\nhooks_dirs = [\"/nowhere/hooks.d\"]\n");
        reconfigure().fails().says(&["hooks_dirs", "/nowhere", "nothing was changed"]);
        configure(&sandbox, "cluster = \"other\"\n");
        reconfigure().fails().says(&["cluster", "'other'", "needs a restart"]);
        configure(&sandbox, "listen = \"0.0.0.0:1\"\n");
        reconfigure().fails().says(&["listen", "0.0.0.0:1", "needs a restart", "nothing was changed"]);
        let shown = sandbox.cmd("berth").args(["config", "show"]).ok().text();
        assert!(!shown.contains("\"other\"") && !shown.contains("0.0.0.0:1\""), "{shown}");
        assert_eq!(sandbox.srun(["echo", "as before"]).ok().text(), "as before");
        configure(&sandbox, "");
    }

    fn rules_for_images_hold_at_once(who) {
        let sandbox = Sandbox::start(who);
        let image = images::busybox();
        let container = format!("--container-image={}", image.display());
        let held = sandbox.sbatch(&["--hold", &container, "--output=held"], "#!/bin/sh\necho ran\n");
        assert_eq!(sandbox.srun_in(&image, ["echo", "allowed"]).ok().text(), "allowed");
        configure(&sandbox, &format!("[images]\ndeny = [\"{}\"]\n", image.display()));
        sandbox.cmd("scontrol").arg("reconfigure").ok();
        sandbox.srun_in(&image, ["true"]).fails().says(&["deny"]);
        // The node judges what was submitted before.
        sandbox.cmd("scontrol").args(["release", &held.to_string()]).ok();
        sandbox.wait_state(held, "FAILED", 60);
        assert!(!std::fs::read_to_string(sandbox.work().join("held")).unwrap_or_default().contains("ran"));
        configure(&sandbox, "");
        sandbox.cmd("scontrol").arg("reconfigure").ok();
        assert!(wait(30, || (sandbox.srun_in(&image, ["echo", "allowed"]).run().text() == "allowed").then_some(())).is_some());
    }
}

#[test]
fn only_administrators_reconfigure_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let stranger = Who::user();
    sandbox.cmd_as(&stranger, "scontrol").arg("reconfigure").fails().says(&["only for administrators"]);
    configure(&sandbox, &format!("administrators = [\"{}\"]\n", stranger.name));
    sandbox.cmd("scontrol").arg("reconfigure").ok();
    sandbox.cmd_as(&stranger, "scontrol").arg("reconfigure").ok();
}

/// Machines that joined have no file of their own: what the controller's says is pushed to them.
#[test]
fn machines_that_joined_are_told_and_no_step_notices_as_root() {
    let hosts = Hosts::new(&["head", "n1", "n2"]);
    hosts.up("head", "");
    let token = hosts.token("head", &["--uses", "2"]);
    for node in ["n1", "n2"] {
        hosts.join(node, &token);
    }
    for node in ["n1", "n2"] {
        hosts.wait_node(node, "idle", 60);
    }
    let script = "echo ready; while read x; do echo got $x; done; exit 8";
    let step = hosts.cmd("head", "srun").args(["-w", "n1", "-c1", "--mem=64M", "sh", "-c", script]);
    let mut step = step.stdin_open().limit(90).spawn();
    step.wait_for("ready", 30);
    let agents = ["n1", "n2"].map(|node| hosts.pid(node, "agent"));
    let image = images::busybox();
    let run = |node: &str| {
        let container = format!("--container-image={}", image.display());
        hosts
            .cmd("head", "srun")
            .args(["-w", node, "-c1", "--mem=64M", &container, "echo", "allowed"])
            .limit(60)
    };
    assert_eq!(run("n1").ok().text().trim(), "allowed");
    // One of them is out of reach at that moment, and is told when it is back.
    hosts.link("n2", false);
    let deny = format!("[images]\ndeny = [\"{}\"]\n", image.display());
    std::fs::write(hosts.state("head").join("berth.toml"), deny).unwrap();
    hosts.root("head", "scontrol").arg("reconfigure").ok();
    hosts.link("n2", true);
    for (node, pid) in ["n1", "n2"].into_iter().zip(agents) {
        let log = || std::fs::read_to_string(hosts.state(node).join("log/agent.log")).unwrap();
        let again = wait(60, || (log().matches(" started, state in").count() == 2).then_some(()));
        assert!(again.is_some(), "the agent of {node} did not start again: {}", log());
        hosts.wait_node(node, if node == "n1" { "mixed" } else { "idle" }, 60);
        assert_eq!(hosts.pid(node, "agent"), pid);
        run(node).fails().says(&["deny"]);
    }
    step.write(b"after\n");
    step.wait_for("got after", 30);
    step.close();
    assert_eq!(step.finish().rc, 8);
    // And back.
    std::fs::write(hosts.state("head").join("berth.toml"), "").unwrap();
    hosts.root("head", "scontrol").arg("reconfigure").ok();
    let back = wait(60, || (run("n2").run().text().trim() == "allowed").then_some(()));
    assert!(back.is_some(), "{}", run("n2").run());
}

/// A login node asks, and goes on under another configuration without a new start: the connections of its users stay.
#[test]
fn a_login_node_goes_on_under_another_configuration_as_root() {
    let hosts = Hosts::new(&["head", "n1", "front"]);
    hosts.up("head", "");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.join("front", &hosts.token("head", &["--role", "login"]));
    hosts.wait_node("n1", "idle", 60);
    let script = "echo ready; read x; echo got $x; exit 8";
    let step = hosts.cmd("front", "srun").args(["-w", "n1", "-c1", "--mem=64M", "sh", "-c", script]);
    let mut step = step.stdin_open().limit(90).spawn();
    step.wait_for("ready", 30);
    let agent = hosts.pid("front", "agent");
    let settings = || std::fs::read_to_string(hosts.state("front").join("private/settings.json")).unwrap();
    assert!(!settings().contains("spam"), "{}", settings());
    std::fs::write(hosts.state("head").join("berth.toml"), "[images]\ndeny = [\"example.org/spam\"]\n")
        .unwrap();
    hosts.root("head", "scontrol").arg("reconfigure").ok();
    let log = || std::fs::read_to_string(hosts.state("front").join("log/agent.log")).unwrap();
    let told = wait(60, || log().contains("the configuration has changed, and is in force").then_some(()));
    assert!(told.is_some(), "{}", log());
    assert!(settings().contains("example.org/spam"), "{}", settings());
    step.write(b"after\n");
    step.wait_for("got after", 30);
    step.close();
    assert_eq!(step.finish().rc, 8);
    assert_eq!(hosts.pid("front", "agent"), agent);
}
