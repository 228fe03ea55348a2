//! Clusters of several machines: network namespaces with names and state directories of their own, that reach each other by the
//! network alone.

use berth_tests::sandbox::wait;
use berth_tests::stolen::{copy, say};
use berth_tests::{Hosts, images};
use serde_json::{Value, json};
use std::time::Duration;

/// A controller's machine that runs no jobs of its own, and two compute nodes.
fn three() -> Hosts {
    let hosts = Hosts::new(&["head", "n1", "n2"]);
    hosts.up("head", "");
    let token = hosts.token("head", &["--uses", "2"]);
    hosts.join("n1", &token);
    hosts.join("n2", &token);
    hosts
}

#[test]
fn machines_join_with_a_token_and_run_jobs_as_root() {
    let hosts = three();
    let listed = hosts.root("head", "berth").args(["node", "ls"]).ok().text();
    for name in ["n1", "n2"] {
        assert!(listed.lines().any(|l| l.starts_with(name) && l.ends_with("yes")), "{listed}");
        hosts.wait_node(name, "idle", 60);
        // Streams in both directions, exit codes, and the host's name.
        let told = hosts.cmd("head", "srun").args(["-w", name, "hostname"]).ok().text();
        assert_eq!(told.trim(), name);
    }
    let told = hosts.cmd("head", "srun").args(["-w", "n2", "cat"]).stdin(b"by way of the controller\n").ok();
    assert_eq!(told.text().trim_end(), "by way of the controller", "{told}");
    let failed = hosts.cmd("head", "srun").args(["-w", "n1", "sh", "-c", "echo no >&2; exit 7"]).run();
    assert!(failed.rc == 7 && failed.err().contains("no"), "{failed}");
    // In a container, with a step of the allocation made from within it.
    let image = images::debian();
    let told = hosts
        .cmd("head", "srun")
        .args(["-w", "n1", "--container-image"])
        .arg(&image)
        .args(["sh", "-c", ". /etc/os-release; echo $ID; srun --overlap hostname"])
        .ok();
    assert_eq!(told.text().lines().collect::<Vec<_>>(), ["debian", "n1"], "{told}");
    // A batch script on a node without a controller asks by its job's socket.
    std::fs::write(hosts.work().join("job.sh"), "#!/bin/sh\nhostname\nsrun hostname\nsqueue -h -o %i\n")
        .unwrap();
    let job = hosts.cmd("head", "sbatch").args(["--parsable", "-w", "n2", "-o", "out", "job.sh"]).ok().text();
    let seen = wait(20, || {
        let text = std::fs::read_to_string(hosts.work().join("out")).unwrap_or_default();
        (text.lines().collect::<Vec<_>>() == ["n2", "n2", job.trim()]).then_some(())
    });
    assert!(seen.is_some(), "{:?}", std::fs::read_to_string(hosts.work().join("out")));
    // What users type on a compute node is told where to go.
    hosts.cmd("n1", "squeue").fails().says(&[
        "n1 of the cluster at 10.77.0.1:7817",
        "login node",
        "inside a job",
    ]);
    // Root's jobs are off once machines have joined.
    hosts.root("head", "srun").arg("true").fails().says(&["root_jobs"]);
    // The pid of an agent is told where it runs, and what is up here waits for this machine's own.
    let status = hosts.root("head", "berth").arg("status").ok().text();
    let has_pid = |node: &str| status.lines().any(|line| line.contains(&format!("node {node}, pid ")));
    assert!(has_pid("head") && !has_pid("n1") && !has_pid("n2"), "{status}");
    let again = hosts.root("head", "berth").args(["up", "--detach"]).ok().text();
    assert!(again.contains("already up") && again.contains("node head and 2 others"), "{again}");
}

/// The token with other bytes in one of its parts. It is a token as to its form: the first character of a part stands for six whole bits.
fn forged(token: &str, part: usize) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_string).collect();
    let other = if parts[part].starts_with('A') { "B" } else { "A" };
    parts[part].replace_range(..1, other);
    parts.join(".")
}

/// The shortest time that there is, so that it is waited for.
#[test]
fn a_token_whose_time_is_over_admits_nobody_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", "");
    let [short, long] = [&["--ttl", "1m"][..], &[][..]].map(|options| hosts.token("head", options));
    let listed = || hosts.root("head", "berth").args(["token", "ls"]).ok().text();
    let [expires, stays] = [&short, &long].map(|token| token.split('.').nth(1).unwrap().to_string());
    assert!(listed().contains(&expires) && listed().contains(&stays), "{}", listed());
    let over = wait(120, || (!listed().contains(&expires)).then_some(()));
    assert!(over.is_some() && listed().contains(&stays), "{}", listed());
    let join = |token: &str| hosts.root("n1", "berth").args(["join", "10.77.0.1", token, "--detach"]);
    join(&short).fails().says(&["this token is not valid", "berth token create"]);
    let nodes = hosts.root("head", "berth").args(["node", "ls"]).ok().text();
    assert!(!nodes.lines().any(|line| line.starts_with("n1")), "{nodes}");
    join(&long).ok();
    hosts.wait_node("n1", "idle", 60);
}

#[test]
fn tokens_are_good_for_what_they_say_and_no_more_as_root() {
    let hosts = Hosts::new(&["head", "n1", "n2"]);
    hosts.up("head", "");
    // Before the first token there is no port.
    hosts.root("n1", "berth").args(["join", "10.77.0.1", "berth1.x.y.z"]).fails().says(&["token"]);
    let token = hosts.token("head", &[]);
    hosts.join("n1", &token);
    // Used up.
    hosts
        .root("n2", "berth")
        .args(["join", "10.77.0.1", &token])
        .fails()
        .says(&["not valid", "berth token create"]);
    // Of another secret, which the controller refuses, and of another authority: the machine itself refuses that one, and shows it no secret.
    let other = hosts.token("head", &[]);
    for (part, why) in [(2, "this token is not valid"), (3, "does not show the authority of the token")] {
        let forged = forged(&other, part);
        let lied = hosts.root("n2", "berth").args(["join", "10.77.0.1", &forged]).fails().says(&[why]);
        let secret = &forged.split('.').nth(2).unwrap()[1..];
        assert!(!lied.err().contains(secret), "an error repeats the token: {lied}");
    }
    // One name is one machine's.
    hosts.root("n2", "berth").args(["join", "10.77.0.1", &other, "--name", "n1"]).fails().says(&[
        "n1",
        "berth node remove",
        "berth join --name $(hostname -f)",
    ]);
    hosts.join("n2", &other);
    hosts.root("n2", "berth").args(["join", "10.77.0.1", &other]).fails().says(&["already", "berth leave"]);
    // Who joins for approval waits for it.
    hosts.root("n2", "berth").arg("down").ok();
    hosts.root("n2", "berth").arg("leave").ok();
    let token = hosts.token("head", &["--approval"]);
    hosts.root("n2", "berth").args(["join", "10.77.0.1", &token, "--detach"]).ok();
    std::thread::sleep(Duration::from_secs(1));
    let listed = hosts.root("head", "sinfo").args(["-h", "-N", "-o", "%N"]).ok().text();
    assert!(!listed.contains("n2"), "{listed}");
    hosts.root("head", "berth").args(["node", "approve", "n2"]).ok();
    hosts.wait_node("n2", "idle", 60);
}

/// Without --detach the agent is the command's own: it ends with it, and is started again by 'berth up'.
#[test]
fn a_machine_joins_in_the_foreground_and_without_a_service_as_root() {
    let hosts = Hosts::new(&["head", "n1", "n2"]);
    hosts.up("head", "");
    let token = hosts.token("head", &["--uses", "2"]);
    let mut joined = hosts.root("n1", "berth").args(["join", "10.77.0.1", &token]).limit(180).spawn();
    joined.wait_for("n1 is up (agent pid ", 60);
    hosts.wait_node("n1", "idle", 20);
    let runs = |node: &str| {
        let told = hosts.cmd("head", "srun").args(["-w", node, "hostname"]).ok();
        assert_eq!(told.text(), node, "{told}");
    };
    runs("n1");
    assert!(joined.alive());
    joined.signal(nix::sys::signal::Signal::SIGINT);
    let ended = joined.finish();
    assert!(ended.rc == 0 && ended.text().starts_with("n1 joined cluster '"), "{ended}");
    let up = hosts.root("n1", "berth").args(["up", "--detach"]).ok();
    assert!(up.text().starts_with("n1 is up"), "its agent did not end: {up}");
    hosts.wait_node("n1", "idle", 20);
    runs("n1");
    // A process of the command's, where it is to be no service.
    let join = |options: &[&str]| hosts.root("n2", "berth").args(["join", "10.77.0.1", &token]).args(options);
    join(&["--no-systemd"]).fails().says(&["--detach"]);
    let joined = join(&["--detach", "--no-systemd"]).ok();
    assert!(joined.text().contains("n2 is up (agent pid "), "{joined}");
    hosts.wait_node("n2", "idle", 20);
    runs("n2");
}

/// A machine is known by its full name, and says when it joins what was found in it.
#[test]
fn a_machine_joins_under_its_full_name_and_shows_its_hardware_as_root() {
    const NAME: &str = "n1.example.org";
    let hosts = Hosts::new(&["head", NAME]);
    hosts.up("head", "");
    let token = hosts.token("head", &[]);
    let joined = hosts.root(NAME, "berth").args(["join", "10.77.0.1", &token, "--detach"]).ok();
    let first = joined.text().lines().next().unwrap_or_default().to_string();
    assert!(first.starts_with(&format!("{NAME} joined cluster '")), "{joined}");
    assert!(first.ends_with("' at 10.77.0.1:7817 as a compute node."), "{joined}");
    hosts.wait_node(NAME, "idle", 60);
    // The same as the cluster has on record of it.
    let node = hosts.cmd("head", "scontrol").args(["show", "node", NAME]).ok().text();
    let number = |name: &str| -> u64 {
        let word = node.split_whitespace().find_map(|word| word.strip_prefix(name));
        word.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{node}"))
    };
    let (sockets, cores) = (number("Sockets="), number("CoresPerSocket="));
    let hardware = format!(
        "It has {sockets} sockets, {} cores, {} threads and {} MiB of memory ({} MiB held back for the system).",
        sockets * cores,
        number("CPUTot="),
        number("RealMemory="),
        number("MemSpecLimit=")
    );
    assert!(joined.text().lines().any(|line| line == hardware), "not '{hardware}': {joined}");
    // It is called so everywhere.
    let listed = hosts.root("head", "berth").args(["node", "ls"]).ok().text();
    assert!(listed.lines().any(|line| line.starts_with(NAME) && line.ends_with("yes")), "{listed}");
    let script = "hostname; echo $SLURM_JOB_NODELIST $SLURMD_NODENAME";
    let told = hosts.cmd("head", "srun").args(["-w", NAME, "sh", "-c", script]).ok();
    assert_eq!(told.text().lines().collect::<Vec<_>>(), [NAME, format!("{NAME} {NAME}").as_str()], "{told}");
}

/// Nothing needs to reach a node: it asks the controller for all that it has.
#[test]
fn a_node_listens_on_nothing_where_images_do_not_travel_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", "[images]\npeers = \"off\"\n");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    let open = |host: &str| hosts.root(host, "ss").args(["-H", "-l", "-t", "-n"]).ok().text();
    assert_eq!(open("n1"), "");
    assert!(open("head").contains(":7817"), "{}", open("head"));
    // Nor while a step runs there, but for what serves its tasks PMIx, which nobody else reaches.
    let mut step = hosts.cmd("head", "srun").args(["-w", "n1", "cat"]).stdin_open().spawn();
    step.write(b"there\n");
    step.wait_for("there", 20);
    let listening = open("n1");
    let inside = |line: &str| line.split_whitespace().nth(3).is_some_and(|at| at.starts_with("127.0.0.1:"));
    assert!(listening.lines().all(inside), "{listening}");
    assert_eq!(step.finish().rc, 0);
}

/// Whoever has a copy of all that a machine keeps to itself is that machine to others, until it has another key or is removed.
#[test]
fn a_machine_that_is_removed_is_refused_at_once_and_a_rotated_key_counts_as_root() {
    let hosts = Hosts::new(&["head", "n1", "n2", "thief", "front"]);
    hosts.up("head", "");
    hosts.join("front", &hosts.token("head", &["--role", "login"]));
    let token = hosts.token("head", &["--uses", "2"]);
    for node in ["n1", "n2"] {
        hosts.join(node, &token);
        hosts.wait_node(node, "idle", 60);
    }
    let [first, second, third] = ["n1", "n2", "front"].map(|node| copy(&hosts, node, "thief"));
    let ask = |key: &[String; 4], line: &Value| {
        say(&hosts, "thief", key, "10.77.0.1:7817", format!("{line}\n").as_bytes())
    };
    for key in [&first, &second, &third] {
        let said = ask(key, &json!({ "question": "settings" }));
        assert!(said.contains("\"settings\""), "the copy is none: {said}");
    }
    let refused = |key: &[String; 4], of: &str| {
        let user = json!({ "uid": hosts.user().uid, "gid": hosts.user().gid, "job": null });
        for line in [
            json!({ "question": "clock" }),
            json!({ "question": "settings" }),
            json!({ "question": { "renew": { "public": "00" } } }),
            json!({ "node": of }),
            json!({ "to": "n1", "peer": user }),
            json!({ "answer": 1 }),
            user.clone(),
        ] {
            // What was said may be lost with a connection that is closed before it was read.
            let why = "this machine's key is not (any more) one of the cluster's";
            let told = wait(30, || ask(key, &line).contains(why).then_some(()));
            assert!(told.is_some(), "{of}: {line}: {}", ask(key, &line));
        }
    };
    hosts.root("front", "berth").args(["node", "rotate-key"]).ok();
    refused(&third, "front");
    hosts.root("n1", "berth").args(["node", "rotate-key"]).ok();
    refused(&first, "n1");
    assert!(ask(&second, &json!({ "question": "settings" })).contains("\"settings\""));
    let told = wait(20, || {
        let told = hosts.cmd("head", "srun").args(["-w", "n1", "-t", "1", "hostname"]).limit(20).run();
        (told.rc == 0).then_some(told.text())
    });
    assert_eq!(told.as_deref().map(str::trim), Some("n1"));
    hosts.root("head", "berth").args(["node", "remove", "n2"]).ok();
    refused(&second, "n2");
    let log = std::fs::read_to_string(hosts.state("head").join("log/controller.log")).unwrap();
    let named =
        |line: &str| line.contains("10.77.0.4:") && line.contains("turned away: this machine's key is not");
    assert!(log.lines().any(named), "{log}");
    let gone = wait(30, || {
        let listed = hosts.root("head", "sinfo").args(["-h", "-N", "-o", "%N"]).ok().text();
        (!listed.contains("n2")).then_some(())
    });
    assert!(gone.is_some(), "a removed machine is still a node");
    let log = wait(30, || {
        let text = std::fs::read_to_string(hosts.state("n2").join("log/agent.log")).unwrap_or_default();
        text.contains("join again with a new token").then_some(())
    });
    assert!(log.is_some(), "the removed machine is not told why it is refused");
    let audit = hosts.root("head", "berth").arg("audit").ok().text();
    assert!(audit.contains("n1 exchanged its key") && audit.contains("removed n2"), "{audit}");
}

/// The cluster is done with a machine that leaves, and stays so; jobs that need it are in the way, a controller out of reach is not.
#[test]
fn a_machine_that_leaves_is_gone_from_the_cluster_and_joins_again_as_root() {
    let hosts = Hosts::new(&["head", "n1", "n2", "front"]);
    hosts.up("head", "");
    let token = hosts.token("head", &["--uses", "2"]);
    for node in ["n1", "n2"] {
        hosts.join(node, &token);
        hosts.wait_node(node, "idle", 60);
    }
    hosts.join("front", &hosts.token("head", &["--role", "login"]));
    let nodes = || -> Vec<String> {
        let listed = hosts.root("head", "sinfo").args(["-h", "-N", "-o", "%N"]).ok().text();
        listed.lines().map(|line| line.trim().to_string()).collect()
    };
    let member = |name: &str| {
        let listed = hosts.root("head", "berth").args(["node", "ls"]).ok().text();
        listed.lines().any(|line| line.split_whitespace().next() == Some(name))
    };
    let berth = |host: &str, words: &[&str]| hosts.root(host, "berth").args(words).limit(60);
    assert_eq!(nodes(), ["head", "n1", "n2"]);

    // A step runs there, and its agent is away: the controller knows.
    let job = hosts
        .cmd("head", "sbatch")
        .args(["--parsable", "-w", "n1", "-c1", "--mem=64M", "-o", "/dev/null"])
        .args(["--wrap", "touch begun; exec sleep 300"])
        .ok()
        .text();
    let begun = hosts.work().join("begun");
    assert!(wait(20, || begun.exists().then_some(())).is_some(), "job {job} does not begin");
    berth("n1", &["leave"]).fails().says(&["berth down"]);
    berth("n1", &["down", "--keep-jobs"]).ok();
    berth("n1", &["leave"]).fails().says(&[&format!("on n1: {job};"), "berth node remove --force n1"]);
    assert_eq!(nodes(), ["head", "n1", "n2"]);
    // It is what it was.
    berth("n1", &["up", "--detach"]).ok();
    hosts.cmd("head", "scancel").arg(&job).ok();
    hosts.wait_node("n1", "idle", 30);

    // What was cancelled takes a moment.
    let down = || (berth("n1", &["down"]).run().rc == 0).then_some(());
    assert!(wait(20, down).is_some(), "n1 does not go down");
    let left = berth("n1", &["leave"]).ok();
    assert!(left.text().starts_with("n1 left cluster '") && !left.err().contains("warning"), "{left}");
    assert_eq!(nodes(), ["head", "n2"]);
    assert!(!member("n1") && member("front"));
    let log = hosts.root("head", "berth").args(["audit", "-n", "1"]).ok().text();
    assert!(log.contains("node n1") && log.contains("n1 left the cluster with key "), "{log}");
    berth("n1", &["leave"]).fails().says(&["joined no cluster"]);
    berth("front", &["down"]).ok();
    berth("front", &["leave"]).ok();
    assert!(!member("front"));
    // Its name is free; and it may have been of another cluster meanwhile, with later terms and higher numbers.
    let kept = |name: &str| hosts.state("n1").join("private").join(name);
    std::fs::write(kept("agent-term.json"), "3000000").unwrap();
    std::fs::write(kept("agent-highest.json"), r#"{"job": 90000, "attempt": 0, "step": 0}"#).unwrap();
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    let told = hosts.cmd("head", "srun").args(["-w", "n1", "hostname"]).ok();
    assert_eq!(told.text(), "n1", "{told}");

    // Nobody hears of it: it has left all the same, and says what is left to do.
    berth("n2", &["down"]).ok();
    hosts.link("n2", false);
    let left = berth("n2", &["leave"]).ok().says(&["10.77.0.1:7817", "berth node remove n2"]);
    assert!(left.text().starts_with("n2 left cluster '"), "{left}");
    hosts.link("n2", true);
    assert_eq!(nodes(), ["head", "n1", "n2"]);
    let removed = || hosts.root("head", "berth").args(["node", "remove", "n2"]).ok();
    removed();
    hosts.join("n2", &hosts.token("head", &[]));
    hosts.wait_node("n2", "idle", 60);
    // Nor is a machine kept that was removed before.
    berth("n2", &["down"]).ok();
    removed();
    berth("n2", &["leave"]).ok().says(&["the cluster was not told"]);
    assert_eq!(nodes(), ["head", "n1"]);
}

#[test]
fn login_nodes_speak_for_their_users_and_for_no_root_as_root() {
    let hosts = Hosts::new(&["head", "n1", "front", "desk"]);
    let user = hosts.user().name.clone();
    hosts.up("head", &format!("administrators = [\"{user}\"]\n"));
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.join("front", &hosts.token("head", &["--role", "login"]));
    hosts.join("desk", &hosts.token("head", &["--role", "login", "--administrators"]));
    hosts.wait_node("n1", "idle", 60);
    let told = hosts.cmd("front", "srun").args(["-w", "n1", "sh", "-c", "hostname; id -un"]).ok();
    assert_eq!(told.text().lines().collect::<Vec<_>>(), ["n1", user.as_str()], "{told}");
    // Root of a login node is nobody, and an administrator an ordinary user, unless the token said otherwise.
    hosts.root("front", "squeue").fails().says(&["root of the login node front"]);
    hosts.root("desk", "squeue").fails().says(&["root of the login node desk"]);
    let not_here = ["only for administrators", "on this machine", "--administrators"];
    hosts.cmd("front", "berth").args(["token", "create"]).fails().says(&not_here);
    let update = |host: &str, state: &str| {
        hosts.cmd(host, "scontrol").args(["update", "NodeName=n1", state, "Reason=x"])
    };
    update("front", "State=DRAIN").fails().says(&["administrator"]);
    hosts.cmd("desk", "berth").args(["token", "ls"]).ok();
    hosts.cmd("head", "berth").args(["token", "ls"]).ok();
    // Nor is it enough for an operator.
    let operators = format!("operators = [\"{user}\"]\n");
    std::fs::write(hosts.state("head").join("berth.toml"), operators).unwrap();
    hosts.root("head", "scontrol").arg("reconfigure").ok();
    update("front", "State=DRAIN")
        .fails()
        .says(&["only for operators and administrators", "on this machine"]);
    update("desk", "State=DRAIN").ok();
    update("head", "State=RESUME").ok();
    hosts
        .cmd("desk", "berth")
        .args(["token", "ls"])
        .fails()
        .says(&["only for administrators", "is an operator"]);
    // The log says from which machine something was asked, where it was not the controller's.
    let audit = |options: &[&str]| hosts.root("head", "berth").arg("audit").args(options).ok().text();
    let entries: Vec<Value> = serde_json::from_str(&audit(&["-n", "0", "--json"])).unwrap();
    let from = |what: &str| {
        let entry = entries.iter().find(|entry| entry["what"].as_str().is_some_and(|w| w.starts_with(what)));
        entry.unwrap_or_else(|| panic!("no entry {what}: {entries:?}"))["from"].clone()
    };
    assert_eq!((from("set n1 to DRAIN"), from("set n1 to RESUME")), (json!("desk"), Value::Null));
    let table = audit(&[]);
    assert!(table.contains(&format!("{user} (from desk)")), "{table}");
    // No jobs run there.
    let listed = hosts.cmd("front", "sinfo").args(["-h", "-N", "-o", "%N"]).ok().text();
    assert!(!listed.contains("front") && !listed.contains("desk"), "{listed}");
}

#[test]
fn steps_and_their_streams_outlive_links_and_daemons_as_root() {
    let hosts = three();
    hosts.wait_node("n1", "idle", 60);
    let script = "i=0; while [ $i -lt 120 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 5";
    let mut step = hosts.cmd("head", "srun").args(["-w", "n1", "sh", "-c", script]).limit(120).spawn();
    step.wait_for("line 5", 20);
    hosts.kill_9("head", "controller");
    hosts.root("head", "berth").args(["up", "--detach"]).ok();
    hosts.kill_9("n1", "agent");
    hosts.root("n1", "berth").args(["up", "--detach"]).ok();
    hosts.link("n1", false);
    std::thread::sleep(Duration::from_secs(3));
    hosts.link("n1", true);
    let ended = step.finish();
    assert_eq!(ended.rc, 5, "{ended}");
    assert!(ended.text().contains("line 119"), "{ended}");
    let rows = hosts.cmd("head", "sacct").args(["-n", "-P", "-o", "State,ExitCode"]).ok().text();
    assert!(rows.lines().next().is_some_and(|row| row == "FAILED|5:0"), "{rows}");
}

#[test]
fn certificates_renew_themselves_and_those_that_ended_are_refused_as_root() {
    const LIFE: u64 = 15;
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", &format!("certificate_seconds = {LIFE}\n"));
    hosts.join("n1", &hosts.token("head", &[]));
    // It has its certificate: how long it took to come so far does not matter.
    let began = std::time::Instant::now();
    hosts.wait_node("n1", "idle", 60);
    let mut step = hosts
        .cmd("head", "srun")
        .args(["-w", "n1", "-c1", "--mem=64M", "sh", "-c", "echo ready; read x; echo got $x"])
        .stdin_open()
        .limit(90)
        .spawn();
    step.wait_for("ready", 20);
    let private = hosts.state("n1").join("private");
    let certificate = || {
        let files = std::fs::read_dir(&private).unwrap().map(|entry| entry.unwrap().path());
        files
            .filter(|path| path.extension().is_some_and(|e| e == "crt"))
            .find(|path| path != &private.join("authority.crt"))
            .unwrap()
    };
    let first = std::fs::read(certificate()).unwrap();
    let log = || std::fs::read_to_string(hosts.state("n1").join("log/agent.log")).unwrap();
    // By itself, and before the end; both sides have others by then.
    assert!(
        wait(LIFE, || log().contains("the certificate was renewed").then_some(())).is_some(),
        "{}",
        log()
    );
    assert!(began.elapsed() < Duration::from_secs(LIFE), "it was renewed after {:?}", began.elapsed());
    std::thread::sleep((Duration::from_secs(LIFE + 1)).saturating_sub(began.elapsed()));
    let again = |text: &str| {
        hosts.kill_9("n1", "agent");
        let up = hosts.root("n1", "berth").args(["up", "--detach"]).limit(60).spawn();
        assert!(wait(20, || log().contains(text).then_some(())).is_some(), "{}", log());
        up
    };
    // The one that it joined with is worth nothing any more.
    let renewed = std::fs::read(certificate()).unwrap();
    assert_ne!(renewed, first);
    std::fs::write(certificate(), &first).unwrap();
    let up = again("expired");
    // It goes on trying, and has told its pid.
    let tries = || (log().matches(" started, state in").count() == 2).then_some(());
    assert!(wait(20, tries).is_some(), "{}", log());
    std::fs::write(certificate(), &renewed).unwrap();
    hosts.kill_9("n1", "agent");
    assert_ne!(up.finish().rc, 0);
    hosts.root("n1", "berth").args(["up", "--detach"]).limit(60).ok();
    hosts.wait_node("n1", "mixed", 60);
    step.write(b"it\n");
    step.wait_for("got it", 30);
    assert_eq!(step.finish().rc, 0);
}

/// As on a full disk: its link is open, and shows nothing of it.
#[test]
fn a_certificate_that_a_node_cannot_keep_is_told_of_before_it_ends_as_root() {
    const LIFE: u64 = 60;
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", &format!("certificate_seconds = {LIFE}\n"));
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    let private = hosts.state("n1").join("private");
    let mut files = std::fs::read_dir(&private).unwrap().map(|entry| entry.unwrap().path());
    let own = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|e| e == "crt") && !path.ends_with("authority.crt")
    };
    let certificate = files.find(own).unwrap();
    // Where the new one is written first there is something that does not go away.
    let taken = certificate.with_extension("new");
    std::fs::create_dir(&taken).unwrap();
    let status = || hosts.root("head", "berth").arg("status").run().to_string();
    let is_told = || status().contains("were not renewed");
    assert!(wait(LIFE, || is_told().then_some(())).is_some(), "{}", status());
    std::fs::remove_dir(&taken).unwrap();
    assert!(wait(LIFE, || (!is_told()).then_some(())).is_some(), "{}", status());
    // It was in time.
    hosts.wait_node("n1", "idle", 60);
    let log = std::fs::read_to_string(hosts.state("n1").join("log/agent.log")).unwrap();
    assert!(log.contains("the certificate was renewed"), "{log}");
}

/// A cluster is made of its backup on another machine while its old controller lives on, cut off, and comes back.
#[test]
fn a_restored_controller_beside_the_living_old_one_runs_nothing_twice_as_root() {
    let hosts = Hosts::new(&["head", "n1", "spare"]);
    hosts.up("head", "");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    let script = "#!/bin/sh\necho begun >> $1\nuntil [ -e go ]; do sleep 0.1; done\necho ended >> $1\n";
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let sbatch = |options: &[&str], name: &str| {
        let sbatch = hosts.cmd("head", "sbatch").args([
            "--parsable",
            "-o",
            "/dev/null",
            "-c1",
            "--mem=20M",
            "-w",
            "n1",
        ]);
        sbatch.args(options).args(["job.sh", name]).ok().text().trim().to_string()
    };
    let read = |name: &str| std::fs::read_to_string(hosts.work().join(name)).unwrap_or_default();
    let runs = sbatch(&[], "runs");
    let waits = sbatch(&["--hold"], "waits");
    assert!(wait(20, || (read("runs") == "begun\n").then_some(())).is_some());
    let backup = hosts.work().join("backup.tar");
    hosts.root("head", "berth").arg("backup").arg(&backup).ok();

    // The other machine takes over, by the address that nodes know.
    let ip = |host: &str, words: &str| {
        let network = hosts.network(host);
        let space = network.file_name().unwrap().to_str().unwrap();
        berth_tests::Cmd::new("ip").args(["-n", space]).args(words.split(' ')).run()
    };
    let leads = |here: &str, away: &str| {
        ip(away, "addr del 10.77.0.1/24 dev eth0");
        ip(here, "addr add 10.77.0.1/24 dev eth0");
        // Nodes learn it when what they know does not answer; and their connections to the other one are over.
        ip("n1", "neigh flush all");
        hosts.kill_9("n1", "agent");
        hosts.root("n1", "berth").args(["up", "--detach"]).limit(60).spawn()
    };
    hosts.root("spare", "berth").arg("restore").arg(&backup).ok();
    let agent = leads("spare", "head");
    hosts.root("spare", "berth").args(["up", "--detach"]).limit(60).ok();
    assert_eq!(agent.finish().rc, 0);
    let state = |host: &str, job: &str| {
        hosts
            .cmd(host, "squeue")
            .args(["-h", "-t", "all", "-o", "%T", "-j", job])
            .run()
            .text()
            .trim()
            .to_string()
    };
    assert!(
        wait(30, || (state("spare", &runs) == "RUNNING").then_some(())).is_some(),
        "{}",
        state("spare", &runs)
    );
    // The old controller's machine may run what waits: nothing starts until somebody says that it does not.
    hosts.cmd("spare", "scontrol").args(["release", &waits]).ok();
    let alarms = hosts.root("spare", "berth").arg("status").run();
    assert!(alarms.text().contains("head"), "{alarms}");
    assert_eq!(read("waits"), "");
    hosts.root("spare", "scontrol").args(["update", "nodename=head", "state=down", "reason=replaced"]).ok();
    assert!(wait(60, || (read("waits") == "begun\n").then_some(())).is_some(), "{}", state("spare", &waits));

    // The old one is back where it was: the node follows another term, says so, and takes nothing of it.
    let agent = leads("head", "spare");
    hosts.cmd("head", "scontrol").args(["release", &waits]).ok();
    let log = || std::fs::read_to_string(hosts.state("n1").join("log/agent.log")).unwrap();
    assert!(wait(40, || log().contains("follows a controller of term").then_some(())).is_some(), "{}", log());
    drop(agent);
    // What the old one may think of its dead connection is its own affair: on the node nothing began twice.
    assert_eq!((read("runs").as_str(), read("waits").as_str()), ("begun\n", "begun\n"));
    let agent = leads("spare", "head");
    assert_eq!(agent.finish().rc, 0);
    std::fs::write(hosts.work().join("go"), "").unwrap();
    for (job, name) in [(&runs, "runs"), (&waits, "waits")] {
        let ended = wait(30, || (state("spare", job) == "COMPLETED").then_some(()));
        assert!(ended.is_some(), "{}", state("spare", job));
        assert_eq!(read(name), "begun\nended\n");
    }
    // What it has on record is history.
    hosts.root("head", "berth").args(["down", "--keep-jobs"]).limit(60).ok();
}

/// A machine that joined after the backup runs a job that waited in it: nothing starts before somebody says what it is.
#[test]
fn a_machine_that_joined_after_the_backup_is_asked_about_before_a_job_starts_as_root() {
    let hosts = Hosts::new(&["head", "n1", "n2"]);
    hosts.up("head", "");
    hosts.join("n2", &hosts.token("head", &[]));
    hosts.wait_node("n2", "idle", 20);
    // The kernel lets the lock go with the last process that has it.
    let script = "#!/bin/sh\nexec 9> lock\nflock -n 9 || touch twice\necho begun >> waits\nuntil [ -e go ]; do sleep 0.1; done\n";
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let options = ["--parsable", "-o", "/dev/null", "-c1", "--mem=20M", "--hold", "job.sh"];
    let job = hosts.cmd("head", "sbatch").args(options).ok().text().trim().to_string();
    let backup = hosts.work().join("backup.tar");
    hosts.root("head", "berth").arg("backup").arg(&backup).ok();

    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 20);
    hosts.root("head", "scontrol").args(["update", "nodename=head,n2", "state=drain", "reason=test"]).ok();
    hosts.cmd("head", "scontrol").args(["release", &job]).ok();
    let begun = || std::fs::read_to_string(hosts.work().join("waits")).unwrap_or_default();
    assert!(wait(30, || (begun() == "begun\n").then_some(())).is_some());
    // What is away keeps the restored cluster waiting until the machine has come.
    hosts.kill_9("n2", "agent");
    hosts.kill_9("head", "controller");
    hosts.root("head", "berth").arg("restore").arg(&backup).arg("--replace").ok();
    hosts.root("head", "berth").args(["up", "--detach"]).limit(60).ok();
    hosts.cmd("head", "scontrol").args(["release", &job]).ok();
    let status = || hosts.root("head", "berth").arg("status").run().text();
    let asked = wait(60, || status().contains("berth node approve n1").then_some(()));
    assert!(asked.is_some(), "{}", status());
    hosts.root("head", "scontrol").args(["update", "nodename=n2", "state=down", "reason=lost"]).ok();
    assert!(status().contains("berth node approve n1"), "{}", status());
    assert_eq!(begun(), "begun\n");
    hosts.root("head", "berth").args(["node", "approve", "n1"]).ok();
    // What it runs is ended there, and runs again.
    assert!(wait(60, || (begun() == "begun\nbegun\n").then_some(())).is_some(), "{}", status());
    assert!(!hosts.work().join("twice").exists(), "two runs at a time");
    std::fs::write(hosts.work().join("go"), "").unwrap();
    let ended = || hosts.cmd("head", "squeue").args(["-h", "-t", "all", "-o", "%T", "-j", &job]).run().text();
    assert!(wait(30, || (ended().trim() == "COMPLETED").then_some(())).is_some(), "{}", ended());
    hosts.wait_node("n1", "idle", 20);
}

/// A batch job of a machine that is removed while it is at work starts elsewhere when nothing of it is left there.
#[test]
fn a_machine_that_is_removed_with_its_jobs_is_out_when_they_are_gone_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", "kill_wait_seconds = 5\n");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 20);
    // It takes no notice of SIGTERM, and the kernel lets the lock go with the last process that has it.
    let script = "#!/bin/sh\ntrap '' TERM\nexec 9> lock\nflock -n 9 || touch twice\necho begun >> runs\n\
                  until [ -e go ]; do sleep 0.1; done\n";
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let state = |words: &[&str]| {
        hosts.root("head", "scontrol").args(["update", "nodename=head"]).args(words).ok();
    };
    state(&["state=drain", "reason=test"]);
    let options = ["--parsable", "-o", "/dev/null", "-c1", "--mem=20M", "--requeue", "job.sh"];
    let job = hosts.cmd("head", "sbatch").args(options).ok().text().trim().to_string();
    let begun = || std::fs::read_to_string(hosts.work().join("runs")).unwrap_or_default();
    assert!(wait(30, || (begun() == "begun\n").then_some(())).is_some());
    state(&["state=resume"]);
    hosts.root("head", "berth").args(["node", "remove", "n1"]).fails().says(&["--force", &job]);
    hosts.root("head", "berth").args(["node", "remove", "--force", "n1"]).limit(120).ok();
    let listed = hosts.root("head", "sinfo").args(["-h", "-N", "-o", "%N"]).ok().text();
    assert!(!listed.contains("n1"), "{listed}");
    assert!(wait(60, || (begun() == "begun\nbegun\n").then_some(())).is_some(), "{}", begun());
    assert!(!hosts.work().join("twice").exists(), "two runs at a time");
    std::fs::write(hosts.work().join("go"), "").unwrap();
    let ended = || hosts.cmd("head", "squeue").args(["-h", "-t", "all", "-o", "%T", "-j", &job]).run().text();
    assert!(wait(30, || (ended().trim() == "COMPLETED").then_some(())).is_some(), "{}", ended());
}
